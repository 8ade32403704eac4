"""Detectors of several modules: run folders of the European XFEL, and virtual CXI."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from extra_data.tests.make_examples import write_file
from extra_data.tests.mockdata.detectors import AGIPDModule

from fuzz.frames import (
    Found,
    FramesFormat,
    get,
    hdf5_columns,
    is_filled,
    is_mapped,
    refuse_short,
)

MODULE = (8, 16)
DETECTOR = "SPB_DET_AGIPD1M-1"
REGION = (slice(5, 12), slice(3, 9))
"""Of the first two modules, which are the ones that are there."""


class SmallModule(AGIPDModule):
    """As the European XFEL's, of fewer pixels."""

    image_dims = (2, *MODULE)


def _write_run(path: Path, raw: bool) -> None:
    path.mkdir()
    for number in range(2):
        file = path / f"{'RAW' if raw else 'CORR'}-R0238-AGIPD{number:02}-S00000.h5"
        source = SmallModule(f"{DETECTOR}/DET/{number}CH0", frames_per_train=4, raw=raw)
        write_file(str(file), [source], ntrains=3, chunksize=4, format_version="1.0")
        random = np.random.default_rng(number)
        with h5py.File(file, "r+") as opened:
            image = opened[f"INSTRUMENT/{DETECTOR}/DET/{number}CH0:xtdf/image"]
            image["data"][:] = random.integers(0, 9000, image["data"].shape)
            if not raw:
                image["mask"][:] = random.random(image["mask"].shape) < 0.1


@dataclass(frozen=True)
class ModulesFormat(FramesFormat):
    """A format of modules, each of whose frames is filled where it is missing."""

    def _judge_frames(self, path: Path, found: Found, frames: Any, rows: list[int]) -> list[str]:
        columns, wrong, known = found["columns"], [], set()
        ids = [columns[name].tolist() for name in ("trainId", "pulseId") if name in columns]
        ids = ids if self.suffix == "" else [rows]
        for module in range(2):
            top = module * MODULE[0]
            y, x = (range(n)[s] for n, s in zip((1 << 40, 1 << 40), found["region"], strict=True))
            read = _virtual if self.suffix else _read_module
            there, odd_mask = {}, False
            if f"AGIPD{module:02}-S00000.h5 (" not in found["told"]:  # told as not read
                with suppress(Exception):
                    there, odd_mask = read(path, module, frames.dtype)
            if odd_mask and there and "masks are not used" not in found["told"]:
                wrong.append(f"the mask of module {module} is not used, and nothing says so")
            known |= there.keys()
            first, last = max(top - y[0], 0), top + MODULE[0] - y[0]
            inside = (slice(max(y[0] - top, 0), y[-1] + 1 - top), slice(x[0], x[-1] + 1))
            for key, frame in zip(zip(*ids, strict=True), frames, strict=True):
                part = frame[first:last]
                candidates = [one[inside] for one in there.get(key, [])]
                if any(np.array_equal(part, c, equal_nan=True) for c in candidates):
                    continue
                if not is_filled(part):
                    wrong.append(f"module {module} of {key} is another")
                elif candidates and not found["told"]:
                    wrong.append(f"module {module} of {key} is filled, and nothing says so")
        wrong += [f"{key} is in no file" for key in zip(*ids, strict=True) if key not in known]
        lost = [key for key in known if found["n_frames"] < len(known)]
        return wrong + [f"of {len(known)} frames {found['n_frames']} are there"] * bool(lost)

    def _judge_columns(self, path: Path, found: Found) -> list[str]:
        # Trains and pulses say which frame is looked at, and so are judged with it.
        return super()._judge_columns(path, found) if self.suffix else []


There = dict[tuple[int, ...], list[np.ndarray]]
"""What names a frame to the images that bear that name."""


def _read_module(folder: Path, module: int, dtype: np.dtype[Any]) -> tuple[There, bool]:
    """Read all frames of a module with h5py, by train and pulse; is there a mask of no use?"""
    (path,) = folder.glob(f"*-R0238-AGIPD{module:02}-S00000.h5")
    found = defaultdict(list)
    with h5py.File(path, "r", locking=False) as file:
        source = f"{DETECTOR}/DET/{module}CH0:xtdf/image"
        image, index = file[f"INSTRUMENT/{source}"], file[f"INDEX/{source}"]
        data, mask = image["data"], get(image, "mask")
        fits = _fits(mask, data)
        for train, row in _rows(file["INDEX/trainId"][()], index["first"][()], index["count"][()]):
            if row < len(data):
                images = found[train, int(np.ravel(image["pulseId"][row])[0])]
                try:
                    images.append(_image(data, mask if fits else None, (row,), dtype))
                except Exception:  # it cannot be decoded
                    continue
        return found, not fits and image.get("mask", getlink=True) is not None


def _rows(trains: Any, first: Any, count: Any) -> Iterator[tuple[int, int]]:
    trains = trains[trains != 0]
    for train, start, n in zip(trains.tolist(), first.tolist(), count.tolist(), strict=False):
        for row in range(int(start), int(start) + min(int(n), 1000)):
            yield int(train), row


def _fits(mask: Any, data: h5py.Dataset) -> bool:
    is_array = isinstance(mask, h5py.Dataset) and mask.shape is not None
    return is_array and mask.shape[: data.ndim] == data.shape and mask.dtype.kind in "iu"


def _image(data: Any, mask: Any, place: Any, dtype: np.dtype[Any]) -> np.ndarray:
    assert data.dtype.kind in "iuf"
    refuse_short(data, place)
    image = data[place]
    image = image[0] if image.ndim == 3 else image
    with np.errstate(all="ignore"):
        image = image.astype(dtype)
    if mask is not None:
        refuse_short(mask, place)
        image[mask[place] != 0] = _fill(dtype)
    return np.asarray(image)


def _fill(dtype: np.dtype[Any]) -> Any:
    return np.nan if dtype.kind == "f" else np.iinfo(dtype).max


def _write_virtual(path: Path) -> None:
    shape, home = (12, *MODULE), "entry_1/instrument_1/detector_1"
    layouts = {
        "data": h5py.VirtualLayout((12, 4, *MODULE), "f4"),
        "mask": h5py.VirtualLayout((12, 4, *MODULE), "u4"),
    }
    for module in range(2):
        name = f"{path.stem}_m{module}.h5"
        random = np.random.default_rng(module)
        with h5py.File(path.with_name(name), "w") as file:
            file.create_dataset("data", data=random.normal(0, 5, shape).astype("f4"), chunks=True)
            file["mask"] = (random.random(shape) < 0.1).astype("u4") * 2
        for what, layout in layouts.items():
            layout[2 * module : 12, module] = h5py.VirtualSource(name, what, shape)[2 * module :]
    with h5py.File(path, "w") as file:
        for what, layout in layouts.items():
            fill = np.nan if what == "data" else 0
            file.create_virtual_dataset(f"{home}/{what}", layout, fillvalue=fill)
        file["entry_1/data_1/data"] = h5py.SoftLink(f"/{home}/data")
        file["entry_1/trainId"] = np.arange(12) // 4 + 10_000
        file["entry_1/pulseId"] = np.arange(12) % 4
        file["entry_1/cellId"] = np.tile(np.arange(12)[:, None] % 4, (1, 4)).astype("u2")


def _virtual(path: Path, module: int, dtype: np.dtype[Any]) -> tuple[There, bool]:
    with h5py.File(path, "r", locking=False) as file:
        data = file["entry_1/data_1/data"]
        mask = _find_mask(file, data)
        fits = _fits(mask, data)
        found: There = {}
        for row in range(min(len(data), 1000)):
            found[row,] = images = []
            try:
                image = _image(data, mask if fits else None, (row, module), dtype)
                if data.is_virtual and not _is_named(data, (row, module)):
                    image[...] = _fill(dtype)
                images.append(image)
            except Exception:  # it cannot be decoded
                continue
        return found, not fits and mask is not None


def _is_named(data: h5py.Dataset, place: tuple[int, int]) -> bool:
    """Tell whether a file is named for a frame; elsewhere a virtual dataset has its fill value."""
    return any(is_mapped(source, place) for source in data.virtual_sources())


def _find_mask(file: h5py.File, data: h5py.Dataset) -> Any:
    """The mask beside the frames, wherever the link to them leads."""
    for group in ("entry_1/data_1", "entry_1/instrument_1/detector_1"):
        if file.get(f"{group}/data") == data and f"{group}/mask" in file:
            return file.get(f"{group}/mask")
    return None


def _format(name: str, raw: bool) -> ModulesFormat:
    def write(path: Path) -> None:
        _write_run(path, raw)

    return ModulesFormat(name, "", write, _look, {}, region=REGION)


def _look(*_: Any) -> Any:
    raise NotImplementedError


MODULE_FORMATS = [
    _format("European XFEL, raw", raw=True),
    _format("European XFEL, corrected", raw=False),
    ModulesFormat(
        "virtual CXI of modules", ".cxi", _write_virtual, _look, {}, hdf5_columns, REGION
    ),
]

"""Detectors of several modules: run folders of the European XFEL, and virtual CXI."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from extra_data.tests.make_examples import write_file
from extra_data.tests.mockdata.detectors import AGIPDModule

from fuzz.frames import Found, FramesFormat, hdf5_columns, is_filled

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
            try:
                there = _read_module(path, module) if self.suffix == "" else _virtual(path, module)
            except Exception:
                there = {}
            known |= there.keys()
            first, last = max(top - y[0], 0), top + MODULE[0] - y[0]
            inside = (slice(max(y[0] - top, 0), y[-1] + 1 - top), slice(x[0], x[-1] + 1))
            for key, frame in zip(zip(*ids, strict=True), frames, strict=True):
                part = frame[first:last]
                candidates = [one[inside] for one in there.get(key, [])]
                if any(
                    np.array_equal(part, c.astype(part.dtype), equal_nan=True) for c in candidates
                ):
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


def _read_module(folder: Path, module: int) -> dict[tuple[int, ...], list[np.ndarray]]:
    """Read all frames of a module with h5py, by train and pulse."""
    (path,) = folder.glob(f"*-R0238-AGIPD{module:02}-S00000.h5")
    found = defaultdict(list)
    with h5py.File(path, "r", locking=False) as file:
        source = f"{DETECTOR}/DET/{module}CH0:xtdf/image"
        image, index = file[f"INSTRUMENT/{source}"], file[f"INDEX/{source}"]
        for train, row in _rows(file["INDEX/trainId"][()], index["first"][()], index["count"][()]):
            if row < len(image["data"]):
                images = found[train, int(np.ravel(image["pulseId"][row])[0])]
                try:
                    images.append(_image(image, row))
                except Exception:  # it cannot be decoded
                    continue
    return found


def _rows(trains: Any, first: Any, count: Any) -> Iterator[tuple[int, int]]:
    trains = trains[trains != 0]
    for train, start, n in zip(trains.tolist(), first.tolist(), count.tolist(), strict=False):
        for row in range(int(start), int(start) + min(int(n), 1000)):
            yield int(train), row


def _image(image: h5py.Group, row: int) -> np.ndarray:
    data = image["data"][row]
    data = data[0] if data.ndim == 3 else data
    mask = image.get("mask")
    whole = getattr(mask, "shape", None) is None or (
        mask.shape[: image["data"].ndim] != image["data"].shape
    )
    return np.asarray(data) if whole or mask.dtype.kind not in "iu" else _hide(data, mask[row])


def _hide(data: Any, mask: Any) -> np.ndarray:
    fill = np.nan if data.dtype.kind == "f" else np.iinfo(data.dtype).max
    return np.where(mask != 0, np.array(fill, data.dtype), data)


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


def _virtual(path: Path, module: int) -> dict[tuple[int, ...], list[np.ndarray]]:
    with h5py.File(path, "r", locking=False) as file:
        data = file["entry_1/data_1/data"]
        mask = _find_mask(file, data)
        whole = mask is None or mask.shape != data.shape or mask.dtype.kind not in "iu"
        found = {}
        for row in range(min(len(data), 1000)):
            found[row,] = images = []
            try:
                frame = data[row, module]
                images.append(frame if whole else _hide(frame, mask[row, module]))
            except Exception:  # it cannot be decoded
                continue
        return found


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

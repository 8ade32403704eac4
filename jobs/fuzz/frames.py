"""Frames of every format, read as a run reads them, and by its own library as it stands there."""

from __future__ import annotations

import hashlib
import json
import pickle
import resource
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import h5py
import hdf5plugin
import numpy as np

from spidask.errors import SpidaskError
from spidask.io.layout import JOULE_PER_EV, FileLayout
from spidask.io.runs import open_runs, sign_files, take_frames

SHAPE = (6, 5)
N_FRAMES = 12
REGION = (slice(2, 5), slice(1, 4))
N_READ = 16
MOST_BYTES = 32 << 20
"""Of the frames that a case reads: the first ones and the last."""

Found = dict[str, Any]
Frame = Callable[[int], np.ndarray]
"""Gives a frame as an independent reader sees it; raises where that cannot read it."""
IDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "trainId": (("trainId",), ("entry_1/trainId",)),
    "pulseId": (("pulseId",), ("entry_1/pulseId",)),
    "cellId": (("entry_1/cellId",),),
    "timestamp": (("LCLS/machineTime", "LCLS/machineTimeNanoSeconds"), ("timestamp",)),
    "fiducial": (("LCLS/fiducial",),),
    "eventNumber": (("LCLS/eventNumber",),),
}
ENERGIES = {
    "photon_energy": (
        ("LCLS/photon_energy_eV", 1.0),
        ("entry_1/instrument_1/source_1/energy", 1 / JOULE_PER_EV),
    ),
    "pulse_energy": (("entry_1/instrument_1/source_1/pulse_energy", 1e3),),
}


@dataclass(frozen=True)
class FramesFormat:
    """A format of frames.

    Attributes
    ----------
    name : str
        For the table.
    suffix : str
        Of the file or folder.
    write : callable
        Writes a healthy run to a path.
    look : callable
        Path, dataset and options to a reader of frames that knows nothing of spidask.
    options : dict
        For `open_runs`.
    columns : callable
        Path, dataset and number of frames to the values of each column that the file has.
    region : tuple of slice
        Rows and columns that half of the cases read.
    """

    name: str
    suffix: str
    write: Callable[[Path], None]
    look: Callable[[Path, str, dict[str, Any]], Frame]
    options: dict[str, Any] = field(default_factory=dict)
    columns: Callable[[Path, str, int], dict[str, Any]] = lambda *_: {}
    region: tuple[slice, slice] = REGION

    def prepare(self, folder: Path) -> None:
        """Write the run that will be damaged, and two others that will not."""
        for name, place in (("r1", "seed"), ("r2", "healthy"), ("r3", "healthy")):
            (folder / place).mkdir(parents=True, exist_ok=True)
            self.write(folder / place / f"{name}{self.suffix}")

    def read(self, case: Path, home: Path, number: int) -> Found:
        """Read as a run does; gives the reason where that is refused."""
        path = str(case / f"r1{self.suffix}")
        files = [path, *(str(home / "healthy" / f"r{n}{self.suffix}") for n in (2, 3))]
        try:
            with dask.config.set(scheduler="synchronous"):
                return self._read(path, files, case / "index.json", number)
        except SpidaskError as error:
            return {"refused": str(error)}

    def _read(self, path: str, files: list[str], cache: Path, number: int) -> Found:
        ds = open_runs(files, cache=cache, **self._options(Path(path)))
        unreadable = dict(ds.attrs["unreadable_files"])
        others = self._take(ds, [f for f in ds["file_path"].values if f != path], (slice(None),))
        if path in unreadable:
            return {"refused": unreadable[path], "others": others["frames"]}
        sign_files(ds)
        region = self.region if number % 2 else (slice(None), slice(None))
        found = self._take(ds, [path], region)
        code = ds["file_path"].values.tolist().index(path)
        found["n_frames"] = int(ds["file_frames"].values[code])
        found["digest"] = hashlib.md5(pickle.dumps(found)).hexdigest()
        found["dataset"] = str(ds["file_dataset"].values[code])
        told = dict(ds.attrs["odd_files"]).get(path, "")
        found |= {"told": told, "region": region, "others": others["frames"]}
        return found | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}

    def _take(self, ds: Any, paths: list[str], region: tuple[slice, ...]) -> Found:
        codes = [ds["file_path"].values.tolist().index(path) for path in paths]
        place = np.flatnonzero(np.isin(ds["file"].values, codes))
        size = int(np.prod(ds["frames"].shape[1:])) * ds["frames"].dtype.itemsize
        few = min(N_READ, max(MOST_BYTES // size, 1)) if len(paths) == 1 else len(place)
        place = np.unique(np.concatenate([place[: few - few // 4], place[len(place) - few // 4 :]]))
        part = take_frames(ds, place)
        names = [n for n in part.coords if part[n].dims == ("frame",) and n not in ("file", "run")]
        columns = {name: part[name].values for name in names}
        columns["run_name"] = part["run_name"].values[part["run"].values]
        return {"frames": part["frames"][:, *region].values, "columns": columns}

    def judge(self, case: Path, found: Found, healthy: Found) -> list[str]:
        """Say what is wrong with what was read, in words; the last is what was filled."""
        wrong = []
        if not np.array_equal(found["others"], healthy["others"], equal_nan=True):
            wrong.append("frames of other runs are other ones")
        path = case / f"r1{self.suffix}"
        # What is filled has to be told, beyond what is told of the healthy file.
        found = found | {"told": found["told"] if found["told"] != healthy["told"] else ""}
        wrong += self._judge_frames(path, found, found["frames"], found["columns"]["row"].tolist())
        return wrong + self._judge_columns(path, found)

    def _judge_columns(self, path: Path, found: Found) -> list[str]:
        wrong, columns = [], found["columns"]
        expected = self.columns(path, found["dataset"], found["n_frames"])
        for name in columns.keys() - {"row", "index", "run_name"} | expected.keys():
            values = columns.get(name)
            candidates = [v for v in expected.get(name, []) if v is not None]
            if not _is_one_of(values, [np.asarray(v)[columns["row"]] for v in candidates]):
                wrong.append(f"{name} {values} instead of {candidates}")
        return wrong

    def _judge_frames(self, path: Path, found: Found, frames: Any, rows: list[int]) -> list[str]:
        frame_of = None
        try:
            frame_of = self.look(path, found["dataset"], self._options(path))
        except Exception as error:
            if not all(is_filled(frame) for frame in frames):
                return [f"frames of what cannot be opened: {error!r}"]
        wrong = []
        for row, frame in zip(rows, frames, strict=True):
            try:
                assert frame_of
                expected = frame_of(row)[found["region"]]
            except Exception as error:
                if not is_filled(frame):
                    wrong.append(f"row {row} cannot be read ({error!r}) but was")
                continue
            if not _is_same(frame, expected):
                what = "filled" if is_filled(frame) else "another"
                if what == "another" or (expected.shape == frame.shape and not found["told"]):
                    wrong.append(f"row {row} is {what}")
        return wrong

    def _options(self, path: Path) -> dict[str, Any]:
        return {k: v(path) if callable(v) else v for k, v in self.options.items()}


def is_filled(frame: np.ndarray) -> bool:
    """Tell whether a frame counts as unreadable."""
    if frame.dtype.kind == "f":
        return bool(np.isnan(frame).all())
    return bool((frame == np.iinfo(frame.dtype).max).all())


def _is_same(frame: np.ndarray, expected: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        there = np.asarray(expected).astype(frame.dtype)
    return np.array_equal(frame, there, equal_nan=frame.dtype.kind == "f")


def _is_one_of(values: Any, candidates: list[np.ndarray]) -> bool:
    if values is None or not candidates:
        missing = values is None or np.isnan(values) | (values == -1)
        return bool(np.all(missing) and not candidates)
    if values.dtype.kind not in "iuf":
        return any(np.array_equal(values.astype(str), one.astype(str)) for one in candidates)
    return any(np.allclose(values, one, rtol=1e-12, atol=0, equal_nan=True) for one in candidates)


# What libraries of their own read


def get(file: h5py.File, name: str) -> Any:
    """Get what has a name; None too for links that lead round."""
    try:
        return file.get(name)
    except (OSError, RuntimeError):
        return None


def look_hdf5(path: Path, dataset: str, options: dict[str, Any]) -> Frame:
    """Read with h5py."""
    file = h5py.File(path, "r", locking=False)
    stack, layout = file[dataset], options.get("layout", FileLayout())
    assert stack.ndim == 3

    def frame(row: int) -> np.ndarray:
        refuse_short(stack, (row,))
        values = stack[row]
        if layout.mask is None:
            return np.asarray(values)
        mask = file[layout.mask]
        mask = mask[row] if mask.ndim == 3 else mask[()]
        return np.where((mask != 0) == (layout.mask_good == "nonzero"), values, np.float32("nan"))

    return frame


def refuse_short(array: Any, place: tuple[int, ...] = (), depth: int = 0) -> None:
    """Refuse chunks that are shorter than their shape: HDF5 goes on with what lies in memory."""
    if not isinstance(array, h5py.Dataset):
        return
    row = place[0] if place else None
    for source in array.virtual_sources() if array.is_virtual and depth < 4 else ():
        with suppress(OSError):  # gone: HDF5 gives the fill value
            path = array.file.filename
            if source.file_name != ".":
                path = Path(path).parent / source.file_name
            if is_mapped(source, place):
                with h5py.File(path, "r", locking=False) as file:
                    refuse_short(get(file, source.dset_name), find_place(source, row), depth + 1)
    chunks: list[Any] = []
    if array.chunks:
        with suppress(RuntimeError):  # HDF5 does not find them either
            array.id.chunk_iter(chunks.append)
    for chunk in chunks:
        if chunk.chunk_offset is None:  # it is nowhere: HDF5 gives the fill value
            continue
        if row is None or 0 <= row - int(chunk.chunk_offset[0]) < array.chunks[0]:
            # HDF5 may give the fill value for what lies behind the end of its file.
            assert chunk.byte_offset + chunk.size <= array.file.id.get_filesize(), "not in the file"
            n_bytes = _n_decoded(array, chunk)
            assert n_bytes >= int(np.prod(array.chunks)) * array.id.get_type().get_size(), n_bytes


def find_place(source: Any, row: int | None) -> tuple[int, ...]:
    """Find a row of a virtual dataset in its source; nothing where that is not plain."""
    (first, *_), (last, *_) = source.vspace.get_select_bounds()
    if row is None or source.src_space.get_select_type() != h5py.h5s.SEL_HYPERSLABS:
        return ()
    (begin, *_), (end, *_) = source.src_space.get_select_bounds()
    return (begin + row - first,) if end - begin == last - first else ()


def is_mapped(source: Any, place: tuple[int, ...]) -> bool:
    """Tell whether a source of a virtual dataset gives what is at a place of it."""
    first, last = source.vspace.get_select_bounds()
    return all(a <= n <= b for a, n, b in zip(first, place, last, strict=False))


def _n_decoded(array: h5py.Dataset, chunk: Any) -> int:
    """Bytes that a chunk decodes to, as far as filters are known here."""
    plist = array.id.get_create_plist()
    filters = [plist.get_filter(n)[0] for n in range(plist.get_nfilters())]
    filters = [code for n, code in enumerate(filters) if not chunk.filter_mask >> n & 1]
    if not filters:
        return int(chunk.size)
    try:
        content = array.id.read_direct_chunk(chunk.chunk_offset)[1]
        if filters[-1] == 1:
            return len(zlib.decompressobj().decompress(content, 1 << 24))
        return int.from_bytes(content[:8], "big") if filters == [hdf5plugin.BSHUF_ID] else 1 << 62
    except (OSError, RuntimeError, zlib.error):  # HDF5 will say so
        return 1 << 62


def look_zarr(path: Path, dataset: str, _options: dict[str, Any]) -> Frame:
    """Read with zarr."""
    import zarr

    root: Any = zarr.open(path, mode="r")
    stack = root if isinstance(root, zarr.Array) else root[dataset]
    assert stack.ndim == 3

    def frame(row: int) -> np.ndarray:
        refuse_cut_off(path / stack.path, row)
        return np.asarray(stack[row])

    return frame


def refuse_cut_off(folder: Path, row: int | None = None) -> None:
    """Refuse chunks of Blosc that are cut off: it goes on with what lies behind them in memory."""
    head = folder / ".zarray"
    about = json.loads(head.read_text()) if head.exists() else {}
    if (about.get("compressor") or {}).get("id") != "blosc":
        return
    for path in folder.rglob("[0-9]*"):
        number = int(str(path.relative_to(folder)).replace("/", ".").split(".")[0])
        if path.is_file() and (row is None or row // about["chunks"][0] == number):
            content = path.read_bytes()
            assert len(content) >= max(int.from_bytes(content[12:16], "little"), 16), path.name


def hdf5_columns(path: Path, _dataset: str, n_frames: int) -> dict[str, Any]:
    """Read event ids and energies with h5py."""
    with h5py.File(path, "r", locking=False) as file:
        return _columns(lambda name: file[name], n_frames)


def zarr_columns(path: Path, _dataset: str, n_frames: int) -> dict[str, Any]:
    """Read event ids and energies with zarr."""
    import zarr

    root: Any = zarr.open(path, mode="r")

    def get(name: str) -> Any:
        refuse_cut_off(path / name)
        return root[name]

    return _columns(get, n_frames)


def _columns(get: Callable[[str], Any], n_frames: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, places in IDS.items():
        parts = [[_column(get, place, n_frames, "iu") for place in both] for both in places]
        whole = [part for part in parts if all(p is not None for p in part)]
        ids = [p[0] if len(p) == 1 else p[0] << 32 | p[1] for p in whole]
        if ids:
            out[name] = ids
    for name, energies in ENERGIES.items():
        found = [(_column(get, place, n_frames, "iuf", True), k) for place, k in energies]
        values = [v.astype(float) * k for v, k in found if v is not None]
        if values:
            out[name] = [np.where(v > 0, v, np.nan) for v in values]
    return out


def _column(get: Any, name: str, n_frames: int, kinds: str, one: bool = False) -> Any:
    try:
        array = get(name)
        if isinstance(array, h5py.Dataset):
            refuse_short(array)
        if array.dtype.kind not in kinds:
            return None
        if one and array.shape in ((), (1,)):
            return np.broadcast_to(np.ravel(array[()]), n_frames)
        if array.shape[:1] != (n_frames,) or array.ndim > (2 if name.endswith("cellId") else 1):
            return None
        values = array[()] if kinds == "iuf" else array[()].astype(np.int64)
        return values.max(axis=1) if values.ndim == 2 else values
    except Exception:  # h5py says in many ways that something is not there
        return None

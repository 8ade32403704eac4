"""Many runs as one lazy Dataset, and parts of it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.core import indexing

from spidask.config import Events
from spidask.errors import DataError
from spidask.io.events import Joined, join_events
from spidask.io.files import find_runs
from spidask.io.identity import read_originals
from spidask.io.index import FileEntry, index_files, stat_file
from spidask.io.layout import ANYTHING, DATASET, ENERGIES, FileLayout
from spidask.io.modules import tell_faults
from spidask.io.stack import EVENT_IDS, StackInfo, locate
from spidask.io.stretches import (
    Codes,
    Energies,
    EventIds,
    FramesReader,
    Stretches,
    join_stretches,
)
from spidask.schema import annotate

BLOCK_BYTES = 64 * 2**20
"""Raw data of a block where the number of frames is left to spidask; twice as much at most."""

HIT_WINDOW = 128
"""Blocks hold a multiple of it where they can, so that they rarely cut a window of the hits."""


def open_runs(
    files: str | Sequence[str],
    dataset: str = DATASET,
    *,
    pattern: str | None = None,
    frames_per_block: int = 0,
    cache: Path | None = None,
    layout: FileLayout = ANYTHING,
    events: Events | None = None,
) -> xr.Dataset:
    """Open many runs as one lazy Dataset; no frame is read.

    Parameters
    ----------
    files : str or sequence of str
        Paths or globs of HDF5 files, Zarr folders, files of Dragonfly's photons and run folders of
        the European XFEL.
    dataset : str
        Path of the stack of frames (frame, y, x) inside each file, or of one of several modules
        (frame, module, slow scan, fast scan), which become one below the other. Where it is the
        default and not there, the other usual places of CXI, psocake and CXIDB 58 are looked at.
        Of run folders the detector's name or a pattern such as ``*AGIPD1M*``; a path stands for
        the only one.
    pattern : str, optional
        Regular expression with a group ``run``; joins files to runs, see `find_runs`.
    frames_per_block : int
        Frames of a Dask block; 0 chooses about 64 MiB of raw data.
    cache : pathlib.Path, optional
        JSON file that keeps the index of the files for the next time.
    layout : FileLayout
        Shape of frames in files that do not know it, a mask inside the files, the bits of that
        beside several modules, and arrays that name the original run and index of each frame.
    events : Events, optional
        Small data of the facility, joined by time stamp.

    Returns
    -------
    xarray.Dataset
        ``frames`` (frame, y, x), a Dask array, with coordinates ``run``, ``index``, ``file``,
        ``row`` and the event ids of the files, int64, -1 where a file has none. Where the files
        or the events have them, ``photon_energy`` [eV] and ``pulse_energy`` [mJ], float64, NaN
        where there is none; with events ``n_events``, how many have the frame's time stamp.
        Sorted by run and index; the lookup tables are ``run_name`` and ``file_path``. The dtype is
        that to which NumPy promotes those of the files, in native byte order, and a float with a
        mask inside the files. attrs: ``dataset``; ``layout``; ``repeated_frames``, how many
        frames share run and index with another (0 unless the layout names them);
        ``unreadable_files``, list of [path, reason], whose frames are unknown and not here;
        ``unreadable_runs``, names of the runs that have no other files; ``odd_files``, list of
        [path, reason], whose frames have another shape than most files' and are here but filled;
        ``faults``, path to what is missing or odd of a detector of several modules, see
        `modules.TOLD`, whose frames are here and filled, and which is told among the odd files
        too; ``sources``, path to other files that its frames lie in; ``frame_shape``;
        ``frames_per_block``; ``mask_bits``.

    Raises
    ------
    ConfigError
        If a path matches nothing or the pattern does not fit.
    DataError
        If no file can be read.

    Notes
    -----
    Frames that cannot be read are NaN everywhere, or the largest value of an integer dtype.
    Dask pushes a slice of rows and columns into the read only where it is the first slice, so
    cut the region first, and take runs and frames with `select_run` and `take_frames`.
    Where a run is joined from several files and one of them cannot be opened, the index counts
    on without it; the run's frames have other numbers once that file is well again.
    """
    runs = find_runs(files, pattern)
    paths = [path for paths in runs.values() for path in paths]
    entries = index_files(paths, dataset, cache, layout)
    good = [entry for entry in entries if entry.info]
    unreadable = [[entry.path, entry.problem] for entry in entries if not entry.info]
    if not good:
        raise DataError(
            f"none of {len(entries)} files can be read; {unreadable[0][0]} {unreadable[0][1]}",
            unreadable_files=unreadable,
        )
    shape, readable = _usual_shape(good), {entry.path for entry in good}
    out, stretches = _coordinates(runs, good, layout, events)
    dtype = np.result_type(*(i.dtype for i in _infos(good) if i.shape[1:] == shape))
    if layout.mask is not None:
        dtype = np.result_type(dtype, np.float32)
    out.attrs |= {
        "dataset": dataset,
        "layout": asdict(layout),
        "unreadable_files": unreadable,
        "unreadable_runs": [name for name, paths in runs.items() if not readable & set(paths)],
        "odd_files": _odd_files(good, shape),
        "sources": {
            e.path: i.sources for e, i in zip(good, _infos(good), strict=True) if i.sources
        },
        "faults": {e.path: i.faults for e, i in zip(good, _infos(good), strict=True) if i.faults},
        "frame_shape": list(shape),
        "frames_per_block": frames_per_block or choose_block(shape, dtype),
    }
    return annotate(_with_frames(out, stretches, dtype, aligned=True))


def _infos(entries: Iterable[FileEntry]) -> list[StackInfo]:
    return [entry.info for entry in entries if entry.info]


def _usual_shape(entries: list[FileEntry]) -> tuple[int, int]:
    # Counter keeps the order of first sight, so a tie goes to the first file.
    (rows, columns), _ = Counter(i.shape[1:] for i in _infos(entries)).most_common(1)[0]
    return rows, columns


def _odd_files(entries: list[FileEntry], shape: tuple[int, int]) -> list[list[str]]:
    pairs = list(zip(entries, _infos(entries), strict=True))
    return [
        [entry.path, f"frames of {info.shape[1:]}, expected {shape}; leave it out of runs.files"]
        for entry, info in pairs
        if info.shape[1:] != shape
    ] + [[entry.path, tell_faults(info.faults)] for entry, info in pairs if info.faults]


def choose_block(shape: tuple[int, int], dtype: np.dtype[Any]) -> int:
    """Choose how many frames are read at once.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of a frame, or of what is read of it.
    dtype : numpy.dtype
        Dtype of the raw frames.

    Returns
    -------
    int
        Frames of about 64 MiB, whole windows of the hits where one takes no more than 128 MiB.

    Examples
    --------
    >>> choose_block((512, 1024), np.dtype("uint16")), choose_block((123, 240), np.dtype("uint16"))
    (128, 1024)
    """
    fit = max(1, BLOCK_BYTES // (shape[0] * shape[1] * dtype.itemsize))
    return max(1, fit // HIT_WINDOW) * HIT_WINDOW if 2 * fit >= HIT_WINDOW else fit


def _stretches(entries: list[FileEntry]) -> Stretches:
    lengths = np.array([info.shape[0] for info in _infos(entries)], np.int64)
    start = np.concatenate([[0], np.cumsum(lengths)])
    return Stretches(start, np.arange(len(lengths)), np.zeros(len(lengths), np.int64))


def _coordinates(
    runs: dict[str, list[str]],
    entries: list[FileEntry],
    layout: FileLayout,
    events: Events | None,
) -> tuple[xr.Dataset, Stretches]:
    if layout.identity:
        originals = read_originals([entry.path for entry in entries], layout.identity)
        names, n_repeated = originals.names, originals.n_repeated
        stretches = join_stretches(originals.file, originals.row)
        frame = {"run": originals.run, "index": originals.index}
        frame |= {"file": originals.file.astype(np.int32), "row": originals.row}
        coords: dict[str, Any] = {name: ("frame", values) for name, values in frame.items()}
    else:
        stretches, n_repeated = _stretches(entries), 0
        names, arrays = _by_file(runs, entries, stretches)
        coords = {k: ("frame", indexing.LazilyIndexedArray(v)) for k, v in arrays.items()}
    paths, infos = tuple(entry.path for entry in entries), _infos(entries)
    beside = _beside(stretches, paths, infos, events)
    coords |= {k: ("frame", indexing.LazilyIndexedArray(v)) for k, v in beside.items()}
    tables = {
        "run_name": ("run_code", np.array(names, object)),
        "file_path": ("file_code", np.array(paths, object)),
        "file_dataset": ("file_code", np.array([info.dataset for info in infos], object)),
        "file_frames": ("file_code", np.array([info.shape[0] for info in infos], np.int64)),
    }
    attrs = {"repeated_frames": n_repeated}
    return xr.Dataset(coords={**coords, **tables}, attrs=attrs), stretches


def _by_file(
    runs: dict[str, list[str]], entries: list[FileEntry], stretches: Stretches
) -> tuple[list[str], dict[str, Codes]]:
    run_of = {path: name for name, paths in runs.items() for path in paths}
    names = list(dict.fromkeys(run_of[entry.path] for entry in entries))
    code = np.array([names.index(run_of[entry.path]) for entry in entries], np.int64)
    start = stretches.start
    first_of_run = start[np.searchsorted(code, code)]
    return names, {
        "run": Codes(start, code, 0, "int32"),
        "index": Codes(start, start[:-1] - first_of_run, 1, "int64"),
        "file": Codes(start, stretches.file, 0, "int32"),
        "row": Codes(start, stretches.row, 1, "int64"),
    }


def _beside(
    stretches: Stretches, paths: tuple[str, ...], infos: list[StackInfo], events: Events | None
) -> dict[str, EventIds | Energies | Joined]:
    """Event ids and energies, those of the files and those of the events."""
    arrays: dict[str, EventIds | Energies | Joined] = {}
    for name in EVENT_IDS:
        places = tuple(info.event_ids.get(name, []) for info in infos)
        if any(places):
            arrays[name] = EventIds(stretches, paths, places)
    for name in ENERGIES:
        energies = tuple(info.energies.get(name, []) for info in infos)
        if any(energies):
            arrays[name] = Energies(stretches, paths, energies)
    return join_events(arrays, events) if events else arrays


def _with_frames(
    out: xr.Dataset, stretches: Stretches, dtype: np.dtype[Any], *, aligned: bool
) -> xr.Dataset:
    used, file = np.unique(stretches.file, return_inverse=True)
    shape = tuple(out.attrs["frame_shape"])
    reader = FramesReader(
        Stretches(stretches.start, file, stretches.row),
        tuple(out["file_path"].values[used]),
        tuple(out["file_dataset"].values[used]),
        tuple(out["file_frames"].values[used].tolist()),
        shape,
        dtype,
        FileLayout(**out.attrs["layout"]),
    )
    sizes = _block_sizes(out, stretches, aligned=aligned)
    # The reader is a task of its own, so that it travels to a worker once and not in every task.
    lazy = da.from_array(
        reader,
        chunks=(sizes, *shape),
        name=False,
        asarray=False,
        meta=np.empty((0, 0, 0), dtype),
    )
    return out.assign(frames=(("frame", "y", "x"), lazy))


def _block_sizes(out: xr.Dataset, stretches: Stretches, *, aligned: bool) -> tuple[int, ...]:
    """Cut each stretch at multiples of the block from the run's start; scattered frames evenly."""
    most = int(out.attrs["frames_per_block"])
    if not aligned:
        return tuple(min(most, len(stretches) - n) for n in range(0, len(stretches), most)) or (0,)
    start = stretches.start
    if out.attrs["layout"]["identity"]:
        # Original indices have gaps: blocks count from the first frame of a run in a file.
        run, file = out["run"].values, out["file"].values
        breaks = np.flatnonzero((np.diff(run) != 0) | (np.diff(file) != 0)) + 1
        start = np.concatenate([[0], breaks, [len(run)]]) if len(run) else np.zeros(1, int)
        index = np.zeros(len(start) - 1, np.int64)
    else:
        index = out["index"].isel(frame=start[:-1]).values
    sizes: list[int] = []
    for first, n_frames in zip(index.tolist(), np.diff(start).tolist(), strict=True):
        head = min(n_frames, most - first % most)
        whole, tail = divmod(n_frames - head, most)
        sizes += [head] + [most] * whole + [tail] * (tail > 0)
    return tuple(sizes)


def take_frames(ds: xr.Dataset, rows: slice | Sequence[int] | NDArray[Any]) -> xr.Dataset:
    """Take some frames, lazily; only these are read.

    Parameters
    ----------
    ds : xarray.Dataset
        From `open_runs`, `select_run` or this function, with uncut frames.
    rows : slice or sequence of int
        Positions along the dimension ``frame``, in any order; or booleans for each.

    Returns
    -------
    xarray.Dataset
        The same variables for these frames. Blocks of a slice are aligned as in `open_runs`;
        scattered frames are grouped in the order given.

    Raises
    ------
    DataError
        If the frames were already cut to a region, which has to come after.
    """
    shape = tuple(ds.attrs.get("frame_shape", ()))
    if ds["frames"].shape[1:] != shape or "file_frames" not in ds.coords:
        raise DataError(
            f"frames of {ds['frames'].shape[1:]} do not come whole from open_runs {shape}; "
            "take frames first and cut the region after"
        )
    if not isinstance(rows, slice):
        rows = locate(rows, ds.sizes["frame"])
    out = ds.drop_vars("frames").isel(frame=rows)
    stretches = join_stretches(out["file"].values, out["row"].values)
    aligned = isinstance(rows, slice) and rows.step in (None, 1)
    return annotate(_with_frames(out, stretches, ds["frames"].dtype, aligned=aligned))


def select_run(ds: xr.Dataset, name: str, frames: slice = slice(None)) -> xr.Dataset:
    """Take one run, or a stretch of it, lazily.

    Parameters
    ----------
    ds : xarray.Dataset
        From `open_runs`, sorted by run, with uncut frames.
    name : str
        Name of the run.
    frames : slice
        Positions in the run.

    Returns
    -------
    xarray.Dataset
        As `take_frames`; it pickles to tens of kB whatever the size of the beamtime's graph.

    Raises
    ------
    DataError
        If there is no such run.
    """
    names = ds["run_name"].values.tolist()
    if name not in names:
        raise DataError(f"there is no run '{name}'; runs are {', '.join(names[:10])}", run=name)
    code, run = names.index(name), ds["run"].variable
    everything = range(ds.sizes["frame"])
    first = bisect_left(everything, code, key=lambda position: int(run[position]))
    last = bisect_left(everything, code + 1, key=lambda position: int(run[position]))
    wanted = range(first, last)[frames]
    return take_frames(ds, slice(wanted.start, wanted.stop, wanted.step))


def sign_files(ds: xr.Dataset) -> dict[str, list[list[str | int]]]:
    """Describe the files of each run so that a change shows.

    Parameters
    ----------
    ds : xarray.Dataset
        From `open_runs`.

    Returns
    -------
    dict of str to list
        Name of the run to [file name, bytes, modification time in ns, frames] of its files.
    """
    signatures: dict[str, list[list[str | int]]] = {}
    paths, datasets, lengths = (
        ds[name].values for name in ("file_path", "file_dataset", "file_frames")
    )
    for code, file in _runs_and_files(ds):
        path = paths[file]
        signature = stat_file(path, datasets[file], ds.attrs["sources"].get(path, []))
        entry: list[str | int] = [Path(path).name, *signature, int(lengths[file])]
        signatures.setdefault(ds["run_name"].values[code], []).append(entry)
    return signatures


def _runs_and_files(ds: xr.Dataset) -> list[tuple[int, int]]:
    # Files of hits hold several runs each, and their frames may alternate in a run.
    run, file = ds["run"].values, ds["file"].values
    starts = np.flatnonzero(np.diff(run, prepend=-1) | np.diff(file, prepend=-1))
    return list(dict.fromkeys(zip(run[starts].tolist(), file[starts].tolist(), strict=True)))

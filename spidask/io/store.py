"""The labels on disk: one group per run, written in whole shards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from spidask.errors import StoreError
from spidask.io.files import natural_key
from spidask.io.layout import ENERGIES
from spidask.io.stack import EVENT_IDS, MISSING_ID
from spidask.schema import VARIABLES, annotate

FILES = "files"
"""Attribute of a run's group: its files, as `spidask.io.runs.sign_files` describes them."""


def create_run(
    store: str | Path,
    run: str,
    template: xr.Dataset,
    n_frames: int,
    frames_per_shard: int,
    files: Sequence[Sequence[str | int]] = (),
    index: NDArray[np.int64] | None = None,
) -> None:
    """Create the empty group of a run, or accept the one that is there.

    Parameters
    ----------
    store : str or pathlib.Path
        The folder ``labels.zarr``; created if it is not there.
    run : str
        Name of the run.
    template : xarray.Dataset
        Data variables with the right names, dtypes and dimensions, ``frame`` first; the number
        of frames and the values mean nothing, and nothing is computed.
    n_frames : int
        Frames of the run.
    frames_per_shard : int
        Frames of a shard, which is one chunk of each variable.
    files : sequence
        Description of the run's files; a later change of it makes the labels stale.
    index : numpy.ndarray, optional
        Position of each frame in its run, (frame,), int64; consecutive without it.

    Raises
    ------
    StoreError
        If the run is there with another number of frames, shard length or variables.
    """
    group = Path(store, run)
    if group.exists():
        _refuse_other_layout(open_run(store, run), template, n_frames, frames_per_shard)
        return
    open_root(store)
    # The group gets its name when it is complete, so that a killed job leaves no half of one.
    unfinished = Path(store, f".{run}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    attributes: dict[str, Any] = {FILES: [list(file) for file in files], "n_frames": n_frames}
    new = zarr.open_group(unfinished, mode="w", zarr_format=3, attributes=attributes)
    for name, variable in template.data_vars.items():
        _create_array(new, str(name), variable, n_frames, frames_per_shard)
    if "index" in template:
        # Every shard is compared with it before it is written.
        _array(new, "index")[:] = np.arange(n_frames) if index is None else index
    n_shards = count_shards(n_frames, frames_per_shard)
    new.create_array(
        "done", shape=(n_shards,), chunks=(1,), dtype="uint8", dimension_names=["shard"]
    )
    os.rename(unfinished, group)


def _create_array(
    group: zarr.Group, name: str, variable: xr.DataArray, n_frames: int, frames_per_shard: int
) -> None:
    if variable.dims[:1] != ("frame",):
        raise StoreError(f"'{name}' has dimensions {variable.dims}, expected 'frame' first")
    entry = VARIABLES.get(name)
    group.create_array(
        name,
        shape=(n_frames, *variable.shape[1:]),
        chunks=(frames_per_shard, *variable.shape[1:]),
        dtype=variable.dtype,
        dimension_names=[str(dim) for dim in variable.dims],
        attributes={"units": entry.units, "long_name": entry.meaning} if entry else {},
    )


def _refuse_other_layout(
    group: zarr.Group, template: xr.Dataset, n_frames: int, frames_per_shard: int
) -> None:
    expected = {
        str(name): ((n_frames, *v.shape[1:]), (frames_per_shard, *v.shape[1:]), v.dtype)
        for name, v in template.data_vars.items()
    }
    found = {n: (array.shape, array.chunks, array.dtype) for n, array in _variables(group).items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise StoreError(
                f"{group.store_path}: '{name}' is {_say_layout(found.get(name))}, expected "
                f"{_say_layout(expected.get(name))}; choose another output folder",
                name=name,
            )


def _say_layout(layout: tuple[Any, ...] | None) -> str:
    return f"{layout[2]} {layout[0]} in shards of {layout[1][0]}" if layout else "absent"


def count_shards(n_frames: int, frames_per_shard: int) -> int:
    """Count the shards of a run.

    Parameters
    ----------
    n_frames : int
        Frames of the run.
    frames_per_shard : int
        Frames of a shard; the last may have fewer.

    Returns
    -------
    int
        Number of shards.

    Examples
    --------
    >>> count_shards(10, 4)
    3
    """
    return -(-n_frames // frames_per_shard)


def slice_shard(n_frames: int, frames_per_shard: int, shard: int) -> slice:
    """Say which frames of the run a shard holds.

    Parameters
    ----------
    n_frames : int
        Frames of the run.
    frames_per_shard : int
        Frames of a shard.
    shard : int
        Number of the shard.

    Returns
    -------
    slice
        Positions in the run.

    Raises
    ------
    StoreError
        If the run has no such shard.

    Examples
    --------
    >>> slice_shard(10, 4, 2)
    slice(8, 10, None)
    """
    n_shards = count_shards(n_frames, frames_per_shard)
    if not 0 <= shard < n_shards:
        raise StoreError(f"there is no shard {shard}, the run has {n_shards}", shard=shard)
    return slice(shard * frames_per_shard, min(n_frames, (shard + 1) * frames_per_shard))


def list_runs(store: str | Path) -> list[str]:
    """List the runs of a store.

    Parameters
    ----------
    store : str or pathlib.Path
        The folder ``labels.zarr``.

    Returns
    -------
    list of str
        Names in natural order; empty if the folder is not there.
    """
    if not Path(store).is_dir():
        return []
    folders = [path.name for path in Path(store).iterdir() if path.is_dir()]
    return sorted((name for name in folders if not name.startswith(".")), key=natural_key)


def missing_shards(store: str | Path, run: str) -> list[int]:
    """List the shards of a run that are still to be done.

    Parameters
    ----------
    store : str or pathlib.Path
        The folder ``labels.zarr``.
    run : str
        Name of the run.

    Returns
    -------
    list of int
        Numbers of shards.

    Raises
    ------
    StoreError
        If there is no such run.
    """
    done = _array(open_run(store, run), "done")[:]
    missing: list[int] = np.flatnonzero(np.asarray(done) == 0).tolist()
    return missing


def write_shard(store: str | Path, run: str, shard: int, dataset: xr.Dataset) -> None:
    """Write one whole shard and mark it done, the mark last.

    Parameters
    ----------
    store : str or pathlib.Path
        The folder ``labels.zarr``.
    run : str
        Name of the run.
    shard : int
        Number of the shard.
    dataset : xarray.Dataset
        Every variable of the template, in memory, for exactly the frames of the shard, in order.

    Raises
    ------
    StoreError
        If a variable is missing or too many, has another dtype or shape, or ``index`` says that
        these are other frames. Nothing is written then.
    """
    group = open_run(store, run)
    arrays, done = _variables(group), _array(group, "done")
    lacking, unknown = arrays.keys() - dataset.variables, dataset.data_vars.keys() - arrays.keys()
    if lacking or unknown:
        raise StoreError(
            f"{run}, shard {shard}: lacks {sorted(lacking)}, unknown are "
            f"{sorted(map(str, unknown))}; write exactly the variables of the template",
            run=run,
        )
    first = next(iter(arrays.values()))
    frames = slice_shard(first.shape[0], first.chunks[0], shard)
    dataset = dataset.compute()
    values = {name: dataset[name].values for name in arrays}
    for name, array in arrays.items():
        _refuse_misfit(f"{run}, shard {shard}: '{name}'", values[name], array, frames)
    for name, array in arrays.items():
        array[frames] = values[name]
    done[shard] = 1


def _refuse_misfit(what: str, values: NDArray[Any], array: zarr.Array[Any], frames: slice) -> None:
    expected = (frames.stop - frames.start, *array.shape[1:])
    if values.shape != expected or values.dtype != array.dtype:
        raise StoreError(
            f"{what} is {values.dtype} {values.shape}, expected {array.dtype} {expected}; "
            "write whole shards"
        )
    if array.basename == "index" and not np.array_equal(values, array[frames]):
        raise StoreError(
            f"{what} runs from {values[0]} to {values[-1]}, expected every frame from "
            f"{array[frames.start]!s} to {array[frames.stop - 1]!s}; write aligned shards"
        )


def gather_labels(store: str | Path, *, partial: bool = False) -> xr.Dataset:
    """Read the labels of all runs into memory.

    Parameters
    ----------
    store : str or pathlib.Path
        The folder ``labels.zarr``.
    partial : bool
        Take the frames of the shards that are done, instead of refusing where some are missing.

    Returns
    -------
    xarray.Dataset
        The stored variables, runs in natural order, with the coordinates ``run`` (int32) and
        ``run_name``. An event id that a run lacks is -1, an energy NaN.

    Raises
    ------
    StoreError
        If there is no run, if runs differ in other variables than these, or if shards are
        missing and `partial` is false.

    Notes
    -----
    10 million frames with a dozen variables take some ten to twenty seconds and 600 MB.
    """
    runs = list_runs(store)
    if not runs:
        raise StoreError(f"{store} holds no labels; run the stage classify first", store=str(store))
    missing = {run: missing_shards(store, run) for run in runs}
    n_missing = sum(map(len, missing.values()))
    if n_missing and not partial:
        named = ", ".join(f"{run}: {len(m)}" for run, m in missing.items() if m)
        raise StoreError(
            f"{store}: {n_missing} shards are missing ({named}); run again to finish them",
            missing=missing,
        )
    return _join_runs(runs, [_read_run(store, run, missing[run]) for run in runs])


def _read_run(store: str | Path, run: str, missing: list[int]) -> xr.Dataset:
    arrays = _variables(open_run(store, run))
    out = xr.Dataset({name: (_dims(array), np.asarray(array[:])) for name, array in arrays.items()})
    shard = np.arange(out.sizes["frame"]) // next(iter(arrays.values())).chunks[0]
    return out.isel(frame=~np.isin(shard, missing)) if missing else out


def _dims(array: zarr.Array[Any]) -> Any:
    return array.metadata.to_dict()["dimension_names"]


def _join_runs(runs: list[str], parts: list[xr.Dataset]) -> xr.Dataset:
    names = dict.fromkeys(str(name) for part in parts for name in part.data_vars)
    joined = {}
    for name in names:
        dims = next(part[name].dims for part in parts if name in part)
        columns = [_column(run, part, name) for run, part in zip(runs, parts, strict=True)]
        joined[name] = (dims, np.concatenate(columns))
    lengths = [part.sizes["frame"] for part in parts]
    codes = np.repeat(np.arange(len(runs), dtype=np.int32), lengths)
    lookup = ("run_code", np.array(runs, object))
    return annotate(xr.Dataset(joined, coords={"run": ("frame", codes), "run_name": lookup}))


def _column(run: str, part: xr.Dataset, name: str) -> NDArray[Any]:
    if name in part:
        return np.asarray(part[name].values)
    if name in EVENT_IDS or name in ENERGIES:
        return np.full(part.sizes["frame"], MISSING_ID if name in EVENT_IDS else np.nan)
    raise StoreError(f"run '{run}' has no '{name}', others have; choose another output folder")


def open_root(store: str | Path) -> zarr.Group:
    """Open a store, creating it if it is not there.

    Parameters
    ----------
    store : str or pathlib.Path
        The folder ``labels.zarr``.

    Returns
    -------
    zarr.Group
        Its root.
    """
    return zarr.open_group(store, mode="a", zarr_format=3, use_consolidated=False)


def open_run(store: str | Path, run: str) -> zarr.Group:
    """Open the group of a run.

    Parameters
    ----------
    store : str or pathlib.Path
        The folder ``labels.zarr``.
    run : str
        Name of the run.

    Returns
    -------
    zarr.Group
        Its group.

    Raises
    ------
    StoreError
        If there is no such run.
    """
    try:
        return zarr.open_group(Path(store, run), mode="r+", use_consolidated=False)
    except (OSError, ValueError) as error:
        there = ", ".join(list_runs(store)[:10]) or "none"
        raise StoreError(
            f"{store} has no run '{run}'; its runs are {there}; run the stage classify first",
            run=run,
        ) from error


def _variables(group: zarr.Group) -> dict[str, zarr.Array[Any]]:
    arrays = sorted(group.arrays(), key=lambda item: item[0])
    return {name: array for name, array in arrays if name != "done"}


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array

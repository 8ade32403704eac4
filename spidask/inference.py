"""From raw frames to stored labels: hits, scores of the ensemble, diameters."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from distributed import as_completed, get_worker

from spidask.config import Config
from spidask.errors import DataError, SpidaskError
from spidask.io import store
from spidask.io.runs import select_run, take_frames
from spidask.io.stack import EVENT_IDS
from spidask.networks.device import resolve_device
from spidask.networks.member import Member, load_member, score
from spidask.preprocessing import measure_sizes, preprocess
from spidask.schema import annotate, validate

if TYPE_CHECKING:
    from distributed import Client

FloatArray = npt.NDArray[np.float32]
log = logging.getLogger(__name__)

LABELS = (
    "index",
    "readable",
    "photon_count",
    "lit_pixels",
    "hit_score",
    "hit",
    "scores",
    "diameter",
    "fit_quality",
)
"""What labels.zarr holds of every frame, besides its event ids."""
TASKS_PER_WORKER = 2
"""Shards in flight for each worker: one in work and one that waits."""


@dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes
    ----------
    run : str
        Name of its run.
    number : int
        Its place in the run.
    n_frames, n_hits : int
        What was found in it.
    seconds : float
        Time from the first read to the last write.
    """

    run: str
    number: int
    n_frames: int
    n_hits: int
    seconds: float


def classify(patterns: xr.Dataset, members: Sequence[str | Path], config: Config) -> xr.Dataset:
    """Score the hits with every member of an ensemble, lazily.

    Parameters
    ----------
    patterns : xarray.Dataset
        What `preprocess` gives: patterns (frame, y, x) float32 in photons and hit (frame).
    members : sequence of str or pathlib.Path
        The members' files; each is loaded once in a process.
    config : Config
        Section `inference`.

    Returns
    -------
    xarray.Dataset
        The same with `scores` (frame, member) float32, lazy: calibrated probabilities of a single
        hit, NaN for frames that are no hits. The coordinate `member` holds the files' stems.

    Raises
    ------
    DataError
        If `patterns` or `hit` is missing, or there are no members.
    ClusterError
        If a device is asked for that is not there.
    """
    validate(patterns, "patterns", "hit")
    if not members:
        raise DataError("there are no members to score with; run the stage 'train' first")
    array, hit = patterns["patterns"].data, patterns["hit"].data
    paths = tuple(str(path) for path in members)
    scores = da.map_blocks(
        partial(_score_block, paths=paths, config=config),
        array,
        hit[:, None, None],
        dtype=np.float32,
        drop_axis=(1, 2),
        new_axis=1,
        chunks=(array.chunks[0], (len(paths),)),
        meta=np.empty((0, 0), np.float32),
    )
    names = [Path(path).stem for path in paths]
    return annotate(
        patterns.assign(scores=(("frame", "member"), scores)).assign_coords(member=names)
    )


def classify_runs(
    frames: xr.Dataset,
    members: Sequence[str | Path],
    config: Config,
    labels: str | Path,
    files: Mapping[str, Sequence[Sequence[str | int]]],
    client: Client | None = None,
    progress: Callable[[Shard, int], None] = lambda _shard, _n: None,
) -> list[Shard]:
    """Label every frame and store the labels, one task a shard.

    Parameters
    ----------
    frames : xarray.Dataset
        Raw frames as `open_runs` gives them.
    members : sequence of str or pathlib.Path
        The members' files.
    config : Config
        All sections that determine a label.
    labels : str or pathlib.Path
        The folder ``labels.zarr``. Shards that are there stay.
    files : mapping
        What describes the files of each run, as `sign_files` does; kept with the labels.
    client : distributed.Client, optional
        Who does the work; this process without it.
    progress : callable
        Called with every finished shard and the number of shards to do.

    Returns
    -------
    list of Shard
        The shards done now.

    Raises
    ------
    SpidaskError
        The first cause, if shards failed; all others are finished and stored before.
    StoreError
        If a run is stored in another layout.
    """
    resolve_device(config.inference.device)
    tasks = list(_missing(frames, members, config, Path(labels), files))
    log.info("%d shards to do", len(tasks))
    done: list[Shard] = []
    failed: list[tuple[str, int, Exception]] = []
    for run, number, result in _evaluate(tasks, client):
        if isinstance(result, Exception):
            log.error("shard %d of %s failed: %s", number, run, result)
            failed.append((run, number, result))
        else:
            done.append(result)
            progress(result, len(tasks))
    if failed:
        run, number, cause = failed[0]
        message = f"{len(failed)} of {len(tasks)} shards failed, first shard {number} of {run}: "
        kind = type(cause) if isinstance(cause, SpidaskError) else SpidaskError
        raise kind(message + str(cause), failed=[(r, n) for r, n, _ in failed]) from cause
    return done


def label_shard(
    run: xr.Dataset, members: Sequence[str | Path], config: Config, labels: str | Path, number: int
) -> Shard:
    """Compute the labels of one shard and store them.

    Parameters
    ----------
    run : xarray.Dataset
        The raw frames of one run, as `select_run` gives them.
    members : sequence of str or pathlib.Path
        The members' files.
    config : Config
        All sections that determine a label.
    labels : str or pathlib.Path
        The folder ``labels.zarr``, where the run exists.
    number : int
        Which shard.

    Returns
    -------
    Shard
        What was done.
    """
    start = time.perf_counter()
    name = str(run["run_name"].values[run["run"].values[0]])
    n_frames, window = run.sizes["frame"], config.hits.window
    frames = store.slice_shard(n_frames, config.inference.frames_per_shard, number)
    span = enclose_windows(frames, window, n_frames)
    lazy = _labels(take_frames(run, span), members, config)
    lazy = lazy.isel(frame=slice(frames.start - span.start, frames.stop - span.start))
    with dask.config.set(scheduler="threads", num_workers=_n_threads()):
        computed = lazy.compute()
    store.write_shard(labels, name, number, computed)
    n_hits = int(computed["hit"].sum())
    return Shard(name, number, len(computed["hit"]), n_hits, time.perf_counter() - start)


def enclose_windows(frames: slice, window: int, n_frames: int) -> slice:
    """Widen a stretch of a run to whole windows of the adaptive threshold.

    Parameters
    ----------
    frames : slice
        Positions in the run.
    window : int
        Frames of a window, counted from the run's first frame.
    n_frames : int
        Frames of the run; an incomplete last window belongs to the one before it.

    Returns
    -------
    slice
        Positions that hold every window that `frames` touches.

    Examples
    --------
    >>> enclose_windows(slice(128, 200), 128, 1000)
    slice(128, 256, None)
    >>> enclose_windows(slice(896, 1000), 128, 1000)  # the last of 7 windows takes the rest
    slice(768, 1000, None)
    """
    last = max((n_frames // window - 1) * window, 0)
    start = min(frames.start // window * window, last)
    stop = -(-frames.stop // window) * window
    return slice(start, n_frames if stop > last else stop)


def _labels(frames: xr.Dataset, members: Sequence[str | Path], config: Config) -> xr.Dataset:
    found = measure_sizes(classify(preprocess(frames, config), members, config), config)
    names = [*LABELS, *(name for name in EVENT_IDS if name in found)]
    return found.reset_coords()[names].drop_vars("member", errors="ignore")


def _score_block(
    block: FloatArray, hit: npt.NDArray[np.bool_], paths: tuple[str, ...], config: Config
) -> FloatArray:
    # One thread, whatever the machine: the last digits of a convolution depend on their number.
    torch.set_num_threads(1)
    device = resolve_device(config.inference.device)
    rows = np.flatnonzero(hit[:, 0, 0])
    out = np.full((len(block), len(paths)), np.nan, np.float32)
    for column, path in enumerate(paths):
        member = _load(path, Path(path).stat().st_mtime_ns, device)
        out[rows, column] = score(member, block[rows], config.inference.batch_size)
    return out


@lru_cache(maxsize=64)
def _load(path: str, _mtime_ns: int, device: str) -> Member:
    return load_member(path, device)


def _n_threads() -> int:
    try:
        return int(get_worker().state.nthreads)
    except ValueError:
        return len(os.sched_getaffinity(0))


Task = tuple[xr.Dataset, Sequence[str | Path], Config, Path, int]


def _missing(
    frames: xr.Dataset,
    members: Sequence[str | Path],
    config: Config,
    labels: Path,
    files: Mapping[str, Sequence[Sequence[str | int]]],
) -> Iterator[tuple[str, int, Task]]:
    for name in map(str, frames["run_name"].values):
        run = select_run(frames, name)
        if not run.sizes["frame"]:
            continue
        template = _labels(run, members, config)
        store.create_run(
            labels,
            name,
            template,
            run.sizes["frame"],
            config.inference.frames_per_shard,
            files[name],
        )
        for number in store.missing_shards(labels, name):
            yield name, number, (run, members, config, labels, number)


def _evaluate(
    tasks: Sequence[tuple[str, int, Task]], client: Client | None
) -> Iterator[tuple[str, int, Any]]:
    if client is None:
        for run, number, task in tasks:
            yield run, number, _attempt(*task)
        return
    waiting = iter(tasks)
    n_workers = len(client.scheduler_info(n_workers=-1)["workers"])
    running: dict[Any, tuple[str, int]] = {}
    futures = as_completed()

    def submit(n: int) -> None:
        for run, number, task in islice(waiting, n):
            future = client.submit(_attempt, *task, pure=False)
            running[future] = (run, number)
            futures.add(future)

    submit(TASKS_PER_WORKER * max(n_workers, 1))
    for future in futures:
        run, number = running.pop(future)
        error = future.exception()
        yield run, number, error if error is not None else future.result()
        submit(1)


def _attempt(*task: Any) -> Shard | Exception:
    try:
        return label_shard(*task)
    except Exception as error:
        return error

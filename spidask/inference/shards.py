"""One task of the stage classify: a shard from raw frames to stored labels."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from dask.sizeof import sizeof
from distributed import get_worker

from spidask.config import Config
from spidask.inference.device_shards import label_on_device
from spidask.inference.scoring import classify, load_current, score_patterns
from spidask.io import store
from spidask.io.calibration import recipe_of
from spidask.io.layout import ENERGIES
from spidask.io.runs import choose_block, take_frames
from spidask.io.stack import EVENT_IDS
from spidask.monitor import gpu_facts, shrink_pattern, tell
from spidask.networks.device import resolve_device
from spidask.preprocessing import map_frames, measure_sizes, preprocess
from spidask.stopwatch import measure, take_seconds

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
    "fluence",
)
"""What labels.zarr holds of every frame, besides its event ids and energies."""


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
    # Cores score the hits of a whole shard, for fuller batches; where all frames are hits, those of
    # a block, for they would not fit into memory.
    device = resolve_device(config)
    if device == "cpu" and config.hits.threshold != "none":
        prepared = prepare_shard(run, config, number)
        return finish_shard(prepared, run, members, config, labels, number)
    start = time.perf_counter()
    take_seconds()
    if device == "cpu":
        lazy = _cut(run, config, number, lambda frames: label_lazily(frames, members, config))
        computed = lazy.compute(scheduler="threads", num_workers=_n_threads())
    else:
        n_threads = max(_n_threads(), 2)
        frames, inside = _enclose(run, config, number, n_threads)
        there = torch.device(device)
        found = label_on_device(frames, inside, members, config, there, n_threads)
        computed = _as_stored(found).compute()
    return _store(run, computed, members, config, labels, number, start)


@dataclass(frozen=True)
class Prepared:
    """A shard but for its scores.

    Attributes
    ----------
    labels : xarray.Dataset
        The variables of labels.zarr without `scores`, in memory.
    hits : numpy.ndarray
        Patterns of the hits, shape (hit, y, x), float32, photons.
    seconds : dict
        Kind of work to the time it took; ``all`` from the first read to the end.
    reader : str
        Address of the worker; empty for a process that is none.
    """

    labels: xr.Dataset
    hits: npt.NDArray[np.float32]
    seconds: dict[str, float]
    reader: str


@sizeof.register(Prepared)  # type: ignore[untyped-decorator]
def _measure_prepared(prepared: Prepared) -> int:
    # Else Dask takes it for a few bytes, and neither spills nor weighs it.
    return int(prepared.hits.nbytes + prepared.labels.nbytes)


def prepare_shard(run: xr.Dataset, config: Config, number: int) -> Prepared:
    """Do all of a shard that needs no network.

    Parameters
    ----------
    run : xarray.Dataset
        The raw frames of one run, as `select_run` gives them.
    config : Config
        All sections that determine a label.
    number : int
        Which shard.

    Returns
    -------
    Prepared
        For `finish_shard`.
    """
    start = time.perf_counter()
    take_seconds()
    lazy = _cut(run, config, number, lambda f: measure_sizes(preprocess(f, config), config))
    names = [name for name in _stored_names(lazy) if name != "scores"]
    hits = map_frames(_pack_hits, lazy["patterns"].data, lazy["hit"].data, dtype=object)
    described = lazy.reset_coords()[names].assign(hits=("frame", hits))
    # Two at least: a worker of one core reads a block while it works on another.
    # Not by dask.config, which other shards in this process would change meanwhile.
    computed = described.compute(scheduler="threads", num_workers=max(_n_threads(), 2))
    packed = list(computed["hits"].values[computed["hit"].values])
    computed = computed.drop_vars("hits")
    found = np.empty((len(packed), *lazy["patterns"].shape[1:]), np.float32)
    for i in reversed(range(len(packed))):
        found[i] = packed.pop()
    seconds = take_seconds() | {"all": time.perf_counter() - start}
    return Prepared(computed, found, seconds, _address_of_worker())


def _pack_hits(
    block: npt.NDArray[np.float32], hit: npt.NDArray[np.bool_]
) -> npt.NDArray[np.object_]:
    # Copies, for a view would keep the block; of misses nothing.
    packed = np.empty(len(block), object)
    for i in np.flatnonzero(hit):
        packed[i] = block[i].copy()
    return packed


def finish_shard(
    prepared: Prepared,
    run: xr.Dataset,
    members: Sequence[str | Path],
    config: Config,
    labels: str | Path,
    number: int,
) -> Shard:
    """Score the hits of a shard, and store its labels: those that `label_shard` gives.

    Parameters
    ----------
    prepared : Prepared
        From `prepare_shard`.
    run, members, config, labels, number
        As of `label_shard`.

    Returns
    -------
    Shard
        What was done.
    """
    start = time.perf_counter() - prepared.seconds["all"]
    take_seconds()
    hit = prepared.labels["hit"].values
    scores = np.full((len(hit), len(members)), np.nan, np.float32)
    scores[hit] = score_patterns(prepared.hits, [str(path) for path in members], config)
    computed = prepared.labels.assign(scores=(("frame", "member"), scores))
    return _store(run, computed, members, config, labels, number, start, prepared)


def _cut(
    run: xr.Dataset, config: Config, number: int, describe: Callable[[xr.Dataset], xr.Dataset]
) -> xr.Dataset:
    frames, inside = _enclose(run, config, number)
    return describe(frames).isel(frame=inside)


def _enclose(
    run: xr.Dataset, config: Config, number: int, n_readers: int = 1
) -> tuple[xr.Dataset, slice]:
    """Take the frames of a shard with those beside them that its hits depend on; where it lies."""
    n_frames = run.sizes["frame"]
    frames = store.slice_shard(n_frames, config.inference.frames_per_shard, number)
    span = enclose_windows(frames, config.hits.window, n_frames)
    # No reader is to wait for others to read a block that all could share.
    most = min(_block_of(run, config), -(-(span.stop - span.start) // n_readers))
    taken = take_frames(run.assign_attrs(frames_per_block=most), span)
    return taken, slice(frames.start - span.start, frames.stop - span.start)


def _block_of(run: xr.Dataset, config: Config) -> int:
    # By what is read of a frame: small blocks cost more tasks than work.
    name = str(run["run_name"].values[run["run"].values[0]])
    shape, dtype = run["frames"].shape[1:], run["frames"].dtype
    n_pixels = recipe_of(config, name, (int(shape[0]), int(shape[1]))).n_read
    return config.inference.frames_per_block or choose_block((1, n_pixels), dtype)


def _store(
    run: xr.Dataset,
    computed: xr.Dataset,
    members: Sequence[str | Path],
    config: Config,
    labels: str | Path,
    number: int,
    start: float,
    prepared: Prepared | None = None,
) -> Shard:
    name = str(run["run_name"].values[run["run"].values[0]])
    with measure("write"):
        store.write_shard(labels, name, number, computed)
    seconds = time.perf_counter() - start
    shard = Shard(name, number, len(computed["hit"]), int(computed["hit"].sum()), seconds)
    if _threads_of_worker():
        try:
            best = _tell_shard(shard, computed, members, config, prepared)
            if best is not None:
                place, score = best
                row = number * config.inference.frames_per_shard + place
                if prepared is None:
                    pattern = _compute_pattern(run, row, config)
                else:
                    pattern = prepared.hits[computed["hit"].values[:place].sum()]
                picture, index = shrink_pattern(pattern), int(run["index"][row])
                tell("picture", run=name, index=index, score=score, pattern=picture)
        except Exception:  # the labels are stored; a picture must not cost them
            log.exception("shard %d of %s is done but not told", number, name)
    return shard


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


def label_lazily(frames: xr.Dataset, members: Sequence[str | Path], config: Config) -> xr.Dataset:
    """Describe all labels of frames, without computing any.

    Parameters
    ----------
    frames : xarray.Dataset
        Raw frames as `open_runs` gives them.
    members : sequence of str or pathlib.Path
        The members' files.
    config : Config
        All sections that determine a label.

    Returns
    -------
    xarray.Dataset
        The variables of labels.zarr, lazy.
    """
    found = measure_sizes(classify(preprocess(frames, config), members, config), config)
    return _as_stored(found)


def _as_stored(found: xr.Dataset) -> xr.Dataset:
    return found.reset_coords()[_stored_names(found)].drop_vars("member", errors="ignore")


def _stored_names(found: xr.Dataset) -> list[str]:
    beside = (*EVENT_IDS, *ENERGIES, "n_events")
    return [*LABELS, *(name for name in beside if name in found)]


def _tell_shard(
    shard: Shard,
    computed: xr.Dataset,
    members: Sequence[str | Path],
    config: Config,
    prepared: Prepared | None,
) -> tuple[int, float] | None:
    """Tell what was done; gives the frame that all members accept most clearly, and its score."""
    thresholds = [load_current(str(path), config).threshold for path in members]
    margin = (computed["scores"].values - np.array(thresholds, np.float32)).min(1)
    accepted = np.flatnonzero(margin >= 0)
    spent = Counter(prepared.seconds if prepared else {})
    spent.update(take_seconds())
    del spent["all"]
    tell(
        "shard",
        run=shard.run,
        number=shard.number,
        n_frames=shard.n_frames,
        n_hits=shard.n_hits,
        n_single=len(accepted),
        seconds=round(shard.seconds, 4),
        reader=prepared.reader if prepared else _address_of_worker(),
        **{f"{work}_s": round(seconds, 4) for work, seconds in spent.items()},
    )
    if gpu := gpu_facts():
        tell("gpu", **gpu)
    if not len(accepted):
        return None
    best = int(accepted[np.argmax(margin[accepted])])
    return best, round(float(margin[best]), 4)


def _compute_pattern(run: xr.Dataset, row: int, config: Config) -> npt.NDArray[np.float32]:
    lazy = preprocess(take_frames(run, [row]), config)["patterns"]
    (pattern,) = lazy.compute(scheduler="synchronous").values
    return np.asarray(pattern)


def _n_threads() -> int:
    return _threads_of_worker() or len(os.sched_getaffinity(0))


def _address_of_worker() -> str:
    try:
        return str(get_worker().address)
    except ValueError:
        return ""


def _threads_of_worker() -> int:
    """Threads of the Dask worker that this runs on, 0 where it runs on none."""
    try:
        return int(get_worker().state.nthreads)
    except ValueError:
        return 0

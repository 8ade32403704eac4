"""One task of the stage classify: a shard from raw frames to stored labels."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dask
import numpy as np
import xarray as xr
from distributed import get_worker

from spidask.config import Config
from spidask.inference.scoring import classify, load_current
from spidask.io import store
from spidask.io.runs import take_frames
from spidask.io.stack import EVENT_IDS
from spidask.monitor import gpu_facts, shrink_pattern, tell
from spidask.networks.device import resolve_device
from spidask.preprocessing import measure_sizes, preprocess
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
)
"""What labels.zarr holds of every frame, besides its event ids."""


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
    start = time.perf_counter()
    name = str(run["run_name"].values[run["run"].values[0]])
    n_frames, window = run.sizes["frame"], config.hits.window
    frames = store.slice_shard(n_frames, config.inference.frames_per_shard, number)
    span = enclose_windows(frames, window, n_frames)
    lazy = label_lazily(take_frames(run, span), members, config)
    lazy = lazy.isel(frame=slice(frames.start - span.start, frames.stop - span.start))
    take_seconds()
    with dask.config.set(scheduler="threads", num_workers=_n_threads()):
        computed = lazy.compute()
    with measure("write"):
        store.write_shard(labels, name, number, computed)
    seconds = time.perf_counter() - start
    shard = Shard(name, number, len(computed["hit"]), int(computed["hit"].sum()), seconds)
    if _threads_of_worker():
        try:
            best = _tell_shard(shard, computed, members, config)
            if best is not None:
                _tell_picture(run, frames.start + best[0], best[1], shard, config)
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
    names = [*LABELS, *(name for name in EVENT_IDS if name in found)]
    return found.reset_coords()[names].drop_vars("member", errors="ignore")


def _tell_shard(
    shard: Shard, computed: xr.Dataset, members: Sequence[str | Path], config: Config
) -> tuple[int, float] | None:
    """Tell what was done; gives the frame that all members accept most clearly, and its score."""
    device = resolve_device(config)
    thresholds = [load_current(str(path), device).threshold for path in members]
    margin = (computed["scores"].values - np.array(thresholds, np.float32)).min(1)
    accepted = np.flatnonzero(margin >= 0)
    tell(
        "shard",
        run=shard.run,
        number=shard.number,
        n_frames=shard.n_frames,
        n_hits=shard.n_hits,
        n_single=len(accepted),
        seconds=round(shard.seconds, 4),
        **{f"{work}_s": round(spent, 4) for work, spent in take_seconds().items()},
    )
    if gpu := gpu_facts():
        tell("gpu", **gpu)
    if not len(accepted):
        return None
    best = int(accepted[np.argmax(margin[accepted])])
    return best, round(float(margin[best]), 4)


def _tell_picture(run: xr.Dataset, row: int, score: float, shard: Shard, config: Config) -> None:
    with dask.config.set(scheduler="synchronous"):
        (pattern,) = preprocess(take_frames(run, [row]), config)["patterns"].values
    index, picture = int(run["index"][row]), shrink_pattern(pattern)
    tell("picture", run=shard.run, index=index, score=score, pattern=picture)


def _n_threads() -> int:
    return _threads_of_worker() or len(os.sched_getaffinity(0))


def _threads_of_worker() -> int:
    """Threads of the Dask worker that this runs on, 0 where it runs on none."""
    try:
        return int(get_worker().state.nthreads)
    except ValueError:
        return 0

"""What the events add up to, in memory that doesn't grow with the number of shards."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spidask.schema import REASONS

Event = Mapping[str, Any]
FloatArray = npt.NDArray[np.float64]

N_BINS = 256
"""Bins of a history."""
N_RECENT = 60
"""Shards whose times are kept."""
N_PICTURES = 12
N_FAILED = 1000
"""Failed shards that are kept apart."""
N_CAUSE = 300
"""Characters of a cause."""
PARTS = ("read", "preprocess", "score", "write", "other")
"""What a shard spends its time on."""
FUNNEL = ("frames", "readable", "hits", "single hits", "selected")
"""What is left after each of `schema.REASONS`."""


class Bins:
    """Sums along a growing axis, in a fixed number of equal bins.

    Where a value lies behind the last bin, neighbours merge and all bins become twice as wide.

    Parameters
    ----------
    width : float
        Width of a bin at the start.
    n_columns : int
        Values that are summed side by side.
    n_bins : int
        Number of bins, even.

    Examples
    --------
    >>> bins = Bins(1.0, 1, n_bins=4)
    >>> for x in (0.5, 3.5, 4.5):
    ...     bins.add(x, 10)
    >>> bins.width, bins.filled()[:, 0]
    (2.0, array([10., 10., 10.]))
    """

    def __init__(self, width: float, n_columns: int, n_bins: int = N_BINS) -> None:
        self.width = width
        self._sums = np.zeros((n_bins, n_columns))
        self._n_filled = 0

    def add(self, x: float, *values: float) -> None:
        """Add values at a place.

        Parameters
        ----------
        x : float
            The place, in units of the width; what lies before 0 counts as 0.
        *values : float
            One for each column.
        """
        while x >= self.width * len(self._sums):
            merged = self._sums.reshape(-1, 2, self._sums.shape[1]).sum(axis=1)
            self._sums = np.concatenate([merged, np.zeros_like(merged)])
            self._n_filled = -(-self._n_filled // 2)
            self.width *= 2
        index = max(int(x // self.width), 0)
        self._sums[index] += values
        self._n_filled = max(self._n_filled, index + 1)

    def filled(self) -> FloatArray:
        """Give the bins up to the last one that was added to.

        Returns
        -------
        numpy.ndarray
            Sums, shape (bin, column), float64.
        """
        return self._sums[: self._n_filled]


@dataclass
class RunTotals:
    """What is known of a run.

    Attributes
    ----------
    n_shards, n_frames, n_hits, n_single : int
        Its finished shards, their frames, hits, and frames that all members accept.
    """

    n_shards: int = 0
    n_frames: int = 0
    n_hits: int = 0
    n_single: int = 0


@dataclass(frozen=True)
class History:
    """Throughput over time, shape (bin,), float64 each.

    Attributes
    ----------
    end : numpy.ndarray
        Where a bin ends, epoch seconds.
    width : float
        Width of the bins, seconds.
    rate, smooth : numpy.ndarray
        Frames a second in the bin, and the mean over the window that ends there.
    n_shards : numpy.ndarray
        Shards done up to the end of the bin.
    shard_rate : float
        Shards a second in the last window.
    window : float
        Length of the window, seconds.
    """

    end: FloatArray
    width: float
    rate: FloatArray
    smooth: FloatArray
    n_shards: FloatArray
    shard_rate: float
    window: float


class Totals:
    """What the events of a job add up to."""

    def __init__(self) -> None:
        self.n_events = 0
        self.stage = ""
        self.stage_start = 0.0
        self.n_planned_shards = 0
        self.n_planned_frames = 0
        self.all_runs = RunTotals()
        self.runs: dict[str, RunTotals] = {}
        self.failed: dict[tuple[str, int], str] = {}
        self.recent: deque[Event] = deque(maxlen=N_RECENT)
        self.pictures: deque[Event] = deque(maxlen=N_PICTURES)
        self.losses: dict[str, Bins] = {}
        self.scores: dict[str, Bins] = {}
        self.iterations: dict[str, int] = {}
        self.gpus: dict[tuple[str, str], Event] = {}
        self.selected: dict[str, int] = {}
        self._start = 0.0
        self._done = Bins(2.0, 2)

    def add(self, event: Event) -> None:
        """Take in an event.

        Parameters
        ----------
        event : mapping
            As `tell` sends it; other kinds are left alone.
        """
        add = {
            "stage": self._add_stage,
            "shard": self._add_shard,
            "failed": self._add_failed,
            "loss": self._add_loss,
            "picture": self.pictures.append,
            "selected": self._add_selected,
            "gpu": self._add_gpu,
        }.get(event["kind"])
        if add is not None:
            add(event)
            self.n_events += 1

    def forget_worker(self, address: str) -> None:
        """Drop the GPUs of a worker that has left.

        Parameters
        ----------
        address : str
            Its address.
        """
        self.gpus = {key: event for key, event in self.gpus.items() if key[0] != address}
        self.n_events += 1

    def _add_stage(self, event: Event) -> None:
        self.stage, self.stage_start = str(event["name"]), event["time"]
        if event.get("n_shards"):
            # What is to do comes on top of what is done: so a resumed or followed job adds up.
            self.n_planned_shards = self.all_runs.n_shards + event["n_shards"]
            self.n_planned_frames = self.all_runs.n_frames + event.get("n_frames", 0)
        if self.stage == "train":
            self.losses, self.scores, self.iterations = {}, {}, {}

    def _add_shard(self, event: Event) -> None:
        run, number = str(event["run"]), event["number"]
        for totals in (self.all_runs, self.runs.setdefault(run, RunTotals())):
            totals.n_shards += 1
            totals.n_frames += event["n_frames"]
            totals.n_hits += event["n_hits"]
            totals.n_single += event["n_single"]
        self.failed.pop((run, number), None)
        self.recent.append(event)
        self._start = self._start or event["time"] - event["seconds"]
        self._done.add(event["time"] - self._start, event["n_frames"], 1)

    def _add_failed(self, event: Event) -> None:
        key = str(event["run"]), event["number"]
        if len(self.failed) < N_FAILED:
            # The first cause stays: later attempts often fail for reasons of their own.
            self.failed.setdefault(key, str(event["cause"])[:N_CAUSE])

    def _add_loss(self, event: Event) -> None:
        seed, iteration = str(event["seed"]), event["iteration"]
        self.iterations[seed] = max(iteration, self.iterations.get(seed, 0))
        for name, curves in (("loss", self.losses), ("validation_f1", self.scores)):
            value = event.get(name)
            if value is not None and math.isfinite(value):
                curves.setdefault(seed, Bins(1.0, 2)).add(iteration, value, 1)

    def _add_selected(self, event: Event) -> None:
        left = event["frames"] - np.cumsum([0, *(event[reason] for reason in REASONS[1:])])
        self.selected = dict(zip(FUNNEL, map(int, left), strict=True))

    def _add_gpu(self, event: Event) -> None:
        self.gpus[event["worker"], event["device"]] = event

    def funnel(self) -> dict[str, int]:
        """Count the frames that are left after each step.

        Returns
        -------
        dict
            The final selection's counts where there is one, else those of the finished shards.
        """
        if self.selected:
            return self.selected
        counts = self.all_runs
        return {"frames": counts.n_frames, "hits": counts.n_hits, "single hits": counts.n_single}

    def history(self, now: float) -> History:
        """Give the throughput over time.

        Parameters
        ----------
        now : float
            Epoch seconds; the last bin ends here.

        Returns
        -------
        History
            Empty before the first shard is done.
        """
        if not self._start:
            nothing = np.zeros(0)
            return History(nothing, self._done.width, nothing, nothing, nothing, 0.0, 0.0)
        age = max(now - self._start, 1e-3)
        self._done.add(age, 0, 0)  # without shards the rate falls
        width, done = self._done.width, self._done.filled()
        end = np.minimum(np.arange(1, len(done) + 1) * width, age)
        window = max(5 * width, self._window())
        frames, shards = done.T
        return History(
            end=self._start + end,
            width=width,
            rate=frames / width,
            smooth=_trailing_mean(frames, end, window),
            n_shards=np.cumsum(shards),
            shard_rate=float(_trailing_mean(shards, end, window)[-1]),
            window=min(window, age),
        )

    def _window(self) -> float:
        # Workers that started together end together: a window of less than two shards' time would
        # show waves, and one in which fewer than five shards end would show noise.
        seconds = np.mean([event["seconds"] for event in self.recent])
        ends = [event["time"] for event in self.recent]
        interval = (max(ends) - min(ends)) / max(len(ends) - 1, 1)
        return float(max(2 * seconds, 5 * interval))

    def parts(self) -> dict[str, FloatArray]:
        """Give the time that the last shards took, split by what it was spent on.

        Returns
        -------
        dict
            For each of `PARTS` the seconds, shape (shard,), float64; oldest first.
        """
        known = PARTS[:-1]
        rows = [[event.get(f"{part}_s", 0.0) for part in known] for event in self.recent]
        table = np.array(rows, np.float64).reshape(-1, len(known))
        seconds = np.array([event["seconds"] for event in self.recent], np.float64)
        other = np.maximum(seconds - table.sum(axis=1), 0)
        return dict(zip(PARTS, [*table.T, other], strict=True))


def mean_curve(bins: Bins) -> tuple[FloatArray, FloatArray]:
    """Give the mean in every bin that holds something.

    Parameters
    ----------
    bins : Bins
        With the columns sum and count.

    Returns
    -------
    x, y : numpy.ndarray
        Where the bins start, and the means, shape (bin,), float64.
    """
    total, count = bins.filled().T
    (held,) = np.nonzero(count)
    return held * np.float64(bins.width), total[held] / count[held]


def _trailing_mean(sums: FloatArray, end: FloatArray, window: float) -> FloatArray:
    begin = np.maximum(end - window, 0)
    edges, total = np.append(0.0, end), np.append(0.0, np.cumsum(sums))
    mean: FloatArray = (total[1:] - np.interp(begin, edges, total)) / (end - begin)
    return mean

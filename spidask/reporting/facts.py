"""The numbers of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from spidask.config import Config
from spidask.io.labels import locate, read_labels
from spidask.metrics import (
    Curve,
    average_precision,
    average_precision_interval,
    judge,
    precision_recall,
    proportion_interval,
)
from spidask.schema import CLASSES, REASONS

SINGLE = CLASSES.index("single")
N_DRAWS = 4000
"""Draws behind the interval of a purity that no truth gives."""
MOST_RESAMPLED = 20_000_000
"""Frames times bootstrap samples; larger sets are resampled less often, at least 100 times."""


@dataclass(frozen=True)
class Step:
    """One step of the funnel.

    Attributes
    ----------
    name : str
        What is left.
    n : int
        How many frames are left.
    lost : int
        How many frames of the step before are not.
    reason : str
        Why they are not, a name in `schema.REASONS`; empty for the first step.
    share : float
        Frames left by those of the step before; NaN without any.
    """

    name: str
    n: int
    lost: int
    reason: str
    share: float


@dataclass(frozen=True)
class Truth:
    """Labels that judge the selection, none of a frame that was trained on.

    Attributes
    ----------
    from_truth : bool
        They come from `labels.truth`, else they are held out of `labels.file`.
    rows : numpy.ndarray
        Positions in the selection, shape (label,), int64.
    classes : numpy.ndarray
        Codes into `schema.CLASSES`, shape (label,), int64.
    n_trained_on : int
        Labels left out because the frame was used in training or validation.
    n_unknown : int
        Labels left out because the selection has no such frame.
    """

    from_truth: bool
    rows: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    n_trained_on: int
    n_unknown: int


@dataclass(frozen=True)
class Purity:
    """Share of single hits in the selection.

    Attributes
    ----------
    value, low, high : float
        The share and its 95 % interval.
    n : int
        Selected frames behind it.
    n_single : int or None
        How many of them are single hits; None where that is not known and the members'
        probabilities give the estimate.
    """

    value: float
    low: float
    high: float
    n: int
    n_single: int | None


@dataclass(frozen=True)
class Quality:
    """How the selection compares with labels.

    Attributes
    ----------
    metrics : dict
        What `metrics.judge` gives.
    outcomes : list
        For each class its name, its number and how many of it were selected or rejected, in the
        order of `schema.REASONS`.
    curve : Curve or None
        Precision and recall of the score; None without a single hit or after an early exit, as are
        the next ones.
    average_precision : float or None
        Of the score.
    interval : tuple of float or None
        Bootstrap interval of the average precision, 95 %.
    n_samples : int
        Bootstrap samples.
    """

    metrics: dict[str, float]
    outcomes: list[tuple[str, int, list[int]]]
    curve: Curve | None
    average_precision: float | None
    interval: tuple[float, float] | None
    n_samples: int


def make_funnel(counts: dict[str, Any]) -> list[Step]:
    """Count the frames that are left after each reason.

    Parameters
    ----------
    counts : dict
        What `selection.count_reasons` gives.

    Returns
    -------
    list of Step
        All frames, readable ones, hits, single hits, and those in the size window.

    Examples
    --------
    >>> counts = {"frames": 9, "unreadable": 1, "miss": 4, "not_single": 2, "size": 1}
    >>> [step.n for step in make_funnel(counts)]
    [9, 8, 4, 2, 1]
    """
    names = ("readable", "hits", "single hits", "in the size window = selected")
    steps = [Step("frames", counts["frames"], 0, "", float("nan"))]
    for name, reason in zip(names, REASONS[1:], strict=True):
        before, lost = steps[-1].n, counts[reason]
        share = (before - lost) / before if before else float("nan")
        steps.append(Step(name, before - lost, lost, reason, share))
    return steps


def match_truth(selection: xr.Dataset, config: Config) -> Truth | None:
    """Find the labels that may judge the selection.

    Parameters
    ----------
    selection : xarray.Dataset
        What `selection.select` gives.
    config : Config
        Section `labels`: the truth, or without one the labels that were not trained on.

    Returns
    -------
    Truth or None
        None where no label is left.

    Raises
    ------
    DataError
        If the table cannot be read, or names frames by event ids that the selection lacks.
    """
    source = config.labels.truth or config.labels.file
    if source is None:
        return None
    labels = read_labels(source, config.labels)
    n_labels = len(labels)
    if {"run", "index"} <= set(labels.columns):
        # Truth may be of more runs, or of frames in a file that nobody can read.
        labels = labels[_known(labels["run"], labels["index"].to_numpy(), selection)]
    rows = locate(labels, selection)
    held_out = ~selection["trained_on"].values[rows]
    classes = np.array([CLASSES.index(name) for name in labels["label"]], np.int64)
    n_unknown, n_trained = n_labels - len(rows), int(np.sum(~held_out))
    if not held_out.any():
        return None
    from_truth = config.labels.truth is not None
    return Truth(from_truth, rows[held_out], classes[held_out], n_trained, n_unknown)


def estimate_purity(selection: xr.Dataset, truth: Truth | None, seed: int) -> Purity | None:
    """Estimate the share of single hits in the selection.

    Parameters
    ----------
    selection : xarray.Dataset
        What `selection.select` gives.
    truth : Truth or None
        Labels; only those of `labels.truth` count here, for labels of training are a choice.
    seed : int
        Of the draws, where there is no truth.

    Returns
    -------
    Purity or None
        None where nothing is selected but frames that were trained on.

    Notes
    -----
    With truth, the share counted among selected frames that have it, with Clopper and Pearson's
    interval. Without, the mean of the members' probabilities; its interval is that of the number
    of single hits if each frame is one with the probability that a member, drawn at random,
    gives it. It holds as far as the probabilities do.
    """
    if truth is not None and truth.from_truth:
        selected = selection["selected"].values[truth.rows]
        n, n_single = int(selected.sum()), int(np.sum(truth.classes[selected] == SINGLE))
        if n:
            return Purity(n_single / n, *proportion_interval(n_single, n), n, n_single)
    rows = np.flatnonzero(selection["selected"].values & ~selection["trained_on"].values)
    scores = selection["scores"].values[rows]
    if not scores.size:
        return None
    low, high = np.quantile(_draw_shares(scores, np.random.default_rng(seed)), [0.025, 0.975])
    return Purity(float(scores.mean(dtype=float)), float(low), float(high), len(rows), None)


def measure_quality(
    selection: xr.Dataset, truth: Truth, seed: int, *, is_ranked: bool = True
) -> Quality:
    """Compare a selection with labels.

    Parameters
    ----------
    selection : xarray.Dataset
        What `selection.select` gives.
    truth : Truth
        Labels.
    seed : int
        Of the bootstrap.
    is_ranked : bool
        Whether scores rank the frames; after an early exit they do not, for a rejected frame has
        the score of the member that rejected it.

    Returns
    -------
    Quality
        Metrics, outcomes by class, precision and recall.
    """
    is_single = truth.classes == SINGLE
    metrics = judge(selection["selected"].values[truth.rows], is_single)
    cells = truth.classes * len(REASONS) + selection["reason"].values[truth.rows]
    table = np.bincount(cells, minlength=len(CLASSES) * len(REASONS)).reshape(-1, len(REASONS))
    outcomes = [
        (name, int(row.sum()), row.tolist()) for name, row in zip(CLASSES, table, strict=True)
    ]
    if not is_ranked or not is_single.any():
        return Quality(metrics, outcomes, None, None, None, 0)
    scores = selection["score"].values[truth.rows].astype(float)
    # Others without a score rank last and only cost time: a beamtime has millions of misses.
    ranked = np.isfinite(scores) | is_single
    n_samples = int(np.clip(MOST_RESAMPLED // ranked.sum(), 100, 1000))
    interval = average_precision_interval(
        scores[ranked], is_single[ranked], n_samples=n_samples, seed=seed
    )
    curve = precision_recall(scores, is_single)
    return Quality(
        metrics, outcomes, curve, average_precision(scores, is_single), interval, n_samples
    )


def _known(runs: Any, index: npt.NDArray[np.int64], selection: xr.Dataset) -> npt.NDArray[np.bool_]:
    codes = {str(name): code for code, name in enumerate(selection["run_name"].values)}
    code = runs.map(codes).fillna(-1).to_numpy(np.int64)
    here = selection["index"].values
    span = int(max(index.max(initial=0), here.max(initial=0))) + 1
    known = np.isin(code * span + index, selection["run"].values.astype(np.int64) * span + here)
    return np.asarray(known & (code >= 0))


def _draw_shares(
    scores: npt.NDArray[np.float32], random: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw shares of single hits; frames of like probability are drawn together."""
    n, n_members = scores.shape
    shares = []
    for member, draws in enumerate(np.array_split(np.arange(N_DRAWS), n_members)):
        cells = np.minimum((scores[:, member] * 1000).astype(np.int64), 999)
        number = np.bincount(cells, minlength=1000)
        total = np.bincount(cells, scores[:, member].astype(float), minlength=1000)
        used = number > 0
        mean = np.clip(total[used] / number[used], 0, 1)
        shares.append(random.binomial(number[used], mean, (len(draws), mean.size)).sum(1) / n)
    return np.concatenate(shares)

"""How good a selection is: sets of frames, the paper's metrics, intervals, thresholds.

Sets of frames are tables with the columns run and index; rows are never compared by number.
Metrics of sets: Ignatenko et al. 2021, Mach. Learn.: Sci. Technol. 2, 025014 (arXiv 2008.07288).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats

from spidask.errors import DataError
from spidask.io.tables import is_in

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Curve:
    """Precision and recall at every threshold that changes them, from high to low.

    Attributes
    ----------
    precision, recall : numpy.ndarray
        Shape (threshold,), float64.
    thresholds : numpy.ndarray
        Scores from which on frames are selected, shape (threshold,), float64; the last is minus
        infinity if frames without a score exist.
    """

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    thresholds: npt.NDArray[np.float64]


def iou(a: pd.DataFrame, b: pd.DataFrame) -> float:
    """Give the overlap of two sets of frames, intersection over union.

    Parameters
    ----------
    a : pandas.DataFrame
        Columns run and index, no frame twice.
    b : pandas.DataFrame
        Columns run and index, no frame twice.

    Returns
    -------
    float
        Number of common frames by number of all frames; NaN for two empty sets.

    Examples
    --------
    >>> a = pd.DataFrame({"run": ["r1", "r1", "r2"], "index": [0, 1, 0]})
    >>> iou(a, a[:2])
    0.6666666666666666
    """
    common = int(is_in(a, b).sum())
    return _ratio(common, len(a) + len(b) - common)


def judge(selected: Bools, is_single: Bools) -> dict[str, float]:
    """Compute the paper's metrics of a selection, and of rejecting everything beside them.

    Parameters
    ----------
    selected : numpy.ndarray
        Frames in the selection, shape (frame,), bool.
    is_single : numpy.ndarray
        Frames of the manual selection or the truth, shape (frame,), bool.

    Returns
    -------
    dict
        ``frames``, ``manual`` (|M|), ``selected`` (|S|), ``intersection`` (|S n M|), ``iou``,
        ``accuracy``, ``precision``, ``recall``, ``f1``, and ``accuracy_of_rejecting_all``; NaN
        where a ratio has no denominator.

    Examples
    --------
    >>> metrics = judge(np.array([True, True, False, False]), np.array([True, False, True, False]))
    >>> metrics["precision"], metrics["iou"], metrics["accuracy"]
    (0.5, 0.3333333333333333, 0.5)
    """
    frames, manual, chosen = len(selected), int(is_single.sum()), int(selected.sum())
    common = int((selected & is_single).sum())
    either = manual + chosen - common
    return {
        "frames": frames,
        "manual": manual,
        "selected": chosen,
        "intersection": common,
        "iou": _ratio(common, either),
        "accuracy": _ratio(frames - either + common, frames),
        "precision": _ratio(common, chosen),
        "recall": _ratio(common, manual),
        "f1": _ratio(2 * common, manual + chosen),
        "accuracy_of_rejecting_all": _ratio(frames - manual, frames),
    }


def precision_recall(scores: Floats, is_single: Bools, weights: Floats | None = None) -> Curve:
    """Compute precision and recall at every threshold.

    Parameters
    ----------
    scores : numpy.ndarray
        Scores, shape (frame,); frames without one (NaN) rank last, together.
    is_single : numpy.ndarray
        Frames that are single hits, shape (frame,), bool.
    weights : numpy.ndarray, optional
        How often each frame counts, shape (frame,); once without it.

    Returns
    -------
    Curve
        One point for each distinct score; equal scores are selected together.

    Raises
    ------
    DataError
        If there is no single hit, or the arrays differ in length.

    Examples
    --------
    >>> curve = precision_recall(np.array([0.9, 0.5, 0.5]), np.array([True, False, True]))
    >>> curve.precision.round(3).tolist(), curve.recall.tolist()
    ([1.0, 0.667], [0.5, 1.0])
    """
    scores, weights = _aligned(scores, is_single, weights)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # of equal ones
    true = np.cumsum((weights * is_single)[order])[last]
    chosen = np.cumsum(weights[order])[last]
    # Frames of weight 0 may lead: nothing is selected yet, and precision has no meaning.
    precision = np.divide(true, chosen, out=np.ones_like(true), where=chosen > 0)
    return Curve(precision, true / true[-1], ranked[last])


def average_precision(scores: Floats, is_single: Bools, weights: Floats | None = None) -> float:
    """Compute the mean precision over recall.

    Parameters
    ----------
    scores : numpy.ndarray
        Scores, shape (frame,); frames without one (NaN) rank last, together.
    is_single : numpy.ndarray
        Frames that are single hits, shape (frame,), bool.
    weights : numpy.ndarray, optional
        How often each frame counts, shape (frame,); once without it.

    Returns
    -------
    float
        Sum over thresholds of precision times the step in recall, as in scikit-learn.

    Raises
    ------
    DataError
        If there is no single hit, or the arrays differ in length.

    Examples
    --------
    >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    0.8333333333333333
    """
    curve = precision_recall(scores, is_single, weights)
    return float(np.sum(np.diff(curve.recall, prepend=0.0) * curve.precision))


def average_precision_interval(
    scores: Floats, is_single: Bools, *, level: float = 0.95, n_samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Give a bootstrap interval of the average precision.

    Parameters
    ----------
    scores : numpy.ndarray
        Scores, shape (frame,); frames without one (NaN) rank last, together.
    is_single : numpy.ndarray
        Frames that are single hits, shape (frame,), bool.
    level : float
        Coverage.
    n_samples : int
        Number of resampled sets.
    seed : int
        Seed of the resampling.

    Returns
    -------
    low, high : float
        Percentile interval.

    Raises
    ------
    DataError
        If there is no single hit, or the arrays differ in length.

    Notes
    -----
    Single hits and others are drawn apart, each as many as there are: average precision depends
    on their ratio, which the experiment sets and not the classifier.
    """
    _aligned(scores, is_single, None)
    random = np.random.default_rng(seed)
    groups = [group for group in map(np.flatnonzero, (is_single, ~is_single)) if len(group)]
    values = []
    for _ in range(n_samples):
        drawn = np.concatenate([random.choice(group, len(group)) for group in groups])
        weights = np.bincount(drawn, minlength=len(scores)).astype(float)
        values.append(average_precision(scores, is_single, weights))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def proportion_interval(n_true: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Give the interval of a proportion that was counted.

    Parameters
    ----------
    n_true : int
        Number of cases.
    n : int
        Number of trials.
    level : float
        Coverage, at least this.

    Returns
    -------
    low, high : float
        Clopper-Pearson interval; (0, 1) without trials.

    Raises
    ------
    DataError
        If there are more cases than trials.

    Examples
    --------
    >>> [round(limit, 4) for limit in proportion_interval(0, 10)]
    [0.0, 0.3085]
    """
    if not 0 <= n_true <= n:
        raise DataError(f"{n_true} cases in {n} trials", n_true=n_true, n=n)
    tail = (1 - level) / 2
    low = scipy.stats.beta.ppf(tail, n_true, n - n_true + 1) if n_true else 0.0
    high = scipy.stats.beta.ppf(1 - tail, n_true + 1, n - n_true) if n_true < n else 1.0
    return float(low), float(high)


def best_threshold(
    scores: Floats, is_single: Bools, expected_fraction: float | None = None
) -> tuple[float, float]:
    """Choose the threshold of the largest F1.

    Parameters
    ----------
    scores : numpy.ndarray
        Scores, shape (frame,); frames without one (NaN) are never selected.
    is_single : numpy.ndarray
        Frames that are single hits, shape (frame,), bool.
    expected_fraction : float, optional
        Share of single hits where the threshold will be used; the others are weighted so that
        the single hits make up this share. Without it, the share found here.

    Returns
    -------
    threshold : float
        Frames of at least this score are selected. It lies midway between the lowest score
        that is selected and the next one below; where all are selected it is the lowest score.
    f1 : float
        F1 there, of the weighted frames. Of equal ones the highest threshold is taken.

    Raises
    ------
    DataError
        If there is no single hit or no score, or the arrays differ in length.

    Examples
    --------
    >>> best_threshold(np.array([0.9, 0.8, 0.4, 0.2]), np.array([True, True, False, False]))
    (0.6000000000000001, 1.0)
    """
    _aligned(scores, is_single, None)
    weights = np.ones(len(scores))
    n_single, n_others = int(is_single.sum()), int((~is_single).sum())
    if expected_fraction is not None and n_others:
        weights[~is_single] = n_single * (1 - expected_fraction) / expected_fraction / n_others
    curve = precision_recall(scores, is_single, weights)
    finite = np.isfinite(curve.thresholds)
    if not finite.any():
        raise DataError("no frame has a score, so there is no threshold to choose")
    precision, recall, at = (v[finite] for v in (curve.precision, curve.recall, curve.thresholds))
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    best = int(np.argmax(f1))
    below = at[best + 1] if best + 1 < len(at) else at[best]
    return float(at[best] + below) / 2, float(f1[best])


def _aligned(
    scores: Floats, is_single: Bools, weights: Floats | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if len(scores) != len(is_single):
        raise DataError(f"{len(scores)} scores for {len(is_single)} labels")
    if not np.any(is_single):
        raise DataError(f"no single hit among {len(is_single)} frames; label some")
    values = np.asarray(scores, np.float64)
    return np.where(np.isnan(values), -np.inf, values), (
        np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")

"""Which frames are selected, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from spidask import config
from spidask.errors import DataError
from spidask.schema import REASONS, annotate, validate


def select(
    labels: xr.Dataset,
    thresholds: Sequence[float] | npt.NDArray[np.floating[Any]],
    settings: config.Selection,
    trained_on: Mapping[str, Sequence[int]] | None = None,
) -> xr.Dataset:
    """Select single hits of the right size by the intersection of the ensemble.

    Parameters
    ----------
    labels : xarray.Dataset
        Labels of all frames in memory: run, index, readable, hit, diameter (frame,),
        scores (frame, member) and run_name (run_code,).
    thresholds : sequence of float
        Score from which on each member selects, shape (member,).
    settings : config.Selection
        The size window in nm, both ends included.
    trained_on : mapping of str to sequence of int, optional
        Run name to positions of the frames used in training or validation.

    Returns
    -------
    xarray.Dataset
        All frames of `labels` with score (smallest margin of the members' scores over their
        thresholds, float32), selected, reason (code into `schema.REASONS`) and trained_on.

    Raises
    ------
    DataError
        If a variable is missing or the number of thresholds is not the number of members.

    Notes
    -----
    A reason is the first that applies. ``score >= 0`` holds exactly where every member's score
    reaches its threshold; a frame without scores, or with a missing score beside passing
    ones, has no score. A hit without a diameter fails the size window.

    Examples
    --------
    >>> labels = xr.Dataset(
    ...     {
    ...         "readable": ("frame", np.ones(3, bool)),
    ...         "hit": ("frame", np.array([True, True, False])),
    ...         "scores": (("frame", "member"), np.float32([[0.9, 0.8], [0.9, 0.1], [0, 0]])),
    ...         "diameter": ("frame", np.float32([70, 70, np.nan])),
    ...         "run": ("frame", np.zeros(3, np.int32)),
    ...         "index": ("frame", np.arange(3)),
    ...         "run_name": ("run_code", np.array(["r0001"])),
    ...     }
    ... )
    >>> chosen = select(labels, [0.5, 0.5], config.Selection())
    >>> [REASONS[code] for code in chosen["reason"].values]
    ['', 'not_single', 'miss']
    """
    needed = ("run", "index", "run_name", "readable", "hit", "scores", "diameter")
    validate(labels, *needed)
    score = _margin(labels["scores"].values, np.asarray(thresholds, np.float64))
    reason = _reason(labels, score, settings.size_window_nm)
    new = {
        "score": ("frame", score),
        "selected": ("frame", reason == 0),
        "reason": ("frame", reason),
        "trained_on": ("frame", _is_among(labels, trained_on or {})),
    }
    return annotate(labels.assign(new))


def count_reasons(selection: xr.Dataset) -> dict[str, Any]:
    """Count what became of the frames, over all runs and in each.

    Parameters
    ----------
    selection : xarray.Dataset
        A selection with run, run_name and reason.

    Returns
    -------
    dict
        ``frames``, ``selected`` and one count for each reason, and under ``runs`` the same
        for each run's name. Selected plus rejected is the number of frames, always.

    Raises
    ------
    DataError
        If a variable is missing or a reason's code is unknown.
    """
    validate(selection, "run", "run_name", "reason")
    names = selection["run_name"].values
    reason = selection["reason"].values
    if len(reason) and reason.max() >= len(REASONS):
        raise DataError(f"reason holds code {reason.max()}; known are 0 to {len(REASONS) - 1}")
    cells = selection["run"].values.astype(np.int64) * len(REASONS) + reason
    table = np.bincount(cells, minlength=len(names) * len(REASONS)).reshape(-1, len(REASONS))
    runs = {str(name): _named(row) for name, row in zip(names, table, strict=True)}
    return {**_named(table.sum(axis=0)), "runs": runs}


def _margin(
    scores: npt.NDArray[np.float32], thresholds: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    if thresholds.shape != scores.shape[1:]:
        raise DataError(
            f"{len(thresholds)} thresholds for {scores.shape[1]} members; give one for each",
            n_thresholds=len(thresholds),
            n_members=scores.shape[1],
        )
    margin = np.full(len(scores), np.nan)
    missing = np.zeros(len(scores), bool)
    for member, threshold in enumerate(thresholds):
        # One member at a time: float64 of all members would be gigabytes for 10^7 frames.
        np.fmin(margin, scores[:, member] - threshold, out=margin)
        missing |= np.isnan(scores[:, member])
    # An early exit leaves later members' scores missing, which only a rejection allows.
    margin[missing & (margin >= 0)] = np.nan
    return margin.astype(np.float32)


def _reason(
    labels: xr.Dataset, score: npt.NDArray[np.float32], window: tuple[float, float]
) -> npt.NDArray[np.uint8]:
    diameter = labels["diameter"].values
    failures = {
        "unreadable": ~labels["readable"].values,
        "miss": ~labels["hit"].values,
        "not_single": ~(score >= 0),
        "size": ~((diameter >= window[0]) & (diameter <= window[1])),
    }
    reason = np.zeros(len(score), np.uint8)
    for name in reversed(REASONS[1:]):
        reason[failures[name]] = REASONS.index(name)
    return reason


def _is_among(labels: xr.Dataset, frames: Mapping[str, Sequence[int]]) -> npt.NDArray[np.bool_]:
    among = np.zeros(labels.sizes["frame"], bool)
    run, index = labels["run"].values, labels["index"].values
    for code, name in enumerate(labels["run_name"].values):
        if str(name) in frames:
            rows = np.flatnonzero(run == code)
            among[rows] = np.isin(index[rows], np.asarray(frames[str(name)], np.int64))
    return among


def _named(counts: npt.NDArray[np.int64]) -> dict[str, int]:
    named = {name or "selected": int(n) for name, n in zip(REASONS, counts, strict=True)}
    return {"frames": int(counts.sum()), **named}

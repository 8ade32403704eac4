"""Hit finding: lit pixels, photon counts, and the threshold that adapts to a run."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from spidask.config import Hits

Array = Any

IQR_OF_A_NORMAL = 1.34896
"""Distance of the quartiles of a normal distribution, in standard deviations."""

LIT_SHARE_OF_A_HIT = 0.05
"""Hits of at least 2 500 photons light more than this share of the region; stray light less."""

RARE = 0.001
"""Fewer adaptive hits than this share of the frames count as none."""


def count_photons(patterns: NDArray[np.float32], lit_photons: float) -> NDArray[np.float64]:
    """Count photons, lit pixels and usable pixels of each pattern.

    Parameters
    ----------
    patterns : numpy.ndarray
        Patterns, shape (frame, y, x), float32, photons; NaN is missing.
    lit_photons : float
        A pixel above this is lit. Photons.

    Returns
    -------
    numpy.ndarray
        Shape (frame, 3), float64: sum of the finite pixels [photons], lit pixels, usable pixels.
        The sum is NaN where no pixel is usable.

    Examples
    --------
    >>> count_photons(np.array([[[0, 2, np.nan, 1]]], np.float32), 0.7).tolist()
    [[3.0, 2.0, 3.0]]
    """
    return np.asarray(_count_photons(np.ascontiguousarray(patterns), np.float32(lit_photons)))


def hit_score(counts: NDArray[np.float64], n_pixels: int) -> NDArray[np.float32]:
    """Scale lit pixels to a region without missing pixels.

    Parameters
    ----------
    counts : numpy.ndarray
        What `count_photons` gives, shape (frame, 3), float64.
    n_pixels : int
        Pixels of the region, missing ones included.

    Returns
    -------
    numpy.ndarray
        Lit / usable x `n_pixels`, shape (frame,), float32; NaN without a usable pixel.

    Notes
    -----
    Source: hit finder of the European XFEL, extra-redu 1.1.0, where the modules take the
    region's place.

    Examples
    --------
    >>> hit_score(np.array([[3.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), 6).tolist()
    [4.0, nan]
    """
    lit, usable = counts[:, 1], counts[:, 2]
    return np.where(usable > 0, lit / np.maximum(usable, 1) * n_pixels, np.nan).astype(np.float32)


def apply_threshold(scores: Array, lit: Array, readable: Array, settings: Hits) -> Array:
    """Find the hits among frames.

    Parameters
    ----------
    scores, lit : numpy.ndarray or dask.array.Array
        As of `find_hits`; lazy only where the threshold is not adaptive.
    readable : numpy.ndarray or dask.array.Array
        False for unreadable frames, shape (frame,), bool.
    settings : Hits
        Section `hits`.

    Returns
    -------
    numpy.ndarray or dask.array.Array
        True for hits, shape (frame,), bool.

    Examples
    --------
    >>> score, readable = np.array([3, 9, np.nan], np.float32), np.array([True, True, False])
    >>> apply_threshold(score, score, readable, Hits(threshold=5)).tolist()
    [False, True, False]
    >>> apply_threshold(score, score, readable, Hits(threshold="none")).tolist()
    [True, True, False]
    """
    if settings.threshold == "none":
        return readable
    if settings.threshold == "adaptive":
        return find_hits(scores, lit, window=settings.window, n_sigma=settings.n_sigma)
    return scores > settings.threshold


def find_hits(
    scores: NDArray[np.float32], lit: NDArray[Any], *, window: int, n_sigma: float
) -> NDArray[np.bool_]:
    """Find the hits of a run with a threshold that adapts to each window of frames.

    Parameters
    ----------
    scores : numpy.ndarray
        Hit scores in the order of the run, shape (frame,), float32; NaN for unreadable frames.
    lit : numpy.ndarray
        Lit pixels of the same frames, shape (frame,), any integer or float dtype.
    window : int
        Frames in a window.
    n_sigma : float
        A hit lies more than this many sigma above the median of its window.

    Returns
    -------
    numpy.ndarray
        True for hits, shape (frame,), bool.

    Notes
    -----
    Source: hit finder of the European XFEL, extra-redu 1.1.0: median + n_sigma sigma with
    sigma = (Q3 - Q1) / 1.34896. Different here: windows are counted from the run's first frame
    and do not overlap, so that block sizes change nothing; and sigma is at least one lit pixel.
    Scores are multiples of one lit pixel. In dark frames more than half of them may be equal, the
    quartiles coincide, and without that floor a single stray photon would make a hit.

    Examples
    --------
    >>> scores = np.array([0, 0, 0, 0, 4, 0, 5, 0], np.float32)
    >>> find_hits(scores, scores, window=8, n_sigma=4.0).tolist()
    [False, False, False, False, False, False, True, False]
    """
    return (scores > adaptive_threshold(scores, lit, window=window, n_sigma=n_sigma)) & (lit > 0)


def adaptive_threshold(
    scores: NDArray[np.float32], lit: NDArray[Any], *, window: int, n_sigma: float
) -> NDArray[np.float32]:
    """Compute the hit score that each frame of a run has to exceed.

    Parameters
    ----------
    scores : numpy.ndarray
        Hit scores in the order of the run, shape (frame,), float32; NaN for unreadable frames.
    lit : numpy.ndarray
        Lit pixels of the same frames, shape (frame,), any integer or float dtype.
    window : int
        Frames in a window.
    n_sigma : float
        As for `find_hits`.

    Returns
    -------
    numpy.ndarray
        Shape (frame,), float32; infinity in a window of unreadable frames. Between frames of a
        window it differs only where the floor of sigma does, one lit pixel scaled to a region
        without missing pixels; without any lit pixel there is no floor.

    Examples
    --------
    >>> scores = np.array([0, 0, 0, 0, 4, 0, 5, 0], np.float32)
    >>> threshold = adaptive_threshold(scores, scores, window=8, n_sigma=4.0)
    >>> [round(float(value), 2) for value in threshold[4:7]]
    [4.0, 2.97, 4.0]
    """
    out = np.empty(scores.shape, np.float32)
    for frames in split_windows(len(scores), window):
        level, sigma = _level_and_sigma(scores[frames])
        quantum = scores[frames] / np.maximum(lit[frames], 1)
        out[frames] = level + n_sigma * np.maximum(sigma, quantum)
    return out


def looks_like_only_hits(
    scores: NDArray[np.float32], n_pixels: int, *, window: int, n_sigma: float
) -> bool:
    """Tell whether the adaptive threshold is blind because too many frames are hits.

    Parameters
    ----------
    scores : numpy.ndarray
        Hit scores of a sample of a run, shape (frame,), float32; NaN for unreadable frames.
    n_pixels : int
        Pixels of the region.
    window : int
        Frames in a window.
    n_sigma : float
        As for `find_hits`.

    Returns
    -------
    bool
        True if hardly a frame passes the adaptive threshold although the brightest quarter lights
        more than `LIT_SHARE_OF_A_HIT` of the region. The remedy is `hits.threshold: none`, or a
        fixed hit score.

    Notes
    -----
    The threshold takes the middle half of the scores for misses. Where more than a quarter of the
    frames are hits, it widens or moves up until nothing is above it.

    Examples
    --------
    >>> hits = np.linspace(2000, 7000, 200, dtype=np.float32)
    >>> looks_like_only_hits(hits, 29520, window=128, n_sigma=4.0)
    True
    >>> misses = np.tile(np.float32([3, 4, 5, 6]), 50)
    >>> looks_like_only_hits(misses, 29520, window=128, n_sigma=4.0)
    False
    """
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return False
    found = find_hits(finite, finite, window=window, n_sigma=n_sigma)
    bright = np.percentile(finite, 75) > LIT_SHARE_OF_A_HIT * n_pixels
    return bool(bright and found.mean() < RARE)


def split_windows(n_frames: int, window: int) -> list[slice]:
    """Cut a run into windows of frames.

    Parameters
    ----------
    n_frames : int
        Frames of the run.
    window : int
        Frames in a window.

    Returns
    -------
    list of slice
        Windows from the first frame on; what remains at the end belongs to the last one, so that
        none is shorter than `window` unless the run is.

    Examples
    --------
    >>> split_windows(7, 3)
    [slice(0, 3, None), slice(3, 7, None)]
    >>> split_windows(2, 3)
    [slice(0, 2, None)]
    """
    starts = range(0, max(n_frames // window, 1) * window, window)
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], n_frames], strict=True)]


def align_to_windows(chunks: tuple[int, ...], window: int) -> tuple[int, ...]:
    """Move the borders between blocks of a run to borders between windows.

    Parameters
    ----------
    chunks : tuple of int
        Frames of each block of a run, in order.
    window : int
        Frames in a window.

    Returns
    -------
    tuple of int
        Block lengths, each holding whole windows; the same ones where the blocks already do.

    Examples
    --------
    >>> align_to_windows((4, 4, 4), 2)
    (4, 4, 4)
    >>> align_to_windows((5, 5, 1), 4)
    (4, 7)
    """
    n_frames = sum(chunks)
    last = split_windows(n_frames, window)[-1].start
    ends = np.cumsum(chunks[:-1], dtype=int)
    borders = np.unique(np.minimum(ends // window * window, last))
    edges = [0, *borders[borders > 0].tolist(), n_frames]
    return tuple(b - a for a, b in pairwise(edges))


def _level_and_sigma(scores: NDArray[np.float32]) -> tuple[float, float]:
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return np.inf, 0.0
    low, level, high = np.percentile(finite.astype(np.float64), [25, 50, 75])
    return float(level), float(high - low) / IQR_OF_A_NORMAL


# Sums in any order, for vectors: those of whole photons are exact.
@numba.njit(nogil=True, cache=True, fastmath={"reassoc"})
def _count_photons(patterns: NDArray[np.float32], lit_photons: np.float32) -> NDArray[np.float64]:
    out = np.empty((patterns.shape[0], 3))
    for i in range(patterns.shape[0]):
        pattern = patterns[i].ravel()
        total, n_lit, n_usable = 0.0, np.int32(0), np.int32(0)
        for j in range(len(pattern)):
            value = pattern[j]
            usable = abs(value) < np.float32(np.inf)
            total += float(value) if usable else 0.0
            # Sums of int32 are int64 for Numba, which vectors hold half as many of.
            n_lit = np.int32(n_lit + (usable & (value > lit_photons)))
            n_usable = np.int32(n_usable + usable)
        out[i, 0] = total if n_usable > 0 else np.nan
        out[i, 1], out[i, 2] = n_lit, n_usable
    return out

"""What the compact network sees of a pattern, computed on the CPU."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from spidask.frames.logarithm import logarithm

LOCAL = 15
"""Edge of the window whose mean is taken off, in pixels."""
FLOOR = 0.1
"""Floor of the local mean, in units of the pattern's mean."""
TINY = 1e-12


def roughen(
    patterns: NDArray[np.float32], maximum: float, *, is_logarithmic: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Scale patterns, and take off what changes slowly.

    Parameters
    ----------
    patterns : numpy.ndarray
        Shape (frame, y, x), float32, photons; NaN where a pixel is missing.
    maximum : float
        Photons that map to 1; in the linear scale more are clipped.
    is_logarithmic : bool
        Whether values are log(1 + photons) / log(1 + maximum), else photons / maximum.

    Returns
    -------
    values : numpy.ndarray
        Shape (frame, y, x), float32; 0 where missing.
    present : numpy.ndarray
        1 where a pixel is there, else 0; same shape and dtype.
    rough : numpy.ndarray
        Shape (frame, 2, y, x), float32; 0 where missing. First the values minus the mean of the
        window around, then the photons' Pearson residuals: their difference from that mean m over
        sqrt(m + floor). Each has the mean square 1.

    Notes
    -----
    Window of `LOCAL` pixels, cut at the edges; only pixels that are there count. The floor is
    `FLOOR` of the mean over the pattern, lest a lone photon in the dark outweigh all others.

    Examples
    --------
    >>> values, present, rough = roughen(np.float32([[[3, np.nan, 1]]]), 3, is_logarithmic=False)
    >>> values.round(2), present
    (array([[[1.  , 0.  , 0.33]]], dtype=float32), array([[[1., 0., 1.]]], dtype=float32))
    >>> rough[0, 0].round(3)  # 1/3 above and below the mean, of three pixels
    array([[ 1.225,  0.   , -1.225]], dtype=float32)
    """
    patterns = np.ascontiguousarray(patterns)
    n, rows, columns = patterns.shape
    values = np.empty((n, rows, columns), np.float32)
    present = np.empty((n, rows, columns), np.float32)
    rough = np.empty((n, 2, rows, columns), np.float32)
    photons = np.empty((rows, columns), np.float32)
    sums = np.zeros((rows + LOCAL, 2 * columns), np.float32)
    for i in range(n):
        _scale(patterns[i], values[i], present[i], photons, maximum, is_logarithmic)
        weights = _mask_weights(_pack(present[i]), (rows, columns))
        _flatten(values[i], photons, weights, sums, rough[i])
    return values, present, rough


def scale_windows(present: NDArray[np.float32], kernel: int, stride: int) -> NDArray[np.float32]:
    """Say how many pixels windows have over those that are there.

    Parameters
    ----------
    present : numpy.ndarray
        1 where a pixel is there, else 0, shape (frame, y, x), float32.
    kernel : int
        Edge of a window in pixels, odd.
    stride : int
        Step of the windows in pixels.

    Returns
    -------
    numpy.ndarray
        Shape (frame, y / stride, x / stride) rounded up, float32; 0 where a window has no pixel.

    Notes
    -----
    Liu et al. 2018, arXiv:1804.07723, equation 1.

    Examples
    --------
    >>> scale_windows(np.float32([[[1, 0, 1, 1]]]), 3, 2).tolist()  # 1 and 2 of 9 pixels
    [[[9.0, 4.5]]]
    """
    n, rows, columns = present.shape
    out = np.empty((n, -(-rows // stride), -(-columns // stride)), np.float32)
    for i in range(n):
        out[i] = _window_weights(_pack(present[i]), (rows, columns), kernel, stride)
    return out


def _pack(present: NDArray[np.float32]) -> bytes:
    """Describe a mask, by which what depends on it alone is found again."""
    return np.packbits(present.astype(bool)).tobytes()


def _unpack(bits: bytes, shape: tuple[int, int]) -> NDArray[np.float32]:
    n = shape[0] * shape[1]
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=n).reshape(shape).astype(np.float32)


# Masks are few: that of the detector, and some pixels besides here and there.
@lru_cache(maxsize=32)
def _window_weights(
    bits: bytes, shape: tuple[int, int], kernel: int, stride: int
) -> NDArray[np.float32]:
    out = np.empty((-(-shape[0] // stride), -(-shape[1] // stride)), np.float32)
    _count_windows(_unpack(bits, shape), out, kernel, stride)
    return out


@lru_cache(maxsize=32)
def _mask_weights(bits: bytes, shape: tuple[int, int]) -> NDArray[np.float32]:
    """One over the pixels of the window around that are there; 0 where a pixel is missing."""
    present = _unpack(bits, shape)
    around = np.empty(shape, np.float32)
    _count_windows(present, around, LOCAL, 1)
    return np.asarray(around * present / LOCAL**2, np.float32)


@numba.njit(nogil=True, cache=True)
def _count_windows(present: Any, out: Any, kernel: int, stride: int) -> None:
    rows, columns = present.shape
    half = kernel // 2
    sums = np.zeros(columns + 1)
    for row in range(out.shape[0]):
        y = row * stride
        for x in range(columns):
            own = 0.0
            for k in range(max(y - half, 0), min(y + half + 1, rows)):
                own += present[k, x]
            sums[x + 1] = sums[x] + own
        for column in range(out.shape[1]):
            x = column * stride
            found = sums[min(x + half + 1, columns)] - sums[max(x - half, 0)]
            out[row, column] = kernel * kernel / found if found > 0 else 0.0


@numba.njit(nogil=True, cache=True)
def _scale(
    pattern: Any, values: Any, present: Any, photons: Any, maximum: float, is_log: bool
) -> None:
    per_maximum = np.float32(1 / (math.log1p(maximum) if is_log else maximum))
    most = np.float32(np.inf if is_log else maximum)
    # Numbers of any other kind would make all of it double precision.
    none, unit, infinite = np.float32(0), np.float32(1), np.float32(np.inf)
    columns = pattern.shape[1]
    for y in range(pattern.shape[0]):
        for x in range(columns):
            given = pattern[y, x]
            there = abs(given) < infinite
            n = min(given if there and given > none else none, most)
            present[y, x] = unit if there else none
            photons[y, x] = n
            values[y, x] = n * per_maximum
        if is_log:
            for x in range(columns):
                values[y, x] = logarithm(unit + photons[y, x]) * per_maximum


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _flatten(values: Any, photons: Any, weights: Any, sums: Any, rough: Any) -> None:
    rows, columns = values.shape
    total = _sum_across(values, photons, sums)
    floor = np.float32(FLOOR * total / (rows * columns) + TINY)
    # Sums over the window, for each column; double precision, for they run.
    running, around = np.zeros(2 * columns), np.empty(2 * columns, np.float32)
    for y in range(LOCAL // 2 + 1, LOCAL):
        _move(running, sums[y], sums[0], around)
    square_values: Any = 0.0
    square_photons: Any = 0.0
    for y in range(rows):
        _move(running, sums[y + LOCAL], sums[y], around)
        square_values += _differ(values[y], weights[y], around[:columns], rough[0, y])
        square_photons += _deviate(photons[y], weights[y], around[columns:], floor, rough[1, y])
    size = rows * columns
    _multiply(rough[0], np.float32(1 / math.sqrt(square_values / size + TINY)))
    _multiply(rough[1], np.float32(1 / math.sqrt(square_photons / size + TINY)))


@numba.njit(nogil=True, cache=True, fastmath=True)
def _sum_across(values: Any, photons: Any, sums: Any) -> Any:
    """Sums of `LOCAL` columns each, with 0 above and below; gives the sum of all photons."""
    rows, columns = values.shape
    width, half = columns + LOCAL - 1, LOCAL // 2
    # Both side by side, for short loops are slow; five threes, for that reads memory least.
    row, threes = np.zeros(2 * width, np.float32), np.zeros(2 * width, np.float32)
    total = np.float32(0)
    for y in range(rows):
        for x in range(columns):
            row[half + x] = values[y, x]
            row[width + half + x] = photons[y, x]
            total += photons[y, x]
        for x in range(2 * width - 2):
            threes[x] = row[x] + row[x + 1] + row[x + 2]
        lower = y + half + 1
        _sum_fives(threes[:width], sums[lower, :columns])
        _sum_fives(threes[width:], sums[lower, columns:])
    return total


@numba.njit(nogil=True, cache=True, fastmath=True)
def _sum_fives(threes: Any, out: Any) -> None:
    for x in range(len(out)):
        out[x] = threes[x] + threes[x + 3] + threes[x + 6] + threes[x + 9] + threes[x + 12]


@numba.njit(nogil=True, cache=True, fastmath=True)
def _move(running: Any, entering: Any, leaving: Any, out: Any) -> None:
    for x in range(len(out)):
        running[x] += entering[x] - leaving[x]
        out[x] = running[x]


@numba.njit(nogil=True, cache=True, fastmath=True)
def _differ(values: Any, weights: Any, around: Any, out: Any) -> Any:
    squares = np.float32(0)
    for x in range(len(out)):
        difference = values[x] - around[x] * weights[x]
        out[x] = difference
        squares += difference * difference
    return squares


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _deviate(photons: Any, weights: Any, around: Any, floor: Any, out: Any) -> Any:
    squares = np.float32(0)
    for x in range(len(out)):
        mean = around[x] * weights[x]
        # 0 where the pixel is missing, as the difference: so are its values and its weight.
        residual = (photons[x] - mean) / np.sqrt(mean + floor)
        out[x] = residual
        squares += residual * residual
    return squares


@numba.njit(nogil=True, cache=True)
def _multiply(image: Any, factor: Any) -> None:
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            image[y, x] *= factor

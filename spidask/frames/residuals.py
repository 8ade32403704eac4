"""What the compact network sees of a pattern, computed on the CPU."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

LOCAL = 15
"""Edge of the window whose mean is taken off, in pixels."""
FLOOR = 0.1
"""Floor of the local mean, in units of the pattern's mean."""
TINY = 1e-12
COUNTED = 64
"""Photon counts below this, of which there are most, have their logarithms in a table."""


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
    table = np.log1p(np.arange(COUNTED)) / math.log1p(maximum)
    for i in range(n):
        _scale(patterns[i], values[i], present[i], rough[i, 1], maximum, table, is_logarithmic)
        _flatten(values[i], present[i], rough[i])
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
    _count_windows(np.ascontiguousarray(present), out, kernel, stride)
    return out


def pool_power(amplitude: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Sum the power of Fourier transforms over 2 x 2 frequencies.

    Parameters
    ----------
    amplitude : numpy.ndarray
        As numpy.fft.rfft2 gives it, shape (..., y, x), complex64.

    Returns
    -------
    numpy.ndarray
        Mean power, shape (..., y // 2, x // 2), float32, frequency 0 of y in the middle.

    Examples
    --------
    >>> amplitude = np.complex64([[1, 1j], [1, 1], [3j, 3], [0, 0]])
    >>> pool_power(amplitude).tolist()
    [[4.5], [1.0]]
    """
    *front, rows, columns = amplitude.shape
    flat = np.ascontiguousarray(amplitude).reshape(-1, rows, columns)
    out = np.empty((len(flat), rows // 2, columns // 2), np.float32)
    _pool_power(flat, out)
    return out.reshape(*front, rows // 2, columns // 2)


@numba.njit(nogil=True, cache=True)
def _count_windows(present: Any, out: Any, kernel: int, stride: int) -> None:
    n, rows, columns = present.shape
    half = kernel // 2
    sums = np.zeros(columns + 1)
    for i in range(n):
        for row in range(out.shape[1]):
            y = row * stride
            for x in range(columns):
                own = 0.0
                for k in range(max(y - half, 0), min(y + half + 1, rows)):
                    own += present[i, k, x]
                sums[x + 1] = sums[x] + own
            for column in range(out.shape[2]):
                x = column * stride
                found = sums[min(x + half + 1, columns)] - sums[max(x - half, 0)]
                out[i, row, column] = kernel * kernel / found if found > 0 else 0.0


@numba.njit(nogil=True, cache=True, fastmath=True)
def _pool_power(amplitude: Any, out: Any) -> None:
    n, rows, columns = amplitude.shape
    # As fftshift: the first row of the map is the first of the second half, rounded down.
    first = (rows + 1) // 2
    for i in range(n):
        for y in range(rows // 2):
            upper, lower = (2 * y + first) % rows, (2 * y + 1 + first) % rows
            for x in range(columns // 2):
                power = np.float32(0)
                for value in (
                    amplitude[i, upper, 2 * x],
                    amplitude[i, upper, 2 * x + 1],
                    amplitude[i, lower, 2 * x],
                    amplitude[i, lower, 2 * x + 1],
                ):
                    power += value.real * value.real + value.imag * value.imag
                out[i, y, x] = power / 4


@numba.njit(nogil=True, cache=True)
def _scale(
    pattern: Any, values: Any, present: Any, photons: Any, maximum: float, table: Any, is_log: bool
) -> None:
    per_maximum = 1 / math.log1p(maximum)
    for y in range(pattern.shape[0]):
        for x in range(pattern.shape[1]):
            n = pattern[y, x]
            there = math.isfinite(n)
            n = max(n, np.float32(0)) if there else np.float32(0)
            present[y, x] = there
            if not is_log:
                n = min(n, np.float32(maximum))
                values[y, x] = n / maximum
            elif n < COUNTED and n == math.floor(n):
                values[y, x] = table[int(n)]
            else:
                values[y, x] = math.log1p(n) * per_maximum
            photons[y, x] = n


@numba.njit(nogil=True, cache=True, fastmath=True)
def _flatten(values: Any, present: Any, rough: Any) -> None:
    """Photons stand in rough[1] before, their residuals after."""
    rows, columns = values.shape
    half = LOCAL // 2
    total = 0.0
    for y in range(rows):
        for x in range(columns):
            total += rough[1, y, x]
    floor = np.float32(FLOOR * total / (rows * columns) + TINY)
    # Sums over the window's rows, for each column; double precision, for they run.
    sums = np.zeros((3, columns))
    # Running sums over columns, with the first and the last repeated so that all windows are whole.
    running = np.zeros((3, columns + LOCAL))
    # Rows of photons are overwritten once no window needs them: kept as they were here.
    kept = np.zeros((LOCAL, columns), np.float32)
    square_values: Any = 0.0
    square_photons: Any = 0.0
    for y in range(-half, rows):
        new = y + half
        if new < rows:
            slot = new % LOCAL
            for x in range(columns):
                kept[slot, x] = rough[1, new, x]
                sums[0, x] += present[new, x]
                sums[1, x] += values[new, x]
                sums[2, x] += rough[1, new, x]
        if y < 0:
            continue
        for x in range(columns):
            at = half + x
            running[0, at + 1] = running[0, at] + sums[0, x]
            running[1, at + 1] = running[1, at] + sums[1, x]
            running[2, at + 1] = running[2, at] + sums[2, x]
        for at in range(half + columns + 1, columns + LOCAL):
            for k in range(3):
                running[k, at] = running[k, at - 1]
        own = y % LOCAL
        of_values, of_photons = np.float32(0), np.float32(0)
        for x in range(columns):
            n_there = np.float32(running[0, x + LOCAL] - running[0, x])
            per_pixel = present[y, x] / max(n_there, np.float32(1))
            slow = np.float32(running[1, x + LOCAL] - running[1, x]) * per_pixel
            mean = np.float32(running[2, x + LOCAL] - running[2, x]) * per_pixel
            a = values[y, x] - slow
            b = (kept[own, x] - mean) / np.sqrt(mean + floor)
            rough[0, y, x] = a
            rough[1, y, x] = b
            of_values += a * a
            of_photons += b * b
        square_values += of_values
        square_photons += of_photons
        if y - half >= 0:
            gone = (y - half) % LOCAL
            for x in range(columns):
                sums[0, x] -= present[y - half, x]
                sums[1, x] -= values[y - half, x]
                sums[2, x] -= kept[gone, x]
    size = rows * columns
    by_values = np.float32(1 / math.sqrt(square_values / size + TINY))
    by_photons = np.float32(1 / math.sqrt(square_photons / size + TINY))
    for y in range(rows):
        for x in range(columns):
            rough[0, y, x] *= by_values
            rough[1, y, x] *= by_photons

"""Fourier transforms of patterns whose rows are of an awkward number, and their power."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from spidask.frames.logarithm import logarithm

LARGEST_FACTOR = 13
"""Fast Fourier transforms of lengths with larger prime factors are slow."""
MOST_ROWS = 192
"""From more rows on even a slow one is faster than a product with a matrix."""


def is_awkward(rows: int) -> bool:
    """Tell whether a product with a matrix is faster than a fast Fourier transform.

    Parameters
    ----------
    rows : int
        Length of the transform.

    Returns
    -------
    bool
        True if it has a large prime factor and is not long.

    Examples
    --------
    >>> [is_awkward(rows) for rows in (120, 123, 128, 512, 1023)]  # 123 is 3 x 41
    [False, True, False, False, False]
    """
    if rows > MOST_ROWS:
        return False
    for factor in range(2, LARGEST_FACTOR + 1):
        while rows % factor == 0:
            rows //= factor
    return rows > 1


@lru_cache(maxsize=8)
def fourier_matrices(rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give the cosines and sines of a transform of what is even and odd.

    Parameters
    ----------
    rows : int
        Length of the transform.

    Returns
    -------
    cosines : numpy.ndarray
        Shape (rows // 2 + 1, rows // 2 + 1), float32, over the root of `rows`.
    sines : numpy.ndarray
        Shape (rows // 2 + 1, (rows - 1) // 2), the same.

    Examples
    --------
    >>> cosines, sines = fourier_matrices(3)  # cos and sin of 0 and of 2 pi / 3, over 3^(1/2)
    >>> print(cosines.round(3), sines.round(3))
    [[ 0.577  0.577]
     [ 0.577 -0.289]] [[0. ]
     [0.5]]
    """
    place = np.arange(rows // 2 + 1)
    angle = 2 * np.pi / rows * (np.outer(place, place) % rows)
    cosines, sines = np.cos(angle) / np.sqrt(rows), np.sin(angle) / np.sqrt(rows)
    return cosines.astype(np.float32), sines[:, 1 : (rows + 1) // 2].astype(np.float32)


def fold_rows(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Add row n - y to row y, and take it off.

    Parameters
    ----------
    values : numpy.ndarray
        Shape (image, n, x), float32.

    Returns
    -------
    even : numpy.ndarray
        The sums, shape (image, n // 2 + 1, x), float32; rows without a partner as they are.
    odd : numpy.ndarray
        The differences of rows 1 to (n - 1) // 2, shape (image, (n - 1) // 2, x), float32.

    Examples
    --------
    >>> even, odd = fold_rows(np.float32([[[5], [1], [2], [7]]]))
    >>> even.ravel().tolist(), odd.ravel().tolist()
    ([5.0, 8.0, 2.0], [-6.0])
    """
    n, rows, columns = values.shape
    even = np.empty((n, rows // 2 + 1, columns), np.float32)
    odd = np.empty((n, (rows - 1) // 2, columns), np.float32)
    _fold_rows(np.ascontiguousarray(values), even, odd)
    return even, odd


def unfold_rows(
    cosine: NDArray[np.float32], sine: NDArray[np.float32], rows: int
) -> NDArray[np.complex64]:
    """Put a transform together from those of what is even and odd.

    Parameters
    ----------
    cosine, sine : numpy.ndarray
        Products of `fourier_matrices` with what `fold_rows` gives, shape (image, rows // 2 + 1,
        2 x), float32: real and imaginary parts by turns.
    rows : int
        Length of the transform.

    Returns
    -------
    numpy.ndarray
        Shape (image, rows, x), complex64: sum of exp(-2 pi i k y / rows) value(y), over the root of
        `rows`.
    """
    out = np.empty((len(cosine), rows, cosine.shape[2] // 2), np.complex64)
    _unfold_rows(cosine, sine, out.view(np.float32))
    return out


def pool_log_power(amplitude: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Take the logarithm of the power of Fourier transforms, averaged over 2 x 2 frequencies.

    Parameters
    ----------
    amplitude : numpy.ndarray
        As numpy.fft.rfft2 gives it, shape (..., y, x), complex64.

    Returns
    -------
    numpy.ndarray
        log(1 + mean power), shape (..., y // 2, x // 2), float32, frequency 0 of y in the middle.

    Examples
    --------
    >>> amplitude = np.complex64([[1, 1j], [1, 1], [3j, 3], [0, 0]])
    >>> np.expm1(pool_log_power(amplitude)).round(5)
    array([[4.5],
           [1. ]], dtype=float32)
    """
    *front, rows, columns = amplitude.shape
    flat = np.ascontiguousarray(amplitude).reshape(-1, rows, columns)
    out = np.empty((len(flat), rows // 2, columns // 2), np.float32)
    _pool_log_power(flat, out)
    return out.reshape(*front, rows // 2, columns // 2)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _fold_rows(values: Any, even: Any, odd: Any) -> None:
    n, rows, columns = values.shape
    for i in range(n):
        even[i, 0] = values[i, 0]
        for y in range(1, (rows + 1) // 2):
            for x in range(columns):
                one, other = values[i, y, x], values[i, rows - y, x]
                even[i, y, x] = one + other
                odd[i, y - 1, x] = one - other
        if rows % 2 == 0:
            even[i, rows // 2] = values[i, rows // 2]


@numba.njit(nogil=True, cache=True, fastmath=True)
def _unfold_rows(cosine: Any, sine: Any, out: Any) -> None:
    n, rows, columns = out.shape
    for i in range(n):
        for y in range(rows // 2 + 1):
            # Of row 0, and of the middle of an even number, the sine is 0.
            mirrored = (rows - y) % rows
            for x in range(0, columns, 2):
                real, imaginary = cosine[i, y, x], cosine[i, y, x + 1]
                down, up = sine[i, y, x], sine[i, y, x + 1]
                out[i, y, x] = real + up
                out[i, y, x + 1] = imaginary - down
                out[i, mirrored, x] = real - up
                out[i, mirrored, x + 1] = imaginary + down


@numba.njit(nogil=True, cache=True, fastmath=True)
def _pool_log_power(amplitude: Any, out: Any) -> None:
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
                out[i, y, x] = np.float32(1) + power * np.float32(0.25)
            for x in range(columns // 2):
                out[i, y, x] = logarithm(out[i, y, x])

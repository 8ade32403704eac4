"""Power of Fourier transforms of patterns, also of those whose rows are of an awkward number."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from spidask.frames.logarithm import logarithm

LARGEST_FACTOR = 13
"""Fast Fourier transforms of lengths with larger prime factors are slow."""
LONGEST_PRIME, MOST_PARTS = 192, 11
"""Of a longer one, or of more of them, even a slow one is faster than products with a matrix."""


class Plan(NamedTuple):
    """How a transform of p q rows is taken apart, where p is prime and no factor of q.

    Attributes
    ----------
    taken : numpy.ndarray
        Which row is value (i, j) of a transform of p times q values, shape (p, q), int64.
    given : numpy.ndarray
        Which row of the transform is (k, l) of that one; same shape and dtype.
    cosines : numpy.ndarray
        Of 2 pi k i / p, over the root of p q, shape (p // 2 + 1, p // 2 + 1), float32.
    sines : numpy.ndarray
        The same for i from 1 on, shape (p // 2 + 1, p // 2), float32.
    turns : numpy.ndarray
        exp(-2 pi i l j / q), shape (q, q), complex64.
    """

    taken: NDArray[np.int64]
    given: NDArray[np.int64]
    cosines: NDArray[np.float32]
    sines: NDArray[np.float32]
    turns: NDArray[np.complex64]


def is_awkward(rows: int) -> bool:
    """Tell whether products with matrices are faster than a fast Fourier transform.

    Parameters
    ----------
    rows : int
        Length of the transform.

    Returns
    -------
    bool
        True if it is a large prime, but not too large, times a small number.

    Examples
    --------
    >>> [is_awkward(rows) for rows in (120, 123, 128, 197, 246)]  # 123 is 3 x 41
    [False, True, False, False, True]
    """
    prime = _largest_prime(rows)
    return LARGEST_FACTOR < prime <= LONGEST_PRIME and rows // prime <= MOST_PARTS


@lru_cache(maxsize=8)
def plan_transform(rows: int) -> Plan:
    """Take a transform apart into some of a prime length and some of a short one.

    Parameters
    ----------
    rows : int
        Length of the transform; its largest prime factor is odd and no factor of the rest.

    Returns
    -------
    Plan
        What to do.

    Notes
    -----
    Good 1958, J. R. Stat. Soc. B 20, 361: numbered by remainders, the rows are a transform in two
    dimensions, without factors between one and the other.

    Examples
    --------
    >>> plan_transform(6).taken.tolist()  # of 3 x 2: row 2 i + 3 j
    [[0, 3], [2, 5], [4, 1]]
    """
    prime = _largest_prime(rows)
    rest = rows // prime
    i, j = np.arange(prime)[:, None], np.arange(rest)
    # Row n of the transform is k modulo the prime, and l modulo the rest.
    given = rest * pow(rest, -1, prime) * i + prime * pow(prime, -1, rest) * j
    place = np.arange(prime // 2 + 1)
    angle = 2 * np.pi / prime * (np.outer(place, place) % prime)
    cosines, sines = np.cos(angle) / np.sqrt(rows), np.sin(angle[:, 1:]) / np.sqrt(rows)
    return Plan(
        (rest * i + prime * j) % rows,
        given % rows,
        cosines.astype(np.float32),
        sines.astype(np.float32),
        np.exp(-2j * np.pi / rest * np.outer(j, j)).astype(np.complex64),
    )


def fold_rows(values: NDArray[np.complex64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Do the short transforms, and add what the long ones multiply with the same.

    Parameters
    ----------
    values : numpy.ndarray
        Shape (image, row, x), complex64.

    Returns
    -------
    even : numpy.ndarray
        What to multiply with `Plan.cosines`, shape (image, p // 2 + 1, 2 q x), float32: real and
        imaginary parts by turns.
    odd : numpy.ndarray
        What to multiply with `Plan.sines`, shape (image, p // 2, 2 q x), float32.
    """
    n, rows, columns = values.shape
    plan = plan_transform(rows)
    prime, rest = plan.taken.shape
    even = np.empty((n, prime // 2 + 1, rest, 2 * columns), np.float32)
    odd = np.empty((n, prime // 2, rest, 2 * columns), np.float32)
    given = np.ascontiguousarray(values).view(np.float32)
    _fold_rows(given, plan.taken, plan.turns, even, odd)
    return even.reshape(n, prime // 2 + 1, -1), odd.reshape(n, prime // 2, -1)


def unfold_power(
    cosine: NDArray[np.float32], sine: NDArray[np.float32], rows: int
) -> NDArray[np.float32]:
    """Put transforms together, of which only the power is wanted.

    Parameters
    ----------
    cosine, sine : numpy.ndarray
        Products of the plan's matrices with what `fold_rows` gives, shape (image, p // 2 + 1,
        2 q x), float32.
    rows : int
        Length of the transform.

    Returns
    -------
    numpy.ndarray
        Shape (image, rows, x), float32: square of sum of exp(-2 pi i k y / rows) value(y), over
        `rows`.
    """
    given = plan_transform(rows).given
    n, half = cosine.shape[:2]
    shape = n, half, given.shape[1], -1
    out = np.empty((n, rows, cosine.shape[2] // given.shape[1] // 2), np.float32)
    _unfold_power(cosine.reshape(shape), sine.reshape(shape), given, out)
    return out


def square(amplitude: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Give the power of Fourier transforms.

    Parameters
    ----------
    amplitude : numpy.ndarray
        Shape (image, y, x), complex64.

    Returns
    -------
    numpy.ndarray
        Its absolute square, float32.

    Examples
    --------
    >>> square(np.complex64([[[3 + 4j, 2j]]]))
    array([[[25.,  4.]]], dtype=float32)
    """
    out = np.empty(amplitude.shape, np.float32)
    _square(np.ascontiguousarray(amplitude).ravel(), out.ravel())
    return out


def pool_log_power(power: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take the logarithm of the power of Fourier transforms, averaged over 2 x 2 frequencies.

    Parameters
    ----------
    power : numpy.ndarray
        Of what numpy.fft.rfft2 gives, shape (image, y, x), float32.

    Returns
    -------
    numpy.ndarray
        log(1 + mean power), shape (image, y // 2, x // 2), float32, frequency 0 of y in the middle.

    Examples
    --------
    >>> power = np.float32([[[1, 1], [1, 1], [9, 9], [0, 0]]])
    >>> np.expm1(pool_log_power(power)).round(5)
    array([[[4.5],
            [1. ]]], dtype=float32)
    """
    n, rows, columns = power.shape
    out = np.empty((n, rows // 2, columns // 2), np.float32)
    _pool_log_power(power, out)
    return out


def _largest_prime(number: int) -> int:
    factor = 2
    while factor < number:
        if number % factor == 0:
            number //= factor
        else:
            factor += 1
    return number


@numba.njit(nogil=True, cache=True)
def _fold_rows(values: Any, taken: Any, turns: Any, even: Any, odd: Any) -> None:
    n, half, rest, width = even.shape
    prime = len(taken)
    sums, differences = np.empty((rest, width), np.float32), np.empty((rest, width), np.float32)
    for i in range(n):
        for j in range(rest):
            _copy(values[i, taken[0, j]], sums[j])
        _turn(sums, turns, even[i, 0])
        for k in range(1, half):
            for j in range(rest):
                one, other = values[i, taken[k, j]], values[i, taken[prime - k, j]]
                _fold(one, other, sums[j], differences[j])
            _turn(sums, turns, even[i, k])
            _turn(differences, turns, odd[i, k - 1])


@numba.njit(nogil=True, cache=True)
def _copy(values: Any, out: Any) -> None:
    for x in range(len(out)):
        out[x] = values[x]


@numba.njit(nogil=True, cache=True, fastmath=True)
def _fold(one: Any, other: Any, sums: Any, differences: Any) -> None:
    for x in range(len(sums) // 2):
        real, imaginary = one[2 * x], one[2 * x + 1]
        other_real, other_imaginary = other[2 * x], other[2 * x + 1]
        sums[2 * x] = real + other_real
        sums[2 * x + 1] = imaginary + other_imaginary
        # Times -i, with which sines go.
        differences[2 * x] = imaginary - other_imaginary
        differences[2 * x + 1] = other_real - real


@numba.njit(nogil=True, cache=True)
def _turn(values: Any, turns: Any, out: Any) -> None:
    """Transform a few rows, of complex numbers."""
    for k in range(len(turns)):
        _copy(values[0], out[k])
        for j in range(1, len(turns)):
            _add_turned(values[j], turns[k, j].real, turns[k, j].imag, out[k])


@numba.njit(nogil=True, cache=True, fastmath=True)
def _add_turned(values: Any, real: Any, imaginary: Any, out: Any) -> None:
    for x in range(len(out) // 2):
        one, other = values[2 * x], values[2 * x + 1]
        out[2 * x] += real * one - imaginary * other
        out[2 * x + 1] += real * other + imaginary * one


@numba.njit(nogil=True, cache=True, fastmath=True)
def _unfold_power(cosine: Any, sine: Any, given: Any, out: Any) -> None:
    n, half, rest, _ = cosine.shape
    for i in range(n):
        for k in range(half):
            for j in range(rest):
                up, down = out[i, given[k, j]], out[i, given[-k, j]]
                _square_both(cosine[i, k, j], sine[i, k, j], up, down)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _square_both(cosine: Any, sine: Any, up: Any, down: Any) -> None:
    for x in range(len(up)):
        real, imaginary = cosine[2 * x], cosine[2 * x + 1]
        other_real, other_imaginary = sine[2 * x], sine[2 * x + 1]
        up[x] = (real + other_real) ** 2 + (imaginary + other_imaginary) ** 2
        down[x] = (real - other_real) ** 2 + (imaginary - other_imaginary) ** 2


@numba.njit(nogil=True, cache=True, fastmath=True)
def _square(amplitude: Any, out: Any) -> None:
    for x in range(len(out)):
        out[x] = amplitude[x].real ** 2 + amplitude[x].imag ** 2


@numba.njit(nogil=True, cache=True, fastmath=True)
def _pool_log_power(power: Any, out: Any) -> None:
    n, rows, columns = power.shape
    # As fftshift: the first row of the map is the first of the second half, rounded down.
    first = (rows + 1) // 2
    for i in range(n):
        for y in range(rows // 2):
            upper, lower = power[i, (2 * y + first) % rows], power[i, (2 * y + 1 + first) % rows]
            row = out[i, y]
            for x in range(columns // 2):
                total = upper[2 * x] + upper[2 * x + 1] + lower[2 * x] + lower[2 * x + 1]
                row[x] = logarithm(np.float32(1) + total * np.float32(0.25))

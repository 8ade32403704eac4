"""A logarithm of single precision that many numbers at a time go through."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

ROOT_HALF, LOG_TWO = np.float32(0.5**0.5).view(np.int32), np.float32(math.log(2))
"""Bits of the root of 1/2, and the logarithm of 2."""


# Without error_model="numpy" a check for division by zero keeps the loops from vectorizing.
@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def logarithm(number: Any) -> Any:
    """Take a natural logarithm, within kernels.

    Parameters
    ----------
    number : numpy.float32
        Positive and finite.

    Returns
    -------
    numpy.float32
        Exact to some units of its last place, or to 1e-7 near 0.

    Notes
    -----
    A number is m 2^k with m from 2^(-1/2) to 2^(1/2); with s = (m - 1) / (m + 1) the logarithm of
    m is 2 (s + s^3 / 3 + s^5 / 5 + ...), and |s| < 0.172.

    Examples
    --------
    >>> round(float(logarithm(np.float32(1000))), 5)
    6.90776
    """
    # The root's bits are taken off so that the exponent steps there.
    above = np.int32(np.float32(number).view(np.int32) - ROOT_HALF)
    exponent = np.float32(np.int32(above >> 23))
    mantissa = np.int32((above & 0x7FFFFF) + ROOT_HALF).view(np.float32)
    s = (mantissa - np.float32(1)) / (mantissa + np.float32(1))
    q = s * s
    series = np.float32(2 / 7) + q * np.float32(2 / 9)
    series = np.float32(2 / 3) + q * (np.float32(2 / 5) + q * series)
    return s * (np.float32(2) + q * series) + exponent * LOG_TWO

"""Bad pixels, and the meaning of mask values."""

from __future__ import annotations

from enum import IntFlag
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


class PixelBit(IntFlag):
    """Bits of a CXI mask; 0 is a good pixel.

    Notes
    -----
    Source: CXI file format 1.5, table of mask bits.
    """

    INVALID = 0x1
    SATURATED = 0x2
    HOT = 0x4
    DEAD = 0x8
    SHADOWED = 0x10
    BAD = 0x80
    MISSING = 0x200


def usable_pixels(mask: NDArray[Any], good: Literal["nonzero", "zero"]) -> NDArray[np.bool_]:
    """Read a mask as stored by a facility.

    Parameters
    ----------
    mask : numpy.ndarray
        Mask values, any shape, any integer, float or bool dtype.
    good : {"nonzero", "zero"}
        Which values are usable pixels: 1 in most panel masks, 0 in CXI bit masks.

    Returns
    -------
    numpy.ndarray
        True where a pixel is usable, same shape, bool. NaN is never usable.

    Examples
    --------
    >>> usable_pixels(np.array([[0, 1], [4, 0]]), "zero").tolist()
    [[True, False], [False, True]]
    >>> usable_pixels(np.array([[0.0, 1.0, np.nan]]), "nonzero").tolist()
    [[False, True, False]]
    """
    values = np.asarray(mask)
    right = values != 0 if good == "nonzero" else values == 0
    return np.asarray(right & (values == values))


def apply_mask(patterns: NDArray[np.float32], usable: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Make unusable pixels missing.

    Parameters
    ----------
    patterns : numpy.ndarray
        Patterns, shape (frame, y, x), float32, photons.
    usable : numpy.ndarray
        True where a pixel is usable, shape (y, x), bool.

    Returns
    -------
    numpy.ndarray
        A copy with NaN in unusable pixels, shape (frame, y, x), float32, photons.

    Examples
    --------
    >>> apply_mask(np.ones((1, 1, 2), np.float32), np.array([[True, False]])).tolist()
    [[[1.0, nan]]]
    """
    return np.where(usable, patterns, np.float32(np.nan))


def mask_bits(usable: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Write a mask the way CXI has it.

    Parameters
    ----------
    usable : numpy.ndarray
        True where a pixel is usable, shape (y, x), bool.

    Returns
    -------
    numpy.ndarray
        0 for a good pixel, `PixelBit.BAD` otherwise, shape (y, x), uint32.

    Examples
    --------
    >>> mask_bits(np.array([[True, False]])).tolist()
    [[0, 128]]
    """
    return np.where(usable, 0, int(PixelBit.BAD)).astype(np.uint32)

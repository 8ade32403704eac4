"""Raw detector frames to photons: dark, common mode, gain, missing pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """What turns one block of raw pixels into photons.

    Attributes
    ----------
    offset : numpy.ndarray
        Dark level, shape (y, x), float32, ADU; NaN where a pixel is bad.
    divisor : numpy.ndarray
        Gain times ADU per photon, shape (y, x), float32, ADU per photon.
    photon_threshold : float
        A pixel holds n photons from n - 1 + this many photons on.
    saturation_adu : float
        Raw values from here on are missing pixels; infinity switches it off. ADU.
    asic : tuple of int or None
        Rows and columns of pixels that share one common-mode offset, counted from the block's
        first pixel; None switches it off.
    max_adu : float
        Pixels above this count as lit and stay out of the common mode. ADU.
    """

    offset: Float32
    divisor: Float32
    photon_threshold: float = 0.5
    saturation_adu: float = float("inf")
    asic: tuple[int, int] | None = None
    max_adu: float = 0.0


def calibrate(
    block: NDArray[Any],
    calibration: Calibration,
    energy_ratio: NDArray[np.float64] | None = None,
) -> Float32:
    """Turn raw frames into photons.

    Parameters
    ----------
    block : numpy.ndarray
        Raw frames, shape (frame, y, x), any integer or float dtype, ADU. NaN and infinities are
        missing pixels. A frame of nothing but the largest integer of its dtype, or of nothing but
        NaN, could not be read.
    calibration : Calibration
        Maps of shape (y, x) and settings.
    energy_ratio : numpy.ndarray, optional
        Photon energy of each frame over the one for which ADU per photon is given, shape
        (frame,), float64; a photon makes ADU in proportion to its energy. 1 without it.

    Returns
    -------
    numpy.ndarray
        Whole photons, shape (frame, y, x), float32; NaN where a pixel is bad, missing or
        saturated, and in every pixel of an unreadable frame.

    Notes
    -----
    In this order, in float32: saturated raw values become missing; the dark level is subtracted;
    each group of `asic` pixels loses the median of its usable pixels not above `max_adu` (nothing
    where there is none); the rest is divided by gain and ADU per photon times `energy_ratio`; and
    n = max(0, floor(photons + 1 - photon_threshold)).

    Examples
    --------
    Dark level 10, 100 ADU a photon; the last pixel is bad:

    >>> offset = np.array([[10, 10, np.nan]], np.float32)
    >>> maps = Calibration(offset, np.full((1, 3), 100, np.float32))
    >>> calibrate(np.array([[[59, 260, 300]]], np.uint16), maps).tolist()
    [[[0.0, 3.0, nan]]]
    """
    rows, columns = calibration.asic or (0, 0)
    ratio = np.ones(len(block)) if energy_ratio is None else energy_ratio
    out = _calibrate(
        _native(block),
        calibration.offset,
        calibration.divisor,
        np.float32(1.0 - calibration.photon_threshold),
        np.float32(calibration.saturation_adu),
        rows,
        columns,
        np.float32(calibration.max_adu),
        ratio.astype(np.float32),
    )
    out[unreadable_frames(block)] = np.nan
    return out


def unreadable_frames(block: NDArray[Any]) -> NDArray[np.bool_]:
    """Find the frames that a reader could not read.

    Parameters
    ----------
    block : numpy.ndarray
        Raw frames, shape (frame, y, x), any integer or float dtype.

    Returns
    -------
    numpy.ndarray
        True for frames of nothing but NaN or, in integers, of nothing but the dtype's largest
        value; shape (frame,), bool.

    Examples
    --------
    >>> unreadable_frames(np.array([[[255, 255]], [[255, 0]]], np.uint8)).tolist()
    [True, False]
    """
    integer = block.dtype.kind in "iu"
    fill = np.iinfo(block.dtype).max if integer else np.nan
    first = block[:, 0, 0]
    # One pixel acquits nearly every frame, so that whole frames are rarely looked at.
    found = first == fill if integer else np.isnan(first)
    for i in np.flatnonzero(found):
        found[i] = np.all(block[i] == fill if integer else np.isnan(block[i]))
    return np.asarray(found, bool)


def whole_asics(
    region: tuple[int, int, int, int], asic: tuple[int, int] | None, shape: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Grow a region of interest to whole common-mode groups.

    Parameters
    ----------
    region : tuple of int
        First row, row after the last, first column, column after the last; pixels of the frame.
    asic : tuple of int or None
        Rows and columns of a group; groups are counted from the frame's first pixel.
    shape : tuple of int
        Rows and columns of the frame.

    Returns
    -------
    tuple of int
        The region to read, in the same form, cut off at the frame's edge.

    Examples
    --------
    >>> whole_asics((0, 123, 392, 632), (1, 128), (512, 1024))
    (0, 123, 384, 640)
    """
    if asic is None:
        return region
    y0, y1, x0, x1 = region
    rows, columns = asic
    return (
        y0 // rows * rows,
        min(-(-y1 // rows) * rows, shape[0]),
        x0 // columns * columns,
        min(-(-x1 // columns) * columns, shape[1]),
    )


def _native(block: NDArray[Any]) -> NDArray[Any]:
    # Numba knows neither foreign byte order nor half precision.
    if block.dtype == np.float16:
        return block.astype(np.float32)
    return np.ascontiguousarray(block, block.dtype.newbyteorder("="))


# Without error_model="numpy" a check for division by zero keeps the loops from vectorizing.
@numba.njit(nogil=True, cache=True, error_model="numpy")
def _calibrate(
    block: NDArray[Any],
    offset: Float32,
    divisor: Float32,
    shift: np.float32,
    saturation: np.float32,
    rows: int,
    columns: int,
    max_adu: np.float32,
    ratio: Float32,
) -> Float32:
    nan, infinity = np.float32(np.nan), np.float32(np.inf)
    out = np.empty(block.shape, np.float32)
    for i in range(block.shape[0]):
        for y in range(block.shape[1]):
            for x in range(block.shape[2]):
                raw = np.float32(block[i, y, x])
                adu = raw - offset[y, x]
                out[i, y, x] = adu if (raw < saturation) & (abs(adu) < infinity) else nan
        if rows > 0:
            _subtract_common_mode(out[i], rows, columns, max_adu)
        for y in range(block.shape[1]):
            for x in range(block.shape[2]):
                n = np.floor(out[i, y, x] / (divisor[y, x] * ratio[i]) + shift)
                # Adding zero turns -0.0 into 0.0.
                out[i, y, x] = np.float32(0) if n < 0 else n + np.float32(0)
    return out


@numba.njit(nogil=True, cache=True)
def _subtract_common_mode(frame: Float32, rows: int, columns: int, max_adu: np.float32) -> None:
    height, width = frame.shape
    unlit = np.empty(rows * columns, np.float32)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            bottom, right = min(top + rows, height), min(left + columns, width)
            n = 0
            for y in range(top, bottom):
                for x in range(left, right):
                    if frame[y, x] <= max_adu:  # False for NaN
                        unlit[n] = frame[y, x]
                        n += 1
            if n > 0:
                frame[top:bottom, left:right] -= np.float32(np.median(unlit[:n]))

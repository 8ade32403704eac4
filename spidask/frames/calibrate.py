"""Raw detector frames to photons: dark, common mode, gain, missing pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from spidask.frames.assemble import assemble

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
    index : numpy.ndarray or None
        Pixels of the block that make up each pixel of the pattern, see `assemble`; None where the
        pattern is the block.
    """

    offset: Float32
    divisor: Float32
    photon_threshold: float = 0.5
    saturation_adu: float = float("inf")
    asic: tuple[int, int] | None = None
    max_adu: float = 0.0
    index: NDArray[np.int32] | None = None


def calibrate(
    block: NDArray[Any],
    calibration: Calibration,
    energy_ratio: NDArray[np.float64] | None = None,
) -> Float32:
    """Turn raw frames into photons.

    Parameters
    ----------
    block : numpy.ndarray
        Raw frames, shape (frame, y, x), any integer or float dtype, ADU. NaN, infinities and the
        largest integer of a dtype are missing pixels; a frame of nothing else could not be read.
    calibration : Calibration
        Maps of shape (y, x) and settings.
    energy_ratio : numpy.ndarray, optional
        Photon energy of each frame over the one for which ADU per photon is given, shape
        (frame,), float64; a photon makes ADU in proportion to its energy. 1 without it.

    Returns
    -------
    numpy.ndarray
        Whole photons, shape (frame, y, x), float32; NaN where a pixel is bad, missing or
        saturated, and in every pixel of an unreadable frame. With an index, y and x are those of
        the assembled region.

    Notes
    -----
    In this order, in float32: saturated raw values become missing; the dark level is subtracted;
    each group of `asic` pixels loses the median of its usable pixels not above `max_adu` (nothing
    where there is none); the rest is divided by gain and ADU per photon times `energy_ratio`; and
    n = max(0, floor(photons + 1 - photon_threshold)). The region is assembled from these photons.

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
        np.float32(min(calibration.saturation_adu, _missing_from(block.dtype))),
        rows,
        columns,
        np.float32(calibration.max_adu),
        ratio.astype(np.float32),
    )
    return out if calibration.index is None else assemble(out, calibration.index)


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


def _missing_from(dtype: np.dtype[Any]) -> float:
    # What readers put where a pixel, a module or a frame is missing.
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else float("inf")


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

"""Raw detector frames to photons, and how many: dark, common mode, gain, missing pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from spidask.frames.assemble import assemble
from spidask.frames.hits import count_photons

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]

LEFT_OUT = 2**31 - 1
"""Key of a pixel that stays out of the common mode; no finite number has one as large."""

ROUNDS = 16
"""Guesses at a median; one in a thousand of normally distributed pixels takes more than 12."""


@dataclass(frozen=True, eq=False)
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
    energy_ratio: Float64 | None = None,
    *,
    lit_photons: float,
) -> tuple[Float32, Float64]:
    """Turn raw frames into photons, and count them.

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
    lit_photons : float
        A pixel above this is lit. Photons.

    Returns
    -------
    patterns : numpy.ndarray
        Whole photons, shape (frame, y, x), float32; NaN where a pixel is bad, missing or
        saturated, and in every pixel of an unreadable frame. With an index, y and x are those of
        the assembled region.
    counts : numpy.ndarray
        What `count_photons` gives of the patterns, shape (frame, 3), float64.

    Notes
    -----
    In this order, in float32: saturated raw values become missing; the dark level is subtracted;
    each group of `asic` pixels loses the median of its usable pixels not above `max_adu` (nothing
    where there is none); the rest is divided by gain and ADU per photon times `energy_ratio`; and
    n = max(0, floor(photons + 1 - photon_threshold)). The region is assembled from these photons.
    Each frame is read and written once; only common mode takes a second look, in the cache.

    Examples
    --------
    Dark level 10, 100 ADU a photon; the last pixel is bad:

    >>> offset = np.array([[10, 10, np.nan]], np.float32)
    >>> maps = Calibration(offset, np.full((1, 3), 100, np.float32))
    >>> patterns, counts = calibrate(np.array([[[59, 260, 300]]], np.uint16), maps, lit_photons=0.7)
    >>> patterns.tolist(), counts.tolist()
    ([[[0.0, 3.0, nan]]], [[3.0, 1.0, 2.0]])
    """
    rows, columns = calibration.asic or (0, 0)
    ratio = np.ones(len(block)) if energy_ratio is None else energy_ratio
    patterns, counts = _calibrate(
        _native(block),
        calibration.offset,
        calibration.divisor,
        np.float32(1.0 - calibration.photon_threshold),
        np.float32(min(calibration.saturation_adu, missing_from(block.dtype))),
        rows,
        columns,
        np.float32(calibration.max_adu),
        ratio.astype(np.float32),
        np.float32(lit_photons),
    )
    if calibration.index is not None:
        patterns = assemble(patterns, calibration.index)
        counts = count_photons(patterns, lit_photons)
    return patterns, counts


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


def missing_from(dtype: np.dtype[Any]) -> float:
    """Give the raw value that says that a pixel is missing.

    Parameters
    ----------
    dtype : numpy.dtype
        Dtype of raw frames.

    Returns
    -------
    float
        What readers put where a pixel, a module or a frame is missing: the largest integer, or
        infinity, for floats beside NaN.

    Examples
    --------
    >>> missing_from(np.dtype("uint16")), missing_from(np.dtype("float32"))
    (65535.0, inf)
    """
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else float("inf")


def _native(block: NDArray[Any]) -> NDArray[Any]:
    # Numba knows neither foreign byte order nor half and extended precision.
    if block.dtype.kind == "f" and block.dtype.itemsize not in (4, 8):
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
    lit_photons: np.float32,
) -> tuple[Float32, Float64]:
    out, counts = np.empty(block.shape, np.float32), np.empty((block.shape[0], 3))
    adu, nothing = np.empty(offset.shape, np.float32), np.zeros(offset.size, np.float32)
    keys = np.empty(rows * columns, np.int32)
    dark, scale, infinity = offset.ravel(), divisor.ravel(), np.float32(np.inf)
    for i in range(block.shape[0]):
        raw, seen, n = block[i].ravel(), out[i].ravel(), counts[i]
        if rows > 0:
            # A buffer of its own for the ADU: in place the loops would not vectorize.
            _subtract_dark(raw, dark, saturation, adu.ravel())
            _subtract_common_mode(adu, rows, columns, max_adu, keys)
            photons = (shift, infinity, ratio[i], lit_photons)
            _find_photons(adu.ravel(), nothing, scale, photons, seen, n)
        else:
            photons = (shift, saturation, ratio[i], lit_photons)
            _find_photons(raw, dark, scale, photons, seen, n)
    return out, counts


@numba.njit(nogil=True, cache=True)
def _subtract_dark(raw: NDArray[Any], dark: Float32, saturation: np.float32, out: Float32) -> None:
    for j in range(len(raw)):
        value = np.float32(raw[j])
        adu = value - dark[j]
        usable = (value < saturation) & (abs(adu) < np.float32(np.inf))
        out[j] = adu if usable else np.float32(np.nan)


# Sums in any order, for vectors: those of whole photons are exact.
@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
def _find_photons(
    raw: NDArray[Any],
    dark: Float32,
    scale: Float32,
    settings: tuple[np.float32, np.float32, np.float32, np.float32],
    out: Float32,
    counts: Float64,
) -> None:
    shift, saturation, ratio, lit_photons = settings
    total, n_lit, n_usable = 0.0, np.int32(0), np.int32(0)
    for j in range(len(raw)):
        value = np.float32(raw[j])
        adu = value - dark[j]
        usable = (value < saturation) & (abs(adu) < np.float32(np.inf))
        n = np.floor(adu / (scale[j] * ratio) + shift)
        # Adding zero turns -0.0 into 0.0.
        n = np.float32(0) if n < 0 else n + np.float32(0)
        out[j] = n if usable else np.float32(np.nan)
        total += float(n) if usable else 0.0
        # Sums of int32 are int64 for Numba, which vectors hold half as many of.
        n_lit = np.int32(n_lit + (usable & (n > lit_photons)))
        n_usable = np.int32(n_usable + usable)
    counts[0] = total if n_usable > 0 else np.nan
    counts[1], counts[2] = n_lit, n_usable


@numba.njit(nogil=True, cache=True)
def _subtract_common_mode(
    frame: Float32, rows: int, columns: int, max_adu: np.float32, keys: Int32
) -> None:
    height, width = frame.shape
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        for left in range(0, width, columns):
            n, n_all, total = 0, 0, 0.0
            for y in range(top, bottom):
                # Of a row first, so that Numba knows that its pixels lie side by side.
                part = frame[y][left : left + columns]
                n_unlit, share = _take_unlit(part, max_adu, keys[n_all : n_all + len(part)])
                n, n_all, total = n + n_unlit, n_all + len(part), total + share
            if n > 0:
                median = _median(keys[:n_all], n, np.float32(total / n))
                for y in range(top, bottom):
                    part = frame[y][left : left + columns]
                    for x in range(len(part)):
                        part[x] -= median


# Their sum in any order, for vectors: it only makes the first guess at the median.
@numba.njit(nogil=True, cache=True, fastmath={"reassoc"})
def _take_unlit(part: Float32, max_adu: np.float32, keys: Int32) -> tuple[int, float]:
    """Turn unlit pixels into keys, which compare as the pixels do; count and sum them."""
    n, total = np.int32(0), np.float32(0)
    for x in range(len(part)):
        unlit = part[x] <= max_adu  # False for NaN
        # Adding zero turns -0.0 into 0.0, to which it is equal.
        keys[x] = _key(part[x] + np.float32(0)) if unlit else np.int32(LEFT_OUT)
        n = np.int32(n + unlit)
        total += part[x] if unlit else np.float32(0)
    return int(n), float(total)


@numba.njit(nogil=True, cache=True)
def _median(keys: Int32, n: int, mean: np.float32) -> np.float32:
    """Median of the n keys that are not left out, as numpy.median gives it."""
    k = (n - 1) // 2
    low, high = _extremes(keys)
    n_low, n_high = 0, n
    guess = _key(mean)
    # Counting a few times how many lie below a guess takes a fifth of the time of sorting.
    for _ in range(ROUNDS):
        found = _smallest(keys, guess)
        below, upto = _ranks(keys, found)
        if below <= k < upto:
            middle = _value(found)
            if n % 2 == 1 or upto > k + 1:
                return middle
            return (middle + _value(_smallest(keys, np.int32(found + 1)))) / np.float32(2)
        if upto <= k:
            low, n_low = found, int(upto)
        else:
            high, n_high = guess, int(below)
        share = np.float32(k - n_low + 1) / np.float32(n_high - n_low + 1)
        between = _value(low) + (_value(high) - _value(low)) * share
        guess = np.int32(max(_key(between), low + 1))
    unlit = np.sort(keys)[:n]
    return (_value(unlit[k]) + _value(unlit[n // 2])) / np.float32(2)


@numba.njit(nogil=True, cache=True)
def _extremes(keys: Int32) -> tuple[np.int32, np.int32]:
    low, high = np.int32(LEFT_OUT), np.int32(-LEFT_OUT)
    for i in range(len(keys)):
        low = min(low, keys[i])
        high = max(high, keys[i] if keys[i] < LEFT_OUT else np.int32(-LEFT_OUT))
    return low, high


@numba.njit(nogil=True, cache=True)
def _smallest(keys: Int32, least: np.int32) -> np.int32:
    smallest = np.int32(LEFT_OUT)
    for i in range(len(keys)):
        smallest = min(smallest, keys[i] if keys[i] >= least else np.int32(LEFT_OUT))
    return smallest


@numba.njit(nogil=True, cache=True)
def _ranks(keys: Int32, key: np.int32) -> tuple[np.int32, np.int32]:
    below, upto = np.int32(0), np.int32(0)
    for i in range(len(keys)):
        below = np.int32(below + (keys[i] < key))
        upto = np.int32(upto + (keys[i] <= key))
    return below, upto


@numba.njit(nogil=True, cache=True)
def _swap(bits: np.int32) -> np.int32:
    """Bits of a float32 to an integer that compares as it does, and back."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(LEFT_OUT)))


@numba.njit(nogil=True, cache=True)
def _key(value: np.float32) -> np.int32:
    return _swap(np.float32(value).view(np.int32))


@numba.njit(nogil=True, cache=True)
def _value(key: np.int32) -> np.float32:
    return np.int32(_swap(key)).view(np.float32)

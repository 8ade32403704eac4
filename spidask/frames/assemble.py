"""The assembled image: one gather from stacked modules, binned on the way."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]


def pixel_index(image: Int32, region: tuple[int, int, int, int], width: int) -> Int32:
    """List the detector pixels of which each pixel of a region is the sum.

    Parameters
    ----------
    image : numpy.ndarray
        Position of each pixel of the image in the detector's flattened frame, shape (y, x),
        int32; -1 where there is none.
    region : tuple of int
        First row, row after the last, first column, column after the last, in binned pixels.
    width : int
        Pixels of the image along each axis of a binned one.

    Returns
    -------
    numpy.ndarray
        Shape (y, x, width * width), int32.

    Examples
    --------
    >>> pixel_index(np.arange(8, dtype=np.int32).reshape(2, 4), (0, 1, 1, 2), 2).tolist()
    [[[2, 3, 6, 7]]]
    """
    y0, y1, x0, x1 = (edge * width for edge in region)
    rows, columns = region[1] - region[0], region[3] - region[2]
    parts = image[y0:y1, x0:x1].reshape(rows, width, columns, width)
    return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(rows, columns, width * width))


def touched_modules(index: Int32, module_pixels: int) -> NDArray[np.int64]:
    """Tell which modules a region needs.

    Parameters
    ----------
    index : numpy.ndarray
        Positions in the flattened stack of modules, any shape, int32; -1 where there is none.
    module_pixels : int
        Pixels of a module.

    Returns
    -------
    numpy.ndarray
        Numbers of the modules, ascending, int64.

    Examples
    --------
    >>> touched_modules(np.array([-1, 3, 17], np.int32), 8).tolist()
    [0, 2]
    """
    return np.unique(index[index >= 0] // module_pixels).astype(np.int64)


def renumber(index: Int32, modules: NDArray[np.int64], module_pixels: int) -> Int32:
    """Count positions in a stack of some modules instead of all.

    Parameters
    ----------
    index : numpy.ndarray
        Positions in the flattened stack of all modules, any shape, int32; -1 where there is none.
    modules : numpy.ndarray
        Numbers of the modules that are stacked, ascending, int64.
    module_pixels : int
        Pixels of a module.

    Returns
    -------
    numpy.ndarray
        Positions in the flattened stack of these modules, same shape, int32.

    Examples
    --------
    >>> renumber(np.array([-1, 3, 17], np.int32), np.array([0, 2]), 8).tolist()
    [-1, 3, 9]
    """
    place = np.searchsorted(modules, index // module_pixels)
    moved = place * module_pixels + index % module_pixels
    return np.where(index >= 0, moved, -1).astype(np.int32)


def assemble(block: NDArray[np.float32], index: Int32) -> NDArray[np.float32]:
    """Gather, and sum, the pixels of an image.

    Parameters
    ----------
    block : numpy.ndarray
        Frames of the detector, shape (frame, row, column), float32, photons; NaN is missing.
    index : numpy.ndarray
        What `pixel_index` gives, shape (y, x, part), int32, positions in a flattened frame.

    Returns
    -------
    numpy.ndarray
        Shape (frame, y, x), float32, photons. A pixel is NaN where any of its parts is missing or
        lies in a gap.

    Notes
    -----
    A binned pixel of which a part is missing is not scaled up: the product would be no count of
    photons any more, neither whole nor of Poisson's spread, which orientation determination and
    the sphere fit take patterns for. It costs the binned pixels along the gaps.

    Examples
    --------
    >>> index = np.array([[[0, 1], [2, -1]]], np.int32)
    >>> assemble(np.array([[[1, 2, 3]]], np.float32), index).tolist()
    [[[3.0, nan]]]
    """
    return np.asarray(_assemble(np.ascontiguousarray(block).reshape(len(block), -1), index))


@numba.njit(nogil=True, cache=True)
def _assemble(frames: NDArray[np.float32], index: Int32) -> NDArray[np.float32]:
    rows, columns, n_parts = index.shape
    out = np.empty((frames.shape[0], rows, columns), np.float32)
    for i in range(frames.shape[0]):
        for y in range(rows):
            for x in range(columns):
                total = np.float32(0)
                for part in range(n_parts):
                    place = index[y, x, part]
                    total += frames[i, place] if place >= 0 else np.float32(np.nan)
                out[i, y, x] = total
    return out

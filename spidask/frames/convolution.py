"""The first convolution of the compact network on the CPU; of one channel, it is slow elsewhere."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

KERNEL, GROUP = 7, 4
"""Edge of the window in pixels, and output channels that are computed together."""
MARGIN = KERNEL // 2


def convolve_partially(
    values: NDArray[np.float32],
    weight: NDArray[np.float32],
    scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    out: NDArray[np.float32] | NDArray[np.uint16],
) -> None:
    """Convolve in steps of two pixels, rescale each window, shift, and set what is negative to 0.

    Parameters
    ----------
    values : numpy.ndarray
        Shape (frame, y, x), float32, 0 where a pixel is missing.
    weight : numpy.ndarray
        Shape (channel, `KERNEL`, `KERNEL`), float32; channels are a multiple of `GROUP`.
    scale : numpy.ndarray
        As of `residuals.scale_windows` for these windows, shape (frame, (y + 1) // 2,
        (x + 1) // 2), float32.
    shift : numpy.ndarray
        Shape (channel,), float32.
    out : numpy.ndarray
        What to write, shape (frame, (y + 1) // 2, (x + 1) // 2, channel), float32, or uint16 for
        the bits of bfloat16.

    Examples
    --------
    >>> weight = np.zeros((4, 7, 7), np.float32)
    >>> weight[2, 3, 4] = 10  # times the pixel to the right
    >>> values = np.float32([[[1, 2, 3, 4, 5]]])
    >>> scale, shift = np.ones((1, 1, 3), np.float32), np.float32([0, -1, 5, 9])
    >>> out = np.empty((1, 1, 3, 4), np.float32)
    >>> convolve_partially(values, weight, scale, shift, out)
    >>> out
    array([[[[ 0.,  0., 25.,  9.],
             [ 0.,  0., 45.,  9.],
             [ 0.,  0.,  5.,  9.]]]], dtype=float32)
    """
    rows, columns = scale.shape[1:]
    # As bits, and those of a group as one number, for these are copied fast.
    bits, together = (np.int32, np.complex128) if out.itemsize == 4 else (np.uint16, np.uint64)
    group = np.empty(GROUP * columns, bits)
    grouped = weight.reshape(-1, GROUP, KERNEL, KERNEL).swapaxes(1, 2)
    # Images are loops over all their rows at once, with zeros between two rows.
    pitch = columns + MARGIN
    _convolve(
        np.ascontiguousarray(values),
        np.ascontiguousarray(grouped).reshape(-1, KERNEL, GROUP * KERNEL),
        np.ascontiguousarray(scale),
        np.ascontiguousarray(shift),
        np.zeros((2, 2, (rows + MARGIN + 1) * pitch), np.float32),
        np.empty((GROUP, rows * pitch), np.float32),
        group,
        group.view(together),
        out.view(together),
    )


@numba.njit(nogil=True, cache=True)
def _convolve(
    values: Any,
    weights: Any,
    scale: Any,
    shift: Any,
    parts: Any,
    sums: Any,
    group: Any,
    together: Any,
    out: Any,
) -> None:
    n, rows, columns = scale.shape
    pitch = sums.shape[1] // rows
    for i in range(n):
        _part(values[i], parts, pitch)
        for g in range(len(weights)):
            sums[:] = 0
            for k in range(KERNEL):
                start = k // 2 * pitch
                even, odd = parts[k % 2, 0, start:], parts[k % 2, 1, start:]
                _add_row(weights[g, k], even, odd, sums[0], sums[1], sums[2], sums[3])
            for y in range(rows):
                own = slice(y * pitch, y * pitch + columns)
                here = shift[GROUP * g : GROUP * (g + 1)]
                _finish(
                    sums[0, own], sums[1, own], sums[2, own], sums[3, own], scale[i, y], here, group
                )
                for x in range(columns):
                    out[i, y, x, g] = together[x]


@numba.njit(nogil=True, cache=True)
def _part(image: Any, parts: Any, pitch: int) -> None:
    """Part even and odd rows, and in these even and odd columns, counted with a margin."""
    rows, columns = image.shape
    for y in range(rows):
        start = (y + MARGIN) // 2 * pitch
        even, odd = parts[(y + MARGIN) % 2, 0, start:], parts[(y + MARGIN) % 2, 1, start:]
        # Both in one loop, or it would not vectorize.
        for x in range(columns // 2):
            odd[x + MARGIN // 2] = image[y, 2 * x]
            even[x + MARGIN // 2 + 1] = image[y, 2 * x + 1]
        if columns % 2:
            odd[columns // 2 + MARGIN // 2] = image[y, columns - 1]


@numba.njit(nogil=True, cache=True, fastmath=True)
def _add_row(weights: Any, even: Any, odd: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    """Add what one row of the windows gives to four channels."""
    for x in range(len(a)):
        of_a, of_b, of_c, of_d = a[x], b[x], c[x], d[x]
        for k in range(KERNEL):
            value = odd[x + k // 2] if k % 2 else even[x + k // 2]
            of_a += weights[k] * value
            of_b += weights[KERNEL + k] * value
            of_c += weights[2 * KERNEL + k] * value
            of_d += weights[3 * KERNEL + k] * value
        a[x], b[x], c[x], d[x] = of_a, of_b, of_c, of_d


@numba.njit(nogil=True, cache=True, fastmath=True)
def _finish(a: Any, b: Any, c: Any, d: Any, scale: Any, shift: Any, out: Any) -> None:
    is_half = out.itemsize == 2
    first, second, third, fourth = shift[0], shift[1], shift[2], shift[3]
    for x in range(len(scale)):
        out[GROUP * x] = _bits(a[x] * scale[x] + first, is_half)
        out[GROUP * x + 1] = _bits(b[x] * scale[x] + second, is_half)
        out[GROUP * x + 2] = _bits(c[x] * scale[x] + third, is_half)
        out[GROUP * x + 3] = _bits(d[x] * scale[x] + fourth, is_half)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _bits(value: Any, is_half: bool) -> Any:
    bits = np.float32(max(value, np.float32(0))).view(np.int32)
    # To the nearest number of half the bits, of two as near to the even one.
    rounded = np.int32(bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.int32(rounded) if is_half else bits

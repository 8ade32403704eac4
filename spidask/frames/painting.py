"""Pictures of patterns: a colour for each level, enlarged and shrunk in one pass."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def paint(
    levels: NDArray[np.uint8],
    table: Float32,
    rows: tuple[NDArray[np.int32], Float32],
    columns: tuple[NDArray[np.int32], Float32],
    size: tuple[int, int],
    fill: float,
) -> Float32:
    """Colour patterns, resize them and put them into the middle of a picture.

    Parameters
    ----------
    levels : numpy.ndarray
        Level of each pixel, shape (frame, y, x), uint8.
    table : numpy.ndarray
        Colour of each level, shape (256, channel), float32, 0 to 1.
    rows, columns : tuple of numpy.ndarray
        For each row, or column, of the resized pattern the two of the pattern that it lies
        between, shape (n, 2), int32, the second the first or the next; and their weights, shape
        (n, 2), float32.
    size : tuple of int
        Rows and columns of the picture.
    fill : float
        What is around the pattern, 0 to 1.

    Returns
    -------
    numpy.ndarray
        Shape (frame, channel, rows, columns), float32, 0 to 1; in memory the channels of a pixel
        lie side by side, as convolutions like them.

    Examples
    --------
    >>> table = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    >>> places = np.array([[0, 1], [0, 1], [1, 1]], np.int32)
    >>> shares = np.array([[1, 0], [0.5, 0.5], [1, 0]], np.float32)
    >>> levels = np.array([[[0, 255], [0, 255]]], np.uint8)
    >>> paint(levels, table, (places[:1], shares[:1]), (places, shares), (1, 4), 0.25).tolist()
    [[[[0.0, 0.5, 1.0, 0.25]]]]
    """
    out = np.empty((len(levels), *size, table.shape[1]), np.float32)
    _paint(levels, np.ascontiguousarray(table), *rows, *columns, np.float32(fill), out)
    return out.transpose(0, 3, 1, 2)


@numba.njit(nogil=True, cache=True)
def _paint(
    levels: NDArray[np.uint8],
    table: Float32,
    rows: NDArray[np.int32],
    row_weights: Float32,
    columns: NDArray[np.int32],
    column_weights: Float32,
    fill: np.float32,
    out: Float32,
) -> None:
    n_frames, height, width, n_channels = out.shape
    n_rows, n_columns = len(rows), len(columns)
    top, left = (height - n_rows) // 2, (width - n_columns) // 2
    start, stop = left * n_channels, (left + n_columns) * n_channels
    # Of the pattern's rows the last two, coloured and resized along x; even and odd ones.
    lines = np.empty((2, n_columns * n_channels), np.float32)
    colours = np.empty((levels.shape[2], n_channels), np.float32)
    for i in range(n_frames):
        picture, held = out[i].reshape(height, width * n_channels), np.full(2, -1)
        picture[:top] = fill
        picture[top + n_rows :] = fill
        for r in range(n_rows):
            for y in rows[r]:
                if held[y % 2] != y:
                    _colour(levels[i, y], table, colours)
                    _resize(colours, columns, column_weights, lines[y % 2])
                    held[y % 2] = y
            line = picture[top + r]
            line[:start] = fill
            line[stop:] = fill
            near, far = lines[rows[r, 0] % 2], lines[rows[r, 1] % 2]
            _mix(near, far, row_weights[r, 0], row_weights[r, 1], line[start:stop])


@numba.njit(nogil=True, cache=True)
def _colour(levels: NDArray[np.uint8], table: Float32, out: Float32) -> None:
    for x in range(len(levels)):
        for channel in range(table.shape[1]):
            out[x, channel] = table[levels[x], channel]


@numba.njit(nogil=True, cache=True)
def _resize(line: Float32, places: NDArray[np.int32], weights: Float32, out: Float32) -> None:
    n_channels = line.shape[1]
    for x in range(len(places)):
        first, second, near, far = places[x, 0], places[x, 1], weights[x, 0], weights[x, 1]
        for channel in range(n_channels):
            mixed = near * line[first, channel] + far * line[second, channel]
            out[x * n_channels + channel] = mixed


@numba.njit(nogil=True, cache=True)
def _mix(a: Float32, b: Float32, near: np.float32, far: np.float32, out: Float32) -> None:
    for x in range(len(out)):
        out[x] = near * a[x] + far * b[x]

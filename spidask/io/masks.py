"""Masks that lie beside the frames, one for a file or one for each frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spidask.frames.mask import usable_pixels
from spidask.io.layout import FileLayout
from spidask.io.stack import UNDECODABLE, Source, enclose


def hide_pixels(
    block: NDArray[Any],
    mask: Source,
    key: tuple[Any, ...],
    layout: FileLayout,
    shape: tuple[int, int],
) -> None:
    """Make the pixels NaN that the file's own mask calls unusable.

    Parameters
    ----------
    block : numpy.ndarray
        Frames that were read with `key`, any float dtype; changed in place.
    mask : array
        The open mask on disk, shape (y, x) or (frame, y, x).
    key : tuple
        Rows of the file, y and x as slices.
    layout : FileLayout
        Says which values are usable pixels.
    shape : tuple of int
        Rows and columns of a frame.

    Notes
    -----
    Frames whose mask cannot be read are NaN everywhere, as those that cannot be read themselves.
    """
    rows, y, x = key
    if tuple(mask.shape[-2:]) != shape:
        # Such frames were filled already.
        return
    frames = range(rows.start, rows.stop) if len(mask.shape) == 3 else None
    try:
        _hide(block, mask, rows if frames else None, y, x, layout, shape)
    except UNDECODABLE:
        if frames is None:
            block[...] = np.nan
            return
        for part, row in zip(block, frames, strict=True):
            try:
                _hide(part, mask, row, y, x, layout, shape)
            except UNDECODABLE:
                part[...] = np.nan


def _hide(
    block: NDArray[Any],
    mask: Source,
    rows: slice | int | None,
    y: Any,
    x: Any,
    layout: FileLayout,
    shape: tuple[int, int],
) -> None:
    (y_read, y_rest), (x_read, x_rest) = enclose(y, shape[0]), enclose(x, shape[1])
    values = np.asarray(mask[(y_read, x_read) if rows is None else (rows, y_read, x_read)])
    usable = usable_pixels(values, layout.mask_good)[(..., y_rest, x_rest)]
    block[np.broadcast_to(~usable, block.shape)] = np.nan

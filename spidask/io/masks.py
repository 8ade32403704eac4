"""Masks that lie beside the frames, one for a file or one for each frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spidask.frames.mask import usable_pixels
from spidask.io.layout import Layout
from spidask.io.stack import UNDECODABLE, Source, enclose


def hide_pixels(
    block: NDArray[Any], mask: Source, key: tuple[Any, ...], layout: Layout, shape: tuple[int, int]
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
    layout : Layout
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
    (y_read, y_rest), (x_read, x_rest) = enclose(y, shape[0]), enclose(x, shape[1])
    frames = (rows,) if len(mask.shape) == 3 else ()
    try:
        values = np.asarray(mask[(*frames, y_read, x_read)])
    except UNDECODABLE:
        block[...] = np.nan
        return
    usable = usable_pixels(values, layout.mask_good)[(..., y_rest, x_rest)]
    block[np.broadcast_to(~usable, block.shape)] = np.nan

"""Where on the detector a pattern's signal lies."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import poisson

OUTER = 0.1
"""Share of the pixels, those furthest from the beam, that hold nothing but background."""
CHANCE = 1e-6
"""A ring holds signal if background alone gives so many photons with less than this chance."""


def signal_boxes(
    patterns: npt.NDArray[np.float32], beam: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """Find the box around the signal of each pattern.

    Parameters
    ----------
    patterns : numpy.ndarray
        Shape (frame, y, x), float32, photons; NaN where a pixel is missing.
    beam : tuple of float
        Row and column of the beam, in pixels of the region; it may lie outside.

    Returns
    -------
    numpy.ndarray
        Shape (frame, 4), float32: centre x, centre y, width and height, relative to the region; NaN
        where no ring stands above the background.

    Notes
    -----
    Ignatenko 2021 does not say what its boxes enclose. Here it is the disc around the beam, cut by
    the region's edges, up to the last ring of one pixel's width whose photons stand above the
    background: a Poisson mean two standard deviations above that of the outermost pixels.
    """
    n_frames, rows, columns = patterns.shape
    y, x = np.indices((rows, columns))
    ring = np.hypot(y - beam[0], x - beam[1]).astype(int)
    order = np.unique(ring)
    place = np.searchsorted(order, ring).ravel()
    flat = patterns.reshape(n_frames, -1)
    there = np.isfinite(flat)
    photons = _sum_rings(np.where(there, flat, 0), place, len(order))
    n_pixels = _sum_rings(there, place, len(order))
    outer = np.cumsum(np.bincount(place)[::-1])[::-1] <= OUTER * rows * columns
    outer[-1] = True
    counted, n_outer = photons[:, outer].sum(1), n_pixels[:, outer].sum(1)
    level = (counted + 2 * np.sqrt(counted + 1)) / np.maximum(n_outer, 1)
    lit = poisson.sf(photons - 1, n_pixels * level[:, None]) < CHANCE
    last = len(order) - 1 - np.argmax(lit[:, ::-1], axis=1)
    radius = np.where(lit.any(1), order[last] + 1.0, np.nan)
    low_x, high_x = _cut(beam[1], radius, columns)
    low_y, high_y = _cut(beam[0], radius, rows)
    boxes = [(low_x + high_x) / 2, (low_y + high_y) / 2, high_x - low_x, high_y - low_y]
    return np.stack(boxes, 1).astype(np.float32)


def _sum_rings(
    values: npt.NDArray[np.generic], place: npt.NDArray[np.intp], n_rings: int
) -> npt.NDArray[np.float64]:
    return np.stack([np.bincount(place, one, n_rings) for one in values])


def _cut(
    centre: float, radius: npt.NDArray[np.float64], size: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Edges of the disc along an axis, from 0 at the region's first to 1 at its last edge."""
    middle = (centre + 0.5) / size
    return np.clip(middle - radius / size, 0, 1), np.clip(middle + radius / size, 0, 1)

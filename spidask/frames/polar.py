"""Patterns in rings and angles around the beam."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp


@dataclass(frozen=True)
class PolarGrid:
    """Which pixels make which cell.

    Attributes
    ----------
    cells : scipy.sparse.csr_array
        Shape (ring * angle, y * x), float32: 1 where a pixel's centre lies in a cell.
    n_rings, n_angles : int
        Cells from the inside outward, and around.
    """

    cells: sp.csr_array
    n_rings: int
    n_angles: int


def polar_grid(
    shape: tuple[int, int],
    beam: tuple[float, float],
    radii_px: tuple[float, float],
    n_rings: int,
    n_angles: int,
) -> PolarGrid:
    """Divide a region into rings of equal width, and these into equal angles.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of the region.
    beam : tuple of float
        Row and column of the beam, in pixels of the region; it may lie outside.
    radii_px : tuple of float
        Inner and outer radius, pixels.
    n_rings, n_angles : int
        How many of either.

    Returns
    -------
    PolarGrid
        Angle 0 begins at +x, and angles grow toward +y.
    """
    y, x = np.indices(shape)
    radius = np.hypot(y - beam[0], x - beam[1])
    angle = np.arctan2(y - beam[0], x - beam[1]) % (2 * np.pi)
    low, high = radii_px
    ring = np.floor((radius - low) / (high - low) * n_rings).astype(int)
    sector = np.floor(angle / (2 * np.pi) * n_angles).astype(int) % n_angles
    inside = (ring >= 0) & (ring < n_rings)
    pixels = np.flatnonzero(inside)
    cells = (ring * n_angles + sector)[inside]
    size = (n_rings * n_angles, shape[0] * shape[1])
    ones = np.ones(len(pixels), np.float32)
    return PolarGrid(sp.csr_array((ones, (cells, pixels)), size), n_rings, n_angles)


def to_polar(
    patterns: npt.NDArray[np.float32], grid: PolarGrid
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Sum photons over the cells of a polar grid.

    Parameters
    ----------
    patterns : numpy.ndarray
        Shape (frame, y, x), float32, photons; NaN where a pixel is missing.
    grid : PolarGrid
        From `polar_grid`.

    Returns
    -------
    photons : numpy.ndarray
        Shape (frame, ring, angle), float32.
    n_pixels : numpy.ndarray
        Pixels that were there, same shape and dtype; 0 where a cell saw nothing.
    """
    flat = patterns.reshape(len(patterns), -1)
    there = np.isfinite(flat)
    shape = (len(patterns), grid.n_rings, grid.n_angles)
    photons = grid.cells @ np.where(there, flat, 0).T.astype(np.float32)
    n_pixels = grid.cells @ there.T.astype(np.float32)
    return photons.T.reshape(shape), n_pixels.T.reshape(shape)

"""An intensity between its voxels, and points that are spread evenly over a sphere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d, map_coordinates, spline_filter

from spidask.errors import DataError

Floats = npt.NDArray[np.float64]

SMOOTH = 3.0
"""Standard deviation by which the logarithm of the radial mean is smoothed, voxels."""


@dataclass(frozen=True)
class Flat:
    """An intensity over a smooth envelope of its radial mean.

    Attributes
    ----------
    values : numpy.ndarray
        Shape (n, n, n), float64; 1 where it is not known.
    known : numpy.ndarray
        Where it is known, same shape, bool.
    envelope : numpy.ndarray
        For each radius from 0 on, voxels, float64.
    """

    values: Floats
    known: npt.NDArray[np.bool_]
    envelope: Floats

    @cached_property
    def _spline(self) -> Floats:
        return np.asarray(spline_filter(self.values))

    def envelope_at(self, radius: Floats) -> Floats:
        """Interpolate the envelope.

        Parameters
        ----------
        radius : numpy.ndarray
            Any shape, float64, voxels.

        Returns
        -------
        numpy.ndarray
            Same shape, float64.
        """
        return np.exp(np.interp(radius, np.arange(len(self.envelope)), np.log(self.envelope)))

    def at(self, places: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Interpolate by cubic splines.

        Parameters
        ----------
        places : numpy.ndarray
            Places relative to the middle voxel, shape (..., 3), float64, voxels.

        Returns
        -------
        values : numpy.ndarray
            Shape (...), float64.
        known : numpy.ndarray
            Where all eight voxels around are known, shape (...), bool.
        """
        known = interpolate(self.known.astype(float), places, 1) > 0.999
        return interpolate(self._spline, places, 3), known


def flatten(intensity: Floats) -> Flat:
    """Divide an intensity by a smooth envelope of its radial mean.

    Parameters
    ----------
    intensity : numpy.ndarray
        Shape (n, n, n), float64; NaN where it is not known.

    Returns
    -------
    Flat
        Intensity falls by orders of magnitude from shell to shell, which no spline bears. Fringes
        stay in it: the minima of the mean itself are as steep.
    """
    known = np.isfinite(intensity)
    squares = (np.arange(len(intensity)) - len(intensity) // 2) ** 2
    distance = np.sqrt(squares[:, None, None] + squares[:, None] + squares)
    radii = np.rint(distance).astype(np.int64)
    total = np.bincount(radii[known], np.abs(intensity[known]), radii.max() + 1)
    mean = total / np.maximum(np.bincount(radii[known], minlength=len(total)), 1)
    lit = np.flatnonzero(mean > 0)
    level = np.interp(np.arange(len(mean)), lit, np.log(mean[lit])) if len(lit) else 0 * mean
    flat = Flat(intensity, known, np.exp(gaussian_filter1d(level, SMOOTH, mode="nearest")))
    values = np.where(known, intensity, 0.0) / flat.envelope_at(distance)
    return replace(flat, values=np.where(known, values, 1.0))


def turn_hand(intensity: Floats, inverted: bool) -> Floats:
    """Invert an intensity at the origin, if asked to.

    Parameters
    ----------
    intensity : numpy.ndarray
        Shape (n, n, n), n odd, float64.
    inverted : bool
        Whether to.

    Returns
    -------
    numpy.ndarray
        Same shape, float64, a view.
    """
    return intensity[::-1, ::-1, ::-1] if inverted else intensity


def interpolate(values: Floats, places: Floats, order: Literal[1, 3]) -> Floats:
    """Interpolate between voxels.

    Parameters
    ----------
    values : numpy.ndarray
        Shape (n, n, n), float64; for order 3 what `scipy.ndimage.spline_filter` gives.
    places : numpy.ndarray
        Places relative to the middle voxel, shape (..., 3), float64, voxels.
    order : {1, 3}
        1 (linear) or 3 (cubic splines).

    Returns
    -------
    numpy.ndarray
        Shape (...), float64.
    """
    at = np.moveaxis(places, -1, 0) + len(values) // 2
    return np.asarray(map_coordinates(values, at, order=order, mode="nearest", prefilter=False))


def sphere_points(n: int) -> Floats:
    """Spread points evenly over the unit sphere, by a spiral of the golden angle.

    Parameters
    ----------
    n : int
        Number of points.

    Returns
    -------
    numpy.ndarray
        Shape (n, 3), float64.
    """
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(n)
    across = np.sqrt(1 - z**2)
    return np.stack([across * np.cos(angle), across * np.sin(angle), z], axis=1)


def refuse_unsuitable(intensity: Floats, shells: tuple[int, int]) -> None:
    """Refuse what is no intensity, or has no such shells.

    Parameters
    ----------
    intensity : numpy.ndarray
        Should be of shape (n, n, n), n odd.
    shells : tuple of int
        First and last radius, voxels.

    Raises
    ------
    DataError
        If the intensity is no odd cube, or the shells are not within it.
    """
    if intensity.ndim != 3 or len(set(intensity.shape)) > 1 or len(intensity) % 2 == 0:
        raise DataError(
            f"an intensity of {intensity.shape} voxels; expected three axes of one odd length"
        )
    if not 1 <= shells[0] <= shells[1] <= len(intensity) // 2:
        raise DataError(
            f"shells {shells[0]} to {shells[1]} of an intensity of {len(intensity)} voxels; give "
            f"radii from 1 to {len(intensity) // 2}"
        )

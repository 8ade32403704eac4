"""Where a pixel looks: momentum transfer, solid angle, polarization."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

PLANCK_TIMES_LIGHT_EV_M = 1.239841984e-6
"""h c in eV m (CODATA 2018)."""


def wavelength(photon_energy: float) -> float:
    """Give the wavelength of a photon.

    Parameters
    ----------
    photon_energy : float
        Photon energy in eV.

    Returns
    -------
    float
        Wavelength in m.

    Examples
    --------
    >>> round(wavelength(1700.7) * 1e9, 3)
    0.729
    """
    return PLANCK_TIMES_LIGHT_EV_M / photon_energy


def pixel_positions(
    rows: NDArray[Any], columns: NDArray[Any], beam_centre: tuple[float, float], pixel_size: float
) -> tuple[Float64, Float64]:
    """Give the positions of a region's pixels relative to the beam.

    Parameters
    ----------
    rows : numpy.ndarray
        Row numbers of the full frame, shape (y,).
    columns : numpy.ndarray
        Column numbers of the full frame, shape (x,).
    beam_centre : tuple of float
        Row and column of the beam; pixel centres are integers.
    pixel_size : float
        Edge of a pixel in m.

    Returns
    -------
    y, x : numpy.ndarray
        Distances from the beam along each axis, both of shape (y, x), float64, m.

    Examples
    --------
    >>> y, x = pixel_positions(np.arange(2), np.arange(1), (-3.0, 0.5), 2.0)
    >>> y.tolist(), x.tolist()
    ([[6.0], [8.0]], [[-1.0], [-1.0]])
    """
    y = (np.asarray(rows, float) - beam_centre[0]) * pixel_size
    x = (np.asarray(columns, float) - beam_centre[1]) * pixel_size
    return np.broadcast_arrays(y[:, None], x[None, :])  # type: ignore[return-value]


def momentum_transfer(y: Float64, x: Float64, distance: float, wavelength: float) -> Float64:
    """Give the scattering vector of each pixel on the Ewald sphere.

    Parameters
    ----------
    y : numpy.ndarray
        Distance from the beam along the rows, shape (y, x), float64, m.
    x : numpy.ndarray
        Distance from the beam along the columns, shape (y, x), float64, m.
    distance : float
        Sample to detector, m.
    wavelength : float
        Wavelength, m.

    Returns
    -------
    numpy.ndarray
        (qx, qy, qz), shape (3, y, x), float64, 1/m.

    Notes
    -----
    q = k (x/r, y/r, distance/r - 1) with r^2 = x^2 + y^2 + distance^2 and k = 2 pi / wavelength:
    the difference of the outgoing and the incoming wave vector. Dragonfly's detector file holds
    the same without the factor 2 pi, in units of its voxels.

    Examples
    --------
    Straight ahead nothing is transferred, at a right angle sqrt(2) k:

    >>> q = momentum_transfer(np.zeros((1, 2)), np.array([[0.0, 1e9]]), 1.0, 2 * np.pi)
    >>> np.linalg.norm(q, axis=0).round(6).tolist()
    [[0.0, 1.414214]]
    """
    r = np.sqrt(x**2 + y**2 + distance**2)
    return np.stack([x / r, y / r, distance / r - 1]) * (2 * np.pi / wavelength)


def solid_angle(y: Float64, x: Float64, distance: float, pixel_size: float) -> Float64:
    """Give the solid angle of each pixel of a flat detector.

    Parameters
    ----------
    y : numpy.ndarray
        Distance from the beam along the rows, shape (y, x), float64, m.
    x : numpy.ndarray
        Distance from the beam along the columns, shape (y, x), float64, m.
    distance : float
        Sample to detector, m.
    pixel_size : float
        Edge of a pixel, m.

    Returns
    -------
    numpy.ndarray
        pixel_size^2 distance / r^3, shape (y, x), float64, sr.

    Examples
    --------
    >>> solid_angle(np.array([[0.0, 3.0]]), np.array([[0.0, 0.0]]), 4.0, 1.0).tolist()
    [[0.0625, 0.032]]
    """
    return pixel_size**2 * distance / (x**2 + y**2 + distance**2) ** 1.5


def polarization(y: Float64, x: Float64, distance: float) -> Float64:
    """Give the polarization factor for a beam polarized along x.

    Parameters
    ----------
    y : numpy.ndarray
        Distance from the beam along the rows, shape (y, x), float64, m.
    x : numpy.ndarray
        Distance from the beam along the columns, shape (y, x), float64, m.
    distance : float
        Sample to detector, m.

    Returns
    -------
    numpy.ndarray
        1 - x^2 / r^2, shape (y, x), float64.

    Examples
    --------
    >>> polarization(np.array([[3.0, 0.0]]), np.array([[0.0, 3.0]]), 4.0).tolist()
    [[1.0, 0.64]]
    """
    return 1 - x**2 / (x**2 + y**2 + distance**2)

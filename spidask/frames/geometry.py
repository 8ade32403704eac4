"""Where a pixel looks: momentum transfer, solid angle, polarization, and where the beam is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from spidask.errors import DataError

Float64 = NDArray[np.float64]
Centre = tuple[float, float]
"""Row and column of the full frame."""

PLANCK_TIMES_LIGHT_EV_M = 1.239841984e-6
"""h c in eV m (CODATA 2018)."""

PLAUSIBLE_SHARE = 0.2
"""A photon energy that differs by more from the expected one is a fault of the measurement: the
energies of a free-electron laser vary by about one percent."""

SECTORS = 8
"""Sectors that are left out in turn for the uncertainty of the beam centre."""

RING_WIDTH_PX = 1.0
"""Distance of the radii between which a radial profile is interpolated."""

OUTLIER_SIGMAS = 4.0
"""Pixels that deviate by more from the rest of their ring stay out of the beam centre."""


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


def energy_ratio(photon_energy: NDArray[Any], expected: float) -> Float64:
    """Compare measured photon energies with the one that is expected.

    Parameters
    ----------
    photon_energy : numpy.ndarray
        Measured, shape (frame,), any float dtype, eV; NaN where there is none.
    expected : float
        Of the beamtime, eV.

    Returns
    -------
    numpy.ndarray
        Measured over expected, shape (frame,), float64; 1 where nothing was measured, and where
        it differs by more than `PLAUSIBLE_SHARE`.

    Examples
    --------
    >>> energy_ratio(np.array([1020.0, np.nan, 1500.0, 1000.0]), 1000.0).tolist()
    [1.02, 1.0, 1.0, 1.0]
    """
    ratio = np.asarray(photon_energy, float) / expected
    # The comparison is false for NaN.
    return np.where(np.abs(ratio - 1) <= PLAUSIBLE_SHARE, ratio, 1.0)


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


def find_beam_centre(
    powder: NDArray[Any],
    rows: NDArray[Any],
    columns: NDArray[Any],
    start: tuple[float, float],
    reach: float = 20.0,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Find the beam as the centre about which a powder pattern is most symmetric.

    Parameters
    ----------
    powder : numpy.ndarray
        Mean pattern of many hits, shape (y, x), float, photons; NaN is missing. Half a pattern
        does, and the beam may lie beside the panel.
    rows : numpy.ndarray
        Row numbers of the full frame, shape (y,).
    columns : numpy.ndarray
        Column numbers of the full frame, shape (x,).
    start : tuple of float
        Row and column to begin with.
    reach : float
        How far from `start` the beam is looked for along each axis, px.

    Returns
    -------
    centre : tuple of float
        Row and column of the beam in the full frame; pixel centres are integers.
    uncertainty : tuple of float
        Standard deviations of both, px, from leaving out one of 8 sectors after the other.

    Raises
    ------
    DataError
        If fewer than 100 pixels hold photons, or the beam is not within `reach`.

    Notes
    -----
    Minimizes the sum of sqrt(I) (log I - mean of the ring)^2 over all pixels: relative deviations,
    which the bright inner rings do not decide alone. Flares and hot pixels are left out after a
    first round. First on a grid of a quarter of `reach`, then by the simplex of Nelder and Mead,
    Comput. J. 7 (1965) 308.

    Examples
    --------
    >>> rows, columns = np.arange(60), np.arange(100)
    >>> r2 = (rows[:, None] + 4.0) ** 2 + (columns - 51.5) ** 2
    >>> centre, _ = find_beam_centre(1e4 / (1 + r2 / 400), rows, columns, (0.0, 48.0))
    >>> np.round(centre, 1).tolist()
    [-4.0, 51.5]
    """
    y, x, signal = _lit_positions(powder, rows, columns)
    grid = np.linspace(-reach, reach, 9)
    trials = [(start[0] + a, start[1] + b) for a in grid for b in grid]
    best = min(trials, key=lambda centre: _asymmetry(centre, y, x, signal))
    rough = _sharpen(best, reach / 4, y, x, signal)
    deviation = _deviations(rough, y, x, signal)
    usual = np.abs(deviation) <= OUTLIER_SIGMAS * 1.4826 * np.median(np.abs(deviation))
    y, x, signal = y[usual], x[usual], signal[usual]
    centre = _sharpen(rough, 1.0, y, x, signal)
    if max(abs(centre[0] - start[0]), abs(centre[1] - start[1])) > 1.25 * reach:
        raise DataError(
            f"no beam centre within {reach:g} px of {start}: the best is {centre}; "
            "the powder pattern may hold no hits, or start nearer to the beam",
            centre=centre,
        )
    return centre, _jackknife(centre, y, x, signal)


def suggest_region(
    beam_centre: tuple[float, float], shape: tuple[int, int], reach: float
) -> tuple[int, int, int, int]:
    """Suggest a region of interest around the beam.

    Parameters
    ----------
    beam_centre : tuple of float
        Row and column of the beam in the full frame.
    shape : tuple of int
        Rows and columns of the frame.
    reach : float
        Distance from the beam that the region should hold, px.

    Returns
    -------
    tuple of int
        First row, row after the last, first column, column after the last.

    Raises
    ------
    DataError
        If no pixel of the frame is that near to the beam.

    Examples
    --------
    >>> suggest_region((-3.0, 511.5), (512, 1024), 120.0)
    (0, 118, 392, 632)
    """
    edges = []
    for centre, size in zip(beam_centre, shape, strict=True):
        first = max(0, int(np.ceil(centre - reach)))
        last = min(size, int(np.floor(centre + reach)) + 1)
        edges += [first, last]
    if edges[0] >= edges[1] or edges[2] >= edges[3]:
        raise DataError(
            f"the beam at {beam_centre} is further than {reach:g} px from the frame {shape}; "
            "correct geometry.beam_centre_y_px and geometry.beam_centre_x_px",
            beam_centre=beam_centre,
        )
    return edges[0], edges[1], edges[2], edges[3]


def _lit_positions(
    powder: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any]
) -> tuple[Float64, Float64, Float64]:
    image = np.asarray(powder, float)
    with np.errstate(invalid="ignore"):
        lit = np.isfinite(image) & (image > 0)
    if lit.sum() < 100:
        raise DataError(f"{lit.sum()} pixels hold photons, expected at least 100 for a beam centre")
    y, x = np.broadcast_arrays(np.asarray(rows, float)[:, None], np.asarray(columns, float))
    return y[lit], x[lit], image[lit]


def _deviations(centre: Centre, y: Float64, x: Float64, signal: Float64) -> Float64:
    # I^(1/4) (log I - mean of the ring), the mean interpolated between radii.
    radius = np.hypot(y - centre[0], x - centre[1]) / RING_WIDTH_PX
    radius -= radius.min()
    inner = radius.astype(int)
    outer_share = radius - inner
    n = int(inner.max()) + 2
    weight, level = np.sqrt(signal), np.log(signal)

    def over_rings(values: Float64) -> Float64:
        within = np.bincount(inner, (1 - outer_share) * values, n)
        return np.asarray(within + np.bincount(inner + 1, outer_share * values, n))

    ring = over_rings(weight * level) / np.maximum(over_rings(weight), 1e-12)
    mean = ring[inner] * (1 - outer_share) + ring[inner + 1] * outer_share
    return np.asarray(np.sqrt(weight) * (level - mean))


def _asymmetry(centre: Centre, y: Float64, x: Float64, signal: Float64) -> float:
    return float((_deviations(centre, y, x, signal) ** 2).sum())


def _sharpen(start: Centre, step: float, y: Float64, x: Float64, signal: Float64) -> Centre:
    corners = [start, (start[0] + step, start[1]), (start[0], start[1] + step)]
    options: Any = {"initial_simplex": corners, "xatol": 0.005, "fatol": 0.0}

    def misfit(centre: Any) -> float:
        return _asymmetry((centre[0], centre[1]), y, x, signal)

    found = minimize(misfit, list(start), method="Nelder-Mead", options=options)
    return float(found.x[0]), float(found.x[1])


def _jackknife(centre: Centre, y: Float64, x: Float64, signal: Float64) -> Centre:
    # Counting noise alone promises hundredths of a pixel; what is not round decides.
    angle = np.arctan2(y - centre[0], x - centre[1])
    sector = np.searchsorted(np.quantile(angle, np.arange(1, SECTORS) / SECTORS), angle)
    parts = [sector != k for k in range(SECTORS)]
    found = np.array([_sharpen(centre, 0.5, y[p], x[p], signal[p]) for p in parts])
    spread = np.sqrt((SECTORS - 1) * found.var(axis=0))
    return float(spread[0]), float(spread[1])

"""Coherent scattering of homogeneous bodies and density maps onto a flat detector."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spidask.config import Geometry
from spidask.frames.geometry import momentum_transfer, pixel_positions, wavelength
from spidask.simulation.formfactor import amplitude, cos_sin
from spidask.simulation.particle import (
    ELECTRON_RADIUS_NM,
    Particle,
    wavelength_nm,
)

Floats = NDArray[np.float64]


# Taps of the interpolation, and the largest phase per coarse step that it still carries to
# better than 3e-5 (see `interpolation_weights`).
TAPS = 10
PHASE_PER_STEP = 1.3


def momentum(geometry: Geometry, y: Floats, x: Floats) -> Floats:
    """Momentum transfer of detector positions on the curved Ewald sphere.

    Parameters
    ----------
    geometry : Geometry
        Photon energy, distance, pixel size and beam centre.
    y, x : numpy.ndarray
        Rows, shape (n,), and columns, shape (m,), of the full frame; pixel centres are integers.

    Returns
    -------
    numpy.ndarray
        Shape (n m, 3), components x, y, z, float64, 1/nm; q = k (s - s0) with the beam along z.
    """
    centre = (geometry.beam_centre_y_px, geometry.beam_centre_x_px)
    places = pixel_positions(y, x, centre, geometry.pixel_size_um * 1e-6)
    q = momentum_transfer(
        *places, geometry.detector_distance_m, wavelength(geometry.photon_energy_ev)
    )
    return np.ascontiguousarray(q.reshape(3, -1).T) * 1e-9


def amplitude_map(
    particle: Particle, geometry: Geometry, rows: range, columns: range
) -> NDArray[np.complex64]:
    """Scattering amplitude of a particle in every pixel of a region.

    The amplitude of a particle of radius R varies in the detector plane no faster than
    exp(i k R x / distance), so it is computed on a coarse grid and interpolated.

    Parameters
    ----------
    particle : Particle
        The particle at its own origin.
    geometry : Geometry
        Photon energy, distance, pixel size and beam centre.
    rows, columns : range
        Pixels of the full frame, with step 1.

    Returns
    -------
    numpy.ndarray
        Shape (rows, columns), complex64, electrons.
    """
    k = 2 * np.pi / wavelength_nm(geometry.photon_energy_ev)
    per_pixel = particle.radius * k * geometry.pixel_size_um * 1e-6 / geometry.detector_distance_m
    step = max(1, min(16, int(PHASE_PER_STEP / per_pixel)))
    y, x = (_coarse(side, step) for side in (rows, columns))
    coarse = amplitude(particle, momentum(geometry, y, x)).reshape(len(y), len(x))
    weights = interpolation_weights(step, PHASE_PER_STEP)
    return np.asarray(_interpolate(coarse.astype(np.complex64), weights, len(rows), len(columns)))


def intensity(
    amplitudes: Sequence[NDArray[np.complex64]],
    positions: Floats,
    fluences: Floats,
    geometry: Geometry,
    rows: range,
    columns: range,
) -> NDArray[np.float32]:
    """Photons expected in every pixel from particles that scatter coherently.

    Parameters
    ----------
    amplitudes : sequence of numpy.ndarray
        One map of `amplitude_map` for each particle, electrons.
    positions : numpy.ndarray
        Where the particles are, shape (particle, 3), x, y, z, float64, nm.
    fluences : numpy.ndarray
        Photons per nm^2 at each particle, shape (particle,), float64.
    geometry : Geometry
        Photon energy, distance, pixel size and beam centre.
    rows, columns : range
        Pixels of the full frame.

    Returns
    -------
    numpy.ndarray
        Shape (rows, columns), float32, photons.

    Notes
    -----
    fluence r_e^2 |F|^2 P dOmega with P = 1 - (x/r)^2 for horizontal polarization and
    dOmega = p^2 d / r^3 of a flat pixel. Interference of two particles is averaged over the
    pixel: its cross term is multiplied by the sinc of half the phase across the pixel along
    x and along y, so fringes finer than a pixel vanish as they do on a detector.
    """
    out = np.zeros((len(rows), len(columns)), np.float32)
    offset = (rows[0] - geometry.beam_centre_y_px, columns[0] - geometry.beam_centre_x_px)
    angle = geometry.pixel_size_um * 1e-6 / geometry.detector_distance_m
    length = wavelength_nm(geometry.photon_energy_ev)
    for i, first in enumerate(amplitudes):
        _add_square(first, np.float32(fluences[i]), out)
        for j in range(i):
            apart = (positions[i] - positions[j]) / length
            weight = 2 * np.sqrt(fluences[i] * fluences[j])
            _add_interference(first, amplitudes[j], weight, apart, offset, angle, out)
    _to_photons(out, offset, angle, ELECTRON_RADIUS_NM**2)
    return out


@lru_cache(maxsize=32)
def interpolation_weights(step: int, band: float) -> NDArray[np.float32]:
    """Weights that interpolate a band-limited signal between coarse samples.

    Parameters
    ----------
    step : int
        Fine samples from one coarse sample to the next.
    band : float
        Largest frequency of the signal, radians per coarse sample.

    Returns
    -------
    numpy.ndarray
        Shape (step, TAPS), float32; row t holds the weights of the position t / step after
        the coarse sample TAPS / 2 - 1.

    Notes
    -----
    Least squares over all exponentials of |frequency| <= band.
    """
    frequency = np.linspace(-band, band, 101)
    taps = np.arange(TAPS) - (TAPS // 2 - 1)
    basis = np.exp(1j * np.outer(frequency, taps))
    wanted = np.exp(1j * np.outer(frequency, np.arange(step) / step))
    real = np.concatenate([basis.real, basis.imag]), np.concatenate([wanted.real, wanted.imag])
    solution = np.linalg.lstsq(real[0], real[1], rcond=1e-9)[0]
    return np.ascontiguousarray(solution.T.astype(np.float32))


def _coarse(side: range, step: int) -> Floats:
    n = (len(side) - 1) // step + TAPS
    return side[0] + step * (np.arange(n, dtype=np.float64) - (TAPS // 2 - 1))


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _interpolate(coarse, weights, n_rows, n_columns):  # type: ignore[no-untyped-def]
    step, taps = weights.shape
    n_lines = coarse.shape[1]
    n_steps = n_lines - taps + 1
    out = np.empty((n_rows, n_columns), np.complex64)
    line = np.empty((2, n_lines), np.float32)
    fine = np.empty((2, n_steps), np.float32)
    for y in range(n_rows):
        top, phase = y // step, y % step
        line[:] = 0
        for t in range(taps):
            for x in range(n_lines):
                line[0, x] += weights[phase, t] * coarse[top + t, x].real
                line[1, x] += weights[phase, t] * coarse[top + t, x].imag
        for phase in range(step):
            fine[:] = 0
            for part in range(2):
                for t in range(taps):
                    for x in range(n_steps):
                        fine[part, x] += weights[phase, t] * line[part, x + t]
            for x in range((n_columns - phase + step - 1) // step):
                out[y, x * step + phase] = complex(fine[0, x], fine[1, x])
    return out


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _add_square(amplitudes, weight, out):  # type: ignore[no-untyped-def]
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            a = amplitudes[y, x]
            out[y, x] += weight * (a.real * a.real + a.imag * a.imag)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _to_photons(out, offset, angle, factor):  # type: ignore[no-untyped-def]
    for y in range(out.shape[0]):
        v = (y + offset[0]) * angle
        for x in range(out.shape[1]):
            u = (x + offset[1]) * angle
            r2 = 1 + u * u + v * v
            solid_angle = angle * angle / (r2 * np.sqrt(r2))
            out[y, x] *= factor * (1 - u * u / r2) * solid_angle


@njit(inline="always")
def _sinc(t):  # type: ignore[no-untyped-def]
    """Mean of cos over t turns, sin(pi t) / (pi t)."""
    near = abs(t) < 1e-4
    safe = 1.0 if near else np.pi * t
    return 1.0 if near else cos_sin(0.5 * t)[1] / safe


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _add_interference(first, second, weight, apart, offset, angle, out):  # type: ignore[no-untyped-def]
    ax, ay, az = apart
    for y in range(out.shape[0]):
        v = (y + offset[0]) * angle
        for x in range(out.shape[1]):
            u = (x + offset[1]) * angle
            r = np.sqrt(1 + u * u + v * v)
            path = (ax * u + ay * v + az) / r
            cos, sin = cos_sin(path - az)
            seen = _sinc((ax - path * u / r) / r * angle) * _sinc((ay - path * v / r) / r * angle)
            a, b = first[y, x], second[y, x]
            real = a.real * b.real + a.imag * b.imag
            imag = a.imag * b.real - a.real * b.imag
            out[y, x] += weight * seen * (real * cos + imag * sin)

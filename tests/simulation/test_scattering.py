"""Photons in pixels against analytic scattering."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import sici

from spidask.config import Geometry
from spidask.frames.geometry import pixel_positions, polarization, solid_angle
from spidask.simulation.formfactor import amplitude
from spidask.simulation.particle import (
    ELECTRON_RADIUS_NM,
    Particle,
    electron_density,
    ellipsoid,
    icosahedron,
    wavelength_nm,
)
from spidask.simulation.scattering import amplitude_map, intensity, momentum

GEOMETRY = Geometry()
ENERGY = GEOMETRY.photon_energy_ev
FRAME = range(512), range(1024)
NEAR = range(123), range(391, 631)


def expected_photons(particle: Particle, fluence: float, geometry: Geometry) -> np.ndarray:
    """Photons of a particle on the whole frame, every pixel for itself."""
    centre = (geometry.beam_centre_y_px, geometry.beam_centre_x_px)
    pixel, distance = geometry.pixel_size_um * 1e-6, geometry.detector_distance_m
    rows, columns = (np.array(side, float) for side in FRAME)
    y, x = pixel_positions(rows, columns, centre, pixel)
    factor = polarization(y, x, distance) * solid_angle(y, x, distance, pixel)
    amplitudes = amplitude(particle, momentum(geometry, rows, columns)).reshape(factor.shape)
    return fluence * ELECTRON_RADIUS_NM**2 * factor * np.abs(amplitudes) ** 2


def one_particle(particle: Particle, fluence: float, geometry: Geometry) -> np.ndarray:
    maps = [amplitude_map(particle, geometry, *FRAME)]
    return intensity(maps, np.zeros((1, 3)), np.array([fluence]), geometry, *FRAME)


@pytest.mark.parametrize("centre", [(-3.0, 511.5), (255.3, 400.1)])
@pytest.mark.parametrize("diameter", [30.0, 68.0, 110.0])
def test_a_sphere_matches_its_form_factor(diameter: float, centre: tuple[float, float]) -> None:
    geometry = GEOMETRY.model_copy(
        update={"beam_centre_y_px": centre[0], "beam_centre_x_px": centre[1]}
    )
    sphere = ellipsoid(diameter, electron_density("protein", ENERGY))
    found = one_particle(sphere, 1e4, geometry)
    expected = expected_photons(sphere, 1e4, geometry)
    bright = expected > 1e-4 * expected.max()
    assert bright.sum() > 300
    np.testing.assert_allclose(found[bright], expected[bright], rtol=0.01)


def test_an_icosahedron_is_interpolated_well() -> None:
    body = icosahedron(84, 450 + 0j)
    particle = Particle((body,), "test", 84, 0.5911 * 84)
    found = one_particle(particle, 1e4, GEOMETRY)
    expected = expected_photons(particle, 1e4, GEOMETRY)
    bright = expected > 1e-4 * expected.max()
    np.testing.assert_allclose(found[bright], expected[bright], rtol=0.005)


def test_a_sphere_scatters_its_cross_section() -> None:
    # Rayleigh-Gans: van de Hulst, Light Scattering by Small Particles (1957), section 7.22.
    density = electron_density("protein", ENERGY).real
    a, k = 15.0, 2 * np.pi / wavelength_nm(ENERGY)
    x = k * a
    delta = density * ELECTRON_RADIUS_NM * wavelength_nm(ENERGY) ** 2 / (2 * np.pi)
    efficiency = delta**2 * (
        2.5
        + 2 * x**2
        - np.sin(4 * x) / (4 * x)
        - 7 / (16 * x**2) * (1 - np.cos(4 * x))
        + (1 / (2 * x**2) - 2) * (np.euler_gamma + np.log(4 * x) - sici(4 * x)[1])
    )
    nodes, weights = np.polynomial.legendre.leggauss(4000)
    azimuth = np.arange(4) * np.pi / 4 + 0.1
    cos = nodes[:, None] + 0 * azimuth
    sin = np.sqrt(1 - cos**2)
    direction = np.stack([sin * np.cos(azimuth), sin * np.sin(azimuth), cos - 1], axis=-1)
    amplitudes = amplitude(ellipsoid(2 * a, density + 0j), (k * direction).reshape(-1, 3))
    polarized = 1 - direction[..., 0] ** 2
    seen = ELECTRON_RADIUS_NM**2 * np.abs(amplitudes.reshape(cos.shape)) ** 2 * polarized
    total = np.sum(seen.mean(axis=1) * weights) * 2 * np.pi
    assert total == pytest.approx(efficiency * np.pi * a**2, rel=1e-6)


def test_refraction_gives_the_electrons() -> None:
    # Far from absorption edges, protein of 1.35 g/cm^3 holds 430 electrons per nm^3 (0.43 per
    # cubic angstrom), oxygen's and carbon's edges add a few per cent.
    density = electron_density("protein", 20_000.0)
    assert density.real == pytest.approx(433, rel=0.02)
    assert density.imag < 0


def two_spheres(apart: list[float], particle: Particle | None = None) -> np.ndarray:
    sphere = particle or ellipsoid(10, 400 + 0j)
    maps = [amplitude_map(sphere, GEOMETRY, *NEAR)] * 2
    positions = np.array([[0.0, 0.0, 0.0], apart])
    return intensity(maps, positions, np.ones(2), GEOMETRY, *NEAR)


def one_sphere() -> np.ndarray:
    maps = [amplitude_map(ellipsoid(10, 400 + 0j), GEOMETRY, *NEAR)]
    return intensity(maps, np.zeros((1, 3)), np.ones(1), GEOMETRY, *NEAR)


def test_two_particles_make_fringes_of_the_right_period() -> None:
    # wavelength x distance / (separation x pixel) = 0.729 nm x 0.130 m / (100 nm x 75 um) = 12.6
    fringes = (two_spheres([100.0, 0.0, 0.0]) / one_sphere())[30]
    columns = np.array(NEAR[1])
    period = wavelength_nm(ENERGY) * 0.130 / (100 * 75e-6)
    assert period == pytest.approx(12.636, abs=1e-3)
    u, v = (columns - 511.5) * 75e-6 / 0.130, (30 + 3) * 75e-6 / 0.130
    phase = 2 * np.pi * 100 / wavelength_nm(ENERGY) * u / np.sqrt(1 + u**2 + v**2)
    visible = np.sinc(1 / period)
    np.testing.assert_allclose(fringes, 2 + 2 * visible * np.cos(phase), rtol=2e-3, atol=2e-3)


def test_fringes_finer_than_a_pixel_vanish() -> None:
    period_of_a_pixel = wavelength_nm(ENERGY) * 0.130 / 75e-6
    seen = two_spheres([period_of_a_pixel, 0.0, 0.0]) / one_sphere()
    np.testing.assert_allclose(seen[:, 100:140], 2, atol=0.01)


def test_interference_is_the_mean_over_the_pixel() -> None:
    apart = np.array([300.0, -500.0, 2000.0])
    seen = two_spheres(apart.tolist()) / one_sphere()
    y, x = 40, 77
    fine = (np.arange(40) + 0.5) / 40 - 0.5
    q = momentum(GEOMETRY, NEAR[0][y] + fine, NEAR[1][x] + fine)
    mean = 2 + 2 * np.mean(np.cos(q @ apart))
    assert seen[y, x] == pytest.approx(mean, abs=2e-3)


def test_fluences_weight_amplitudes() -> None:
    sphere = ellipsoid(10, 400 + 0j)
    maps = [amplitude_map(sphere, GEOMETRY, *NEAR)] * 2
    together = intensity(maps, np.zeros((2, 3)), np.array([4.0, 1.0]), GEOMETRY, *NEAR)
    np.testing.assert_allclose(together, (2 + 1) ** 2 * one_sphere(), rtol=1e-5)

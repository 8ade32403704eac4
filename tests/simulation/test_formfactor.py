"""Amplitudes against closed forms, brute force and symmetry."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from spidask.simulation.density import volume
from spidask.simulation.formfactor import amplitude
from spidask.simulation.particle import (
    Body,
    Particle,
    clip,
    ellipsoid,
    icosahedron,
    polyhedron,
    turn,
)

DENSITY = 400 - 20j
Q = np.random.default_rng(0).normal(0, 0.15, (200, 3))


def whole(*bodies: Body) -> Particle:
    return Particle(bodies, "test", 1.0, 1.0)


def test_a_sphere_has_its_closed_form() -> None:
    x = np.linalg.norm(Q, axis=1) * 30
    expected = DENSITY * 4 / 3 * np.pi * 30**3 * 3 * (np.sin(x) - x * np.cos(x)) / x**3
    np.testing.assert_allclose(amplitude(ellipsoid(60, DENSITY), Q), expected, rtol=1e-9)


def test_a_sphere_is_smooth_where_its_series_begins() -> None:
    lengths = np.array([0.0, 1e-9, 1e-3, 1.053e-3, 1.055e-3, 2e-3])  # 30 nm q: around 0.0316
    found = amplitude(ellipsoid(60, 1), np.outer(lengths, [0, 0, 1]))
    volume = 4 / 3 * np.pi * 30**3
    np.testing.assert_allclose(found, volume * (1 - (30 * lengths) ** 2 / 10), rtol=1e-7)


def test_a_spheroid_is_as_wide_as_its_axes() -> None:
    spheroid = ellipsoid(60, DENSITY, aspect=2.0)  # semi-axes 30 / 2^(1/3), 30 / 2^(1/3), twice
    short = 30 * 2 ** (-1 / 3)
    for direction, semi_axis in (([1, 0, 0], short), ([0, 0, 1], 2 * short)):
        q = np.outer(np.linspace(0.01, 0.5, 9), direction)
        sphere = amplitude(ellipsoid(2 * semi_axis, DENSITY), q) / semi_axis**3
        np.testing.assert_allclose(amplitude(spheroid, q) / 30**3, sphere, rtol=1e-9)


def test_a_cube_is_a_product_of_sincs() -> None:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * 20.0
    # Axes, diagonals and faces are where a polyhedron's formula divides by nothing.
    special = np.array([[0, 0, 0], [0.2, 0, 0], [0.2, 0.2, 0], [0.2, 0.2, 0.2], [1e-7, 0, 0.2]])
    q = np.concatenate([Q, special, special + 1e-5, special * 1e-3, special * 1e-2])
    expected = DENSITY * 40**3 * np.sinc(q * 20 / np.pi).prod(axis=1)
    found = amplitude(whole(polyhedron(corners, DENSITY)), q)
    np.testing.assert_allclose(found, expected, atol=1e-7 * abs(DENSITY) * 40**3)


def test_an_icosahedron_equals_its_voxels() -> None:
    body = icosahedron(60, 1 + 0j)
    n, half = 96, 36.0
    axis = (np.arange(n) + 0.5) * 2 * half / n - half
    places = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    equations = ConvexHull(body.vertices).equations
    inside = np.all(places @ equations[:, :3].T + equations[:, 3] <= 0, axis=-1)
    transform = np.fft.fftn(inside) * (2 * half / n) ** 3
    indices = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 1], [3, 1, -2], [4, 4, 0], [-5, 2, 3]])
    q = indices * 2 * np.pi / (2 * half)
    # The voxels' origin is the first voxel's centre.
    voxels = transform[tuple(indices.T)] * np.exp(-1j * q @ np.full(3, axis[0]))
    np.testing.assert_allclose(amplitude(whole(body), q), voxels, atol=2e-3 * body.volume)


def test_an_icosahedron_has_its_volume_and_sixty_rotations() -> None:
    body = icosahedron(60, 1 + 0j)
    assert body.faces.shape == (20, 3)
    assert body.edges.shape == (30, 2)
    assert body.volume == pytest.approx(np.pi / 6 * 60**3)
    found = amplitude(whole(body), np.concatenate([np.zeros((1, 3)), Q]))
    assert found[0] == pytest.approx(body.volume)
    turns = Rotation.create_group("I").as_matrix()
    assert len(turns) == 60
    for matrix in turns:
        np.testing.assert_allclose(
            amplitude(whole(body), Q @ matrix), found[1:], atol=1e-9 * body.volume
        )


def test_two_halves_make_a_whole() -> None:
    body = icosahedron(60, DENSITY)
    normal = np.array([0.6, 0.0, 0.8])
    left, right = clip(body, normal, 7.0), clip(body, -normal, -7.0)
    assert left.volume + right.volume == pytest.approx(body.volume)
    assert left.volume > right.volume
    both = amplitude(whole(left, right), Q)
    np.testing.assert_allclose(both, amplitude(whole(body), Q), atol=1e-9 * abs(DENSITY) * 1e5)


def test_a_plane_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves nothing"):
        clip(icosahedron(60, 1), np.array([0.0, 0.0, 1.0]), -60.0)


def test_turning_a_particle_turns_its_amplitude_the_other_way() -> None:
    matrix = Rotation.from_euler("xyz", [0.3, -1.0, 2.0]).as_matrix()
    shift = np.array([10.0, -20.0, 5.0])
    samples = np.random.default_rng(1).random((9, 9, 9)) + 0j
    bodies = (
        *ellipsoid(30, DENSITY, 1.7).bodies,
        clip(icosahedron(60, 5 + 1j), np.array([1.0, 0.0, 0.0]), 3.0),
        volume(samples, 2.0),
    )
    particle = whole(*bodies)
    moved = amplitude(turn(particle, matrix, shift), Q)
    expected = amplitude(particle, Q @ matrix) * np.exp(-1j * Q @ shift)
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-3)


def test_samples_scatter_like_the_sum_over_them() -> None:
    samples = np.random.default_rng(1).random((6, 5, 4)) * (3 - 1j)
    x, y, z = (np.arange(n) - n // 2 for n in samples.shape)
    places = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).reshape(-1, 3) * 0.5
    expected = np.exp(-1j * Q @ places.T) @ samples.ravel() * 0.5**3
    found = amplitude(whole(volume(samples, 0.5)), Q)
    np.testing.assert_allclose(found, expected, atol=1e-4 * abs(expected).max())

"""Shapes and materials with numbers that a person can check."""

from __future__ import annotations

import numpy as np
import pytest

from spidask.simulation.particle import (
    Ellipsoid,
    clip,
    electron_density,
    ellipsoid,
    icosahedron,
    polyhedron,
    turn,
    wavelength_nm,
)

CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)


def test_the_wavelength_of_the_experiment() -> None:
    assert wavelength_nm(1700.7) == pytest.approx(0.729, abs=1e-3)


def test_denser_matter_scatters_more() -> None:
    water, sucrose = (electron_density(name, 1700.7) for name in ("water", "sucrose"))
    # Water: 334 electrons per nm^3, a few per cent more this far above oxygen's edge.
    assert water.real == pytest.approx(334, rel=0.05)
    assert sucrose.real / water.real == pytest.approx(1.52, abs=0.02)


def test_a_cube_has_faces_edges_and_sides() -> None:
    cube = polyhedron(CUBE, 2 + 0j)
    assert cube.volume == pytest.approx(1)
    assert cube.vertices.shape == (8, 3)
    assert cube.faces.shape == (12, 3)
    assert cube.edges.shape == (18, 2)  # 12 edges, and a diagonal in each of 6 faces
    for face, sides in zip(cube.faces, cube.sides, strict=True):
        for first, second, side in zip(face, np.roll(face, -1), sides, strict=True):
            assert set(cube.edges[side]) == {first, second}


def test_faces_look_outwards() -> None:
    cube = polyhedron(CUBE, 1)
    a, b, c = (cube.vertices[cube.faces[:, i]] for i in range(3))
    outwards = np.einsum("ij,ij->i", np.cross(b - a, c - a), a - 0.5)
    assert np.all(outwards > 0)


def test_a_plane_cuts_a_cube_into_a_slab() -> None:
    slab = clip(polyhedron(CUBE, 3 + 0j), np.array([0.0, 0.0, 1.0]), 0.25)
    assert slab.volume == pytest.approx(0.25)
    assert slab.density == 3
    assert slab.vertices[:, 2].max() == pytest.approx(0.25)


def test_diameters_are_those_of_a_sphere_of_equal_volume() -> None:
    assert icosahedron(2.0, 1).volume == pytest.approx(4 / 3 * np.pi)
    body = ellipsoid(2.0, 1, aspect=0.5).bodies[0]
    assert isinstance(body, Ellipsoid)
    assert body.equatorial**2 * body.polar == pytest.approx(1)
    assert body.polar / body.equatorial == pytest.approx(0.5)


def test_turning_moves_the_axis_and_shifting_the_centre() -> None:
    quarter = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # z to x
    moved = turn(ellipsoid(2.0, 1, aspect=2.0), quarter, np.array([0.0, 5.0, 0.0]))
    body = moved.bodies[0]
    assert isinstance(body, Ellipsoid)
    np.testing.assert_allclose(body.axis, [1, 0, 0], atol=1e-15)
    np.testing.assert_allclose(body.centre, [0, 5, 0])
    assert moved.radius == pytest.approx(5 + 2 ** (2 / 3))

"""What is drawn, class by class."""

from __future__ import annotations

import numpy as np
import pytest

from spidask.config import Sample
from spidask.simulation.formfactor import amplitude
from spidask.simulation.particle import Ellipsoid, Particle, Polyhedron, ellipsoid
from spidask.simulation.scene import CIRCUMRADIUS, INRADIUS, Scene, draw_scene

KINDS = {"droplet", "sucrose", "spheroid", "coated", "broken", "cluster"}


def draw(label: str, n: int, **sample: float) -> list[Scene]:
    rng = np.random.default_rng(0)
    return [draw_scene(label, Sample(**sample), 1700.7, rng) for _ in range(n)]


def test_background_is_empty() -> None:
    (scene,) = draw("background", 1)
    assert (scene.kind, scene.groups) == ("empty", ())
    assert np.isnan(scene.diameter)


def test_single_hits_are_viruses_of_the_given_size() -> None:
    scenes = draw("single", 300)
    assert {scene.kind for scene in scenes} == {"virus"}
    diameters = [scene.diameter for scene in scenes]
    assert np.mean(diameters) == pytest.approx(68, abs=0.6)
    assert np.std(diameters) == pytest.approx(3.5, abs=0.5)


def test_a_virus_is_an_icosahedron_with_a_core() -> None:
    (particle,) = draw("single", 1, diameter_nm=70, diameter_spread_nm=0)[0].groups[0]
    shell, core = particle.bodies
    assert isinstance(shell, Polyhedron)
    assert isinstance(core, Polyhedron)
    distances = np.linalg.norm(shell.vertices, axis=1)
    np.testing.assert_allclose(distances, CIRCUMRADIUS * 70, rtol=1e-5)
    first, second, third = shell.vertices[shell.faces[0]]
    normal = np.cross(second - first, third - first)
    assert abs(first @ normal) / np.linalg.norm(normal) == pytest.approx(INRADIUS * 70, rel=1e-5)
    thickness = (1 - (core.volume / shell.volume) ** (1 / 3)) * INRADIUS * 70
    assert 5 <= thickness * 68 / 70 <= 8
    assert -0.3 * shell.density.real < core.density.real < 0


def test_contaminants_are_of_every_kind_and_in_the_window_as_asked() -> None:
    scenes = draw("contaminant", 600, contaminants_in_window=0.8)
    assert {scene.kind for scene in scenes} == KINDS
    inside = np.mean([55 <= scene.diameter <= 84 for scene in scenes])
    assert inside == pytest.approx(0.8, abs=0.05)


def test_diameters_of_contaminants_are_those_of_their_volume() -> None:
    for scene in draw("contaminant", 100):
        (particle,) = scene.groups[0]
        volumes = [
            body.volume
            if isinstance(body, Polyhedron)
            else 4 / 3 * np.pi * body.equatorial**2 * body.polar
            for body in particle.bodies
            if isinstance(body, Polyhedron | Ellipsoid)
        ]
        # A cluster is the sum of its spheres; of nested bodies the first encloses the rest.
        volume = sum(volumes) if scene.kind == "cluster" else volumes[0]
        assert volume == pytest.approx(np.pi / 6 * scene.diameter**3, rel=1e-6), scene.kind


def test_nothing_scatters_less_than_vacuum() -> None:
    # Bodies overlap with negative densities; what is left is matter everywhere.
    for scene in draw("contaminant", 60):
        (particle,) = scene.groups[0]
        assert amplitude(particle, np.zeros((1, 3)))[0].real > 0
        if scene.kind in {"coated", "broken"}:
            assert np.sum([body.density for body in particle.bodies]).real >= -1e-6


def test_aggregates_touch_and_do_not_overlap() -> None:
    scenes = [scene for scene in draw("multiple", 100) if scene.kind == "aggregate"]
    assert 15 <= len(scenes) <= 45
    for scene in scenes:
        (group,), (offsets,) = scene.groups, scene.offsets
        distances = np.linalg.norm(offsets[:, None] - offsets, axis=-1)[
            np.triu_indices(len(group), 1)
        ]
        assert 2 <= len(group) <= 4
        assert distances.min() >= 2 * INRADIUS * min(p.diameter for p in group)
        assert distances.min() <= 2 * CIRCUMRADIUS * max(p.diameter for p in group)


def test_multiple_hits_that_fly_apart_hold_a_virus() -> None:
    scenes = [scene for scene in draw("multiple", 50) if scene.kind == "multi"]
    assert {len(scene.groups) for scene in scenes} == {2, 3}
    assert all(scene.groups[0][0].kind == "virus" for scene in scenes)


def test_a_model_takes_the_place_of_the_virus() -> None:
    model: Particle = ellipsoid(20.0, 400 + 0j, aspect=1.5)
    scene = draw_scene("single", Sample(), 1700.7, np.random.default_rng(0), model)
    assert (scene.kind, scene.diameter) == ("particle", 20.0)

"""The intensity of the sample on a grid of voxels."""

from __future__ import annotations

import numpy as np

from spidask.config import Sample
from spidask.intensity import mean_over_shells, measure_symmetry
from spidask.simulation.formfactor import amplitude
from spidask.simulation.reciprocal import N_DRAWS, model_intensity
from spidask.simulation.scene import draw_particle

SIZE, VOXEL = 31, 0.03


def test_it_is_the_mean_intensity_of_the_particles_drawn() -> None:
    sample = Sample()
    cube = model_intensity(sample, 1700.7, SIZE, VOXEL, seed=3)
    rng = np.random.default_rng(3)
    particles = [draw_particle(sample, 1700.7, rng) for _ in range(N_DRAWS)]
    places = np.array([[0, 0, 0], [4, -2, 7], [0, 9, -3], [12, 1, 0]])
    expected = np.mean([np.abs(amplitude(p, places * VOXEL)) ** 2 for p in particles], axis=0)
    found = cube[tuple((places + SIZE // 2).T)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_array_equal(cube[tuple((SIZE // 2 - places).T)], found)
    assert np.isnan(cube[0, 0, 0])
    assert np.isfinite(cube[0, SIZE // 2, SIZE // 2])


def test_particles_of_one_size_have_fringes_of_that_size_and_the_symmetry() -> None:
    cube = model_intensity(Sample(diameter_spread_nm=0.0), 1700.7, SIZE, VOXEL)
    profile = cube[SIZE // 2, SIZE // 2, SIZE // 2 :]
    first_minimum = np.flatnonzero((profile[1:-1] < profile[:-2]) & (profile[1:-1] < profile[2:]))
    # A solid sphere's is at q R = 4.49, an icosahedron's a little off.
    assert abs((first_minimum[0] + 1) * VOXEL * 34 - 4.49) < 34 * VOXEL
    shells = (7, 14)
    correlation, _ = measure_symmetry(cube, shells)
    assert mean_over_shells(correlation, shells) > 0.97

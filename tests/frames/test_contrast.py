"""Fringes of the analytic form factor of a sphere, and what blurs them."""

import numpy as np
import pytest
import scipy.sparse as sp

from spidask.frames.contrast import (
    fringe_contrasts,
    make_rings,
    mean_profile,
    profile_sums,
    ring_sums,
)
from spidask.frames.sizing import sphere_amplitude

Q = np.linspace(2e7, 6e8, 400)  # 1/m; 6 minima of a sphere of 70 nm lie here


def contrasts(intensity):
    return fringe_contrasts(intensity, np.zeros(len(intensity)))


def blurred(spread):
    """Mean profile of spheres of 70 nm, of this relative spread of sizes."""
    diameters = 70 * (1 + spread * np.linspace(-2, 2, 41))
    weights = np.exp(-(np.linspace(-2, 2, 41) ** 2) / 2)
    return weights @ sphere_amplitude(Q, diameters[:, None]) ** 2


def test_one_size_has_full_contrast_at_every_minimum_of_the_form_factor():
    found = contrasts(sphere_amplitude(Q, 70.0) ** 2)
    # tan t = t at 4.493, 7.725, 10.904, 14.066, 17.221, 20.371; q d / 2 goes to 21 and the last
    # maximum that follows is beyond.
    assert len(found) == 5
    assert found.min() > 0.99


def test_a_spread_of_sizes_has_less():
    means = [contrasts(blurred(spread))[:2].mean() for spread in (0, 0.01, 0.03, 0.05)]
    assert np.all(np.diff(means) < -0.01)
    assert means[0] > 0.99


def test_a_floor_takes_contrast_as_the_formula_says():
    intensity = np.array([8.0, 1, 3, 1, 2, 0])
    np.testing.assert_allclose(contrasts(intensity), [2 / 4, 1 / 3])
    np.testing.assert_allclose(contrasts(intensity + 1), [2 / 6, 1 / 5])
    np.testing.assert_allclose(contrasts(10 * intensity), [2 / 4, 1 / 3])


@pytest.mark.parametrize(
    "intensity",
    [np.ones(20), np.arange(20.0), np.arange(20.0)[::-1], np.array([5.0, 1, 4]), np.zeros(0)],
    ids=["flat", "rising", "falling", "no maximum after the minimum", "empty"],
)
def test_a_profile_without_fringes_has_no_contrast(intensity):
    assert len(contrasts(intensity)) == 0


def test_rings_without_pixels_are_passed_over():
    intensity = np.array([np.nan, 9, np.nan, 1, 3, np.nan, 2])
    np.testing.assert_allclose(fringe_contrasts(intensity, intensity * 0), [0.5])


def test_noise_makes_no_fringes_and_hides_none():
    random = np.random.default_rng(0)
    y, x = np.mgrid[3:103, -80:80]
    q = np.hypot(y, x).ravel()
    rings = make_rings(q, np.ones(q.size), np.ones(q.size, bool))

    def measure(means, n):
        photons = sp.csr_array(random.poisson(np.broadcast_to(means, (n, q.size))))
        sums = profile_sums(*ring_sums(photons, [np.empty(0, int)] * n, rings))
        return fringe_contrasts(*mean_profile(sums))

    for level in (0.02, 1.0):
        assert len(measure(level, 50)) == 0
    sphere = sphere_amplitude(q * 5e6, 70.0) ** 2
    # 18 pixels a fringe: the analytic profile of the pixels, and 200 patterns of 10 000 photons.
    found = measure(1e4 * sphere / sphere.sum(), 200)
    assert len(found) >= 4
    assert found[:4].min() > 0.9


def test_bright_patterns_do_not_outweigh_the_others():
    photons, exposures = np.array([[3.0, 1], [100, 300], [0, 0]]), np.ones((3, 2))
    intensity, deviation = mean_profile(profile_sums(photons, exposures))
    np.testing.assert_allclose(intensity, [(0.75 + 0.25) / 2, (0.25 + 0.75) / 2])
    # Poisson: 3 / 4^2 and 100 / 400^2 are the variances of the two shares, summed over 2 ^ 2.
    np.testing.assert_allclose(deviation[0], np.sqrt(3 / 16 + 100 / 160000) / 2)


def test_blocks_add():
    random = np.random.default_rng(1)
    photons, exposures = random.poisson(3, (7, 5)).astype(float), random.random((7, 5))
    parts = profile_sums(photons[:3], exposures[:3]) + profile_sums(photons[3:], exposures[3:])
    np.testing.assert_allclose(parts, profile_sums(photons, exposures))


def test_missing_pixels_and_unused_ones_leave_the_exposure():
    q = np.array([0.0, 0.5, 1.0, 1.5, 1.9, 2.0])
    exposure = np.array([4.0, 4, 2, 2, 2, 1])
    rings = make_rings(q, exposure, np.array([True, True, True, True, False, True]))
    photons = sp.csr_array(np.array([[1, 2, 0, 5, 7, 3], [0, 0, 4, 0, 7, 0]]))
    seen, exposures = ring_sums(photons, [np.array([2]), np.array([0, 1, 4, 5])], rings)
    assert seen.tolist() == [[3, 5, 3], [0, 4, 0]]
    np.testing.assert_allclose(exposures, [[2, 0.5, 0.25], [0, 1, 0]])
    assert exposures[1, 0] == exposures[1, 2] == 0

import numpy as np
import pytest

from spidask.frames.geometry import (
    momentum_transfer,
    pixel_positions,
    polarization,
    solid_angle,
    wavelength,
)
from spidask.frames.sizing import (
    SPHERE_FIT_FACTOR,
    fit_spheres,
    radial_sums,
    rescale,
    sphere_amplitude,
    sphere_library,
)

LENGTH = wavelength(1700.7)
Q_STEP = 2 * np.pi / LENGTH * 75e-6 / 0.13
Y, X = pixel_positions(np.arange(123), np.arange(392, 632), (-3.0, 511.5), 75e-6)
Q = np.linalg.norm(momentum_transfer(Y, X, 0.13, LENGTH), axis=0)
EXPOSURE = solid_angle(Y, X, 0.13, 75e-6) * polarization(Y, X, 0.13)


def spheres(diameters, photons, stray=0.0):
    """Expected photons of solid spheres, each with a sum of about `photons`."""
    form = np.stack([sphere_amplitude(Q, d) ** 2 for d in diameters]) * EXPOSURE
    form[:, np.hypot(Y, X) < 14 * 75e-6] = np.nan
    return photons * form / np.nansum(form, axis=(1, 2), keepdims=True) + stray


def fit(patterns, particle="sphere", range_nm=(25.0, 150.0)):
    library = sphere_library(Q, EXPOSURE, Q_STEP, range_nm, particle)
    sums = radial_sums(patterns.astype(np.float32), library.bins, library.exposure)
    return fit_spheres(*sums, library)[:2]


def test_form_factor_is_one_ahead_and_smooth_through_the_series():
    q = np.array([0.0, 0.0399, 0.0401, 8.9868]) * 1e9
    values = sphere_amplitude(q, 1.0)
    assert values[0] == 1.0
    assert values[1] == pytest.approx(1 - 0.01995**2 / 10, abs=1e-9)
    assert values[2] == pytest.approx(1 - 0.02005**2 / 10, abs=1e-8)
    assert values[3] == pytest.approx(0.0, abs=1e-5)


def test_radial_mean_of_a_constant_is_that_constant():
    bins = (Q / Q_STEP).astype(np.int32)
    patterns = np.full((2, *Q.shape), 3.0, np.float32)
    patterns[1, :, ::3] = np.nan
    photons, exposures = radial_sums(patterns, bins, np.ones_like(Q))
    seen = exposures > 0
    np.testing.assert_allclose(photons[seen] / exposures[seen], 3.0)
    np.testing.assert_array_equal(exposures.sum(axis=1), np.isfinite(patterns).sum(axis=(1, 2)))


def test_radial_sums_equal_plain_numpy():
    rng = np.random.default_rng(1)
    bins = rng.integers(0, 4, (5, 6)).astype(np.int32)
    exposure = rng.uniform(0.5, 1, (5, 6))
    patterns = rng.poisson(3, (3, 5, 6)).astype(np.float32)
    patterns[rng.random(patterns.shape) < 0.2] = np.nan
    photons, exposures = radial_sums(patterns, bins, exposure)
    for i in range(3):
        for b in range(4):
            inside = (bins == b) & np.isfinite(patterns[i])
            assert photons[i, b] == pytest.approx(patterns[i][inside].sum())
            assert exposures[i, b] == pytest.approx(exposure[inside].sum())


@pytest.mark.parametrize("diameter", [30.0, 55.0, 68.0, 84.0, 120.0])
def test_diameter_of_an_analytic_sphere_comes_back(diameter):
    found, quality = fit(spheres([diameter], 1e6))
    assert found[0] == pytest.approx(diameter, rel=0.004)
    assert quality[0] > 0.95
    assert found.dtype == quality.dtype == np.float32


def test_noisy_spheres_stay_within_the_promise():
    rng = np.random.default_rng(2)
    truth = rng.uniform(55, 84, 200)
    patterns = rng.poisson(np.nan_to_num(spheres(truth, 3000, stray=0.02))).astype(float)
    patterns[:, np.isnan(spheres([60], 1)[0])] = np.nan
    error = np.abs(fit(patterns)[0] / truth - 1)
    assert np.median(error) < 0.01
    assert np.percentile(error, 95) < 0.03


def test_the_particle_model_divides_by_its_factor():
    pattern = spheres([68.0], 1e5)
    as_virus = fit(pattern, "icosahedron")[0][0]
    expected = fit(pattern)[0][0] / SPHERE_FIT_FACTOR["icosahedron"]
    assert as_virus == pytest.approx(expected, rel=1e-3)


def test_a_mask_moves_no_diameter():
    pattern = spheres([68.0, 68.0], 1e5)
    pattern[1, :, 150:165] = np.nan
    pattern[1, 60:, :] = np.nan
    found, _ = fit(pattern)
    assert found[1] == pytest.approx(found[0], rel=0.005)


def test_empty_patterns_have_no_diameter():
    patterns = np.zeros((3, *Q.shape))
    patterns[1] = np.nan
    patterns[2] = spheres([70.0], 1e4)[0]
    found, quality = fit(patterns)
    assert np.isnan(found[:2]).all()
    assert np.isnan(quality[:2]).all()
    assert found[2] == pytest.approx(70, rel=0.01)


def test_flat_light_is_no_sphere():
    rng = np.random.default_rng(3)
    _, quality = fit(rng.poisson(0.1, (5, *Q.shape)).astype(float))
    assert (quality >= 0).all()
    assert quality.max() < 0.3


def test_a_block_equals_its_frames_one_by_one():
    rng = np.random.default_rng(4)
    patterns = rng.poisson(np.nan_to_num(spheres(rng.uniform(50, 90, 7), 4000))).astype(float)
    together = fit(patterns)
    alone = [fit(patterns[i : i + 1]) for i in range(7)]
    for k in range(2):
        np.testing.assert_array_equal(together[k], np.concatenate([one[k] for one in alone]))


def test_sizes_outside_the_range_end_at_its_border():
    found, _ = fit(spheres([40.0], 1e5), range_nm=(60.0, 90.0))
    assert 59 < found[0] < 91


def test_the_fluence_of_noisy_spheres_is_right_within_ten_per_cent():
    rng = np.random.default_rng(5)
    diameter, fluence = rng.uniform(55, 84, 300), rng.uniform(300, 3000, 300)  # nm, photons/nm^2
    # Photons = fluence (r_e n_e V)^2 |F|^2 solid angle polarization.
    length = 2.8179403e-6 * 430 * np.pi / 6 * diameter**3
    form = np.stack([sphere_amplitude(Q, d) ** 2 for d in diameter]) * EXPOSURE
    patterns = rng.poisson((fluence * length**2)[:, None, None] * form + 0.005).astype(np.float32)
    patterns[:, np.hypot(Y, X) < 14 * 75e-6] = np.nan
    assert 250 < np.percentile(np.nansum(patterns, axis=(1, 2)), 5) < 1000
    library = sphere_library(Q, EXPOSURE, Q_STEP, (25.0, 150.0), "sphere")
    sums = radial_sums(patterns, library.bins, library.exposure)
    ratio = fit_spheres(*sums, library)[2] / (fluence * 1e6)
    assert np.median(ratio) == pytest.approx(1, abs=0.03)
    assert np.median(np.abs(ratio - 1)) < 0.05
    assert np.percentile(np.abs(ratio - 1), 90) < 0.1


def test_an_empty_pattern_has_no_fluence():
    library = sphere_library(Q, EXPOSURE, Q_STEP, (25.0, 150.0), "sphere")
    sums = radial_sums(np.zeros((1, *Q.shape), np.float32), library.bins, library.exposure)
    assert np.isnan(fit_spheres(*sums, library)[2]).all()


@pytest.mark.parametrize("ratio", [0.97, 1.004, 1.12])
def test_rescaling_is_the_fit_with_the_frames_own_wavelength(ratio):
    # Photons of spheres as they scatter at another photon energy, in the same pixels.
    rng = np.random.default_rng(5)
    truth = rng.uniform(55, 84, 40)
    own_q = Q * ratio
    form = np.stack([sphere_amplitude(own_q, d) ** 2 for d in truth]) * EXPOSURE
    patterns = rng.poisson(4000 * form / form.sum(axis=(1, 2), keepdims=True)).astype(np.float32)

    def fit_at(factor, range_nm):
        library = sphere_library(Q * factor, EXPOSURE, Q_STEP * factor, range_nm, "sphere")
        return fit_spheres(*radial_sums(patterns, library.bins, library.exposure), library)

    fitted, quality, fluence = fit_at(1.0, (25.0, 150.0))
    found, found_fluence = rescale(fitted, fluence, np.full(40, ratio))
    assert found.dtype == np.float32
    # The same diameters in the grid of the search: equal but for rounding.
    own, own_quality, own_fluence = fit_at(ratio, (25.0 / ratio, 150.0 / ratio))
    np.testing.assert_allclose(found, own, rtol=1e-6)
    np.testing.assert_allclose(quality, own_quality, rtol=1e-5)
    np.testing.assert_allclose(found_fluence, own_fluence, rtol=1e-5)
    # Another grid of diameters, half a step of which is 0.25 %.
    np.testing.assert_allclose(found, fit_at(ratio, (25.0, 150.0))[0], rtol=1e-3)
    assert np.median(np.abs(found / truth - 1)) < 0.01
    assert abs(np.median(fitted / truth) - ratio) < 0.01

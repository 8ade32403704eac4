"""Features of patterns whose symmetry is known, and a forest on simulated hits."""

import numpy as np
import pytest

from spidask.baselines.forest import (
    N_COEFFICIENTS,
    correlate_angles,
    grow_forest,
    measure_features,
)
from spidask.frames.polar import polar_grid
from spidask.metrics import average_precision
from spidask.simulation.beamtime import DEFAULT_GEOMETRY, DEFAULT_REGION, simulate_patterns

SHAPE, BEAM, N_RINGS = (81, 81), (40.0, 40.0), 12
Y, X = np.indices(SHAPE)
RADIUS, ANGLE = np.hypot(Y - BEAM[0], X - BEAM[1]), np.arctan2(Y - BEAM[0], X - BEAM[1])
GRID = polar_grid(SHAPE, BEAM, (4.0, 40.0), N_RINGS, 72)


def draw(mean: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(mean, (n, *SHAPE)).astype(np.float32)


def split(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Profile (frame, ring), correlation (frame, ring, coefficient), totals (frame, 2)."""
    n = N_RINGS * (1 + N_COEFFICIENTS)
    correlation = features[:, N_RINGS:n].reshape(-1, N_RINGS, N_COEFFICIENTS)
    return features[:, :N_RINGS], correlation, features[:, n:]


def slow_correlation(photons: np.ndarray, n_pixels: np.ndarray) -> np.ndarray:
    """Coefficients of one ring, from pairs of cells one by one."""
    n = len(photons)
    mean = photons.sum() / n_pixels.sum()
    all_pairs = sum(n_pixels[a] ** 2 for a in range(n))
    excess = np.zeros(n)
    for t in range(n):
        pairs = sum(photons[a] * photons[(a + t) % n] for a in range(n))
        seen = sum(n_pixels[a] * n_pixels[(a + t) % n] for a in range(n))
        if t == 0:
            pairs -= photons.sum()
        if seen > 0.3 * all_pairs:
            excess[t] = pairs / seen / mean**2 - 1
    turns = np.arange(n)
    return np.array([(excess * np.cos(2 * np.pi * m * turns / n)).mean() for m in range(1, 5)])


def test_the_correlation_is_the_sum_over_pairs_of_cells():
    random = np.random.default_rng(1)
    photons = random.poisson(3, (5, 16)).astype(float)
    n_pixels = random.integers(1, 5, (5, 16)).astype(float)
    photons[2:, 7:] = n_pixels[2:, 7:] = 0  # half a panel
    found = correlate_angles(photons, n_pixels, 4)
    expected = [slow_correlation(p, n) for p, n in zip(photons, n_pixels, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_two_fold_symmetry_by_hand():
    # 1 + cos 2a has C(t) = cos(2t) / 2, whose second coefficient is 1/4; photons so many that
    # Poisson noise is nothing.
    angle = 2 * np.pi * np.arange(72) / 72
    photons = 1e9 * (1 + np.cos(2 * angle))[None]
    found = correlate_angles(photons, np.ones_like(photons), 4)
    np.testing.assert_allclose(found, [[0, 0.25, 0, 0]], atol=1e-6)


def test_a_dark_ring_has_no_correlation_and_a_profile():
    nothing = np.zeros((1, *SHAPE), np.float32)
    profile, correlation, totals = split(measure_features(nothing, GRID))
    assert np.isfinite(profile).all()
    assert (correlation == 0).all()
    assert totals.tolist() == [[0, 0]]


def test_the_profile_is_that_of_the_pattern():
    mean = 500 / (1 + (RADIUS / 8) ** 2)
    profile, _, totals = split(measure_features(draw(mean, 40), GRID))
    ring_of = np.floor((RADIUS - 4) / 36 * N_RINGS).astype(int)
    inside = (RADIUS >= 4) & (RADIUS < 40)
    expected = [mean[inside & (ring_of == ring)].mean() for ring in range(N_RINGS)]
    expected = np.log10(np.array(expected) / mean[inside].mean())
    np.testing.assert_allclose(profile.mean(0), expected, atol=0.01)
    np.testing.assert_allclose(totals[:, 0], np.log10(mean.sum()), atol=0.01)


def test_rings_have_no_angular_correlation_beyond_noise():
    # Within a ring it is flat: a slope would show the grid of pixels.
    mean = 3 * (1 + 0.8 * np.cos(np.floor((RADIUS - 4) / 3)))
    _, correlation, _ = split(measure_features(draw(mean, 200), GRID))
    # Over the patterns the mean vanishes within its error: shot noise adds nothing.
    error = correlation.std(0) / np.sqrt(200)
    pull = correlation.mean(0) / error
    assert np.abs(pull).mean() < 1.2
    assert np.abs(correlation[:, 4:].mean((0, 1))).max() < 1e-3


def test_two_fold_patterns_have_even_coefficients():
    mean = 5 * (1 + 0.7 * np.cos(0.5 * (X - BEAM[1])))
    _, correlation, _ = split(measure_features(draw(mean, 100), GRID))
    power = correlation[:, 2:].mean(0).sum(0)
    even, odd = power[1::2], power[0::2]
    assert even.sum() > 50 * np.abs(odd).sum()
    assert even.min() > 5 * np.abs(odd).max()


def test_features_do_not_change_when_a_pattern_turns():
    turned = np.stack([5 * (1 + 0.7 * np.cos(0.5 * RADIUS * np.cos(ANGLE - a))) for a in (0, 0.6)])
    means = [measure_features(draw(mean, 150, i), GRID).mean(0) for i, mean in enumerate(turned)]
    np.testing.assert_allclose(*means, atol=0.02)


@pytest.mark.parametrize("fringes", [False, True])
def test_hidden_pixels_change_the_expected_features_little(fringes):
    mean = 5 * (1 + 0.7 * np.cos(0.5 * (X - BEAM[1]))) if fringes else 5 + 3 * np.cos(RADIUS / 3)
    patterns = draw(mean, 200)
    hidden = patterns.copy()
    hidden[:, np.random.default_rng(2).random(SHAPE) < 0.2] = np.nan
    hidden[:, 30:34, 45:] = np.nan
    whole, partial = (split(measure_features(p, GRID)) for p in (patterns, hidden))
    np.testing.assert_allclose(partial[0].mean(0), whole[0].mean(0), atol=0.03)
    np.testing.assert_allclose(partial[1].mean(0)[4:], whole[1].mean(0)[4:], atol=0.02)
    np.testing.assert_allclose(partial[2][:, 1], whole[2][:, 1], atol=0.02)


def test_a_forest_tells_simulated_single_hits():
    mix = {"single": 0.4, "multiple": 0.6}
    means, labels, _, _ = simulate_patterns(300, seed=5, mix=mix)
    patterns = np.random.default_rng(5).poisson(means).astype(np.float32)
    place, region = DEFAULT_GEOMETRY, DEFAULT_REGION
    beam = (place.beam_centre_y_px - region.y[0], place.beam_centre_x_px - region.x[0])
    grid = polar_grid(patterns.shape[1:], beam, (3.0, 120.0), N_RINGS, 72)
    features, is_single = measure_features(patterns, grid), labels == "single"
    trees = grow_forest(features[:200], is_single[:200], seed=0)
    score = trees.predict_proba(features[200:])[:, 1]
    share = is_single[200:].mean()
    assert 0.25 < share < 0.55
    assert average_precision(score, is_single[200:]) > share + 0.25
    honest = trees.oob_decision_function_[:, 1]
    assert average_precision(honest, is_single[:200]) > is_single[:200].mean() + 0.2

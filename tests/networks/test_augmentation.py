"""Augmentation keeps photons whole, noise Poisson and missing pixels missing."""

import numpy as np

from spidask.networks.augmentation import augment, shift, thin


def test_thinned_poisson_is_poisson_of_the_smaller_mean():
    random = np.random.default_rng(0)
    pattern = random.poisson(8.0, (300, 300)).astype(np.float32)
    thinned = thin(pattern, 0.25, random)
    # Mean and variance 2, each within five standard errors of 90 000 pixels.
    assert abs(thinned.mean() - 2) < 5 * np.sqrt(2 / 9e4)
    assert abs(thinned.var() - 2) < 5 * np.sqrt((2 + 2 * 4) / 9e4)
    assert (thinned <= pattern).all()


def test_missing_pixels_stay_missing_when_thinned():
    pattern = np.array([[np.nan, 4.0]], np.float32)
    thinned = thin(pattern, 0.5, np.random.default_rng(0))
    assert np.isnan(thinned[0, 0])
    assert thinned[0, 1] in range(5)


def test_shift_moves_each_way():
    pattern = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(shift(pattern, -1, 0), [[4, 5, 6], [np.nan] * 3])
    np.testing.assert_array_equal(shift(pattern, 1, -1), [[np.nan] * 3, [2, 3, np.nan]])
    np.testing.assert_array_equal(shift(pattern, 0, 0), pattern)


def test_augmentation_depends_on_its_generator_only_and_leaves_the_pattern_alone():
    pattern = np.random.default_rng(0).poisson(3.0, (40, 50)).astype(np.float32)
    before = pattern.copy()
    first, second = (augment(pattern, None, np.random.default_rng([1, 2]))[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(pattern, before)
    assert first.dtype == np.float32
    kept = first[np.isfinite(first)]
    np.testing.assert_array_equal(kept, np.round(kept))
    assert not np.array_equal(first, augment(pattern, None, np.random.default_rng([1, 3]))[0])


def test_boxes_go_with_their_patterns():
    pattern = np.zeros((40, 80), np.float32)
    pattern[10:20, 50:70] = 1000
    box = np.array([60 / 80, 15 / 40, 20 / 80, 10 / 40], np.float32)
    for seed in range(20):
        moved, found = augment(pattern, box, np.random.default_rng(seed))
        lit = np.nan_to_num(moved) > 100
        y, x = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
        if len(x) == 20 and len(y) == 10:  # no hole cut its edges
            edges = [(x[0] + x[-1] + 1) / 160, (y[0] + y[-1] + 1) / 80, 20 / 80, 10 / 40]
            np.testing.assert_allclose(found, edges, atol=1e-6)


def test_a_box_at_the_edge_keeps_its_centre_on_the_pattern():
    pattern, box = np.zeros((8, 8), np.float32), np.array([0.1, 0.9, 0.2, 0.2], np.float32)
    found = [augment(pattern, box, np.random.default_rng(seed))[1] for seed in range(50)]
    centres = np.array(found)[:, :2]
    assert (centres.min(), centres.max()) == (0, 1)
    np.testing.assert_array_equal(np.array(found)[:, 2:], np.tile(box[2:], (50, 1)))

"""Roughness, windows and power against slow loops."""

import numpy as np
import pytest

from spidask.frames.residuals import roughen, scale_windows

RANDOM = np.random.default_rng(0)
PATTERNS = RANDOM.poisson(3.0, (3, 21, 34)).astype(np.float32)
PATTERNS[0, 5:9, 4:30] = np.nan
PATTERNS[1, 0, 0] = 500.0
PATTERNS[2, 3, 3] = 2.5


def slow_rough(pattern, maximum, *, is_logarithmic):
    there = np.isfinite(pattern)
    photons = np.where(there, pattern, 0).astype(float)
    if is_logarithmic:
        values = np.log1p(photons) / np.log1p(maximum)
    else:
        photons = np.minimum(photons, maximum)
        values = photons / maximum
    floor, out = 0.1 * photons.mean(), np.zeros((2, *pattern.shape))
    for y, x in zip(*np.nonzero(there), strict=True):
        window = slice(max(y - 7, 0), y + 8), slice(max(x - 7, 0), x + 8)
        seen = there[window]
        slow, mean = values[window][seen].mean(), photons[window][seen].mean()
        out[:, y, x] = values[y, x] - slow, (photons[y, x] - mean) / np.sqrt(mean + floor)
    return values, there, out / np.sqrt((out**2).mean((1, 2), keepdims=True))


@pytest.mark.parametrize("is_logarithmic", [True, False])
def test_roughness_is_that_of_the_slow_loop(is_logarithmic):
    found = roughen(PATTERNS, 30.0, is_logarithmic=is_logarithmic)
    for i, pattern in enumerate(PATTERNS):
        expected = slow_rough(pattern, 30.0, is_logarithmic=is_logarithmic)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one[i], other, atol=1e-5)


def test_patterns_may_be_smaller_than_a_window():
    for pattern in (PATTERNS[1, :5, :3], PATTERNS[1, :16, :1], PATTERNS[1, :1, :20]):
        found = roughen(pattern[None], 30.0, is_logarithmic=True)[2][0]
        np.testing.assert_allclose(
            found, slow_rough(pattern, 30.0, is_logarithmic=True)[2], atol=1e-5
        )


def test_what_is_faint_below_something_bright_is_as_rough_as_without():
    pattern = RANDOM.poisson(0.02, (60, 40)).astype(np.float32)
    pattern[:5] = 1e6
    found = roughen(pattern[None], 30.0, is_logarithmic=True)[2][0]
    expected = slow_rough(pattern, 30.0, is_logarithmic=True)[2]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_no_pattern_changes_a_bit_of_another():
    together = roughen(PATTERNS, 30.0, is_logarithmic=True)
    for i in (2, 0, 1):
        alone = roughen(PATTERNS[i : i + 1], 30.0, is_logarithmic=True)
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_array_equal(one[i : i + 1], other)


def test_a_pattern_of_nothing_is_nothing():
    for empty in (np.zeros((1, 8, 9), np.float32), np.full((1, 8, 9), np.nan, np.float32)):
        values, _, rough = roughen(empty, 30.0, is_logarithmic=True)
        assert not values.any()
        assert not rough.any()


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (7, 2), (5, 3)])
def test_windows_are_those_of_the_slow_loop(kernel, stride):
    present = np.isfinite(PATTERNS[:1]).astype(np.float32)
    present[0, 10:, 20:] = 0
    found, half = scale_windows(present, kernel, stride)[0], kernel // 2
    padded = np.pad(present[0], half)
    for row in range(found.shape[0]):
        for column in range(found.shape[1]):
            y, x = row * stride, column * stride
            n = padded[y : y + kernel, x : x + kernel].sum()
            assert found[row, column] == pytest.approx(kernel**2 / n if n else 0)


def test_logarithms_are_those_of_numpy():
    photons = np.concatenate([np.arange(70_000), RANDOM.exponential(3, 1000), [1e-6, 3e9]])
    photons = photons.astype(np.float32)[None, None]
    values, *_ = roughen(photons, 30.0, is_logarithmic=True)
    expected = np.log1p(photons.astype(float)) / np.log1p(30.0)
    np.testing.assert_allclose(values, expected, rtol=3e-7, atol=6e-8)
    assert values[0, 0, 0] == 0

"""Calibration: probabilities that mean what they say, and the threshold that follows."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from spidask.networks.calibration import calibrate, choose_threshold


def test_calibration_finds_slope_and_intercept_again():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 40_000).astype(np.float32)
    is_single = random.random(40_000) < 1 / (1 + np.exp(-(0.7 * logits - 0.4)))
    slope, intercept = calibrate(logits, is_single, None)
    assert slope == pytest.approx(0.7, abs=0.03)
    assert intercept == pytest.approx(-0.4, abs=0.04)


def test_calibration_knows_that_single_hits_are_rarer_elsewhere():
    random = np.random.default_rng(0)
    is_single = np.arange(20_000) % 2 == 0
    logits = np.where(is_single, random.normal(1, 1, 20_000), random.normal(-1, 1, 20_000))
    slope, intercept = calibrate(logits.astype(np.float32), is_single, 0.05)
    # Two normal distributions at +-1 have log odds 2 x; the prior adds log(0.05 / 0.95).
    assert slope == pytest.approx(2.0, abs=0.1)
    assert intercept == pytest.approx(np.log(0.05 / 0.95), abs=0.1)


def test_the_threshold_is_that_of_the_largest_f1_there_is():
    random = np.random.default_rng(0)
    is_single = np.arange(20_000) % 4 == 0
    logits = random.normal(np.where(is_single, 1, -1), 1)
    at = np.linspace(-2, 4, 6001)
    right, wrong = norm.sf(at, 1), norm.sf(at, -1)
    f1 = 2 * 0.05 * right / (0.05 * right + 0.95 * wrong + 0.05)
    threshold, told = choose_threshold(logits, is_single, 0.05)
    assert threshold == pytest.approx(at[np.argmax(f1)], abs=0.05)
    assert told == pytest.approx(f1.max(), abs=0.02)


@pytest.mark.parametrize("fraction", [None, 0.1])
def test_the_threshold_is_what_a_loop_over_all_gives(fraction):
    random = np.random.default_rng(1)
    logits = np.round(random.normal(0, 2, 60), 1)  # some are equal
    is_single = random.random(60) < expit(logits - 1)
    weight = np.ones(60)
    if fraction:
        weight[~is_single] = is_single.sum() * (1 / fraction - 1) / (~is_single).sum()
    slope, intercept = calibrate(logits, is_single, fraction)
    p = expit(slope * logits + intercept)
    expected = {}
    for at in logits:
        chosen = logits >= at
        single = (weight * p)[chosen].sum()
        expected[at] = 2 * single / (weight[chosen].sum() + (weight * p).sum())
    best = max(expected, key=expected.get)
    threshold, f1 = choose_threshold(logits, is_single, fraction)
    assert threshold == pytest.approx((best + logits[logits < best].max()) / 2)
    chosen = logits >= best
    hit = (weight * is_single)[chosen].sum()
    assert f1 == pytest.approx(2 * hit / (weight[chosen].sum() + (weight * is_single).sum()))


def test_all_are_selected_where_nothing_is_told_apart():
    logits, is_single = np.full(8, 0.5), np.arange(8) < 4
    assert choose_threshold(logits, is_single, None) == pytest.approx((0.499, 2 / 3))

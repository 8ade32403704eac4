"""Calibration: probabilities that mean what they say."""

import numpy as np
import pytest

from spidask.networks.calibration import calibrate


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

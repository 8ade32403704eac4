"""Log odds become probabilities."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


def calibrate(
    logits: FloatArray, is_single: BoolArray, expected_fraction: float | None
) -> tuple[float, float]:
    """Turn log odds into probabilities that mean what they say.

    Parameters
    ----------
    logits : numpy.ndarray
        Log odds of validation patterns, shape (frame,), float32.
    is_single : numpy.ndarray
        Which are single hits, shape (frame,), bool.
    expected_fraction : float or None
        Share of single hits where the probability will be used; None as found here.

    Returns
    -------
    slope : float
        Never negative, so that the order of the patterns stays.
    intercept : float
        The probability is the logistic function of slope * logit + intercept.

    Notes
    -----
    Platt 1999 with his smoothed targets; the single hits weigh `expected_fraction` in all.
    """
    n_single, n_others = int(is_single.sum()), int((~is_single).sum())
    share = n_single / len(is_single) if expected_fraction is None else expected_fraction
    target = np.where(is_single, (n_single + 1) / (n_single + 2), 1 / (n_others + 2))
    weight = np.where(is_single, share / n_single, (1 - share) / n_others)
    x = logits.astype(float)

    def cost(parameters: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        z = parameters[0] * x + parameters[1]
        miss = weight * (expit(z) - target)
        value = float(np.sum(weight * (np.logaddexp(0, z) - target * z)))
        return value, np.array([miss @ x, miss.sum()])

    found = minimize(cost, [1.0, 0.0], jac=True, bounds=[(1e-3, None), (None, None)])
    return float(found.x[0]), float(found.x[1])

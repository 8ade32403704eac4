"""The logarithm against NumPy's of double precision."""

import numba
import numpy as np

from spidask.frames.logarithm import logarithm


@numba.njit
def logarithms(numbers):
    out = np.empty_like(numbers)
    for i in range(len(numbers)):
        out[i] = logarithm(numbers[i])
    return out


def test_logarithms_are_those_of_numpy():
    random = np.random.default_rng(0)
    numbers = np.concatenate([np.arange(1, 70_000), random.uniform(0.5, 2, 1000), [1e-6, 3e38]])
    numbers = numbers.astype(np.float32)
    np.testing.assert_allclose(
        logarithms(numbers), np.log(numbers.astype(float)), rtol=3e-7, atol=6e-8
    )
    assert logarithms(np.ones(1, np.float32)) == 0

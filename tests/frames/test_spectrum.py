"""Transforms of awkward lengths against NumPy's, in double precision."""

import numpy as np
import pytest

from spidask.frames.spectrum import (
    fold_rows,
    is_awkward,
    plan_transform,
    pool_log_power,
    square,
    unfold_power,
)


def power_of_awkward(values):
    plan = plan_transform(values.shape[1])
    even, odd = fold_rows(values)
    return unfold_power(plan.cosines @ even, plan.sines @ odd, values.shape[1])


def draw(rows, columns):
    random = np.random.default_rng(rows)
    values = random.normal(size=(2, rows, columns)) + 1j * random.normal(size=(2, rows, columns))
    return values.astype(np.complex64)


# Primes, and 2, 3, 4, 6, 10 and 11 times one.
@pytest.mark.parametrize("rows", [17, 61, 122, 123, 164, 174, 190, 187, 191, 246])
def test_products_with_matrices_are_the_fourier_transform(rows):
    assert is_awkward(rows)
    values = draw(rows, 5)
    expected = np.abs(np.fft.fft(values.astype(complex), axis=1, norm="ortho")) ** 2
    np.testing.assert_allclose(power_of_awkward(values), expected, rtol=1e-5, atol=1e-5)


def test_all_awkward_lengths_can_be_taken_apart():
    for rows in range(2, 12 * 192):
        if is_awkward(rows):
            plan = plan_transform(rows)
            for order in (plan.taken, plan.given):
                assert sorted(order.ravel()) == list(range(rows))


def test_no_image_changes_a_bit_of_another():
    values = draw(123, 7)
    np.testing.assert_array_equal(power_of_awkward(values[1:]), power_of_awkward(values)[1:])


def test_only_transforms_with_a_large_prime_factor_are_awkward():
    assert [n for n in range(100, 193) if is_awkward(n)][:5] == [101, 102, 103, 106, 107]
    assert is_awkward(4 * 127)
    assert not is_awkward(197)
    assert not is_awkward(12 * 41)
    assert not is_awkward(17 * 17)
    assert not is_awkward(2 * 3 * 5 * 7)


@pytest.mark.parametrize(("rows", "columns"), [(7, 9), (8, 5)])
def test_power_is_pooled_around_the_middle(rows, columns):
    amplitude = draw(rows, columns)
    shifted = np.fft.fftshift(np.abs(amplitude.astype(complex)) ** 2, axes=1)
    cut = shifted[:, : rows // 2 * 2, : columns // 2 * 2]
    mean = cut.reshape(2, rows // 2, 2, columns // 2, 2).mean((2, 4))
    np.testing.assert_allclose(pool_log_power(square(amplitude)), np.log1p(mean), rtol=1e-5)

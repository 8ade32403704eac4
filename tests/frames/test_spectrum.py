"""Transforms of awkward lengths against NumPy's."""

import numpy as np
import pytest

from spidask.frames.spectrum import fold_rows, fourier_matrices, is_awkward, unfold_rows


@pytest.mark.parametrize("rows", [2, 3, 4, 7, 12, 123, 134])
def test_products_with_matrices_are_the_fourier_transform(rows):
    random = np.random.default_rng(rows)
    values = random.normal(size=(2, rows, 5)) + 1j * random.normal(size=(2, rows, 5))
    values = values.astype(np.complex64)
    parts = fold_rows(values.view(np.float32))
    cosine, sine = (m @ part for m, part in zip(fourier_matrices(rows), parts, strict=True))
    found = unfold_rows(cosine, sine, rows)
    np.testing.assert_allclose(found, np.fft.fft(values, axis=1, norm="ortho"), atol=3e-6)


def test_only_short_transforms_with_large_prime_factors_are_awkward():
    assert [n for n in range(100, 193) if is_awkward(n)][:5] == [101, 102, 103, 106, 107]
    assert not is_awkward(197)
    assert not is_awkward(2 * 3 * 5 * 7)

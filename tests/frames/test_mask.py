import numpy as np
import pytest

from spidask.frames.mask import PixelBit, apply_mask, mask_bits, usable_pixels


@pytest.mark.parametrize(
    ("values", "good", "expected"),
    [
        ([[0, 1], [2, 255]], "nonzero", [[False, True], [True, True]]),
        ([[0, 1], [2, 0]], "zero", [[True, False], [False, True]]),
        ([[np.nan, 1.0], [0.0, -1.0]], "nonzero", [[False, True], [False, True]]),
        ([[np.nan, 1.0], [0.0, -0.0]], "zero", [[False, False], [True, True]]),
        ([[True, False]], "nonzero", [[True, False]]),
    ],
)
def test_mask_values_say_which_pixels_are_usable(values, good, expected):
    assert usable_pixels(np.array(values), good).tolist() == expected


def test_masking_twice_changes_nothing():
    rng = np.random.default_rng(1)
    patterns = rng.poisson(2.0, (4, 5, 6)).astype(np.float32)
    usable = rng.random((5, 6)) > 0.3
    once = apply_mask(patterns, usable)
    np.testing.assert_array_equal(apply_mask(once, usable), once)
    assert np.isnan(once).sum() == 4 * (~usable).sum()
    np.testing.assert_array_equal(once[:, usable], patterns[:, usable])
    assert np.isfinite(patterns).all()


def test_cxi_bits_read_back_as_the_same_mask():
    usable = np.array([[True, False], [False, True]])
    bits = mask_bits(usable)
    assert bits.dtype == np.uint32
    assert bits.tolist() == [[0, PixelBit.BAD], [PixelBit.BAD, 0]]
    np.testing.assert_array_equal(usable_pixels(bits, "zero"), usable)

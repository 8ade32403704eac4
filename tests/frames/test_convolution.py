"""The first convolution against a slow loop, and its rounding against torch's."""

import numpy as np
import pytest
import torch

from spidask.frames.convolution import convolve_partially

RANDOM = np.random.default_rng(0)


def given(n, rows, columns, channels):
    shapes = (n, rows, columns), (channels, 7, 7), (n, -(-rows // 2), -(-columns // 2)), (channels,)
    values, weight, scale, shift = (RANDOM.normal(size=s).astype(np.float32) for s in shapes)
    return values, weight, np.abs(scale), shift


def slow(values, weight, scale, shift):
    padded = np.pad(values.astype(float), ((0, 0), (3, 3), (3, 3)))
    out = np.empty((*scale.shape, len(weight)))
    for n, row, column in np.ndindex(scale.shape):
        window = padded[n, 2 * row : 2 * row + 7, 2 * column : 2 * column + 7]
        out[n, row, column] = (window * weight).sum((1, 2)) * scale[n, row, column] + shift
    return np.maximum(out, 0)


@pytest.mark.parametrize(
    ("rows", "columns", "channels"), [(9, 12, 4), (12, 41, 8), (1, 1, 12), (2, 70, 4)]
)
def test_the_convolution_is_that_of_the_slow_loop(rows, columns, channels):
    parts = given(2, rows, columns, channels)
    out = np.full((*parts[2].shape, channels), np.nan, np.float32)
    convolve_partially(*parts, out)
    np.testing.assert_allclose(out, slow(*parts), atol=1e-5)


def test_half_precision_is_rounded_as_by_torch():
    parts = given(1, 30, 44, 8)
    out, half = np.empty((1, 15, 22, 8), np.float32), np.empty((1, 15, 22, 8), np.uint16)
    convolve_partially(*parts, out)
    convolve_partially(*parts, half)
    expected = torch.from_numpy(out).bfloat16()
    assert torch.equal(torch.from_numpy(half).view(torch.bfloat16), expected)
    assert (expected > 0).any()


def test_no_image_changes_a_bit_of_another():
    values, weight, scale, shift = given(3, 21, 34, 4)
    together = np.empty((3, 11, 17, 4), np.float32)
    convolve_partially(values, weight, scale, shift, together)
    for i in (2, 0, 1):
        alone, one = np.empty((1, 11, 17, 4), np.float32), slice(i, i + 1)
        convolve_partially(values[one], weight, scale[one], shift, alone)
        np.testing.assert_array_equal(alone, together[one])

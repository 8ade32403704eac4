"""The gather of assembled images on arrays that a person can check."""

import numpy as np

from spidask.frames.assemble import assemble, pixel_index, renumber, touched_modules

IMAGE = np.array([[5, 4, -1, 0], [7, 6, -1, 1], [-1, -1, -1, 2], [11, 10, -1, 3]], np.int32)
"""Two pixels a row of three modules of 2 x 2: the first stands, the others are turned."""


def test_pixels_are_gathered_and_gaps_are_missing():
    block = np.arange(24, dtype=np.float32).reshape(2, 6, 2)
    out = assemble(block, pixel_index(IMAGE, (0, 4, 0, 4), 1))
    expected = np.where(IMAGE >= 0, IMAGE, np.nan)
    np.testing.assert_array_equal(out, [expected, expected + 12])


def test_binned_pixels_sum_whole_squares_only():
    block = np.ones((1, 6, 2), np.float32)
    block[0, 3, 0] = 4  # position 6
    index = pixel_index(IMAGE, (0, 2, 0, 2), 2)
    assert index[0, 0].tolist() == [5, 4, 7, 6]
    np.testing.assert_array_equal(assemble(block, index), [[[7, np.nan], [np.nan, np.nan]]])


def test_a_missing_pixel_spoils_its_square_only():
    block = np.ones((2, 6, 2), np.float32)
    block[1, 2, 1] = np.nan  # position 5
    out = assemble(block, pixel_index(IMAGE, (0, 1, 0, 1), 2))
    np.testing.assert_array_equal(out[:, 0, 0], [4, np.nan])


def test_only_some_modules_are_stacked():
    index = pixel_index(IMAGE, (0, 2, 0, 2), 1)
    modules = touched_modules(index, 4)
    assert modules.tolist() == [1]
    part = np.arange(24, dtype=np.float32).reshape(2, 6, 2)[:, 2:4]
    out = assemble(part, renumber(index, modules, 4))
    np.testing.assert_array_equal(out[0], [[5, 4], [7, 6]])
    corner = pixel_index(IMAGE, (3, 4, 0, 4), 1)
    assert touched_modules(corner, 4).tolist() == [0, 2]
    assert renumber(corner, np.array([0, 2]), 4).ravel().tolist() == [7, 6, -1, 3]

"""Frames described by stretches: positions, coordinates and reads across files."""

import numpy as np
from xarray.core import indexing

from spidask.io.stretches import Codes, Stretches, join_stretches


def test_stretches_are_joined_and_split_again():
    file = np.array([0, 0, 0, 2, 2, 1])
    row = np.array([4, 5, 6, 0, 1, 9])
    found = join_stretches(file, row)
    assert found.start.tolist() == [0, 3, 5, 6]
    assert found.between(1, 4) == [(0, 5, 2), (2, 0, 1)]
    assert found.between(3, 6) == [(2, 0, 2), (1, 9, 1)]
    assert found.between(2, 2) == []


def test_no_frames_make_no_stretch():
    found = join_stretches(np.array([], int), np.array([], int))
    assert len(found) == 0
    assert found.between(0, 0) == []


def test_codes_count_or_stay():
    start, first = np.array([0, 2, 5]), np.array([7, 3])
    outer = indexing.OuterIndexer((np.array([4, 0, 2]),))
    assert Codes(start, first, 1, "int64")[outer].tolist() == [5, 7, 3]
    assert Codes(start, first, 0, "int32")[outer].tolist() == [3, 7, 3]
    basic = indexing.BasicIndexer((slice(1, 4),))
    assert Codes(start, first, 1, "int64")[basic].tolist() == [8, 3, 4]


def test_stretches_know_their_length():
    assert len(Stretches(np.array([0, 3, 7]), np.array([0, 1]), np.array([0, 0]))) == 7

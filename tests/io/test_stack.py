"""Region reads of any source: what is asked of it, and which failures cost a frame."""

import numpy as np
import pytest

from spidask.errors import DataError
from spidask.io.stack import enclose, fill_value, read_frames

FRAMES = np.arange(4 * 5 * 6).reshape(4, 5, 6)


class Recorder:
    """An array that notes what was asked and fails where it is told to."""

    def __init__(self, bad=(), error=None):
        self.shape, self.asked, self.bad, self.error = (
            FRAMES.shape,
            [],
            set(bad),
            error or OSError("inflate() failed"),
        )

    def __getitem__(self, key):
        self.asked.append(key)
        if self.bad & set(range(4)[key[0]]):
            raise self.error
        return FRAMES[key]


def read(source, key, dtype="i8"):
    return read_frames(source, key, FRAMES.shape, np.dtype(dtype), "r1.h5")


def test_only_the_region_is_asked_for():
    source = Recorder()
    np.testing.assert_array_equal(read(source, np.s_[1:3, 4:, ::2]), FRAMES[1:3, 4:, ::2])
    np.testing.assert_array_equal(read(source, ([3, 0], slice(1, 2))), FRAMES[[3, 0], 1:2])
    everything = slice(0, 6)
    assert source.asked == [
        (slice(1, 3), slice(4, 5), slice(0, 5)),
        (slice(3, 4), slice(1, 2), everything),
        (slice(0, 1), slice(1, 2), everything),
    ]


def test_a_bad_frame_costs_itself_alone():
    found = read(Recorder(bad=[1, 2]), np.s_[:, 0, 0], "f4")
    np.testing.assert_array_equal(found, [0, np.nan, np.nan, 90])


@pytest.mark.parametrize(
    "error",
    [OSError(5, "Input/output error"), OSError("Can't read data (fread failed)")],
)
def test_a_failing_file_system_says_nothing_about_frames(error):
    with pytest.raises(DataError, match=r"^r1\.h5: the file system failed: .*; run again"):
        read(Recorder(bad=[2], error=error), np.s_[:])


def test_a_mistake_in_the_program_is_not_taken_for_a_bad_frame():
    with pytest.raises(TypeError):
        read(Recorder(bad=[2], error=TypeError("no")), np.s_[:])


@pytest.mark.parametrize("index", [slice(8, 2, -2), slice(3, None), -2, [4, 1, 4], slice(5, 2)])
def test_enclosing_reads_what_numpy_would(index):
    line = np.arange(10)
    read, rest = enclose(index, 10)
    np.testing.assert_array_equal(line[read][rest], line[index])


def test_fill_values():
    assert fill_value(np.dtype("i2")) == 32767
    assert fill_value(np.dtype("u1")) == 255
    assert np.isnan(fill_value(np.dtype("f8")))

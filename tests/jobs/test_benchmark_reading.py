"""The benchmark of reading: rows for what was measured, and no row where values differ."""

import numpy as np
import pytest

from jobs import benchmark_reading


def test_a_layout_is_measured_against_the_others_and_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_reading, "SHAPE", (3, 130, 640))
    monkeypatch.setattr(benchmark_reading, "FRAME", (1, 130, 640))
    monkeypatch.setattr(benchmark_reading, "HDF5", {"contiguous": {}})
    monkeypatch.setattr(benchmark_reading, "REPEATS", 2)
    frames = benchmark_reading.make_frames()
    row = benchmark_reading.measure_hdf5(tmp_path, "contiguous", frames)
    ratios = [f"x {way}{how}" for way in ("plain dask", "h5py", "limit") for how in CLOCKS]
    assert list(row) == ["what", "frames/s", *ratios]
    assert all(row[name] > 0 for name in row if name != "what")


CLOCKS = ("", " by the clock")


def test_other_values_are_an_error_and_not_a_row():
    frames = np.zeros((2, 512, 1024), np.uint16)
    wrong = {"spidask": lambda: frames[benchmark_reading.REGION] + 1}
    with pytest.raises(SystemExit, match="contiguous: spidask gives other values than were"):
        benchmark_reading.compare("contiguous", frames, wrong)

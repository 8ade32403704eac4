"""The benchmark of reading: rows for what was measured, and no row where values differ."""

import os

import numpy as np
import pytest
import zarr

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


@pytest.mark.parametrize(
    ("kept", "n_bytes"),
    [
        ({"chunks": (1, 130, 640)}, 4 * 130 * 640 * 2),
        # Columns 392 to 632 lie in tiles 3 and 4 of 5, rows 0 to 123 in both.
        ({"chunks": (1, 65, 128), "shards": (2, 130, 640)}, 4 * 2 * 2 * 65 * 128 * 2),
    ],
)
def test_zarr_is_measured_against_the_bytes_that_the_region_needs(
    tmp_path, monkeypatch, kept, n_bytes
):
    monkeypatch.setattr(benchmark_reading, "SHAPE", (4, 130, 640))
    monkeypatch.setattr(benchmark_reading, "FRAME", (1, 130, 640))
    monkeypatch.setattr(benchmark_reading, "ZARR", {"Zarr": {"compressors": None, **kept}})
    monkeypatch.setattr(benchmark_reading, "REPEATS", 2)
    read, frames = [], benchmark_reading.make_frames()

    def preadv(descriptor, buffers, address):
        read.append(found := os.pread(descriptor, len(buffers[0]), address))
        return len(found)

    row = benchmark_reading.measure_zarr(tmp_path, "Zarr", frames)
    assert list(row)[2:] == [f"x {way}{how}" for way in ("plain dask", "limit") for how in CLOCKS]
    array = zarr.open_array(tmp_path / "Zarr.zarr", mode="r")
    monkeypatch.setattr(os, "preadv", preadv)
    benchmark_reading.make_zarr_limit(tmp_path / "Zarr.zarr", array)()
    assert sum(map(len, read)) == n_bytes
    # Each row of the region is in what was read.
    assert frames[3, 122, 512:632].tobytes() in b"".join(read)


def test_other_values_are_an_error_and_not_a_row():
    frames = np.zeros((2, 512, 1024), np.uint16)
    wrong = {"spidask": lambda: frames[benchmark_reading.REGION] + 1}
    with pytest.raises(SystemExit, match="contiguous: spidask gives other values than were"):
        benchmark_reading.compare("contiguous", frames, wrong)

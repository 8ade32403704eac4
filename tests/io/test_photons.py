"""Dragonfly's photons as frames: every value, only the region, and clear refusals."""

import os
import subprocess
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from spidask.errors import DataError
from spidask.io.dragonfly import make_detector, write_detector
from spidask.io.emc import MISSING, write_photons, write_photons_binary
from spidask.io.layout import Layout
from spidask.io.photons import are_photons, find_shape
from spidask.io.runs import open_runs, take_frames

SHAPE = (5, 7)
PHOTONS = np.random.default_rng(1).poisson(0.7, (11, *SHAPE)).astype(np.int32)
PHOTONS[3] = 0
PHOTONS[4, 2, 6] = 300_000


def sparse(photons=PHOTONS):
    return sp.csr_array(photons.reshape(len(photons), -1))


def write_dense(path, dtype, kind):
    header = np.zeros(256, "<i4")
    header[:3] = len(PHOTONS), PHOTONS[0].size, kind
    path.write_bytes(header.tobytes() + PHOTONS.astype(dtype).tobytes())


def write(folder, form):
    """One run of them, under a name that tells nothing."""
    path = folder / "photons.any"
    if form == "hdf5":
        write_photons(path, [sparse()], len(PHOTONS), PHOTONS[0].size)
        with h5py.File(path, "a") as file:
            del file["place_missing"]  # which Dragonfly does not write
    elif form == "binary":
        write_photons_binary(path, [sparse()], len(PHOTONS), PHOTONS[0].size)
    else:
        write_dense(path, *{"dense": ("<i4", 1), "dense float": ("<f8", 2)}[form])
    return str(path)


@pytest.mark.parametrize("form", ["hdf5", "binary", "dense", "dense float"])
@pytest.mark.parametrize("frames_per_block", [1, 4, 0])
def test_photons_are_frames(tmp_path, form, frames_per_block):
    path = write(tmp_path, form)
    assert are_photons(path)
    ds = open_runs(path, layout=Layout(shape=SHAPE), frames_per_block=frames_per_block)
    assert ds["frames"].dtype == np.dtype("f8" if form == "dense float" else "i4")
    np.testing.assert_array_equal(ds["frames"].values, PHOTONS)
    np.testing.assert_array_equal(ds["frames"][:, 1:4, 2:6].values, PHOTONS[:, 1:4, 2:6])
    rows = [10, 0, 4, 3]
    np.testing.assert_array_equal(take_frames(ds, rows)["frames"].values, PHOTONS[rows])
    cut = take_frames(ds, rows)["frames"][:, 2:3, 6:].values
    np.testing.assert_array_equal(cut, PHOTONS[rows][:, 2:3, 6:])


def test_pixels_without_a_number_are_nan_in_our_own_files(tmp_path):
    photons = PHOTONS.copy()
    photons[2, 4, 1] = photons[9, 0, 0] = MISSING
    write_photons(tmp_path / "p.h5", [sparse(photons)], len(photons), 35)
    ds = open_runs(str(tmp_path / "p.h5"), layout=Layout(shape=SHAPE))
    assert ds["frames"].dtype == np.dtype("f4")
    np.testing.assert_array_equal(ds["frames"].values, np.where(photons < 0, np.nan, photons))


def test_without_a_fitting_shape_the_number_of_pixels_is_told(tmp_path):
    for form in ("hdf5", "binary"):
        path = write(tmp_path, form)
        with pytest.raises(DataError, match=r"35 pixels a frame; set runs\.shape to \[rows"):
            open_runs(path)
        with pytest.raises(DataError, match=r"35 pixels a frame, expected 5 x 8; correct"):
            open_runs(path, layout=Layout(shape=(5, 8)))
        with pytest.raises(DataError, match="holds photons alone"):
            open_runs(path, layout=Layout(shape=SHAPE, mask="mask"))


def test_every_truncation_and_absurd_header_is_refused(tmp_path):
    whole = Path(write(tmp_path, "binary")).read_bytes()
    for size in [0, 5, 1023, *range(1024, len(whole), 4)]:
        (tmp_path / "cut.emc").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"truncated|is no HDF5 file|is empty"):
            open_runs(str(tmp_path / "cut.emc"), layout=Layout(shape=SHAPE))
    for words in ([-1, 35, 0], [2**31 - 1, 35, 0], [2**31 - 1, 35, 2], [3, 35, 9], [3, 0, 0]):
        header = np.zeros(256, "<i4")
        header[: len(words)] = words
        (tmp_path / "cut.emc").write_bytes(header.tobytes() + whole[1024:])
        with pytest.raises(DataError, match=r"truncated|is no HDF5 file"):
            open_runs(str(tmp_path / "cut.emc"), layout=Layout(shape=SHAPE))


def test_a_frame_with_places_outside_is_unreadable_and_the_others_are_not(tmp_path):
    path = write(tmp_path, "hdf5")
    with h5py.File(path, "a") as file:
        file["place_ones"][5] = np.array([2, 35], "i4")
        file["count_multi"][7] = np.array([2] * 30, "i4")
    frames = open_runs(path, layout=Layout(shape=SHAPE))["frames"].values
    expected = PHOTONS.copy()
    expected[[5, 7]] = np.iinfo("i4").max
    np.testing.assert_array_equal(frames, expected)


def test_memory_is_that_of_the_region_that_is_asked_for(tmp_path):
    n, shape = 400, (200, 200)
    places = np.random.default_rng(2).integers(0, 40_000, (n, 300))
    rows = np.repeat(np.arange(n), 300)
    photons = sp.coo_array((np.ones(n * 300, "i4"), (rows, places.ravel()))).tocsr()
    photons.resize(n, 40_000)
    for write_, name in ((write_photons, "p.h5"), (write_photons_binary, "p.emc")):
        write_(tmp_path / name, [photons], n, 40_000)
        ds = open_runs(str(tmp_path / name), layout=Layout(shape=shape), frames_per_block=20)
        ds["frames"][:1].compute()
        tracemalloc.start()
        part = ds["frames"].data[:, 90:110, 40:60].sum().compute(scheduler="sync")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert part == photons.toarray().reshape(n, *shape)[:, 90:110, 40:60].sum()
        # All frames together are 64 MB.
        assert peak < 3e6


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (2, 6), (6, 2)])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_detector_file_tells_the_shape(tmp_path, rows, columns, swapped):
    y, x = np.mgrid[0:rows, 0:columns] * 1.0 - 2.5
    y, x = (x, y) if swapped else (y, x)
    write_detector(tmp_path / "d.h5", make_detector(y, x, 300.0, np.zeros(y.shape, bool)))
    assert find_shape(str(tmp_path / "d.h5")) == (rows, columns)


def test_a_detector_that_is_no_whole_rectangle_is_refused(tmp_path):
    y, x = np.mgrid[0:6, 0:8] * 1.0
    kept = np.hypot(y - 3, x - 4) < 4
    for name, (a, b) in {
        "round": (y[kept], x[kept]),
        "shuffled": (y.ravel(), x.ravel()[[1, 0, *range(2, 48)]]),
        "two panels": (y.ravel(), np.where(x < 4, x, x + 1).ravel()),
    }.items():
        detector = make_detector(a[None], b[None], 300.0, np.zeros((1, len(a)), bool))
        write_detector(tmp_path / f"{name}.h5", detector)
        with pytest.raises(DataError, match="pixels are no whole rectangle, row after row"):
            find_shape(str(tmp_path / f"{name}.h5"))


SCRIPT = """
import sys
import numpy as np
from dragonfly.emcfile import EMCWriter
frames, out = np.load(sys.argv[1]), sys.argv[2]
for name, hdf5 in (("theirs.h5", True), ("theirs.emc", False)):
    with EMCWriter(out + "/" + name, frames[0].size, hdf5=hdf5) as writer:
        for frame in frames:
            writer.write_frame(frame.ravel())
"""


@pytest.mark.dragonfly
def test_what_dragonfly_writes_comes_as_frames(tmp_path):
    python = os.environ.get("SPIDASK_DRAGONFLY_PYTHON")
    if not python:
        pytest.skip("SPIDASK_DRAGONFLY_PYTHON is not set; .ci/dragonfly-env makes its environment")
    np.save(tmp_path / "frames.npy", PHOTONS)
    subprocess.run([python, "-c", SCRIPT, tmp_path / "frames.npy", tmp_path], check=True)
    for name in ("theirs.h5", "theirs.emc"):
        ds = open_runs(str(tmp_path / name), layout=Layout(shape=SHAPE), frames_per_block=3)
        np.testing.assert_array_equal(ds["frames"].values, PHOTONS)
        np.testing.assert_array_equal(ds["frames"][2:5, 2:, 1:].values, PHOTONS[2:5, 2:, 1:])

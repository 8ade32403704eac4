import os

import h5py
import numpy as np
import pytest

from spidask.io.index import index_files
from spidask.io.runs import open_runs, select_run, sign_files
from spidask.io.sources import list_sources

SHAPE = (6, 4, 5)


def write_source(path, number):
    """A file of numbers, in place of what is there, as HDF5 sees the same one."""
    with h5py.File(path.with_suffix(".next"), "w") as file:
        file["data"] = np.full(SHAPE, number, np.uint16)
    path.write_bytes(path.with_suffix(".next").read_bytes())
    path.with_suffix(".next").unlink()
    os.utime(path, ns=(number, number))


def link(path, source):
    with h5py.File(path, "w") as file:
        file["data"] = h5py.ExternalLink(source.name, "data")


def map_virtually(path, source):
    layout = h5py.VirtualLayout(SHAPE, np.uint16)
    layout[:] = h5py.VirtualSource(source.name, "data", SHAPE)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)


def map_twice(path, source):
    middle = path.with_name("middle.h5")
    map_virtually(middle, source)
    map_virtually(path, middle)


def store_outside(path, source):
    with h5py.File(path, "w") as file:
        where = [(str(source), 2048, h5py.h5f.UNLIMITED)]
        file.create_dataset("data", SHAPE, np.uint16, external=where)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (link, ["source.h5"]),
        (map_virtually, ["source.h5"]),
        (map_twice, ["middle.h5", "source.h5"]),
        (store_outside, ["source.h5"]),
    ],
)
def test_sources_are_listed(tmp_path, make, expected):
    write_source(tmp_path / "source.h5", 1)
    make(tmp_path / "r1.h5", tmp_path / "source.h5")
    with h5py.File(tmp_path / "r1.h5") as file:
        found = list_sources(str(tmp_path / "r1.h5"), file["data"])
    assert found == [str(tmp_path.resolve() / name) for name in expected]


def test_a_file_of_its_own_has_none_and_one_that_is_gone_is_named(tmp_path):
    write_source(tmp_path / "source.h5", 1)
    map_virtually(tmp_path / "r1.h5", tmp_path / "gone.h5")
    for name, expected in (("source.h5", []), ("r1.h5", ["gone.h5"])):
        with h5py.File(tmp_path / name) as file:
            found = list_sources(str(tmp_path / name), file["data"])
        assert [os.path.basename(one) for one in found] == expected


@pytest.mark.parametrize("make", [link, map_virtually, map_twice])
def test_frames_whose_source_alone_is_rewritten_are_read_anew(tmp_path, make):
    source = tmp_path / "source.h5"
    write_source(source, 1)
    make(tmp_path / "r1.h5", source)
    frames = open_runs(str(tmp_path / "r1.h5"), "data")["frames"]
    for number in (1, 2, 3):
        write_source(source, number)
        np.testing.assert_array_equal(frames.values, np.full(SHAPE, number))


@pytest.mark.parametrize("make", [link, map_virtually, map_twice])
def test_a_rewritten_source_makes_the_index_and_labels_stale(tmp_path, make):
    source, cache, paths = tmp_path / "source.h5", tmp_path / "i.json", [str(tmp_path / "r1.h5")]
    write_source(source, 1)
    make(tmp_path / "r1.h5", source)
    (before,), runs = index_files(paths, "data", cache), open_runs(paths, "data")
    signed = sign_files(select_run(runs, "r1"))
    assert index_files(paths, "data", cache) == [before]
    assert sign_files(runs) == signed
    write_source(source, 2)
    (after,) = index_files(paths, "data", cache)
    assert (after.info, after.size) == (before.info, before.size)
    assert after.mtime_ns == before.mtime_ns + 1
    (name, n_bytes, mtime, n_frames), *rest = sign_files(open_runs(paths, "data"))["r1"]
    assert [name, n_bytes, mtime - 1, n_frames] == signed["r1"][0]
    assert rest == []

"""The index of files: read from the cache only while a file has not changed."""

import json

import h5py
import numpy as np

from spidask.io import index
from spidask.io.index import index_files


def write(path, n_frames):
    with h5py.File(path, "w") as file:
        file["d"] = np.zeros((n_frames, 2, 3), "u2")
        file["trainId"] = np.arange(n_frames)
    return str(path)


def count_scans(monkeypatch):
    scanned = []
    scan = index.scan_hdf5
    monkeypatch.setattr(index, "scan_hdf5", lambda *a: scanned.append(a[0]) or scan(*a))
    return scanned


def test_the_second_time_only_what_changed_is_read(tmp_path, monkeypatch):
    paths = [write(tmp_path / f"r{n}.h5", n + 1) for n in range(4)]
    (tmp_path / "r4.h5").write_bytes(b"")
    paths.append(str(tmp_path / "r4.h5"))
    scanned = count_scans(monkeypatch)
    first = index_files(paths, "d", tmp_path / "out" / "index.json")
    assert scanned == paths
    assert [e.info.shape[0] for e in first[:4]] == [1, 2, 3, 4]
    assert first[2].info.event_ids == {"trainId": ["trainId"]}
    assert "is empty (0 bytes)" in first[4].problem
    scanned.clear()
    assert index_files(paths, "d", tmp_path / "out" / "index.json") == first
    assert scanned == [paths[4]]
    scanned.clear()
    write(paths[1], 9)
    again = index_files(paths, "d", tmp_path / "out" / "index.json")
    assert scanned == [paths[1], paths[4]]
    assert again[1].info.shape == (9, 2, 3)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["index.json"]


def test_a_cache_of_something_else_is_not_believed(tmp_path, monkeypatch):
    paths = [write(tmp_path / "r0.h5", 5)]
    cache = tmp_path / "index.json"
    expected = index_files(paths, "d", cache)
    scanned = count_scans(monkeypatch)
    good = json.loads(cache.read_text())
    for text in (
        "",
        "[]",
        "{}",
        json.dumps(good | {"version": 0}),
        json.dumps(good | {"dataset": "e"}),
    ):
        cache.write_text(text)
        assert index_files(paths, "d", cache) == expected
        assert scanned == paths
        scanned.clear()

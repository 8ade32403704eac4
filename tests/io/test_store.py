"""Labels on disk: whole shards only, the mark last, and a kill at any moment loses nothing."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
import zarr

from spidask.errors import StoreError
from spidask.io.store import (
    count_shards,
    create_run,
    gather_labels,
    list_runs,
    missing_shards,
    slice_shard,
    write_shard,
)
from spidask.schema import VARIABLES


def labels(first, last, **others):
    n_frames = last - first
    scores = np.arange(n_frames * 2, dtype="f4").reshape(n_frames, 2) + first
    return xr.Dataset(
        {
            "index": ("frame", np.arange(first, last)),
            "hit": ("frame", np.arange(first, last) % 2 == 0),
            "scores": (("frame", "member"), scores),
            **others,
        }
    )


def fill(store, run, n_frames=10):
    create_run(store, run, labels(0, 0), n_frames, 4)
    for shard in missing_shards(store, run):
        frames = slice_shard(n_frames, 4, shard)
        write_shard(store, run, shard, labels(frames.start, frames.stop))


def test_a_run_is_done_shard_by_shard_and_gathered(tmp_path):
    store = tmp_path / "labels.zarr"
    create_run(store, "r10", labels(0, 3), 10, 4)
    assert missing_shards(store, "r10") == [0, 1, 2]
    write_shard(store, "r10", 2, labels(8, 10))
    write_shard(store, "r10", 0, labels(0, 4))
    assert missing_shards(store, "r10") == [1]
    with pytest.raises(StoreError, match=r"1 shards are missing \(r10: 1\); run again"):
        gather_labels(store)
    assert gather_labels(store, partial=True)["index"].values.tolist() == [0, 1, 2, 3, 8, 9]
    write_shard(store, "r10", 1, labels(4, 8))
    fill(store, "r9", 5)
    assert list_runs(store) == ["r9", "r10"]
    found = gather_labels(store)
    assert found["run_name"].values.tolist() == ["r9", "r10"]
    assert found["run"].values.tolist() == [0] * 5 + [1] * 10
    assert found["index"].values.tolist() == [*range(5), *range(10)]
    assert found["hit"].dtype == bool
    assert found["scores"].dims == ("frame", "member")
    assert found["scores"].values[5:9].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert found["hit"].attrs["long_name"] == VARIABLES["hit"].meaning


def test_xarray_reads_a_run_as_it_is(tmp_path):
    fill(tmp_path, "r1")
    with xr.open_zarr(tmp_path / "r1", consolidated=False) as found:
        assert found["index"].values.tolist() == list(range(10))
        assert found["done"].values.tolist() == [1, 1, 1]
        assert found["scores"].chunks == ((4, 4, 2), (2,))


@pytest.mark.parametrize(
    ("shard", "dataset", "why"),
    [
        (0, labels(0, 3), r"shard 0: 'hit' is bool \(3,\), expected bool \(4,\); write whole"),
        (2, labels(6, 10), r"is bool \(4,\), expected bool \(2,\)"),
        (1, labels(3, 7), "runs from 3 to 6, expected every frame from 4 to 7; write aligned"),
        (1, labels(4, 8).drop_vars("hit"), r"lacks \['hit'\], unknown are \[\]"),
        (1, labels(4, 8, score=("frame", np.zeros(4))), r"lacks \[\], unknown are \['score'\]"),
        (1, labels(4, 8, index=("frame", np.arange(4, 8, dtype="i4"))), "is int32"),
        (
            1,
            labels(4, 8).isel(member=[0]),
            r"'scores' is float32 \(4, 1\), expected float32 \(4, 2",
        ),
        (3, labels(12, 13), "there is no shard 3, the run has 3"),
    ],
)
def test_anything_but_a_whole_aligned_shard_is_refused(tmp_path, shard, dataset, why):
    create_run(tmp_path, "r1", labels(0, 0), 10, 4)
    with pytest.raises(StoreError, match=why):
        write_shard(tmp_path, "r1", shard, dataset)
    assert missing_shards(tmp_path, "r1") == [0, 1, 2]
    assert not (zarr.open_group(tmp_path / "r1")["scores"][:]).any()


def test_a_run_is_created_once(tmp_path):
    fill(tmp_path, "r1")
    create_run(tmp_path, "r1", labels(0, 0), 10, 4)
    assert missing_shards(tmp_path, "r1") == []
    with pytest.raises(
        StoreError,
        match=r"'hit' is bool \(10,\) in shards of 4, expected bool \(10,\) in shards of 5",
    ):
        create_run(tmp_path, "r1", labels(0, 0), 10, 5)
    with pytest.raises(StoreError, match="'score' is absent, expected float32"):
        create_run(tmp_path, "r1", labels(0, 0, score=("frame", np.zeros(0, "f4"))), 10, 4)
    with pytest.raises(StoreError, match=r"'hit' has dimensions .*, expected 'frame' first"):
        create_run(tmp_path, "r2", xr.Dataset({"hit": ("x", [True])}), 10, 4)
    assert list_runs(tmp_path) == ["r1"]


def test_event_ids_that_a_run_lacks_are_minus_one_and_other_gaps_are_refused(tmp_path):
    fill(tmp_path, "r1", 2)
    more = labels(0, 3, trainId=("frame", np.arange(3)))
    create_run(tmp_path, "r2", more, 3, 4)
    write_shard(tmp_path, "r2", 0, more)
    assert gather_labels(tmp_path)["trainId"].values.tolist() == [-1, -1, 0, 1, 2]
    more = labels(0, 3, score=("frame", np.arange(3)))
    create_run(tmp_path, "r3", more, 3, 4)
    write_shard(tmp_path, "r3", 0, more)
    with pytest.raises(StoreError, match="run 'r1' has no 'score', others have"):
        gather_labels(tmp_path)


def test_an_unknown_run_and_an_empty_store_say_so(tmp_path):
    fill(tmp_path / "labels.zarr", "r1", 2)
    with pytest.raises(StoreError, match=r"has no run 'r2'; its runs are r1"):
        missing_shards(tmp_path / "labels.zarr", "r2")
    with pytest.raises(StoreError, match="holds no labels; run the stage classify"):
        gather_labels(tmp_path / "other.zarr")


def test_a_run_of_half_a_creation_is_created_anew(tmp_path):
    fill(tmp_path, "r1", 2)
    left = tmp_path / ".r2.unfinished"
    zarr.open_group(left, mode="w").create_array("old", shape=(3,), dtype="i4")
    assert list_runs(tmp_path) == ["r1"]
    fill(tmp_path, "r2", 2)
    assert list_runs(tmp_path) == ["r1", "r2"]
    assert not left.exists()
    assert "old" not in gather_labels(tmp_path)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import zarr
from test_store import fill
write = zarr.Array.__setitem__
left = [{writes}]
def dying(self, *args):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, *args)
zarr.Array.__setitem__ = dying
fill({store!r}, "r1")
"""


@pytest.mark.parametrize("writes", [0, 2, 3, 6])
def test_a_killed_job_is_finished_by_the_next(tmp_path, writes):
    # Before all others the positions of the frames are written.
    paths = {"tests": os.path.dirname(__file__), "store": str(tmp_path / "a")}
    code = KILLED.format(writes=writes + 1, **paths)
    child = subprocess.run([sys.executable, "-c", code], check=False)
    assert child.returncode == -signal.SIGKILL
    # Each shard is three variables and then its mark: only shards with a mark count.
    assert missing_shards(tmp_path / "a", "r1") == list(range(writes // 4, 3))
    fill(tmp_path / "a", "r1")
    fill(tmp_path / "b", "r1")
    xr.testing.assert_identical(gather_labels(tmp_path / "a"), gather_labels(tmp_path / "b"))


def test_shards_cover_every_frame_once():
    covered = [n for k in range(count_shards(11, 4)) for n in range(11)[slice_shard(11, 4, k)]]
    assert covered == list(range(11))
    assert count_shards(0, 4) == 0

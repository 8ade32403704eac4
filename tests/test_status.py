"""How far an output folder is."""

import os
import socket

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from spidask.cluster import JobState
from spidask.cluster.record import write_cluster
from spidask.errors import StoreError
from spidask.io.manifest import note
from spidask.io.progress import Progress
from spidask.io.store import create_run, write_shard
from spidask.records import hold, write_json
from spidask.status import RunStatus, measure_status


def labels(start, hit):
    index = np.arange(start, start + len(hit))
    return xr.Dataset({"index": ("frame", index), "hit": ("frame", np.array(hit, bool))})


@pytest.fixture
def output(beamtime, tmp_path):
    """Run r1 of 10 frames has two of three shards, r2 of 4 frames none."""
    unreadable = [["r3.h5", "is empty"]]
    counts = {"read": {"files": 3, "frames": 14, "unreadable_files": unreadable}}
    note(beamtime.config(tmp_path), counts)
    store = tmp_path / "labels.zarr"
    for run, n in (("r1", 10), ("r2", 4)):
        create_run(store, run, labels(0, [False]), n, 4)
    write_shard(store, "r1", 0, labels(0, [1, 0, 1, 1]))
    write_shard(store, "r1", 2, labels(8, [0, 1]))
    return tmp_path


def test_shards_frames_and_hits_are_counted(output):
    status = measure_status(output)
    assert status.runs == [RunStatus("r1", 3, 2, 10, 6, 4), RunStatus("r2", 1, 0, 4, 0, 0)]
    assert status.members == 0


def test_the_lines(output):
    assert measure_status(output).lines() == [
        "0 members",
        "driver: none at work",
        "r1        2 of 3 shards, 6 of 10 frames, 4 hits",
        "r2        0 of 1 shards, 0 of 4 frames, 0 hits",
        "all runs  2 of 4 shards, 6 of 14 frames, 4 hits",
        "read: files 3, frames 14, unreadable files 1",
    ]


def test_progress_and_failures(output):
    progress = Progress(output, 4)
    progress.add(4, 3)
    progress.fail("r1", 1, "dark.h5 is gone")
    progress.write()
    lines = measure_status(output).lines()
    classify = next(line for line in lines if line.startswith("classify: "))
    assert classify.startswith("classify: 1 of 4 shards in this go, ")
    assert "75.00% hits, 1 shards failed; last heard of 0 s ago" in classify
    assert "failed: shard 1 of r1: dark.h5 is gone" in lines
    progress.stop("no worker came")
    progress.write(ended=True)
    lines = measure_status(output).lines()
    assert any("1 shards failed; ended 0 s ago" in line for line in lines)
    assert "classify: stopped: no worker came" in lines


def test_jobs_workers_and_the_way_to_the_dashboard(output, monkeypatch):
    write_cluster(
        output, kind="slurm", tunnel="ssh -N -L 1:127.0.0.1:1 me@node", jobs=["17", "18"], workers=2
    )
    told = [JobState("17", "RUNNING", "n1"), JobState("18", "PENDING", "(Resources)")]
    monkeypatch.setattr("spidask.status.list_jobs", lambda ids: told if ids == ["17", "18"] else [])
    with hold(output):
        lines = measure_status(output).lines()
    assert f"driver: process {os.getpid()} on {socket.gethostname()}" in lines
    assert "jobs: 1 PENDING (Resources), 1 RUNNING" in lines
    assert "2 workers; dashboard: ssh -N -L 1:127.0.0.1:1 me@node" in lines
    # Of a driver that was killed, the jobs stay.
    lines = measure_status(output).lines()
    assert "driver: none at work" in lines
    assert "jobs: 1 PENDING (Resources), 1 RUNNING" in lines
    assert not any("dashboard" in line for line in lines)


def test_before_any_label(beamtime, tmp_path):
    note(beamtime.config(tmp_path))
    lines = ["0 members", "driver: none at work", "no labels yet"]
    assert measure_status(tmp_path).lines() == lines


def test_training_shows_before_there_is_a_manifest(tmp_path):
    write_json(tmp_path / "checkpoints" / "settings.json", {"settings": {}})
    assert "training: begun" in measure_status(tmp_path).lines()
    folder = tmp_path / "checkpoints" / "seed3"
    folder.mkdir()
    rows = [{"iteration": 1, "loss": 0.7}, {"iteration": 2, "loss": 0.6, "validation_f1": 0.51}]
    pd.DataFrame(rows).to_csv(folder / "metrics.csv", index=False)
    line = "training: seed3 at iteration 2, best validation F1 0.51"
    assert line in measure_status(tmp_path).lines()


def test_a_folder_that_is_no_output(tmp_path):
    with pytest.raises(StoreError, match=r"is .* the output folder of `spidask run`"):
        measure_status(tmp_path)

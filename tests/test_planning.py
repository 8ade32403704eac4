"""The plan counts what headers say."""

import os
import time

import h5py
import numpy as np
import pytest

from spidask.config import Ensemble, parse_config
from spidask.errors import ConfigError
from spidask.planning import PROCESS_BYTES, make_plan
from spidask.units import format_bytes


def test_the_plan_of_a_small_beamtime(beamtime, tmp_path):
    plan = make_plan(beamtime.config(tmp_path / "out"))
    assert (plan.runs, plan.files, plan.frames, plan.unreadable) == (3, 3, 600, [])
    assert (plan.shape, plan.dtype) == ((40, 48), "uint16")
    # 150, 150 and 300 frames in shards of 128.
    assert (plan.shards, plan.frames_per_shard) == (2 + 2 + 3, 128)
    assert plan.raw_bytes == 600 * 40 * 48 * 2
    assert plan.read_bytes == 600 * 36 * 40 * 2
    assert plan.task_bytes == 128 * 36 * 40 * 2
    threads = len(os.sched_getaffinity(0))
    assert plan.process_bytes == PROCESS_BYTES + threads * 128 * 36 * 40 * (2 + 6)
    assert plan.processes == 1
    assert plan.hit_rate == 0.016
    assert plan.output_bytes["labels.zarr"] == 600 * (38 + 5 * 4)
    assert plan.output_bytes["dragonfly/photons.h5"] == round(600 * 0.016 * 36 * 40)
    assert not (tmp_path / "out").exists()


def test_every_process_holds_the_small_data(beamtime, tmp_path):
    for number, n in ((1, 150), (2, 150), (3, 300)):
        with h5py.File(tmp_path / f"r{number}.h5", "w") as file:
            file["data"], file["timestamp"] = np.zeros((n, 40, 48), "u2"), np.arange(n) + 1
    (tmp_path / "smd.h5").touch()
    values = beamtime.config(tmp_path / "out").model_dump(mode="json")
    values["runs"]["files"] = [f"{tmp_path}/r*.h5"]
    plain = make_plan(parse_config(values))
    joined = make_plan(parse_config({**values, "events": {"files": [f"{tmp_path}/smd.h5"]}}))
    assert joined.process_bytes - plain.process_bytes == 80 * 600


def test_common_mode_reads_whole_asics(beamtime, tmp_path):
    common = {"common_mode": {"asic": [1, 16], "max_adu": 2}}
    plan = make_plan(beamtime.config(tmp_path, preprocessing=common))
    assert plan.read_bytes == 600 * 36 * 48 * 2  # columns 4 to 43 lie in the ASICs of 0 to 47


def test_every_frame_is_a_hit_without_threshold(beamtime, tmp_path):
    plan = make_plan(beamtime.config(tmp_path, hits={"threshold": "none"}, handoff={"bin": 2}))
    assert plan.hit_rate == 1.0
    assert plan.output_bytes["dragonfly/photons.h5"] == 600 * 18 * 20


def test_windows_that_cut_blocks_cost_memory(beamtime, tmp_path):
    def process_bytes(threshold, block):
        inference = {"frames_per_block": block}
        settings = beamtime.config(tmp_path, hits={"threshold": threshold}, inference=inference)
        return make_plan(settings).process_bytes

    assert process_bytes("adaptive", 128) == process_bytes(100.0, 128)
    threads = len(os.sched_getaffinity(0))
    more = process_bytes("adaptive", 100) - process_bytes(100.0, 100)
    assert more == threads * 100 * 36 * 40 * 8 * 4


def test_a_large_region_costs_the_network_memory_and_time(tmp_path):
    # Four times the pixels of the 2018 experiment's region, and nearly as little to read.
    with h5py.File(tmp_path / "r0001.h5", "w") as file:
        file.create_dataset("data", (64, 246, 480), np.uint16)
    values = {"runs": {"files": [f"{tmp_path}/r*.h5"], "dataset": "data"}, "output": "out"}
    cluster = {"kind": "local", "cpu_workers": 1, "gpus": 0}
    region = {"region": {"y": [0, 123], "x": [0, 240]}}

    def plan(batch_size: int, **sections):
        sections["inference"] = {"batch_size": batch_size}
        return make_plan(parse_config({**values, "cluster": cluster, **sections}))

    # 85 bytes of each further pixel of a batch were measured.
    further = 246 * 480 - 123 * 240
    more = plan(64).process_bytes - plan(1).process_bytes
    assert more == pytest.approx(63 * 85 * further, rel=0.03)
    small = plan(64, preprocessing=region)
    assert small.process_bytes == plan(1, preprocessing=region).process_bytes
    assert plan(64).seconds["train"] == pytest.approx(4 * small.seconds["train"], rel=0.03)


PICTURE = {"colours": "grey", "maximum": "own", "size": [128, 256]}


@pytest.mark.parametrize(
    ("training", "measured"),
    [
        ({}, 423e6),
        ({"architecture": "resnet18", "initial": "random", "batch_size": 16}, 654e6),
        (
            {"architecture": "yolov3", "initial": "random", "width": 0.25, "batch_size": 16}
            | {"representation": PICTURE},
            553e6,
        ),
    ],
)
def test_training_takes_the_memory_that_was_measured(tmp_path, training, measured):
    with h5py.File(tmp_path / "r0001.h5", "w") as file:
        file.create_dataset("data", (64, 123, 240), np.uint16)
    values = {"runs": {"files": [f"{tmp_path}/r*.h5"], "dataset": "data"}, "output": "out"}

    def train_bytes(**more):
        plan = make_plan(parse_config({**values, "training": {**training, **more}}))
        assert "training a process that trains takes about" in "\n".join(plan.lines())
        return plan.train_bytes - PROCESS_BYTES

    assert measured < train_bytes() < 2 * measured
    assert train_bytes(subdivisions=4) < 0.6 * train_bytes()


def test_checkpoints_take_space(beamtime, tmp_path):
    training = {"iterations": 100, "checkpoint_every": 30}
    plan = make_plan(beamtime.config(tmp_path, training=training))
    # 30, 60, 90 and 100, and two moments of the last; 0.13 million parameters.
    assert plan.output_bytes["checkpoints"] == 6 * 511_840
    members = {"members": [str(path) for path in beamtime.members]}
    plan = make_plan(beamtime.config(tmp_path, inference=members))
    assert plan.train_bytes == 0
    assert "checkpoints" not in plan.output_bytes


def test_workers_elsewhere_are_not_counted_here(beamtime, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_NNODES", "3")
    cluster = {"kind": "allocation", "gpus": 4}
    plan = make_plan(beamtime.config(tmp_path, cluster=cluster))
    assert (plan.processes, plan.workers, plan.machine_bytes) == (4, 12, 0)
    cluster = {"kind": "scheduler", "scheduler": "tls://node:8786"}
    plan = make_plan(beamtime.config(tmp_path, cluster=cluster))
    assert (plan.processes, plan.workers, plan.machine_bytes) == (1, 1, 0)
    assert any("their machines is not known here" in line for line in plan.lines())


def test_workers_are_processes(beamtime, tmp_path):
    plan = make_plan(beamtime.config(tmp_path, cluster={"kind": "local", "cpu_workers": 3}))
    assert plan.processes == 3
    assert plan.process_bytes == PROCESS_BYTES + 128 * 36 * 40 * (2 + 6)


def test_a_beamtime_that_is_still_to_be_simulated(beamtime, tmp_path):
    simulation = {"folder": str(tmp_path / "none"), "runs": 2, "frames": 300, "hit_rate": 0.5}
    settings = beamtime.config(tmp_path, simulation=simulation)
    plan = make_plan(settings)
    assert (plan.runs, plan.frames, plan.shape) == (2, 600, (512, 1024))
    assert plan.raw_bytes == 600 * 512 * 1024 * 2
    assert plan.shards == 2 * 3
    assert plan.hit_rate == 0.5


def test_a_region_that_does_not_fit(beamtime, tmp_path):
    region = {"region": {"y": [0, 41], "x": [0, 48]}}
    with pytest.raises(ConfigError, match=r"preprocessing\.region\.y"):
        make_plan(beamtime.config(tmp_path, preprocessing=region))


def test_the_lines(beamtime, tmp_path):
    (tmp_path / "r9.h5").write_bytes(b"")
    files = [str(beamtime.folder / "r*.h5"), str(tmp_path / "r9.h5")]
    lines = make_plan(beamtime.config(tmp_path / "out", runs={"files": files})).lines()
    assert lines[0] == (
        "input    600 frames of 40 x 48 uint16 in 3 runs, 3 files; 1 files unreadable"
    )
    assert lines[1] == "raw      2.3 MB, of which 1.73 MB are within the region to read"
    assert lines[-2].startswith("output   4.17 MB if 1.6% of the frames are hits: labels.zarr 34.8")
    # 12 iterations of 16 patterns; 9.6 hits that five members score in 0.8 ms and a little, for the
    # network sees 36 x 40 pixels instead of 123 x 240, and 600 frames in 2.4 us each.
    times = "train 0.12 s, classify 0.042 s, export 0.048 s"
    assert lines[-1].startswith(f"time     {times}, at the rates")


def test_an_early_exit_saves_members(beamtime, tmp_path):
    def seconds(ensemble):
        inference = {"ensemble": ensemble}
        selection = {"expected_single_fraction": 0.25}
        config = beamtime.config(tmp_path, inference=inference, selection=selection)
        return make_plan(config).seconds["classify"]

    # One member for all hits and four for a quarter of them, instead of five.
    reading = 600 * (36 * 48 * 2 / 2e9 + 36 * 40 / 2.2e9)
    saved = (seconds("early_exit") - reading) / (seconds("all") - reading)
    assert saved == pytest.approx((1 + 4 * 0.25) / 5)


def test_the_plan_of_a_cluster_shows_its_jobs(beamtime, tmp_path):
    job = {"cores": 8, "memory": "64GB", "walltime": "02:00:00", "queue": "gpu"}
    cluster = {"kind": "slurm", "gpus": 2, "cpu_workers": 2, "jobs": 3, "job": job}
    plan = make_plan(beamtime.config(tmp_path / "out", cluster=cluster))
    assert (plan.jobs, plan.workers, plan.processes) == (3, 12, 4)
    assert plan.machine_bytes == 64_000_000_000
    threads = 8 // 4
    assert plan.process_bytes == PROCESS_BYTES + threads * 128 * 36 * 40 * (2 + 6)
    alone = make_plan(beamtime.config(tmp_path / "out"))
    assert plan.seconds["classify"] == pytest.approx(alone.seconds["classify"] / 12)
    lines = plan.lines()
    assert "jobs     3 jobs at a time, 12 workers in all; each:" in lines
    assert lines[-1] == plan.script
    assert "#SBATCH -p gpu\n" in plan.script
    assert not (tmp_path / "out").exists()


def test_twelve_million_frames_in_400_files_take_seconds(tmp_path):
    for number in range(400):
        with h5py.File(tmp_path / f"r{number:04d}.h5", "w") as file:
            file.create_dataset("data", (30_000, 512, 1024), np.uint16, chunks=(1, 512, 1024))
    files = {"files": [str(tmp_path / "r*.h5")], "dataset": "data"}
    start = time.perf_counter()
    plan = make_plan(parse_config({"runs": files, "output": str(tmp_path / "out")}))
    assert time.perf_counter() - start < 30
    assert (plan.frames, plan.shards) == (12_000_000, 400 * 8)
    assert format_bytes(plan.raw_bytes) == "12.6 TB"


@pytest.mark.parametrize(
    ("settings", "n_members"),
    [({"n_members": 3}, 3), ({"stages": [2, 4]}, 2), ({"stages": [2, 4], "kind": "seeds"}, 10)],
)
def test_members_are_counted_as_training_makes_them(settings, n_members):
    assert Ensemble(**settings).size == n_members

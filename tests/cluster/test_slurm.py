"""Workers as jobs of a real Slurm: pinned, and lost in every way without changing a label."""

import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml

from spidask import pipeline
from spidask.cluster import connect, pool, read_cluster
from spidask.cluster.record import write_cluster
from spidask.config import Cluster, load_config
from spidask.errors import ClusterError
from spidask.inference import classify_runs
from spidask.io.progress import read_progress
from spidask.io.runs import open_runs, sign_files
from spidask.io.store import gather_labels, missing_shards
from spidask.networks.checkpoints import list_checkpoints
from spidask.status import measure_status
from tests.conftest import Beamtime, write_run
from tests.slurm import Slurm

pytestmark = pytest.mark.slurm
N_FRAMES, PER_SHARD = 2048, 64
N_SHARDS = N_FRAMES // PER_SHARD


@pytest.fixture
def queue(slurm: Slurm) -> Iterator[Slurm]:
    """The Slurm, without jobs before and after."""
    slurm.clear()
    yield slurm
    slurm.clear()


@pytest.fixture(scope="module")
def long_run(beamtime: Beamtime, tmp_path_factory: pytest.TempPathFactory) -> Beamtime:
    """One run that takes a while, and the members of the shared beamtime."""
    folder = tmp_path_factory.mktemp("long")
    write_run(folder / "r0001.h5", N_FRAMES, 5, 0.9)
    return Beamtime(folder, beamtime.members)


def config_of(run: Beamtime, output: Path, members: list[str] | None = None, **cluster: object):
    job = {"cores": 2, "memory": "2GB", "walltime": "00:30:00", "directives": ["--gres=gpu:1"]}
    settings = {"kind": "slurm", "gpus": 1, "jobs": 2, "job": job, "worker_timeout_s": 8}
    inference = {"frames_per_shard": PER_SHARD, "batch_size": 16, "members": members}
    inference["device"] = "cpu"  # the GPUs are pretended
    labels = {"file": None, "truth": None}
    sections = {"cluster": {**settings, **cluster}, "inference": inference, "labels": labels}
    return run.config(output, **sections)


def label(run: Beamtime, config, client=None, progress=lambda _shard, _n: None) -> xr.Dataset:
    frames = open_runs(config.runs.files, "data")
    store = Path(config.output) / "labels.zarr"
    classify_runs(frames, run.members, config, store, sign_files(frames), client, progress)
    return gather_labels(store)


def wait_for_workers(tended: pool.Pool, n_workers: int) -> None:
    """Have jobs asked for, and wait for workers of theirs that can do a shard."""
    deadline = time.monotonic() + 60
    while tended.n_able < n_workers:
        assert time.monotonic() < deadline
        tended.tend(99)
        time.sleep(0.1)


def assert_equal_bits(found: xr.Dataset, expected: xr.Dataset) -> None:
    assert set(found.variables) == set(expected.variables)
    for name in expected.data_vars:
        np.testing.assert_array_equal(found[name].values, expected[name].values, err_msg=name)


@pytest.fixture(scope="module")
def reference(long_run: Beamtime, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """Labels of an undisturbed run in one process."""
    output = tmp_path_factory.mktemp("reference")
    return label(long_run, config_of(long_run, output, kind="inline", gpus=None))


@pytest.mark.usefixtures("queue")
def test_a_whole_node_is_shared_out(tmp_path):
    job = {"cores": 6, "memory": "6GB", "directives": ["--gres=gpu:2"], "walltime": "00:10:00"}
    settings = Cluster(kind="slurm", gpus=2, cpu_workers=1, jobs=2, job=job)
    with connect(settings, tmp_path) as client:
        tended = pool.Pool(client, settings, str(tmp_path))
        assert tended.demand == {"GPU": 1}
        wait_for_workers(tended, 4)
        client.wait_for_workers(6, timeout=60)
        workers = client.scheduler_info(n_workers=-1)["workers"]
        seen = client.run(
            lambda: (os.environ["SLURMD_NODENAME"], os.environ["CUDA_VISIBLE_DEVICES"])
        )
        found = sorted(
            (*seen[address], *worker["resources"]) for address, worker in workers.items()
        )
        assert found == [
            (node, *kind)
            for node in ("vn1", "vn2")
            for kind in (("", "CPU"), ("0", "GPU"), ("1", "GPU"))
        ]
        # Only their owner may read the certificates, and they go with the cluster.
        keys = [path for path in (tmp_path / "tls").iterdir() if path.is_file()]
        assert len(keys) == 3
        assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert not list((tmp_path / "tls").iterdir())


@pytest.mark.usefixtures("queue")
def test_labels_of_a_slurm_cluster_are_those_of_one_process(long_run, reference, tmp_path):
    config = config_of(long_run, tmp_path, cpu_workers=1, gpus=1)
    with connect(config.cluster, config.output) as client:
        wait_for_workers(pool.Pool(client, config.cluster, config.output), 2)
        client.wait_for_workers(4, timeout=60)
        found = label(long_run, config, client)
        workers = client.scheduler_info(n_workers=-1)["workers"]
        events = [event for _, event in client.get_events("spidask") if event["kind"] == "shard"]
    assert_equal_bits(found, reference)
    assert len(events) == N_SHARDS
    # The CPU-only workers had none of them.
    assert {kind for event in events for kind in workers[event["worker"]]["resources"]} == {"GPU"}
    assert len({event["worker"] for event in events}) == 2


def after(n_shards: int, strike: Callable[[], None]) -> Callable[..., None]:
    """Strike once, when so many shards are done."""
    done = []

    def progress(shard, _n):
        done.append(shard)
        if len(done) == n_shards:
            strike()

    return progress


def kill(queue: Slurm, which: str, with_signal: int) -> None:
    """Signal the worker or the nanny of the first running job."""
    job = min(job for job, told in queue.jobs().items() if told.state == "RUNNING")
    for pid in queue.processes(job):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        is_nanny, is_worker = b"dask_worker" in command, b"spawn_main" in command
        if (
            (which == "nanny" and is_nanny)
            or (which == "worker" and is_worker)
            or (which == "both" and (is_nanny or is_worker))
        ):
            os.kill(pid, with_signal)


STRIKES = {
    "scancel": lambda queue: queue.cancel(
        min(job for job, told in queue.jobs().items() if told.state == "RUNNING")
    ),
    "kill -9 of a worker": lambda queue: kill(queue, "worker", signal.SIGKILL),
    "kill -9 of a nanny": lambda queue: kill(queue, "nanny", signal.SIGKILL),
    "SIGSTOP of a job": lambda queue: kill(queue, "both", signal.SIGSTOP),
}


@pytest.mark.parametrize("strike", STRIKES)
def test_a_lost_worker_changes_no_label(
    queue, long_run, reference, tmp_path, monkeypatch, strike, tell_lost
):
    monkeypatch.setattr(pool, "LOOK_EVERY_S", 1.0)
    seconds = []
    for name, fault in (("without", lambda _: None), ("with", STRIKES[strike])):
        config = config_of(long_run, tmp_path / name)
        with connect(config.cluster, config.output) as client:
            wait_for_workers(pool.Pool(client, config.cluster, config.output), 2)
            start = time.perf_counter()
            found = label(long_run, config, client, after(8, partial(fault, queue)))
            seconds.append(time.perf_counter() - start)
        assert_equal_bits(found, reference)
    tell_lost(f"{strike}, {N_SHARDS} shards on two workers", seconds[1], seconds[0])


def test_a_lost_job_is_replaced(queue, long_run, reference, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "LOOK_EVERY_S", 0.5)
    config = config_of(long_run, tmp_path, jobs=1)
    n_before = len(queue.jobs())
    with connect(config.cluster, config.output) as client:
        wait_for_workers(pool.Pool(client, config.cluster, config.output), 1)
        progress = after(4, lambda: STRIKES["scancel"](queue))
        found = label(long_run, config, client, progress)
    assert_equal_bits(found, reference)
    assert len(queue.jobs()) - n_before == 2


@pytest.mark.usefixtures("queue")
def test_no_worker_says_what_squeue_says(long_run, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "LOOK_EVERY_S", 0.5)
    # Held jobs never start.
    job = {"cores": 2, "memory": "2GB", "walltime": "00:10:00", "directives": ["--hold"]}
    config = config_of(long_run, tmp_path, jobs=1, gpus=None, job=job, wait_minutes=0.05)
    expected = r"no worker came within 0.05 minutes; squeue says: 1 PENDING \(JobHeldUser\).*logs"
    with (
        connect(config.cluster, config.output) as client,
        pytest.raises(ClusterError, match=expected),
    ):
        label(long_run, config, client)


@pytest.mark.usefixtures("queue")
def test_what_sbatch_says_is_told(long_run, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "LOOK_EVERY_S", 0.5)
    job = {"cores": 2, "memory": "2GB", "walltime": "00:10:00", "queue": "nowhere"}
    config = config_of(long_run, tmp_path, jobs=1, gpus=None, job=job)
    with (
        connect(config.cluster, config.output) as client,
        pytest.raises(ClusterError, match=r"refuses jobs.*invalid partition specified: nowhere"),
    ):
        label(long_run, config, client)


@pytest.mark.usefixtures("queue")
def test_jobs_that_end_at_once_are_not_asked_for_for_ever(long_run, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "LOOK_EVERY_S", 0.5)
    job = {"cores": 2, "memory": "2GB", "walltime": "00:10:00", "python": "/nowhere/python"}
    config = config_of(long_run, tmp_path, jobs=1, gpus=None, job=job)
    expected = (
        r"4 jobs in a row .* end of the last one's log in .*: .*/nowhere/python: No such file"
    )
    with (
        connect(config.cluster, config.output) as client,
        pytest.raises(ClusterError, match=expected),
    ):
        label(long_run, config, client)


def start_run(config, output: Path) -> subprocess.Popen:
    file = output / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [
        str(Path(sys.executable).parent / "spidask"),
        "run",
        str(file),
        "--until",
        "classify",
    ]
    with (output / "driver.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def done_shards(output: Path) -> int:
    labels = output / "labels.zarr"
    there = (labels / "r0001" / "zarr.json").exists()
    return N_SHARDS - len(missing_shards(labels, "r0001")) if there else 0


def test_a_killed_driver_goes_on_where_the_store_says(
    queue, long_run, reference, tmp_path, tell_lost
):
    output = tmp_path / "out"
    members = [str(path) for path in long_run.members]
    undisturbed = time.perf_counter()
    driver = start_run(config_of(long_run, tmp_path / "undisturbed", members), output.parent)
    assert driver.wait(timeout=120) == 0
    undisturbed = time.perf_counter() - undisturbed
    output.mkdir()
    config = config_of(long_run, output, members)
    start = time.perf_counter()
    driver = start_run(config, output)
    queue.wait(
        lambda: done_shards(output) >= 4 or driver.poll() is not None, "4 shards", seconds=90
    )
    status = measure_status(output)
    driver.kill()
    driver.wait()
    assert any("RUNNING" in line for line in status.lines())
    assert any("ssh -N -L" in line for line in status.lines())
    assert f"driver: process {driver.pid} on {socket.gethostname()}" in status.lines()
    left = read_cluster(output)["jobs"]
    assert left
    again = start_run(config, output)
    assert again.wait(timeout=120) == 0, (output / "driver.log").read_text()
    tell_lost("kill -9 of the driver and a second run", time.perf_counter() - start, undisturbed)
    assert 0 < read_progress(output)["done"] < N_SHARDS
    assert_equal_bits(gather_labels(output / "labels.zarr"), reference)
    queue.wait(lambda: not left_over(queue, left), "no jobs of the first driver", seconds=60)


def left_over(queue: Slurm, jobs: list[str]) -> list[str]:
    return [job for job in jobs if queue.job(int(job)).state in ("PENDING", "RUNNING")]


def test_jobs_of_a_driver_that_was_killed_are_cancelled(queue, tmp_path, caplog):
    caplog.set_level(logging.INFO, "spidask")
    waiting = str(queue.submit("sleep 60", "--hold", f"--output={tmp_path / 'log'}"))
    write_cluster(tmp_path, kind="slurm", jobs=[waiting], tunnel="")
    with connect(Cluster(kind="slurm", cpu_workers=1), tmp_path):
        assert queue.job(int(waiting)).state == "CANCELLED"
    assert "1 jobs of a run that was killed are cancelled" in caplog.messages


def test_one_allocation_holds_scheduler_driver_and_workers(queue, long_run, reference, tmp_path):
    members = [str(path) for path in long_run.members]
    config = config_of(long_run, tmp_path / "out", members, kind="allocation", gpus=2)
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    spidask = Path(sys.executable).parent / "spidask"
    script = f"#!/bin/sh\nsrun {spidask} run {file} --until classify\n"
    # Node vn1 holds the scheduler, the driver and two workers, vn2 two workers more.
    options = ["--nodes=2", "--ntasks=6", "--ntasks-per-node=4", "--cpus-per-task=1"]
    options += ["--distribution=block", "--gres=gpu:2", "--mem=4G", "--time=00:10:00"]
    job = queue.submit(script, *options, f"--output={tmp_path / 'log'}")
    assert queue.wait_for(job, seconds=120).state == "COMPLETED", (tmp_path / "log").read_text()
    assert_equal_bits(gather_labels(tmp_path / "out" / "labels.zarr"), reference)
    keys = list((tmp_path / "out" / "tls").glob("*.pem"))
    assert keys == []


def start_training(config, output: Path) -> subprocess.Popen:
    file = output.parent / f"{output.name}.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [str(Path(sys.executable).parent / "spidask"), "run", str(file), "--until", "train"]
    with (output.parent / f"{output.name}.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def test_a_cancelled_rank_changes_no_weight(queue, beamtime, tmp_path, tell_lost):
    job = {"cores": 2, "memory": "2GB", "walltime": "00:30:00", "directives": ["--gres=gpu:1"]}
    sections = {
        "cluster": {"kind": "slurm", "gpus": 1, "jobs": 2, "job": job},
        "training": {"ranks": 2, "iterations": 60, "checkpoint_every": 6, "timeout_s": 20},
        "inference": {"device": "cpu"},
    }
    members, seconds = {}, {}
    for name in ("undisturbed", "struck"):
        start = time.perf_counter()
        config = beamtime.config(tmp_path / name, **sections)
        driver = start_training(config, tmp_path / name)
        checkpoints = tmp_path / name / "checkpoints" / "seed0"
        if name == "struck":
            begun = partial(list_checkpoints, checkpoints)
            queue.wait(begun, "a checkpoint", seconds=90)
            STRIKES["scancel"](queue)
        assert driver.wait(timeout=200) == 0, (tmp_path / f"{name}.log").read_text()
        seconds[name] = time.perf_counter() - start
        members[name] = [path.read_bytes() for path in sorted(checkpoints.glob("0*.safetensors"))]
    tell_lost("scancel of one of two ranks", seconds["struck"], seconds["undisturbed"])
    assert len(members["struck"]) == 10
    assert members["struck"] == members["undisturbed"]
    log = (tmp_path / "struck.log").read_text()
    assert "vanished (killed, or cut off?); begins again" in log


@pytest.mark.usefixtures("queue")
def test_the_quickstart_gives_the_same_labels_on_slurm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quickstart = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    job = "{cores: 4, memory: 3GB, walltime: '00:30:00', directives: ['--gres=gpu:2']}"
    small = [
        "simulation.frames=80",
        "simulation.panel.dark_frames=4",
        "training.iterations=20",
        "training.batch_size=16",
        "training.checkpoint_every=4",
        "training.threads=1",
        "inference.device=cpu",
        "inference.frames_per_shard=32",
    ]
    local = ["output=local", "cluster.cpu_workers=1"]
    on_slurm = ["output=slurm", "cluster.kind=slurm", "cluster.gpus=2", f"cluster.job={job}"]
    counts = []
    for settings in (local, on_slurm):
        config = load_config(quickstart, [*small, *settings])
        counts.append(pipeline.run(config)["counts"])
    assert_equal_bits(gather_labels("slurm/labels.zarr"), gather_labels("local/labels.zarr"))
    members = [
        [p.read_bytes() for p in sorted(Path(n, "members").glob("*.safe*"))]
        for n in ("local", "slurm")
    ]
    assert len(members[0]) == 5
    assert members[0] == members[1]
    assert counts[0] == counts[1]
    selected = [Path(name, "selection.csv").read_bytes() for name in ("local", "slurm")]
    assert selected[0] == selected[1]
    assert Path("slurm/report.html").exists()
    for stage in ("train", "classify", "export"):
        assert Path("slurm/performance", f"{stage}.html").stat().st_size > 100_000

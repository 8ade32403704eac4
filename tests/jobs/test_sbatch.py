"""The driver as a Slurm job: superseded, it goes on by itself."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from spidask import pipeline
from spidask.io.progress import read_progress
from spidask.io.store import gather_labels, missing_shards
from tests.conftest import Beamtime, write_run
from tests.slurm import Slurm

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture
def queue(slurm: Slurm) -> Iterator[Slurm]:
    """The Slurm, without jobs before and after."""
    slurm.clear()
    yield slurm
    slurm.clear()


@pytest.mark.parametrize("name", ["slurm", "maxwell"])
def test_the_scripts_differ_only_where_sites_do(name):
    script = (JOBS / f"{name}.sbatch").read_text()
    for needed in ("--requeue", "--open-mode=append", "--signal=B:USR1@", "scontrol requeue"):
        assert needed in script
    assert "partition=maxwell" not in script


N_SHARDS = 96


def config_of(beamtime: Beamtime, output: Path, **sections: dict):
    inference = {
        "frames_per_shard": 64,
        "batch_size": 16,
        "members": [str(m) for m in beamtime.members],
        "device": "cpu",  # the GPUs are pretended
    }
    labels = {"file": None, "truth": None}
    return beamtime.config(output, inference=inference, labels=labels, **sections)


@pytest.mark.slurm
def test_a_superseded_driver_is_requeued_and_goes_on(queue, beamtime, tmp_path, monkeypatch):
    write_run(tmp_path / "r0001.h5", 64 * N_SHARDS, 5, 0.9)
    beamtime = Beamtime(tmp_path, beamtime.members)
    job = {"cores": 2, "memory": "2GB", "walltime": "00:30:00", "directives": ["--gres=gpu:1"]}
    cluster = {"kind": "slurm", "gpus": 1, "jobs": 2, "job": job}
    config = config_of(beamtime, tmp_path / "out", cluster=cluster)
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    monkeypatch.setenv("SPIDASK", str(Path(sys.executable).parent / "spidask"))
    script = (JOBS / "slurm.sbatch").read_text().replace('"$@"', f"{file} --until classify")
    options = ["--partition=preemptable", "--mem=2G", "--time=00:30:00"]
    options += [f"--output={tmp_path / 'driver.log'}"]
    driver = queue.submit(script, *options)

    def done():
        labels = tmp_path / "out" / "labels.zarr"
        there = (labels / "r0001" / "zarr.json").exists()
        return N_SHARDS - len(missing_shards(labels, "r0001")) if there else 0

    queue.wait(lambda: done() >= 6, "6 shards", seconds=90)
    queue.requeue(driver)
    queue.wait(lambda: queue.job(driver).state == "PENDING", "the driver to wait", seconds=30)
    # Its workers' jobs were cancelled by it, not left over.
    queue.wait(lambda: all(j.state != "RUNNING" for j in queue.jobs().values()), "none", seconds=60)
    queue.start_now(driver)
    assert queue.wait_for(driver, "COMPLETED", seconds=120).restarts == 1
    assert 0 < read_progress(tmp_path / "out")["done"] <= N_SHARDS - 6
    reference = config_of(beamtime, tmp_path / "inline")
    pipeline.run(reference, "classify")
    expected = gather_labels(tmp_path / "inline" / "labels.zarr")
    found = gather_labels(tmp_path / "out" / "labels.zarr")
    for name in expected.data_vars:
        np.testing.assert_array_equal(found[name].values, expected[name].values, err_msg=name)

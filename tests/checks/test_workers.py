"""Checks of workers: that they can come, and can do what they are to do."""

import shutil

import pytest

from spidask.checks import check


def problems(beamtime, folder, **sections):
    return [(p.severity, p.place, p.message) for p in check(beamtime.config(folder, **sections))]


@pytest.fixture
def sbatch(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/sbatch")


def test_a_batch_system_that_is_not_here(beamtime, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (problem,) = check(beamtime.config(tmp_path, cluster={"kind": "slurm"}))
    assert (problem.severity, problem.place) == ("error", "cluster.kind")
    assert problem.message == (
        "slurm: this machine has no sbatch; run on a login node, or set local"
    )


def test_a_login_node_needs_no_gpu(beamtime, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/sbatch")
    inference = {"device": "cuda"}
    assert [p.place for p in check(beamtime.config(tmp_path, inference=inference))] == [
        "inference.device"
    ]
    cluster = {"kind": "slurm", "gpus": 1, "job": {"directives": ["--gres=gpu:1"]}}
    there = beamtime.config(tmp_path, inference=inference, cluster=cluster)
    assert check(there) == []


@pytest.mark.usefixtures("sbatch")
def test_what_a_job_will_not_find(beamtime, tmp_path):
    job = {"interface": "ib7", "python": "/nowhere/python"}
    found = problems(beamtime, tmp_path, cluster={"kind": "slurm", "gpus": 2, "job": job})
    places = [(severity, place) for severity, place, _ in found]
    assert places == [
        ("error", "cluster.job.interface"),
        ("warning", "cluster.job.python"),
        ("warning", "cluster.gpus"),
    ]
    assert "this machine has" in found[0][2]
    assert "--gres=gpu:2" in found[2][2]
    job = {"directives": ["--gres=gpu:2"], "interface": "lo"}
    cluster = {"kind": "slurm", "gpus": 2, "job": job}
    assert problems(beamtime, tmp_path, cluster=cluster) == []


@pytest.mark.usefixtures("sbatch")
def test_a_path_that_a_jobs_script_does_not_bear(beamtime, tmp_path):
    found = problems(beamtime, tmp_path / "my out", cluster={"kind": "slurm"})
    assert [(severity, place) for severity, place, _ in found] == [("error", "output")]
    assert "has a space in it" in found[0][2]


@pytest.mark.usefixtures("sbatch")
@pytest.mark.parametrize(
    ("cluster", "n_workers"),
    [
        ({"kind": "local", "gpus": 0, "cpu_workers": 3}, 3),
        ({"kind": "local", "gpus": 1, "cpu_workers": 7}, 1),
        ({"kind": "slurm", "jobs": 2, "cpu_workers": 2}, 4),
        ({"kind": "slurm", "jobs": 2, "gpus": 2, "job": {"directives": ["--gres=gpu:2"]}}, 4),
    ],
)
def test_more_ranks_than_workers(beamtime, tmp_path, cluster, n_workers):
    sections = {"cluster": cluster, "inference": {"device": "cpu"}}
    sections["training"] = {"ranks": n_workers, "batch_size": 2 * n_workers}
    assert problems(beamtime, tmp_path, **sections) == []
    sections["training"] = {"ranks": n_workers + 1, "batch_size": 2 * n_workers + 2}
    found = problems(beamtime, tmp_path, **sections)
    assert [(severity, place) for severity, place, _ in found] == [("error", "training.ranks")]
    assert f"at most {n_workers} workers" in found[0][2]

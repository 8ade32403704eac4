"""Checks of the machine and the output folder."""

import importlib.util
import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from spidask.checks import check
from spidask.checks.resources import _runs_on
from spidask.networks.checkpoints import save_checkpoint
from spidask.networks.compact import Compact
from spidask.pipeline import run
from spidask.provenance import sign_beamtime, training_settings


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((8, 0), ["sm_80"], True),
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((7, 0), ["sm_75", "sm_80", "compute_90"], False),
        ((12, 0), ["sm_90a", "sm_120"], True),
    ],
)
def test_which_gpu_runs_what(capability, built, runs):
    assert _runs_on(capability, built) is runs


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_that_torch_was_not_built_for(beamtime, tmp_path, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    (problem,) = check(beamtime.config(tmp_path, inference={"device": device}))
    assert problem.place == "inference.device"
    assert "compute capability 7.0" in problem.message
    assert "built for sm_75, sm_80" in problem.message


def test_a_runtime_that_is_not_installed(beamtime, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "openvino" else found(name, *a),
    )
    (problem,) = check(beamtime.config(tmp_path, inference={"runtime": "openvino"}))
    assert (problem.severity, problem.place) == ("error", "inference.runtime")
    assert "spidask[openvino]" in problem.message


def test_shards_that_cut_windows(beamtime, tmp_path):
    settings = {"hits": {"threshold": "adaptive"}, "inference": {"frames_per_shard": 300}}
    found = [p for p in check(beamtime.config(tmp_path, **settings)) if "window" in p.message]
    assert [(p.severity, p.place) for p in found] == [("warning", "inference.frames_per_shard")]
    assert found[0].message.endswith("set 256")


def test_more_memory_than_there_is(beamtime, tmp_path):
    cluster = {"kind": "local", "gpus": 0, "cpu_workers": 1_000_000}
    (problem,) = check(beamtime.config(tmp_path, cluster=cluster))
    assert (problem.severity, problem.place) == ("warning", "inference.frames_per_block")
    assert problem.message.startswith("1000000 processes with blocks of")
    assert "cluster.cpu_workers" in problem.message


def test_training_that_takes_more_memory_than_there_is(beamtime, tmp_path):
    cluster = {"kind": "local", "gpus": 0, "cpu_workers": 1}
    training = {"batch_size": 2**16}
    (problem,) = check(beamtime.config(tmp_path, cluster=cluster, training=training))
    assert (problem.severity, problem.place) == ("warning", "training.subdivisions")
    assert problem.message.startswith("a process that trains takes about")


def test_more_output_than_there_is_space(beamtime, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    (problem,) = check(beamtime.config(tmp_path))
    assert (problem.severity, problem.place) == ("warning", "output")
    assert "has 10 B free" in problem.message


def test_an_output_that_cannot_be_written(beamtime, tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    (problem,) = check(beamtime.config(tmp_path / "a" / "b"))
    assert (problem.severity, problem.place) == ("error", "output")
    assert problem.message == f"{tmp_path}: Permission denied; choose another output"


def test_members_of_other_settings(beamtime, tmp_path):
    record = tmp_path / "members" / "training.json"
    record.parent.mkdir()
    stored = training_settings(beamtime.config(tmp_path))
    record.write_text(json.dumps({"settings": stored}))
    assert check(beamtime.config(tmp_path)) == []
    (problem,) = check(beamtime.config(tmp_path, training={"seed": 7}))
    assert (problem.severity, problem.place) == ("error", "output")
    assert "training.seed (was 0, is 7)" in problem.message


def test_labels_of_other_settings(beamtime, tmp_path):
    given = {"members": [str(path) for path in beamtime.members]}
    run(beamtime.config(tmp_path, inference=given), "classify")
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*"))
    assert check(beamtime.config(tmp_path, inference=given)) == []
    changed = beamtime.config(tmp_path, inference=given, hits={"threshold": 90.0})
    (problem,) = check(changed)
    assert (problem.severity, problem.place) == ("error", "output")
    assert "hits.threshold was 100.0, is 90.0" in problem.message
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*")) == before


def test_a_beamtime_simulated_with_other_settings(beamtime, tmp_path):
    def config(seed):
        section = {"folder": str(tmp_path), "seed": seed}
        return beamtime.config(tmp_path / "out", simulation=section)

    sign_beamtime(config(1))
    assert check(config(1)) == []
    (problem,) = check(config(2))
    assert (problem.severity, problem.place) == ("error", "simulation.folder")
    assert "simulation.seed (was 1, is 2)" in problem.message


def test_a_training_that_cannot_go_on(beamtime, tmp_path):
    config = beamtime.config(tmp_path)
    folder = tmp_path / "checkpoints" / "seed0"
    network, settings = Compact(), training_settings(config)
    history = [{"iteration": 1, "loss": 1.0}]
    adam = torch.optim.AdamW(network.parameters())
    save_checkpoint(folder, network, adam, np.zeros(2, np.float32), history)
    record = tmp_path / "checkpoints" / "settings.json"
    record.write_text(json.dumps({"settings": settings}))
    assert check(config) == []
    (problem,) = check(beamtime.config(tmp_path, training={"seed": 7}))
    assert (problem.severity, problem.place) == ("error", "output")
    assert "checkpoints was trained with other settings: training.seed (was 0" in problem.message
    (folder / "000001.safetensors").write_bytes(b"cut off")
    (problem,) = check(config)
    assert "000001.safetensors is no spidask tensor file" in problem.message
    assert problem.message.endswith(f"remove {folder} to train from the start")
    save_checkpoint(folder, network, adam, np.zeros(2, np.float32), history)
    (folder / "optimizer_000001.safetensors").unlink()
    (problem,) = check(config)
    assert "optimizer_000001.safetensors is not there" in problem.message

"""A shard as a GPU labels it, on torch's CPU device, against the way of the CPU."""

import dataclasses
import threading

import h5py
import numpy as np
import pytest
import torch
from extra_geom import AGIPD_1MGeometry

from spidask.config import Hits
from spidask.inference import classify_runs, device_shards
from spidask.inference.device_shards import cut_blocks
from spidask.io.runs import open_runs, sign_files
from spidask.io.store import gather_labels
from spidask.networks import staging
from spidask.networks.member import load_member, save_member
from tests.conftest import SHAPE, make_frames
from tests.conftest import write_run as make_run
from tests.io.test_euxfel import write_run

FITTED = ("diameter", "fit_quality", "fluence")


def label(beamtime, output, **sections):
    config = beamtime.config(output, **sections)
    frames = open_runs(config.runs.files, config.runs.dataset)
    store = output / "labels.zarr"
    classify_runs(frames, beamtime.members, config, store, sign_files(frames))
    return gather_labels(store)


def label_both_ways(beamtime, tmp_path, monkeypatch, **sections):
    expected = label(beamtime, tmp_path / "cpu", **sections)
    with monkeypatch.context() as patch:
        # torch takes it for the CPU, and the stage for another device.
        patch.setattr("spidask.inference.shards.resolve_device", lambda _: "cpu:0")
        return label(beamtime, tmp_path / "device", **sections), expected


def assert_same(found, expected):
    assert set(found.variables) == set(expected.variables)
    for name in expected.variables:
        one, other = found[name].values, expected[name].values
        assert one.dtype == other.dtype
        if name in FITTED:  # float32, of products of matrices that add in another order
            np.testing.assert_allclose(one, other, rtol=2e-7, atol=1e-9, err_msg=name)
        else:
            np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize(
    ("threshold", "block", "shard"),
    [("adaptive", 0, 128), ("adaptive", 7, 500), ("none", 64, 500), (100.0, 7, 500)],
)
def test_labels_are_those_of_the_cpu(beamtime, tmp_path, monkeypatch, threshold, block, shard):
    monkeypatch.setattr(device_shards, "SCORED_AT_ONCE", 40)
    found, expected = label_both_ways(
        beamtime,
        tmp_path,
        monkeypatch,
        hits={"threshold": threshold},
        inference={"frames_per_block": block, "frames_per_shard": shard},
    )
    assert 0 < np.isfinite(found["scores"].values[:, 0]).sum() == found["hit"].values.sum()
    assert np.isfinite(found["diameter"].values).sum() > 40
    assert_same(found, expected)


def test_an_early_exit_scores_the_same(beamtime, tmp_path, monkeypatch):
    first = label(beamtime, tmp_path)["scores"].values[:, 0]
    strict = dataclasses.replace(
        load_member(beamtime.members[0]), threshold=float(np.nanmedian(first))
    )
    save_member(strict, tmp_path / "m0.safetensors")
    early = dataclasses.replace(
        beamtime, members=[tmp_path / "m0.safetensors", *beamtime.members[1:]]
    )
    found, expected = label_both_ways(
        early, tmp_path / "early", monkeypatch, inference={"ensemble": "early_exit"}
    )
    assert 0 < np.isfinite(found["scores"].values[:, 1]).sum() < np.isfinite(first).sum()
    assert_same(found, expected)


@pytest.fixture
def energetic(beamtime, tmp_path):
    """A run in ADU with an energy of each frame, an unreadable frame and maps."""
    photons, _ = make_frames(300, 8, 0.3)
    rng = np.random.default_rng(8)
    energies = 1700.7 * rng.normal(1, 0.01, len(photons))
    adu = 100 + 50 * photons * (energies / 1700.7)[:, None, None]
    adu = adu + rng.normal(0, 4, adu.shape) + rng.normal(0, 5, (len(adu), SHAPE[0], 1))
    adu[7] = 65535
    with h5py.File(tmp_path / "r0009.h5", "w") as file:
        file["data"] = adu.clip(0, 65535).round().astype(">u2")
        file["LCLS/photon_energy_eV"] = energies
        file["dark"] = rng.normal(100, 1, SHAPE)
        file["gain"] = np.where(rng.random(SHAPE) < 0.02, np.nan, rng.normal(1, 0.02, SHAPE))
        file["mask"] = rng.random(SHAPE) > 0.02
    return dataclasses.replace(beamtime, folder=tmp_path)


@pytest.mark.parametrize("common_mode", [None, {"asic": [1, 24], "max_adu": 25}])
@pytest.mark.parametrize("width", [1, 2])
def test_calibrated_runs_are_labelled_the_same(
    energetic, tmp_path, monkeypatch, common_mode, width
):
    path = tmp_path / "r0009.h5"
    maps = {name: f"{path}:{name}" for name in ("dark", "gain")}
    found, expected = label_both_ways(
        energetic,
        tmp_path,
        monkeypatch,
        runs={"mask": f"{path}:mask"},
        preprocessing={
            **maps,
            "adu_per_photon": 50,
            "saturation_adu": 5000,
            "common_mode": common_mode,
            "bin": width,
        },
        hits={"threshold": 40.0},
    )
    assert np.flatnonzero(~found["readable"].values).tolist() == [7]
    assert 30 < found["hit"].values.sum() < 200
    assert_same(found, expected)


@pytest.mark.parametrize("width", [1, 2])
def test_assembled_modules_are_labelled_the_same(beamtime, tmp_path, monkeypatch, width):
    geometry = tmp_path / "agipd.geom"
    AGIPD_1MGeometry.example().write_crystfel_geom(str(geometry))
    modules = write_run(tmp_path / "r0001", modules=[3, 4, 8, 15])
    found, expected = label_both_ways(
        beamtime,
        tmp_path,
        monkeypatch,
        runs={"files": [str(modules)], "dataset": "*AGIPD1M*"},
        preprocessing={
            "assembly": str(geometry),
            "bin": width,
            "region": {"y": [580, 680], "x": [500, 600]},
            "adu_per_photon": 9000,
            "common_mode": {"asic": [64, 64], "max_adu": 30_000},
        },
        hits={"threshold": "none"},
        inference={"frames_per_block": 5},
    )
    assert found["hit"].values.sum() == 12
    assert (found["photon_count"].values > 0).all()
    assert_same(found, expected)


def test_a_failing_read_is_the_cause_that_is_told(beamtime, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr("spidask.io.stretches.FramesReader._read", fail)
    monkeypatch.setattr("spidask.inference.shards.resolve_device", lambda _: "cpu:0")
    with pytest.raises(Exception, match="the disk is gone"):
        label(beamtime, tmp_path)


@pytest.mark.parametrize("chunks", [(100,), (7,) * 40, (128, 128, 44), (250, 30)])
def test_blocks_end_where_windows_do(chunks):
    blocks, ends = cut_blocks(chunks, Hits(window=100))
    assert [block.start for block in blocks[1:]] == [block.stop for block in blocks[:-1]]
    assert (blocks[0].start, blocks[-1].stop) == (0, sum(chunks))
    assert set(np.cumsum(chunks).tolist()) <= {block.stop for block in blocks}
    assert ends <= {block.stop for block in blocks}
    # What is left over after the last whole window belongs to it.
    assert all(end % 100 == 0 or end == sum(chunks) for end in ends)
    assert sum(chunks) in ends


def test_blocks_are_read_while_hits_are_scored(beamtime, tmp_path, monkeypatch):
    reads, lock, n_seen = [], threading.Condition(), []
    read, score = staging.send, device_shards.score_patterns

    def send(*args):
        sent = read(*args)
        with lock:
            reads.append(len(sent[0]))
            lock.notify_all()
        return sent

    def score_later(patterns, *args):
        # It goes on once the blocks ahead are there, which nobody has asked for yet.
        n = min(len(n_seen) + 1 + 3, 16)
        with lock:
            assert lock.wait_for(lambda: len(reads) >= n, timeout=60)
        n_seen.append(len(patterns))
        return score(patterns, *args)

    monkeypatch.setattr(staging, "send", send)
    monkeypatch.setattr(device_shards, "score_patterns", score_later)
    monkeypatch.setattr(device_shards, "SCORED_AT_ONCE", 1)
    monkeypatch.setattr("spidask.inference.shards._n_threads", lambda: 2)
    monkeypatch.setattr("spidask.inference.shards.resolve_device", lambda _: "cpu:0")
    make_run(tmp_path / "r0001.h5", 1024, 5, 0.9)
    one_run = dataclasses.replace(beamtime, folder=tmp_path)
    inference = {"frames_per_block": 64, "frames_per_shard": 1024}
    found = label(one_run, tmp_path / "out", hits={"threshold": 100.0}, inference=inference)
    assert len(n_seen) == len(reads) == 16
    assert sum(n_seen) == found["hit"].values.sum() > 800


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_labels_as_the_cpu_does(beamtime, tmp_path, precision):
    given = {"hits": {"threshold": "adaptive"}}
    expected = label(beamtime, tmp_path / "cpu", inference={"device": "cpu"}, **given)
    on_gpu = {"device": "cuda", "precision": precision}
    found = label(beamtime, tmp_path / "gpu", inference=on_gpu, **given)
    law = {"fp32": 1e-3, "bf16": 1e-2}[precision]
    scores, thresholds = expected["scores"].values, [0.3, 0.3]
    flipped = (found["scores"].values >= thresholds) != (scores >= thresholds)
    assert (np.abs(scores - thresholds)[flipped] <= law).all()
    assert_same(found.drop_vars("scores"), expected.drop_vars("scores"))
    assert torch.cuda.max_memory_allocated() > 0

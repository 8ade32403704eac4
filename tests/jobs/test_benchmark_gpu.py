"""The benchmark of a GPU, on the CPU that stands for one, and what it says without one."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spidask.networks import preprocess
from spidask.networks.member import SHIPPED

sys.path.append(str(Path(__file__).parents[2] / "jobs"))
import benchmark
import benchmark_gpu
import benchmark_kernels
import benchmark_pipeline
from benchmark_picture import judge


@pytest.fixture
def patterns():
    hits = np.random.default_rng(0).poisson(3.0, (5, 123, 240)).astype(np.float32)
    hits[:, 60:70] = np.nan
    return hits


@pytest.fixture
def pretended(monkeypatch):
    """Small files, and a device that torch takes for the CPU."""
    small = {"FRAME": (130, 640), "N_FRAMES": 256, "N_HITS": 5, "STOCK": 8}
    for name, value in small.items():
        monkeypatch.setattr(benchmark_pipeline, name, value)
    for name in ("synchronize", "reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    monkeypatch.setattr(benchmark_gpu, "ROUNDS", 1)
    monkeypatch.setattr(
        "spidask.inference.shards.resolve_device",
        lambda config: "cpu:0" if config.inference.device == "cuda" else "cpu",
    )
    monkeypatch.setattr("spidask.inference.scoring.resolve_device", lambda _: "cpu")


@pytest.mark.usefixtures("pretended")
def test_a_layout_has_rows_of_reading_the_whole_and_the_law(patterns, tmp_path):
    rows = benchmark_gpu.measure_layout(
        tmp_path, "uncompressed", patterns, {"compact": SHIPPED}, "cuda"
    )
    alone, whole, single, half = rows
    assert alone["frames/s"] > 0
    assert whole["of AGIPD's rate"] == pytest.approx(whole["frames/s"] / 3520)
    assert {"s read", "s preprocess", "s score", "s size", "s write"} <= whole.keys()
    assert single["largest difference"] < 1e-5
    assert single["largest relative difference of diameters"] < 1e-6
    assert half["largest difference"] < 0.1
    json.dumps(rows)


@pytest.mark.usefixtures("pretended")
def test_other_photons_are_an_error_and_not_a_row(patterns, tmp_path, monkeypatch):
    right = preprocess.calibrate

    def wrong(*args, **more):
        found, counts = right(*args, **more)
        counts[3, 0] += 1
        return found, counts

    monkeypatch.setattr(preprocess, "calibrate", wrong)
    with pytest.raises(SystemExit, match="uncompressed: the device gives another photon_count"):
        benchmark_gpu.measure_layout(
            tmp_path, "uncompressed", patterns, {"compact": SHIPPED}, "cuda"
        )


def test_networks_and_kernels_have_rows(patterns, monkeypatch):
    monkeypatch.setattr(benchmark_gpu, "ROUNDS", 1)
    monkeypatch.setattr(benchmark_gpu, "N_AGIPD", 1)
    monkeypatch.setattr(benchmark_kernels, "N_FRAMES", 8)
    row = benchmark_gpu.measure_network(SHIPPED, patterns, "cpu", "fp32", 1e11)
    assert row["of the matrix rate"] > row["of the matrix rate with the view"] > 0
    rows = benchmark_gpu.measure_kernels(patterns, "cpu")
    assert len(rows) == 4
    assert all(row["raw GB/s"] > 0 and row["x the bus"] > 0 for row in rows[:3])
    assert rows[3]["patterns/s"] > 0
    json.dumps([row, *rows])


def test_training_has_a_row_with_an_aim(patterns, tmp_path):
    seen = {"size": (64, 64), "colours": "jet", "maximum": "own"}
    small = {"width": 0.0625, "batch_size": 4, "iterations": 6, "checkpoint_every": 3}
    for _ in range(2):  # what is there of a benchmark before is not gone on with
        row = benchmark_gpu.measure_training(
            tmp_path, patterns, "cpu", representation=seen, **small
        )
        minutes = 4400 / row["iterations/s"] / 60
        assert row["minutes for 4400 iterations"] == pytest.approx(minutes)
        ((text, times),) = judge([{**row, "what": row["what"].replace("of 4", "of 64")}])
        assert text.startswith("yolov2 416 trains, bf16, batches of 64: ")
        assert times == pytest.approx(6 / minutes)


@pytest.mark.parametrize(
    ("name", "message"),
    [("pipeline", "sees no CUDA device on this machine"), ("read", "no rows of a GPU")],
)
def test_without_a_gpu_it_says_so_and_fails(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", name, str(tmp_path / "x"), "--gpu"])
    with pytest.raises(SystemExit, match=message) as ended:
        benchmark.main()
    assert ended.value.code not in (None, 0)
    assert not (tmp_path / "x").exists()

"""The benchmark of the pipeline: a plain loop gives the same labels, or there is no row."""

import sys
from pathlib import Path

import numpy as np
import pytest

from spidask.networks.member import SHIPPED

sys.path.append(str(Path(__file__).parents[2] / "jobs"))
import benchmark_pipeline


@pytest.fixture
def measure(tmp_path, monkeypatch):
    small = {"FRAME": (130, 640), "N_FRAMES": 256, "N_HITS": 5, "STOCK": 8, "ROUNDS": 1}
    for name, value in {**small, "PRECISIONS": ("fp32",)}.items():
        monkeypatch.setattr(benchmark_pipeline, name, value)
    hits = np.random.default_rng(0).poisson(3.0, (5, 123, 240)).astype(np.float32)
    hits[:, 60:70] = np.nan
    members = [str(SHIPPED), str(SHIPPED)]
    return lambda layout: benchmark_pipeline.measure_layout(tmp_path, layout, hits, members)


@pytest.mark.parametrize("layout", benchmark_pipeline.LAYOUTS)
def test_a_layout_has_rows_of_the_whole_and_its_parts(measure, layout):
    alone, whole, parts = measure(layout)
    assert alone["frames/s"] > whole["frames/s"] > 0
    assert whole["of reading alone"] < 1
    assert list(parts) == ["what", *(f"us {part}" for part in benchmark_pipeline.PARTS)]


def test_other_labels_are_an_error_and_not_a_row(measure, monkeypatch):
    none = lambda score, *_, **__: np.zeros(len(score), bool)  # noqa: E731
    monkeypatch.setattr(benchmark_pipeline, "find_hits", none)
    with pytest.raises(SystemExit, match="uncompressed, fp32: a plain loop gives other labels"):
        measure("uncompressed")

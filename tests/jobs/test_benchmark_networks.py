"""What the benchmark of networks concludes from its numbers."""

import numpy as np
import pytest
import torch

from jobs.benchmark_networks import Case, interleave, judge, measure, ratio
from spidask.config import Representation
from spidask.networks.compact import Compact

THRESHOLDS = np.array([0.5, 0.2])


def test_scores_that_change_sides_near_their_threshold_are_counted():
    reference = np.array([[0.4999, 0.3], [0.7, 0.1]], np.float32)
    other = np.array([[0.5001, 0.3], [0.7, 0.1]], np.float32)
    row = judge(other, reference, THRESHOLDS, "torch", "fp32")
    assert row["of 4 scores changed sides, all within 0.001"] == 1
    assert row["largest difference"] == pytest.approx(2e-4, rel=1e-2)


def test_scores_that_change_sides_far_off_break_the_law():
    reference = np.array([[0.495, 0.3]], np.float32)
    other = np.array([[0.505, 0.3]], np.float32)
    judge(other, reference, THRESHOLDS, "torch", "bf16")
    with pytest.raises(AssertionError, match="1 scores far off"):
        judge(other, reference, THRESHOLDS, "torch", "fp32")


def test_ratios_are_medians_of_rounds_beside_each_other():
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0
    calls = []
    found = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, "cpu")
    assert calls == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 2, "b": 2}


def test_every_form_of_a_network_has_a_row():
    network = Compact().eval().requires_grad_(False)
    case = Case("compact", network, Representation(), 8, 1)
    patterns = torch.from_numpy(np.random.default_rng(0).poisson(1.0, (8, 40, 50))).float()
    rows, best = measure(case, patterns, "cpu", {"fp32": 1e11, "bf16": 2e11})
    assert rows[0]["what"] == "compact, eager NCHW, fp32"
    assert rows[0]["times eager"] == rows[0]["times eager without the view"] == 1
    assert {"compact, torch, fp32", "compact, torch, bf16"} <= {str(row["what"]) for row in rows}
    assert set(best) == {"fp32", "bf16"}
    assert all(row["of the matrix rate"] > 0 for row in rows)

"""Networks made ready: the same scores, in every runtime that is installed."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import torch

from spidask.config import Representation
from spidask.errors import ClusterError
from spidask.networks.cascade import score_members
from spidask.networks.compact import Compact
from spidask.networks.member import SHIPPED, load_member
from spidask.networks.runtime import Ready, require
from spidask.networks.yolo import YoloV3

RUNTIMES = [
    "torch",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("openvino") is None, reason="needs spidask[openvino]"
        ),
    ),
]
LAW = {"fp32": 1e-3, "bf16": 1e-2}


@pytest.fixture(scope="module")
def patterns():
    y, x = np.mgrid[:123, :240]
    fall = 300 / (1 + np.hypot(y + 3, x - 119.5) / 6) ** 2
    photons = np.random.default_rng(2).poisson(fall, (11, 123, 240)).astype(np.float32)
    photons[:, :, 110:112] = np.nan
    photons[3, 60:, :40] = np.nan
    return photons


@pytest.fixture(scope="module")
def member():
    return load_member(SHIPPED)


def score(member, patterns, size):
    return score_members([member], patterns, [size], early_exit=False)[:, 0]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scores_are_those_of_the_network_within_the_law(member, patterns, precision, runtime):
    ready = dataclasses.replace(member, network=Ready(member.network, precision, runtime))
    expected, found = score(member, patterns, 4), score(ready, patterns, 4)
    assert np.abs(found - expected).max() < LAW[precision] / 2


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scores_do_not_depend_on_neighbours_or_place(member, patterns, precision, runtime):
    ready = dataclasses.replace(member, network=Ready(member.network, precision, runtime))
    together = score(ready, patterns, 4)
    alone = np.concatenate([score(ready, patterns[i : i + 1], 4) for i in range(len(patterns))])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together, score(ready, patterns[::-1], 4)[::-1])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_networks_with_several_outputs_and_other_shapes(runtime):
    torch.manual_seed(0)
    network = YoloV3(0.1).eval().requires_grad_(False)
    ready = Ready(network, "fp32", runtime)
    for size in ((64, 96), (32, 64)):
        representation = Representation(colours="grey", maximum="own", size=size)
        patterns = torch.from_numpy(np.random.default_rng(0).poisson(2.0, (2, 20, 30))).float()
        with torch.inference_mode():
            seen = ready.see(patterns, representation)
            expected, found = network(*seen), ready(*seen)
            assert len(found) == len(expected) == 3
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(ready.log_odds(found), network.log_odds(expected))


def test_without_onednn_the_folded_network_computes(member, patterns, monkeypatch):
    monkeypatch.setattr("spidask.networks.runtime.can_fuse", lambda _dtype: False)
    ready = dataclasses.replace(member, network=Ready(member.network, "bf16"))
    expected, found = score(member, patterns, 4), score(ready, patterns, 4)
    assert 0 < np.abs(found - expected).max() < 1e-2


def test_a_runtime_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    require("torch")
    with pytest.raises(ClusterError, match=r"^inference\.runtime: the package openvino is not"):
        Ready(Compact(), "fp32", "openvino")

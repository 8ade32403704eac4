"""Fused networks give what the networks give, and nothing of them is left behind."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from spidask.config import Representation
from spidask.networks.compact import Compact
from spidask.networks.efficientnet import EfficientNet
from spidask.networks.fusing import can_fuse, fuse
from spidask.networks.member import SHIPPED, load_member
from spidask.networks.resnet import ResNet18
from spidask.networks.yolo import YoloV2, YoloV3

JET = Representation(colours="jet", maximum="own", size=(64, 96))
GREY = Representation(colours="grey", maximum="own", size=(64, 96))
NETWORKS = {
    "compact": (Compact, Representation()),
    "compact of another window": (lambda: Compact(kernel=5), Representation()),
    "compact of other widths": (lambda: Compact(widths=(10, 18, 32)), Representation()),
    "resnet18": (lambda: ResNet18(0.25), Representation()),
    "efficientnet": (EfficientNet, JET),
    "yolov2": (lambda: YoloV2(0.1), JET),
    "yolov2 in grey": (lambda: YoloV2(0.1), GREY),
    "yolov3": (lambda: YoloV3(0.1), JET),
}

pytestmark = pytest.mark.skipif(not can_fuse(torch.float32), reason="torch without oneDNN")


@pytest.fixture
def patterns():
    photons = np.random.default_rng(1).poisson(3.0, (4, 41, 60)).astype(np.float32)
    photons[:, :, 20:24] = np.nan
    photons[1, 5:9, :] = np.nan
    return torch.from_numpy(photons)


def trained(make) -> nn.Module:
    """A network whose norms have statistics, as training leaves them."""
    torch.manual_seed(3)
    network = make().eval().requires_grad_(False)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 2.0)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.2, 0.2)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_fused_networks_give_the_same(name, patterns):
    make, representation = NETWORKS[name]
    network = trained(make)
    with torch.inference_mode():
        seen = network.see(patterns, representation)
        expected = network(*seen)
        found = fuse(network, seen, torch.float32)(*seen)
    if isinstance(expected, torch.Tensor):
        expected, found = [expected], [found]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_all_norms_that_follow_convolutions_are_gone(patterns):
    for make, representation in NETWORKS.values():
        network = trained(make)
        with torch.inference_mode():
            fused = fuse(network, network.see(patterns, representation), torch.float32)
        left = [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
        # That of the compact network's autocorrelation stands before its convolution.
        assert len(left) == (network.name == "compact")
        assert not any(type(module) is nn.Conv2d for module in fused.modules())


def test_the_network_is_left_as_it_is(patterns):
    network = trained(Compact)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.inference_mode():
        fuse(network, network.see(patterns, Representation()), torch.float32)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neighbours_of_another_mask_change_no_bit(dtype):
    if not can_fuse(dtype):
        pytest.skip("no bfloat16 here")
    network = trained(Compact)
    # Of no size that vectors divide.
    photons = torch.from_numpy(np.random.default_rng(1).poisson(3.0, (3, 37, 53))).float()
    photons[:, 3:9, 20:24] = torch.nan
    other = photons.clone()
    other[2, 10:20, 5:9] = torch.nan
    with torch.inference_mode():
        one, two = (network.see(patterns, Representation()) for patterns in (photons, other))
        fused = fuse(network, one, dtype)
        torch.testing.assert_close(fused(*one)[:2], fused(*two)[:2], rtol=0, atol=0)


@pytest.mark.parametrize(
    "make", [lambda: Compact((5, 8), (4, 5), hidden=21), lambda: ResNet18(0.1)]
)
def test_place_in_the_batch_changes_no_bit_whatever_the_width(make):
    network = trained(make)
    photons = torch.from_numpy(np.random.default_rng(1).poisson(3.0, (16, 37, 53))).float()
    with torch.inference_mode():
        one, two = (
            network.see(patterns, Representation()) for patterns in (photons, photons.roll(1, 0))
        )
        fused = fuse(network, one, torch.float32)
        torch.testing.assert_close(fused(*two), fused(*one).roll(1, 0), rtol=0, atol=0)


def test_the_first_convolution_of_the_usual_window_is_one_layer(patterns):
    for make, n_layers in ((Compact, 1), (NETWORKS["compact of another window"][0], 2)):
        network = trained(make)
        with torch.inference_mode():
            seen = network.see(patterns, Representation())
            fused = fuse(network, seen, torch.float32)
        names = [name for name, _ in fused.named_children() if name.startswith("fused_stem")]
        assert len(names) == n_layers


@pytest.mark.skipif(not can_fuse(torch.bfloat16), reason="no bfloat16 here")
def test_in_half_precision_the_shipped_network_keeps_its_scores():
    member = load_member(SHIPPED)
    y, x = np.mgrid[:123, :240]
    fall = 300 / (1 + np.hypot(y + 3, x - 119.5) / 6) ** 2
    random = np.random.default_rng(2)
    patterns = torch.from_numpy(random.poisson(fall, (8, 123, 240)).astype(np.float32))
    network = member.network
    with torch.inference_mode():
        seen = network.see(patterns, member.representation)
        expected = torch.sigmoid(network.log_odds(network(*seen)))
        found = torch.sigmoid(network.log_odds(fuse(network, seen, torch.bfloat16)(*seen)))
    assert 0 < (found - expected).abs().max() < 1e-2


class Slow(nn.Module):
    """A network that takes its time the first time it is called, which is when it is traced."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.entered, self.left = threading.Event(), threading.Event()

    def forward(self, x):
        self.entered.set()
        assert self.left.wait(60)
        return x * self.weight


def test_other_threads_run_networks_while_one_is_fused():
    slow, other, x = Slow(), nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.ones(1, 3)
    expected = other(x)
    with ThreadPoolExecutor(1) as pool:
        fusing = pool.submit(fuse, slow, (x,), torch.float32)
        try:
            assert slow.entered.wait(60)
            assert torch.equal(other(x), expected)
            assert isinstance(slow.weight, nn.Parameter)
        finally:
            slow.left.set()
        assert torch.equal(fusing.result()(x), x)

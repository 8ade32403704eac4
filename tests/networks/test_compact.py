"""The compact network: its size, its missing pixels, and what its autocorrelation sees."""

import numpy as np
import pytest
import torch

from spidask.config import Representation
from spidask.frames.residuals import roughen, scale_windows
from spidask.networks.compact import Compact, PartialConv, autocorrelation, roughen_on_device
from spidask.networks.cost import measure_cost
from spidask.networks.folding import fold_norms
from spidask.networks.representation import represent, stretch_of

NAN = float("nan")


DEFAULT = Representation()


def see(photons, settings=DEFAULT):
    """Roughness on any device, and on the CPU; they agree."""
    values, present = represent(photons, settings)
    rough = roughen_on_device(values, present, stretch_of(settings))
    is_log = settings.scale == "logarithmic"
    found = roughen(photons.numpy(), settings.maximum, is_logarithmic=is_log)
    for one, other in zip((values[:, 0], present[:, 0], rough), found, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)
    return rough


def test_stays_within_its_size_at_the_region_of_the_experiment():
    cost = measure_cost(Compact(), Representation(), (123, 240))
    assert cost.gflop < 0.101
    assert cost.n_parameters <= 1_000_000


def test_partial_convolution_of_a_constant_does_not_see_holes():
    torch.manual_seed(0)
    layer = PartialConv(3, 3, 1)
    layer.conv.weight.data.fill_(0.5)
    present = torch.ones(1, 1, 5, 5)
    present[0, 0, 1:3, 1:4] = 0
    scale = layer.scale_windows(present)
    np.testing.assert_allclose(scale[:, 0], scale_windows(present[:, 0].numpy(), 3, 1), rtol=1e-6)
    out = layer(2.0 * present, scale)
    # Nine pixels of 2 with weights of 1/2 are 9, at the borders and beside the hole as well.
    assert torch.allclose(out, torch.full_like(out, 9.0))


def test_partial_convolution_of_nothing_is_zero():
    layer = PartialConv(2, 3, 1)
    nothing = torch.zeros(1, 1, 4, 4)
    out = layer(nothing, layer.scale_windows(nothing))
    assert torch.equal(out, torch.zeros(1, 2, 4, 4))
    assert not scale_windows(nothing[:, 0].numpy(), 3, 1).any()


def test_missing_pixels_are_not_dark_pixels():
    torch.manual_seed(0)
    network = Compact().eval()
    dark = torch.from_numpy(np.random.default_rng(0).poisson(2.0, (1, 48, 64))).float()
    missing = dark.clone()
    dark[:, 10:20, 10:30] = 0
    missing[:, 10:20, 10:30] = NAN
    with torch.no_grad():
        outputs = [network(*network.see(x, Representation())) for x in (dark, missing)]
    assert not torch.allclose(*outputs, atol=1e-4)


def test_what_stands_under_a_missing_pixel_does_not_matter():
    values, present = represent(torch.tensor([[[1.0, NAN], [3.0, 0.0]]]), Representation())
    assert values[0, 0, 0, 1] == 0
    assert present.flatten().tolist() == [1, 0, 1, 1]


def test_representation_in_both_scales():
    photons = torch.tensor([[[0.0, 30.0, 60.0]]])
    linear, _ = represent(photons, Representation(scale="linear", maximum=30))
    logarithmic, _ = represent(photons, Representation(scale="logarithmic", maximum=30))
    assert linear.flatten().tolist() == [0, 1, 1]
    expected = [0, 1, np.log(61) / np.log(31)]
    np.testing.assert_allclose(logarithmic.flatten(), expected, rtol=1e-6)


def test_fringes_become_a_spot_at_their_frequency():
    height, width, period = 64, 96, 8
    x = torch.arange(width)
    fringes = (1 + torch.cos(2 * torch.pi * x / period)).expand(1, height, width)
    power = autocorrelation(see(fringes.contiguous(), Representation(scale="linear")))
    row, column = divmod(int(power[0, 0].argmax()), power.shape[-1])
    # 96 pixels hold 12 periods: column 12 of the transform, 6 after pooling by two; no change
    # along y is row height / 2, which is 16 after pooling.
    assert (row, column) == (16, 6)


def test_any_region_size_gives_four_classes():
    network = Compact().eval()
    for height, width in ((33, 70), (128, 128)):
        seen = network.see(torch.rand(2, height, width), Representation())
        assert network(*seen).shape == (2, 4)


def test_faint_fringes_stand_out_of_the_noise():
    # Brighter by 15 % in every fifth column, in a pattern that falls from 40 photons to 0.1.
    random = np.random.default_rng(3)
    y, x = np.mgrid[:120, :240]
    fall = 0.1 + 40 / (1 + (np.hypot(y + 3, x - 119.5) / 12) ** 3)
    photons = random.poisson(fall * (1 + 0.15 * np.cos(2 * np.pi * x / 5)), (8, 120, 240))
    power = autocorrelation(see(torch.from_numpy(photons.astype(np.float32)))).numpy()
    # 240 pixels hold 48 periods: column 24 after pooling, in the middle row.
    # White noise has the mean log(2) or less there.
    assert (power[:, :, 30, 24] > 3 * np.log(2)).all()
    assert (power[:, :, :, 15:].mean((2, 3)) < 1.1 * np.log(2)).all()


def test_the_photons_are_those_of_the_representation():
    photons = torch.tensor(np.random.default_rng(1).poisson(5.0, (2, 48, 64)), dtype=torch.float32)
    powers = []
    for settings in (
        Representation(maximum=30),
        Representation(maximum=300),
        Representation(scale="linear", maximum=300),
    ):
        powers.append(autocorrelation(see(photons, settings))[:, 1])
    for other in powers[1:]:
        assert torch.allclose(powers[0], other, atol=1e-3)


@pytest.mark.parametrize("rows", [61, 62, 64])
def test_what_the_cpu_sees_is_what_devices_see(rows):
    torch.manual_seed(0)
    network = Compact().eval()
    random = np.random.default_rng(5)
    y, x = np.mgrid[:rows, :82]
    photons = random.poisson(60 / (1 + np.hypot(y + 3, x - 41) / 5) ** 2, (4, rows, 82))
    patterns = torch.from_numpy(photons.astype(np.float32))
    patterns[:, :8, 30:50] = NAN
    patterns[1, 20:60, 3:9] = NAN
    values, present = represent(patterns, Representation())
    on_device = autocorrelation(roughen_on_device(values, present))
    here = network.see(patterns, Representation())
    for one, other in zip(
        (values, network.stem.scale_windows(present), on_device), here, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_folded_norms_change_nothing_but_rounding():
    torch.manual_seed(2)
    network = Compact()
    patterns = torch.from_numpy(np.random.default_rng(2).poisson(2.0, (8, 48, 64))).float()
    seen = network.see(patterns, Representation())
    with torch.no_grad():
        for _ in range(3):
            network(*seen)  # running statistics that are not those of the beginning
        expected = network.eval()(*seen)
        folded = fold_norms(network)
        assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules()) == 2
        torch.testing.assert_close(folded(*seen), expected, rtol=1e-4, atol=1e-5)

"""Raw frames to photons on a device, against the kernels for the CPU, bit by bit."""

import numpy as np
import pytest
import torch

from spidask.frames import calibrate as on_cpu
from spidask.frames.assemble import pixel_index
from spidask.frames.calibrate import Calibration
from spidask.networks.preprocess import calibrate, to_device

SHAPE = (7, 9)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def maps(rng, **settings):
    offset = np.where(rng.random(SHAPE) < 0.1, np.nan, rng.normal(200, 5, SHAPE))
    divisor = rng.uniform(90, 110, SHAPE)
    return Calibration(offset.astype(np.float32), divisor.astype(np.float32), **settings)


def raw_frames(rng, dtype):
    fill = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else np.nan
    block = rng.normal(500, 300, (6, *SHAPE)).clip(0, min(np.nan_to_num(fill, nan=2000), 2000))
    block = block.astype(dtype)
    block[3] = fill
    block[rng.random(block.shape) < 0.05] = fill
    return block


def assert_same_bits(block, calibration, ratio=None, device="cpu"):
    raw = torch.from_numpy(block).to(device)
    given = to_device(calibration, torch.device(device))
    patterns, counts = calibrate(raw, given, ratio, lit_photons=0.7)
    expected = on_cpu.calibrate(block, calibration, ratio, lit_photons=0.7)
    for one, other in zip((patterns, counts), expected, strict=True):
        found = one.cpu().numpy()
        assert found.dtype == other.dtype
        assert found.shape == other.shape
        bits = found.view(f"u{found.dtype.itemsize}"), other.view(f"u{found.dtype.itemsize}")
        # A NaN is a NaN, whatever its sign.
        np.testing.assert_array_equal(*(np.where(np.isnan(found), 0, bit) for bit in bits))
        np.testing.assert_array_equal(np.isnan(found), np.isnan(other))
    np.testing.assert_array_equal(raw.cpu().numpy(), block)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "i4", "i8", "f2", "f4", "f8"])
@pytest.mark.parametrize("asic", [None, (1, 4), (3, 5), (7, 9)])
def test_patterns_and_counts_equal_those_of_the_cpu(dtype, asic, device):
    rng = np.random.default_rng(3)
    calibration = maps(rng, photon_threshold=0.6, saturation_adu=1500.0, asic=asic, max_adu=250.0)
    block = raw_frames(rng, dtype)
    assert_same_bits(block, calibration, device=device)
    assert_same_bits(block, calibration, rng.uniform(0.9, 1.1, len(block)), device)


def test_missing_saturated_and_signed_zero():
    block = np.array([[[np.nan, np.inf, -np.inf, 300.0, 299.0, -0.0]]])
    plain = Calibration(np.zeros((1, 6), np.float32), np.ones((1, 6), np.float32), 0.5, 300.0)
    assert_same_bits(block, plain)
    assert_same_bits(block, Calibration(plain.offset, plain.divisor, photon_threshold=1.0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("asic", [None, (4, 4)])
def test_assembled_and_binned_regions_equal_those_of_the_cpu(width, asic, device):
    rng = np.random.default_rng(4)
    # Two modules of 4 x 8 side by side in an image with a gap, one of them turned over.
    image = np.full((8, 12), -1, np.int32)
    image[:, :4] = np.arange(32).reshape(4, 8).T
    image[:, 6:10] = 32 + np.arange(32).reshape(4, 8).T[::-1, ::-1]
    index = pixel_index(image, (0, 8 // width, 0, 12 // width), width)
    divisor = rng.uniform(90, 110, (8, 8)).astype(np.float32)
    offset = np.where(rng.random((8, 8)) < 0.05, np.nan, 100).astype(np.float32)
    calibration = Calibration(offset, divisor, asic=asic, max_adu=40.0, index=index)
    block = (100 + 100 * rng.poisson(0.7, (5, 8, 8)) + rng.normal(0, 15, (5, 8, 8))).astype("u2")
    block[2] = 65535
    assert_same_bits(block, calibration, device=device)
    assert_same_bits(block, calibration, np.linspace(0.9, 1.1, 5), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["noise", "ties", "outliers", "two levels"])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 127, 128])
def test_the_common_mode_is_the_median_of_the_unlit_pixels(kind, size, device):
    rng = np.random.default_rng(size)
    block = {
        "noise": rng.normal(3, 8, (20, 2, size)),
        "ties": rng.integers(-2, 3, (20, 2, size)) * 1.0,
        "outliers": np.where(rng.random((20, 2, size)) < 0.4, -1e30, 1.0),
        "two levels": np.broadcast_to(np.where(np.arange(size) % 2, -1e5, 40.0), (20, 2, size)),
    }[kind].astype(np.float32)
    block[rng.random(block.shape) < 0.1] = np.nan
    block[rng.random(block.shape) < 0.1] = 1000
    offset, divisor = np.zeros((2, size), np.float32), np.full((2, size), 0.01, np.float32)
    assert_same_bits(
        block, Calibration(offset, divisor, asic=(1, size), max_adu=50.0), device=device
    )


def test_a_group_of_lit_pixels_stays_as_it_is():
    block = np.array([[[100, 200, 300]]], np.uint16)
    maps = Calibration(
        np.zeros((1, 3), np.float32),
        np.full((1, 3), 100, np.float32),
        asic=(1, 3),
        max_adu=50,
    )
    patterns, counts = calibrate(
        torch.from_numpy(block), to_device(maps, torch.device("cpu")), lit_photons=0.7
    )
    assert patterns.tolist() == [[[1, 2, 3]]]
    assert counts.tolist() == [[6, 3, 3]]


def test_maps_are_on_the_device_once():
    calibration = maps(np.random.default_rng(0))
    device = torch.device("cpu")
    assert to_device(calibration, device) is to_device(calibration, device)

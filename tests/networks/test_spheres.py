"""The fit of spheres on a device, against that on the CPU."""

import numpy as np
import pytest
import torch

from spidask.frames import sizing
from spidask.networks import spheres

SHAPE = (40, 60)
Y, X = np.indices(SHAPE)
Q = np.hypot(Y + 3, X - 29.5) * 4e6
EXPOSURE = 1 / (1 + (Q / 3e8) ** 2)
LIBRARY = sizing.sphere_library(Q, EXPOSURE, 4e6, (25.0, 150.0), "sphere")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def simulate(n, seed=0):
    """Noisy spheres with missing pixels, an empty pattern and an unreadable one."""
    rng = np.random.default_rng(seed)
    form = np.stack([sizing.sphere_amplitude(Q, d) ** 2 for d in rng.uniform(50, 90, n)])
    mean = form * EXPOSURE / (form * EXPOSURE).sum((1, 2), keepdims=True)
    patterns = rng.poisson(mean * rng.uniform(1e3, 1e5, (n, 1, 1))).astype(np.float32)
    patterns[rng.random(patterns.shape) < 0.05] = np.nan
    patterns[:, 5:7] = np.nan
    patterns[1], patterns[2] = 0, np.nan
    return patterns


def on(device):
    return spheres.to_device(LIBRARY, torch.device(device))


@pytest.mark.parametrize("device", DEVICES)
def test_radial_sums_equal_those_of_the_cpu(device):
    patterns = simulate(9)
    found = spheres.radial_sums(torch.from_numpy(patterns).to(device), on(device))
    expected = sizing.radial_sums(patterns, LIBRARY.bins, LIBRARY.exposure)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.cpu().numpy(), other)


@pytest.mark.parametrize("device", DEVICES)
def test_fits_equal_those_of_the_cpu(device):
    patterns = simulate(100)
    found = spheres.fit_patterns(torch.from_numpy(patterns).to(device), on(device))
    sums = sizing.radial_sums(patterns, LIBRARY.bins, LIBRARY.exposure)
    expected = np.stack(sizing.fit_spheres(*sums, LIBRARY), 1)
    assert found.dtype == np.float32
    assert np.isnan(found[1:3]).all()
    assert np.isfinite(found[3:]).all()
    # Of float32, the last digit.
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-9)


def test_what_is_fitted_beside_a_pattern_changes_nothing(monkeypatch):
    patterns = torch.from_numpy(simulate(70))
    together = spheres.fit_patterns(patterns, on("cpu"))
    monkeypatch.setattr(spheres, "PIXELS_AT_ONCE", 7 * Q.size)
    parts = [spheres.fit_patterns(part, on("cpu")) for part in patterns.split(9)]
    np.testing.assert_array_equal(np.concatenate(parts), together)
    assert spheres.fit_patterns(patterns[:0], on("cpu")).shape == (0, 3)


def test_rings_without_a_pixel_hold_nothing():
    bins = np.array([[0, 2, 2]], np.int32)
    library = sizing.SphereLibrary(
        bins, np.array([[1.0, 0.5, 0.25]]), np.arange(3.0), np.ones(3), np.ones((3, 3)), 1.0
    )
    patterns = torch.tensor([[[4.0, 2.0, torch.nan]]])
    found = spheres.radial_sums(patterns, spheres.to_device(library, torch.device("cpu")))
    assert [sums.tolist() for sums in found] == [[[4, 0, 2]], [[1, 0, 0.5]]]

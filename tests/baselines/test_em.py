"""Expectation maximization against slow sums, and on clusters that are known."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from spidask.baselines import em
from spidask.baselines.turns import Polar, transform
from spidask.cluster import connect
from spidask.config import Cluster
from spidask.frames.polar import polar_grid, to_polar

N_RINGS, N_ANGLES = 4, 24


def draw_model(n_classes: int, seed: int) -> em.Model:
    random = np.random.default_rng(seed)
    intensity = random.uniform(0.2, 3, (n_classes, N_RINGS, N_ANGLES))
    return em.Model(intensity, random.dirichlet(np.full(n_classes, 9.0)))


def draw_patterns(model: em.Model, n: int, seed: int, *, half: bool = True):
    """Patterns of random classes, turns and brightness; of a half panel. Also the truth."""
    random = np.random.default_rng(seed)
    classes = random.choice(len(model.share), n, p=model.share)
    turns = random.integers(N_ANGLES, size=n)
    scale = random.uniform(0.5, 2, n)
    n_pixels = np.full((n, N_RINGS, N_ANGLES), 5, np.float32)
    if half:
        n_pixels[:, :, N_ANGLES // 2 :] = 0
    n_pixels[:, 1, 3] = 2  # some pixels are masked
    # Angle a of the pattern is angle a + turn of the class.
    turned = np.stack(
        [np.roll(model.intensity[k], -t, 1) for k, t in zip(classes, turns, strict=True)]
    )
    photons = random.poisson(turned * n_pixels * scale[:, None, None]).astype(np.float32)
    return Polar(photons, n_pixels), scale, classes


def cut(patterns: Polar, *parts: slice) -> list[Polar]:
    return [Polar(patterns.photons[part], patterns.n_pixels[part]) for part in parts]


def slow_log_joint(patterns: Polar, scale: np.ndarray, model: em.Model) -> np.ndarray:
    n = len(patterns.photons)
    out = np.zeros((n, len(model.share), N_ANGLES))
    for frame in range(n):
        for k in range(len(model.share)):
            for turn in range(N_ANGLES):
                total = math.log(model.share[k] / N_ANGLES)
                for ring in range(N_RINGS):
                    for angle in range(N_ANGLES):
                        mean = model.intensity[k, ring, (angle + turn) % N_ANGLES] * scale[frame]
                        total += float(patterns.photons[frame, ring, angle]) * math.log(mean)
                        total -= float(patterns.n_pixels[frame, ring, angle]) * mean
                out[frame, k, turn] = total
    return out


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
            ],
        ),
    ],
)
def test_a_step_is_that_of_sums_over_cells(device):
    model = draw_model(2, 1)
    patterns, scale, _ = draw_patterns(model, 3, 2)
    spectra = transform(patterns, device)
    expected = slow_log_joint(patterns, scale, model)
    joint = np.exp(expected - expected.max((1, 2), keepdims=True))
    chance = joint / joint.sum((1, 2), keepdims=True)
    found = em.responsibilities(spectra, scale, model)
    np.testing.assert_allclose(found, chance, atol=1e-9)
    sums = em.expect(spectra, scale, model)
    total = sum(np.log(np.exp(one - one.max()).sum()) + one.max() for one in expected)
    assert sums.log_likelihood == pytest.approx(total, rel=1e-12)
    # What goes into the next model, and the next brightness, by hand.
    (photons, exposure), light = np.zeros((2, *model.intensity.shape)), np.zeros(3)
    for frame, k, turn in np.ndindex(chance.shape):
        weight = chance[frame, k, turn]
        n_pixels = np.roll(patterns.n_pixels[frame], turn, 1).astype(float)
        photons[k] += weight * np.roll(patterns.photons[frame], turn, 1)
        exposure[k] += weight * scale[frame] * n_pixels
        light[frame] += weight * np.sum(n_pixels * model.intensity[k])
    np.testing.assert_allclose(sums.photons, photons, atol=1e-9)
    np.testing.assert_allclose(sums.exposure, exposure, atol=1e-9)
    np.testing.assert_allclose(sums.weight, chance.sum((0, 2)), atol=1e-12)
    brighter = em.rescale(spectra, scale, model)
    np.testing.assert_allclose(brighter, patterns.photons.sum((1, 2)) / light, rtol=1e-9)


def test_less_sharp_probabilities_are_powers():
    model = draw_model(2, 1)
    patterns, scale, _ = draw_patterns(model, 3, 2)
    joint = slow_log_joint(patterns, scale, model) * 0.02
    power = np.exp(joint - joint.max((1, 2), keepdims=True))
    found = em.responsibilities(transform(patterns, "cpu"), scale, model, 0.02)
    np.testing.assert_allclose(found, power / power.sum((1, 2), keepdims=True), atol=1e-12)


def test_to_advance_is_to_rescale_and_to_expect():
    model, begun = draw_model(3, 3), draw_model(3, 4)
    patterns, _, _ = draw_patterns(model, 40, 4)
    spectra = transform(patterns, "cpu")
    first = em.advance(spectra, None, begun, 0.5)
    np.testing.assert_array_equal(first.scale, np.ones(40))
    second = em.advance(spectra, first, model, 0.7)
    np.testing.assert_array_equal(second.scale, em.rescale(spectra, first.scale, model, 0.7))
    for part, given, sharpness in ((first, begun, 0.5), (second, model, 0.7)):
        sums = em.expect(spectra, part.scale, given, sharpness)
        for name, value in vars(sums).items():
            np.testing.assert_array_equal(value, getattr(part.sums, name))


def test_blocks_add_up_to_the_whole():
    model = draw_model(3, 3)
    patterns, scale, _ = draw_patterns(model, 40, 4)
    whole = em.expect(transform(patterns, "cpu"), scale, model)
    parts = slice(0, 7), slice(7, 40)
    first, second = (
        em.expect(transform(block, "cpu"), scale[part], model)
        for part, block in zip(parts, cut(patterns, *parts), strict=True)
    )
    for name, value in vars(first + second).items():
        np.testing.assert_allclose(value, getattr(whole, name), rtol=1e-9, atol=1e-9)


def test_the_likelihood_never_falls():
    given, _, _ = draw_patterns(draw_model(3, 5), 120, 6)
    patterns, scale, model = transform(given, "cpu"), np.ones(120), em.begin(given, 4, seed=0)
    for _ in range(25):
        sums = em.expect(patterns, scale, model)
        before = sums.log_likelihood
        model = em.maximize(sums, model)
        # A new brightness is a step of its own, which does not lower it either.
        halfway = em.expect(patterns, scale, model).log_likelihood
        assert halfway >= before - 1e-9 * abs(before)
        scale = em.rescale(patterns, scale, model)
        after = em.expect(patterns, scale, model).log_likelihood
        assert after >= halfway - 1e-9 * abs(halfway)


def test_known_clusters_are_found_whatever_their_turn():
    angle = 2 * np.pi * np.arange(N_ANGLES) / N_ANGLES
    fringes = [1 + 0.9 * np.cos(n * angle) for n in (2, 3, 5)]
    intensity = np.stack([np.stack([1.5 * f] * N_RINGS) for f in fringes])
    true = em.Model(intensity, np.full(3, 1 / 3))
    patterns, scale, classes = draw_patterns(true, 200, 7)
    fits = [em.fit([patterns], 3, seed) for seed in range(3)]
    best = max(fits, key=lambda one: one.log_likelihoods[-1])
    pairs = np.zeros((3, 3), int)
    np.add.at(pairs, (classes, best.chances[0].argmax(1)), 1)
    # Each found class is a true one, and as good as if the truth were known.
    assert sorted(pairs.argmax(1)) == [0, 1, 2]
    chance = em.responsibilities(transform(patterns, "cpu"), scale, true)
    known = np.sum(chance.sum(2).argmax(1) == classes)
    assert known > 195
    assert pairs.max(1).sum() >= known - 2
    # After the exponent has reached 1 the likelihood never falls.
    last = best.log_likelihoods[30:]
    assert all(b >= a - 1e-9 * abs(a) for a, b in pairwise(last))


def test_workers_find_what_one_process_finds(tmp_path):
    patterns, _, _ = draw_patterns(draw_model(2, 8), 60, 9)
    blocks = cut(patterns, slice(0, 20), slice(20, 40), slice(40, 60))
    here = em.fit(blocks, 2, seed=1, n_steps=10)
    with connect(Cluster(cpu_workers=2, gpus=0), tmp_path) as client:
        there = em.fit(blocks, 2, seed=1, n_steps=10, client=client, demand={"CPU": 1})
    np.testing.assert_allclose(there.model.intensity, here.model.intensity, rtol=1e-9)
    np.testing.assert_allclose(there.log_likelihoods, here.log_likelihoods, rtol=1e-12)
    for one, other in zip(there.chances, here.chances, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_a_pattern_in_rings_and_angles_keeps_its_photons():
    random = np.random.default_rng(0)
    patterns = random.poisson(2, (3, 20, 40)).astype(np.float32)
    patterns[1, 5, 7] = np.nan
    grid = polar_grid((20, 40), (-3.0, 19.5), (0.0, 60.0), 10, 36)
    photons, n_pixels = to_polar(patterns, grid)
    np.testing.assert_allclose(photons.sum((1, 2)), np.nansum(patterns, (1, 2)))
    assert n_pixels.sum((1, 2)).tolist() == [800, 799, 800]
    # The beam lies above the region, so that all its pixels lie below: angles up to half a turn.
    assert n_pixels[:, :, 18:].sum() == 0


def test_cells_lie_where_their_pixels_do():
    pattern = np.zeros((1, 21, 21), np.float32)
    pattern[0, 10, 18] = 7  # 8 pixels along +x
    pattern[0, 14, 10] = 5  # 4 pixels along +y
    photons, _ = to_polar(pattern, polar_grid((21, 21), (10, 10), (0.0, 10.0), 5, 8))
    assert photons[0, 4, 0] == 7
    assert photons[0, 2, 2] == 5
    assert photons.sum() == 12

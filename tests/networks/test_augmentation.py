"""Augmentation keeps photons whole, noise Poisson and missing pixels missing."""

import numpy as np
import pytest
import torch
from scipy import stats

from spidask.networks.augmentation import (
    LEAST_FLUENCE,
    MAX_HOLE,
    MAX_SHIFT,
    add_margin,
    augment,
    thin,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def augment_all(patterns: np.ndarray, seed: int, boxes: np.ndarray | None = None):
    """Every pattern once, in its place."""
    rows = torch.arange(len(patterns))
    given = None if boxes is None else torch.from_numpy(boxes)
    found = augment(add_margin(torch.from_numpy(patterns)), rows, given, generator(seed))
    return found[0].numpy(), None if boxes is None else found[1].numpy()


@pytest.mark.parametrize(("n", "share"), [(1, 0.4), (3, 0.45), (12, 0.7), (40, 0.9), (3000, 0.6)])
def test_thinned_photons_are_binomial(n, share):
    patterns = torch.full((2, 200, 250), float(n))
    kept = thin(patterns, torch.tensor([share, share]), generator(n)).numpy().ravel()
    truth = stats.binom(n, np.float32(share))
    # Intervals of equal probability as far as whole numbers allow, each with many photons.
    edges = np.unique(truth.ppf(np.linspace(0.05, 1, 20)))
    expected = np.diff(truth.cdf(np.r_[-1, edges])) * kept.size
    seen = np.histogram(kept, np.r_[-1, edges] + 0.5)[0]
    assert seen.sum() == kept.size
    assert stats.chisquare(seen, expected).pvalue > 1e-3


def test_thinned_poisson_is_poisson_of_the_smaller_mean():
    pattern = np.random.default_rng(0).poisson(8.0, (1, 300, 300)).astype(np.float32)
    thinned = thin(torch.from_numpy(pattern), torch.tensor([0.25]), generator(0)).numpy()
    # Mean and variance 2, each within five standard errors of 90 000 pixels.
    assert abs(thinned.mean() - 2) < 5 * np.sqrt(2 / 9e4)
    assert abs(thinned.var() - 2) < 5 * np.sqrt((2 + 2 * 4) / 9e4)
    assert (thinned <= pattern).all()


def test_missing_pixels_stay_missing_when_thinned():
    thinned = thin(torch.tensor([[[torch.nan, 4.0]]]), torch.tensor([0.5]), generator(0))
    assert thinned[0, 0, 0].isnan()
    assert thinned[0, 0, 1] in range(5)


def test_changes_are_those_of_the_place_and_no_others():
    n, shape = 64, (40, 50)
    pattern = np.random.default_rng(1).integers(10_000, 20_000, shape).astype(np.float32)
    found, _ = augment_all(np.repeat(pattern[None], n, 0), seed=4)
    framed = np.pad(pattern, MAX_SHIFT, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(framed, shape)
    shifts, holes = [], []
    for place, one in enumerate(found):
        upright = one[:, ::-1] if place < n // 2 else one
        # Of all shifts the right one leaves a ratio that is the same everywhere.
        shift = min(np.ndindex(windows.shape[:2]), key=lambda at: np.nanstd(upright / windows[at]))
        shifts.append(shift)
        source = windows[shift]
        ratio, share = upright / source, np.nanmean(upright / source)
        if place % 2 == 0:
            assert LEAST_FLUENCE - 0.01 < share < 1
            expected = np.sqrt(share * (1 - share) / 14_427)  # one over the mean of 1 / photons
            assert np.nanstd(ratio) == pytest.approx(expected, rel=0.1)
        else:
            assert np.nanmin(ratio) == np.nanmax(ratio) == 1
        y, x = np.nonzero(np.isnan(upright) & ~np.isnan(source))
        holes.append((place, len(y)))
        if len(y):
            assert len(y) == (np.ptp(y) + 1) * (np.ptp(x) + 1)
            assert max(np.ptp(y), np.ptp(x)) < MAX_HOLE
    punched = [place for place, n_pixels in holes if n_pixels]
    assert set(punched) <= set(range(n // 4, 3 * n // 4))
    assert len(punched) > 0.8 * n // 2  # the others lie where pixels are missing anyway
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(2 * MAX_SHIFT + 1))


def test_augmentation_depends_on_its_generator_only_and_leaves_the_patterns_alone():
    patterns = np.random.default_rng(0).poisson(3.0, (8, 40, 50)).astype(np.float32)
    before = patterns.copy()
    first, second = (augment_all(patterns, 1)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(patterns, before)
    assert first.dtype == np.float32
    assert not np.array_equal(first, augment_all(patterns, 2)[0])


def test_boxes_go_with_their_patterns():
    patterns = np.zeros((40, 40, 80), np.float32)
    patterns[:, 10:20, 50:70] = 1000
    boxes = np.tile(np.float32([60 / 80, 15 / 40, 20 / 80, 10 / 40]), (40, 1))
    n_whole = 0
    for moved, found in zip(*augment_all(patterns, 5, boxes), strict=True):
        lit = np.nan_to_num(moved) > 100
        y, x = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
        if len(x) == 20 and len(y) == 10:  # no hole cut its edges
            edges = [(x[0] + x[-1] + 1) / 160, (y[0] + y[-1] + 1) / 80, 20 / 80, 10 / 40]
            np.testing.assert_allclose(found, edges, atol=1e-6)
            n_whole += 1
    assert n_whole >= 20


def test_a_box_at_the_edge_keeps_its_centre_on_the_pattern():
    boxes = np.tile(np.float32([0.1, 0.9, 0.2, 0.2]), (50, 1))
    _, found = augment_all(np.zeros((50, 8, 8), np.float32), 6, boxes)
    assert (found[:, :2].min(), found[:, :2].max()) == (0, 1)
    np.testing.assert_array_equal(found[:, 2:], boxes[:, 2:])


def test_patterns_are_taken_by_row():
    patterns = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((1, 12, 12), np.float32)
    rows = torch.tensor([3, 0, 3, 1])
    found, _ = augment(add_margin(torch.from_numpy(patterns)), rows, None, generator(0))
    assert found[1::2].nan_to_num().amax((1, 2)).tolist() == [0, 1]  # those that are not thinned

from itertools import pairwise

import numpy as np
import pytest

from spidask.frames.hits import (
    adaptive_threshold,
    align_to_windows,
    count_photons,
    find_hits,
    hit_score,
    looks_like_only_hits,
    split_windows,
)


def test_counts_of_three_by_three_pixels():
    patterns = np.array(
        [
            [[0, 1, 2], [0, 0, 3], [np.nan, 0, 1]],
            np.full((3, 3), np.nan),
            np.zeros((3, 3)),
        ],
        np.float32,
    )
    counts = count_photons(patterns, 0.7)
    np.testing.assert_array_equal(counts, [[7, 4, 8], [np.nan, 0, 0], [0, 0, 9]])
    np.testing.assert_array_equal(hit_score(counts, 9), np.float32([4.5, np.nan, 0]))


def test_a_lit_pixel_is_above_the_threshold_and_not_at_it():
    counts = count_photons(np.array([[[1.0, 2.0]]], np.float32), 1.0)
    assert counts.tolist() == [[3.0, 1.0, 2.0]]


def test_counts_equal_plain_numpy():
    rng = np.random.default_rng(2)
    patterns = rng.poisson(0.5, (5, 8, 9)).astype(np.float32)
    patterns[rng.random(patterns.shape) < 0.2] = np.nan
    expected = np.stack(
        [
            np.nansum(patterns, axis=(1, 2), dtype=np.float64),
            (patterns > 0.7).sum(axis=(1, 2)),
            np.isfinite(patterns).sum(axis=(1, 2)),
        ],
        axis=1,
    )
    np.testing.assert_array_equal(count_photons(patterns, 0.7), expected)


def test_threshold_is_median_plus_sigmas_of_the_quartiles():
    # Quartiles 25 and 75, median 50: sigma = 50 / 1.34896 = 37.07, threshold 50 + 4 sigma = 198.3.
    scores = np.array([*range(101)], np.float32)
    scores[99:101] = [198, 199]
    hits = find_hits(scores, scores, window=101, n_sigma=4.0)
    assert np.flatnonzero(hits).tolist() == [100]


def test_hits_exceed_the_threshold_of_their_window():
    random = np.random.default_rng(4)
    scores = random.poisson(20, 300).astype(np.float32)
    scores[[5, 200]] = [900, np.nan]
    threshold = adaptive_threshold(scores, scores, window=128, n_sigma=2.0)
    for window in (slice(0, 128), slice(128, 300)):
        low, level, high = np.nanpercentile(scores[window], [25, 50, 75])
        expected = level + 2 * (high - low) / 1.34896
        np.testing.assert_allclose(threshold[window][np.isfinite(threshold[window])], expected)
    np.testing.assert_array_equal(
        find_hits(scores, scores, window=128, n_sigma=2.0), scores > threshold
    )


def test_in_dark_frames_a_hit_has_more_than_four_lit_pixels():
    scores = np.zeros(128, np.float32)
    scores[[3, 50, 70]] = [1, 4, 5]
    hits = find_hits(scores, scores, window=128, n_sigma=4.0)
    assert np.flatnonzero(hits).tolist() == [70]
    # With half of the pixels masked each lit one counts twice, and so does the floor.
    masked = find_hits(2 * scores, scores, window=128, n_sigma=4.0)
    np.testing.assert_array_equal(masked, hits)


def test_poisson_misses_give_hardly_a_false_hit_and_all_bright_hits():
    rng = np.random.default_rng(5)
    for mean in (0.3, 1.0, 30.0, 900.0):
        scores = rng.poisson(mean, 12800).astype(np.float32)
        bright = rng.random(12800) < 0.02
        scores[bright] = mean + 12 * max(1, np.sqrt(mean))
        hits = find_hits(scores, scores, window=128, n_sigma=4.0)
        assert hits[bright].all()
        assert (hits & ~bright).mean() < 2e-3


def test_unreadable_frames_are_left_out_of_their_window():
    scores = np.array([0, 0, 0, 0, 9, 0] + [np.nan] * 6, np.float32)
    hits = find_hits(scores, np.nan_to_num(scores), window=12, n_sigma=4.0)
    assert np.flatnonzero(hits).tolist() == [4]
    nothing = np.full(12, np.nan, np.float32)
    assert not find_hits(nothing, np.zeros(12), window=12, n_sigma=4.0).any()


def test_each_window_has_its_own_threshold():
    scores = np.concatenate([np.zeros(100), np.full(100, 50)]).astype(np.float32)
    scores[10] = 40
    assert np.flatnonzero(find_hits(scores, scores, window=100, n_sigma=4.0)).tolist() == [10]
    assert not find_hits(scores, scores, window=200, n_sigma=4.0).any()


@pytest.mark.parametrize("n", [1, 99, 100, 101, 199, 200, 250, 1000])
def test_windows_cover_a_run_and_none_is_short(n):
    windows = split_windows(n, 100)
    frames = [i for w in windows for i in range(w.start, w.stop)]
    assert frames == list(range(n))
    assert all(w.stop - w.start >= min(n, 100) for w in windows)
    assert all(w.start % 100 == 0 for w in windows)


@pytest.mark.parametrize("chunk", [1, 7, 50, 64, 100, 128, 300, 1000])
@pytest.mark.parametrize("n", [40, 128, 300, 1000])
def test_blocks_of_whole_windows_find_the_same_hits(chunk, n):
    rng = np.random.default_rng(n)
    scores = rng.poisson(5, n).astype(np.float32)
    scores[::37] = 60
    chunks = (chunk,) * (n // chunk) + ((n % chunk,) if n % chunk else ())
    aligned = align_to_windows(chunks, 100)
    assert sum(aligned) == n
    ends = np.cumsum((0, *aligned))
    blocks = [scores[a:b] for a, b in pairwise(ends)]
    parts = [find_hits(b, b, window=100, n_sigma=4.0) for b in blocks]
    whole = find_hits(scores, scores, window=100, n_sigma=4.0)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    if chunk % 100 == 0 and n % chunk == 0:
        assert aligned == chunks


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, False), (0.02, False), (0.4, True), (1, True)]
)
def test_files_of_many_hits_are_noticed(share, expected):
    rng = np.random.default_rng(7)
    scores = rng.normal(900, 120, 512)
    hit = rng.random(512) < share
    scores[hit] = rng.uniform(2500, 7000, hit.sum())
    found = looks_like_only_hits(scores.astype(np.float32), 29520, window=128, n_sigma=4.0)
    assert found is expected


def test_no_readable_frame_says_nothing():
    assert not looks_like_only_hits(np.full(5, np.nan, np.float32), 10, window=128, n_sigma=4.0)

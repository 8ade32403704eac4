"""The rule on hit scores that a person can check."""

import numpy as np
import xarray as xr

from spidask.baselines.rule import judge_frames
from spidask.config import Hits
from spidask.frames.hits import find_hits


def make_labels(scores: np.ndarray, run: list[int]) -> xr.Dataset:
    return xr.Dataset(
        {
            "hit_score": ("frame", scores.astype(np.float32)),
            "lit_pixels": ("frame", np.nan_to_num(scores).astype(np.int32)),
            "readable": ("frame", np.isfinite(scores)),
            "index": ("frame", np.concatenate([np.arange(run.count(r)) for r in sorted(set(run))])),
        },
        coords={
            "run": ("frame", np.array(run, np.int32)),
            "run_name": ("run_code", np.array(["r0001", "r0002"], object)),
        },
    )


def test_scores_are_compared_with_the_threshold_of_their_run():
    # Median 10, sigma below one lit pixel: the first run's threshold is 14, the second's 104.
    scores = np.array([10.0] * 7 + [14, 21] + [100] * 6 + [0, 130, np.nan])
    table = judge_frames(make_labels(scores, [0] * 9 + [1] * 9), Hits())
    assert len(table) == 17
    assert table["run"].tolist() == ["r0001"] * 9 + ["r0002"] * 8
    assert table["reason"].tolist() == ["miss"] * 8 + [""] + ["miss"] * 7 + [""]
    expected = [10 / 14 - 1, 0, 0.5, 100 / 104 - 1, -1, 130 / 104 - 1]
    np.testing.assert_allclose(table["score"].to_numpy()[[0, 7, 8, 9, 15, 16]], expected, rtol=1e-6)


def test_it_is_the_hit_finder_run_by_run():
    random = np.random.default_rng(0)
    scores = np.concatenate([random.poisson(5, 400), random.poisson(40, 300)]).astype(float)
    scores[::17] *= 6
    run = [0] * 400 + [1] * 300
    table = judge_frames(make_labels(scores, run), Hits(window=100, n_sigma=3))
    given = scores.astype(np.float32)
    expected = np.concatenate(
        [
            find_hits(given[part], given[part].astype(int), window=100, n_sigma=3)
            for part in (slice(0, 400), slice(400, 700))
        ]
    )
    assert 30 < expected.sum() < 60
    np.testing.assert_array_equal(table["reason"] == "", expected)
    np.testing.assert_array_equal(table["score"] > 0, expected)

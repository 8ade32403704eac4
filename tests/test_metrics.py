import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sklearn.metrics

from spidask.errors import DataError
from spidask.metrics import (
    average_precision,
    average_precision_interval,
    best_threshold,
    iou,
    judge,
    precision_recall,
    proportion_interval,
)

# Selected, in the manual selection; IoU, accuracy, precision, recall in whole per cent, F1:
# the table of Ignatenko et al. 2021, on 17 932 frames with 995 manual single hits.
PAPER = {
    "YOLOv2 colour linear": (1185, 597, 38, 95, 50, 60, 54.8),
    "YOLOv2 colour log": (1368, 614, 35, 94, 45, 62, 52.0),
    "YOLOv2 grey linear": (1756, 622, 29, 92, 35, 63, 45.2),
    # The paper prints a recall of 50; its counts give 48.9.
    "YOLOv2 grey log": (904, 487, 34, 95, 54, 49, 51.3),
    "YOLOv3 colour linear": (1041, 505, 33, 94, 49, 51, 49.6),
    "YOLOv3 grey linear": (2316, 465, 16, 87, 20, 47, 28.1),
}


@pytest.mark.parametrize("row", PAPER.values(), ids=PAPER.keys())
def test_the_paper_s_table_follows_from_its_counts(row):
    selected, common, *percents, f1 = row
    single = np.arange(17932) < 995
    chosen = np.zeros(17932, bool)
    chosen[:common] = True
    chosen[995 : 995 + selected - common] = True
    metrics = judge(chosen, single)
    names = ("iou", "accuracy", "precision", "recall")
    for name, percent in zip(names, percents, strict=True):
        # Whole per cent, rounded either way (34.5 stands as 34 or 35).
        assert abs(100 * metrics[name] - percent) <= 0.55 + 0.5 * (name == "accuracy"), name
    assert metrics["f1"] * 100 == pytest.approx(f1, abs=0.06)
    assert metrics["accuracy_of_rejecting_all"] == pytest.approx(0.9445, abs=5e-5)
    assert (metrics["selected"], metrics["intersection"]) == (selected, common)


def test_nothing_selected_has_no_precision():
    metrics = judge(np.zeros(3, bool), np.array([True, False, False]))
    assert np.isnan(metrics["precision"])
    assert (metrics["recall"], metrics["f1"], metrics["iou"]) == (0, 0, 0)


def frames(*pairs):
    return pd.DataFrame(pairs, columns=["run", "index"])


def test_sets_are_compared_by_run_and_index():
    a = frames(("r1", 0), ("r1", 1), ("r2", 0))
    b = frames(("r2", 0), ("r1", 5), ("r1", 1), ("r3", 1))
    assert iou(a, b) == 2 / 5
    assert iou(a, a[::-1]) == 1
    assert np.isnan(iou(a[:0], b[:0]))


@pytest.fixture(params=[0, 1])
def ranked(request):
    random = np.random.default_rng(request.param)
    single = random.random(200) < 0.1
    # Rounded, so that there are ties.
    scores = np.round(random.normal(single * 1.5, 1), 1).astype(np.float32)
    return scores, single


def test_average_precision_agrees_with_scikit_learn(ranked):
    expected = sklearn.metrics.average_precision_score(ranked[1], ranked[0])
    assert average_precision(*ranked) == pytest.approx(expected, rel=1e-12)


def test_weighted_average_precision_agrees_with_scikit_learn(ranked):
    weights = np.random.default_rng(2).integers(0, 3, 200).astype(float)
    expected = sklearn.metrics.average_precision_score(*ranked[::-1], sample_weight=weights)
    assert average_precision(*ranked, weights) == pytest.approx(expected, rel=1e-12)


def test_the_curve_agrees_with_scikit_learn(ranked):
    precision, recall, thresholds = sklearn.metrics.precision_recall_curve(*ranked[::-1])
    curve = precision_recall(*ranked)
    n = len(thresholds)
    np.testing.assert_allclose(curve.thresholds[::-1][-n:], thresholds)
    np.testing.assert_allclose(curve.precision[::-1][-n:], precision[:n])
    np.testing.assert_allclose(curve.recall[::-1][-n:], recall[:n])


def test_frames_without_a_score_rank_last():
    scores = np.array([0.9, np.nan, 0.2, np.nan])
    single = np.array([True, True, False, False])
    assert average_precision(scores, single) == pytest.approx(0.5 * 1 + 0.5 * 2 / 4)
    assert precision_recall(scores, single).thresholds.tolist() == [0.9, 0.2, -np.inf]


def test_no_single_hit_is_refused():
    with pytest.raises(DataError, match="no single hit among 2 frames"):
        average_precision(np.zeros(2), np.zeros(2, bool))


def test_the_bootstrap_interval_holds_the_value_and_repeats(ranked):
    low, high = average_precision_interval(*ranked, n_samples=300, seed=5)
    assert low < average_precision(*ranked) < high
    assert (low, high) == average_precision_interval(*ranked, n_samples=300, seed=5)
    assert average_precision_interval(np.arange(4), np.arange(4) > 1) == (1.0, 1.0)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (80, 100)])
def test_the_interval_of_a_proportion_is_clopper_pearson(k, n):
    expected = scipy.stats.binomtest(k, n).proportion_ci(0.95, "exact")
    assert proportion_interval(k, n) == pytest.approx((expected.low, expected.high))


def test_nothing_counted_says_nothing():
    assert proportion_interval(0, 0) == (0, 1)
    with pytest.raises(DataError, match="3 cases in 2 trials"):
        proportion_interval(3, 2)


def test_the_threshold_of_the_largest_f1():
    scores = np.array([0.9, 0.8, 0.6, 0.4, 0.2])
    single = np.array([True, False, True, False, False])
    # From the top: F1 = 2/3, 1/2, 4/5, 2/3, 4/7.
    threshold, f1 = best_threshold(scores, single)
    assert (threshold, f1) == pytest.approx((0.5, 0.8))
    assert f1 == pytest.approx(sklearn.metrics.f1_score(single, scores >= threshold))


def test_rarer_single_hits_ask_for_a_higher_threshold():
    scores = np.array([0.9, 0.8, 0.6, 0.4, 0.2])
    single = np.array([True, False, True, False, False])
    # Others weigh 2 * 0.95 / 0.05 / 3 = 12.67 each: F1 = 2/3 at the top, 4/16.67 at 0.6.
    threshold, f1 = best_threshold(scores, single, 0.05)
    assert (threshold, f1) == pytest.approx((0.85, 2 / 3))
    # With the share found here nothing changes.
    assert best_threshold(scores, single, 0.4) == pytest.approx(best_threshold(scores, single))


def test_equal_scores_are_selected_together():
    scores = np.array([0.9, 0.9, 0.3, 0.3])
    single = np.array([True, True, True, False])
    # F1 = 4/5 at 0.9 and 6/7 with all of them.
    assert best_threshold(scores, single) == pytest.approx((0.3, 6 / 7))


def test_missed_single_hits_count_against_f1():
    threshold, f1 = best_threshold(np.array([0.9, np.nan, 0.1]), np.array([True, True, False]))
    assert (threshold, f1) == pytest.approx((0.5, 2 / 3))
    with pytest.raises(DataError, match="no frame has a score"):
        best_threshold(np.array([np.nan]), np.array([True]))

import numpy as np
import pytest
import xarray as xr

from spidask.config import parse_config
from spidask.errors import DataError
from spidask.reporting.facts import (
    Truth,
    estimate_purity,
    make_funnel,
    match_truth,
    measure_quality,
)
from spidask.selection import count_reasons


def changed(config, **labels):
    return parse_config(config.model_dump() | {"labels": labels})


def test_funnel_of_the_small_beamtime(beamtime):
    steps = make_funnel(count_reasons(beamtime.selection))
    assert [step.n for step in steps] == [16, 14, 8, 5, 4]
    assert [step.lost for step in steps] == [0, 2, 6, 3, 1]
    assert [step.reason for step in steps] == ["", "unreadable", "miss", "not_single", "size"]
    assert [step.share for step in steps[1:]] == [14 / 16, 8 / 14, 5 / 8, 4 / 5]


def test_funnel_of_nothing_has_no_shares():
    nothing = dict.fromkeys(["frames", "unreadable", "miss", "not_single", "size"], 0)
    steps = make_funnel(nothing)
    assert [step.n for step in steps] == [0] * 5
    assert all(np.isnan(step.share) for step in steps)


def test_truth_leaves_out_trained_and_unknown_frames(beamtime):
    truth = match_truth(beamtime.selection, beamtime.config)
    assert truth.from_truth
    assert (truth.n_trained_on, truth.n_unknown) == (1, 1)
    # r0001 is the second run of the selection, so its frames start at row 8.
    assert truth.rows.tolist() == [9, 12, 13, 14, 15, 4, 5]
    assert truth.classes.tolist() == [0, 1, 2, 3, 1, 1, 2]


def test_without_truth_the_labels_that_were_not_trained_on_judge(beamtime, tmp_path):
    (tmp_path / "labels.csv").write_text("run,index,label\nr0002,7,single\nr0001,5,multiple\n")
    config = changed(beamtime.config, file=str(tmp_path / "labels.csv"))
    truth = match_truth(beamtime.selection, config)
    assert not truth.from_truth
    assert truth.rows.tolist() == [13]
    assert truth.n_trained_on == 1


def test_no_truth_where_none_is_given_or_all_was_trained_on(beamtime, tmp_path):
    assert match_truth(beamtime.selection, changed(beamtime.config)) is None
    (tmp_path / "labels.csv").write_text("run,index,label\nr0002,7,single\n")
    config = changed(beamtime.config, file=str(tmp_path / "labels.csv"))
    assert match_truth(beamtime.selection, config) is None


def test_truth_by_event_ids_that_are_not_there(beamtime, tmp_path):
    (tmp_path / "labels.csv").write_text("trainId,pulseId,label\n1,2,single\n")
    config = changed(beamtime.config, truth=str(tmp_path / "labels.csv"))
    with pytest.raises(DataError, match="trainId"):
        match_truth(beamtime.selection, config)


def test_purity_counted_with_truth(beamtime):
    truth = match_truth(beamtime.selection, beamtime.config)
    purity = estimate_purity(beamtime.selection, truth, 0)
    # r0001 4 and 5 and r0002 4 are judged, 7 was trained on.
    assert (purity.n_single, purity.n) == (2, 3)
    assert purity.value == pytest.approx(2 / 3)
    assert (purity.low, purity.high) == pytest.approx((0.0943, 0.9916), abs=1e-4)


def test_purity_from_probabilities(beamtime):
    purity = estimate_purity(beamtime.selection, None, 0)
    assert purity.n_single is None
    assert purity.n == 3
    # r0001 4 and 5, r0002 4: the one selected frame that was trained on is left out.
    assert purity.value == pytest.approx(np.mean([0.9, 0.9, 0.8, 0.7, 0.7, 0.9]))
    assert purity.low == pytest.approx(1 / 3)
    assert purity.high == 1


def many(scores):
    n = len(scores)
    return xr.Dataset(
        {
            "selected": ("frame", np.ones(n, bool)),
            "trained_on": ("frame", np.zeros(n, bool)),
            "scores": (("frame", "member"), np.asarray(scores, np.float32)),
        }
    )


def test_interval_from_probabilities_is_that_of_the_binomial():
    purity = estimate_purity(many(np.full((1000, 1), 0.8)), None, 0)
    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    assert purity.value == pytest.approx(0.8)
    assert (purity.low, purity.high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.003)


def test_interval_from_probabilities_holds_the_spread_of_the_members():
    scores = np.column_stack([np.full(10_000, 0.7), np.full(10_000, 0.9)])
    purity = estimate_purity(many(scores), None, 0)
    assert purity.value == pytest.approx(0.8)
    assert purity.low == pytest.approx(0.7, abs=0.02)
    assert purity.high == pytest.approx(0.9, abs=0.02)


def test_no_purity_of_nothing():
    assert estimate_purity(many(np.zeros((0, 3))), None, 0) is None


def test_truth_that_covers_no_selected_frame_gives_way_to_probabilities(beamtime):
    truth = Truth(True, np.array([9]), np.array([0]), 0, 0)
    assert estimate_purity(beamtime.selection, truth, 0).n_single is None


def test_quality_of_the_small_beamtime(beamtime):
    truth = match_truth(beamtime.selection, beamtime.config)
    quality = measure_quality(beamtime.selection, truth, 0)
    assert quality.metrics["precision"] == pytest.approx(2 / 3)
    assert quality.metrics["recall"] == pytest.approx(2 / 3)
    assert quality.metrics["accuracy_of_rejecting_all"] == pytest.approx(4 / 7)
    # Columns: selected, unreadable, miss, not_single, size.
    assert quality.outcomes == [
        ("background", 1, [0, 0, 1, 0, 0]),
        ("single", 3, [2, 0, 0, 0, 1]),
        ("multiple", 2, [1, 0, 0, 1, 0]),
        ("contaminant", 1, [0, 0, 0, 1, 0]),
    ]
    # Margins 0.3 single; 0.2 single; 0.1 multiple and single at once; the others are below.
    assert quality.average_precision == pytest.approx((1 + 1 + 3 / 4) / 3)
    low, high = quality.interval
    assert 0 <= low <= quality.average_precision <= high <= 1
    assert quality.n_samples == 1000


def test_interval_covers_the_average_precision_though_misses_are_left_out_of_it(beamtime):
    rows = np.arange(16)
    classes = np.where(np.isin(rows, [12, 4]), 1, 0)
    quality = measure_quality(beamtime.selection, Truth(True, rows, classes, 0, 0), 0)
    low, high = quality.interval
    assert low <= quality.average_precision <= high


def test_quality_without_a_single_hit_among_the_labels(beamtime):
    truth = Truth(True, np.array([9, 14]), np.array([0, 3]), 0, 0)
    quality = measure_quality(beamtime.selection, truth, 0)
    assert quality.curve is None
    assert quality.average_precision is None
    assert quality.metrics["accuracy"] == 1

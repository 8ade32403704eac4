import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spidask import config
from spidask.errors import DataError
from spidask.schema import REASONS
from spidask.selection import count_reasons, select

NAN = np.nan


def labelled(scores, hit=True, readable=True, diameter=70.0, run=0):
    """Labels of some frames; one value stands for all of them."""
    scores = np.asarray(scores, np.float32)
    n = len(scores)

    def frames(values, dtype):
        return ("frame", np.broadcast_to(np.asarray(values, dtype), n).copy())

    return xr.Dataset(
        {
            "run": frames(run, np.int32),
            "index": ("frame", np.arange(n)),
            "run_name": ("run_code", np.array(["r0001", "r0002", "r0003"])),
            "readable": frames(readable, bool),
            "hit": frames(hit, bool),
            "diameter": frames(diameter, np.float32),
            "scores": (("frame", "member"), scores),
        }
    )


def reasons(selection):
    return [REASONS[code] for code in selection["reason"].values]


def test_the_first_reason_that_applies_is_given():
    labels = labelled(
        [[0.9], [0.9], [NAN], [NAN], [0.1], [0.1]],
        hit=[1, 1, 0, 0, 1, 1],
        readable=[1, 1, 1, 0, 1, 1],
        diameter=[70, 90, NAN, NAN, 90, 70],
    )
    chosen = select(labels, [0.5], config.Selection())
    expected = ["", "size", "miss", "unreadable", "not_single", "not_single"]
    assert reasons(chosen) == expected
    assert chosen["selected"].values.tolist() == [True] + [False] * 5


def test_both_ends_of_the_size_window_are_in_and_a_hit_without_a_size_is_out():
    labels = labelled([[0.9]] * 5, diameter=[54.99, 55, 84, 84.01, NAN])
    chosen = select(labels, [0.5], config.Selection(size_window_nm=(55, 84)))
    assert reasons(chosen) == ["size", "", "", "size", "size"]


def test_the_score_is_the_smallest_margin():
    labels = labelled([[0.75, 0.5], [0.25, 1.0]])
    chosen = select(labels, [0.5, 0.375], config.Selection())
    assert chosen["score"].values.tolist() == [0.125, -0.25]
    assert chosen["score"].dtype == np.float32


def test_a_score_at_the_threshold_is_selected():
    score = np.float32(0.1)
    thresholds = [float(score), float(np.nextafter(score, np.float32(1)))]
    for threshold, expected in zip(thresholds, ["", "not_single"], strict=True):
        assert reasons(select(labelled([[score]]), [threshold], config.Selection())) == [expected]


def test_a_missing_score_never_selects():
    labels = labelled([[0.9, NAN], [0.1, NAN], [NAN, NAN]])
    chosen = select(labels, [0.5, 0.5], config.Selection())
    assert reasons(chosen) == ["not_single"] * 3
    np.testing.assert_allclose(chosen["score"].values, [NAN, -0.4, NAN], rtol=1e-6)


@given(
    hnp.arrays(np.float32, (20, 3), elements=st.floats(0, 1, width=32)),
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
def test_thresholding_the_score_is_the_intersection(scores, thresholds):
    chosen = select(labelled(scores), thresholds, config.Selection())
    everybody = (scores >= np.array(thresholds)).all(axis=1)
    # Thresholds closer to a score of zero than float32 can hold are the one exception.
    safe = np.abs(scores - np.array(thresholds))[scores != thresholds].min(initial=1) > 1e-40
    if safe:
        assert (chosen["selected"].values == everybody).all()
        assert ((chosen["score"].values >= 0) == everybody).all()


def test_frames_used_in_training_are_flagged_by_run_and_index():
    labels = labelled([[0.9]] * 4, run=[0, 0, 1, 1])
    chosen = select(labels, [0.5], config.Selection(), {"r0002": [2], "r0001": [1, 7], "x": [0]})
    assert chosen["trained_on"].values.tolist() == [False, True, True, False]


def test_the_labels_stay_as_they_are():
    labels = labelled([[0.9]])
    before = labels.copy(deep=True)
    select(labels, [0.5], config.Selection())
    assert labels.identical(before)


def test_one_threshold_for_each_member():
    with pytest.raises(DataError, match="2 thresholds for 1 members"):
        select(labelled([[0.9]]), [0.5, 0.5], config.Selection())


def test_counts_add_up_to_the_frames_in_every_run():
    labels = labelled(
        [[0.9], [0.9], [0.1], [0.9]],
        hit=[1, 0, 1, 1],
        diameter=[70, NAN, 70, 20],
        run=[0, 0, 0, 2],
    )
    counts = count_reasons(select(labels, [0.5], config.Selection()))
    runs = counts.pop("runs")
    nothing = dict.fromkeys(["frames", "selected", *REASONS[1:]], 0)
    assert counts == nothing | {
        "frames": 4, "selected": 1, "miss": 1, "not_single": 1, "size": 1
    }  # fmt: skip
    assert runs == {
        "r0001": nothing | {"frames": 3, "selected": 1, "miss": 1, "not_single": 1},
        "r0002": nothing,
        "r0003": nothing | {"frames": 1, "size": 1},
    }


def test_no_frames_at_all():
    labels = labelled(np.empty((0, 2)))
    counts = count_reasons(select(labels, [0.5, 0.5], config.Selection()))
    assert counts["frames"] == 0
    assert counts["runs"]["r0001"]["selected"] == 0

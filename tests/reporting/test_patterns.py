import base64
import io

import dask
import numpy as np
import pytest
import xarray as xr
from PIL import Image

from spidask.errors import DataError
from spidask.io.runs import take_frames
from spidask.reporting.patterns import (
    MISSING,
    N_CHECKED,
    N_POWDER,
    N_SHEET,
    choose_brightest,
    choose_powder,
    choose_sheets,
    draw,
    paint,
    read_patterns,
    shrink,
)
from spidask.schema import REASONS

NAN = np.nan


def large(n=4000):
    """Frames of every reason in turn, with scores that rise from -1 to 1 along the frames."""
    return xr.Dataset(
        {
            "reason": ("frame", (np.arange(n) % 5).astype(np.uint8)),
            "score": ("frame", np.linspace(-1, 1, n, dtype=np.float32)),
        }
    )


def test_draw_takes_the_seed_and_no_frame_twice():
    mask = np.arange(1000) % 2 == 0
    rows = draw(mask, 100, seed=3)
    assert len(set(rows.tolist())) == 100
    assert mask[rows].all()
    assert np.array_equal(rows, draw(mask, 100, seed=3))
    assert not np.array_equal(rows, draw(mask, 100, seed=4))
    assert sorted(draw(mask[:10], 100, seed=3)) == [0, 2, 4, 6, 8]


def test_sheets_of_a_large_selection():
    selection = large()
    sheets = {sheet.key: sheet for sheet in choose_sheets(selection, 0)}
    assert list(sheets) == ["check", "best", "lowest", "close", "not_single", "size", "miss"]
    assert len(sheets["check"].rows) == N_CHECKED
    assert {len(sheet.rows) for key, sheet in sheets.items() if key != "check"} == {N_SHEET}
    reason = selection["reason"].values
    for key in ("not_single", "size", "miss"):
        assert set(reason[sheets[key].rows]) == {REASONS.index(key)}
    assert sheets["best"].rows[:2].tolist() == [3995, 3990]
    assert sheets["lowest"].rows[:2].tolist() == [0, 5]
    assert sheets["close"].rows[:2].tolist() == [3998, 3993]


def test_at_most_four_hundred_patterns_are_read():
    selection = large()
    rows = [sheet.rows for sheet in choose_sheets(selection, 0)]
    powder = choose_powder(selection, 0)
    assert len(np.unique(np.concatenate([*rows, *powder.values()]))) <= 400
    assert set(choose_sheets(selection, 0)[0].rows) <= set(powder["selected"])


def test_powder_is_of_hits_alone():
    powder = choose_powder(large(), 0)
    assert set(large()["reason"].values[powder["rejected"]]) == {3, 4}
    assert len(powder["selected"]) == len(powder["rejected"]) == N_POWDER


def test_few_selected_frames_are_all_shown(beamtime):
    sheets = choose_sheets(beamtime.selection, 0)
    assert [sheet.key for sheet in sheets] == ["check", "close", "not_single", "size", "miss"]
    # Margins: r0001 4 0.3, r0002 4 and 7 0.2, r0001 5 0.1.
    assert sheets[0].title == "All 4 selected frames, the highest score first"
    assert sheets[0].rows[0] == 12
    assert sheets[0].rows[-1] == 13


def test_nothing_to_show():
    nothing = large(0)
    assert choose_sheets(nothing, 0) == []
    assert [len(rows) for rows in choose_powder(nothing, 0).values()] == [0, 0]


def test_patterns_are_matched_by_run_and_index(beamtime):
    shown = np.array([4, 12, 9])
    powder = {"selected": np.array([4, 12]), "rejected": np.array([], np.int64)}
    small, sums = read_patterns(beamtime.selection, beamtime.frames, beamtime.config, shown, powder)
    # Each frame holds 10 times its run and its index.
    assert {row: float(small[row][3, 3]) for row in small} == {4: 24, 12: 14, 9: 11}
    assert np.isnan(small[4][0, 0])
    assert set(sums) == {"selected"}
    assert sums["selected"].n == 2
    assert sums["selected"].corner == (0, 0)
    expected = np.full((6, 8), 19.0)
    expected[:, -1] = 0
    expected[0, 0] = NAN
    np.testing.assert_array_equal(sums["selected"].mean, expected)


def test_an_unreadable_frame_changes_no_mean(beamtime):
    powder = {"selected": np.array([0, 4])}
    _, sums = read_patterns(
        beamtime.selection, beamtime.frames, beamtime.config, np.array([], int), powder
    )
    assert sums["selected"].mean[3, 3] == 24


def test_nothing_is_read_for_nothing(beamtime):
    nothing = np.array([], np.int64)

    def refuse(*_args, **_kwargs):
        raise AssertionError

    with dask.config.set(scheduler=refuse):
        found = read_patterns(
            beamtime.selection, beamtime.frames, beamtime.config, nothing, {"selected": nothing}
        )
    assert found == ({}, {})


def test_a_frame_that_is_gone(beamtime):
    rest = take_frames(beamtime.frames, slice(0, 8))
    with pytest.raises(DataError, match="match no frame"):
        read_patterns(beamtime.selection, rest, beamtime.config, np.array([4]), {})


def test_shrink_keeps_small_patterns_and_photons():
    pattern = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(shrink(pattern), pattern)
    wide = np.ones((4, 400), np.float32)
    assert shrink(wide).shape == (2, 134)
    np.testing.assert_array_equal(shrink(wide), np.full((2, 134), 9))


def test_shrink_marks_squares_that_are_mostly_missing():
    wide = np.ones((2, 320), np.float32)
    wide[:, 0] = NAN
    wide[:, 2:4] = NAN
    wide[0, 5] = wide[1, 4:6] = NAN
    small = shrink(wide)
    assert small[0, 0] == 4
    assert np.isnan(small[0, 1])
    assert np.isnan(small[0, 2])


def test_brightest_is_one_scale_for_all():
    assert choose_brightest({}) == 4
    assert choose_brightest({0: np.zeros((2, 2), np.float32)}) == 4
    patterns = {0: np.full((2, 2), 50, np.float32), 1: np.full((2, 2), NAN, np.float32)}
    assert choose_brightest(patterns) == 50


def test_paint_is_logarithmic_and_shows_missing_pixels():
    source = paint(np.array([[0, 4, 24, 99, NAN]], np.float32), 24)
    kind, data = source.split(",")
    assert kind == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    codes = np.asarray(image)
    # log(1 + 4) is half of log(1 + 24).
    assert codes.tolist() == [[0, 127, 254, 254, 255]]
    colours = np.asarray(image.convert("RGB"))[0]
    assert colours[0].max() < 10
    assert bytes(colours[4]).hex() == MISSING[1:]

import csv
import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from spidask.errors import DataError
from spidask.io.tables import (
    COMPARED,
    find_rows,
    frame_table,
    is_in,
    read_comparison_csv,
    read_selection_csv,
    read_trained_frames,
    write_comparison_csv,
    write_selection_csv,
)


def selection(names=("r1", "r2")):
    return xr.Dataset(
        {
            "run": ("frame", np.array([0, 0, 1], np.int32)),
            "index": ("frame", np.array([0, 7, 0])),
            "run_name": ("run_code", np.array(names)),
            "selected": ("frame", np.array([True, False, False])),
            "reason": ("frame", np.array([0, 3, 2], np.uint8)),
            "score": ("frame", np.array([0.125, -0.1, np.nan], np.float32)),
            "diameter": ("frame", np.array([70.5, np.nan, np.nan], np.float32)),
        }
    )


def test_a_selection_as_text(tmp_path):
    write_selection_csv(selection(), tmp_path / "selection.csv")
    assert (tmp_path / "selection.csv").read_text().splitlines() == [
        "run,index,selected,reason,score,diameter_nm",
        "r1,0,1,,0.125,70.5",
        "r1,7,0,not_single,-0.1,",
        "r2,0,0,miss,,",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["selection.csv"]


def test_a_selection_comes_back(tmp_path):
    write_selection_csv(selection(), tmp_path / "selection.csv")
    for source in (tmp_path, tmp_path / "selection.csv"):
        table = read_selection_csv(source)
        assert table["run"].tolist() == ["r1", "r1", "r2"]
        assert table["index"].tolist() == [0, 7, 0]
        assert table["selected"].tolist() == [True, False, False]
        assert table["reason"].tolist() == ["", "not_single", "miss"]
        np.testing.assert_array_equal(table["score"], np.float32([0.125, -0.1, np.nan]))
        np.testing.assert_array_equal(table["diameter_nm"], np.float32([70.5, np.nan, np.nan]))


def test_strange_names_of_runs_survive(tmp_path):
    names = ('say "r1"', "a,b")
    write_selection_csv(selection(names), tmp_path / "selection.csv")
    assert read_selection_csv(tmp_path)["run"].tolist() == [names[0]] * 2 + [names[1]]
    with open(tmp_path / "selection.csv", newline="") as file:
        assert next(csv.DictReader(file))["run"] == names[0]


def test_what_is_no_selection_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such selection"):
        read_selection_csv(tmp_path)
    (tmp_path / "selection.csv").write_text("run,index\nr1,0\n")
    with pytest.raises(DataError, match=r"is no selection: .*; expected the columns run,index,sel"):
        read_selection_csv(tmp_path)
    for row, name in (("r1,,0,miss,,", "index"), ('r1,"",1,,,', "index"), ("r1,4,,,,", "selected")):
        write_selection_csv(selection(), tmp_path / "selection.csv")
        with open(tmp_path / "selection.csv", "a") as file:
            file.write(f"{row}\n")
        with pytest.raises(DataError, match=f"csv, line 5: is no selection: {name} is empty"):
            read_selection_csv(tmp_path)


def test_frames_of_training(tmp_path):
    assert read_trained_frames(tmp_path) == {}
    (tmp_path / "members").mkdir()
    path = tmp_path / "members" / "training.json"
    path.write_text(json.dumps({"frames": {"r1": [3, 5]}, "seed": 0}))
    assert read_trained_frames(tmp_path) == {"r1": [3, 5]}
    assert read_trained_frames(tmp_path / "selection.csv") == {"r1": [3, 5]}
    path.write_text('{"frames": [1]}')
    with pytest.raises(DataError, match="holds no 'frames'"):
        read_trained_frames(tmp_path)


def test_membership_needs_run_and_index():
    frames = frame_table({"r1": [0, 1], "r2": [0, 9], "r4": [1]})
    others = frame_table({"r2": [0], "r1": [1, 2], "r3": [9]})
    assert is_in(frames, others).tolist() == [False, True, True, False, False]
    # Runs as categories give the same.
    assert is_in(frames.astype({"run": "category"}), others).tolist() == [
        False, True, True, False, False
    ]  # fmt: skip
    assert is_in(frames, others[:0]).tolist() == [False] * 5
    assert is_in(frames[:0], others).tolist() == []
    assert isinstance(frame_table({}), pd.DataFrame)


def test_rows_are_found_by_run_and_index():
    table = pd.DataFrame({"run": ["r2", "r1", "r1"], "index": [5, 9, 0]})
    wanted = [("r1", 0), ("r2", 5), ("r1", 9), ("r2", 9), ("r1", 10**12), ("r3", 5), ("r2", 0)]
    wanted = pd.DataFrame(wanted, columns=["run", "index"])
    assert find_rows(wanted, table).tolist() == [2, 0, 1, -1, -1, -1, -1]
    assert find_rows(wanted.astype({"run": "category"}), table).tolist()[:3] == [2, 0, 1]
    assert find_rows(wanted, table[:0]).tolist() == [-1] * 7
    assert find_rows(wanted[:0], table).tolist() == []


def test_a_comparison_comes_back(tmp_path):
    path = tmp_path / "comparison.csv"
    values = dict.fromkeys(COMPARED, 0.25) | {"source": "measured", "device": "", "note": "a, b"}
    table = pd.DataFrame([values, values], index=pd.Index(["x", "y"], name="name"))
    table.loc["y", "contrast"] = np.nan
    write_comparison_csv(table, path)
    pd.testing.assert_frame_equal(read_comparison_csv(path), table)
    assert [one.name for one in tmp_path.iterdir()] == ["comparison.csv"]
    path.write_text("name,source,frames\nx,measured,3\n")
    with pytest.raises(DataError, match="has no column 'manual'; write it with"):
        read_comparison_csv(path)
    path.write_text("frames\n3\n")
    with pytest.raises(DataError, match=r"comparison.csv: is no comparison"):
        read_comparison_csv(path)

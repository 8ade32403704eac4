import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from spidask.errors import DataError
from spidask.io.labels import BOX, drop_unreadable, locate, read_labels, relative_boxes
from spidask.io.runs import open_runs


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_labels_by_run_and_index(tmp_path):
    path = write(
        tmp_path / "l.csv", "note,run,label,index", "a,r01,single,12", ",0002, multiple ,0", ""
    )
    labels = read_labels(path)
    assert list(labels.columns) == ["run", "index", "label"]
    # Names of runs stay text, leading zeros and all.
    assert labels.values.tolist() == [["r01", 12, "single"], ["0002", 0, "multiple"]]
    assert labels["index"].dtype == np.int64


def test_a_glob_joins_files(tmp_path):
    write(tmp_path / "truth_b.csv", "run,index,label", "r2,0,single")
    write(tmp_path / "truth_a.csv", "run,index,label", "r1,5,background")
    labels = read_labels(tmp_path / "truth_*.csv")
    assert labels["run"].tolist() == ["r1", "r2"]


def test_event_ids_name_frames_too(tmp_path):
    path = write(tmp_path / "l.csv", "trainId,pulseId,label", "1000000001,7,single")
    assert read_labels(path).values.tolist() == [[1000000001, 7, "single"]]
    path = write(tmp_path / "t.csv", "label,timestamp", f"single,{2**62}")
    assert read_labels(path).values.tolist() == [[2**62, "single"]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["run,index,label", "r1,0,single", "r1,1,dubble"], r"line 3: label 'dubble' .* known: b"),
        (["run,index,class", "r1,0,single"], "columns run, index, class; expected run,index,label"),
        (["run,label", "r1,single"], "columns run, label; expected run,index,label"),
        (["run,index,label", "r1,0,single", "r2,0,single", "r1,0,multiple"],
         r"line 4: run r1 index 0 is labelled a second time, first in .*line 2"),
        (["run,index,label", "r1,1.5,single"], "line 2: index '1.5' is no whole number"),
        (["run,index,label", "r1,-1,single"], "line 2: index '-1' is no whole number"),
        (["run,index,label", "", "r1,,single"], "line 3: index '' is no whole number"),
        ([f"run,index,label,{','.join(BOX)}", "r1,0,single,,,,", "r1,1,single,5,5,,9"],
         r"line 3: x_min, y_min, x_max, y_max 5, 5, , 9 is no box; give two corners"),
        ([f"run,index,label,{','.join(BOX)}", "r1,0,single,9,5,5,9"], "line 2: .* is no box"),
    ],
)  # fmt: skip
def test_a_broken_table_is_named_with_its_line(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        read_labels(write(tmp_path / "l.csv", *lines))


def test_boxes_are_read_and_placed_in_the_region(tmp_path):
    path = write(
        tmp_path / "l.csv",
        f"run,index,label,{','.join(BOX)}",
        "r1,0,single,20,30,40,35",
        "r1,1,single,,,,",
    )
    labels = read_labels(path)
    assert labels["x_max"][0] == 40
    # A region of rows 20 to 60 and columns 10 to 90.
    boxes = relative_boxes(labels, (20, 10), (40, 80))
    np.testing.assert_allclose(boxes[0], [20 / 80, 12.5 / 40, 20 / 80, 5 / 40])
    assert np.isnan(boxes[1]).all()
    assert np.isnan(relative_boxes(labels[["run", "index", "label"]], (20, 10), (40, 80))).all()


def test_no_table_at_all(tmp_path):
    with pytest.raises(DataError, match="no such labels"):
        read_labels(tmp_path / "none*.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="is no CSV table"):
        read_labels(tmp_path / "empty.csv")
    (tmp_path / "binary.csv").write_bytes(b"\x89HDF\xff\xfe\x00")
    with pytest.raises(DataError, match="is no CSV table"):
        read_labels(tmp_path / "binary.csv")


def test_files_of_different_form_are_not_joined(tmp_path):
    write(tmp_path / "a.csv", "run,index,label", "r1,5,background")
    write(tmp_path / "b.csv", "timestamp,label", "5,background")
    with pytest.raises(DataError, match="by other columns than"):
        read_labels(tmp_path / "*.csv")


@pytest.fixture
def frames():
    return xr.Dataset(
        coords={
            "run": ("frame", np.array([0, 0, 1, 1, 1], np.int32)),
            "index": ("frame", np.array([0, 1, 0, 1, 2])),
            "timestamp": ("frame", np.array([50, 40, -1, -1, 40])),
            "run_name": ("run_code", np.array(["r1", "r2"], object)),
        }
    )


def labels_of(**columns):
    n = len(next(iter(columns.values())))
    return pd.DataFrame(columns | {"label": ["single"] * n})


def test_frames_are_found_in_the_order_of_the_table(frames):
    labels = labels_of(run=["r2", "r1", "r2"], index=[2, 1, 0])
    rows = locate(labels, frames)
    assert rows.tolist() == [4, 1, 2]
    assert rows.dtype == np.int64
    assert locate(labels_of(timestamp=[50]), frames).tolist() == [0]
    assert locate(labels[:0], frames).tolist() == []


def test_labels_without_a_frame_are_counted_and_named(frames):
    labels = labels_of(run=["r2", "r1", "r3"], index=[2, 7, 0])
    with pytest.raises(DataError, match=r"2 of 3 rows match no frame.*: r1 7; r3 0") as caught:
        locate(labels, frames)
    assert caught.value.n_unmatched == 2


def test_ids_that_say_too_little_are_refused(frames):
    with pytest.raises(DataError, match="timestamp 40 stands for several frames"):
        locate(labels_of(timestamp=[40]), frames)
    with pytest.raises(DataError, match="the runs have no trainId"):
        locate(labels_of(trainId=[1], pulseId=[2]), frames)


def test_labels_of_unreadable_runs_are_left_out(frames):
    labels = labels_of(run=["r3", "r2", "r3", "r4"], index=[0, 2, 9, 0])
    frames.attrs["unreadable_runs"] = ["r3"]
    kept, n_dropped = drop_unreadable(labels, frames)
    assert kept.values.tolist() == [["r2", 2, "single"], ["r4", 0, "single"]]
    assert kept.index.tolist() == [0, 1]
    assert n_dropped == 2
    # A run that is not there at all stays a mistake.
    with pytest.raises(DataError, match=r"1 of 2 rows match no frame.*: r4 0"):
        locate(kept, frames)


def test_labels_by_event_ids_are_all_kept(frames):
    frames.attrs["unreadable_runs"] = ["r3"]
    kept, n_dropped = drop_unreadable(labels_of(timestamp=[50]), frames)
    assert (kept["timestamp"].tolist(), n_dropped) == ([50], 0)


@pytest.mark.parametrize(
    ("pattern", "gone"), [(None, ["a_s0", "b_s0"]), (r"(?P<run>[a-c])_s[0-9]", ["a"])]
)
def test_a_run_is_unreadable_if_all_its_files_are(tmp_path, pattern, gone):
    # Run a has one file, truncated; run b a truncated and a sound one; run c a sound one.
    for name in ("b_s1", "c_s0"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["data"] = np.zeros((2, 3, 4), "u2")
    whole = (tmp_path / "c_s0.h5").read_bytes()
    for name in ("a_s0", "b_s0"):
        (tmp_path / f"{name}.h5").write_bytes(whole[:-10])
    frames = open_runs(str(tmp_path / "*.h5"), "data", pattern=pattern)
    assert frames.attrs["unreadable_runs"] == gone
    labels = labels_of(run=[*gone, frames["run_name"].values[0]], index=[0] * (len(gone) + 1))
    kept, n_dropped = drop_unreadable(labels, frames)
    assert n_dropped == len(gone)
    assert locate(kept, frames).tolist() == [0]

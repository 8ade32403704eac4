"""Frames of a file of hits keep the run and the index that they had."""

import h5py
import numpy as np
import pytest
import zarr

from spidask.errors import DataError
from spidask.io.labels import locate, read_labels
from spidask.io.layout import FileLayout
from spidask.io.runs import open_runs, select_run, sign_files, take_frames

FRAMES = np.arange(9 * 3 * 4).reshape(9, 3, 4).astype("u2")
RUNS = np.array([182, 182, 9, 182, 9, 7, 9, 182, 7])
INDEX = np.array([5000, 12, 3, 700, 1, 40, 2, 13, 8])


@pytest.fixture
def hits(tmp_path):
    """Two files of hits, of three runs that they share, in no order."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["hits/images"] = FRAMES[:5]
        file["run"], file["index"] = RUNS[:5].astype(">i2"), INDEX[:5].astype("u4")
        file["timestamp"] = np.arange(5) + 100
    root = zarr.open_group(tmp_path / "b.zarr", mode="w")
    for name, values in {"hits/images": FRAMES[5:], "run": RUNS[5:], "index": INDEX[5:]}.items():
        root.create_array(name, data=values)
    return tmp_path


def open_hits(folder, **options):
    return open_runs(
        [f"{folder}/a.h5", f"{folder}/b.zarr"],
        "hits/images",
        layout=FileLayout(identity=("run", "index")),
        **options,
    )


@pytest.mark.parametrize("frames_per_block", [1, 2, 0])
def test_run_and_index_are_the_original_ones(hits, frames_per_block):
    ds = open_hits(hits, frames_per_block=frames_per_block)
    order = np.lexsort((INDEX, RUNS))
    assert ds["run_name"].values.tolist() == ["r0007", "r0009", "r0182"]
    names = ds["run_name"].values[ds["run"].values]
    assert names.tolist() == [f"r{run:04d}" for run in RUNS[order]]
    assert ds["index"].values.tolist() == INDEX[order].tolist()
    np.testing.assert_array_equal(ds["frames"].values, FRAMES[order])
    stamps = np.where(np.arange(9) < 5, np.arange(9) + 100, -1)
    assert ds["timestamp"].values.tolist() == stamps[order].tolist()
    assert ds.attrs["repeated_frames"] == 0
    run = select_run(ds, "r0182", slice(1, 4))
    assert run["index"].values.tolist() == [13, 700, 5000]
    np.testing.assert_array_equal(run["frames"].values, FRAMES[[7, 3, 0]])
    np.testing.assert_array_equal(take_frames(ds, [8, 0])["frames"].values, FRAMES[[0, 8]])


def test_labels_by_the_original_names_find_their_frames(hits, tmp_path):
    (tmp_path / "labels.csv").write_text("run,index,label\nr0182,700,single\nr0009,1,multiple\n")
    ds = open_hits(hits)
    rows = locate(read_labels(tmp_path / "labels.csv"), ds)
    np.testing.assert_array_equal(take_frames(ds, rows)["frames"].values, FRAMES[[3, 4]])


def test_each_run_is_signed_with_all_its_files(hits):
    signed = sign_files(open_hits(hits))
    names = {run: sorted(file[0] for file in files) for run, files in signed.items()}
    assert names == {
        "r0007": ["b.zarr"],
        "r0009": ["a.h5", "b.zarr"],
        "r0182": ["a.h5", "b.zarr"],
    }


def test_text_names_runs_and_repetitions_are_counted_and_kept(tmp_path):
    with h5py.File(tmp_path / "hits.h5", "w") as file:
        file["d"] = FRAMES[:4]
        file["run"] = np.array(["cxi_r10", "cxi_r9", "cxi_r9", "cxi_r9"], object)
        file["index"] = [4, 7, 7, 1]
    ds = open_runs(str(tmp_path / "hits.h5"), "d", layout=FileLayout(identity=("run", "index")))
    assert ds["run_name"].values.tolist() == ["cxi_r9", "cxi_r10"]
    assert ds["index"].values.tolist() == [1, 7, 7, 4]
    np.testing.assert_array_equal(ds["frames"].values, FRAMES[[3, 1, 2, 0]])
    assert ds.attrs["repeated_frames"] == 2


def test_tables_that_are_missing_or_unfit_are_told(tmp_path):
    with h5py.File(tmp_path / "hits.h5", "w") as file:
        file["d"] = FRAMES[:4]
        file["run"], file["index"] = [1, 2, 3, 4], [0, 1, 2]
        file["negative"], file["real"] = [0, 1, -2, 3], [1.0, 1, 1, 2]
    for names, why in {
        ("run", "index"): r"array 'index' has shape \(3,\), expected one number for each of 4",
        ("real", "negative"): r"array 'real' .* one number for each of 4 frames, whole, or a text",
        ("no", "negative"): r"has no array 'no', .*set runs\.identity",
        ("run", "negative"): r"negative holds -2, expected positions from 0 on",
    }.items():
        with pytest.raises(DataError, match=why):
            open_runs(str(tmp_path / "hits.h5"), "d", layout=FileLayout(identity=names))

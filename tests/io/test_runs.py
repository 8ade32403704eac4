"""Many runs as one lazy Dataset: who is in it, what is read when, and in which pieces."""

import os
import pickle
import resource
import time

import dask.array as da
import h5py
import numpy as np
import pytest
import zarr

from spidask.errors import DataError
from spidask.io import stretches
from spidask.io.runs import open_runs, select_run, sign_files, take_frames
from spidask.io.stack import fill_value
from spidask.schema import VARIABLES, validate

DATASET = "entry_1/data_1/data"
SHAPE = (4, 6)


def frames(seed, n_frames, dtype="u2", shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 200, (n_frames, *shape)).astype(dtype)


def write(path, data, ids=(), **layout):
    with h5py.File(path, "w") as file:
        file.create_dataset(DATASET, data=data, **layout)
        for name, values in dict(ids).items():
            file[f"entry_1/{name}"] = values
    return data


@pytest.fixture
def beamtime(tmp_path):
    """Runs r9 (13 frames), r10 (20, in Zarr) and r11 (5), and all their frames in a row."""
    nine = write(tmp_path / "r9.h5", frames(9, 13, ">u2"), {"trainId": np.arange(13) * 3})
    ten = frames(10, 20)
    zarr.open_group(tmp_path / "r10.zarr", mode="w").create_array(DATASET, data=ten)
    eleven = write(tmp_path / "r11.h5", frames(11, 5), {"trainId": np.arange(5)})
    return f"{tmp_path}/r*", np.concatenate([nine, ten, eleven]).astype("u2")


@pytest.fixture
def asked(monkeypatch):
    """What the readers of HDF5 files are asked for."""
    asked = []
    read = stretches.StackReader.__getitem__

    def note(self, key):
        asked.append((os.path.basename(self.path), *key))
        return read(self, key)

    monkeypatch.setattr(stretches.StackReader, "__getitem__", note)
    return asked


def test_many_runs_are_one_lazy_dataset(beamtime):
    ds = open_runs(beamtime[0])
    names = ["frames", "run", "index", "file", "row", "run_name", "file_path", "trainId"]
    validate(ds, *names, "file_frames")
    assert isinstance(ds["frames"].data, da.Array)
    assert ds["run_name"].values.tolist() == ["r9", "r10", "r11"]
    assert ds["run"].values.tolist() == [0] * 13 + [1] * 20 + [2] * 5
    assert ds["index"].values.tolist() == [*range(13), *range(20), *range(5)]
    assert ds["row"].values.tolist() == ds["index"].values.tolist()
    assert ds["file"].values.tolist() == ds["run"].values.tolist()
    assert ds["trainId"].values.tolist() == [*range(0, 39, 3), *[-1] * 20, *range(5)]
    assert ds["frames"].dtype == np.dtype("u2")
    assert ds["frames"].attrs["units"] == VARIABLES["frames"].units
    assert ds.attrs["unreadable_files"] == ds.attrs["odd_files"] == []
    assert ds.attrs["dataset"] == DATASET


@pytest.mark.parametrize("frames_per_block", [1, 7, 0])
def test_the_frames_do_not_depend_on_the_blocks(beamtime, frames_per_block):
    files, expected = beamtime
    ds = open_runs(files, frames_per_block=frames_per_block)
    np.testing.assert_array_equal(ds["frames"].values, expected)
    np.testing.assert_array_equal(ds["frames"][:, 1:3, 2:].values, expected[:, 1:3, 2:])


def test_blocks_start_anew_with_every_file_and_keep_to_the_run(tmp_path):
    for name, n_frames in [("r1_a", 10), ("r1_b", 9), ("r2_a", 6)]:
        write(tmp_path / f"{name}.h5", frames(1, n_frames))
    ds = open_runs(f"{tmp_path}/*.h5", pattern=r"(?P<run>r\d)_", frames_per_block=4)
    # Run r1 is cut at 4, 8, 12, 16 of its frames and where its first file ends, at 10.
    assert ds.chunks["frame"] == (4, 4, 2, 2, 4, 3, 4, 2)
    assert ds["index"].values.tolist() == [*range(19), *range(6)]
    assert ds["row"].values.tolist() == [*range(10), *range(9), *range(6)]
    assert ds["file"].values.tolist() == [0] * 10 + [1] * 9 + [2] * 6
    shard = select_run(ds, "r1", slice(6, 18))
    assert shard.chunks["frame"] == (2, 2, 2, 4, 2)


@pytest.mark.parametrize(
    ("shape", "expected"), [((512, 1024), 128), ((256, 512), 256), ((1024, 1024), 32)]
)
def test_a_block_is_about_64_mib_and_a_window_of_hits_where_that_is_not_twice_as_much(
    tmp_path, shape, expected
):
    with h5py.File(tmp_path / "r1.h5", "w") as file:
        file.create_dataset(DATASET, (300, *shape), "u2", chunks=(1, *shape))
    assert open_runs(str(tmp_path / "r1.h5")).chunks["frame"][0] == expected


def test_nothing_is_read_before_compute_and_then_only_the_region(beamtime, asked):
    ds = open_runs(beamtime[0], frames_per_block=10)
    part = ds["frames"][:, 1:3, 2:5]
    np.asarray(ds["index"])
    select_run(ds, "r11")
    assert asked == []
    part[:13].compute(scheduler="sync")
    region = (slice(1, 3), slice(2, 5))
    assert sorted(asked, key=str) == [
        ("r9.h5", slice(0, 10), *region),
        ("r9.h5", slice(10, 13), *region),
    ]


def test_a_shard_reads_its_own_frames_and_region(beamtime, asked):
    shard = select_run(open_runs(beamtime[0], frames_per_block=10), "r9", slice(8, 12))
    # The slice of frames and region in one step is what stages do to a part of a run.
    found = shard["frames"].data[0:4, 1:3, 2:5].compute(scheduler="sync")
    np.testing.assert_array_equal(found, beamtime[1][8:12, 1:3, 2:5])
    assert {(key[1].start, key[1].stop) for key in asked} == {(8, 10), (10, 12)}
    assert [key[2:] for key in asked] == [(slice(1, 3), slice(2, 5))] * 2


def test_frames_are_taken_in_any_order_without_their_neighbours(beamtime, asked):
    files, expected = beamtime
    ds = open_runs(files)
    rows = [36, 2, 3, 20, 12, 35]
    taken = take_frames(ds, rows)
    found = taken["frames"][:, 1:3].compute(scheduler="sync").values
    np.testing.assert_array_equal(found, expected[rows, 1:3])
    assert taken["index"].values.tolist() == [3, 2, 3, 7, 12, 2]
    assert taken["run"].values.tolist() == [2, 0, 0, 1, 0, 2]
    assert [(key[0], key[1]) for key in asked] == [
        ("r11.h5", slice(3, 4)),
        ("r9.h5", slice(2, 4)),
        ("r9.h5", slice(12, 13)),
        ("r11.h5", slice(2, 3)),
    ]
    again = take_frames(taken, np.array([False, True, False, False, False, True]))
    np.testing.assert_array_equal(again["frames"].values, expected[[2, 35]])
    assert take_frames(ds, [])["frames"].values.shape == (0, *SHAPE)
    assert take_frames(ds, slice(30, None, 3))["index"].values.tolist() == [17, 0, 3]


def test_a_cut_region_is_refused(beamtime):
    ds = open_runs(beamtime[0])
    with pytest.raises(DataError, match="take frames first and cut the region after"):
        take_frames(ds.isel(y=slice(0, 2)), [1])
    with pytest.raises(DataError, match="no run 'r12'; runs are r9, r10, r11"):
        select_run(ds, "r12")


def test_bad_neighbours_change_nothing_for_the_others(tmp_path, beamtime):
    files, expected = beamtime
    write(tmp_path / "r1.h5", frames(1, 8))
    os.truncate(tmp_path / "r1.h5", os.path.getsize(tmp_path / "r1.h5") - 100)
    (tmp_path / "r2.h5").write_bytes(b"")
    write(tmp_path / "r3.h5", frames(3, 0))
    write(tmp_path / "r12.h5", frames(12, 2, shape=(6, 4)))
    ds = open_runs(files)
    assert [(os.path.basename(p), r.split(";")[0]) for p, r in ds.attrs["unreadable_files"]] == [
        ("r1.h5", ds.attrs["unreadable_files"][0][1].split(";")[0]),
        ("r2.h5", "is empty (0 bytes)"),
        ("r3.h5", "holds no frames (shape (0, 4, 6))"),
    ]
    assert ds.attrs["unreadable_files"][0][1].startswith("truncated, ")
    assert [os.path.basename(p) for p, _ in ds.attrs["odd_files"]] == ["r12.h5"]
    assert "(6, 4), expected (4, 6)" in ds.attrs["odd_files"][0][1]
    assert ds["run_name"].values.tolist() == ["r9", "r10", "r11", "r12"]
    np.testing.assert_array_equal(ds["frames"].values[:38], expected)
    assert (ds["frames"].values[38:] == 65535).all()
    assert ds["index"].values[38:].tolist() == [0, 1]


def test_no_readable_file_at_all_is_an_error(tmp_path):
    (tmp_path / "r2.h5").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 1 files can be read; .*r2\.h5 is empty") as error:
        open_runs(f"{tmp_path}/*.h5")
    assert error.value.unreadable_files[0][0].endswith("r2.h5")


def test_a_frame_of_nan_and_mixed_dtypes_are_kept_as_they_are(tmp_path):
    floats = frames(1, 3, "f4")
    floats[1] = np.nan
    write(tmp_path / "r1.h5", floats)
    integers = write(tmp_path / "r2.h5", frames(2, 2, "i2"))
    ds = open_runs(f"{tmp_path}/*.h5")
    assert ds["frames"].dtype == np.dtype("f4")
    np.testing.assert_array_equal(ds["frames"].values, np.concatenate([floats, integers]))
    assert np.isnan(fill_value(ds["frames"].dtype))


def test_event_ids_that_cannot_be_read_cost_no_frame(tmp_path, caplog):
    data = write(tmp_path / "r1.h5", frames(1, 3))
    with h5py.File(tmp_path / "r1.h5", "a") as file:
        file.create_dataset("entry_1/trainId", data=[7, 8, 9], chunks=(3,), compression="gzip")
        where = file["entry_1/trainId"].id.get_chunk_info(0).byte_offset
    with open(tmp_path / "r1.h5", "r+b") as file:
        file.seek(where)
        file.write(b"\xff" * 8)
    ds = open_runs(f"{tmp_path}/*.h5")
    assert ds["trainId"].values.tolist() == [-1, -1, -1]
    assert "event ids entry_1/trainId cannot be read" in caplog.text
    np.testing.assert_array_equal(ds["frames"].values, data)


def test_signatures_tell_that_a_run_grew(tmp_path):
    write(tmp_path / "r1.h5", frames(1, 3))
    write(tmp_path / "r2.h5", frames(2, 4))
    before = sign_files(open_runs(f"{tmp_path}/*.h5"))
    assert [(f[0], f[3]) for f in before["r1"]] == [("r1.h5", 3)]
    write(tmp_path / "r1.h5", frames(1, 5))
    after = sign_files(open_runs(f"{tmp_path}/*.h5"))
    assert after["r1"][0][3] == 5
    assert (
        after["r2"]
        == before["r2"]
        == sign_files(select_run(open_runs(f"{tmp_path}/*"), "r2"))["r2"]
    )


def test_a_beamtime_of_a_million_frames_stays_light(tmp_path):
    for number in range(40):
        with h5py.File(tmp_path / f"r{number:04d}.h5", "w") as file:
            file.create_dataset(DATASET, (30_000, 512, 1024), "u2", chunks=(1, 512, 1024))
            for name in ("trainId", "pulseId"):
                file.create_dataset(f"entry_1/{name}", (30_000,), "u8")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    ds = open_runs(f"{tmp_path}/*.h5", cache=tmp_path / "index.json")
    run = select_run(ds, "r0017", slice(4096, 8192))
    assert time.perf_counter() - start < 10
    assert ds.sizes["frame"] == 1_200_000
    assert ds["index"][600_123].item() == 123
    assert len(pickle.dumps(run)) < 50_000
    assert len(pickle.dumps(select_run(ds, "r0017"))) < 50_000
    assert run["frames"][100, :2, :2].values.tolist() == [[0, 0], [0, 0]]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000

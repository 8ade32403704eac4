"""Zarr stacks of both versions read as the arrays that were written."""

import numpy as np
import pytest
import zarr

from spidask.errors import DataError
from spidask.io.runs import open_runs
from spidask.io.zarr import ZarrReader, _FastArray, _open_both, is_zarr, read_zarr_ids, scan_zarr

DATASET = "entry_1/data_1/data"
FRAMES = np.random.default_rng(1).integers(0, 1000, (23, 20, 31)).astype("u2")


def write(path, version, dataset=DATASET, dtype="u2", **layout):
    root = zarr.open_group(path, mode="w", zarr_format=version)
    array = root.create_array(dataset, shape=FRAMES.shape, dtype=dtype, **layout)
    array[:] = FRAMES
    return str(path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("chunks", [(1, 20, 31), (4, 7, 11)])
@pytest.mark.parametrize("dtype", ["<u2", ">i4", "f4"])
def test_both_versions_read_what_was_written(tmp_path, version, chunks, dtype):
    path = write(tmp_path / "r1.zarr", version, chunks=chunks, dtype=dtype)
    info = scan_zarr(path, DATASET)
    assert (info.shape, info.chunks) == (FRAMES.shape, chunks)
    stack = ZarrReader(path, DATASET, FRAMES.shape, np.dtype(info.dtype))
    for key in [np.s_[:], np.s_[2:9, 3:17, 5:30], np.s_[::5, ::2, 1::3], np.s_[7]]:
        np.testing.assert_array_equal(stack[key], FRAMES[key])
    np.testing.assert_array_equal(stack[[5, 1, 22], 3:4], FRAMES[[5, 1, 22], 3:4])


def test_shards_and_an_array_at_the_root(tmp_path):
    path = str(tmp_path / "r1.zarr")
    array = zarr.create_array(
        path, shape=FRAMES.shape, dtype="u2", chunks=(1, 20, 31), shards=(8, 20, 31)
    )
    array[:] = FRAMES
    assert is_zarr(path)
    assert scan_zarr(path, DATASET).shape == FRAMES.shape
    stack = ZarrReader(path, DATASET, FRAMES.shape, np.dtype("u2"))
    np.testing.assert_array_equal(stack[3:20, 1:5], FRAMES[3:20, 1:5])


SHARDS = {"chunks": (2, 10, 31), "shards": (4, 20, 31), "zarr_format": 3}


@pytest.mark.parametrize("layout", [SHARDS, {"zarr_format": 3}, {"zarr_format": 2}])
@pytest.mark.parametrize("dtype", ["<u2", ">f4"])
def test_zarrs_reads_what_zarr_reads(tmp_path, layout, dtype):
    pytest.importorskip("zarrs")
    path = str(tmp_path / "r1.zarr")
    layout = {"chunks": (2, 20, 31), **layout}
    array = zarr.create_array(path, shape=FRAMES.shape, dtype=dtype, fill_value=7, **layout)
    array[:15, :9] = FRAMES[:15, :9]
    plain, source = _open_both(path, "")
    assert "Zarrs" not in type(plain.async_array.codec_pipeline).__name__
    if not plain.dtype.isnative:
        assert source is plain
        return
    assert "Zarrs" in type(source.fast.async_array.codec_pipeline).__name__
    for key in [np.s_[:], np.s_[2:9, 3:17, 5:30], np.s_[14:18, 8:10, :1]]:
        np.testing.assert_array_equal(source.fast[key], plain[key])


def test_zarr_has_the_last_word_on_what_zarrs_cannot_read(tmp_path):
    class Unwilling:
        def __getitem__(self, key):
            raise RuntimeError("not mine")

    path = write(tmp_path / "r1.zarr", 3, chunks=(2, 20, 31))
    plain, _ = _open_both(path, DATASET)
    np.testing.assert_array_equal(_FastArray(plain, Unwilling())[3:9, :5], FRAMES[3:9, :5])


def test_only_the_frames_of_a_damaged_chunk_are_filled(tmp_path):
    path = write(tmp_path / "r1.zarr", 3, chunks=(2, 20, 31))
    (tmp_path / "r1.zarr" / DATASET / "c/3/0/0").write_bytes(b"\xff" * 60)
    expected = FRAMES.copy()
    expected[6:8] = 65535
    stack = ZarrReader(path, DATASET, FRAMES.shape, np.dtype("u2"))
    np.testing.assert_array_equal(stack[1:, 2:9], expected[1:, 2:9])


def test_event_ids_lie_beside_the_frames(tmp_path):
    path = write(tmp_path / "r1.zarr", 3)
    root = zarr.open_group(path)
    root.create_array("entry_1/pulseId", data=np.arange(23) * 4)
    root.create_array("entry_1/trainId", data=np.arange(7))
    assert scan_zarr(path, DATASET).event_ids == {"pulseId": ["entry_1/pulseId"]}
    assert read_zarr_ids(path, ["entry_1/pulseId"], slice(3, 6)).tolist() == [12, 16, 20]


def test_folders_without_a_stack_say_why(tmp_path):
    path = write(tmp_path / "r1.zarr", 3, dataset="other")
    with pytest.raises(DataError, match=rf"has no array '{DATASET}'; it holds other; set runs"):
        scan_zarr(path, DATASET)
    (tmp_path / "r1.zarr" / "zarr.json").write_text("{")
    with pytest.raises(DataError, match="is no readable Zarr"):
        scan_zarr(path, DATASET)
    assert not is_zarr(str(tmp_path))


@pytest.mark.parametrize("cut", [2, 40])
def test_a_cut_off_blosc_chunk_is_unreadable(tmp_path, cut):
    frames = np.random.default_rng(1).integers(0, 9, (6, 8, 5)).astype("u2")
    root = zarr.open_group(tmp_path / "r1.zarr", mode="w", zarr_format=2)
    array = root.create_array(DATASET, data=frames, chunks=(2, 8, 5))
    assert "Blosc" in str(array.compressors)
    chunk = tmp_path / "r1.zarr" / DATASET / "1.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-cut])
    read = open_runs(str(tmp_path / "r1.zarr"))["frames"].values
    assert (read[2:4] == 65535).all()
    np.testing.assert_array_equal(read[[0, 1, 4, 5]], frames[[0, 1, 4, 5]])


def test_absurd_metadata_are_refused(tmp_path):
    write(tmp_path / "r1.zarr", 3)
    metadata = tmp_path / "r1.zarr" / DATASET / "zarr.json"
    whole = metadata.read_text()
    for part, other in (
        ('"level": 0', '"level": "x"'),
        ('"shape": [', '"shape": [0, '),
        ("{", "["),
    ):
        metadata.write_text(whole.replace(part, other, 1))
        with pytest.raises(DataError, match=r"is no readable Zarr|has no array|dimensions"):
            open_runs(str(tmp_path / "r1.zarr"))

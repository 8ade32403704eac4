"""HDF5 stacks: every layout gives the bytes that h5py gives, and broken files say why."""

import os
import pickle

import h5py
import hdf5plugin
import numpy as np
import pytest

from spidask.errors import DataError
from spidask.io.hdf5 import StackReader, open_hdf5, read_hdf5_ids, scan_hdf5

DATASET = "entry_1/data_1/data"
FRAMES = np.random.default_rng(1).integers(0, 1000, (23, 20, 31))
LAYOUTS = {
    "contiguous": {},
    "chunk is a frame": {"chunks": (1, 20, 31)},
    "odd tiles": {"chunks": (3, 7, 11)},
    "gzip": {"chunks": (1, 20, 31), "compression": "gzip"},
    "gzip, shuffle, checksum": {
        "chunks": (4, 20, 31),
        "compression": "gzip",
        "shuffle": True,
        "fletcher32": True,
    },
    "bitshuffle/LZ4": {"chunks": (1, 20, 31), **hdf5plugin.Bitshuffle(cname="lz4")},
}


def write(path, frames, dataset=DATASET, **layout):
    with h5py.File(path, "w") as file:
        file.create_dataset(dataset, data=frames, **layout)
    return str(path)


def reader(path, frames, dtype=None):
    native = np.asarray(frames).dtype.newbyteorder("=")
    return StackReader(path, DATASET, frames.shape, np.dtype(dtype or native))


@pytest.mark.parametrize("dtype", [">u2", "<u2", "i4", ">f4", "f8", "u1"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_reads_as_h5py_does(tmp_path, layout, dtype):
    path = write(tmp_path / "r1.h5", FRAMES.astype(dtype), **layout)
    stack = reader(path, FRAMES.astype(dtype))
    for key in [
        np.s_[:],
        np.s_[2:9, 3:17, 5:30],
        np.s_[22:, :1, 30:],
        np.s_[::5, ::2, 1::3],
        np.s_[4:4, 2:3],
        np.s_[7],
        np.s_[3:5, 4],
    ]:
        with h5py.File(path) as file:
            expected = file[DATASET][key]
        found = stack[key]
        assert found.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(found, expected)


def test_scattered_frames_come_in_the_order_asked_for(tmp_path):
    path = write(tmp_path / "r1.h5", FRAMES, chunks=(3, 7, 11))
    rows = [22, 0, 5, 5, 4]
    np.testing.assert_array_equal(reader(path, FRAMES)[rows, 2:4, 1:], FRAMES[rows, 2:4, 1:])
    assert reader(path, FRAMES)[[], 2:4, 1:].shape == (0, 2, 30)


def test_chunks_never_written_are_their_fill_value(tmp_path):
    with h5py.File(tmp_path / "r1.h5", "w") as file:
        stack = file.create_dataset(DATASET, (9, 4, 4), "i2", chunks=(2, 4, 4), fillvalue=-3)
        stack[4:6] = 7
    found = StackReader(str(tmp_path / "r1.h5"), DATASET, (9, 4, 4), np.dtype("i2"))[3:7]
    assert found[:, 0, 0].tolist() == [-3, 7, 7, -3]


@pytest.mark.parametrize(("dtype", "fill"), [("u2", 65535), ("f4", np.nan)])
def test_only_the_frames_of_a_damaged_chunk_are_filled(tmp_path, dtype, fill):
    frames = FRAMES.astype(dtype)
    path = write(tmp_path / "r1.h5", frames, chunks=(1, 20, 31), compression="gzip")
    damage(path, 5)
    expected = frames.copy()
    expected[5] = fill
    np.testing.assert_array_equal(reader(path, frames)[:], expected)
    np.testing.assert_array_equal(reader(path, frames)[3:8, 2:5], expected[3:8, 2:5])


def damage(path, chunk):
    with h5py.File(path) as file:
        where = file[DATASET].id.get_chunk_info(chunk)
    with open(path, "r+b") as file:
        file.seek(where.byte_offset + 10)
        file.write(b"\xff" * 50)


def test_frames_of_another_shape_are_filled(tmp_path):
    path = write(tmp_path / "r1.h5", FRAMES.astype("u2"))
    found = StackReader(path, DATASET, (23, 6, 5), np.dtype("u2"))[4:6, 1:3]
    assert found.tolist() == np.full((2, 2, 5), 65535).tolist()


def test_a_file_that_shrank_is_an_error_and_not_a_lost_frame(tmp_path):
    path = write(tmp_path / "r1.h5", FRAMES[:10])
    with pytest.raises(DataError, match=r"r1\.h5 holds 10 frames, expected at least 12"):
        reader(path, FRAMES)[8:12]
    (tmp_path / "r1.h5").unlink()
    with pytest.raises(DataError, match="cannot be opened any more"):
        reader(path, FRAMES)[0:1]


def test_a_rewritten_file_is_opened_anew(tmp_path):
    path = write(tmp_path / "r1.h5", FRAMES)
    assert reader(path, FRAMES)[0, 0, 0] == FRAMES[0, 0, 0]
    (tmp_path / "r1.h5").unlink()
    write(path, FRAMES + 1, chunks=(1, 20, 31))
    assert reader(path, FRAMES)[0, 0, 0] == FRAMES[0, 0, 0] + 1


def test_a_file_rewritten_in_place_again_and_again_is_opened_anew(tmp_path):
    path = str(tmp_path / "r1.h5")
    for number in range(1, 6):
        write(tmp_path / "next.h5", FRAMES + number, chunks=(number, 20, 31), compression="gzip")
        # The same file as before to HDF5, which shares what it knows of one that is open.
        (tmp_path / "r1.h5").write_bytes((tmp_path / "next.h5").read_bytes())
        os.utime(path, ns=(number, number))
        (tmp_path / "next.h5").unlink()
        np.testing.assert_array_equal(reader(path, FRAMES)[:], FRAMES + number)


def test_a_file_rewritten_in_place_after_it_was_read_is_described_anew(tmp_path):
    path = write(tmp_path / "r1.h5", FRAMES[:5])
    reader(path, FRAMES[:5])[:]
    write(tmp_path / "next.h5", FRAMES)
    (tmp_path / "r1.h5").write_bytes((tmp_path / "next.h5").read_bytes())
    assert scan_hdf5(path, DATASET).shape == FRAMES.shape


def test_frames_of_modules_are_looked_at_anew_where_only_the_size_shows_a_change(tmp_path):
    for n_modules in (1, 2):
        frames = np.stack([FRAMES] * n_modules, axis=1)
        write(tmp_path / "next.h5", frames)
        (tmp_path / "r1.h5").write_bytes((tmp_path / "next.h5").read_bytes())
        os.utime(tmp_path / "r1.h5", ns=(1, 1))
        shape = (len(FRAMES), n_modules * 20, 31)
        stack = StackReader(str(tmp_path / "r1.h5"), DATASET, shape, np.dtype(int))
        np.testing.assert_array_equal(stack[:], frames.reshape(shape))


def test_others_may_open_the_file_in_the_same_process(tmp_path):
    path = write(tmp_path / "r1.h5", FRAMES)
    held = open_hdf5(path, DATASET)
    with h5py.File(path, "r") as file:
        assert file[DATASET][3, 2, 1] == held[3, 2, 1] == FRAMES[3, 2, 1]


def test_a_reader_pickles_small(tmp_path):
    path = write(tmp_path / "r1.h5", FRAMES)
    stack = reader(path, FRAMES)
    assert stack[0, 0, 0] == FRAMES[0, 0, 0]
    assert len(pickle.dumps(stack)) < 1000
    assert pickle.loads(pickle.dumps(stack)) == stack


def test_the_header_says_shape_dtype_chunks_and_event_ids(tmp_path):
    path = write(tmp_path / "r1.cxi", FRAMES.astype(">u2"), chunks=(1, 20, 31))
    with h5py.File(path, "a") as file:
        file["entry_1/trainId"] = np.arange(23, dtype="u8")
        file["entry_1/data_1/timestamp"] = np.arange(23)
        file["entry_1/cellId"] = np.zeros((23, 16), int)
        file["entry_1/pulseId"] = np.zeros(22, int)
        file["LCLS/fiducial"] = np.zeros(23)
        file["LCLS/eventNumber"] = np.arange(23) * 2
    info = scan_hdf5(path, DATASET)
    assert (info.shape, info.dtype, info.chunks) == ((23, 20, 31), "<u2", (1, 20, 31))
    assert info.event_ids == {
        "trainId": ["entry_1/trainId"],
        "timestamp": ["entry_1/data_1/timestamp"],
        "eventNumber": ["LCLS/eventNumber"],
    }


def test_seconds_and_nanoseconds_become_one_timestamp(tmp_path):
    path = write(tmp_path / "r1.cxi", FRAMES[:2])
    with h5py.File(path, "a") as file:
        file["LCLS/machineTime"] = np.array([1_500_000_000, 3], "i4")
        file["LCLS/machineTimeNanoSeconds"] = np.array([7, 4_000_000_000], "u4")
    names = scan_hdf5(path, DATASET).event_ids["timestamp"]
    assert names == ["LCLS/machineTime", "LCLS/machineTimeNanoSeconds"]
    assert read_hdf5_ids(path, names, slice(0, 2)).tolist() == [
        (1_500_000_000 << 32) + 7,
        (3 << 32) + 4_000_000_000,
    ]


def test_a_truncated_file_says_how_much_is_there(tmp_path):
    path = write(tmp_path / "r1.h5", np.zeros((40, 20, 31), "u2"))
    whole = f"{os.path.getsize(path):,}".replace(",", " ")
    os.truncate(path, 20_000)
    with pytest.raises(DataError, match=f"^truncated, 20 000 of {whole} bytes; transfer it again$"):
        scan_hdf5(path, DATASET)


def test_files_without_a_stack_say_why(tmp_path):
    for name, frames in [("flat", FRAMES[0]), ("none", FRAMES[:0]), ("text", [[[b"a"]]])]:
        write(tmp_path / name, np.asarray(frames))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "notes").write_text("no file of ours, " * 10)
    write(tmp_path / "other", FRAMES, dataset="a/b")
    with h5py.File(tmp_path / "group", "w") as file:
        file.create_group(DATASET)
    with h5py.File(tmp_path / "looped", "w") as file:
        file["entry_1"] = h5py.SoftLink("/entry_1")
    for name, why in {
        "flat": r"has 2 dimensions \(20, 31\), expected \(frame, y, x\)",
        "none": r"holds no frames \(shape \(0, 20, 31\)\)",
        "text": r"holds \|S1, expected integers or floats",
        "empty": r"is empty \(0 bytes\); transfer it again or leave it out",
        "notes": "is no HDF5 file",
        "other": rf"has no dataset '{DATASET}'; it holds a/b; set runs.dataset",
        "group": f"has no dataset '{DATASET}'; it holds no stack of frames at all",
        "looped": "transfer it again|has no dataset",
        "absent": "is not there",
    }.items():
        with pytest.raises(DataError, match=why):
            scan_hdf5(str(tmp_path / name), DATASET)


def test_a_filter_that_is_not_installed_is_named(tmp_path):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((1, 4, 4))
    plist.set_filter(257, h5py.h5z.FLAG_OPTIONAL, ())
    with h5py.File(tmp_path / "r1.h5", "w") as file:
        space = h5py.h5s.create_simple((3, 4, 4))
        h5py.h5d.create(file.id, b"d", h5py.h5t.NATIVE_INT16, space, plist)
    with pytest.raises(DataError, match=r"HDF5 filter 257 .* not installed"):
        scan_hdf5(str(tmp_path / "r1.h5"), "d")

"""Arrays that HDF5 would read wrongly, or not survive, are refused before it reads them."""

import struct

import h5py
import numpy as np
import pytest

from spidask.errors import DataError
from spidask.io import arrays
from spidask.io.arrays import GONE, claims_too_much, find_array, list_broken_sources, read_array
from spidask.io.runs import open_runs


def add_virtual(file, name, source, *, n=4, shape=(4, 2), **options):
    """A virtual array of the first rows of another; of "file:dataset" or of one in this file."""
    path, _, dataset = source.rpartition(":")
    layout = h5py.VirtualLayout((4, 2), "i4")
    layout[:n] = h5py.VirtualSource(path or ".", dataset, shape)[:n]
    file.create_virtual_dataset(name, layout, **options)


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["good"] = np.arange(8, dtype="i4").reshape(4, 2)
        other["short"] = np.zeros((3, 2), "i4")
        other["none"] = h5py.Empty("i4")
        add_virtual(other, "back", "r1.h5:round")
    with h5py.File(tmp_path / "r1.h5", "w") as file:
        add_virtual(file, "whole", "other.h5:good")
        add_virtual(file, "part", "other.h5:good", n=3)
        add_virtual(file, "twice", "whole")
        add_virtual(file, "of three", "other.h5:short", n=3)
        add_virtual(file, "self", "self")
        add_virtual(file, "round", "other.h5:back")
        add_virtual(file, "short", "other.h5:short")
        add_virtual(file, "half short", "other.h5:short", shape=(9, 2))
        add_virtual(file, "none", "other.h5:none")
    with h5py.File(tmp_path / "r1.h5", driver="stdio", locking=False) as file:
        yield file


@pytest.mark.parametrize("name", ["whole", "part", "twice", "of three"])
def test_virtual_arrays_of_sound_sources_are_read(file, name):
    assert list_broken_sources(file[name]) == {}
    if name != "of three":
        np.testing.assert_array_equal(
            read_array(file, name, "r1.h5")[:3], np.arange(6).reshape(3, 2)
        )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("self", "its source . leads back to it"),
        ("round", r"its source other.h5 leads to r1\.h5, which leads back to it"),
        ("short", r"its source other.h5 is shorter, \(3, 2\), than what is taken of it"),
        ("half short", r"its source other.h5 is shorter, \(3, 2\)"),
        ("none", "its source other.h5 holds no array 'none'"),
    ],
)
def test_virtual_arrays_that_hdf5_does_not_read_rightly_are_refused(file, name, why):
    with pytest.raises(DataError, match=rf"^/{name} is virtual, and {why}.*; transfer both again"):
        find_array(file, name)


def test_what_is_gone_must_show_in_the_frames(tmp_path):
    with h5py.File(tmp_path / "r1.h5", "w") as file:
        for name, fill in (("marked", 65535), ("zero", 0)):
            layout = h5py.VirtualLayout((2, 3, 4), "u2")
            layout[...] = h5py.VirtualSource("gone.h5", "data", (2, 3, 4))
            file.create_virtual_dataset(name, layout, fillvalue=fill)
    assert (open_runs(str(tmp_path / "r1.h5"), "marked")["frames"].values == 65535).all()
    with pytest.raises(DataError, match=rf"/zero is virtual, and its source gone\.h5 {GONE}"):
        open_runs(str(tmp_path / "r1.h5"), "zero")


def test_values_in_another_file_must_be_there(tmp_path):
    (tmp_path / "values.bin").write_bytes(np.arange(8, dtype="i4").tobytes())
    with h5py.File(tmp_path / "r1.h5", "w") as file:
        for name, place, offset in (
            ("good", "values.bin", 0),
            ("short", "values.bin", 4),
            ("gone", "gone.bin", 0),
            ("device", "/dev/zero", 0),
        ):
            external = [(place, offset, 32)]
            file.create_dataset(name, (8,), "i4", external=external)
    with h5py.File(tmp_path / "r1.h5") as file:
        assert find_array(file, "good") is not None
        for name in ("short", "gone", "device"):
            with pytest.raises(DataError, match=f"^/{name} lies in .* gone or too short"):
                find_array(file, name)


def test_absurd_shapes_are_refused_before_memory_is_taken(tmp_path):
    huge = {"compression": "gzip"}
    for number, (shape, chunks, why) in enumerate(
        [
            ((2**40, 6, 5), (1, 6, 5), "claims the shape"),
            ((3, 2**31, 5), (1, 100, 5), "claims the shape"),
            ((2**16, 2**10, 5), (2**16, 2**10, 5), "has chunks of .* expected at most 256 MiB"),
        ]
    ):
        path = tmp_path / f"r{number}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("data", shape, "u2", chunks=chunks, **huge)
            file.create_dataset("ids", (2**40,), "i8", chunks=(10,))
        with pytest.raises(DataError, match=why):
            open_runs(str(path), "data")
        with h5py.File(path) as file, pytest.raises(DataError, match=r"/ids claims the shape \(10"):
            read_array(file, "ids", "r.h5")


@pytest.mark.parametrize("chunks", [None, (1,), (2,)])
def test_lists_longer_than_their_file_are_refused(tmp_path, chunks):
    path = tmp_path / "lists.h5"
    with h5py.File(path, "w") as file:
        lists = file.create_dataset("lists", (3,), h5py.vlen_dtype("i4"), chunks=chunks)
        texts = file.create_dataset("texts", (3,), h5py.string_dtype(), chunks=chunks)
        for row in range(3):
            lists[row], texts[row] = np.arange(40 + row), "x" * (50 + row)
    with h5py.File(path) as file:
        assert not claims_too_much(file["lists"], slice(None))
        assert read_array(file, "texts", "lists.h5").tolist() == [b"x" * n for n in (50, 51, 52)]
    content = bytearray(path.read_bytes())
    for length in (41, 51):  # of the second list and text
        (at,) = _find_heads(content, length)
        content[at : at + 4] = struct.pack("<I", 2**31)
    path.write_bytes(content)
    with h5py.File(path) as file:
        for name in ("lists", "texts"):
            assert claims_too_much(file[name], slice(1, 2))
            assert not claims_too_much(file[name], slice(2 if chunks == (2,) else 0, 1))
            with pytest.raises(DataError, match=f"lists of /{name} claim to be longer"):
                read_array(file, name, "lists.h5")


def _find_heads(content, length):
    """A list's head: its length, and the address and number of a heap."""
    places = [
        i for i in range(len(content) - 16) if content[i : i + 4] == struct.pack("<I", length)
    ]
    addresses = [struct.unpack("<Q", content[i + 4 : i + 12])[0] for i in places]
    return [i for i, a in zip(places, addresses, strict=True) if content[a : a + 4] == b"GCOL"]


def test_short_chunks_are_refused(tmp_path):
    with h5py.File(tmp_path / "r1.h5", "w") as file:
        for name in ("good", "short"):
            file.create_dataset(name, data=np.arange(8.0).reshape(4, 2), chunks=(2, 2))
        file.create_dataset("texts", data=["a", "bc"], dtype=h5py.string_dtype(), chunks=(1,))
        add_virtual(file, "of it", "short")
    content = (tmp_path / "r1.h5").read_bytes()
    # In the tree of chunks: bytes, skipped filters, and where the second one begins.
    key = struct.pack("<IIQQ", 32, 0, 2, 0)
    at = content.rindex(key)
    (tmp_path / "r1.h5").write_bytes(content[:at] + b"\x08" + content[at + 1 :])
    with h5py.File(tmp_path / "r1.h5") as file:
        assert [name for name in ("good", "short") if arrays.has_short_chunks(file[name])] == [
            "short"
        ]
        assert read_array(file, "texts", "r1.h5").tolist() == [b"a", b"bc"]
        with pytest.raises(
            DataError, match=r"^/short has chunks that are shorter than \(2, 2\) float"
        ):
            find_array(file, "short")
        with pytest.raises(DataError, match=r"its source \. has chunks that are shorter"):
            find_array(file, "of it")


def test_many_chunks_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    values = np.arange(35).reshape(7, 5)
    with h5py.File(tmp_path / "r1.h5", "w") as file:
        file.create_dataset("ids", data=values, chunks=(2, 2))
        file.create_dataset("more", (2**40,), "i8", chunks=(2**20,))
    monkeypatch.setattr(arrays, "MOST_NUMBERS", 2**50)
    with h5py.File(tmp_path / "r1.h5") as file:
        for at_once in (1, 3, 6, 100):
            monkeypatch.setattr(arrays, "CHUNKS_AT_ONCE", at_once)
            np.testing.assert_array_equal(read_array(file, "ids", "r1.h5"), values)
        with pytest.raises(
            DataError, match=r"has 1048576 chunks of .*, expected at most 262144; re"
        ):
            read_array(file, "more", "r1.h5")

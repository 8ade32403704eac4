"""The index of chunks against what HDF5 says of each."""

import h5py
import hdf5plugin
import numpy as np
import pytest

from spidask.io.chunks import BITSHUFFLE, DEFLATE, SHUFFLE, UNWRITTEN, index_chunks

SHAPE, CHUNK = (9, 8, 10), (2, 8, 4)
LAYOUTS = {
    "plain": ({}, ()),
    "gzip": ({"compression": "gzip"}, (DEFLATE,)),
    "shuffle": ({"compression": "gzip", "shuffle": True}, (SHUFFLE, DEFLATE)),
    "LZ4": (hdf5plugin.Bitshuffle(cname="lz4"), (BITSHUFFLE,)),
}


@pytest.mark.parametrize("maxshape", [None, (None, 8, 10), (None, 8, None)])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize(("layout", "filters"), LAYOUTS.values(), ids=LAYOUTS)
def test_addresses_are_those_of_hdf5(tmp_path, layout, filters, libver, maxshape):
    with h5py.File(tmp_path / "r1.h5", "w", libver=libver) as file:
        data = file.create_dataset("d", SHAPE, "u2", chunks=CHUNK, maxshape=maxshape, **layout)
        data[2:7, :, :8] = np.arange(8)
        file.flush()
        index = index_chunks(data)
        assert (index.shape, index.filters, index.fill) == (CHUNK, filters, 0)
        for place in np.ndindex(5, 1, 3):
            where = data.id.get_chunk_info_by_coord(tuple(np.multiply(place, CHUNK)))
            if where.byte_offset is None:
                assert index.address[place] == UNWRITTEN
            else:
                found = (index.address[place], index.n_bytes[place], index.skipped[place])
                assert found == (where.byte_offset, where.size, where.filter_mask)
        assert (index.address != UNWRITTEN).sum() == 6


def test_a_contiguous_dataset_is_one_chunk(tmp_path):
    with h5py.File(tmp_path / "r1.h5", "w") as file:
        data = file.create_dataset("d", data=np.arange(720.0).reshape(SHAPE))
        index = index_chunks(data)
        assert (index.shape, index.filters) == (SHAPE, ())
        assert index.address.tolist() == [[[data.id.get_offset()]]]
        assert index.n_bytes.tolist() == [[[720 * 8]]]


@pytest.mark.parametrize(
    ("fill", "expected"),
    [({}, 0), ({"fillvalue": -3}, -3), ({"fillvalue": -3, "fill_time": "never"}, 0)],
)
def test_the_value_of_what_was_never_written(tmp_path, fill, expected):
    with h5py.File(tmp_path / "r1.h5", "w") as file:
        assert index_chunks(file.create_dataset("d", SHAPE, ">i2", chunks=CHUNK, **fill)).fill == (
            expected
        )


@pytest.mark.parametrize(
    ("shape", "dtype", "layout"),
    [
        (SHAPE, "f4", {}),  # contiguous and never written
        ((9,), "f4", {"chunks": (3,)}),
        (SHAPE, "S3", {"chunks": CHUNK}),
        (SHAPE, bool, {"chunks": CHUNK}),
        (SHAPE, "f4", {"chunks": CHUNK, "compression": "lzf"}),
        (SHAPE, "f4", {"chunks": CHUNK, **hdf5plugin.Bitshuffle(cname="zstd")}),
    ],
)
def test_what_hdf5_has_to_read_has_no_index(tmp_path, shape, dtype, layout):
    with h5py.File(tmp_path / "r1.h5", "w") as file:
        assert index_chunks(file.create_dataset("d", shape, dtype, **layout)) is None


def test_a_chunk_whose_address_is_none_counts_as_never_written(tmp_path):
    path = tmp_path / "r1.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=np.ones((2, 3, 4)), chunks=(2, 3, 4), fillvalue=7)
        address = file["data"].id.get_chunk_info(0).byte_offset
    content, old = path.read_bytes(), address.to_bytes(8, "little")
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, b"\xff" * 8))
    with h5py.File(path) as file:
        index = index_chunks(file["data"])
        assert index.address.tolist() == [[[UNWRITTEN]]]
        assert index.fill == file["data"][0, 0, 0] == 7

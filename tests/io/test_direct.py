"""Reading past HDF5: bit for bit what h5py gives, whatever the layout, and no byte more."""

import ctypes
import os
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import h5py
import hdf5plugin
import numpy as np
import pytest

from spidask.errors import DataError
from spidask.io import direct
from spidask.io.direct import DirectReader
from spidask.io.hdf5 import StackReader, open_frames

SHAPE = (23, 20, 31)
FRAMES = np.random.default_rng(1).poisson(np.geomspace(0.01, 90, 31), SHAPE)
FRAME, TILES, SEVERAL = (1, 20, 31), (3, 7, 11), (4, 20, 31)
GZIP = {"compression": "gzip"}
LZ4 = hdf5plugin.Bitshuffle(cname="lz4")
DIRECT = {
    "contiguous": {},
    "chunk is a frame": {"chunks": FRAME},
    "chunk is the stack": {"chunks": SHAPE},
    "chunks of several frames": {"chunks": SEVERAL},
    "odd tiles": {"chunks": TILES},
    "growing along one axis": {"chunks": FRAME, "maxshape": (None, 20, 31)},
    "growing along two": {"chunks": TILES, "maxshape": (None, None, 31)},
    "gzip": {"chunks": FRAME, **GZIP},
    "gzip in tiles": {"chunks": TILES, **GZIP, "maxshape": (None, 20, 31)},
    "gzip, shuffle": {"chunks": SEVERAL, **GZIP, "shuffle": True},
    "bitshuffle/LZ4": {"chunks": FRAME, **LZ4},
    "bitshuffle/LZ4 of several frames": {"chunks": SEVERAL, **LZ4, "maxshape": (None, None, 31)},
    "bitshuffle/LZ4 in tiles": {"chunks": TILES, **LZ4},
    "bitshuffle/LZ4 in short blocks": {
        "chunks": FRAME,
        **hdf5plugin.Bitshuffle(nelems=64, cname="lz4"),
    },
    "bitshuffle/LZ4, less than a group": {"chunks": (1, 3, 2), **LZ4},
}
THROUGH_HDF5 = {
    "checksum": {"chunks": FRAME, "fletcher32": True},
    "shuffle alone": {"chunks": FRAME, "shuffle": True},
    "LZF": {"chunks": FRAME, "compression": "lzf"},
    "bitshuffle alone": {"chunks": FRAME, **hdf5plugin.Bitshuffle(cname="none")},
    "bitshuffle/Zstd": {"chunks": FRAME, **hdf5plugin.Bitshuffle(cname="zstd")},
    "Blosc": {"chunks": FRAME, **hdf5plugin.Blosc()},
    "scale-offset": {"chunks": FRAME, "scaleoffset": 8},
}
DTYPES = ["u1", "<u2", ">u2", "i4", "f2", ">f4", "f8"]
KEYS = [
    np.s_[:, :, :],
    np.s_[2:9, 3:17, 5:30],
    np.s_[22:, :1, 30:],
    np.s_[::5, ::2, 1::3],
    np.s_[4:4, 2:3, :],
    np.s_[7, :, 3:20],
]


def write(path, layout, dtype="u2", libver="earliest", dataset="data"):
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset(dataset, data=FRAMES.astype(dtype), **layout)
    return str(path)


def open_alone(path, dataset="data"):
    """Open past HDF5, with no h5py to fall back on."""
    reader = open_frames(str(path), dataset)
    assert isinstance(reader, DirectReader)
    reader._array = None
    return reader


def assert_equal_to_h5py(reader, path, keys=KEYS, dataset="data"):
    with h5py.File(path) as file:
        for key in keys:
            found, expected = reader[key], file[dataset][key]
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
            assert found.base is None or found.base.nbytes <= found.nbytes


@pytest.mark.parametrize(
    ("dtype", "libver"), [*((dtype, "earliest") for dtype in DTYPES), (">u2", "latest")]
)
@pytest.mark.parametrize("layout", DIRECT.values(), ids=DIRECT)
def test_every_layout_reads_as_h5py_does(tmp_path, layout, dtype, libver):
    path = write(tmp_path / "r1.h5", layout, dtype, libver)
    assert_equal_to_h5py(open_alone(path), path)


@pytest.mark.parametrize("layout", THROUGH_HDF5.values(), ids=THROUGH_HDF5)
def test_other_filters_are_left_to_hdf5(tmp_path, layout):
    path = write(tmp_path / "r1.h5", layout, "i4")
    assert isinstance(open_frames(path, "data"), h5py.Dataset)
    np.testing.assert_array_equal(
        StackReader(path, "data", SHAPE, np.dtype("i4"))[2:9, 3:17, 5:30], FRAMES[2:9, 3:17, 5:30]
    )


def compact(file, frames):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(frames.shape)
    dataset = h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_UINT16, space, plist)
    h5py.Dataset(dataset)[:] = frames


def external(file, frames):
    outside = [(file.filename + ".raw", 0, frames.nbytes)]
    file.create_dataset("data", data=frames, external=outside)


def virtual(file, frames):
    file["other"] = frames
    layout = h5py.VirtualLayout(frames.shape, frames.dtype)
    layout[:] = h5py.VirtualSource(file["other"])
    file.create_virtual_dataset("data", layout)


def linked(file, frames):
    with h5py.File(file.filename + ".other", "w") as other:
        other["data"] = frames
    file["data"] = h5py.ExternalLink(file.filename + ".other", "data")


def odd_bits(file, frames):
    kind = h5py.h5t.NATIVE_UINT16.copy()
    kind.set_precision(12)
    space = h5py.h5s.create_simple(frames.shape)
    h5py.Dataset(h5py.h5d.create(file.id, b"data", kind, space))[:] = frames


@pytest.mark.parametrize("make", [compact, external, virtual, linked, odd_bits])
def test_other_storage_is_left_to_hdf5(tmp_path, make):
    frames, path = FRAMES.astype("u2"), str(tmp_path / "r1.h5")
    with h5py.File(path, "w") as file:
        make(file, frames)
    assert isinstance(open_frames(path, "data"), h5py.Dataset)
    stack = StackReader(path, "data", SHAPE, np.dtype("u2"))
    np.testing.assert_array_equal(stack[2:9, 3:17, 5:30], frames[2:9, 3:17, 5:30])


@pytest.mark.parametrize("layout", [{}, {"chunks": FRAME}, {"chunks": FRAME, **GZIP}])
def test_a_user_block_is_left_to_hdf5(tmp_path, layout):
    path = str(tmp_path / "r1.h5")
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("data", data=FRAMES, **layout)
    assert isinstance(open_frames(path, "data"), h5py.Dataset)
    stack = StackReader(path, "data", SHAPE, FRAMES.dtype)
    np.testing.assert_array_equal(stack[2:9, 3:17, 5:30], FRAMES[2:9, 3:17, 5:30])


def test_modules_and_planes_are_read_directly(tmp_path):
    frames = FRAMES[:, None, :, :].astype("u2").repeat(2, axis=1)
    frames[:, 1] += 7
    with h5py.File(tmp_path / "r1.h5", "w") as file:
        file.create_dataset("data", data=frames, chunks=(1, 1, 20, 31), **LZ4)
        file.create_dataset("flat", data=frames)
    for dataset in ("data", "flat"):
        reader = open_alone(tmp_path / "r1.h5", dataset)
        keys = [np.s_[2:9, 1, 3:17, 5:30], np.s_[:, :, :, :], np.s_[3:20, 0, :, :]]
        assert_equal_to_h5py(reader, tmp_path / "r1.h5", keys, dataset)


@pytest.mark.parametrize("filters", [{**GZIP, "shuffle": True}, {**GZIP}, {**LZ4}])
@pytest.mark.parametrize("skipped", [0, 1, 2, 3])
def test_a_chunk_may_have_skipped_filters(tmp_path, filters, skipped):
    skipped &= 3 if "shuffle" in filters else 1
    path, frame = str(tmp_path / "r1.h5"), FRAMES[3].astype("u2")
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", SHAPE, "u2", chunks=FRAME, **filters)
        data[:] = FRAMES
        if skipped:
            # Written by h5py with the remaining filters, then put here as it is.
            names = ["shuffle", "gzip"] if "shuffle" in filters else list(filters)[:1]
            kept = {n for i, n in enumerate(names) if not skipped >> i & 1}
            options = {"shuffle": "shuffle" in kept} | (GZIP if "gzip" in kept else {})
            other = file.create_dataset("other", data=frame[None], chunks=FRAME, **options)
            data.id.write_direct_chunk((3, 0, 0), other.id.read_direct_chunk((0, 0, 0))[1], skipped)
    assert_equal_to_h5py(open_alone(path), path)
    np.testing.assert_array_equal(open_alone(path)[3, :, :], frame)


@pytest.mark.parametrize("filters", [(h5py.h5z.FILTER_DEFLATE, (4,)), (32008, (0, 2))])
def test_chunks_at_the_edge_may_be_unfiltered(tmp_path, filters):
    # H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS, which h5py does not offer: of the library that it loads.
    set_chunk_opts = ctypes.CDLL(h5py.h5p.__file__).H5Pset_chunk_opts
    set_chunk_opts.argtypes = [ctypes.c_int64, ctypes.c_uint]
    plist, path = h5py.h5p.create(h5py.h5p.DATASET_CREATE), str(tmp_path / "r1.h5")
    plist.set_chunk(TILES)
    plist.set_filter(filters[0], 0, filters[1])
    assert set_chunk_opts(plist.id, 2) == 0
    with h5py.File(path, "w", libver="latest") as file:
        space = h5py.h5s.create_simple(SHAPE)
        data = h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_UINT16, space, plist)
        h5py.Dataset(data)[:] = FRAMES
    reader = open_frames(path, "data")
    assert isinstance(reader, DirectReader)
    assert_equal_to_h5py(reader, path)


@pytest.mark.parametrize("layout", [{}, GZIP, LZ4])
@pytest.mark.parametrize("fill", [{"fillvalue": -3}, {}, {"fillvalue": -3, "fill_time": "never"}])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_chunks_never_written_are_as_h5py_gives_them(tmp_path, layout, fill, libver):
    path = str(tmp_path / "r1.h5")
    with h5py.File(path, "w", libver=libver) as file:
        data = file.create_dataset("data", SHAPE, ">i2", chunks=TILES, **layout, **fill)
        data[4:8, :7] = 7
        file.create_dataset("none", SHAPE, "i2", chunks=TILES, **layout, **fill)
        file.create_dataset("flat", SHAPE, "i2", **fill)
    assert_equal_to_h5py(open_alone(path), path)
    assert_equal_to_h5py(open_alone(path, "none"), path, dataset="none")
    assert_equal_to_h5py(open_frames(path, "flat"), path, dataset="flat")


def test_early_allocation_has_an_index_too(tmp_path):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk(TILES)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    with h5py.File(tmp_path / "r1.h5", "w", libver="latest") as file:
        space = h5py.h5s.create_simple(SHAPE)
        dataset = h5py.h5d.create(file.id, b"data", h5py.h5t.STD_I16BE, space, plist)
        h5py.Dataset(dataset)[:15] = FRAMES[:15]
    assert_equal_to_h5py(open_alone(tmp_path / "r1.h5"), tmp_path / "r1.h5")


@pytest.mark.parametrize("layout", [{}, GZIP, LZ4])
def test_a_growing_file_is_indexed_anew(tmp_path, layout):
    path = str(tmp_path / "r1.h5")
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "data", (0, 20, 31), "u2", chunks=FRAME, maxshape=(None, 20, 31), **layout
        )
        for n_frames in (0, 2, 3, 23):
            data.resize(n_frames, axis=0)
            data[:] = FRAMES[:n_frames]
            file.flush()
            os.utime(path, ns=(n_frames, n_frames))
            found = open_alone(path)[:, 2:9, 3:30]
            np.testing.assert_array_equal(found, FRAMES[:n_frames, 2:9, 3:30])
            assert StackReader(path, "data", SHAPE, np.dtype("u2"))[:n_frames].shape[0] == n_frames
            if n_frames < 23:
                with pytest.raises(DataError, match=f"holds {n_frames} frames, expected"):
                    StackReader(path, "data", SHAPE, np.dtype("u2"))[:23]


def test_a_file_that_changes_while_it_is_opened_is_left_to_hdf5(tmp_path):
    path = write(tmp_path / "r1.h5", {"chunks": FRAME})
    with h5py.File(path) as file:
        stat = os.stat(path)
        assert direct.open_direct(file["data"], path, stat.st_size, stat.st_mtime_ns - 1) is None
        assert direct.open_direct(file["data"], path, stat.st_size - 1, stat.st_mtime_ns) is None


def damage(path, chunk, skip, text):
    with h5py.File(path) as file:
        where = file["data"].id.get_chunk_info(chunk)
    with open(path, "r+b") as file:
        file.seek(where.byte_offset + skip)
        file.write(text)


@pytest.mark.parametrize("layout", [{**GZIP, "shuffle": True}, GZIP, LZ4], ids=["sg", "g", "lz4"])
@pytest.mark.parametrize(("chunks", "lost"), [(FRAME, [5]), (SEVERAL, [20, 21, 22])])
def test_only_the_frames_of_a_damaged_chunk_are_lost(tmp_path, layout, chunks, lost):
    path = write(tmp_path / "r1.h5", {"chunks": chunks, **layout})
    damage(path, 5, 14, b"\xff" * 40)
    with pytest.raises(ValueError, match="the chunk is not what"):
        DirectReader._read(open_frames(path, "data"), (5, 0, 0), (slice(0, 1),) * 3, np.empty(1))
    expected = FRAMES.astype("u2")
    expected[lost] = 65535
    stack = StackReader(path, "data", SHAPE, np.dtype("u2"))
    np.testing.assert_array_equal(stack[:, 1:, :], expected[:, 1:])


def test_blocks_that_the_region_does_not_touch_are_not_decompressed(tmp_path):
    blocks = {"chunks": FRAME, **hdf5plugin.Bitshuffle(nelems=64, cname="lz4")}
    path = write(tmp_path / "r1.h5", blocks)
    with h5py.File(path) as file:
        size = file["data"].id.get_chunk_info(5).size
    damage(path, 5, size - 30, b"\xff" * 30)
    reader = open_alone(path)
    np.testing.assert_array_equal(reader[:, :10, :], FRAMES[:, :10])
    with pytest.raises(TypeError):
        reader[:, 10:, :]


def test_a_chunk_that_ends_behind_the_file_is_lost(tmp_path):
    path = write(tmp_path / "r1.h5", {"chunks": FRAME, "track_times": False})
    reader = open_alone(path)
    os.truncate(path, reader._index.address[7, 0, 0] + 100)
    with pytest.raises(EOFError, match="the file ends within a chunk"):
        reader._fetch(np.empty(1240), int(reader._index.address[7, 0, 0]))
    np.testing.assert_array_equal(reader[:7, :, :], FRAMES[:7])


@pytest.mark.parametrize("layout", [{}, GZIP, LZ4])
def test_memory_is_what_is_returned_and_a_chunk(tmp_path, layout):
    path = str(tmp_path / "r1.h5")
    frames = np.random.default_rng(4).integers(0, 9, (60, 80, 100), np.uint16)
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=frames, chunks=(1, 80, 100), **layout)
    reader = open_alone(path)
    reader[:2, 30:50, 20:60]  # compiles
    tracemalloc.start()
    found = reader[:, 30:50, 20:60]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(found, frames[:, 30:50, 20:60])
    assert found.base is None
    assert peak < found.nbytes + 3 * frames[0].nbytes


def test_threads_may_share_a_reader(tmp_path):
    path = write(tmp_path / "r1.h5", {"chunks": TILES, **LZ4})
    reader = open_alone(path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: reader[i % 23, 1:, 2:], range(230)))
    np.testing.assert_array_equal(found, np.tile(FRAMES[:, 1:, 2:], (10, 1, 1)))


def test_the_file_is_closed_with_its_reader(tmp_path):
    path = write(tmp_path / "r1.h5", {"chunks": FRAME})
    with h5py.File(path) as file:
        stat = os.stat(path)
        reader = direct.open_direct(file["data"], path, stat.st_size, stat.st_mtime_ns)
        descriptor = reader._descriptor
        assert os.fstat(descriptor).st_size == stat.st_size
        del reader
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_an_absurd_address_costs_its_frame(tmp_path):
    path = tmp_path / "r1.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=np.ones((3, 4, 5), np.uint16), chunks=(1, 4, 5))
        address = file["data"].id.get_chunk_info(1).byte_offset
    content = path.read_bytes()
    old, new = (n.to_bytes(8, "little") for n in (address, 2**63 - 1))
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    frames = StackReader(str(path), "data", (3, 4, 5), np.dtype(np.uint16))[0:3, 1:3]
    assert frames[:, 0, 0].tolist() == [1, 65535, 1]


@pytest.mark.parametrize("layout", [GZIP, {**GZIP, "shuffle": True}, LZ4], ids=["g", "sg", "lz4"])
def test_a_chunk_that_decodes_to_too_little_is_lost(tmp_path, layout):
    path = tmp_path / "r1.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=np.ones((3, 4, 5), "u2"), chunks=(1, 4, 5), **layout)
        data = file["data"]
        if layout is LZ4:
            short = data.id.read_direct_chunk((1, 0, 0))[1]
            short = struct.pack(">Q", 32) + short[8:]
        else:
            short = zlib.compress(bytes(32))
        data.id.write_direct_chunk((1, 0, 0), short)
    frames = StackReader(str(path), "data", (3, 4, 5), np.dtype(np.uint16))[0:3, 0:3]
    assert frames[:, 0, 0].tolist() == [1, 65535, 1]
    assert (frames[1] == 65535).all()


def test_a_chunk_of_too_few_bytes_is_lost(tmp_path):
    path, link = tmp_path / "r1.h5", tmp_path / "link.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=np.ones((3, 4, 5), "u2"), chunks=(1, 4, 5))
    content = path.read_bytes()
    # In the tree of chunks: bytes, skipped filters, and where the second one begins.
    at = content.index(struct.pack("<IIQ", 40, 0, 1))
    path.write_bytes(content[:at] + b"\x08" + content[at + 1 :])
    frames = StackReader(str(path), "data", (3, 4, 5), np.dtype(np.uint16))[0:3, 1:3]
    assert frames[:, 0, 0].tolist() == [1, 65535, 1]
    with h5py.File(link, "w") as file:
        file["data"] = h5py.ExternalLink("r1.h5", "data")
    with pytest.raises(DataError, match="/data has chunks that are shorter"):
        open_frames(str(link), "data")

"""Bitshuffle with LZ4: what the filter wrote comes back, and damaged bytes do no harm."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from spidask.io.bitshuffle import SLACK, unpack_rows

SHAPES = [((1, 20, 31), 0), ((1, 20, 31), 64), ((4, 50, 33), 0), ((1, 1, 5), 0), ((3, 2, 4096), 0)]


def pack(shape, dtype, n_block=0, seed=0):
    """Values, and the chunk that the filter makes of them."""
    values = np.random.default_rng(seed).poisson(np.geomspace(0.01, 90, shape[-1]), shape)
    with h5py.File(io.BytesIO(), "w") as file:
        filters = hdf5plugin.Bitshuffle(nelems=n_block, cname="lz4")
        data = file.create_dataset("data", data=values.astype(dtype), chunks=shape, **filters)
        _, raw = data.id.read_direct_chunk((0, 0, 0))
        return data[:].reshape(-1, shape[-1]), np.frombuffer(raw + b"\xff" * SLACK, np.uint8)


def unpack(raw, values, rows, columns):
    return unpack_rows(raw, values.dtype, values.size, rows, values.shape[1], columns)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "i4", "f4", ">f8"])
@pytest.mark.parametrize(("shape", "n_block"), SHAPES)
def test_rows_come_back_as_they_were_written(shape, dtype, n_block):
    values, raw = pack(shape, dtype, n_block)
    n_rows, n_columns = values.shape
    for rows in (np.arange(n_rows), np.arange(n_rows // 3, n_rows, 2), np.array([n_rows - 1])):
        for columns in (slice(0, n_columns), slice(3, n_columns - 1), slice(2, 2)):
            found = unpack(raw, values, rows, columns)
            assert found.dtype == values.dtype
            np.testing.assert_array_equal(found, values[rows, columns])


def test_noise_that_does_not_compress_comes_back():
    values = np.random.default_rng(2).integers(0, 65536, (9, 1000)).astype("u2")
    with h5py.File(io.BytesIO(), "w") as file:
        filters = hdf5plugin.Bitshuffle(cname="lz4")
        data = file.create_dataset("data", data=values, chunks=values.shape, **filters)
        raw = np.frombuffer(data.id.read_direct_chunk((0, 0))[1] + b"\0" * SLACK, np.uint8)
    np.testing.assert_array_equal(
        unpack(raw, values, np.arange(9), slice(7, 993)), values[:, 7:993]
    )


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (0, b"\x01"),  # more bytes than the chunk has
        (8, b"\0\0\0\0"),  # blocks of nothing
        (8, b"\0\0\0\x0e"),  # of 7 elements
        (12, b"\0\0\xff\xff"),  # a block longer than the chunk
        (12, b"\0\0\0\0"),  # no block at all
        (12, b"\xff\xff\xff\xff"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(place, text):
    values, raw = pack((1, 20, 31), "u2")
    raw = raw.copy()
    raw[place : place + len(text)] = np.frombuffer(text, np.uint8)
    with pytest.raises(ValueError, match="the chunk is not what bitshuffle with LZ4 writes"):
        unpack(raw, values, np.arange(20), slice(0, 31))


@pytest.mark.parametrize("n_bytes", [0, 5, 12, 15, 16, 17, 200])
def test_a_chunk_that_is_cut_off_is_refused(n_bytes):
    values, raw = pack((1, 20, 31), "u2")
    with pytest.raises(ValueError, match="the chunk is not what bitshuffle with LZ4 writes"):
        unpack(raw[: n_bytes + SLACK], values, np.arange(20), slice(0, 31))


def chunk_of(block, n_block=8):
    """A chunk of 8 elements of uint16, 16 bytes, whose only block is given."""
    header = (16).to_bytes(8, "big") + (2 * n_block).to_bytes(4, "big")
    raw = header + len(block).to_bytes(4, "big") + block
    return np.frombuffer(raw + b"\xff" * SLACK, np.uint8)


LITERALS = b"\xf0\x01"  # 16 literals
REPEATED = b"\x34abc\x03\x00\x50cabca"  # 3 literals, 8 bytes from 3 back, 5 literals
BLOCKS = {
    "literals": (LITERALS + bytes(range(16)), bytes(range(16))),
    "a match": (REPEATED, b"abcabcabcabcabca"),
    "too many literals": (b"\xf0\x20" + b"a" * 47, None),
    "more literals than there are": (LITERALS + b"a" * 15, None),
    "too few literals": (b"\xf0\x00" + b"a" * 15, None),
    "a match longer than the block": (b"\x1fa\x01\x00\x40\x10a", None),
    "a match before the block": (REPEATED.replace(b"\x03", b"\x04"), None),
    "a match with itself": (REPEATED.replace(b"\x03", b"\x00"), None),
    "ends within a match": (REPEATED[:5], None),
    "ends with a match": (b"\x39abc\x03\x00", None),
    "ends within a length": (b"\xf0", None),
    "endless length": (b"\xf0" + b"\xff" * 300, None),
    "nothing": (b"", None),
}


@pytest.mark.parametrize(("block", "planes"), BLOCKS.values(), ids=BLOCKS)
def test_a_block_of_lz4_is_unpacked_or_refused(block, planes):
    values = np.zeros((1, 8), "u2")
    if planes is None:
        with pytest.raises(ValueError, match="the chunk is not what"):
            unpack(chunk_of(block), values, np.arange(1), slice(0, 8))
        return
    found = unpack(chunk_of(block), values, np.arange(1), slice(0, 8))[0]
    # Byte i holds bit i of the 8 elements.
    expected = [sum((planes[i] >> k & 1) << i for i in range(16)) for k in range(8)]
    assert found.tolist() == expected


def test_blocks_of_broken_groups_are_refused():
    with pytest.raises(ValueError, match="the chunk is not what"):
        unpack(chunk_of(LITERALS + b"a" * 16, 9), np.zeros((1, 8), "u2"), np.arange(1), slice(0, 8))


def damage_and_unpack(n_tries):
    """Unpack chunks with random damage; how many were refused."""
    random = np.random.default_rng(3)
    chunks = [pack(shape, dtype, n) for shape, n in SHAPES for dtype in ("u1", "u2", "f4", "f8")]
    n_refused = 0
    for number in range(n_tries):
        values, raw = chunks[random.integers(len(chunks))]
        raw = raw[: random.integers(SLACK, len(raw) + 1)] if number % 5 == 0 else raw.copy()
        # Half of the damage in the first bytes, where the lengths are.
        reach = min(24, len(raw)) if number % 2 else len(raw)
        raw = raw.copy()
        for at in random.integers(0, reach, random.integers(1, 4)):
            raw[at] = random.choice([0, 255, random.integers(256), raw[at] ^ 1])
        rows = np.arange(*sorted(random.integers(0, len(values) + 1, 2)))
        first, last = sorted(random.integers(0, values.shape[1] + 1, 2))
        try:
            unpack(raw, values, rows, slice(int(first), int(last)))
        except ValueError:
            n_refused += 1
    for block, _ in BLOCKS.values():
        with contextlib.suppress(ValueError):
            unpack(chunk_of(block), np.zeros((1, 8), "u2"), np.arange(1), slice(0, 8))
    return n_refused


def test_damaged_bytes_reach_nothing_beyond_the_arrays(tmp_path):
    # Numba looks at every index if told before it compiles, hence a process of its own.
    checked = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    code = "from tests.io.test_bitshuffle import damage_and_unpack; print(damage_and_unpack(3000))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=checked,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 500 < int(done.stdout) < 2700

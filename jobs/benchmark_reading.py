"""Reading a region: every layout side by side with plain Dask, h5py and the machine's limit."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import h5py
import hdf5plugin
import numpy as np
import zarr
from numpy.typing import NDArray

from spidask.io.hdf5 import StackReader
from spidask.io.zarr import ZarrReader

Row = dict[str, str | float]

SHAPE = (128, 512, 1024)
FRAME = (1, *SHAPE[1:])
REGION = np.s_[:, 0:123, 392:632]
REPEATS = 9
HDF5 = {
    "uncompressed": {"chunks": FRAME},
    "contiguous": {},
    "bitshuffle/LZ4": {"chunks": FRAME, **hdf5plugin.Bitshuffle(cname="lz4")},
    "gzip": {"chunks": FRAME, "compression": "gzip"},
    "gzip, shuffle": {"chunks": FRAME, "compression": "gzip", "shuffle": True},
}
ZARR = {
    "Zarr, LZ4": {"chunks": FRAME, "compressors": zarr.codecs.BloscCodec(cname="lz4")},
    "Zarr, tiles in shards": {"chunks": (1, 128, 256), "shards": (32, *SHAPE[1:])},
}


def benchmark_read(folder: Path) -> list[Row]:
    """Measure each layout, everything interleaved, values compared; files are written once.

    Parameters
    ----------
    folder : Path
        Gets about 600 MB.

    Returns
    -------
    list of dict
        A row for each layout: frames/s, and medians of the ratios of CPU time, then of time by
        the clock.
    """
    frames = make_frames()
    rows = [measure_hdf5(folder, name, frames) for name in HDF5]
    return rows + [measure_zarr(folder, name, frames) for name in ZARR]


def make_frames() -> NDArray[np.uint16]:
    """Frames in ADU: scattering on an offset with noise, 16 different ones."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    photons = 3 / (1 + np.hypot(y + 3, x - 511.5) / 12) ** 3
    stock = [
        100 + 25 * random.poisson(photons) + random.normal(0, 3, photons.shape) for _ in range(16)
    ]
    return np.stack([stock[i % len(stock)] for i in range(SHAPE[0])]).astype(np.uint16)


def measure_hdf5(folder: Path, name: str, frames: NDArray[np.uint16]) -> Row:
    """One layout of HDF5."""
    path = folder / f"{name.replace('/', '-')}.h5"
    if not path.exists():
        with h5py.File(path, "w") as file:
            file.create_dataset("data", data=frames, **HDF5[name])
    with h5py.File(path) as file:
        data = file["data"]
        lazy = da.from_array(data, chunks=FRAME)[REGION]
        stack = StackReader(str(path), "data", SHAPE, data.dtype)
        ways = {
            "spidask": lambda: stack[REGION],
            "plain dask": lambda: lazy.compute(scheduler="synchronous"),
            "h5py": lambda: data[REGION],
            "limit": make_limit(path, data),
        }
        return compare(name, frames, ways)


def measure_zarr(folder: Path, name: str, frames: NDArray[np.uint16]) -> Row:
    """One layout of Zarr."""
    path = folder / f"{name}.zarr"
    if not path.exists():
        zarr.create_array(path, shape=SHAPE, dtype=frames.dtype, **ZARR[name])[:] = frames
    array = zarr.open_array(path, mode="r")
    lazy = da.from_array(array, chunks=FRAME)[REGION]
    stack = ZarrReader(str(path), "", SHAPE, frames.dtype)
    ways = {
        "spidask": lambda: stack[REGION],
        "plain dask": lambda: lazy.compute(scheduler="synchronous"),
        "limit": make_zarr_limit(path, array),
    }
    return compare(name, frames, ways)


def make_limit(path: Path, data: h5py.Dataset) -> Callable[[], NDArray[Any]]:
    """Read the bytes of a file that the region needs: its rows, or compressed chunks as a whole."""
    row = SHAPE[2] * data.dtype.itemsize
    rows = REGION[1].stop * row
    if data.chunks is None:
        where = [(data.id.get_offset() + i * SHAPE[1] * row, rows) for i in range(SHAPE[0])]
    else:
        chunks = [data.id.get_chunk_info(i) for i in range(SHAPE[0])]
        is_plain = data.id.get_create_plist().get_nfilters() == 0
        where = [(chunk.byte_offset, rows if is_plain else chunk.size) for chunk in chunks]
    return read_bytes({path: where}, data.dtype)


def make_zarr_limit(path: Path, array: zarr.Array) -> Callable[[], NDArray[Any]]:
    """Read the chunks that the region needs, of shards those alone."""
    inner, outer = array.chunks, array.shards or array.chunks
    grid = [n // m for n, m in zip(outer, inner, strict=True)]
    # All of a shard's frames, and the tiles that the region touches.
    y, x = (
        slice(one.start // n, -(-one.stop // n))
        for one, n in zip(REGION[1:], inner[1:], strict=True)
    )
    where = {}
    for file in sorted(path.glob("c/*/*/*")):
        where[file] = [(0, file.stat().st_size)]
        if array.shards:
            # At a shard's end stand address and length of each chunk, 8 bytes each, and a checksum.
            index = np.frombuffer(file.read_bytes()[:-4][-16 * math.prod(grid) :], "<u8")
            where[file] = index.reshape(*grid, 2)[:, y, x].reshape(-1, 2).tolist()
    return read_bytes(where, array.dtype)


def read_bytes(
    where: dict[Path, list[tuple[int, int]]], dtype: np.dtype[Any]
) -> Callable[[], NDArray[Any]]:
    """Read stretches of files and copy as many bytes as the region has, nothing else."""
    opened = {path: os.open(path, os.O_RDONLY) for path in where}
    stretches = [(opened[path], *part) for path, parts in where.items() for part in parts]
    buffer = np.empty(max(n for *_, n in stretches), np.uint8)
    region = np.zeros(SHAPE, dtype)[REGION].copy()

    def read() -> NDArray[Any]:
        for descriptor, address, n_bytes in stretches:
            os.preadv(descriptor, [buffer[:n_bytes]], address)
        return region.copy()

    return read


def compare(
    name: str, frames: NDArray[np.uint16], ways: dict[str, Callable[[], NDArray[Any]]]
) -> Row:
    """Run all ways in turn, again and again."""
    for way, read in ways.items():
        if way != "limit" and not np.array_equal(read(), frames[REGION]):
            raise SystemExit(f"{name}: {way} gives other values than were written")
    seconds = {way: np.empty((REPEATS, 2)) for way in ways}
    with dask.config.set(scheduler="synchronous"):
        for repeat in range(REPEATS):
            for way, read in ways.items():
                cpu, clock = time.process_time(), time.perf_counter()
                read()
                seconds[way][repeat] = time.process_time() - cpu, time.perf_counter() - clock
    row: Row = {"what": name}
    own = seconds["spidask"]
    row["frames/s"] = SHAPE[0] / statistics.median(own[:, 0])
    for way in ways:
        if way != "spidask":
            ratio = np.median(seconds[way] / own, axis=0)
            row[f"x {way}"], row[f"x {way} by the clock"] = map(float, ratio)
    return row

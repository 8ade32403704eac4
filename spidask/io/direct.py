"""Regions of HDF5 datasets read past HDF5: without its lock, and only what was asked for."""

from __future__ import annotations

import math
import os
import weakref
import zlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from typing import Any

import deflate
import h5py
import numpy as np
from numpy.typing import NDArray

from spidask.io.bitshuffle import SLACK, unpack_rows
from spidask.io.chunks import BITSHUFFLE, DEFLATE, SHUFFLE, UNWRITTEN, ChunkIndex, index_chunks
from spidask.io.stack import UNDECODABLE, cut_block, enclose

Slices = tuple[slice, ...]
Place = tuple[int, ...]


def open_direct(array: h5py.Dataset, path: str, size: int, mtime_ns: int) -> DirectReader | None:
    """Prepare to read a dataset past HDF5.

    Parameters
    ----------
    array : h5py.Dataset
        The open dataset.
    path : str
        Its file.
    size : int
        Bytes of the file before it was opened.
    mtime_ns : int
        Its last change before it was opened, ns.

    Returns
    -------
    DirectReader or None
        None where HDF5 has to read: see `index_chunks`, or because the file is changing now.
    """
    if array.file.filename != path:  # a link led into another file
        return None
    try:
        index = index_chunks(array)
    except UNDECODABLE:
        return None
    if index is None:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stat = os.fstat(descriptor)
    if (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns):
        os.close(descriptor)
        return None
    return DirectReader(array, index, descriptor)


class DirectReader:
    """An HDF5 dataset whose chunks are read and decoded past HDF5.

    Threads may share it: nothing changes after it is made, and while bytes are read and decoded
    neither HDF5's lock nor Python's is held.

    Parameters
    ----------
    array : h5py.Dataset
        The open dataset, which has the last word on chunks that cannot be decoded here; not on
        those that are too short, behind which HDF5 returns what lay in memory.
    index : ChunkIndex
        Where its chunks are.
    descriptor : int
        Of the open file; closed with the reader.

    Attributes
    ----------
    shape : tuple of int
        Of the dataset.
    ndim : int
        Number of dimensions.
    dtype : numpy.dtype
        Of an element, in the file's byte order.
    """

    def __init__(self, array: h5py.Dataset, index: ChunkIndex, descriptor: int) -> None:
        self.shape: tuple[int, ...] = array.shape
        self.ndim: int = array.ndim
        self.dtype: np.dtype[Any] = array.dtype
        self._array, self._index, self._descriptor = array, index, descriptor
        # Bytes from one element of a chunk to the next along each axis, and of the whole chunk.
        self._steps = [
            math.prod(index.shape[axis + 1 :]) * array.dtype.itemsize for axis in range(self.ndim)
        ]
        self._n_bytes = math.prod(index.shape) * array.dtype.itemsize
        weakref.finalize(self, os.close, descriptor)

    def __getitem__(self, key: tuple[Any, ...]) -> NDArray[Any]:
        """Read a region: a slice or integer for each axis."""
        parts = [enclose(one, length) for one, length in zip(key, self.shape, strict=True)]
        region = tuple(read for read, _ in parts)
        out = np.empty([one.stop - one.start for one in region], self.dtype)
        try:
            for number, inside, outside in _cut(region, self._index.shape):
                self._read(number, inside, out[outside])
        except EOFError:  # HDF5 would give what lay in memory behind the bytes that there are
            raise
        except UNDECODABLE:
            out = np.asarray(self._array[region])
        return cut_block(out, tuple(rest for _, rest in parts))

    def _read(self, number: Place, inside: Slices, out: NDArray[Any]) -> None:
        """Read a part of a chunk."""
        index = self._index
        address, n_bytes = int(index.address[number]), int(index.n_bytes[number])
        skipped = int(index.skipped[number])
        filters = tuple(f for i, f in enumerate(index.filters) if not skipped >> i & 1)
        if address == UNWRITTEN:
            out[...] = index.fill
        elif filters:
            raw = np.empty(n_bytes + SLACK, np.uint8)
            self._fetch(raw[:n_bytes], address)
            out[...] = self._decode(raw, filters, inside)
        else:
            self._refuse_length(n_bytes)
            self._read_plain(address, inside, out)

    def _read_plain(self, address: int, inside: Slices, out: NDArray[Any]) -> None:
        """Read a part of a chunk that lies there as it is: the rows that it touches."""
        *lead, y, x = inside
        rows = np.empty((y.stop - y.start, self._index.shape[-1]), self.dtype)
        for place in np.ndindex(out.shape[:-2]):
            first = [one.start + i for one, i in zip(lead, place, strict=True)]
            skip = sum(n * step for n, step in zip([*first, y.start], self._steps, strict=False))
            if out[place].flags.c_contiguous and out[place].shape == rows.shape:
                self._fetch(out[place], address + skip)
            else:
                self._fetch(rows, address + skip)
                out[place] = rows[:, x]

    def _fetch(self, buffer: NDArray[Any], address: int) -> None:
        left = buffer.reshape(-1).view(np.uint8).data
        while left:
            n_bytes = os.preadv(self._descriptor, [left], address)
            if not n_bytes:
                raise EOFError("the file ends within a chunk")
            left, address = left[n_bytes:], address + n_bytes

    def _decode(
        self, raw: NDArray[np.uint8], filters: tuple[int, ...], inside: Slices
    ) -> NDArray[Any]:
        shape, itemsize = self._index.shape, self.dtype.itemsize
        if filters == (BITSHUFFLE,):
            claimed = int.from_bytes(raw[:8].tobytes(), "big")
            if raw.size - SLACK == self._n_bytes != claimed:
                # H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS, a setting that no mask of a chunk tells.
                raise ValueError("the chunk went through no filter, or is damaged")
            self._refuse_length(claimed)
            rows = np.arange(math.prod(shape[:-1])).reshape(shape[:-1])[inside[:-1]].ravel()
            part = unpack_rows(raw, self.dtype, math.prod(shape), rows, shape[-1], inside[-1])
            return part.reshape([one.stop - one.start for one in inside])
        data = raw[:-SLACK]
        if DEFLATE in filters:
            data = _inflate(data, self._n_bytes)
        self._refuse_length(data.size)
        if SHUFFLE not in filters:
            return data.view(self.dtype).reshape(shape)[inside]
        # First bytes of all elements, then second bytes, and so on.
        planes = data.reshape(itemsize, *shape)[(slice(None), *inside)]
        return np.ascontiguousarray(np.moveaxis(planes, 0, -1)).view(self.dtype)[..., 0]

    def _refuse_length(self, n_bytes: int) -> None:
        if n_bytes != self._n_bytes:
            error = EOFError if n_bytes < self._n_bytes else ValueError
            raise error(f"the chunk has {n_bytes} bytes, expected {self._n_bytes}")


def _cut(region: Slices, chunk: Place) -> Iterator[tuple[Place, Slices, Slices]]:
    """Cut a region at the chunks' edges: number of a chunk, its part, and the region's part."""
    axes = [
        [
            (
                number,
                slice(max(one.start - number * length, 0), min(one.stop - number * length, length)),
                slice(max(number * length - one.start, 0), (number + 1) * length - one.start),
            )
            for number in range(one.start // length, -(-one.stop // length))
        ]
        for one, length in zip(region, chunk, strict=True)
    ]
    for parts in product(*axes):
        number, inside, outside = zip(*parts, strict=True)
        yield number, inside, outside


def _inflate(data: NDArray[np.uint8], n_bytes: int) -> NDArray[np.uint8]:
    try:
        return np.frombuffer(deflate.zlib_decompress(data, n_bytes), np.uint8)
    except deflate.DeflateError as error:
        return _inflate_other_length(data, n_bytes, error)


def _inflate_other_length(
    data: NDArray[np.uint8], n_bytes: int, error: Exception
) -> NDArray[np.uint8]:
    stream = zlib.decompressobj()
    with suppress(zlib.error):
        found = stream.decompress(data.tobytes(), n_bytes + 1)
        if stream.eof or len(found) > n_bytes:
            return np.frombuffer(found, np.uint8)
    raise ValueError(f"the chunk is not what gzip writes: {error}") from error

"""Where the chunks of an HDF5 dataset lie in its file, and what they went through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

DEFLATE, SHUFFLE, BITSHUFFLE = 1, 2, 32008
"""Numbers of HDF5 filters, see the registry of filters of The HDF Group."""

LZ4 = 2
"""What bitshuffle calls compression with LZ4."""

PIPELINES: tuple[tuple[int, ...], ...] = ((), (DEFLATE,), (SHUFFLE, DEFLATE), (BITSHUFFLE,))
"""Filters, in the order of writing, whose chunks are decoded without HDF5."""

UNWRITTEN = -1
"""Address of a chunk that was never written."""


@dataclass(frozen=True, eq=False)
class ChunkIndex:
    """Where the chunks of a dataset lie in its file.

    Attributes
    ----------
    shape : tuple of int
        Of a chunk; of the dataset where it is contiguous, which counts as one chunk.
    filters : tuple of int
        Numbers of the filters in the order of writing, one of `PIPELINES`.
    address : numpy.ndarray
        Byte of the file at which each chunk begins, or `UNWRITTEN`; one axis for each of the
        dataset, int64.
    n_bytes : numpy.ndarray
        Bytes of each chunk in the file, int64.
    skipped : numpy.ndarray
        Bit i of a chunk is set where it did not go through filter i, uint32.
    fill : numpy.generic
        Value of what was never written.
    """

    shape: tuple[int, ...]
    filters: tuple[int, ...]
    address: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    skipped: NDArray[np.uint32]
    fill: np.generic


def index_chunks(array: h5py.Dataset) -> ChunkIndex | None:
    """Index the chunks of a dataset, once for many reads.

    Parameters
    ----------
    array : h5py.Dataset
        The open dataset.

    Returns
    -------
    ChunkIndex or None
        None where HDF5 has to read: other filters than `PIPELINES`, virtual, external and compact
        datasets, a contiguous one that was never written, one behind a user block or a link to
        another file, and elements that are not integers or floats as NumPy has them.
    """
    if not _is_plain(array):
        return None
    if array.chunks is None:
        return _index_contiguous(array)
    filters = _list_filters(array)
    return None if filters is None else _index_chunked(array, filters)


def _is_plain(array: h5py.Dataset) -> bool:
    plist, file = array.id.get_create_plist(), array.file
    kept = plist.get_layout() in (h5py.h5d.CHUNKED, h5py.h5d.CONTIGUOUS)
    return bool(
        kept
        and array.ndim > 1
        and array.dtype.kind in "iuf"
        and array.id.get_type().equal(h5py.h5t.py_create(array.dtype))
        and not plist.get_external_count()
        and not file.userblock_size
    )


def _index_contiguous(array: h5py.Dataset) -> ChunkIndex | None:
    address = array.id.get_offset()
    if address is None:
        return None
    return ChunkIndex(
        array.shape,
        (),
        np.full((1,) * array.ndim, address, np.int64),
        np.full((1,) * array.ndim, array.size * array.dtype.itemsize, np.int64),
        np.zeros((1,) * array.ndim, np.uint32),
        array.dtype.type(0),
    )


def _list_filters(array: h5py.Dataset) -> tuple[int, ...] | None:
    plist = array.id.get_create_plist()
    filters = []
    for number in range(plist.get_nfilters()):
        code, _, values, _ = plist.get_filter(number)
        # Values of bitshuffle: version, bytes of an element, length of a block, compression.
        if code == BITSHUFFLE and (
            values[2:3] != (array.dtype.itemsize,)
            or values[4:5] != (LZ4,)
            or array.dtype.itemsize > 8
        ):
            return None
        filters.append(code)
    return tuple(filters) if tuple(filters) in PIPELINES else None


def _index_chunked(array: h5py.Dataset, filters: tuple[int, ...]) -> ChunkIndex:
    found: list[Any] = []
    array.id.chunk_iter(found.append)
    found = [chunk for chunk in found if chunk.byte_offset is not None]
    grid = tuple(-(-n // chunk) for n, chunk in zip(array.shape, array.chunks, strict=True))
    # HDF5's addresses are unsigned, and its word for none is the largest.
    address = np.full(grid, UNWRITTEN, np.int64)
    n_bytes, skipped = np.zeros(grid, np.int64), np.zeros(grid, np.uint32)
    starts = np.array([chunk.chunk_offset for chunk in found], np.uint64).reshape(-1, array.ndim)
    place = tuple((starts // np.array(array.chunks, np.uint64)).T.astype(np.int64))
    address[place] = np.array([chunk.byte_offset for chunk in found], np.uint64).astype(np.int64)
    n_bytes[place] = [chunk.size for chunk in found]
    skipped[place] = [chunk.filter_mask for chunk in found]
    return ChunkIndex(array.chunks, filters, address, n_bytes, skipped, _fill_value(array))


def _fill_value(array: h5py.Dataset) -> np.generic:
    plist = array.id.get_create_plist()
    never = plist.get_fill_time() == h5py.h5d.FILL_TIME_NEVER
    undefined = plist.fill_value_defined() == h5py.h5d.FILL_VALUE_UNDEFINED
    value: np.generic = array.dtype.type(0) if never or undefined else array.fillvalue
    return value

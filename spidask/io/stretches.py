"""Frames of many files as one lazy array, described by stretches that follow each other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from spidask.io.euxfel import find_layout, is_run_folder, read_run_ids
from spidask.io.hdf5 import StackReader, open_hdf5, read_hdf5_ids
from spidask.io.modules import ALL_BITS, ModulesReader
from spidask.io.stack import MISSING_ID, UNDECODABLE, enclose, locate
from spidask.io.zarr import ZarrReader, is_zarr, read_zarr_ids
from spidask.stopwatch import measure

log = logging.getLogger(__name__)

Span = tuple[int, int, int]
"""Number of a file, first row, number of rows."""


@dataclass(frozen=True, eq=False)
class Stretches:
    """Frames as stretches of rows that follow each other in one file.

    Attributes
    ----------
    start : ndarray
        Position of each stretch's first frame, and the number of frames, shape (stretch + 1,),
        int64.
    file : ndarray
        Number of its file, shape (stretch,), int64.
    row : ndarray
        Its first row in the file, shape (stretch,), int64.
    """

    start: NDArray[np.int64]
    file: NDArray[np.int64]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        """Count the frames."""
        return int(self.start[-1])

    def between(self, first: int, last: int) -> list[Span]:
        """List the spans of files that hold the frames from `first` up to before `last`."""
        spans = []
        number = int(np.searchsorted(self.start, first, "right")) - 1
        while first < last:
            stop = min(last, int(self.start[number + 1]))
            row = int(self.row[number]) + first - int(self.start[number])
            spans.append((int(self.file[number]), row, stop - first))
            first, number = stop, number + 1
        return spans


def join_stretches(file: NDArray[np.integer[Any]], row: NDArray[np.integer[Any]]) -> Stretches:
    """Describe frames by stretches.

    Parameters
    ----------
    file : ndarray
        Number of each frame's file, shape (frame,), integers.
    row : ndarray
        Its row in the file, shape (frame,), integers.

    Returns
    -------
    Stretches
        As few as possible, in the order given.

    Examples
    --------
    >>> join_stretches(np.array([0, 0, 1, 1]), np.array([5, 6, 0, 2])).start
    array([0, 2, 3, 4])
    """
    breaks = np.flatnonzero((np.diff(file) != 0) | (np.diff(row) != 1)) + 1
    first = np.concatenate([[0], breaks])[: len(file)].astype(np.int64)
    start = np.concatenate([first, [len(file)]])
    return Stretches(start, file[first].astype(np.int64), row[first].astype(np.int64))


@dataclass(frozen=True, eq=False)
class FramesReader:
    """Frames of many files, in any order, as one array that Dask can slice.

    Attributes
    ----------
    stretches : Stretches
        Which frames, file numbers counting `paths`.
    paths : tuple of str
        HDF5 files, Zarr folders and run folders of the European XFEL.
    dataset : str
        Path of the stack inside each; of run folders, the detector.
    lengths : tuple of int
        Number of frames of each file.
    frame_shape : tuple of int
        Rows and columns of a frame.
    dtype : numpy.dtype
        Dtype of what is returned.
    mask_bits : int
        Bits of the mask beside the frames of several modules that make a pixel missing.
    """

    stretches: Stretches
    paths: tuple[str, ...]
    dataset: str
    lengths: tuple[int, ...]
    frame_shape: tuple[int, int]
    dtype: np.dtype[Any]
    mask_bits: int = ALL_BITS

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of frames, rows and columns."""
        return (len(self.stretches), *self.frame_shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions, always 3."""
        return 3

    @measure("read")
    def __getitem__(self, key: object) -> NDArray[Any]:
        """Read frames, rows and columns: only the bytes asked for, decoded in the file's order."""
        index = key if isinstance(key, tuple) else (key,)
        rows, *region = index + (slice(None),) * (3 - len(index))
        read, rest = enclose(rows, len(self.stretches))
        spans = self.stretches.between(read.start, read.stop)
        blocks = [self._read(span, region) for span in spans] or [self._nothing(region)]
        block = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        whole = isinstance(rest, slice) and rest == slice(None)
        return block if whole else np.asarray(block[rest])

    def _read(self, span: Span, region: Sequence[Any]) -> NDArray[Any]:
        number, row, n_rows = span
        key = (slice(row, row + n_rows), *region)
        return self._reader(self.paths[number], self.lengths[number])[key]

    def _reader(self, path: str, n_frames: int) -> ZarrReader | StackReader | ModulesReader:
        shape = (n_frames, *self.frame_shape)
        if is_zarr(path):
            return ZarrReader(path, self.dataset, shape, self.dtype)
        if is_run_folder(path):
            layout = find_layout(path, self.dataset)
            return ModulesReader(layout, open_hdf5, self.dtype, self.mask_bits)
        return StackReader(path, self.dataset, shape, self.dtype, self.mask_bits)

    def _nothing(self, region: Sequence[Any]) -> NDArray[Any]:
        return np.empty((0, *self.frame_shape), self.dtype)[(slice(None), *region)]


class Codes(BackendArray):
    """A coordinate that is constant or counts up in each stretch, computed when asked for.

    Parameters
    ----------
    start : ndarray
        Position of each stretch's first frame, and the number of frames, shape (stretch + 1,).
    first : ndarray
        Value of its first frame, shape (stretch,).
    step : int
        0 for a constant, 1 for counting up.
    dtype : str
        Dtype of the coordinate.
    """

    def __init__(
        self, start: NDArray[np.int64], first: NDArray[np.int64], step: int, dtype: str
    ) -> None:
        self.start, self.first, self.step = start, first, step
        self.shape, self.dtype = (int(start[-1]),), np.dtype(dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Compute the values of some frames."""
        return _index(key, self.shape, self._values)

    def _values(self, key: tuple[Any, ...]) -> Any:
        positions = locate(key[0], self.shape[0])
        stretch = np.searchsorted(self.start, positions, "right") - 1
        return (self.first[stretch] + self.step * (positions - self.start[stretch])).astype(
            self.dtype
        )


class EventIds(BackendArray):
    """An event id of every frame, read from the files when asked for; -1 where there is none.

    Parameters
    ----------
    stretches : Stretches
        Which frames.
    paths : tuple of str
        HDF5 files and Zarr folders.
    names : tuple of list of str
        Where each file holds it; an empty list where it does not.
    """

    def __init__(
        self, stretches: Stretches, paths: Sequence[str], names: Sequence[list[str]]
    ) -> None:
        self.stretches, self.paths, self.names = stretches, paths, names
        self.shape, self.dtype = (len(stretches),), np.dtype("int64")

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Read the event ids of some frames."""
        return _index(key, self.shape, self._values)

    def _values(self, key: tuple[Any, ...]) -> Any:
        read, rest = enclose(key[0], self.shape[0])
        spans = self.stretches.between(read.start, read.stop)
        columns = [self._read(span) for span in spans]
        return np.concatenate([np.empty(0, np.int64), *columns])[rest]

    def _read(self, span: Span) -> NDArray[np.int64]:
        number, row, n_rows = span
        path, names = self.paths[number], self.names[number]
        if not names:
            return np.full(n_rows, MISSING_ID, np.int64)
        folder = read_run_ids if is_run_folder(path) else read_hdf5_ids
        read = read_zarr_ids if is_zarr(path) else folder
        try:
            ids: NDArray[np.int64] = read(path, names, slice(row, row + n_rows))
            return ids
        except UNDECODABLE as error:
            # A frame is known by its run and index too: it stays, without this id.
            log.warning("%s: event ids %s cannot be read: %s", path, ", ".join(names), error)
            return np.full(n_rows, MISSING_ID, np.int64)


def _index(key: indexing.ExplicitIndexer, shape: tuple[int, ...], values: Any) -> Any:
    return indexing.explicit_indexing_adapter(
        key, shape, indexing.IndexingSupport.OUTER_1VECTOR, values
    )

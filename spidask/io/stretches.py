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
from spidask.io.hdf5 import StackReader, open_frames, open_hdf5, read_hdf5_ids
from spidask.io.layout import ANYTHING, PHOTONS, FileLayout
from spidask.io.masks import hide_pixels
from spidask.io.modules import ModulesReader
from spidask.io.photons import PhotonsReader
from spidask.io.stack import MISSING_ID, UNDECODABLE, enclose, locate
from spidask.io.zarr import ZarrReader, is_zarr, open_zarr, read_zarr_ids
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
        HDF5 files, Zarr folders, Dragonfly's files of photons and run folders of the European
        XFEL.
    datasets : tuple of str
        Path of the stack inside each; of run folders, the detector.
    lengths : tuple of int
        Number of frames of each file.
    frame_shape : tuple of int
        Rows and columns of a frame.
    dtype : numpy.dtype
        Dtype of what is returned.
    layout : FileLayout
        Whether each file holds a mask, whose pixels are NaN; then `dtype` is a float. Which bits
        of the mask beside the frames of several modules make a pixel missing.
    """

    stretches: Stretches
    paths: tuple[str, ...]
    datasets: tuple[str, ...]
    lengths: tuple[int, ...]
    frame_shape: tuple[int, int]
    dtype: np.dtype[Any]
    layout: FileLayout = ANYTHING

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
        block: NDArray[Any] = self._reader(number)[key]
        if self.layout.mask is not None:
            mask = _open(self.paths[number], self.layout.mask)
            hide_pixels(block, mask, key, self.layout, self.frame_shape)
        return block

    def _reader(self, number: int) -> ZarrReader | StackReader | PhotonsReader | ModulesReader:
        path, dataset = self.paths[number], self.datasets[number]
        shape = (self.lengths[number], *self.frame_shape)
        if is_zarr(path):
            return ZarrReader(path, dataset, shape, self.dtype)
        if is_run_folder(path):
            modules = find_layout(path, dataset)
            return ModulesReader(modules, open_frames, self.dtype, self.layout.mask_bits)
        if dataset == PHOTONS:
            return PhotonsReader(path, shape, self.dtype)
        return StackReader(path, dataset, shape, self.dtype, self.layout.mask_bits)

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
        return _index(key, self.shape, self.read)

    def read(self, key: tuple[Any, ...]) -> Any:
        """Read those of some positions along the frames."""
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


class Energies(BackendArray):
    """An energy of every frame, read from the files when asked for; NaN where there is none.

    Parameters
    ----------
    stretches : Stretches
        Which frames.
    paths : sequence of str
        HDF5 files and Zarr folders.
    places : sequence of list
        Path of the number, or of one for each frame, inside each file, and the factor that gives
        the vocabulary's unit; an empty list where the file has none.
    """

    def __init__(
        self, stretches: Stretches, paths: Sequence[str], places: Sequence[list[Any]]
    ) -> None:
        self.stretches, self.paths, self.places = stretches, paths, places
        self.shape, self.dtype = (len(stretches),), np.dtype("float64")

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Read the energies of some frames."""
        return _index(key, self.shape, self.read)

    def read(self, key: tuple[Any, ...]) -> Any:
        """Read those of some positions along the frames."""
        read, rest = enclose(key[0], self.shape[0])
        spans = self.stretches.between(read.start, read.stop)
        return np.concatenate([np.empty(0), *(self._read(span) for span in spans)])[rest]

    def _read(self, span: Span) -> NDArray[np.float64]:
        number, row, n_rows = span
        if not self.places[number]:
            return np.full(n_rows, np.nan)
        name, factor = self.places[number]
        try:
            array = _open(self.paths[number], name)
            one = array.shape in ((), (1,))
            values = np.asarray(array[()] if one else array[row : row + n_rows], np.float64)
        except UNDECODABLE as error:
            log.warning("%s: %s cannot be read: %s", self.paths[number], name, error)
            return np.full(n_rows, np.nan)
        energies = np.broadcast_to(values.reshape(-1), n_rows) * factor
        return np.where(energies > 0, energies, np.nan)


def _open(path: str, name: str) -> Any:
    return open_zarr(path, name) if is_zarr(path) else open_hdf5(path, name)


def _index(key: indexing.ExplicitIndexer, shape: tuple[int, ...], values: Any) -> Any:
    return indexing.explicit_indexing_adapter(
        key, shape, indexing.IndexingSupport.OUTER_1VECTOR, values
    )

"""What all stacks of frames in files have in common: description, region reads, event ids."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spidask.errors import DataError
from spidask.io.layout import Describe, find_energies, refuse_absurd

EVENT_IDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "trainId": (("trainId",),),
    "pulseId": (("pulseId",), ("memoryCell",)),
    "cellId": (("cellId",),),
    "timestamp": (("timestamp",), ("event_time",), ("machineTime", "machineTimeNanoSeconds")),
    "fiducial": (("fiducial",), ("fiducials",)),
    "eventNumber": (("eventNumber",),),
}
"""Names in files for each event id of the vocabulary; of a pair the first holds the seconds."""

PLACES = ("", "entry_1", "LCLS")
"""Groups that may hold event ids, beside those above the frames."""

MISSING_ID = -1
"""Event id of a frame whose file has none."""

# What h5py, zarr and the decompressors raise where the bytes of a frame make no sense.
UNDECODABLE = (OSError, RuntimeError, ValueError, EOFError, ArithmeticError, IndexError, zlib.error)


class Source(Protocol):
    """An open array on disk: an h5py dataset or a Zarr array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of frames, rows and columns."""

    def __getitem__(self, key: Any, /) -> Any:
        """Read a region."""


@dataclass(frozen=True)
class StackInfo:
    """What the header of a file says about its frames.

    Attributes
    ----------
    shape : tuple of int
        Number of frames, rows and columns.
    dtype : str
        NumPy dtype of a pixel in native byte order.
    chunks : tuple of int or None
        Chunk shape; None where the frames lie one after the other.
    event_ids : dict
        Name in the vocabulary to the paths of the arrays inside the file.
    dataset : str
        Path of the stack inside the file.
    energies : dict
        Name in the vocabulary to the path of the array, and the factor that gives its unit.
    faults : dict
        What is missing or odd of a detector of several modules, see `modules.TOLD`.
    sources : list of str
        Other files in which the frames lie.
    """

    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...] | None = None
    event_ids: dict[str, list[str]] = field(default_factory=dict)
    dataset: str = ""
    energies: dict[str, list[Any]] = field(default_factory=dict)
    faults: dict[str, Any] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)


def describe_stack(
    shape: Sequence[int],
    dtype: np.dtype[Any],
    chunks: Sequence[int] | None,
    dataset: str,
    describe: Describe,
) -> StackInfo:
    """Check that an array on disk is a stack of frames.

    Parameters
    ----------
    shape : sequence of int
        Its shape.
    dtype : numpy.dtype
        Its dtype.
    chunks : sequence of int or None
        Its chunk shape.
    dataset : str
        Its path inside the file.
    describe : callable
        As for `find_event_ids`.

    Returns
    -------
    StackInfo
        The description, with the event ids and energies beside it.

    Raises
    ------
    DataError
        If the array has other than three dimensions, no frames or absurdly many, or does not
        hold numbers.
    """
    if len(shape) != 3:
        raise DataError(
            f"has {len(shape)} dimensions {tuple(shape)}, expected (frame, y, x); "
            "set runs.dataset to the stack of frames"
        )
    if dtype.kind not in "iuf":
        raise DataError(
            f"holds {dtype}, expected integers or floats; set runs.dataset to the stack of frames"
        )
    refuse_absurd(shape)
    if 0 in shape:
        raise DataError(f"holds no frames (shape {tuple(shape)}); leave the file out of runs.files")
    return StackInfo(
        tuple(map(int, shape)),
        dtype.newbyteorder("=").str,
        tuple(map(int, chunks)) if chunks else None,
        find_event_ids(dataset, shape[0], describe),
        dataset,
        find_energies(dataset, shape[0], describe),
    )


def find_event_ids(dataset: str, n_frames: int, describe: Describe) -> dict[str, list[str]]:
    """Look for one event id per frame beside the frames and at the known places.

    Parameters
    ----------
    dataset : str
        Path of the frames inside the file.
    n_frames : int
        Number of frames.
    describe : callable
        Path of an array to its shape and the kind of its dtype, None where there is no array.

    Returns
    -------
    dict
        Name in the vocabulary to one path, or to the paths of seconds and nanoseconds.
    """
    above = dataset.strip("/").split("/")[:-1]
    groups = ["/".join(above[:n]) for n in range(len(above), 0, -1)]
    places = list(dict.fromkeys([*groups, *PLACES]))
    found = {}
    for name, variants in EVENT_IDS.items():
        every = ([f"{p}/{n}".lstrip("/") for n in names] for p in places for names in variants)
        for paths in every:
            if all(_is_column(describe(path), n_frames) for path in paths):
                found[name] = paths
                break
    return found


def _is_column(found: tuple[tuple[int, ...], str] | None, n_frames: int) -> bool:
    return found is not None and found[0] == (n_frames,) and found[1] in "iu"


def read_event_ids(arrays: Mapping[str, Source], rows: slice) -> NDArray[np.int64]:
    """Read one event id of a stretch of rows.

    Parameters
    ----------
    arrays : mapping of str to array
        The open arrays, one, or seconds and nanoseconds; integers of shape (frame,).
    rows : slice
        Rows of the file.

    Returns
    -------
    ndarray
        Event ids, shape (frame,), int64. Seconds and nanoseconds become
        ``seconds << 32 | nanoseconds``, which is how LCLS-1 writes ``event_time``; of an id for
        each module the largest counts, as modules that are missing have 0.
    """
    read = [np.asarray(array[rows]).astype(np.int64) for array in arrays.values()]
    columns = [c.max(axis=1) if c.ndim == 2 else c for c in read]
    if len(columns) == 1:
        return columns[0]
    seconds, nanoseconds = columns
    return (seconds << 32) | nanoseconds


def fill_value(dtype: np.dtype[Any]) -> float | int:
    """Value of every pixel of a frame that cannot be read.

    Parameters
    ----------
    dtype : numpy.dtype
        Dtype of the frames.

    Returns
    -------
    float or int
        NaN for floats, the largest value for integers.

    Examples
    --------
    >>> fill_value(np.dtype("uint16")), fill_value(np.dtype("float32"))
    (65535, nan)
    """
    return float("nan") if dtype.kind == "f" else int(np.iinfo(dtype).max)


def read_frames(
    source: Source, key: object, shape: tuple[int, int, int], dtype: np.dtype[Any], path: str
) -> NDArray[Any]:
    """Read a region of a stack, only the bytes that it needs.

    Parameters
    ----------
    source : array
        The open array on disk, shape (frame, y, x).
    key : tuple
        Frames as a slice or integers, y and x as slices; as for a NumPy array.
    shape : tuple of int
        Shape that the stack had when the runs were opened.
    dtype : numpy.dtype
        Dtype to return.
    path : str
        Path of the file, for messages.

    Returns
    -------
    ndarray
        Frames of `dtype`. A frame that cannot be decoded, and every frame of a file whose frames
        have another shape, holds `fill_value` everywhere.

    Raises
    ------
    DataError
        If the file holds fewer frames than it did, or the file system fails: that says nothing
        about the frame, and a second try may go well.
    """
    index = key if isinstance(key, tuple) else (key,)
    rows, y, x = index + (slice(None),) * (3 - len(index))
    y_read, y_rest = enclose(y, shape[1])
    x_read, x_rest = enclose(x, shape[2])
    read = _Region(source, y_read, x_read, shape, dtype, path)
    if isinstance(rows, slice | int | np.integer):
        row_read, row_rest = enclose(rows, shape[0])
        return cut_block(read.block(row_read), (row_rest, y_rest, x_rest))
    # Scattered frames are read one at a time: the frames between them are nobody's wish.
    frames = [read.block(slice(row, row + 1)) for row in locate(rows, shape[0]).tolist()]
    rest = (slice(None), y_rest, x_rest)
    return cut_block(np.concatenate([read.filled(slice(0, 0)), *frames]), rest)


def cut_block(block: NDArray[Any], rest: tuple[Any, ...]) -> NDArray[Any]:
    """Take what is wanted of a block that was read, and let go of the rest.

    Parameters
    ----------
    block : ndarray
        Frames.
    rest : tuple
        What `enclose` leaves to take along each axis.

    Returns
    -------
    ndarray
        A part of the block.
    """
    whole = all(isinstance(index, slice) and index == slice(None) for index in rest)
    return block if whole else np.ascontiguousarray(block[rest])


def enclose(index: Any, length: int) -> tuple[slice, Any]:
    """Split an index into the stretch to read and the index into what was read.

    Parameters
    ----------
    index : slice, int or sequence of int
        What is wanted along one axis.
    length : int
        Length of the axis.

    Returns
    -------
    tuple
        A slice of step 1, and what to take of it.

    Examples
    --------
    >>> enclose(slice(2, 9, 3), 10)
    (slice(2, 9, None), slice(None, None, 3))
    >>> enclose(slice(None, None, -1), 4)
    (slice(0, 4, None), slice(None, None, -1))
    """
    if isinstance(index, slice):
        wanted = range(length)[index]
        if not wanted:
            return slice(0, 0), slice(None)
        first, last = min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1])
        return slice(first, last + 1), slice(None, None, None if wanted.step == 1 else wanted.step)
    if isinstance(index, int | np.integer):
        position = range(length)[index]
        return slice(position, position + 1), 0
    positions = locate(index, length)
    if not positions.size:
        return slice(0, 0), positions
    return slice(int(positions.min()), int(positions.max()) + 1), positions - positions.min()


def locate(index: Any, length: int) -> NDArray[np.int64]:
    """Turn an index along one axis into positions.

    Parameters
    ----------
    index : slice, int or sequence of int or bool
        What is wanted; negative numbers count from the end.
    length : int
        Length of the axis, which may be millions: nothing of that length is made for a slice.

    Returns
    -------
    ndarray
        Positions, int64; of no dimension for one integer.

    Examples
    --------
    >>> locate(slice(-2, None), 10**9), locate([True, False, True], 3), locate([-1, 0], 3)
    (array([999999998, 999999999]), array([0, 2]), array([2, 0]))
    """
    if isinstance(index, slice):
        return np.arange(*index.indices(length))
    wanted = np.asarray(index)
    if wanted.dtype == bool:
        return np.flatnonzero(wanted)
    return np.where(wanted < 0, wanted + length, wanted).astype(np.int64)


@dataclass
class _Region:
    """The rows and columns to read of a stack, frames to be said."""

    source: Source
    y: slice
    x: slice
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    path: str

    def block(self, rows: slice) -> NDArray[Any]:
        """Read a stretch of frames, falling back to frame by frame."""
        if tuple(self.source.shape[1:]) != self.shape[1:]:
            return self.filled(rows)
        if self.source.shape[0] < rows.stop:
            raise DataError(
                f"{self.path} holds {self.source.shape[0]} frames, expected at least {rows.stop}: "
                "it was changed after it was opened; open the runs again",
                path=self.path,
            )
        try:
            return self._read(rows)
        except UNDECODABLE as error:
            self._refuse_file_system(error)
        block = self.filled(rows)
        for number, row in enumerate(range(rows.start, rows.stop)):
            try:
                block[number] = self._read(slice(row, row + 1))[0]
            except UNDECODABLE as error:
                self._refuse_file_system(error)
        return block

    def _read(self, rows: slice) -> NDArray[Any]:
        return np.asarray(self.source[rows, self.y, self.x]).astype(self.dtype, copy=False)

    def filled(self, rows: slice) -> NDArray[Any]:
        """Give as many unreadable frames."""
        shape = tuple(s.stop - s.start for s in (rows, self.y, self.x))
        fill: ArrayLike = fill_value(self.dtype)
        return np.full(shape, fill, self.dtype)

    def _refuse_file_system(self, error: Exception) -> None:
        if _comes_from_system(error):
            raise DataError(
                f"{self.path}: the file system failed: {' '.join(str(error).split())}; "
                "run again when it is well, or leave the file out of runs.files",
                path=self.path,
            ) from error


def _comes_from_system(error: Exception) -> bool:
    # HDF5 says only in its message that the operating system refused to read.
    return isinstance(error, OSError) and bool(error.errno or "fread failed" in str(error))

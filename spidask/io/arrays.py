"""Arrays of HDF5 files that may be damaged: those that HDF5 reads wrongly, or not at all, refused.

On arrays that are made of themselves, and on virtual ones whose source has no shape, HDF5 2.0.0
ends the process; of a source that is shorter than what is mapped, and of a chunk that is shorter
than its shape, it returns what lay in memory. For a text or a list it takes as much memory as its
header claims, up to 4 GiB, before it looks; and 4 kB for each chunk of what it reads at once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
from numpy.typing import NDArray

from spidask.errors import DataError
from spidask.io.sources import locate_source
from spidask.io.stack import fill_value

MOST_NUMBERS = 100_000_000
"""More are no list of events: 12 million frames are a long beamtime."""

MOST_CHUNK_BYTES = 2**28
"""A chunk is decompressed as a whole."""

MOST_CHUNKS = 2**18
"""Of an array without frames: as many are read in 2 s."""

CHUNKS_AT_ONCE = 2**14

MOST_LEVELS = 8
"""Of virtual arrays of virtual arrays."""

GONE = "is gone or cannot be opened"

Place = tuple[str, str]
"""A file and the name of an array in it."""


@dataclass(frozen=True)
class Need:
    """What a virtual array takes of a source: up to some position, or some number of values."""

    last: tuple[int, ...]
    n_values: int

    def is_met(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a source has that much."""
        fits = len(self.last) in (0, len(shape))
        reaches = fits and all(a < b for a, b in zip(self.last, shape, strict=False))
        return reaches and math.prod(shape) >= self.n_values


ABSENT = (KeyError, OSError, RuntimeError, ValueError)
"""What h5py raises for links that lead nowhere or round."""


def find_array(file: h5py.Group, name: str) -> h5py.Dataset | None:
    """Find an array that HDF5 can read.

    Parameters
    ----------
    file : h5py.File or h5py.Group
        The open file.
    name : str
        Path inside it.

    Returns
    -------
    h5py.Dataset or None
        None where there is no array of that name, or one without a shape.

    Raises
    ------
    DataError
        If HDF5 would not read it rightly, see `refuse_unsound`.
    """
    try:
        item = file.get(name)
    except ABSENT:
        return None
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        return None
    refuse_unsound(item)
    return item


def read_array(file: h5py.Group, name: str, path: str) -> NDArray[Any]:
    """Read a whole array that holds no frames.

    Parameters
    ----------
    file : h5py.File or h5py.Group
        The open file.
    name : str
        Path inside it.
    path : str
        The file, for the message.

    Returns
    -------
    numpy.ndarray
        Its values.

    Raises
    ------
    DataError
        If there is no such array, or it is none for `read_whole`.
    OSError
        If it cannot be decoded.
    """
    array = find_array(file, name)
    if array is None:
        raise DataError(f"{path}: has no array '{name}'; transfer it again", path=path)
    return read_whole(array, path)


def read_whole(array: Any, path: str) -> NDArray[Any]:
    """Read an array with a number for each event into memory.

    Parameters
    ----------
    array : h5py.Dataset or zarr.Array
        The open array.
    path : str
        Its file, for the message.

    Returns
    -------
    numpy.ndarray
        All of it.

    Raises
    ------
    DataError
        If its header claims more than any beamtime has, or more than its file, or it has more than
        `MOST_CHUNKS`.
    """
    if math.prod(array.shape) > MOST_NUMBERS:
        raise DataError(
            f"{path}: {array.name} claims the shape {array.shape}, more than {MOST_NUMBERS} "
            "numbers; transfer the file again",
            path=path,
        )
    if not isinstance(array, h5py.Dataset):
        return np.asarray(array[()])
    step = _count_rows_at_once(array, path)
    if claims_too_much(array, slice(None)):
        raise DataError(
            f"{path}: texts or lists of {array.name} claim to be longer than the file; transfer it "
            "again",
            path=path,
        )
    if not step:
        return np.asarray(array[()])
    return np.concatenate([array[n : n + step] for n in range(0, array.shape[0], step)])


def _count_rows_at_once(array: h5py.Dataset, path: str) -> int:
    """Give how many rows are `CHUNKS_AT_ONCE`; 0 where that is the whole array."""
    if not array.chunks:
        return 0
    n_each = [-(-n // chunk) for n, chunk in zip(array.shape, array.chunks, strict=True)]
    if math.prod(n_each) > MOST_CHUNKS:
        raise DataError(
            f"{path}: {array.name} of {array.shape} has {math.prod(n_each)} chunks of "
            f"{array.chunks}, expected at most {MOST_CHUNKS}; rechunk it, or transfer the file "
            "again",
            path=path,
        )
    n_rows = max(CHUNKS_AT_ONCE // max(math.prod(n_each[1:]), 1), 1)
    return n_rows * array.chunks[0] if n_rows < n_each[0] else 0


def refuse_unsound(array: h5py.Dataset) -> None:
    """Refuse an array that HDF5 would read wrongly, or not survive to read.

    Parameters
    ----------
    array : h5py.Dataset
        The open array, which has a shape.

    Raises
    ------
    DataError
        If it is virtual and made of itself, its source is too short or gone without a fill value
        that says so, its values lie in another file that is too short, a chunk would take more
        than `MOST_CHUNK_BYTES` or, of less than three dimensions, has too few; the message has no
        path of the file in it. Virtual arrays of more than three dimensions are left to
        `find_modules`.
    """
    if array.chunks and math.prod(array.chunks) * array.dtype.itemsize > MOST_CHUNK_BYTES:
        raise DataError(
            f"{array.name} has chunks of {array.chunks} {array.dtype}, expected at most "
            f"{MOST_CHUNK_BYTES >> 20} MiB; rechunk it, or transfer the file again"
        )
    if array.ndim < 3:  # stacks may have millions of chunks, which are looked at as they are read
        refuse_short_chunks(array)
    for name, offset, size in array.external or ():
        path = locate_source(array.file.filename, name)
        there = os.path.getsize(path) if os.path.isfile(path) else 0
        if there < offset + min(size, array.nbytes):
            raise DataError(
                f"{array.name} lies in {name}, which is gone or too short; transfer that file too"
            )
    # Frames of several modules are looked at module by module, see `find_modules`.
    broken = list_broken_sources(array) if array.is_virtual and array.ndim <= 3 else {}
    for name, problem in broken.items():
        if problem != GONE or not _is_flagged(array):
            raise DataError(
                f"{array.name} is virtual, and its source {name} {problem}; transfer both again"
            )


def refuse_short_chunks(array: h5py.Dataset) -> None:
    """Refuse an array of which HDF5 would give what lay in memory.

    Parameters
    ----------
    array : h5py.Dataset
        The open array.

    Raises
    ------
    DataError
        If it has chunks of too few bytes; the message has no path of the file in it.
    """
    if has_short_chunks(array):
        raise DataError(
            f"{array.name} has chunks that are shorter than {array.chunks} {array.dtype}; transfer "
            "the file again"
        )


def has_short_chunks(array: h5py.Dataset) -> bool:
    """Tell whether chunks have too few bytes for their shape.

    Parameters
    ----------
    array : h5py.Dataset
        The open array.

    Returns
    -------
    bool
        False too where they are compressed, or cannot be listed: HDF5 says so when it reads.
    """
    if not array.chunks or array.id.get_create_plist().get_nfilters():
        return False
    sizes: list[int] = []
    with suppress(*ABSENT):
        array.id.chunk_iter(lambda chunk: sizes.append(chunk.size))
    needed = math.prod(array.chunks) * array.id.get_type().get_size()
    return any(size < needed for size in sizes)


def _is_flagged(array: h5py.Dataset) -> bool:
    """Tell whether what is missing shows, as frames that cannot be read or ids that are 0."""
    if array.ndim == 2 or array.dtype.kind not in "iuf":
        return bool(array.ndim == 2)  # memory cells of each module
    fill = fill_value(array.dtype)
    return bool(array.fillvalue == fill or (array.fillvalue != array.fillvalue and fill != fill))


def list_broken_sources(array: h5py.Dataset, above: tuple[Place, ...] = ()) -> dict[str, str]:
    """Find the sources that a virtual array cannot be read from.

    Parameters
    ----------
    array : h5py.Dataset
        A virtual array.
    above : tuple
        File and name of the virtual arrays that led to it.

    Returns
    -------
    dict
        Name of the file, as the array has it, to what is wrong with it; `GONE` where HDF5 gives
        the array's fill value instead.
    """
    above = (*above, (os.path.realpath(array.file.filename), array.name))
    broken = {}
    for (name, dataset), need in _mapped(array).items():
        if name == ".":
            problem = _find_problem_in(array.file, dataset, need, above)
        else:
            place = locate_source(array.file.filename, name)
            problem = _find_problem(place, dataset, need, above)
        if problem:
            broken[name] = problem
    return broken


def _mapped(array: h5py.Dataset) -> dict[tuple[str, str], Need]:
    """Give what the array needs of each source."""
    needs: dict[tuple[str, str], Need] = {}
    for source in array.virtual_sources():
        place, space = (str(source.file_name), str(source.dset_name)), source.src_space
        # Of a source that is taken as a whole the shape is not told.
        if space.get_select_type() == h5py.h5s.SEL_ALL:
            needs[place] = Need((), source.vspace.get_select_npoints())
        else:
            end = space.get_select_bounds()[1]
            before = needs.get(place, Need(end, 0))
            needs[place] = Need(tuple(map(max, end, before.last or end)), before.n_values)
    return needs


def _find_problem(path: str, dataset: str, need: Need, above: tuple[Place, ...]) -> str:
    try:
        file = h5py.File(path, "r", driver="stdio", locking=False)
    except ABSENT:
        return GONE
    with file:
        return _find_problem_in(file, dataset, need, above)


def _find_problem_in(file: h5py.File, dataset: str, need: Need, above: tuple[Place, ...]) -> str:
    try:
        source = file.get(dataset)
    except ABSENT:
        source = None
    if source is None:
        return GONE
    if not isinstance(source, h5py.Dataset) or source.shape is None:
        return f"holds no array '{dataset}'"
    if not need.is_met(source.shape):
        return f"is shorter, {source.shape}, than what is taken of it"
    if (os.path.realpath(file.filename), source.name) in above or len(above) > MOST_LEVELS:
        return "leads back to it"
    if has_short_chunks(source):
        return f"has chunks that are shorter than {source.chunks} {source.dtype}"
    nested = list_broken_sources(source, above) if source.is_virtual else {}
    return next((f"leads to {name}, which {why}" for name, why in nested.items()), "")


def claims_too_much(array: h5py.Dataset, rows: slice) -> bool:
    """Tell whether texts or lists claim to be longer than their file.

    Parameters
    ----------
    array : h5py.Dataset
        The open array; those of other dtypes claim nothing.
    rows : slice
        What will be read along its first axis, step 1.

    Returns
    -------
    bool
        False too where the claims cannot be looked at: in compressed chunks, in the object's own
        header, and in more than one dimension.

    Notes
    -----
    Source: HDF5 file format 3.0, section IV.B: a list is its length, 4 bytes, and the address and
    number of its values in a heap.
    """
    text, base = h5py.check_string_dtype(array.dtype), h5py.check_vlen_dtype(array.dtype)
    if base is None or (text is not None and text.length is not None):
        return False
    width = 8 + array.file.id.get_create_plist().get_sizes()[0]
    stored_here = not (array.chunks or array.is_virtual or array.external)
    if stored_here and len(range(*rows.indices(array.size))) * width > _n_bytes(array):
        return True
    content = b"".join(_read_heads(array, rows, width))
    lengths = np.frombuffer(content, "<u4").reshape(-1, width // 4)[:, 0].astype(np.int64)
    size = 1 if text is not None else np.dtype(base).itemsize
    return int(lengths.sum()) * size > _n_bytes(array)


def _n_bytes(array: h5py.Dataset) -> int:
    return int(array.file.id.get_filesize())


def _read_heads(array: h5py.Dataset, rows: slice, width: int) -> Iterator[bytes]:
    plist = array.id.get_create_plist()
    first, stop, _ = rows.indices(array.shape[0] if array.ndim else 1)
    if array.ndim > 1 or array.is_virtual or array.external or plist.get_nfilters():
        return
    if plist.get_layout() == h5py.h5d.CONTIGUOUS and array.id.get_offset() is not None:
        with open(array.file.filename, "rb") as file:
            file.seek(array.id.get_offset() + first * width)
            content = file.read((stop - first) * width)
            yield content[: len(content) // width * width]
    for row in range(first, stop, array.chunks[0]) if array.chunks else ():
        with suppress(*ABSENT):  # a chunk that is not there claims nothing
            start = row // array.chunks[0] * array.chunks[0]
            if array.id.get_chunk_info_by_coord((start,)).size <= _n_bytes(array):
                yield array.id.read_direct_chunk((start,))[1]

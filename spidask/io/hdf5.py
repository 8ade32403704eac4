"""Stacks of frames in HDF5 files (plain, CXI, psocake), read region first."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the filters that facilities compress with
import numpy as np
from numpy.typing import NDArray

from spidask.errors import DataError
from spidask.io.arrays import find_array, refuse_short_chunks
from spidask.io.direct import DirectReader, open_direct
from spidask.io.layout import ALL_BITS, ANYTHING, FileLayout, find_stack, refuse_unfitting
from spidask.io.modules import Layout, ModulesReader
from spidask.io.sources import list_sources
from spidask.io.stack import (
    StackInfo,
    describe_stack,
    read_event_ids,
    read_frames,
)
from spidask.io.virtual import find_modules

N_OPEN = 128
"""Datasets that a process keeps open."""


@dataclass(frozen=True)
class StackReader:
    """A stack of frames in an HDF5 file, opened where it is read.

    Attributes
    ----------
    path : str
        The file.
    dataset : str
        Path of the stack inside the file.
    shape : tuple of int
        Number of frames, rows and columns.
    dtype : numpy.dtype
        Dtype of what is returned.
    mask_bits : int
        Bits of the mask beside the frames of several modules that make a pixel missing.
    """

    path: str
    dataset: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    mask_bits: int = ALL_BITS

    @property
    def ndim(self) -> int:
        """Number of dimensions, always 3."""
        return 3

    def __getitem__(self, key: object) -> NDArray[Any]:
        """Read frames (slice or integers), rows and columns (slices)."""
        source = open_frames(self.path, self.dataset)
        if source.ndim > 3:
            layout = _find_modules(self.path, self.dataset, *_stat(self.path))
            return ModulesReader(layout, open_frames, self.dtype, self.mask_bits)[key]
        return read_frames(source, key, self.shape, self.dtype, self.path)


def scan_hdf5(path: str, dataset: str, layout: FileLayout = ANYTHING) -> StackInfo:
    """Read what the header of a file says about its frames.

    Parameters
    ----------
    path : str
        The file.
    dataset : str
        Path of the stack of frames inside the file; where it is the default and not there, the
        usual places are looked at.
    layout : FileLayout
        What else the file has to hold.

    Returns
    -------
    StackInfo
        Shape, dtype, chunks and event ids; no frame is read.

    Raises
    ------
    DataError
        If the file cannot be opened or holds no such stack; the message has no path in it.
    """
    try:
        _stat(path)  # so that it is looked at as it is now
        with _open_file(path) as file:
            array, place = _find(file, dataset)
            refuse_missing_filters(array)

            def describe(name: str) -> tuple[tuple[int, ...], str] | None:
                return _describe(file, name)

            if array.ndim > 3:
                info = find_modules(path, array).describe(place, describe)
            else:
                info = describe_stack(array.shape, array.dtype, array.chunks, place, describe)
            refuse_unfitting(layout, info.shape, describe)
            return replace(info, sources=list_sources(path, array))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise DataError(_explain(path, error)) from error


def read_hdf5_ids(path: str, names: list[str], rows: slice) -> NDArray[np.int64]:
    """Read one event id of a stretch of frames.

    Parameters
    ----------
    path : str
        The file.
    names : list of str
        Path of the array inside the file, or of seconds and nanoseconds.
    rows : slice
        Rows of the file.

    Returns
    -------
    ndarray
        Event ids, shape (frame,), int64.
    """
    return read_event_ids({name: open_hdf5(path, name) for name in names}, rows)


def open_hdf5(path: str, dataset: str) -> h5py.Dataset:
    """Open a dataset, or take it from those that this process holds open.

    Parameters
    ----------
    path : str
        The file.
    dataset : str
        Path inside the file.

    Returns
    -------
    h5py.Dataset
        The open dataset; its file is closed when it was not used for long.

    Raises
    ------
    DataError
        If the file cannot be opened any more.
    """
    with _telling(path):
        return _open(path, dataset, *_stat(path))


def open_frames(path: str, dataset: str) -> h5py.Dataset | DirectReader:
    """Open a stack to read regions of it as fast as its layout allows.

    Parameters
    ----------
    path : str
        The file.
    dataset : str
        Path inside the file.

    Returns
    -------
    DirectReader or h5py.Dataset
        Kept open and dropped as in `open_hdf5`; the dataset itself where HDF5 has to read it.

    Raises
    ------
    DataError
        If the file cannot be opened any more.
    """
    with _telling(path):
        return _open_frames(path, dataset, *_stat(path))


@contextmanager
def _telling(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, DataError) as error:
        raise DataError(
            f"{path} cannot be opened any more: {' '.join(str(error).split())}; "
            "put it back or open the runs again",
            path=path,
        ) from error


_seen: dict[str, tuple[int, int]] = {}
_sources: dict[str, set[str]] = {}
"""Of the files that are open."""


def _stat(path: str) -> tuple[int, int]:
    _look_at_sources(path)
    return _look(path)


def _look_at_sources(path: str) -> None:
    for source in tuple(_sources.get(path, ())):
        with suppress(OSError):
            _look(source)


def _look(path: str) -> tuple[int, int]:
    stat = os.stat(path)
    now = stat.st_size, stat.st_mtime_ns
    if _seen.setdefault(path, now) != now:
        # HDF5 would not look at the file again while it has it open, so everything is closed.
        for opened in (_open, _open_frames, _find_modules):
            opened.cache_clear()
        _sources.clear()
        _seen.clear()
        _seen[path] = now  # else the next change of this file would not show
    return now


@lru_cache(maxsize=N_OPEN)
def _find_modules(path: str, dataset: str, size: int, mtime_ns: int) -> Layout:
    del size, mtime_ns  # in the key, so that a rewritten file is looked at anew
    return find_modules(path, open_hdf5(path, dataset))


@lru_cache(maxsize=N_OPEN)
def _open(path: str, dataset: str, size: int, mtime_ns: int) -> h5py.Dataset:
    # Size and time are in the key so that a rewritten file is opened anew. HDF5 closes the file
    # when its last dataset is dropped, so one that another thread still reads stays open.
    del size, mtime_ns
    array = find_array(_open_file(path), dataset)
    if array is None:
        raise KeyError(f"it has no array '{dataset}'")
    _sources.setdefault(path, set()).update(list_sources(path, array))
    _look_at_sources(path)
    return array


@lru_cache(maxsize=N_OPEN)
def _open_frames(path: str, dataset: str, size: int, mtime_ns: int) -> h5py.Dataset | DirectReader:
    array = _open(path, dataset, size, mtime_ns)
    direct = open_direct(array, path, size, mtime_ns)
    if direct is None:
        refuse_short_chunks(array)
    return direct or array


def _open_file(path: str) -> h5py.File:
    # Without a lock, for files that are still being written. With a driver of our own, because
    # HDF5 refuses to open a file twice in one process where only one of them locks.
    return h5py.File(path, "r", driver="stdio", locking=False)


def _find(file: h5py.File, dataset: str) -> tuple[h5py.Dataset, str]:
    for place in (dataset, find_stack(file, dataset)):
        array = find_array(file, place) if place else None
        if array is not None:
            return array, place
    stacks = _list_stacks(file)
    there = f"it holds {', '.join(stacks)}" if stacks else "it holds no stack of frames at all"
    raise DataError(f"has no dataset '{dataset}'; {there}; set runs.dataset", stacks=stacks)


def _list_stacks(file: h5py.File) -> list[str]:
    found: list[str] = []

    def look(name: str, item: object) -> bool | None:
        if isinstance(item, h5py.Dataset) and item.ndim == 3:
            found.append(name)
        return True if len(found) == 5 else None

    file.visititems(look)
    return found


def _describe(file: h5py.File, name: str) -> tuple[tuple[int, ...], str] | None:
    item = find_array(file, name)
    return None if item is None else (item.shape, item.dtype.kind)


def refuse_missing_filters(array: h5py.Dataset) -> None:
    """Refuse a dataset that this installation cannot decompress.

    Parameters
    ----------
    array : h5py.Dataset
        The open dataset.

    Raises
    ------
    DataError
        If a filter of its is not installed; the message has no path in it.
    """
    plist = array.id.get_create_plist()
    for number in range(plist.get_nfilters()):
        code, *_, name = plist.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            raise DataError(
                f"is compressed with HDF5 filter {code} ({name.decode(errors='replace')}), "
                "which is not installed; install its plugin and set HDF5_PLUGIN_PATH"
            )


def _explain(path: str, error: Exception) -> str:
    text = _say_why(path, error)
    size = os.path.getsize(path) if os.path.exists(path) else None
    if size is None:
        return "is not there; check runs.files"
    if size == 0:
        return "is empty (0 bytes); transfer it again or leave it out of runs.files"
    truncated = re.search(r"eof = (\d+).*stored_eof = (\d+)", text)
    if truncated:
        actual, expected = (f"{int(n):,}".replace(",", " ") for n in truncated.groups())
        return f"truncated, {actual} of {expected} bytes; transfer it again"
    if "file signature not found" in text:
        return "is no HDF5 file; check runs.files, or transfer it again"
    return f"{text}; check it with h5ls or h5dump, or transfer it again"


def _say_why(path: str, error: Exception) -> str:
    # The driver that files are read with does not say why it cannot open one; the default does.
    try:
        h5py.File(path, "r", locking=False).close()
    except OSError as said:
        error = said
    return " ".join(str(error).split())

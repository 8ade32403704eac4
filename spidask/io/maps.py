"""Calibration maps: dark, gain and mask, read once per process."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the compression filters)
import numpy as np
from numpy.typing import NDArray

from spidask.errors import DataError
from spidask.io.arrays import ABSENT, find_array, refuse_short_chunks

FRAMES_AT_ONCE = 16
"""Frames of a stack that are in memory while its mean is taken."""

MOST_IN_STACK = 1_000_000
"""Frames of a stack: two hours of the fastest pnCCD."""

Region = tuple[int, int, int, int]
"""First row, row after the last, first column, column after the last."""


def load_map(
    location: str, shape: tuple[int, int], region: Region, what: str, *, stack: bool = False
) -> NDArray[Any]:
    """Read a region of a calibration map, once per process.

    Parameters
    ----------
    location : str
        ``file:dataset`` in HDF5, an HDF5 file with a single dataset, or a NumPy file ``.npy``. A
        map may be a list of its pixels, row after row, as in Dragonfly's detector files, or one of
        stacked modules (module, slow scan, fast scan).
    shape : tuple of int
        Rows and columns of the detector's frames.
    region : tuple of int
        First row, row after the last, first column, column after the last.
    what : str
        What the map is, for the messages.
    stack : bool
        A stack of frames is as good as a map; its mean is taken.

    Returns
    -------
    numpy.ndarray
        Shape (y, x) of the region, the file's dtype, read-only. Where the dataset is a stack of
        frames, their mean over the finite values, float64.

    Raises
    ------
    DataError
        If the file or the dataset is missing, cannot be read, or has another shape.
    """
    return _load_map(location, shape, region, what, stack, modified(location, what))


def modified(location: str, what: str) -> int:
    """Tell when the file of a calibration map was changed.

    Parameters
    ----------
    location : str
        As for `load_map`.
    what : str
        What the map is, for the message.

    Returns
    -------
    int
        Time of the last change, ns.

    Raises
    ------
    DataError
        If there is no such file.
    """
    path, _ = split_location(location)
    try:
        return Path(path).stat().st_mtime_ns
    except OSError as error:
        raise DataError(
            f"{what} {path}: {error.strerror}; expected an HDF5 or .npy file; correct the path",
            path=path,
        ) from None


def sign_map(location: str, what: str) -> int:
    """Describe a calibration map so that a change shows.

    Parameters
    ----------
    location : str
        As for `load_map`.
    what : str
        What the map is, for the message.

    Returns
    -------
    int
        Part of the hash of a map's values, because the maps of several runs may share a file to
        which more are added; the time of the file's last change, in ns, for a stack.

    Raises
    ------
    DataError
        If there is no such file or dataset.
    """
    return _sign_map(location, what, modified(location, what))


@lru_cache(maxsize=4096)
def _sign_map(location: str, what: str, mtime_ns: int) -> int:
    with _opened(location, what) as values:
        if values.ndim > 2:
            return mtime_ns
        content = np.ascontiguousarray(values[()])
    return int(hashlib.sha256(content.tobytes()).hexdigest()[:12], 16)


def check_map(
    location: str, shape: tuple[int, int] | None, what: str, *, stack: bool = False
) -> None:
    """Look at the header of a calibration map, without reading its pixels.

    Parameters
    ----------
    location : str
        As for `load_map`.
    shape : tuple of int or None
        Rows and columns that are expected, or None where they are not known yet.
    what : str
        What the map is, for the messages.
    stack : bool
        As for `load_map`.

    Raises
    ------
    DataError
        If `load_map` would raise, as far as headers tell.
    """
    modified(location, what)
    with _opened(location, what) as data:
        _refuse_unfit(data, shape or data.shape[-2:], location, what, stack)


def split_location(location: str) -> tuple[str, str | None]:
    """Split ``file:dataset`` into its parts.

    Parameters
    ----------
    location : str
        A path, with or without the name of a dataset after a colon.

    Returns
    -------
    path : str
        Path of the file.
    dataset : str or None
        Path of the dataset in it.

    Examples
    --------
    >>> split_location("masks.h5:r0101")
    ('masks.h5', 'r0101')
    >>> split_location("mask.npy")
    ('mask.npy', None)
    """
    path, colon, dataset = location.rpartition(":")
    return (path, dataset) if colon else (location, None)


def is_inside(location: str | None) -> bool:
    """Tell whether a mask lies in the files of the frames.

    Parameters
    ----------
    location : str or None
        The setting ``runs.mask``.

    Returns
    -------
    bool
        True for ``:dataset``.
    """
    return location is not None and location.startswith(":")


@lru_cache(maxsize=16)
def _load_map(
    location: str, shape: tuple[int, int], region: Region, what: str, stack: bool, _modified: int
) -> NDArray[Any]:
    y0, y1, x0, x1 = region
    with _opened(location, what) as data:
        _refuse_unfit(data, shape, location, what, stack)
        try:
            cut = (slice(y0, y1), slice(x0, x1))
            if _is_flat(data.shape, shape):
                values = np.reshape(data[()], shape)[cut]
            else:
                values = data[cut] if data.ndim == 2 else _mean(data, *cut)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise DataError(
                f"{what} {location}: cannot be read: {' '.join(str(error).split())}", path=location
            ) from None
    # The cache hands the same array to everybody.
    values = np.array(values)
    values.setflags(write=False)
    return values


def _mean(stack: h5py.Dataset | NDArray[Any], rows: slice, columns: slice) -> NDArray[np.float64]:
    total, count = np.zeros(1), np.zeros(1, int)
    for start in range(0, stack.shape[0], FRAMES_AT_ONCE):
        frames = np.asarray(stack[start : start + FRAMES_AT_ONCE, rows, columns], np.float64)
        finite = np.isfinite(frames)
        total = total + np.where(finite, frames, 0).sum(axis=0)
        count = count + finite.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@contextmanager
def _opened(location: str, what: str) -> Iterator[h5py.Dataset | NDArray[Any]]:
    path, dataset = split_location(location)
    if path.endswith(".npy"):
        try:
            data = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # NumPy parses the header as Python
            raise DataError(
                f"{what} {path}: is no NumPy file: {' '.join(str(error).split())}", path=path
            ) from None
        yield data
        return
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{what} {path}: cannot be opened as HDF5: {' '.join(str(error).split())}; "
            "expected 'file.h5:dataset' or 'file.npy'",
            path=path,
        ) from None
    with file:
        yield _dataset(file, path, dataset, what)


def _dataset(file: h5py.File, path: str, dataset: str | None, what: str) -> h5py.Dataset:
    names: list[str] = []
    try:
        file.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
    except ABSENT as error:
        raise DataError(
            f"{what} {path}: is damaged: {' '.join(str(error).split())}; transfer it again",
            path=path,
        ) from None
    name = dataset or (names[0] if len(names) == 1 else None)
    try:
        found = find_array(file, name) if name else None
        if found is not None:
            refuse_short_chunks(found)
    except DataError as error:
        raise DataError(f"{what} {path}: {error}", path=path) from None
    if found is not None:
        return found
    known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    wanted = f"has no dataset '{dataset}'" if dataset else "holds several datasets"
    raise DataError(
        f"{what} {path}: {wanted}; it holds {known or 'none'}; give '{path}:dataset'",
        path=path,
        dataset=dataset,
        known=names,
    )


def _is_flat(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Tell whether a map has the pixels in their order and another shape."""
    if found == (math.prod(shape),):
        return True
    # A stack of frames has frames of another shape.
    return len(found) == 3 and (found[0] * found[1], found[2]) == shape and found[1:] != shape


def _refuse_unfit(
    data: h5py.Dataset | NDArray[Any],
    shape: tuple[int, ...],
    location: str,
    what: str,
    stack: bool,
) -> None:
    found = data.shape
    if data.dtype.kind not in "biuf":
        raise DataError(
            f"{what} {location}: holds {data.dtype}, expected numbers; give this detector's map",
            path=location,
        )
    if _is_flat(found, shape):
        return
    allowed = (2, 3) if stack else (2,)
    too_many = len(found) == 3 and found[0] > MOST_IN_STACK
    if len(found) not in allowed or found[-2:] != shape or 0 in found or too_many:
        form = f"{shape}, or a stack of such frames" if stack else f"{shape}"
        raise DataError(
            f"{what} {location}: has shape {found}, expected {form}; give this detector's map",
            path=location,
            found=found,
            expected=shape,
        )

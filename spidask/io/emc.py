"""Photons in the files of Dragonfly, HDF5 and binary, both ways.

Source: https://github.com/duaneloh/Dragonfly/wiki and the readers of dragonfly-spi 0.1.0.
Photons are `scipy.sparse.csr_array` of int32, a row for each frame and a column for each pixel.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from spidask.errors import DataError
from spidask.io.arrays import claims_too_much, find_array
from spidask.io.layout import MOST_FRAMES

MISSING = -1
"""Value in a block of photons for a pixel that holds no number in this frame."""

HEADER_BYTES = 1024
KINDS = {0: "sparse", 1: "<i4", 2: "<f8"}
PARTS = ("place_ones", "place_multi", "count_multi")


def write_photons(
    path: str | Path,
    blocks: Iterable[sp.csr_array],
    n_frames: int,
    n_pixels: int,
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Write photons as Dragonfly's sparse HDF5 file, block by block.

    Parameters
    ----------
    path : str or pathlib.Path
        File to write; it appears when it is complete.
    blocks : iterable of scipy.sparse.csr_array
        Consecutive frames, each block of shape (frame, pixel), int32, photons. `MISSING` marks
        pixels without a number; other negative values are left out as zero.
    n_frames : int
        Number of frames in all blocks together.
    n_pixels : int
        Number of pixels of a frame.
    attributes : mapping of str to str, optional
        Attributes of the file.

    Raises
    ------
    DataError
        If the blocks hold another number of frames or pixels.

    Notes
    -----
    Besides ``num_pix``, ``place_ones``, ``place_multi`` and ``count_multi`` the file holds
    ``place_missing``, which Dragonfly does not read: to it a missing pixel has no photons.
    """
    part = Path(f"{path}.part")
    with h5py.File(part, "w") as file:
        file.attrs.update(attributes or {})
        file["num_pix"] = np.array([n_pixels], np.int32)
        kind = h5py.vlen_dtype(np.int32)
        for name in (*PARTS, "place_missing"):
            file.create_dataset(name, (n_frames,), kind, chunks=(1,) if n_frames else None)
        for start, _, block in _counted(blocks, n_frames, n_pixels):
            for name, values, counts in _split(block):
                _write_lists(file[name], start, np.split(values, np.cumsum(counts)[:-1]))
    os.replace(part, path)


def write_photons_binary(
    path: str | Path, blocks: Iterable[sp.csr_array], n_frames: int, n_pixels: int
) -> None:
    """Write photons as Dragonfly's sparse binary file (.emc), block by block.

    Parameters
    ----------
    path : str or pathlib.Path
        File to write; it appears when it is complete.
    blocks : iterable of scipy.sparse.csr_array
        Consecutive frames, each block of shape (frame, pixel), int32, photons. Negative values
        are left out as zero: the format has no place for missing pixels.
    n_frames : int
        Number of frames in all blocks together.
    n_pixels : int
        Number of pixels of a frame.

    Raises
    ------
    DataError
        If the blocks hold another number of frames or pixels.
    """
    part = Path(f"{path}.part")
    counts = {name: np.zeros(n_frames, "<i4") for name in PARTS}
    # The three lists stand one after the other, but grow together: two of them wait in files.
    with open(part, "wb") as file, _scratch(part) as multi, _scratch(part) as count:
        file.seek(HEADER_BYTES + 8 * n_frames)
        lists = dict(zip(PARTS, (file, multi, count), strict=True))
        for start, stop, block in _counted(blocks, n_frames, n_pixels):
            for name, values, lengths in _split(block):
                if name in lists:
                    lists[name].write(values.astype("<i4").tobytes())
                    counts[name][start:stop] = lengths
        for source in (multi, count):
            source.seek(0)
            shutil.copyfileobj(source, file)
        file.seek(0)
        header = np.zeros(HEADER_BYTES // 4, "<i4")
        header[:2] = n_frames, n_pixels
        for values in (header, counts["place_ones"], counts["place_multi"]):
            file.write(values.tobytes())
    os.replace(part, path)


def read_photons(
    path: str | Path, frames: slice | npt.NDArray[np.integer[Any]] | None = None
) -> sp.csr_array:
    """Read photons of Dragonfly, HDF5 or binary, told apart by the file's signature.

    Parameters
    ----------
    path : str or pathlib.Path
        File to read.
    frames : slice or numpy.ndarray of int, optional
        Which frames, increasing; all of them without it.

    Returns
    -------
    scipy.sparse.csr_array
        Photons, shape (frame, pixel), int32 (float64 for binary files of that kind).

    Raises
    ------
    DataError
        If the file is neither, is truncated, or holds positions outside the frame.
    """
    try:
        if h5py.is_hdf5(path):
            with h5py.File(path, "r", locking=False) as file:
                return _read_sparse_hdf5(file, slice(None) if frames is None else frames)
        photons = _read_binary(Path(path))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, DataError) as error:
        raise DataError(
            f"{path}: holds no photons of Dragonfly: {' '.join(str(error).split())}", path=str(path)
        ) from None
    return photons if frames is None else photons[frames]


def read_missing(
    path: str | Path, frames: slice | npt.NDArray[np.integer[Any]]
) -> list[npt.NDArray[np.int32]]:
    """Read which pixels hold no number, from an HDF5 file of `write_photons`.

    Parameters
    ----------
    path : str or pathlib.Path
        File to read.
    frames : slice or numpy.ndarray of int
        Which frames, increasing.

    Returns
    -------
    list of numpy.ndarray
        Positions for each frame, int32; without those that the detector file ignores anyway.
    """
    with h5py.File(path, "r") as file:
        return list(file["place_missing"][frames])


def _counted(
    blocks: Iterable[sp.csr_array], n_frames: int, n_pixels: int
) -> Iterator[tuple[int, int, sp.csr_array]]:
    start = 0
    for block in blocks:
        stop = start + block.shape[0]
        if block.shape[1] != n_pixels or stop > n_frames:
            raise DataError(
                f"photons: a block of shape {block.shape} after {start} frames; expected "
                f"{n_frames} frames of {n_pixels} pixels in all"
            )
        if stop > start:
            yield start, stop, block
        start = stop
    if start != n_frames:
        raise DataError(f"photons: {start} frames came, {n_frames} were announced")


def _split(block: sp.csr_array) -> Iterator[tuple[str, npt.NDArray[np.int32], npt.NDArray[Any]]]:
    block.sort_indices()
    places, counts = block.indices.astype(np.int32), block.data.astype(np.int32)
    frame = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    one, multi, missing = counts == 1, counts > 1, counts == MISSING
    for name, values, chosen in (
        ("place_ones", places, one),
        ("place_multi", places, multi),
        ("count_multi", counts, multi),
        ("place_missing", places, missing),
    ):
        yield name, values[chosen], np.bincount(frame[chosen], minlength=block.shape[0])


def _write_lists(dataset: h5py.Dataset, start: int, lists: list[npt.NDArray[np.int32]]) -> None:
    # h5py's own assignment takes lists of equal length for one array of two dimensions.
    rows = np.empty(len(lists), h5py.vlen_dtype(np.int32))
    for row, values in enumerate(lists):
        rows[row] = values
    space = dataset.id.get_space()
    space.select_hyperslab((start,), (len(lists),))
    dataset.id.write(h5py.h5s.create_simple((len(lists),)), space, rows)


@contextmanager
def _scratch(beside: Path) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile(dir=beside.parent) as file:
        yield file


def _read_sparse_hdf5(
    file: h5py.File, frames: slice | npt.NDArray[np.integer[Any]]
) -> sp.csr_array:
    lists, n_pixels = open_lists(file)
    if any(claims_too_much(part, slice(None)) for part in lists.values()):
        raise ValueError("a list that claims to be longer than the file")
    ones, multi, counts = (list(lists[name][frames]) for name in PARTS)
    if any(len(m) != len(c) for m, c in zip(multi, counts, strict=True)):
        raise ValueError("place_multi and count_multi differ in length")
    nothing = np.empty(0, np.int32)
    return _assembled(
        [len(values) for values in ones],
        [len(values) for values in multi],
        np.concatenate([*ones, nothing]),
        np.concatenate([*multi, nothing]),
        np.concatenate([*counts, nothing]),
        n_pixels,
    )


def open_lists(file: h5py.File) -> tuple[dict[str, h5py.Dataset], int]:
    """Open the lists of photons in an HDF5 file.

    Parameters
    ----------
    file : h5py.File
        The open file.

    Returns
    -------
    lists : dict
        `PARTS`, and ``place_missing`` where it is there, to an array of lists for each frame.
    n_pixels : int
        Pixels of a frame.

    Raises
    ------
    ValueError
        If one is missing or none of lists of integers, they differ in length, or the number of
        pixels is none.
    """
    lists = {name: find_array(file, name) for name in (*PARTS, "place_missing")}
    if lists["place_missing"] is None and "place_missing" not in file:
        del lists["place_missing"]
    found: dict[str, h5py.Dataset] = {}
    for name, array in lists.items():
        base = None if array is None else h5py.check_vlen_dtype(array.dtype)
        if array is None or array.ndim != 1 or base is None or np.dtype(base).kind not in "iu":
            raise ValueError(f"'{name}' is no array of lists of integers")
        found[name] = array
    lengths = {len(array) for array in found.values()}
    if len(lengths) != 1 or max(lengths) > MOST_FRAMES:
        raise ValueError(f"lists of {sorted(lengths)} frames")
    n_pixels = find_array(file, "num_pix")
    if n_pixels is None or n_pixels.dtype.kind not in "iu" or n_pixels.shape not in ((), (1,)):
        raise ValueError("'num_pix' is no whole number")
    return found, int(np.prod(n_pixels[()]))


def _read_binary(path: Path) -> sp.csr_array:
    size = path.stat().st_size
    if size < HEADER_BYTES:
        raise ValueError(f"{size} bytes are less than its header")
    n_frames, n_pixels, kind = map(int, np.fromfile(path, "<i4", 3))
    if n_frames < 0 or n_pixels < 0 or kind not in KINDS:
        raise ValueError(f"header of {n_frames} frames, {n_pixels} pixels, kind {kind}")
    if kind:
        dense = np.dtype(KINDS[kind])
        _expect(size, HEADER_BYTES + n_frames * n_pixels * dense.itemsize)
        values = np.fromfile(path, dense, n_frames * n_pixels, offset=HEADER_BYTES)
        return sp.csr_array(values.reshape(n_frames, n_pixels))
    _expect(size, HEADER_BYTES + 8 * n_frames)
    lengths = np.fromfile(path, "<i4", 2 * n_frames, offset=HEADER_BYTES).reshape(2, n_frames)
    if lengths.min(initial=0) < 0:
        raise ValueError("a negative number of pixels in a frame")
    n_ones, n_multi = map(int, lengths.sum(axis=1, dtype=np.int64))
    _expect(size, HEADER_BYTES + 8 * n_frames + 4 * (n_ones + 2 * n_multi))
    lists = np.fromfile(path, "<i4", offset=HEADER_BYTES + 8 * n_frames)
    ones, multi, counts = np.split(lists[: n_ones + 2 * n_multi], [n_ones, n_ones + n_multi])
    return _assembled(lengths[0], lengths[1], ones, multi, counts, n_pixels)


def _expect(size: int, needed: int) -> None:
    if size < needed:
        raise ValueError(f"truncated, {size} of {needed} bytes")


def _assembled(
    n_ones: npt.ArrayLike,
    n_multi: npt.ArrayLike,
    ones: npt.NDArray[np.int32],
    multi: npt.NDArray[np.int32],
    counts: npt.NDArray[np.int32],
    n_pixels: int,
) -> sp.csr_array:
    n_ones, n_multi = np.asarray(n_ones, np.int64), np.asarray(n_multi, np.int64)
    places = np.concatenate([ones, multi])
    if len(places) and not 0 <= places.min() <= places.max() < n_pixels:
        raise ValueError(f"positions {places.min()} to {places.max()} in {n_pixels} pixels")
    frames = np.arange(len(n_ones))
    rows = np.concatenate([np.repeat(frames, n_ones), np.repeat(frames, n_multi)])
    values = np.concatenate([np.ones(len(ones), np.int32), counts.astype(np.int32)])
    return sp.coo_array((values, (rows, places)), shape=(len(frames), n_pixels)).tocsr()

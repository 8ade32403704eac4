"""A stack of frames to be converted, and how parts of it are read."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from spidask.conversion.contents import Contents, read_hdf5_contents, read_zarr_contents
from spidask.errors import DataError
from spidask.io.arrays import list_broken_sources
from spidask.io.emc import PARTS
from spidask.io.euxfel import is_run_folder
from spidask.io.hdf5 import open_hdf5, scan_hdf5
from spidask.io.layout import DATASET, FileLayout
from spidask.io.links import find_home, follow_links, name_mask
from spidask.io.photons import MISSING, PhotonsReader, are_photons, find_shape, scan_photons
from spidask.io.stack import UNDECODABLE, StackInfo, fill_value
from spidask.io.zarr import is_zarr, open_zarr, scan_zarr

BLOCK_BYTES = 64 * 2**20

AS_IT_IS = "stacks (frame, y, x) are converted; give modules to `spidask run` as they are"


@dataclass(frozen=True)
class Stack:
    """An array (frame, y, x) in a file or folder, small enough for a task.

    Attributes
    ----------
    path : str
        The file or folder.
    kind : {"hdf5", "zarr", "photons"}
        How it is read; the last are those of Dragonfly.
    dataset : str
        Path of the array inside.
    shape : tuple of int
        Frames, rows and columns.
    dtype : str
        NumPy dtype in which values are taken.
    chunk : int
        Frames that are compressed together.
    """

    path: str
    kind: Literal["hdf5", "zarr", "photons"]
    dataset: str
    shape: tuple[int, int, int]
    dtype: str
    chunk: int = 1

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame in memory."""
        return self.shape[1] * self.shape[2] * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Source:
    """A file or folder to be converted.

    Attributes
    ----------
    frames : Stack
        The frames.
    mask : Stack or None
        The mask of every frame beside them, if there is one.
    contents : Contents
        All else, a mask for all frames among it.
    event_ids : list of str
        Paths of the event ids among it.
    """

    frames: Stack
    mask: Stack | None
    contents: Contents
    event_ids: list[str]


def open_source(
    path: str | Path, dataset: str = DATASET, shape: tuple[int, int] | None = None
) -> Source:
    """Look at a file or folder that is to be converted; reads no frame.

    Parameters
    ----------
    path : str or pathlib.Path
        HDF5, CXI or psocake file, Zarr folder, or Dragonfly's photons in either form.
    dataset : str
        Path of the frames inside.
    shape : tuple of int, optional
        Rows and columns of Dragonfly's frames, where neither the file nor a detector.h5 beside it
        tells.

    Returns
    -------
    Source
        What it holds.

    Raises
    ------
    DataError
        If it cannot be read or holds no such stack.
    """
    path = os.path.abspath(path)
    if not os.path.exists(path):
        raise DataError(f"{path}: is not there", path=path)
    try:
        if is_run_folder(path):
            raise DataError(f"is a run of the European XFEL; {AS_IT_IS}")
        if is_zarr(path):
            return _open_zarr(path, scan_zarr(path, dataset))
        if are_photons(path):
            return _open_photons(path, shape)
        return _open_hdf5(path, scan_hdf5(path, dataset))
    except DataError as error:
        if str(error).startswith(path):
            raise
        text = str(error).replace("set runs.dataset", "give --dataset")
        raise DataError(f"{path}: {text}", path=path) from error


def read_block(stack: Stack, rows: slice) -> npt.NDArray[Any]:
    """Read frames of a stack.

    Parameters
    ----------
    stack : Stack
        The stack.
    rows : slice
        Which frames, start and stop.

    Returns
    -------
    numpy.ndarray
        Shape (frame, y, x), of the stack's dtype.

    Raises
    ------
    DataError
        If a frame cannot be decoded.
    """
    try:
        if stack.kind == "photons":
            block = _read_photons(stack, rows)
        elif stack.kind == "zarr":
            block = np.asarray(open_zarr(stack.path, stack.dataset)[rows])
        else:
            block = np.asarray(open_hdf5(stack.path, stack.dataset)[rows])
    except UNDECODABLE as error:
        raise DataError(
            f"{stack.path}: frames {rows.start} to {rows.stop - 1} cannot be decoded: "
            f"{' '.join(str(error).split())}; transfer the file again",
            path=stack.path,
        ) from None
    return block.astype(stack.dtype, copy=False)


def digest_frames(block: npt.NDArray[Any]) -> list[bytes]:
    """Sum up the values of frames.

    Parameters
    ----------
    block : numpy.ndarray
        Shape (frame, y, x).

    Returns
    -------
    list of bytes
        SHA-256 of each frame's values, little-endian and in order; -0 counts as 0 and every NaN
        as the same.
    """
    plain = np.ascontiguousarray(block, block.dtype.newbyteorder("<"))
    if plain.dtype.kind == "f":
        plain = np.where(np.isnan(plain), np.asarray(np.nan, plain.dtype), plain + 0)
    return [hashlib.sha256(frame.tobytes()).digest() for frame in plain]


def split_blocks(stack: Stack, multiple: int = 1, most_bytes: int = BLOCK_BYTES) -> list[slice]:
    """Cut a stack into parts of about 64 MiB.

    Parameters
    ----------
    stack : Stack
        The stack.
    multiple : int
        Every part but the last holds a multiple of so many frames.
    most_bytes : int
        Bytes of a part in memory.

    Returns
    -------
    list of slice
        Frames of each part, in order.

    Examples
    --------
    >>> split_blocks(Stack("", "hdf5", "", (7, 4, 4), "<u2"), 2, 100)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None), slice(6, 7, None)]
    """
    n_frames = stack.shape[0]
    fit = max(most_bytes // max(stack.frame_bytes, 1), 1)
    step = max(fit // multiple * multiple, multiple)
    return [slice(start, min(start + step, n_frames)) for start in range(0, n_frames, step)]


def _read_photons(stack: Stack, rows: slice) -> npt.NDArray[Any]:
    block = PhotonsReader(stack.path, stack.shape, np.dtype(stack.dtype))[rows]
    # Which is what the reader gives for a frame that it cannot decode.
    fill = fill_value(block.dtype)
    lost = np.isnan(block) if block.dtype.kind == "f" else block == fill
    if block.size and lost.all(axis=(1, 2)).any():
        raise ValueError("lists that make no sense")
    return block


def _open_hdf5(path: str, info: StackInfo) -> Source:
    with h5py.File(path, "r", locking=False) as file:
        home = find_home(file, info.dataset)
        mask = name_mask(home)
        if file[home].ndim != 3:
            raise DataError(f"holds several modules a frame, {file[home].shape}; {AS_IT_IS}")
        if file[home].is_virtual and (gone := list_broken_sources(file[home])):
            raise DataError(f"leads to frames in {', '.join(gone)}, not there; bring them back")
        item = file.get(mask)
        ids = [follow_links(file, name) for name in _id_paths(info)]
        found = isinstance(item, h5py.Dataset) and item.shape == info.shape
        described = (_native(item.dtype), (item.chunks or (1,))[0]) if found else None
    frames = _stack(path, "hdf5", home, info)
    contents = read_hdf5_contents(path, home, frozenset([mask] if described else []))
    masks = Stack(path, "hdf5", mask, frames.shape, *described) if described else None
    return Source(frames, masks, contents, ids)


def _open_zarr(path: str, info: StackInfo) -> Source:
    contents = read_zarr_contents(path, info.dataset)
    mask = name_mask(contents.home)
    masks = None
    if mask in contents.left_out:
        array = open_zarr(path, mask)
        if array.shape == info.shape:
            contents.left_out.remove(mask)
            kind, chunk = _native(array.dtype), int(array.chunks[0])
            masks = Stack(path, "zarr", mask, _three(info.shape), kind, chunk)
    return Source(_stack(path, "zarr", info.dataset, info), masks, contents, _id_paths(info))


def _open_photons(path: str, shape: tuple[int, int] | None) -> Source:
    contents = Contents(DATASET)
    told: dict[str, Any] = {}
    if h5py.is_hdf5(path):
        contents = read_hdf5_contents(path, PARTS[0], frozenset([*PARTS, MISSING, "num_pix"]))
        told = contents.attributes.pop("", {})
        contents.attributes.pop(PARTS[0], None)
        contents.home = str(told.pop("dataset", DATASET))
        contents.attributes[contents.home] = {}
    shape = shape or _told_shape(path, told)
    if shape is None:
        raise DataError("holds pixels without a shape; give --shape ROWS COLUMNS")
    info = scan_photons(path, FileLayout(shape))
    mask = name_mask(contents.home)
    masks = None
    if mask in contents.left_out:
        contents.left_out.remove(mask)
        dtype = _native(open_hdf5(path, mask).dtype)
        masks = Stack(path, "hdf5", mask, _three(info.shape), dtype)
    frames = Stack(path, "photons", "", _three(info.shape), str(told.pop("dtype", info.dtype)))
    told.pop("shape", None)
    contents.attributes[""] = told
    return Source(frames, masks, contents, [])


def _told_shape(path: str, told: dict[str, Any]) -> tuple[int, int] | None:
    if "shape" in told:
        # As handoff writes it, or conversion.
        rows, columns = json.loads(str(told["shape"]))
        return int(rows), int(columns)
    detector = Path(path).with_name("detector.h5")
    return find_shape(str(detector)) if detector.exists() else None


def _stack(path: str, kind: Literal["hdf5", "zarr"], dataset: str, info: StackInfo) -> Stack:
    return Stack(path, kind, dataset, _three(info.shape), info.dtype, (info.chunks or (1,))[0])


def _native(dtype: np.dtype[Any]) -> str:
    return dtype.newbyteorder("=").str


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    n_frames, rows, columns = shape
    return n_frames, rows, columns


def _id_paths(info: StackInfo) -> list[str]:
    return [path for paths in info.event_ids.values() for path in paths]

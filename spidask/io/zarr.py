"""Stacks of frames in Zarr folders, versions 2 and 3."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore

from spidask.errors import DataError
from spidask.io.hdf5 import N_OPEN
from spidask.io.layout import ANYTHING, FileLayout, find_stack, refuse_unfitting
from spidask.io.stack import (
    Source,
    StackInfo,
    describe_stack,
    read_event_ids,
    read_frames,
)

METADATA = ("zarr.json", ".zarray", ".zgroup")


@dataclass(frozen=True)
class ZarrReader:
    """A stack of frames in a Zarr folder, opened where it is read.

    Attributes
    ----------
    path : str
        The folder.
    dataset : str
        Path of the stack inside it; means nothing where the folder itself is the array.
    shape : tuple of int
        Number of frames, rows and columns.
    dtype : numpy.dtype
        Dtype of what is returned.
    """

    path: str
    dataset: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of dimensions, always 3."""
        return 3

    def __getitem__(self, key: object) -> NDArray[Any]:
        """Read frames (slice or integers), rows and columns (slices)."""
        _, source = _open_both(self.path, self.dataset)
        return read_frames(source, key, self.shape, self.dtype, self.path)


def is_zarr(path: str) -> bool:
    """Tell whether a folder is a Zarr group or array.

    Parameters
    ----------
    path : str
        The folder.

    Returns
    -------
    bool
        True if it holds Zarr's metadata of version 2 or 3.
    """
    return any(os.path.exists(os.path.join(path, name)) for name in METADATA)


def scan_zarr(path: str, dataset: str, layout: FileLayout = ANYTHING) -> StackInfo:
    """Read what the metadata of a folder says about its frames.

    Parameters
    ----------
    path : str
        The folder.
    dataset : str
        Path of the stack of frames inside it; where it is the default and not there, the usual
        places are looked at.
    layout : FileLayout
        What else the folder has to hold.

    Returns
    -------
    StackInfo
        Shape, dtype, chunks and event ids; no frame is read.

    Raises
    ------
    DataError
        If the folder cannot be opened or holds no such stack; the message has no path in it.
    """
    try:
        root = zarr.open(path, mode="r")
        array, place = _find(root, dataset)
        info = describe_stack(
            array.shape, array.dtype, array.chunks, place, lambda name: _describe(root, name)
        )
        refuse_unfitting(layout, info.shape, lambda name: _describe(root, name))
        return info
    except DataError:
        raise
    except Exception as error:  # whatever damaged metadata make zarr raise
        text = " ".join(f"{type(error).__name__} {error}".split())
        raise DataError(f"is no readable Zarr: {text}; write or transfer it again") from error


def read_zarr_ids(path: str, names: list[str], rows: slice) -> NDArray[np.int64]:
    """Read one event id of a stretch of frames.

    Parameters
    ----------
    path : str
        The folder.
    names : list of str
        Path of the array inside it, or of seconds and nanoseconds.
    rows : slice
        Rows of the folder's stack.

    Returns
    -------
    ndarray
        Event ids, shape (frame,), int64.
    """
    return read_event_ids({name: open_zarr(path, name) for name in names}, rows)


def stat_zarr(path: str, dataset: str) -> tuple[int, int]:
    """Size of an array's metadata and the time of its last change that shows.

    Parameters
    ----------
    path : str
        The folder.
    dataset : str
        Path of the stack inside it.

    Returns
    -------
    tuple of int
        Bytes of the metadata; newest modification of metadata and array folder, in ns.

    Notes
    -----
    Chunks that were rewritten in place do not show: to look at each would take longer than to
    read the labels again.
    """
    array = Path(path, dataset)
    folder = array if is_zarr(str(array)) else Path(path)
    metadata = [folder / name for name in METADATA if (folder / name).exists()]
    watched = [folder, *metadata, *(p for p in [folder / "c"] if p.exists())]
    newest = max(p.stat().st_mtime_ns for p in watched)
    return sum(p.stat().st_size for p in metadata), newest


def open_zarr(path: str, dataset: str) -> zarr.Array[Any]:
    """Open an array, or take it from those that this process holds open.

    Parameters
    ----------
    path : str
        The folder.
    dataset : str
        Path inside it; means nothing where the folder itself is the array.

    Returns
    -------
    zarr.Array
        The array.

    Raises
    ------
    DataError
        If the folder cannot be opened any more.
    """
    return _open_both(path, dataset)[0]


def _open_both(path: str, dataset: str) -> tuple[zarr.Array[Any], Source]:
    try:
        return _open(path, dataset, *stat_zarr(path, dataset))
    except Exception as error:  # whatever damaged metadata make zarr raise
        raise DataError(
            f"{path} cannot be opened any more: {error}; put it back or open the runs again",
            path=path,
        ) from error


@lru_cache(maxsize=N_OPEN)
def _open(path: str, dataset: str, size: int, mtime_ns: int) -> tuple[zarr.Array[Any], Source]:
    # Size and time are in the key so that a rewritten folder is opened anew.
    del size, mtime_ns
    array = plain = _get(zarr.open(path, mode="r"), dataset)
    if any(type(codec).__name__.startswith("Blosc") for codec in array.compressors):
        plain = _get(zarr.open(_WholeChunks(LocalStore(path, read_only=True)), mode="r"), dataset)
    # Other byte orders are none that zarrs can read.
    if not find_spec("zarrs") or not array.dtype.isnative:
        return plain, plain
    from zarrs import ZarrsCodecPipeline

    pipeline = ZarrsCodecPipeline.from_array_metadata_and_store(array.metadata, array.store)
    # Zarr's own way is a setting of the whole process, and other threads open arrays meanwhile.
    fast = zarr.open_array(array.store_path, mode="r")
    object.__setattr__(fast.async_array, "codec_pipeline", pipeline)
    return plain, _FastArray(plain, fast)


def _get(root: zarr.Group | zarr.Array[Any], dataset: str) -> zarr.Array[Any]:
    array = root if isinstance(root, zarr.Array) else root.get(dataset)
    if not isinstance(array, zarr.Array):
        raise KeyError(dataset)
    return array


@dataclass(frozen=True)
class _FastArray:
    """An array that zarrs decodes; Zarr itself has the last word on what zarrs cannot read."""

    plain: zarr.Array[Any]
    fast: zarr.Array[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.plain.shape

    def __getitem__(self, key: Any, /) -> Any:
        try:
            return self.fast[key]
        except Exception:  # whatever damaged chunks make zarrs raise
            return self.plain[key]


class _WholeChunks(WrapperStore[LocalStore]):
    """A folder whose cut off Blosc chunks are refused: Blosc reads on in memory behind them.

    Source: https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst: four bytes, then
    the numbers of bytes without compression, of a block, and of the chunk.
    """

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        value = await super().get(key, prototype, byte_range)
        is_chunk = not key.rpartition("/")[2].startswith((".z", "zarr.json"))
        if value is not None and is_chunk and byte_range is None:
            claimed = int.from_bytes(value[12:16].to_bytes(), "little")
            if len(value) < max(claimed, 16):
                raise ValueError(f"chunk {key} is cut off, {len(value)} bytes")
        return value


def _find(root: zarr.Group | zarr.Array[Any], dataset: str) -> tuple[zarr.Array[Any], str]:
    if isinstance(root, zarr.Array):
        return root, dataset
    for place in (dataset, find_stack(root, dataset)):
        array = root.get(place) if place else None
        if isinstance(array, zarr.Array):
            return array, place
    names = ", ".join(sorted(root.keys())) or "nothing"
    raise DataError(f"has no array '{dataset}'; it holds {names}; set runs.dataset")


def _describe(root: zarr.Group | zarr.Array[Any], name: str) -> tuple[tuple[int, ...], str] | None:
    item = None if isinstance(root, zarr.Array) else root.get(name)
    return (item.shape, item.dtype.kind) if isinstance(item, zarr.Array) else None

"""Detectors of several modules as stacks of frames: modules one below the other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spidask.io.layout import ALL_BITS, Describe
from spidask.io.stack import (
    Source,
    StackInfo,
    cut_block,
    describe_stack,
    enclose,
    fill_value,
    read_frames,
)


@dataclass(frozen=True)
class Piece:
    """Frames of one module that follow each other in one file.

    Attributes
    ----------
    first : int
        Number of the first of these frames.
    n_frames : int
        How many there are.
    path : str
        The file.
    row : int
        Row of the first frame in the file.
    data : str
        Path of the dataset, shape (row, ..., slow scan, fast scan).
    lead : tuple of int
        Positions on the axes between row and slow scan: module and plane, or neither.
    mask : str
        Path of the dataset of the pixels' mask; empty where there is none.
    cells : int
        Frames in each row of the file, on the axis behind it (memory cells of JUNGFRAU); `row`
        counts frames then.
    """

    first: int
    n_frames: int
    path: str
    row: int
    data: str
    lead: tuple[int, ...] = ()
    mask: str = ""
    cells: int = 1


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the frames of a detector of several modules are.

    Attributes
    ----------
    n_frames : int
        Number of frames.
    module_shape : tuple of int
        Slow and fast scan of a module.
    dtype : numpy.dtype
        Of a pixel.
    modules : tuple of list of Piece
        For each module its frames in order; what is in none is missing.
    ids : dict of str to numpy.ndarray
        Event ids, each of shape (frame,), int64.
    faults : dict
        What is missing or odd: name to a number or a list.
    """

    n_frames: int
    module_shape: tuple[int, int]
    dtype: np.dtype[Any]
    modules: tuple[list[Piece], ...]
    ids: dict[str, NDArray[np.int64]]
    faults: dict[str, Any]

    def describe(self, dataset: str, describe: Describe) -> StackInfo:
        """Describe the stack of modules as a stack of frames, see `describe_stack`."""
        rows, columns = self.module_shape
        shape = (self.n_frames, len(self.modules) * rows, columns)
        each = (self.n_frames, len(self.modules))

        def describe_column(name: str) -> tuple[tuple[int, ...], str] | None:
            found = describe(name)
            # Memory cells are given for every module.
            return (each[:1], found[1]) if found and found[0] == each else found

        info = describe_stack(shape, self.dtype, None, dataset, describe_column)
        own = {name: [f"{dataset}/{name}"] for name in self.ids}
        return replace(info, event_ids=own or info.event_ids, faults=self.faults)

    def pieces(self, module: int, frames: slice) -> Iterator[Piece]:
        """Cut the pieces of a module to a stretch of frames."""
        pieces = self.modules[module]
        start = bisect_right(pieces, frames.start, key=lambda piece: piece.first) - 1
        for piece in pieces[max(start, 0) :]:
            if piece.first >= frames.stop:
                return
            first = max(piece.first, frames.start)
            n_frames = min(piece.first + piece.n_frames, frames.stop) - first
            if n_frames > 0:
                row = piece.row + first - piece.first
                yield replace(piece, first=first, n_frames=n_frames, row=row)


@dataclass(frozen=True)
class _Plane:
    """One module of an array on disk as a stack of frames, masked pixels filled."""

    data: Any
    mask: Any
    piece: Piece
    bits: int
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        above = 1 + len(self.piece.lead) + (self.piece.cells > 1)
        return (self.data.shape[0] * self.piece.cells, *self.data.shape[above:])

    def __getitem__(self, key: tuple[slice, slice, slice], /) -> NDArray[Any]:
        block = self._take(self.data, *key).astype(self.dtype, copy=False)
        if self.mask is not None:
            bad = self._take(self.mask, *key).astype(np.uint32, copy=False)
            bad = bad & np.uint32(self.bits) != 0
            # Files of 2017 hold three bytes for each pixel.
            block[bad.any(-1) if bad.ndim > block.ndim else bad] = fill_value(self.dtype)
        return block

    def _take(self, array: Any, rows: slice, y: slice, x: slice) -> NDArray[Any]:
        cells = self.piece.cells
        if cells == 1:
            return np.asarray(array[(rows, *self.piece.lead, y, x)])
        first = rows.start // cells
        block = np.asarray(array[first : -(-rows.stop // cells), :, y, x])
        start = rows.start - first * cells
        return block.reshape(-1, *block.shape[2:])[start : start + rows.stop - rows.start]


@dataclass(frozen=True)
class ModulesReader:
    """A stack of modules as a stack of frames, opened where it is read.

    Attributes
    ----------
    layout : Layout
        Where the modules' frames are.
    open_dataset : callable
        Path of a file and of a dataset in it to the open dataset.
    dtype : numpy.dtype
        Dtype of what is returned.
    mask_bits : int
        Bits of the pixels' mask that make a pixel missing; 0 leaves the mask alone.
    """

    layout: Layout
    open_dataset: Callable[[str, str], Any]
    dtype: np.dtype[Any]
    mask_bits: int = ALL_BITS

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of frames, rows of all modules, and columns."""
        rows, columns = self.layout.module_shape
        return self.layout.n_frames, len(self.layout.modules) * rows, columns

    def __getitem__(self, key: object) -> NDArray[Any]:
        """Read frames, rows and columns; only of the modules that the rows touch."""
        index = key if isinstance(key, tuple) else (key,)
        wanted = index + (slice(None),) * (3 - len(index))
        parts = [enclose(one, length) for one, length in zip(wanted, self.shape, strict=True)]
        frames, y, x = (read for read, _ in parts)
        shape = [one.stop - one.start for one in (frames, y, x)]
        block = np.full(shape, fill_value(self.dtype), self.dtype)
        for module, inside in _split(y, self.layout.module_shape[0]):
            top = module * self.layout.module_shape[0] + inside.start - y.start
            rows = slice(top, top + inside.stop - inside.start)
            for piece in self.layout.pieces(module, frames):
                start = piece.first - frames.start
                part = (slice(start, start + piece.n_frames), rows)
                block[part] = self._read(piece, inside, x)
        return cut_block(block, tuple(rest for _, rest in parts))

    def _read(self, piece: Piece, y: slice, x: slice) -> NDArray[Any]:
        data = self.open_dataset(piece.path, piece.data)
        use_mask = bool(piece.mask) and self.mask_bits != 0
        mask = self.open_dataset(piece.path, piece.mask) if use_mask else None
        source: Source = _Plane(data, mask, piece, self.mask_bits, self.dtype)
        rows = slice(piece.row, piece.row + piece.n_frames)
        shape = (data.shape[0] * piece.cells, *self.layout.module_shape)
        return read_frames(source, (rows, y, x), shape, self.dtype, piece.path)


def fits_mask(mask: Any, data: Any) -> bool:
    """Tell whether an array can be the mask of another.

    Parameters
    ----------
    mask : array
        Perhaps a mask, on disk.
    data : array
        Frames of modules, on disk.

    Returns
    -------
    bool
        True for integers of the data's shape, or several of them for each pixel.
    """
    return mask.dtype.kind in "iu" and tuple(mask.shape[: data.ndim]) == tuple(data.shape)


def find_faults(n_frames: int, modules: tuple[list[Piece], ...]) -> dict[str, Any]:
    """Count what is missing of a detector.

    Parameters
    ----------
    n_frames : int
        Number of frames.
    modules : tuple of list of Piece
        As in `Layout`.

    Returns
    -------
    dict
        ``missing_modules``, list of those without any frame, and ``incomplete_frames``, number of
        frames that other modules miss; what is not missing is not there.
    """
    every = [piece for pieces in modules for piece in pieces]
    first = np.array([piece.first for piece in every], np.int64)
    end = first + np.array([piece.n_frames for piece in every], np.int64)
    # How many modules have the frames between two edges.
    edges = np.unique(np.concatenate([first, end]))
    started = np.searchsorted(np.sort(first), edges[:-1], "right")
    n_there = started - np.searchsorted(np.sort(end), edges[:-1], "right")
    missing = [module for module, pieces in enumerate(modules) if not pieces]
    n_complete = int(np.diff(edges)[n_there == len(modules) - len(missing)].sum())
    faults = {"missing_modules": missing, "incomplete_frames": n_frames - n_complete}
    return {name: value for name, value in faults.items() if value}


TOLD = {
    "missing_modules": "modules {} are missing",
    "incomplete_frames": "{} frames lack further modules",
    "duplicate_frames": "{} frames have the trainId and pulseId of an earlier one",
    "suspect_frames": "{} frames are of trains flagged as suspect",
    "unordered_trains": "{} trains come after a later one",
    "lost_rows": "{} rows of a module are in the index and not in the data",
    "other_cells": "{} frames have another cellId in another module",
    "odd_masks": "{} masks are not used: they lead nowhere, or have another shape or no integers",
    "unreadable_files": "not read: {}",
}
"""What faults are, in words."""


def tell_faults(faults: dict[str, Any]) -> str:
    """Say what is missing or odd to a person.

    Parameters
    ----------
    faults : dict
        As in `Layout`.

    Returns
    -------
    str
        One line, empty where nothing is.

    Examples
    --------
    >>> tell_faults({"missing_modules": [3, 7], "suspect_frames": 64})
    'modules 3, 7 are missing; 64 frames are of trains flagged as suspect'
    """
    words = {
        name: ", ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in faults.items()
    }
    return "; ".join(TOLD[name].format(words[name]) for name in TOLD if name in words)


def _split(rows: slice, height: int) -> Iterator[tuple[int, slice]]:
    """Cut a stretch of rows of stacked modules at the modules' edges."""
    for module in range(rows.start // height, -(-rows.stop // height)):
        top = module * height
        yield module, slice(max(rows.start - top, 0), min(rows.stop - top, height))

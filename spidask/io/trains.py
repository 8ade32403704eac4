"""The rows of a detector's modules, matched into frames by trainId and pulseId."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spidask.errors import DataError
from spidask.io.arrays import find_array
from spidask.io.hdf5 import refuse_missing_filters
from spidask.io.links import has_link
from spidask.io.modules import Piece, fits_mask

IDS = ("trainId", "pulseId", "cellId")
KEYS = (("image", "data", "pulseId", "cellId"), ("data", "adc", "memoryCell", "memoryCell"))
"""Of AGIPD, DSSC and LPD, and of JUNGFRAU: group of a source, and in it frames, pulses, cells."""
MOST_ROWS = 10_000_000
"""Of a module in one file; the largest ones of the facility hold a seventh of it."""

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a module in one file: whose frame each is, and where it lies.

    Attributes
    ----------
    path, data, mask : str
        The file, and the paths of data and mask in it; no mask is empty.
    shape : tuple of int
        Of the data.
    dtype : numpy.dtype
        Of the data.
    ids : dict of str to numpy.ndarray
        Event ids, each of shape (row,), int64.
    suspect : numpy.ndarray
        True for rows of suspect trains, shape (row,), bool.
    row : numpy.ndarray
        Where the row is in the data, shape (row,), int64.
    trains : numpy.ndarray
        Trains with rows, in the file's order, shape (train,), int64.
    lost : int
        Rows that the index has and the data has not.
    odd_mask : bool
        A mask is there that is not used: it has another shape than the data, or leads nowhere.
    cells : int
        Frames in each row of the file, see `modules.Piece`; the other attributes are those of an
        array with one frame a row.
    """

    path: str
    data: str
    mask: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    ids: dict[str, Int64]
    suspect: NDArray[np.bool_]
    row: Int64
    trains: Int64
    lost: int
    odd_mask: bool
    cells: int


def read_rows(file: Any, source: str) -> Rows:
    """Read whose frames the rows of a file are.

    Parameters
    ----------
    file : extra_data.file_access.FileAccess
        The file.
    source : str
        Source of the module.

    Returns
    -------
    Rows
        What its index and its ids say; no frame is read. JUNGFRAU has the cells of a train in one
        row, and no pulseId: the memory cell stands for it, as in extra-data's virtual CXI.

    Raises
    ------
    DataError
        If the index names rows twice, or the data is no numbers.
    """
    place, name, pulse, cell = next(k for k in KEYS if f"INSTRUMENT/{source}/{k[0]}" in file.file)
    path = f"INSTRUMENT/{source}/{place}"
    group = file.file[path]
    data = _find(group, name)
    refuse_missing_filters(data)
    first, count = (np.asarray(a, np.int64) for a in file.get_index(source, place))
    there = np.clip(data.shape[0] - first, 0, count)
    if data.dtype.kind not in "iuf" or there.sum() > min(data.shape[0], MOST_ROWS):
        raise DataError(f"{there.sum()} rows of {data.shape[0]} in its index, of {data.dtype}")
    row = np.repeat(first - np.cumsum(there) + there, there) + np.arange(there.sum())
    train = np.asarray(file.train_ids, np.int64)
    end = int(row.max(initial=-1)) + 1
    cells = data.shape[1] if name == "adc" and data.ndim == 4 else 1
    row = (row[:, None] * cells + np.arange(cells)).ravel()
    named = {"pulseId": pulse, "cellId": cell}
    columns = {n: np.asarray(_find(group, p)[:end], np.int64) for n, p in named.items()}
    ids = {n: values.reshape(-1)[row] for n, values in columns.items()}
    mask = find_array(group, "mask")
    use_mask = mask is not None and fits_mask(mask, data)
    return Rows(
        file.filename,
        f"{path}/{name}",
        f"{path}/mask" if use_mask else "",
        data.shape if cells == 1 else (data.shape[0] * cells, *data.shape[2:]),
        data.dtype,
        {"trainId": np.repeat(train, there * cells), **ids},
        np.repeat(~np.asarray(file.validity_flag, bool), there * cells),
        row,
        train[count > 0],
        int((count - there).sum()) * cells,
        not use_mask and has_link(group, "mask"),
        cells,
    )


def _find(group: Any, name: str) -> Any:
    array = find_array(group, name)
    if array is None:
        raise DataError(f"has no array '{group.name}/{name}'")
    return array


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of a module in all files.

    Attributes
    ----------
    files : list of Rows
        The files.
    ids : dict of str to numpy.ndarray
        Event ids, each of shape (row,), int64.
    suspect : numpy.ndarray
        True for rows of suspect trains, shape (row,), bool.
    file, row : numpy.ndarray
        Number of the row's file, and where it is in its data, both of shape (row,), int64.
    unordered : int
        Trains that come after a later one.
    """

    files: list[Rows]
    ids: dict[str, Int64]
    suspect: NDArray[np.bool_]
    file: Int64
    row: Int64
    unordered: int


def join_rows(files: list[Rows], like: Table | None = None) -> Table:
    """Join the rows of a module's files.

    Parameters
    ----------
    files : list of Rows
        In the order of their names.
    like : Table, optional
        Another module, which nearly always has the same ids: these are then kept once.

    Returns
    -------
    Table
        All rows.
    """
    ids = {name: np.concatenate([rows.ids[name] for rows in files]) for name in IDS}
    if like and all(np.array_equal(ids[name], like.ids[name]) for name in IDS):
        ids = like.ids
    nothing = np.empty(0, np.int64)
    return Table(
        [replace(rows, ids={}, suspect=nothing > 0, row=nothing, trains=nothing) for rows in files],
        ids,
        np.concatenate([rows.suspect for rows in files]),
        np.repeat(np.arange(len(files)), [len(rows.row) for rows in files]),
        np.concatenate([rows.row for rows in files]),
        int((np.diff(np.concatenate([rows.trains for rows in files])) < 0).sum()),
    )


def match(
    tables: dict[int, Table],
) -> tuple[dict[int, Int64], dict[str, Int64], dict[str, Any]]:
    """Number the frames of all modules.

    Parameters
    ----------
    tables : dict of int to Table
        Number of the module to its rows.

    Returns
    -------
    places : dict of int to numpy.ndarray
        Number of the module to the frame of each of its rows, shape (row,), int64.
    ids : dict of str to numpy.ndarray
        Event ids, each of shape (frame,), int64.
    faults : dict
        How many frames are duplicate or suspect, and so on, see `modules.TOLD`.
    """
    keys: dict[int, Int64] = {}
    known: list[Int64] = []
    first = next(iter(tables.values()))
    for module, table in tables.items():
        # Modules nearly always have the same frames, which are then sorted once.
        if keys and table.ids is first.ids:
            keys[module] = known[0]
            continue
        key = np.stack([table.ids["trainId"], _repetitions(table), table.ids["pulseId"]])
        same = next((k for k in known if np.array_equal(k, key)), None)
        if same is None:
            known.append(key)
        keys[module] = key if same is None else same
    every, inverse = _unique(np.concatenate(known, axis=1))
    starts = np.cumsum([0, *(key.shape[1] for key in known)])
    numbers = {
        id(key): inverse[a : a + key.shape[1]] for key, a in zip(known, starts, strict=False)
    }
    places = {module: np.asarray(numbers[id(key)], np.int64) for module, key in keys.items()}
    n_frames = every.shape[1]
    cells, suspect = np.full(n_frames, -1), np.zeros(n_frames, bool)
    other = np.zeros(n_frames, bool)
    for module, table in tables.items():
        at, cell = places[module], table.ids["cellId"]
        other[at] |= (cells[at] >= 0) & (cells[at] != cell)
        cells[at] = np.where(cells[at] < 0, cell, cells[at])
        suspect[at] |= table.suspect
    ids = {"trainId": every[0], "pulseId": every[2], "cellId": cells}
    faults = {
        "duplicate_frames": int((every[1] > 0).sum()),
        "suspect_frames": int(suspect.sum()),
        "unordered_trains": max(table.unordered for table in tables.values()),
        "other_cells": int(other.sum()),
    }
    return places, ids, faults


def _unique(keys: Int64) -> tuple[Int64, Int64]:
    """Columns in their order, each once, and where each of the given ones is among them."""
    order = np.lexsort(keys[::-1])
    ordered = keys[:, order]
    new = np.append(True, (np.diff(ordered, axis=1) != 0).any(axis=0))
    inverse = np.empty(len(order), np.int64)
    inverse[order] = np.cumsum(new) - 1
    return ordered[:, new], inverse


def _repetitions(table: Table) -> Int64:
    """Count how often the same train and pulse came before each row."""
    order = np.lexsort((table.ids["pulseId"], table.ids["trainId"]))
    train, pulse = table.ids["trainId"][order], table.ids["pulseId"][order]
    new = np.append(True, (np.diff(train) != 0) | (np.diff(pulse) != 0))[: len(order)]
    start = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    count = np.empty(len(order), np.int64)
    count[order] = np.arange(len(order)) - start
    return count


def pieces(table: Table, places: Int64) -> Iterator[Piece]:
    """Join the rows of a module that follow each other.

    Parameters
    ----------
    table : Table
        The module.
    places : numpy.ndarray
        The frame of each of its rows, shape (row,), int64.

    Yields
    ------
    Piece
        Frames in order.
    """
    order = np.argsort(places, kind="stable")
    frame, file, row = places[order], table.file[order], table.row[order]
    breaks = (np.diff(frame) != 1) | (np.diff(file) != 0) | (np.diff(row) != 1)
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(order)]
    for a, b in pairwise(edges):
        rows = table.files[int(file[a])]
        lead = (0,) * (len(rows.shape) - 3)
        place = (rows.path, int(row[a]), rows.data, lead, rows.mask, rows.cells)
        yield Piece(int(frame[a]), b - a, *place)

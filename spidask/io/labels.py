"""What people say the frames are: tables of labels, and where their frames stand in a Dataset."""

from __future__ import annotations

import glob
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from spidask.config import Labels
from spidask.errors import DataError
from spidask.io import label_sources
from spidask.io.maps import split_location
from spidask.io.text_tables import read_text_table, whole_numbers

IDENTITIES = (
    ("run", "index"),
    ("trainId", "pulseId"),
    ("run", "eventNumber"),
    ("timestamp", "fiducial"),
    ("timestamp",),
)
"""Columns that name a frame, in the order in which they are looked for."""
PLAIN = Labels()
"""Classes by their names alone."""
BOX = ("x_min", "y_min", "x_max", "y_max")
"""Columns of the box around a pattern's signal, in pixels of the full frame, edges counted from
the first pixel's outer edge; empty where nobody drew one."""


def read_labels(source: str | Path, settings: Labels = PLAIN) -> pd.DataFrame:
    """Read labels of frames from one file or several, in any of the forms that are known.

    Parameters
    ----------
    source : str or pathlib.Path
        A path, or a glob of several files of one form: CSV of ``run,index,label`` (or of event
        ids and label) or of ``exp,run,event_num,label``; Dragonfly's text of one letter a frame;
        a CXI file with tags; ``file.h5:dataset``, codes of HDF5 small data; a selection, as an
        output folder or its ``selection.csv``.
    settings : Labels
        The section `labels`: what letters, codes and tags mean, and the run that they are of.

    Returns
    -------
    pandas.DataFrame
        A row for each label, in the order of the files: the columns that name the frame
        (``run, index``, or ``trainId, pulseId``, or ``run, eventNumber``, or ``timestamp`` with
        ``fiducial`` where the file has it), run as text and numbers as int64, and ``label``, a
        name in
        `schema.CLASSES`; where the file has them, the columns `BOX`, float64, pixels, NaN where
        empty. Further columns are left out.

    Raises
    ------
    DataError
        If no file is there, a column is missing, a label is no known class, a number is no
        whole number, a box is none, or a frame is labelled twice; names the file and the line.

    Notes
    -----
    Of a selection, the selected frames are single hits and those that the networks rejected
    (``not_single``) multiple ones, which stands for all others; misses, unreadable frames and
    those of another size have no label.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "labels.csv"
    >>> _ = path.write_text("run,index,label,note\\nr0101,7,single,nice\\n")
    >>> read_labels(path).values.tolist()
    [['r0101', 7, 'single']]
    """
    paths = _find(str(source))
    tables = [_read_one(path, settings) for path in paths]
    identity = _identity(tables[0].columns)
    for path, table in zip(paths, tables, strict=True):
        if list(table.columns) != list(tables[0].columns):
            raise DataError(
                f"{path}: has other columns than {paths[0]} ({', '.join(tables[0].columns)}); "
                "give files of one form",
                path=path,
            )
    labels = pd.concat(tables, ignore_index=True)
    _refuse_duplicates(labels, identity, paths, tables)
    labels.attrs = {}
    return labels


def _find(source: str) -> list[str]:
    paths = [source] if Path(source).exists() else sorted(glob.glob(source))
    file, dataset = split_location(source)
    if not paths and dataset:
        files = [file] if Path(file).is_file() else sorted(glob.glob(file))
        paths = [f"{path}:{dataset}" for path in files]
    if not paths:
        raise DataError(f"{source}: no such labels; give a path or a glob", path=source)
    return paths


def drop_unreadable(labels: pd.DataFrame, frames: xr.Dataset) -> tuple[pd.DataFrame, int]:
    """Leave out the labels of runs of which no file can be read.

    Parameters
    ----------
    labels : pandas.DataFrame
        Rows as of `read_labels`.
    frames : xarray.Dataset
        As of `open_runs`, which lists such runs.

    Returns
    -------
    labels : pandas.DataFrame
        The rows that remain.
    n_dropped : int
        How many were left out.
    """
    if "run" not in labels:
        return labels, 0
    gone = labels["run"].isin(frames.attrs.get("unreadable_runs", []))
    return labels[~gone].reset_index(drop=True), int(gone.sum())


def relative_boxes(
    labels: pd.DataFrame, corner: tuple[int, int], shape: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Read the boxes that a table of labels gives.

    Parameters
    ----------
    labels : pandas.DataFrame
        Rows as of `read_labels`.
    corner : tuple of int
        First row and column of the region, in pixels of the full frame.
    shape : tuple of int
        Rows and columns of the region.

    Returns
    -------
    numpy.ndarray
        Shape (row, 4), float32: centre x, centre y, width and height, relative to the region and
        cut at its edges; NaN where the table has none.

    Raises
    ------
    DataError
        If a box lies outside of the region; names the frame.
    """
    if not set(BOX) <= set(labels.columns):
        return np.full((len(labels), 4), np.nan, np.float32)
    corners = labels[[*BOX]].to_numpy(float) - (corner[::-1] * 2)
    corners = np.clip(corners, 0, shape[::-1] * 2)  # NaN stays
    low, high = corners[:, :2], corners[:, 2:]
    outside = labels[(low == high).any(1)]
    if len(outside):
        identity, row = [*_identity(labels.columns)], outside.iloc[0]
        named = " ".join(f"{name} {row[name]}" for name in identity)
        x_min, y_min, x_max, y_max = (f"{row[name]:g}" for name in BOX)
        raise DataError(
            f"{named}: the box from x {x_min}, y {y_min} to x {x_max}, y {y_max} lies outside of "
            f"the region, x {corner[1]} to {corner[1] + shape[1]}, y {corner[0]} to "
            f"{corner[0] + shape[0]} ({len(outside)} such rows); give pixels of the full frame",
            n_outside=len(outside),
        )
    boxes = np.concatenate([(low + high) / 2, high - low], 1) / (shape[::-1] * 2)
    return np.asarray(boxes, np.float32)


def locate(labels: pd.DataFrame, frames: xr.Dataset) -> npt.NDArray[np.int64]:
    """Find the frames that rows of a table name.

    Parameters
    ----------
    labels : pandas.DataFrame
        Rows as of `read_labels`; only the columns that name the frame are used.
    frames : xarray.Dataset
        Dataset with ``run``, ``index`` (frame,) and ``run_name`` (run_code,), and with the
        event ids that the table uses. Nothing lazy in it is computed.

    Returns
    -------
    numpy.ndarray
        Position along `frame` for each row of the table, shape (row,), int64.

    Raises
    ------
    DataError
        If the Dataset lacks the ids, a row matches no frame (the first ones are named and all
        are counted), or an event id stands for several frames.
    """
    if "eventNumber" in labels and "eventNumber" not in frames.variables:
        # Events are counted from the run's first one.
        labels = labels.rename(columns={"eventNumber": "index"})
    identity = list(_identity(labels.columns))
    missing = [name for name in identity if name not in frames.variables]
    if missing:
        raise DataError(
            f"the table names frames by {', '.join(identity)}, but the runs have no {missing[0]}; "
            "give labels by run,index",
            missing=missing,
        )
    wanted = labels[identity].reset_index(drop=True)
    if "run" in identity:
        codes = {str(name): code for code, name in enumerate(frames["run_name"].values)}
        wanted["run"] = wanted["run"].astype(str).map(codes).fillna(-1).astype(np.int64)
    rows = _rows_of(wanted, frames, identity)
    lost = labels[rows < 0]
    if len(lost):
        first = "; ".join(" ".join(map(str, row)) for row in lost[identity].values[:3])
        raise DataError(
            f"{len(lost)} of {len(labels)} rows match no frame, the first by "
            f"{', '.join(identity)}: {first}; check runs.files and the table",
            n_unmatched=len(lost),
        )
    return rows


def _read_one(path: str, settings: Labels) -> pd.DataFrame:
    """Read one source; its index counts lines or frames, as ``attrs['unit']`` says."""
    if label_sources.is_selection(path):
        return label_sources.read_selection(path)
    if label_sources.is_hdf5(path):
        return label_sources.read_hdf5(path, settings)
    if label_sources.are_letters(path):
        return label_sources.read_letters(path, settings)
    return _read_csv(path, settings)


def _read_csv(path: str, settings: Labels) -> pd.DataFrame:
    table = read_text_table(path)
    if {"exp", "run", "event_num", "label"} <= set(table.columns):
        table = label_sources.name_events(table, path, settings)
    identity = _identity(table.columns, path)
    boxes = [name for name in BOX if name in table.columns]
    if boxes and len(boxes) < len(BOX):
        raise DataError(
            f"{path}: has {', '.join(boxes)} of the columns {', '.join(BOX)}; give all or none",
            path=path,
        )
    table = pd.DataFrame({name: table[name].str.strip() for name in (*identity, "label", *boxes)})
    table = table[(table != "").any(axis=1)]
    for name in identity:
        if name != "run":
            table[name] = whole_numbers(table[name], path)
    if boxes:
        table[boxes] = _read_boxes(table[boxes], path)
    return label_sources.translate(table, path, "line", settings.codes, "labels.codes")


def _identity(columns: pd.Index, path: str | None = None) -> tuple[str, ...]:
    found = [names for names in IDENTITIES if set(names) <= set(columns)]
    if found and (path is None or "label" in columns):
        return found[0]
    raise DataError(
        f"{path or 'the table'}: columns {', '.join(map(str, columns))}; expected "
        "run,index,label (or trainId,pulseId,label or timestamp,label, or exp,run,event_num,label)",
        path=path,
    )


def _read_boxes(columns: pd.DataFrame, path: str) -> pd.DataFrame:
    boxes = pd.DataFrame({k: pd.to_numeric(columns[k], errors="coerce") for k in BOX}, dtype=float)
    x_min, y_min, x_max, y_max = (boxes[name] for name in BOX)
    is_box = (x_min < x_max) & (y_min < y_max) & boxes.abs().max(axis=1).lt(np.inf)
    wrong = columns[~is_box & (columns != "").any(axis=1)]
    if len(wrong):
        line = int(wrong.index[0])
        raise DataError(
            f"{path}, line {line}: {', '.join(BOX)} {', '.join(wrong.iloc[0])} is no box; give "
            "two corners in pixels, or leave all four empty",
            path=path,
            line=line,
        )
    return boxes


def _refuse_duplicates(
    labels: pd.DataFrame, identity: tuple[str, ...], paths: list[str], tables: list[pd.DataFrame]
) -> None:
    again = np.flatnonzero(labels.duplicated(list(identity)))
    if len(again) == 0:
        return
    row = labels.loc[again[0], list(identity)]
    first = int(np.flatnonzero((labels[list(identity)] == row).all(axis=1))[0])
    named = " ".join(f"{name} {row[name]}" for name in identity)
    second = _place(again[0], paths, tables)
    raise DataError(
        f"{second}: {named} is labelled a second time, first in {_place(first, paths, tables)}; "
        f"keep one of them ({len(again)} such rows)",
        n_duplicates=len(again),
    )


def _place(row: int, paths: list[str], tables: list[pd.DataFrame]) -> str:
    for path, table in zip(paths, tables, strict=True):
        if row < len(table):
            return f"{path}, {table.attrs['unit']} {table.index[row]}"
        row -= len(table)
    raise IndexError(row)


def _rows_of(
    wanted: pd.DataFrame, frames: xr.Dataset, identity: list[str]
) -> npt.NDArray[np.int64]:
    # Most frames are ruled out by their rarest id alone, before anything is joined.
    candidates = np.flatnonzero(np.isin(frames[identity[-1]].values, wanted[identity[-1]]))
    there = pd.DataFrame({name: frames[name].values[candidates] for name in identity})
    there = there.astype(np.int64).assign(position=candidates)
    joined = wanted.merge(there, on=identity, how="left")
    if len(joined) != len(wanted):
        twice = joined[joined.duplicated(identity)].iloc[0]
        raise DataError(
            f"{', '.join(identity)} {' '.join(str(twice[n]) for n in identity)} stands for several "
            "frames of the runs; give labels by run,index",
        )
    return joined["position"].fillna(-1).to_numpy(np.int64)

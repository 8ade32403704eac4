"""Tables of frames: ``selection.csv``, the frames used in training, and sets of frames."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import xarray as xr

from spidask.errors import DataError
from spidask.schema import REASONS, validate

COLUMNS = ["run", "index", "selected", "reason", "score", "diameter_nm"]
TEXTS = ["source", "device", "note"]
COMPARED = [
    "source",
    "frames",
    "manual",
    "selected",
    "intersection",
    "iou",
    "accuracy",
    "precision",
    "recall",
    "f1",
    "average_precision",
    "contrast",
    "fringes",
    "in_first",
    "iou_with_first",
    "patterns_per_second",
    "n_parameters",
    "device",
    "note",
]
"""Columns of a comparison; see `comparison.compare`."""


def write_selection_csv(selection: xr.Dataset, path: str | Path) -> None:
    """Write a selection as text, a row for every frame.

    Parameters
    ----------
    selection : xarray.Dataset
        A selection with run, index, run_name, selected, reason, score and diameter.
    path : str or pathlib.Path
        File to write; it appears when it is complete.

    Raises
    ------
    DataError
        If a variable is missing.

    Notes
    -----
    Columns ``run,index,selected,reason,score,diameter_nm``: the run's name, the position in
    the run, 1 or 0, the reason's name (nothing for a selected frame), and two numbers that are
    left empty where there are none.
    """
    validate(selection, "run", "index", "run_name", "selected", "reason", "score", "diameter")
    names = pa.array(selection["run_name"].values.astype(str).tolist(), pa.string())
    columns = [
        pa.DictionaryArray.from_arrays(pa.array(selection["run"].values), names),
        pa.array(selection["index"].values),
        pa.array(selection["selected"].values.astype(np.uint8)),
        pa.DictionaryArray.from_arrays(pa.array(selection["reason"].values), pa.array(REASONS)),
        _numbers(selection["score"]),
        _numbers(selection["diameter"]),
    ]
    part = Path(f"{path}.part")
    # "needed" would put every text into quotes; they are needed for a strange run's name alone.
    strange = any(set(str(name)) & set('",\r\n') for name in selection["run_name"].values)
    options = pyarrow.csv.WriteOptions(
        include_header=False, quoting_style="needed" if strange else "none"
    )
    with open(part, "wb") as file:
        file.write(",".join(COLUMNS).encode() + b"\n")
        pyarrow.csv.write_csv(pa.table(columns, names=COLUMNS), file, options)
    os.replace(part, path)


def read_selection_csv(path: str | Path) -> pd.DataFrame:
    """Read a selection that was written as text.

    Parameters
    ----------
    path : str or pathlib.Path
        A file of `write_selection_csv`, or an output folder that holds ``selection.csv``.

    Returns
    -------
    pandas.DataFrame
        Columns run (category), index (int64), selected (bool), reason (category), score and
        diameter_nm (float32, NaN = none).

    Raises
    ------
    DataError
        If there is no such file, or it is no selection.
    """
    path = _selection_file(path)
    names = pa.dictionary(pa.int32(), pa.string())
    kinds = {"run": names, "index": pa.int64(), "selected": pa.uint8(), "reason": names}
    kinds |= {"score": pa.float32(), "diameter_nm": pa.float32()}
    options = pyarrow.csv.ConvertOptions(
        column_types=kinds, include_columns=COLUMNS, strings_can_be_null=False
    )
    try:
        table: pd.DataFrame = pyarrow.csv.read_csv(path, convert_options=options).to_pandas()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}", path=str(path)) from None
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"{path}: is no selection: {' '.join(str(error).split())}; expected the columns "
            f"{','.join(COLUMNS)}",
            path=str(path),
        ) from None
    for name in ("index", "selected"):
        empty = np.flatnonzero(table[name].isna())
        if len(empty):
            raise DataError(
                f"{path}, line {empty[0] + 2}: is no selection: {name} is empty; correct it",
                path=str(path),
            )
    return table.assign(selected=table["selected"].astype(bool))


def read_trained_frames(source: str | Path) -> dict[str, list[int]]:
    """List the frames that the members of an output folder have seen in training.

    Parameters
    ----------
    source : str or pathlib.Path
        An output folder or the ``selection.csv`` in it.

    Returns
    -------
    dict
        Run name to positions in the run; nothing where the folder has no
        ``members/training.json``.

    Raises
    ------
    DataError
        If that file is not what training writes.
    """
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    path = folder / "members" / "training.json"
    if not path.exists():
        return {}
    try:
        frames = json.loads(path.read_text())["frames"]
        return {str(run): [int(i) for i in indices] for run, indices in frames.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path}: holds no 'frames' of run names and positions; train anew", path=str(path)
        ) from None


def write_comparison_csv(comparison: pd.DataFrame, path: str | Path) -> None:
    """Write a comparison of selections as text.

    Parameters
    ----------
    comparison : pandas.DataFrame
        What `comparison.compare` gives.
    path : str or pathlib.Path
        File to write; it appears when it is complete.
    """
    part = Path(f"{path}.part")
    comparison.to_csv(part)
    os.replace(part, path)


def read_comparison_csv(path: str | Path) -> pd.DataFrame:
    """Read a comparison of selections that was written as text.

    Parameters
    ----------
    path : str or pathlib.Path
        A file of `write_comparison_csv`.

    Returns
    -------
    pandas.DataFrame
        The rows; texts that are not there are empty, numbers NaN.

    Raises
    ------
    DataError
        If it is no such file; names a column that it lacks.
    """
    try:
        table = pd.read_csv(path, index_col="name", dtype=dict.fromkeys(TEXTS, str))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is no comparison: {' '.join(str(error).split())}") from None
    for name in COMPARED:
        if name not in table:
            raise DataError(
                f"{path}: is no comparison, it has no column '{name}'; write it with "
                "`spidask compare ... --save`",
                path=str(path),
            )
    return table.fillna(dict.fromkeys(TEXTS, ""))


def frame_table(frames: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Turn positions by run into a table of frames.

    Parameters
    ----------
    frames : mapping of str to sequence of int
        Run name to positions in the run.

    Returns
    -------
    pandas.DataFrame
        Columns run (text) and index (int64).

    Examples
    --------
    >>> frame_table({"r0101": [3, 5]}).values.tolist()
    [['r0101', 3], ['r0101', 5]]
    """
    runs = [run for run, indices in frames.items() for _ in indices]
    indices = [index for run in frames for index in frames[run]]
    return pd.DataFrame({"run": pd.array(runs, "str"), "index": np.array(indices, np.int64)})


def is_in(frames: pd.DataFrame, others: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Tell which frames of one set are in another.

    Parameters
    ----------
    frames : pandas.DataFrame
        Columns run and index.
    others : pandas.DataFrame
        Columns run and index.

    Returns
    -------
    numpy.ndarray
        For each row of `frames`, shape (row,), bool.

    Examples
    --------
    >>> a = pd.DataFrame({"run": ["r1", "r1", "r2"], "index": [0, 1, 0]})
    >>> b = pd.DataFrame({"run": ["r2", "r1"], "index": [0, 1]})
    >>> is_in(a, b).tolist()
    [False, True, True]
    """
    return find_rows(frames, others) >= 0


def find_rows(frames: pd.DataFrame, table: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Find where the frames of one table stand in another.

    Parameters
    ----------
    frames : pandas.DataFrame
        Columns run and index.
    table : pandas.DataFrame
        Columns run and index, no frame twice.

    Returns
    -------
    numpy.ndarray
        Row of `table` for each row of `frames`, -1 where it has none, shape (row,), int64.

    Examples
    --------
    >>> a = pd.DataFrame({"run": ["r1", "r1", "r2"], "index": [0, 1, 0]})
    >>> b = pd.DataFrame({"run": ["r2", "r1"], "index": [0, 1]})
    >>> find_rows(a, b).tolist()
    [-1, 1, 0]
    """
    runs = pd.Index(table["run"].unique().astype(str))
    # One number for each frame; runs that the table lacks get -1 and match nothing.
    code, known = _codes(frames["run"], runs), _codes(table["run"], runs)
    index, span = frames["index"].to_numpy(np.int64), int(table["index"].max() if len(table) else 0)
    wanted = np.where((code >= 0) & (index <= span), code * (span + 1) + index, -1)
    keys = known * (span + 1) + table["index"].to_numpy(np.int64)
    order = np.argsort(keys, kind="stable")
    place = np.searchsorted(keys, wanted, sorter=order)
    rows = np.append(order, -1)[place]
    return np.where(np.append(keys, -1)[rows] == wanted, rows, -1)


def _codes(column: pd.Series[Any], runs: pd.Index[Any]) -> npt.NDArray[np.int64]:
    # A category column of 10^7 rows is looked up once for each run, not for each row.
    column = column.astype("category")
    lookup = runs.get_indexer(column.cat.categories.astype(str))
    return np.append(lookup, -1)[column.cat.codes.to_numpy()].astype(np.int64)


def _numbers(values: xr.DataArray) -> pa.Array[Any]:
    # from_pandas turns NaN into null, which the CSV shows as nothing.
    return pa.array(values.values.astype(np.float32), from_pandas=True)


def _selection_file(source: str | Path) -> Path:
    path = Path(source)
    if path.is_dir():
        path = path / "selection.csv"
    if not path.is_file():
        raise DataError(
            f"{path}: no such selection; give an output folder or its selection.csv",
            path=str(path),
        )
    return path

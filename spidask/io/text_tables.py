"""CSV tables that people write, read as text first so that a mistake is told with its line."""

from __future__ import annotations

import numpy as np
import pandas as pd

from spidask.errors import DataError


def read_text_table(path: str) -> pd.DataFrame:
    """Read a CSV table as it stands there.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    pandas.DataFrame
        Text, empty where nothing stands; its index counts the lines.

    Raises
    ------
    DataError
        If it is no table, or a row has more fields than the header.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: is no CSV table: {' '.join(str(error).split())}; correct it", path=path
        ) from None
    if not isinstance(table.index, pd.RangeIndex):
        # pandas takes what the header does not name for an index, and shifts the columns.
        raise DataError(f"{path}: a row has more fields than the header; correct it", path=path)
    table.index += 2
    table.columns = [str(name).strip() for name in table.columns]
    return table


def whole_numbers(column: pd.Series[str], path: str) -> pd.Series[int]:
    """Read whole numbers, or say in which line there is none.

    Parameters
    ----------
    column : pandas.Series
        Text; the index counts the lines.
    path : str
        The file, for the message.

    Returns
    -------
    pandas.Series
        The same as int64.

    Raises
    ------
    DataError
        If one is no whole number from 0 on.
    """
    largest = str(np.iinfo(np.int64).max)
    fits = column.str.fullmatch(r"[0-9]{1,19}") & (column.str.zfill(19) <= largest)
    wrong = column[~fits]
    if len(wrong):
        line = wrong.index[0]
        raise DataError(
            f"{path}, line {line}: {column.name} '{wrong.iloc[0]}' is no whole number from 0 on",
            path=path,
            line=int(line),
        )
    return column.astype(np.int64)

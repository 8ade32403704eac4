"""A comparison as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

HEADS = {
    "selected": "selected",
    "intersection": "in manual",
    "iou": "IoU",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "average_precision": "av. prec.",
    "contrast": "contrast",
    "iou_with_first": "IoU 1st",
    "patterns_per_second": "patterns/s",
    "n_parameters": "parameters",
    "device": "device",
}
"""Columns of a comparison that a terminal shows, those without any number left out."""


def format_comparison(table: pd.DataFrame) -> str:
    """Lay a comparison out for a terminal.

    Parameters
    ----------
    table : pandas.DataFrame
        As of `compare`.

    Returns
    -------
    str
        What was judged, a line for each row, measured before published, and the notes.
    """
    measured = table["source"] == "measured"
    first = table.iloc[0]
    manual = "" if pd.isna(first["manual"]) else f", {first['manual']} of them single hits"
    out = [f"{first['frames']} frames{manual}; {_in_words(table.attrs)}"]
    cells = table[list(HEADS)].rename(columns=HEADS).map(_in_cell)
    cells = cells.loc[:, (cells != "").any()]
    head, *lines = cells.rename_axis(None).to_string().splitlines()
    out.append(head)
    for line, is_measured, before in zip(lines, measured, [True, *measured], strict=False):
        if before and not is_measured:
            out.append("published by Ignatenko et al. 2021, on other frames; F1 from their counts:")
        out.append(line)
    if table["fringes"].notna().any():
        out.append(f"contrast: of the innermost fringes, {table['fringes'].max()} of them")
    for note, rows in table[table["note"] != ""].groupby("note", sort=False):
        out.append(f"{', '.join(map(str, rows.index))}: {note}")
    return "\n".join(out)


def _in_cell(value: Any) -> str:
    if isinstance(value, float) and not pd.isna(value):
        return f"{value:.3f}" if value <= 1 else f"{value:.4g}"
    return "" if pd.isna(value) else str(value)


def _in_words(facts: Mapping[Any, int]) -> str:
    return "; ".join(f"{str(key).replace('_', ' ')}: {value}" for key, value in facts.items())

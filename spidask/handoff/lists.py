"""The selected frames as lists: by run and index, and by event ids."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from spidask.handoff.photons import list_frames
from spidask.io.stack import MISSING_ID

EVENTS = (("timestamp", "fiducial"), ("timestamp",), ("trainId", "pulseId"))
"""Event ids by which frames are listed, those that the runs have."""


def write_lists(chosen: xr.Dataset, out: Path) -> None:
    """Write the lists of the selected frames.

    Parameters
    ----------
    chosen : xarray.Dataset
        The selected frames: run, index, run_name and event ids.
    out : pathlib.Path
        Output folder.

    Notes
    -----
    ``selected.csv`` holds all of them with all ids. ``lists/r0001.txt`` holds ``run index`` of one
    run, and ``lists/r0001_events.txt`` ``timestamp fiducial`` (LCLS) or ``trainId pulseId``
    (European XFEL), without a head, for programs that take such lists. Frames without ids are in
    the former alone.
    """
    table = list_frames(chosen)
    table.to_csv(out / "selected.csv", index=False)
    # Written beside and exchanged, so that no list of a selection before is left.
    part = out / "lists.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for run, rows in table.groupby("run", sort=False):
        _write(rows[["run", "index"]], part / f"{run}.txt")
        for names in EVENTS:
            if set(names) <= set(rows.columns):
                known = rows[(rows[list(names)] != MISSING_ID).all(axis=1)]
                if len(known):
                    _write(known[list(names)], part / f"{run}_events.txt")
                    break
    shutil.rmtree(out / "lists", ignore_errors=True)
    os.replace(part, out / "lists")


def _write(rows: pd.DataFrame, path: Path) -> None:
    np.savetxt(path, rows.to_numpy(object), fmt="%s")

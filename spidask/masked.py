"""Which pixels the runs of a beamtime never have."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from spidask.config import Config
from spidask.io.runs import take_frames
from spidask.preprocessing import preprocess

FRAMES_OF_RUN = 8
"""Frames of a run in all of which a pixel is missing before it counts as masked."""


def find_masked(
    frames: xr.Dataset, rows: npt.NDArray[np.integer[Any]], config: Config
) -> tuple[npt.NDArray[np.bool_], tuple[int, int]]:
    """Find the pixels that some run never has.

    Parameters
    ----------
    frames : xarray.Dataset
        What `open_runs` gives.
    rows : numpy.ndarray
        Positions along ``frame`` of the frames that count, shape (row,), integers.
    config : Config
        What preprocessing needs.

    Returns
    -------
    masked : numpy.ndarray
        True for pixels that calibration masks in any run, or that are NaN in the first
        `FRAMES_OF_RUN` of its frames, as where a mask lies in the files; shape (y, x) of the
        region, bool.
    corner : tuple of int
        First row and column of the region, in pixels of the full frame.
    """
    rows = np.asarray(rows if len(rows) else [0], np.int64)
    run = frames["run"].values[rows]
    some = np.concatenate([np.flatnonzero(run == code)[:FRAMES_OF_RUN] for code in np.unique(run)])
    empty = take_frames(frames, rows[some])
    raw = empty["frames"].data
    # What calibration makes of frames without any signal shows what it masks.
    nothing = raw * 0 if raw.dtype.kind == "f" else da.zeros_like(raw)
    empty = empty.assign(frames=empty["frames"].copy(data=nothing))
    patterns = preprocess(empty, config)["patterns"]
    missing = np.isnan(patterns.data.compute(scheduler="threads"))
    masked = [missing[run[some] == code].all(axis=0) for code in np.unique(run)]
    return np.any(masked, axis=0), (int(patterns["y"][0]), int(patterns["x"][0]))

"""The hit finder by rule, taken for a classifier: what it calls a hit of the right size."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from spidask.baselines.hits import Result, find_hits, read_patterns
from spidask.config import Config, Hits
from spidask.frames.hits import adaptive_threshold, count_photons, hit_score
from spidask.io.store import gather_labels


def list_settings(config: Config) -> dict[str, Any]:
    """List the settings on which the result depends.

    Parameters
    ----------
    config : Config
        The beamtime.

    Returns
    -------
    dict
        The key's path to its value.
    """
    return {
        "hits.window": config.hits.window,
        "hits.n_sigma": config.hits.n_sigma,
        "selection.size_window_nm": list(config.selection.size_window_nm),
    }


def classify(output: str | Path, config: Config) -> Result:
    """Judge all frames of an output folder by the adaptive threshold.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder of a run that was exported.
    config : Config
        Section `hits`; its threshold is not used.

    Returns
    -------
    Result
        Of every readable frame. No label is seen and nothing is learned. The time is that of
        counting the lit pixels of the hits and of comparing them with the threshold.

    Notes
    -----
    Source: hit finder of the European XFEL, extra-redu 1.1.0; see `spidask.frames.hits`. It was
    made to tell hits from misses, and knows nothing of single hits.
    """
    labels = gather_labels(Path(output) / "labels.zarr")
    start = time.perf_counter()
    verdicts = judge_frames(labels, config.hits)
    per_frame = (time.perf_counter() - start) / max(labels.sizes["frame"], 1)
    none = pd.DataFrame({"run": [], "index": []})
    speed = 1 / (per_frame + _time_counting(output, config.hits))
    return Result("hit finder by rule", verdicts, none, 0, speed)


def judge_frames(labels: xr.Dataset, settings: Hits) -> pd.DataFrame:
    """Compare the hit scores of each run with its adaptive threshold.

    Parameters
    ----------
    labels : xarray.Dataset
        Labels of all frames in memory, as `gather_labels` gives them.
    settings : Hits
        Window and n_sigma.

    Returns
    -------
    pandas.DataFrame
        Columns run, index, score (hit score by threshold, minus 1; float32) and reason (nothing
        for a hit, else ``miss``), a row for each readable frame. A hit's score is above 0.
    """
    run, scores, lit = (labels[name].values for name in ("run", "hit_score", "lit_pixels"))
    threshold = np.empty(len(run), np.float32)
    for code in np.unique(run):
        rows = run == code
        threshold[rows] = adaptive_threshold(
            scores[rows], lit[rows], window=settings.window, n_sigma=settings.n_sigma
        )
    # Without a lit pixel the threshold may be 0 as well.
    margin = np.where(lit > 0, scores / np.where(lit > 0, threshold, 1) - 1, np.float32(-1))
    hit = (scores > threshold) & (lit > 0)
    table = pd.DataFrame(
        {
            "run": labels["run_name"].values.astype(str)[run],
            "index": labels["index"].values,
            "score": margin,
            "reason": np.where(hit, "", "miss"),
        }
    )
    return table[labels["readable"].values].reset_index(drop=True)


def _time_counting(output: str | Path, settings: Hits) -> float:
    """Measure the seconds per hit of counting lit pixels."""
    hits, seconds = find_hits(output), 0.0
    for block in read_patterns(output, hits):
        count_photons(block[:1], settings.lit_photons)  # compiled
        start = time.perf_counter()
        hit_score(count_photons(block, settings.lit_photons), block[0].size)
        seconds += time.perf_counter() - start
    return seconds / max(len(hits), 1)

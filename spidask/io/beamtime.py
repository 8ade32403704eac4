"""The runs of a config as one Dataset, and how well its event ids and energies hold together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from spidask.config import Config
from spidask.errors import ConfigError, DataError
from spidask.frames.geometry import energy_ratio
from spidask.io.layout import FileLayout
from spidask.io.maps import is_inside
from spidask.io.photons import find_shape
from spidask.io.runs import open_runs, select_run
from spidask.io.stack import MISSING_ID


def open_configured(config: Config, cache: Path | None = None) -> xr.Dataset:
    """Open the runs of a config; no frame is read.

    Parameters
    ----------
    config : Config
        Sections `runs`, `events` and `inference`.
    cache : pathlib.Path, optional
        As for `open_runs`.

    Returns
    -------
    xarray.Dataset
        As of `open_runs`.

    Raises
    ------
    ConfigError
        If files match nothing, events cannot be joined, or a detector file describes no
        rectangle.
    DataError
        If no file of frames can be read.
    """
    runs = config.runs
    mask = runs.mask[1:] if runs.mask and is_inside(runs.mask) else None
    layout = FileLayout(
        _find_shape(runs.shape), mask, runs.mask_good, runs.identity, runs.mask_bits
    )
    return open_runs(
        runs.files,
        runs.dataset,
        pattern=runs.pattern,
        frames_per_block=config.inference.frames_per_block,
        cache=cache,
        layout=layout,
        events=config.events,
    )


def _find_shape(shape: list[int] | str | None) -> tuple[int, int] | None:
    try:
        if isinstance(shape, str):
            return find_shape(shape)
        return (shape[0], shape[1]) if shape else None
    except DataError as error:
        raise ConfigError(f"runs.shape: {error}") from None


def judge_ids(frames: xr.Dataset, config: Config) -> dict[str, int]:
    """Count what is odd about event ids and energies; reads them, but no frame.

    Parameters
    ----------
    frames : xarray.Dataset
        From `open_configured`.
    config : Config
        The same config, for the photon energies that are expected.

    Returns
    -------
    dict
        Frames, where there are any: ``repeated_frames`` share run and index with another;
        ``repeated_ids`` share time stamp and fiducial, or train and pulse, with another of the
        run; ``unordered_ids`` have an earlier time stamp or train than the frame before;
        ``without_event`` and ``with_several_events`` found no event, or no single one, in the
        small data;
        ``without_photon_energy`` have none where others do, and ``implausible_photon_energy``
        one too far from the expected: for both the expected one is taken.
    """
    counts = {"repeated_frames": int(frames.attrs["repeated_frames"])}
    for name in map(str, frames["run_name"].values):
        run = select_run(frames, name)
        for key, n_frames in _judge_run(run, config.geometry_of(name).photon_energy_ev).items():
            counts[key] = counts.get(key, 0) + n_frames
    return {key: n_frames for key, n_frames in counts.items() if n_frames}


def _judge_run(run: xr.Dataset, photon_energy: float) -> dict[str, int]:
    counts = {}
    if "timestamp" in run.coords or "trainId" in run.coords:
        names = ["timestamp", "fiducial"] if "timestamp" in run.coords else ["trainId", "pulseId"]
        ids = np.stack([run[name].values for name in names if name in run.coords])
        known = ids[:, ids[0] != MISSING_ID]
        ordered = known[:, np.lexsort(known[::-1])]
        same = (np.diff(ordered) == 0).all(axis=0)
        counts["repeated_ids"] = int((np.append(same, False) | np.append(False, same)).sum())
        counts["unordered_ids"] = int((np.diff(known[0]) < 0).sum())
    if "n_events" in run.coords:
        n_events = run["n_events"].values
        counts["without_event"] = int((n_events == 0).sum())
        counts["with_several_events"] = int((n_events > 1).sum())
    if "photon_energy" in run.coords:
        energy = run["photon_energy"].values
        missing = np.isnan(energy)
        # Only what was refused has the ratio 1 without being the expected energy.
        refused = (energy_ratio(energy, photon_energy) == 1) & (energy != photon_energy)
        counts["without_photon_energy"] = int(missing.sum())
        counts["implausible_photon_energy"] = int((refused & ~missing).sum())
    return counts

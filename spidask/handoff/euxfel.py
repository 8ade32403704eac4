"""The hits of European XFEL runs, as the facility's own hit finder lists them."""

from __future__ import annotations

import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import xarray as xr

from spidask.config import Config
from spidask.handoff.photons import frames_of_runs
from spidask.io.stack import MISSING_ID

FORMAT = "1.2"
"""Version of the facility's files that is written."""


def write_hit_lists(
    selection: xr.Dataset, misses: npt.NDArray[np.intp], config: Config, out: Path
) -> dict[str, int]:
    """Write which pulses are hits, for the runs that have trainId and pulseId.

    Parameters
    ----------
    selection : xarray.Dataset
        All classified frames as of `select`, in memory.
    misses : numpy.ndarray
        Positions of the misses whose mean is the background, shape (miss,).
    config : Config
        Section `handoff`: the detector's name.
    out : pathlib.Path
        Output folder; the lists of a selection before are removed.

    Returns
    -------
    dict
        ``listed`` frames, and ``without_ids``, frames of the same runs that have no trainId or
        pulseId. Nothing where no run has them.

    Notes
    -----
    Source: extra-redu 1.1.0 (`SpiHitfinder`, `exdf_save`), which writes the facility's own, and
    the file format at https://extra-data.readthedocs.io/en/latest/data_format.html.
    ``euxfel/r0052/CORR-R0052-REDU00-S00000.h5`` holds the source
    ``<detector>/REDU/SPI_HITFINDER:output`` with a row for each pulse under ``data``: ``trainId``,
    ``pulseId``, ``hitFlag`` (a hit), ``missFlag`` (a miss that was drawn for the background),
    ``dataFlag`` (one or the other) and ``hitscore``, by train and in the order of pulses. Besides,
    and not in the facility's own, ``selectedFlag``: the selection. The run's number is the one
    after an r in its name, else its place among the runs.
    """
    shutil.rmtree(out / "euxfel", ignore_errors=True)
    if not {"trainId", "pulseId"} <= set(selection.variables):
        return {}
    ids = np.stack([selection[name].values for name in ("trainId", "pulseId")])
    known = (ids != MISSING_ID).all(axis=0)
    counts = {"listed": 0, "without_ids": 0}
    selection = selection.assign(drawn=("frame", np.isin(np.arange(len(known)), misses)))
    part = out / "euxfel.part"
    shutil.rmtree(part, ignore_errors=True)
    names = selection["run_name"].values.astype(str).tolist()
    for code, (name, frames) in enumerate(zip(names, frames_of_runs(selection), strict=True)):
        listed = frames[known[frames]]
        if len(listed):
            _write_run(selection, listed, name, code, config.handoff.detector, part / name)
            counts["listed"] += len(listed)
            counts["without_ids"] += len(frames) - len(listed)
    if not counts["listed"]:
        return {}
    os.replace(part, out / "euxfel")
    return counts


def _write_run(
    selection: xr.Dataset,
    frames: npt.NDArray[np.intp],
    name: str,
    code: int,
    detector: str,
    folder: Path,
) -> None:
    train, pulse = (selection[i].values[frames].astype(np.uint64) for i in ("trainId", "pulseId"))
    frames = frames[np.lexsort((pulse, train))]
    trains, counts = np.unique(train, return_counts=True)
    found = re.search(r"[rR](\d+)", name)
    number = int(found[1]) if found else code
    source = f"{detector}/REDU/SPI_HITFINDER:output"
    folder.mkdir(parents=True)
    with h5py.File(folder / f"CORR-R{number:04d}-REDU00-S00000.h5", "w") as file:
        _write_metadata(file, number, source)
        index = {"timestamp": np.uint64(0), "flag": np.int32(1), "origin": np.int32(-1)}
        file["INDEX/trainId"] = trains
        for key, value in index.items():
            file[f"INDEX/{key}"] = np.full(len(trains), value)
        file[f"INDEX/{source}/data/first"] = (np.cumsum(counts) - counts).astype(np.uint64)
        file[f"INDEX/{source}/data/count"] = counts.astype(np.uint64)
        data = file.create_group(f"INSTRUMENT/{source}/data")
        for key, values in _columns(selection, frames).items():
            data[key] = values


def _columns(
    selection: xr.Dataset, frames: npt.NDArray[np.intp]
) -> dict[str, npt.NDArray[np.generic]]:
    hit, drawn = (selection[name].values[frames] for name in ("hit", "drawn"))
    columns = {
        "trainId": selection["trainId"].values[frames].astype(np.uint64),
        "pulseId": selection["pulseId"].values[frames].astype(np.uint64),
        "hitFlag": hit.astype(np.uint8),
        "missFlag": drawn.astype(np.uint8),
        "dataFlag": (hit | drawn).astype(np.uint8),
        "selectedFlag": selection["selected"].values[frames].astype(np.uint8),
    }
    if "hit_score" in selection:
        # Whole numbers, as there; a frame that cannot be read lights no pixel.
        score = np.nan_to_num(selection["hit_score"].values[frames])
        columns["hitscore"] = score.astype(np.int64)
    return columns


def _write_metadata(file: h5py.File, number: int, source: str) -> None:
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ").encode()
    sources = {
        "dataSourceId": f"INSTRUMENT/{source}/data".encode(),
        "deviceId": f"{source}/data".encode(),
        "root": b"INSTRUMENT",
    }
    values = {
        "creationDate": now,
        "updateDate": now,
        "daqLibrary": b"1.x",
        "karaboFramework": b"2.x",
        "dataFormatVersion": FORMAT.encode(),
        "proposalNumber": np.uint32(0),
        "runNumber": np.uint32(number),
        "sequenceNumber": np.uint32(0),
    } | {f"dataSources/{key}": value for key, value in sources.items()}
    for key, value in values.items():
        file[f"METADATA/{key}"] = [value]

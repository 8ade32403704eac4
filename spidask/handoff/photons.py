"""Photons of all hits in Dragonfly's files, written anew only where they changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import xarray as xr

from spidask.cluster import Pool, map_in_order
from spidask.config import Config
from spidask.errors import DataError
from spidask.handoff.layout import (
    Layout,
    common_geometry,
    detector_distance,
    find_layout,
    place_pixels,
    sum_squares,
)
from spidask.io import dragonfly, emc
from spidask.io.labels import locate
from spidask.io.runs import take_frames
from spidask.io.stack import EVENT_IDS
from spidask.preprocessing import preprocess

if TYPE_CHECKING:
    from distributed import Client

FRAMES_PER_TASK = 256


def is_hit(selection: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Tell which frames are handed over as photons.

    Parameters
    ----------
    selection : xarray.Dataset
        With readable and hit.

    Returns
    -------
    numpy.ndarray
        True for hits, shape (frame,), bool.
    """
    return np.asarray(selection["readable"].values & selection["hit"].values)


def list_frames(frames: xr.Dataset) -> pd.DataFrame:
    """Name frames by run, index and event ids.

    Parameters
    ----------
    frames : xarray.Dataset
        With run, index, run_name and whatever it has of event ids.

    Returns
    -------
    pandas.DataFrame
        A row for each frame: run (text), index, and the event ids, int64.
    """
    names = frames["run_name"].values.astype(str)[frames["run"].values]
    columns = {"run": names, "index": frames["index"].values}
    return pd.DataFrame(columns | {i: frames[i].values for i in EVENT_IDS if i in frames.variables})


def frames_of_runs(selection: xr.Dataset) -> list[npt.NDArray[np.intp]]:
    """Say where the frames of each run are.

    Parameters
    ----------
    selection : xarray.Dataset
        With run and run_name.

    Returns
    -------
    list of numpy.ndarray
        Positions of each run's frames in order, shape (frame,), for every name in run_name.
    """
    run = selection["run"].values
    order = np.argsort(run, kind="stable")
    edges = np.searchsorted(run[order], np.arange(1, selection.sizes["run_code"]))
    return np.split(order, edges)


def photons_are_current(selection: xr.Dataset, config: Config, out: str | Path) -> bool:
    """Tell whether the photons of these hits are written already.

    Parameters
    ----------
    selection : xarray.Dataset
        All classified frames as of `select`, in memory, with photon_count.
    config : Config
        The beamtime's settings.
    out : str or pathlib.Path
        Output folder.

    Returns
    -------
    bool
        True if ``dragonfly/photons.h5`` holds exactly these hits, photons and pixels.
    """
    folder = Path(out) / "dragonfly"
    try:
        with (
            h5py.File(folder / "photons.h5", "r") as photons,
            h5py.File(folder / "detector.h5", "r") as detector,
        ):
            found = photons.attrs["fingerprint"]
            # Where the two differ in length, Dragonfly only warns and reads beyond the end.
            fits = detector["mask"].size == photons["num_pix"][0]
    except (OSError, KeyError):
        return False
    if not fits or not (folder / "index.csv").exists():
        return False
    return bool(found == sign_frames(selection.isel(frame=is_hit(selection)), config))


def sign_frames(frames: xr.Dataset, config: Config) -> str:
    """Sign everything that determines the photons of some frames.

    Parameters
    ----------
    frames : xarray.Dataset
        With run, index, run_name and photon_count.
    config : Config
        The beamtime's settings.

    Returns
    -------
    str
        SHA-256; the photon counts stand for the raw data, the masks and the calibration files.
    """
    digest = hashlib.sha256()
    for name in ("run", "index", "photon_count"):
        digest.update(np.ascontiguousarray(frames[name].values).tobytes())
    names = frames["run_name"].values.astype(str)[np.unique(frames["run"].values)]
    settings = [
        [name, config.preprocessing_of(name).model_dump(), config.geometry_of(name).model_dump()]
        for name in names.tolist()
    ]
    digest.update(json.dumps([settings, config.handoff.bin]).encode())
    return digest.hexdigest()


def write_photons(
    hits: xr.Dataset,
    frames: xr.Dataset | None,
    config: Config,
    folder: Path,
    client: Client | None,
) -> None:
    """Write photons.h5, detector.h5 and index.csv.

    Parameters
    ----------
    hits : xarray.Dataset
        The hits of a selection.
    frames : xarray.Dataset or None
        The runs as of `open_runs`.
    config : Config
        The beamtime's settings.
    folder : pathlib.Path
        Where to write.
    client : distributed.Client or None
        Who reads and calibrates; this process without it.

    Raises
    ------
    DataError
        If there are no frames, or hits are not among them.
    """
    if frames is None:
        raise DataError(f"{folder}/photons.h5 does not hold these hits; give the runs' frames")
    table = list_frames(hits)
    rows = locate(table, frames)
    layout = find_layout(rows, frames, config)
    geometry = common_geometry(hits, config, layout)
    distance = detector_distance(geometry, layout)
    detector = dragonfly.make_detector(*place_pixels(geometry, layout), distance, layout.hidden)
    # Else the photons of before would vouch for files that are not theirs after a kill.
    for name in ("photons.h5", "photons.emc"):
        (folder / name).unlink(missing_ok=True)
    dragonfly.write_detector(folder / "detector.h5", detector)
    table.rename_axis("frame").to_csv(folder / "index.csv")
    tasks = (
        (take_frames(frames, rows[start : start + FRAMES_PER_TASK]), config, layout)
        for start in range(0, len(rows), FRAMES_PER_TASK)
    )
    attributes = {
        "fingerprint": sign_frames(hits, config),
        "corner": json.dumps(layout.corner),
        "shape": json.dumps(layout.hidden.shape),
        "bin": str(layout.bin),
    }
    n_tasks = -(-len(rows) // FRAMES_PER_TASK)
    pool = Pool(client, config.cluster, config.output) if client else None
    blocks = map_in_order(_photons_of, tasks, n_tasks, client, pool)
    # Written last: its fingerprint vouches for the files beside it.
    emc.write_photons(folder / "photons.h5", blocks, len(rows), layout.hidden.size, attributes)


def read_layout(folder: Path) -> Layout:
    """Read which pixels stand in photons.h5 and detector.h5.

    Parameters
    ----------
    folder : pathlib.Path
        Where they are.

    Returns
    -------
    Layout
        The one of `write_photons`.
    """
    with h5py.File(folder / "photons.h5", "r") as file:
        corner, shape = (json.loads(file.attrs[name]) for name in ("corner", "shape"))
        width = int(json.loads(file.attrs["bin"]))
    hidden = dragonfly.read_detector(folder / "detector.h5").mask.reshape(shape) == 2
    return Layout(tuple(corner), hidden, width)


def iterate_photons(
    path: Path, places: npt.NDArray[np.intp]
) -> Iterator[tuple[npt.NDArray[np.intp], sp.csr_array]]:
    """Read photons block by block.

    Parameters
    ----------
    path : pathlib.Path
        photons.h5.
    places : numpy.ndarray
        Which frames of it, increasing, shape (frame,).

    Yields
    ------
    places : numpy.ndarray
        Those of the block.
    photons : scipy.sparse.csr_array
        Their photons, shape (frame, pixel), int32.
    """
    for start in range(0, len(places), FRAMES_PER_TASK):
        block = places[start : start + FRAMES_PER_TASK]
        yield block, emc.read_photons(path, block)


def _photons_of(task: tuple[xr.Dataset, Config, Layout]) -> sp.csr_array:
    frames, config, layout = task
    patterns = preprocess(frames, config)["patterns"].data.compute(scheduler="threads")
    squares = sum_squares(patterns, layout.bin).reshape(len(patterns), -1)
    missing = np.isnan(squares)
    photons = np.where(missing, emc.MISSING, squares).astype(np.int32)
    photons[:, layout.hidden.ravel()] = 0
    return sp.csr_array(photons)

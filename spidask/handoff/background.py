"""What frames without a particle show: the mean of misses, by run and intensity."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import numpy.typing as npt
import xarray as xr

from spidask.cluster import Pool, map_in_order
from spidask.config import Config
from spidask.errors import DataError
from spidask.handoff.layout import Layout, sum_squares
from spidask.handoff.photons import (
    FRAMES_PER_TASK,
    frames_of_runs,
    iterate_photons,
    list_frames,
    sign_frames,
)
from spidask.io import dragonfly
from spidask.io.labels import locate
from spidask.io.runs import take_frames
from spidask.preprocessing import preprocess
from spidask.schema import VARIABLES

if TYPE_CHECKING:
    from distributed import Client

Floats = npt.NDArray[np.float64]
BY_ENERGY = "pulse_energy"


@dataclass(frozen=True)
class _Sums:
    """Photons of some misses of one run, and how many had a number there: (bin, y, x)."""

    run: int
    photons: Floats
    counted: npt.NDArray[np.int64]
    frames: npt.NDArray[np.int64]


def draw_misses(selection: xr.Dataset, config: Config) -> npt.NDArray[np.intp]:
    """Draw the misses whose mean is the background.

    Parameters
    ----------
    selection : xarray.Dataset
        All classified frames as of `select`.
    config : Config
        `handoff.misses` of each run, and `handoff.seed`.

    Returns
    -------
    numpy.ndarray
        Positions of readable misses, by run and in order, shape (miss,). Those of one run do not
        depend on what other runs there are.
    """
    miss = selection["readable"].values & ~selection["hit"].values
    names = selection["run_name"].values.astype(str).tolist()
    drawn = [np.empty(0, np.intp)]
    for name, frames in zip(names, frames_of_runs(selection), strict=True):
        misses = frames[miss[frames]]
        rng = np.random.default_rng([config.handoff.seed, zlib.crc32(name.encode())])
        n_drawn = min(config.handoff.misses, len(misses))
        drawn.append(np.sort(rng.choice(misses, n_drawn, replace=False)))
    return np.concatenate(drawn)


def background_is_current(selection: xr.Dataset, config: Config, out: str | Path) -> bool:
    """Tell whether the background of these misses is written already.

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
        True if ``dragonfly/background.h5`` was made from exactly these misses.
    """
    misses = selection.isel(frame=draw_misses(selection, config))
    try:
        with h5py.File(Path(out) / "dragonfly" / "background.h5", "r") as file:
            return bool(file.attrs["fingerprint"] == _sign(misses, config))
    except (OSError, KeyError):
        return False


def write_background(
    misses: xr.Dataset,
    frames: xr.Dataset | None,
    layout: Layout,
    config: Config,
    folder: Path,
    client: Client | None,
) -> None:
    """Write ``background.h5``: mean patterns of the misses of each run and intensity.

    Parameters
    ----------
    misses : xarray.Dataset
        As of `draw_misses`, by run.
    frames : xarray.Dataset or None
        The runs as of `open_runs`.
    layout : Layout
        The pixels.
    config : Config
        The beamtime's settings.
    folder : pathlib.Path
        Where to write.
    client : distributed.Client or None
        Who reads and calibrates; this process without it.

    Raises
    ------
    DataError
        If there are no frames, or misses are not among them.

    Notes
    -----
    ``mean`` (run, bin, y, x) float32, photons a frame, NaN where no miss has a number;
    ``frames`` (run, bin) int64, their counts; ``run`` (run,) names; ``edges`` (bin + 1,) float64:
    quantiles of ``pulse_energy`` where frames have it, else of the photons of the miss itself,
    which show no particle. The attribute ``intensity`` says which; ``without_intensity`` misses
    have no energy and are in the first bin. One run is in memory at a time.
    """
    if frames is None:
        raise DataError(f"{folder}/background.h5 is not of these misses; give the runs' frames")
    by, intensity = _intensity(misses)
    edges = _edges(intensity, config.handoff.intensity_bins)
    bins = np.clip(np.searchsorted(edges, intensity, "right") - 1, 0, len(edges) - 2)
    rows = locate(list_frames(misses), frames)
    tasks = list(_tasks(misses["run"].values))
    work = (
        (code, take_frames(frames, rows[part]), bins[part], len(edges) - 1, layout, config)
        for code, part in tasks
    )
    pool = Pool(client, config.cluster, config.output) if client else None
    sums = map_in_order(_sum_misses, work, len(tasks), client, pool)
    names = misses["run_name"].values.astype(str)
    shape = (len(names), len(edges) - 1, *layout.hidden.shape)
    path = folder / "background.h5"
    part_path = Path(f"{path}.part")
    with h5py.File(part_path, "w") as file:
        file.attrs["fingerprint"] = _sign(misses, config)
        file.attrs["intensity"] = by
        file["run"] = names.astype(object)
        file["edges"] = edges
        file["edges"].attrs["units"] = VARIABLES[by].units
        file.attrs["without_intensity"] = int((~np.isfinite(misses[by].values)).sum())
        options = {"chunks": (1, 1, *shape[2:]), "compression": "gzip", "shuffle": True}
        mean = file.create_dataset("mean", shape, np.float32, fillvalue=np.nan, **options)
        mean.attrs["units"] = "photons"
        counts = file.create_dataset("frames", shape[:2], np.int64)
        for one in _by_run(sums):
            mean[one.run] = one.photons / np.where(one.counted, one.counted, np.nan)
            counts[one.run] = one.frames
    os.replace(part_path, path)


def add_powders(hits: xr.Dataset, layout: Layout, folder: Path, *, renew: bool) -> None:
    """Add the sums of all hits and of the selected ones to ``background.h5``.

    Parameters
    ----------
    hits : xarray.Dataset
        The hits of a selection, in the order of photons.h5.
    layout : Layout
        The pixels.
    folder : pathlib.Path
        Where photons.h5 and background.h5 are.
    renew : bool
        Whether the hits are others than before; else their sum is not made again.

    Notes
    -----
    ``powder_hits`` and ``powder_selected`` (y, x) float64, photons; their attribute ``frames`` is
    how many. A pixel that is missing in a frame adds nothing.
    """
    chosen = np.flatnonzero(hits["selected"].values)
    wanted = {"powder_selected": chosen, "powder_hits": np.arange(hits.sizes["frame"])}
    with h5py.File(folder / "background.h5", "a") as file:
        if not renew and "powder_hits" in file:
            del wanted["powder_hits"]
        for name, places in wanted.items():
            powder = np.zeros(layout.hidden.size)
            for _, photons in iterate_photons(folder / "photons.h5", places):
                powder += photons.sum(axis=0)
            file.pop(name, None)
            file[name] = powder.reshape(layout.hidden.shape)
            file[name].attrs.update(units="photons", frames=len(places))


def background_of_hits(hits: xr.Dataset, folder: Path) -> Floats | None:
    """Give the background to be expected in the hits, for Dragonfly.

    Parameters
    ----------
    hits : xarray.Dataset
        The hits of a selection.
    folder : pathlib.Path
        Where background.h5 is.

    Returns
    -------
    numpy.ndarray or None
        Means of the runs, each weighted with its hits, shape (pixel,), float64, photons a frame; 0
        where no miss has a number. None where no run with hits has misses.
    """
    weights = np.bincount(hits["run"].values, minlength=hits.sizes["run_code"])
    total = norm = None
    with h5py.File(folder / "background.h5", "r") as file:
        counts = file["frames"][()]
        for run in np.flatnonzero((weights > 0) & (counts.sum(axis=1) > 0)):
            means = file["mean"][run].astype(float)
            shares = counts[run][:, None, None] * np.isfinite(means)
            sums = (np.nan_to_num(means) * shares).sum(axis=0) * weights[run] / counts[run].sum()
            seen = shares.sum(axis=0) * weights[run] / counts[run].sum()
            total = sums if total is None else total + sums
            norm = seen if norm is None else norm + seen
    if total is None or norm is None:
        return None
    return np.asarray(total / np.where(norm > 0, norm, 1)).ravel()


def write_detector_background(hits: xr.Dataset, folder: Path) -> None:
    """Put the background of the hits into Dragonfly's detector file.

    Parameters
    ----------
    hits : xarray.Dataset
        The hits of a selection.
    folder : pathlib.Path
        Where detector.h5 and background.h5 are.

    Notes
    -----
    Dragonfly uses it where its setting ``background_file`` names detector.h5.
    """
    background = background_of_hits(hits, folder)
    if background is None:
        return
    with h5py.File(folder / "detector.h5", "r") as file:
        if "background" in file and np.array_equal(background, file["background"][()]):
            return
    dragonfly.write_background(folder / "detector.h5", background)


def _sign(misses: xr.Dataset, config: Config) -> str:
    by, _ = _intensity(misses)
    values = np.ascontiguousarray(misses[by].values)
    binned = [by, hashlib.sha256(values.tobytes()).hexdigest(), config.handoff.intensity_bins]
    names = misses["run_name"].values.astype(str).tolist()
    return f"{sign_frames(misses, config)} {json.dumps([binned, names])}"


def _intensity(misses: xr.Dataset) -> tuple[str, Floats]:
    known = BY_ENERGY in misses.variables and bool(np.isfinite(misses[BY_ENERGY].values).any())
    name = BY_ENERGY if known else "photon_count"
    values = misses[name].values.astype(float)
    # Where the energy was not measured: among the darkest, and counted.
    return name, np.where(np.isfinite(values), values, np.nanmin(values) if len(values) else 0)


def _edges(intensity: Floats, n_bins: int) -> Floats:
    if not len(intensity):
        return np.array([0.0, 0.0])
    edges = np.unique(np.quantile(intensity, np.linspace(0, 1, n_bins + 1)))
    return edges if len(edges) > 1 else np.repeat(edges, 2)


def _tasks(run: npt.NDArray[np.int32]) -> Iterator[tuple[int, slice]]:
    edges = [0, *(np.flatnonzero(np.diff(run)) + 1).tolist(), len(run)]
    for first, last in pairwise(edges):  # one pair of zeros where there are no misses
        for start in range(first, last, FRAMES_PER_TASK):
            yield int(run[first]), slice(start, min(start + FRAMES_PER_TASK, last))


def _sum_misses(
    task: tuple[int, xr.Dataset, npt.NDArray[np.intp], int, Layout, Config],
) -> _Sums:
    run, frames, bins, n_bins, layout, config = task
    patterns = preprocess(frames, config)["patterns"].data.compute(scheduler="threads")
    squares = sum_squares(patterns, layout.bin)
    there = np.isfinite(squares)
    photons = np.zeros((n_bins, *layout.hidden.shape))
    counted = np.zeros(photons.shape, np.int64)
    for number in np.unique(bins):
        photons[number] = np.where(there, squares, 0)[bins == number].sum(axis=0)
        counted[number] = there[bins == number].sum(axis=0)
    return _Sums(run, photons, counted, np.bincount(bins, minlength=n_bins))


def _by_run(parts: Iterator[_Sums]) -> Iterator[_Sums]:
    sums: _Sums | None = None
    for part in parts:
        if sums is not None and sums.run == part.run:
            sums = _Sums(
                part.run,
                sums.photons + part.photons,
                sums.counted + part.counted,
                sums.frames + part.frames,
            )
            continue
        if sums is not None:
            yield sums
        sums = part
    if sums is not None:
        yield sums

"""Beamtimes and patterns of the 2018 experiment, computed from settings and a seed."""

from __future__ import annotations

import csv
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from spidask.config import Beam, Geometry, Region, Sample, Simulation
from spidask.errors import DataError
from spidask.schema import CLASSES
from spidask.simulation.density import read_particle
from spidask.simulation.detector import (
    PANEL,
    Pixels,
    build_pixels,
    expose,
    pulse_stray,
    random_stream,
    stray_light,
)
from spidask.simulation.particle import Particle
from spidask.simulation.scene import Scene
from spidask.simulation.shot import Shot, draw_shot

T = TypeVar("T")

DEFAULT_GEOMETRY = Geometry()
DEFAULT_SAMPLE = Sample()
DEFAULT_BEAM = Beam()
DEFAULT_REGION = Region(y=(0, 123), x=(391, 631))
TRAINING_MIX = {"background": 0.1, "single": 0.3, "multiple": 0.35, "contaminant": 0.25}
PATTERNS_PER_STRAY = 32
"""So many patterns in a row share the shape of their stray light, though not its strength."""
DATASET = "entry_1/data_1/data"
OUTPUTS = ("r*.h5", "masks.h5", "gain.h5", "labels.csv")
"""What a folder may not hold before; darks and truth go into folders of their own."""
REPETITION_HZ = 120
FIRST_SECOND = 1_533_081_600  # 1 August 2018


def simulate_beamtime(
    settings: Simulation,
    geometry: Geometry = DEFAULT_GEOMETRY,
    workers: int = 0,
) -> Path:
    """Compute the files of a beamtime.

    Parameters
    ----------
    settings : Simulation
        Folder, runs, frames, hit rate, sample, beam and panel.
    geometry : Geometry
        Photon energy, distance, pixel size and beam centre.
    workers : int
        Threads; 0 takes every core. The files do not depend on it.

    Returns
    -------
    pathlib.Path
        The folder. It holds ``r0001.h5`` ... (raw frames, uint16, ADU, with time stamps and
        fiducials), ``dark/r0001.h5`` ... (frames without beam), ``masks.h5`` (a mask for each
        run, 1 = good), ``gain.h5`` (relative gain), ``labels.csv`` (run, index, label of the
        first `labelled_runs` runs) and ``truth/truth_r0001.csv`` ... (what every frame shows).

    Raises
    ------
    DataError
        If the file of the particle cannot be read, or the folder holds runs, masks, gain or
        labels of its own.

    Notes
    -----
    ``simulation.unfinished.json`` is there until all is written. With the same settings in it the
    beamtime was interrupted, and is computed from the start.
    """
    folder = Path(settings.folder)
    unfinished = folder / "simulation.unfinished.json"
    _make_room(folder, unfinished, _recorded(settings, geometry))
    (folder / "dark").mkdir(parents=True, exist_ok=True)
    (folder / "truth").mkdir(exist_ok=True)
    model = _model(settings.sample, geometry)
    labels: list[tuple[str, int, str]] = []
    for run in range(1, settings.runs + 1):
        name = f"r{run:04d}"
        pixels = build_pixels(settings.panel, geometry, settings.seed, run)
        shots = _write_run(folder / f"{name}.h5", run, pixels, settings, geometry, model, workers)
        _write_dark(folder / "dark" / f"{name}.h5", run, pixels, settings, geometry, workers)
        _write_truth(folder / "truth" / f"truth_{name}.csv", name, shots)
        with h5py.File(folder / "masks.h5", "w" if run == 1 else "a") as file:
            file[name] = pixels.good.astype(np.uint8)
        with h5py.File(folder / "gain.h5", "w") as file:
            file["gain"] = np.where(pixels.gain > 0, pixels.gain, 1).astype(np.float32)
        if run <= settings.labelled_runs:
            labels += [(name, i, shot.scene.label) for i, shot in enumerate(shots)]
    _write_csv(folder / "labels.csv", ("run", "index", "label"), labels)
    unfinished.unlink()
    return folder


def simulate_patterns(
    n: int,
    seed: int = 0,
    geometry: Geometry = DEFAULT_GEOMETRY,
    region: Region = DEFAULT_REGION,
    mix: Mapping[str, float] = TRAINING_MIX,
    sample: Sample = DEFAULT_SAMPLE,
    beam: Beam = DEFAULT_BEAM,
    workers: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.str_], NDArray[np.float32], NDArray[np.str_]]:
    """Compute patterns with labels, as a network trains on them.

    Parameters
    ----------
    n : int
        Number of patterns.
    seed : int
        Pattern i depends on the seed and i alone.
    geometry : Geometry
        Photon energy, distance, pixel size and beam centre.
    region : Region
        Pixels of the full frame to compute.
    mix : mapping
        Share of each class, see `schema.CLASSES`; normalized to one.
    sample : Sample
        What is injected.
    beam : Beam
        Pulses, focus and stray light.
    workers : int
        Threads; 0 takes every core.

    Returns
    -------
    patterns : numpy.ndarray
        Photons expected in each pixel, stray light included, before Poisson noise, shape
        (n, y, x), float32.
    labels : numpy.ndarray
        Class of each pattern, shape (n,), str.
    diameters : numpy.ndarray
        Volume-equivalent diameters, shape (n,), float32, nm; NaN unless one particle was hit.
    kinds : numpy.ndarray
        What each pattern shows in particular, shape (n,), str.
    """
    rows, columns = range(*region.y), range(*region.x)
    shares = np.array([mix.get(name, 0.0) for name in CLASSES])

    def one(i: int) -> tuple[NDArray[np.float32], Scene]:
        rng = random_stream(seed, 3, i)
        label = CLASSES[rng.choice(len(CLASSES), p=shares / shares.sum())]
        shot = draw_shot(label, sample, beam, geometry, rows, columns, rng)
        stray = _stray(geometry, rows, columns, seed, i // PATTERNS_PER_STRAY)
        return shot.photons + pulse_stray(stray, shot.pulse, beam, rng), shot.scene

    patterns = np.empty((n, len(rows), len(columns)), np.float32)
    scenes = []
    for i, (pattern, scene) in enumerate(_in_threads(one, n, workers)):
        patterns[i] = pattern
        scenes.append(scene)
    return (
        patterns,
        np.array([scene.label for scene in scenes]),
        np.array([scene.diameter for scene in scenes], np.float32),
        np.array([scene.kind for scene in scenes]),
    )


def draw_labels(settings: Simulation, run: int) -> list[str]:
    """Draw the order of the classes in a run.

    Parameters
    ----------
    settings : Simulation
        Frames of a run, hit rate, shares among hits, seed.
    run : int
        Number of the run.

    Returns
    -------
    list of str
        Class of each frame; every class has its share of the frames, rounded.

    Examples
    --------
    >>> settings = Simulation(folder="x", frames=10, hit_rate=0.5, hit_mix={"single": 1.0})
    >>> sorted(draw_labels(settings, 1)).count("background")
    5
    """
    mix = settings.hit_mix
    shares = np.array([mix.single, mix.multiple, mix.contaminant])
    bounds = np.append(0, np.cumsum(shares / shares.sum())) * settings.frames * settings.hit_rate
    counts = np.diff(np.round(bounds).astype(int))
    labels = np.repeat(["single", "multiple", "contaminant"], counts).tolist()
    labels += ["background"] * (settings.frames - len(labels))
    order = random_stream(settings.seed, 5, run).permutation(settings.frames)
    return [labels[i] for i in order]


def _recorded(settings: Simulation, geometry: Geometry) -> str:
    values = {"simulation": settings.model_dump(), "geometry": geometry.model_dump()}
    return json.dumps(values, indent=1)


def _make_room(folder: Path, unfinished: Path, record: str) -> None:
    """Remove what an interrupted simulation of these settings left; refuse anything else."""
    found = [path for pattern in OUTPUTS for path in sorted(folder.glob(pattern))]
    if found and not (unfinished.exists() and unfinished.read_text() == record):
        names = ", ".join(path.name for path in found[:4])
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        raise DataError(
            f"{folder} already holds {names}{more}, and no unfinished simulation of these "
            "settings; remove them, or choose another folder",
            path=str(folder),
        )
    for path in found:
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    # All or nothing: half a record would make what follows look foreign.
    part = unfinished.with_suffix(".part")
    part.write_text(record)
    part.replace(unfinished)


def _model(sample: Sample, geometry: Geometry) -> Particle | None:
    if sample.particle == "icosahedron":
        return None
    return read_particle(sample.particle, geometry.photon_energy_ev, sample.map_contour)


@lru_cache(maxsize=4)
def _stray(
    geometry: Geometry, rows: range, columns: range, seed: int, number: int
) -> NDArray[np.float32]:
    rng = random_stream(seed, 4, number)
    return stray_light(geometry, rows, columns, rng)


def _write_run(
    path: Path,
    run: int,
    pixels: Pixels,
    settings: Simulation,
    geometry: Geometry,
    model: Particle | None,
    workers: int,
) -> list[Shot]:
    """Compute and write the frames of a run; give back the shots without their photons."""
    rows, columns = range(PANEL[0]), range(PANEL[1])
    stray = _stray(geometry, rows, columns, settings.seed, 0)
    labels = draw_labels(settings, run)

    def one(i: int) -> tuple[NDArray[np.uint16], Shot]:
        rng = random_stream(settings.seed, 6, run, i)
        shot = draw_shot(
            labels[i], settings.sample, settings.beam, geometry, rows, columns, rng, model
        )
        photons = shot.photons + pulse_stray(stray, shot.pulse, settings.beam, rng)
        frame = expose(photons, pixels, settings.panel, geometry.pixel_size_um, rng)
        # A slice would keep the whole frame alive.
        return frame, replace(shot, photons=np.empty((0, 0), np.float32))

    shots = []
    with h5py.File(path, "w") as file:
        data = _create_stack(file, settings.frames)
        for i, (frame, shot) in enumerate(_in_threads(one, settings.frames, workers)):
            data[i] = frame
            shots.append(shot)
        _write_events(file, run, settings.frames, geometry.photon_energy_ev)
    return shots


def _write_dark(
    path: Path, run: int, pixels: Pixels, settings: Simulation, geometry: Geometry, workers: int
) -> None:
    def one(i: int) -> NDArray[np.uint16]:
        rng = random_stream(settings.seed, 7, run, i)
        return expose(None, pixels, settings.panel, geometry.pixel_size_um, rng)

    n = settings.panel.dark_frames
    with h5py.File(path, "w") as file:
        data = _create_stack(file, n)
        for i, frame in enumerate(_in_threads(one, n, workers)):
            data[i] = frame


def _create_stack(file: h5py.File, n: int) -> h5py.Dataset:
    return file.create_dataset(
        DATASET, (n, *PANEL), np.uint16, chunks=(1, *PANEL), **hdf5plugin.Bitshuffle(cname="lz4")
    )


def _write_events(file: h5py.File, run: int, n: int, photon_energy_ev: float) -> None:
    """Write LCLS event ids: seconds << 32 | nanoseconds, and a counter of 360 Hz."""
    seconds = FIRST_SECOND + 600 * run + np.arange(n) // REPETITION_HZ
    nanoseconds = np.arange(n) % REPETITION_HZ * 1_000_000_000 // REPETITION_HZ
    group = file.require_group("LCLS")
    group["timestamp"] = (seconds << 32) | nanoseconds
    group["fiducial"] = (3 * np.arange(n, dtype=np.int64)) % 131_040
    group["photon_energy_eV"] = np.full(n, photon_energy_ev)


def _write_truth(path: Path, name: str, shots: list[Shot]) -> None:
    rows = [
        (
            name,
            i,
            shot.scene.label,
            shot.scene.kind,
            "" if np.isnan(shot.scene.diameter) else f"{shot.scene.diameter:.2f}",
            round(shot.signal),
        )
        for i, shot in enumerate(shots)
    ]
    header = ("run", "index", "label", "kind", "diameter_nm", "signal_photons")
    _write_csv(path, header, rows)


def _write_csv(path: Path, header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _in_threads(work: Callable[[int], T], n: int, workers: int) -> Iterator[T]:
    """Do the work for 0, 1, ... n - 1 in threads, results in order, a few in flight."""
    workers = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(pool.submit(work, i) for i in range(min(n, 4 * workers)))
        for i in range(4 * workers, n + 4 * workers):
            if waiting:
                yield waiting.popleft().result()
            if i < n:
                waiting.append(pool.submit(work, i))

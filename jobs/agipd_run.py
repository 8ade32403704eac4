"""Simulate labelled AGIPD 1M runs in the layout of the European XFEL, and write their config.

    python jobs/agipd_run.py agipd --frames 4096
    spidask run agipd/config.yaml

Corrected data in whole photons, as the facility's calibration writes it: r0001 trains, r0002
validates, r0003 holds the truth. Of every run module 9 is missing, and of the last one a train of
module 12; pixels that the mask calls bad hold nonsense.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import yaml
from extra_geom import AGIPD_1MGeometry
from numpy.typing import NDArray

from spidask.assembly import Assembly, read_assembly
from spidask.config import Beam, Geometry, HitMix, Sample, Simulation
from spidask.simulation.beamtime import draw_labels
from spidask.simulation.detector import pulse_stray, random_stream, stray_light
from spidask.simulation.shot import draw_shot

SHARES = {"r0001": 0.25, "r0002": 0.125, "r0003": 0.625}
PULSES = 32
"""Frames of a train."""
FIRST_TRAIN = 1_900_000_000
MISSING_MODULE, LATE_MODULE = 9, 12
BAD_PIXELS = 0.002
DETECTOR = "SPB_DET_AGIPD1M-1"
MIX = HitMix(single=0.260, multiple=0.323, contaminant=0.417)
HIT_RATE = 0.844
BEAM = Beam(transmission=0.25)
"""As many photons as the quickstart, at a shorter wavelength."""
ENERGY_EV, DISTANCE_M = 6000.0, 1.2
REGION = (3, 126), (-120, 120)
"""Rows and columns from the beam: half a pattern, for which the shipped weights were made."""


def place_beam(assembly: Assembly) -> tuple[Geometry, range, range]:
    """Put the beam where the simulation has its own, and say which rows and columns that makes."""
    shift = [round(at) - to for at, to in zip(assembly.beam, (256, 512), strict=True)]
    rows, columns = (
        range(-by, size - by) for by, size in zip(shift, assembly.index.shape, strict=True)
    )
    geometry = Geometry(
        photon_energy_ev=ENERGY_EV,
        detector_distance_m=DISTANCE_M,
        pixel_size_um=assembly.pixel_size * 1e6,
        beam_centre_y_px=assembly.beam[0] - shift[0],
        beam_centre_x_px=assembly.beam[1] - shift[1],
    )
    return geometry, rows, columns


def simulate_frame(
    number: int,
    label: str,
    seeds: tuple[int, int],
    assembly: Assembly,
    stray: NDArray[np.float32],
) -> tuple[NDArray[np.float32], float]:
    """Photons of one frame on the modules, shape (16, 512, 128), and the diameter in nm."""
    geometry, rows, columns = place_beam(assembly)
    rng = random_stream(seeds[0], 6, seeds[1], number)
    shot = draw_shot(label, Sample(), BEAM, geometry, rows, columns, rng)
    image = rng.poisson(shot.photons + pulse_stray(stray, shot.pulse, BEAM, rng))
    modules = np.zeros(assembly.stack, np.float32)
    there = assembly.index >= 0
    modules.ravel()[assembly.index[there]] = image[there]
    shape = (-1, assembly.module_rows, assembly.stack[1])
    return modules.reshape(shape), shot.scene.diameter


def bad_pixels(seed: int) -> NDArray[np.uint32]:
    """Mask of the corrections, shape (16, 512, 128): 0 for good pixels."""
    rng = random_stream(seed, 8)
    bits = rng.choice(np.array([1, 4, 0x80], np.uint32), (16, 512, 128))
    return np.where(rng.random(bits.shape) < BAD_PIXELS, bits, np.uint32(0))


def write_module(
    file: h5py.File, module: int, trains: NDArray[np.int64], counts: NDArray[np.int64]
) -> None:
    """Write all but pixels: the index, and the ids of frames."""
    source = f"{DETECTOR}/CORR/{module}CH0:output"
    entry = file.create_group("METADATA")
    entry["dataFormatVersion"] = [b"1.2"]
    entry["dataSources/dataSourceId"] = [f"INSTRUMENT/{source}/image".encode()]
    entry["dataSources/root"], entry["dataSources/deviceId"] = [b"INSTRUMENT"], [source.encode()]
    file["INDEX/trainId"] = trains.astype(np.uint64)
    file["INDEX/timestamp"] = np.arange(len(trains), dtype=np.uint64) * 10**8
    file["INDEX/flag"] = np.ones(len(trains), np.int32)
    file["INDEX/origin"] = np.full(len(trains), -1, np.int32)
    file[f"INDEX/{source}/image/first"] = (np.cumsum(counts) - counts).astype(np.uint64)
    file[f"INDEX/{source}/image/count"] = counts.astype(np.uint64)
    image = file.create_group(f"INSTRUMENT/{source}/image")
    pulses = np.concatenate([np.arange(n) for n in counts]).astype(np.uint64)
    image["trainId"] = np.repeat(trains, counts).astype(np.uint64)
    image["pulseId"], image["cellId"] = pulses * 8, pulses.astype(np.uint16)
    for name, dtype in (("data", np.float32), ("mask", np.uint32)):
        image.create_dataset(
            name,
            (len(pulses), 512, 128),
            dtype,
            chunks=(1, 512, 128),
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )


def write_run(folder: Path, run: int, settings: Simulation, assembly: Assembly) -> list[str]:
    """Write the files of a run; give a row of a table for each frame."""
    folder.mkdir()
    labels, n = draw_labels(settings, run), settings.frames
    bad = bad_pixels(settings.seed)
    starts = np.arange(0, n, PULSES)
    counts = np.minimum(PULSES, n - starts)
    trains = FIRST_TRAIN + 10_000 * run + np.arange(len(starts))
    files = {}
    for module in set(range(16)) - {MISSING_MODULE}:
        late = module == LATE_MODULE and run == len(SHARES)
        file = h5py.File(folder / f"CORR-R{run:04d}-AGIPD{module:02d}-S00000.h5", "w")
        write_module(file, module, trains[late:], counts[late:])
        files[module] = (file, PULSES * late)
    seeds = (settings.seed, run)
    stray = stray_light(*place_beam(assembly), random_stream(settings.seed, 4, run))
    sizes: list[float] = []
    frame = partial(simulate_frame, seeds=seeds, assembly=assembly, stray=stray)
    shots = in_threads(frame, labels, starts, counts)
    for start, (train, diameters) in zip(starts, shots, strict=True):
        sizes += diameters
        train[:, bad > 0] = 1e4
        for module, (file, skipped) in files.items():
            if start >= skipped:
                at = slice(start - skipped, start - skipped + len(train))
                image = file[f"INSTRUMENT/{DETECTOR}/CORR/{module}CH0:output/image"]
                image["data"][at] = train[:, module]
                image["mask"][at] = np.broadcast_to(bad[module], train[:, module].shape)
    for file, _ in files.values():
        file.close()
    return [
        f"{folder.name},{index},{label},{size:.2f}"
        for index, (label, size) in enumerate(zip(labels, sizes, strict=True))
    ]


def in_threads(
    frame: partial[tuple[NDArray[np.float32], float]],
    labels: list[str],
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> Iterator[tuple[NDArray[np.float32], list[float]]]:
    """Frames of one train after the other, shape (pulse, 16, 512, 128), and their diameters."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            numbers = range(start, start + count)
            shots = list(pool.map(frame, numbers, labels[start : start + count]))
            yield np.stack([modules for modules, _ in shots]), [size for _, size in shots]


def make_config(folder: Path, assembly: Assembly) -> dict[str, object]:
    """Settings of the runs, as in configs/euxfel_agipd.yaml."""
    region = {
        axis: [round(at) + first, round(at) + end]
        for axis, at, (first, end) in zip("yx", assembly.beam, REGION, strict=True)
    }
    return {
        "runs": {"files": [f"{folder}/proc/r*"]},
        "euxfel": {"detector": "*AGIPD1M*"},
        "labels": {"file": f"{folder}/labels.csv", "truth": f"{folder}/truth.csv"},
        "output": f"{folder}/out",
        "geometry": {"photon_energy_ev": ENERGY_EV, "detector_distance_m": DISTANCE_M},
        "preprocessing": {"assembly": f"{folder}/agipd.geom", "region": region},
        # Four frames in five are hits here, among which an adaptive threshold finds none.
        "hits": {"threshold": "none"},
        "training": {"runs": ["r0001"], "iterations": 150, "checkpoint_every": 25},
        "validation": {"runs": ["r0002"]},
        "inference": {"frames_per_shard": 256},
    }


def main() -> None:
    """Simulate all runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=4096, help="of all runs together")
    parser.add_argument("--seed", type=int, default=2026)
    options = parser.parse_args()
    folder = options.folder.absolute()
    (folder / "proc").mkdir(parents=True)
    AGIPD_1MGeometry.example().write_crystfel_geom(str(folder / "agipd.geom"))
    assembly = read_assembly(str(folder / "agipd.geom"))
    header = "run,index,label,diameter_nm"
    tables = {"labels.csv": [header], "truth.csv": [header]}
    for run, (name, share) in enumerate(SHARES.items(), 1):
        settings = Simulation(
            folder=str(folder),
            frames=round(share * options.frames),
            seed=options.seed,
            hit_rate=HIT_RATE,
            hit_mix=MIX,
        )
        rows = write_run(folder / "proc" / name, run, settings, assembly)
        tables["truth.csv" if run == len(SHARES) else "labels.csv"] += rows
    for name, rows in tables.items():
        (folder / name).write_text("\n".join(rows) + "\n")
    config = make_config(folder, assembly)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    print(folder / "config.yaml")


if __name__ == "__main__":
    main()

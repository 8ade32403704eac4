"""The whole classification against reading alone, the sum of its parts, and a loop without Dask.

In one process, by the time that it computed, so that what else runs counts little; what overlap
saves is measured by the clock.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import torch
import xarray as xr
from benchmark_memory import measure_memory
from benchmark_networks import simulate, write_members

from spidask.config import Config, parse_config
from spidask.frames.calibrate import calibrate
from spidask.frames.hits import find_hits, hit_score
from spidask.frames.sizing import fit_spheres, radial_sums
from spidask.inference import label_lazily, label_shard
from spidask.inference.scoring import score_patterns
from spidask.io import store
from spidask.io.calibration import load_calibration, recipe_of
from spidask.io.hdf5 import StackReader
from spidask.io.runs import choose_block, open_runs
from spidask.preprocessing import SIZES, load_library

FRAME = (512, 1024)
REGION = (slice(0, 123), slice(392, 632))
N_FRAMES, N_HITS = 4096, 82
DARK, ADU_PER_PHOTON, NOISE = 100.0, 25.0, 3.0
COMMON_MODE = {"asic": [1, 128], "max_adu": 12}
STOCK = 64
ROUNDS = 9
LAYOUTS = ("bitshuffle/LZ4", "uncompressed")
PRECISIONS = ("fp32", "bf16")
PARTS = ("read", "preprocess", "size", "score", "write")

Row = dict[str, str | float]


def write_run(path: Path, layout: str, hits: np.ndarray) -> None:
    """Write 4 096 frames, a chunk each: stray light, 64 different ones, and 2 % hits.

    Of uncompressed frames only the rows of the region are written, for nobody reads the others.
    """
    if path.exists():
        return
    random = np.random.default_rng(5)
    y, x = np.mgrid[: FRAME[0], : FRAME[1]]
    stray = 3 / (1 + np.hypot(y + 3, x - 511.5) / 12) ** 3
    frames = [to_adu(random.poisson(stray), random) for _ in range(STOCK)]
    for pattern in hits[:N_HITS]:
        frame = frames[len(frames) % STOCK].copy()
        frame[REGION] = to_adu(pattern, random)
        frames.append(frame)
    order = random.integers(STOCK, size=N_FRAMES)
    order[random.choice(N_FRAMES, N_HITS, replace=False)] = STOCK + np.arange(N_HITS)
    unfinished = path.with_suffix(".unfinished")
    write = write_plain if layout == "uncompressed" else write_compressed
    write(unfinished, frames, order)
    unfinished.rename(path)


def to_adu(photons: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Photons on a dark level with noise; a missing pixel is the largest value."""
    adu = DARK + ADU_PER_PHOTON * photons + random.normal(0, NOISE, photons.shape)
    return np.where(np.isnan(adu), np.iinfo(np.uint16).max, adu.round()).astype(np.uint16)


def write_compressed(path: Path, frames: list[np.ndarray], order: np.ndarray) -> None:
    """Bitshuffle/LZ4; each of the different frames is compressed once."""
    with h5py.File(path, "w") as file:
        given = {"chunks": (1, *FRAME), **hdf5plugin.Bitshuffle(cname="lz4")}
        once = file.create_dataset("once", data=np.stack(frames), **given)
        file.flush()
        raw = [once.id.read_direct_chunk((i, 0, 0))[1] for i in range(len(frames))]
        data = file.create_dataset("data", (len(order), *FRAME), np.uint16, **given)
        for number, source in enumerate(order):
            data.id.write_direct_chunk((number, 0, 0), raw[source])


def write_plain(path: Path, frames: list[np.ndarray], order: np.ndarray) -> None:
    """Uncompressed, a chunk a frame, with holes below the region."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((1, *FRAME))
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    addresses: dict[int, int] = {}
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple((len(order), *FRAME))
        data = h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_UINT16, space, plist)
        data.chunk_iter(lambda c: addresses.update({c.chunk_offset[0]: c.byte_offset}))
    with open(path, "r+b") as file:
        for number, source in enumerate(order):
            file.seek(addresses[number])
            file.write(frames[source][: REGION[0].stop].tobytes())


def configure(
    path: Path, folder: Path, members: list[str], common_mode: dict | None = None, **inference: str
) -> Config:
    """Classify a run: dark, gain, adaptive hits, five members with early exit, sizes."""
    with h5py.File(folder / "maps.h5", "w") as file:
        file["dark"] = np.full(FRAME, DARK, np.float32)
        file["gain"] = np.ones(FRAME, np.float32)
    y, x = ([part.start, part.stop] for part in REGION)
    return parse_config(
        {
            "runs": {"files": [str(path)], "dataset": "data"},
            "output": str(folder / "out"),
            "preprocessing": {
                "region": {"y": y, "x": x},
                "dark": f"{folder}/maps.h5:dark",
                "gain": f"{folder}/maps.h5:gain",
                "adu_per_photon": ADU_PER_PHOTON,
                "common_mode": common_mode,
            },
            "inference": {"members": members, "ensemble": "early_exit", **inference},
            "cluster": {"kind": "inline"},
        }
    )


class Turns:
    """Seconds of several works by CPU and by the clock, a list each, round by round."""

    def __init__(self) -> None:
        self.cpu: dict[str, list[float]] = defaultdict(list)
        self.clock: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def measure(self, work: str) -> Iterator[None]:
        """Add what a block of code takes."""
        cpu, clock = time.process_time(), time.perf_counter()
        yield
        self.cpu[work].append(time.process_time() - cpu)
        self.clock[work].append(time.perf_counter() - clock)

    def extend(self, blocks: Turns) -> None:
        """Add a round, of which the works were done block by block."""
        for mine, others in ((self.cpu, blocks.cpu), (self.clock, blocks.clock)):
            for work, seconds in others.items():
                mine[work].append(sum(seconds))


def read_blocks(path: Path) -> Iterator[np.ndarray]:
    """The region, in blocks as of the pipeline."""
    reader = StackReader(str(path), "data", (N_FRAMES, *FRAME), np.dtype(np.uint16))
    rows, columns = (part.stop - part.start for part in REGION)
    size = choose_block((rows, columns), reader.dtype)
    for start in range(0, N_FRAMES, size):
        yield reader[(slice(start, start + size), *REGION)]


def label_plainly(path: Path, config: Config, labels: Path) -> Turns:
    """Do what `label_shard` does in a plain loop, and measure its parts."""
    members, turns = config.inference.members or [], Turns()
    maps = load_calibration(recipe_of(config, path.stem, FRAME))
    corner, blocks = (REGION[0].start, REGION[1].start), read_blocks(path)
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    shown: list[np.ndarray] = []
    while True:
        with turns.measure("read"):
            block = next(blocks, None)
        if block is None:
            break
        with turns.measure("preprocess"):
            patterns, counts = calibrate(block, maps, lit_photons=config.hits.lit_photons)
            score, lit = hit_score(counts, patterns[0].size), counts[:, 1].astype(np.int32)
            hit = find_hits(score, lit, window=config.hits.window, n_sigma=config.hits.n_sigma)
            shown.append(patterns[hit])
        with turns.measure("size"):
            library = load_library(config.geometry, config.sizing, corner, patterns.shape[1:])
            sums = radial_sums(shown[-1], library.bins, library.exposure)
            sizes = np.full((len(SIZES), len(hit)), np.nan, np.float32)
            sizes[:, hit] = fit_spheres(*sums, library)
        of_block = {"photon_count": counts[:, 0].astype(np.float32), "readable": counts[:, 2] > 0}
        of_block |= {"hit": hit, "hit_score": score, "lit_pixels": lit}
        of_block |= dict(zip(SIZES, sizes, strict=True))
        for name, values in of_block.items():
            found[name].append(values)
    with turns.measure("score"):
        hit = np.concatenate(found["hit"])
        scores = np.full((N_FRAMES, len(members)), np.nan, np.float32)
        scores[hit] = score_patterns(np.concatenate(shown), members, config)
    with turns.measure("write"):
        variables: dict = {name: ("frame", np.concatenate(v)) for name, v in found.items()}
        variables |= {"index": ("frame", np.arange(N_FRAMES)), "scores": (("frame", "n"), scores)}
        store.write_shard(labels, path.stem, 0, xr.Dataset(variables))
    return turns


def empty_store(run: xr.Dataset, config: Config) -> Path:
    """A store for the run; a shard can be written again and again."""
    labels = Path(config.output) / "labels.zarr"
    shutil.rmtree(labels, ignore_errors=True)
    template = label_lazily(run, config.inference.members or [], config)
    store.create_run(labels, str(run["run_name"].values[0]), template, N_FRAMES, N_FRAMES)
    return labels


def measure_layout(folder: Path, layout: str, hits: np.ndarray, members: list[str]) -> list[Row]:
    """Reading alone, the whole and the plain loop in turn, the labels of both compared."""
    path = folder / f"{layout.replace('/', '-')}.h5"
    write_run(path, layout, hits)
    turns, parts = Turns(), {precision: Turns() for precision in PRECISIONS}
    for number in range(ROUNDS + 1):
        if number == 1:  # what was measured before was compiled or opened
            turns, parts = Turns(), {precision: Turns() for precision in PRECISIONS}
        with turns.measure("read"):
            for _ in read_blocks(path):
                pass
        for precision in PRECISIONS:
            config = configure(path, folder, members, precision=precision)
            run = open_runs(config.runs.files, config.runs.dataset)
            labels = empty_store(run, config)
            with turns.measure(precision):
                label_shard(run, members, config, labels, 0)
            found = store.gather_labels(labels)
            with turns.measure(f"plain {precision}"):
                plain = label_plainly(path, config, labels)
            if not found.identical(store.gather_labels(labels)):
                raise SystemExit(f"{layout}, {precision}: a plain loop gives other labels")
            parts[precision].extend(plain)
    rows: list[Row] = [
        {"what": f"{layout}, reading alone", "frames/s": rate(turns.cpu["read"])},
    ]
    for precision in PRECISIONS:
        rows += describe(f"{layout}, {precision}", precision, turns, parts[precision])
    return rows


def measure_workers(folder: Path, members: list[str]) -> list[Row]:
    """Memory of a worker for a shard of 4 096 frames."""
    path, rows = folder / f"{LAYOUTS[0].replace('/', '-')}.h5", list[Row]()
    for mode in (None, COMMON_MODE):
        config = configure(path, folder, members, mode)
        run = open_runs(config.runs.files, config.runs.dataset)
        for n_threads in (1, 2):
            labels = empty_store(run, config)
            what = f"memory of a worker of {n_threads} threads" + (", common mode" if mode else "")
            rows.append({"what": what, "MB": measure_memory(run, config, labels, n_threads)})
    return rows


def describe(what: str, precision: str, turns: Turns, parts: Turns) -> list[Row]:
    """Rows of the whole and of the plain loop's parts."""
    whole, plain = turns.cpu[precision], turns.cpu[f"plain {precision}"]
    sums = [sum(one) for one in zip(*(parts.clock[part] for part in PARTS), strict=True)]
    each = {f"us {part}": 1e6 * statistics.median(parts.cpu[part]) / N_FRAMES for part in PARTS}
    return [
        {
            "what": f"{what}: whole",
            "frames/s": rate(whole),
            "of reading alone": ratio(turns.cpu["read"], whole),
            "of a plain loop's rate": ratio(plain, whole),
            "x its parts one by one, by the clock": ratio(sums, turns.clock[precision]),
        },
        {"what": f"{what}: parts of a plain loop", **each},
    ]


def rate(seconds: list[float]) -> float:
    """Frames a second."""
    return N_FRAMES / statistics.median(seconds)


def ratio(of: list[float], to: list[float]) -> float:
    """Median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def benchmark_pipeline(folder: Path) -> list[Row]:
    """The pipeline on both layouts, with dark, gain, adaptive hits, early exit and sizes.

    Parameters
    ----------
    folder : Path
        Gets about 3 GB, which the page cache has to hold.

    Returns
    -------
    list of dict
        For each layout reading alone; for each precision the whole, and the parts; memory.
    """
    torch.set_num_threads(1)
    hits = simulate(folder)
    members = write_members(folder, hits)
    rows = [row for layout in LAYOUTS for row in measure_layout(folder, layout, hits, members)]
    return rows + measure_workers(folder, members)

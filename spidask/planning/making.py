"""What a config costs, before anything is computed."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from dask.utils import parse_bytes
from distributed.system import MEMORY_LIMIT

from spidask.cluster import count_local_workers, job_script, threads_of_gpu_worker
from spidask.config import QUEUES, Config
from spidask.io import store
from spidask.io.beamtime import open_configured
from spidask.io.calibration import Recipe, recipe_of
from spidask.io.layout import ENERGIES
from spidask.io.maps import Region
from spidask.io.runs import choose_block
from spidask.io.stack import EVENT_IDS
from spidask.networks.architectures import ARCHITECTURES
from spidask.networks.cost import Cost, measure_networks
from spidask.networks.device import choose_batch, choose_device, resolve_device
from spidask.networks.member import read_architecture
from spidask.planning.plan import Plan
from spidask.provenance import awaits_simulation
from spidask.simulation.detector import PANEL

HIT_RATE = 0.016
"""Hits per frame where nothing else is known: 190 000 of 12 million (Assalauova 2020)."""
SINGLE_SHARE = 0.055
"""Selected frames per hit where nothing else is known."""
PHOTON_BYTES = 1.0
"""Bytes in photons.h5 for each pixel of a hit; seen with one pixel in six lit."""
CXI_BYTES = 1.0
"""Bytes in selection.cxi for each pixel of a selected frame, its mask included, compressed."""
ROW_BYTES = 40
"""Bytes of a row of selection.csv."""
LABEL_BYTES = 38
"""Bytes of a frame in labels.zarr, besides scores and event ids, before compression."""
PROCESS_BYTES = 550_000_000
"""Memory of a worker that has loaded its libraries and an ensemble."""
PIXEL_BYTES = 6
"""Memory of a pixel in work, besides its raw value: the pattern and half a copy of it."""
EVENT_BYTES = 80
"""Memory of an event while the small data are sorted, of which there are as many as frames."""
PATTERN_BYTES = 4
"""Bytes of a pixel of a pattern."""
READ_BYTES_PER_SECOND = 2e9
"""Decompressed by one core, of the rows that hold the region: 9 100 frames/s of 123 rows of 1 024
pixels, bitshuffle/LZ4, in the page cache (jobs/benchmark.py read). Uncompressed 3 times as many;
gzip, whose chunks are decompressed whole, a tenth."""
PIXELS_PER_SECOND = 2.2e9
"""Calibrated and counted by one core, without common mode (jobs/benchmark.py kernels)."""
USUAL_GFLOP, USUAL_LAYER_BYTES = 0.1005, 714_240
"""Of the compact network on 123 x 240 pixels, whose training and memory are known."""
SEEN_SECONDS, GFLOP_PER_SECOND = 0.8e-3, 105.0
"""Of one core for what a network sees of a pattern, and its arithmetic: that makes 1.8 ms for the
compact network, 21 for ResNet-18, 282 for YOLOv2, 1 330 for YOLOv3; jobs/benchmark.py networks
measured 1.7, 20, 270, 1 270 in torch, fp32."""
TRAINED_PER_SECOND = 90.0
"""Patterns that one core trains on."""
EXPORTED_PER_SECOND = 200.0
"""Hits that one worker reads again and writes."""
LAYERS_HELD = 3.5
"""Memory of a network for each pattern of a batch, in units of its largest layer."""
TRAINING_HELD = 2.5
"""Memory of training for each pattern of a piece of a batch, in units of its layers' outputs; seen
1.5 to 2.4."""
STATE_BYTES = 16
"""Memory of a parameter in training: itself, its gradient, and two moments."""
BLOCKS_HELD = 8
"""Blocks of patterns that wait for an adaptive threshold whose windows cut the blocks."""


@dataclass(frozen=True)
class _Input:
    """What headers, or the settings of a simulation, say of the frames."""

    lengths: dict[str, int]
    files: int
    unreadable: list[list[str]]
    shape: tuple[int, int]
    dtype: np.dtype[np.generic]
    event_ids: int


def make_plan(config: Config, frames: xr.Dataset | None = None) -> Plan:
    """Estimate what a config costs, from headers alone.

    Parameters
    ----------
    config : Config
        The beamtime. One that is still to be simulated is planned from its settings.
    frames : xarray.Dataset, optional
        As of `open_runs`, if it is at hand.

    Returns
    -------
    Plan
        Frames, shards, bytes, memory and output.

    Raises
    ------
    ConfigError
        If no files match or the region does not fit.
    DataError
        If no file can be read.

    Notes
    -----
    Memory as seen on whole and cut frames: a process takes 550 MB, and for each block in work
    the raw values and 6 bytes a pixel. A network that costs more than the compact one on 123 x 240
    pixels takes more memory for each pattern of a batch, in proportion to its largest layer.
    Where blocks are no multiple of `hits.window`, 8 blocks of patterns wait besides for their
    adaptive threshold. Training keeps the outputs of all layers for each pattern of a piece of a
    batch, and as much again for their gradients.
    """
    if frames is None and awaits_simulation(config):
        given = _simulated(config)
    else:
        given = _opened(open_headers(config) if frames is None else frames)
    recipes = {name: recipe_of(config, name, given.shape) for name in given.lengths}
    read = {name: recipe.n_read for name, recipe in recipes.items()}
    region = max((recipe.region for recipe in recipes.values()), key=_count_pixels)
    pixels = _count_pixels(region)
    cost = measure_networks(config, (region[1] - region[0], region[3] - region[2]))
    per_shard, n_frames = config.inference.frames_per_shard, sum(given.lengths.values())
    processes, threads = _processes(config)
    block = config.inference.frames_per_block or choose_block((1, max(read.values())), given.dtype)
    size, hit_rate = given.dtype.itemsize, _expected_hit_rate(config)
    reading = sum(
        n * _seconds_to_read(recipes[name], given.shape[1], size)
        for name, n in given.lengths.items()
    )
    queued = config.cluster.kind in QUEUES
    n_workers = processes * (config.cluster.jobs if queued else _count_nodes(config))
    return Plan(
        runs=len(given.lengths),
        files=given.files,
        frames=n_frames,
        unreadable=given.unreadable,
        shape=given.shape,
        dtype=str(given.dtype),
        shards=sum(store.count_shards(n, per_shard) for n in given.lengths.values()),
        frames_per_shard=per_shard,
        frames_per_block=block,
        raw_bytes=n_frames * math.prod(given.shape) * size,
        read_bytes=sum(n * read[name] * size for name, n in given.lengths.items()),
        task_bytes=max(min(per_shard, n) * read[name] * size for name, n in given.lengths.items()),
        process_bytes=PROCESS_BYTES
        + (EVENT_BYTES * n_frames if config.events else 0)
        + threads * _block_bytes(config, block, given.dtype, max(read.values()))
        + threads * _network_bytes(config, cost),
        train_bytes=_train_bytes(config, cost),
        processes=processes,
        machine_bytes=_machine_bytes(config),
        hit_rate=hit_rate,
        output_bytes=_output_bytes(config, n_frames, hit_rate, pixels, given.event_ids)
        | _checkpoint_bytes(config, cost),
        workers=n_workers,
        jobs=config.cluster.jobs if queued else 0,
        seconds=_seconds(config, n_frames, hit_rate, n_workers, cost, reading),
        script=job_script(config.cluster, config.output) if queued else "",
    )


def open_headers(config: Config) -> xr.Dataset:
    """Open the runs of a config without leaving a trace.

    Parameters
    ----------
    config : Config
        The beamtime.

    Returns
    -------
    xarray.Dataset
        As of `open_runs`. The index of the output folder is used where there is one.

    Raises
    ------
    ConfigError
        If no files match.
    DataError
        If no file can be read.
    """
    index = Path(config.output) / "index.json"
    is_writable = os.access(index, os.W_OK) and os.access(index.parent, os.W_OK)
    return open_configured(config, index if is_writable else None)


def _seconds(
    config: Config, n_frames: int, hit_rate: float, n_workers: int, cost: Cost, reading: float
) -> dict[str, float]:
    # `reading`: of all frames by one core, until hits are found.
    training, n_hits = config.training, n_frames * hit_rate
    ensemble = training.ensemble
    members: float = len(config.inference.members or []) or ensemble.size
    networks = ensemble.n_trained
    trained = networks * training.iterations * training.batch_size * cost.gflop / USUAL_GFLOP
    # A network is trained by `ranks` workers, and several networks side by side.
    side_by_side = max(1, min(n_workers, networks * training.ranks))
    if config.inference.ensemble == "early_exit":
        members = 1 + (members - 1) * _expected_single_share(config)
    per_pattern = SEEN_SECONDS + cost.gflop / GFLOP_PER_SECOND
    work = reading + n_hits * members * per_pattern
    seconds = (
        {} if config.inference.members else {"train": trained / TRAINED_PER_SECOND / side_by_side}
    )
    return seconds | {
        "classify": work / n_workers,
        "export": n_hits / EXPORTED_PER_SECOND / n_workers,
    }


def _seconds_to_read(recipe: Recipe, width: int, itemsize: int) -> float:
    # Of one frame: blocks are decompressed whole, whichever columns are asked for.
    n_rows = sum(y1 - y0 for y0, y1, _, _ in recipe.read)
    return n_rows * width * itemsize / READ_BYTES_PER_SECOND + recipe.n_read / PIXELS_PER_SECOND


def _opened(frames: xr.Dataset) -> _Input:
    codes, lengths = np.unique(frames["run"].values, return_counts=True)
    names = frames["run_name"].values
    shape = frames.attrs["frame_shape"]
    return _Input(
        {str(names[code]): int(n) for code, n in zip(codes, lengths, strict=True)},
        frames.sizes["file_code"],
        frames.attrs["unreadable_files"],
        (shape[0], shape[1]),
        frames["frames"].dtype,
        sum(name in frames.coords for name in (*EVENT_IDS, *ENERGIES)),
    )


def _simulated(config: Config) -> _Input:
    section = config.simulation
    assert section is not None
    lengths = {f"r{number:04d}": section.frames for number in range(1, section.runs + 1)}
    dtype = np.dtype(np.uint16)
    return _Input(lengths, section.runs, [], PANEL, dtype, 2)


def _count_pixels(region: Region) -> int:
    y0, y1, x0, x1 = region
    return (y1 - y0) * (x1 - x0)


def _block_bytes(config: Config, block: int, dtype: np.dtype[np.generic], pixels: int) -> int:
    cut = config.hits.threshold == "adaptive" and block % config.hits.window
    held = BLOCKS_HELD * PATTERN_BYTES if cut else 0
    n_frames = min(block, config.inference.frames_per_shard)
    return n_frames * pixels * (dtype.itemsize + PIXEL_BYTES + held)


def _network_bytes(config: Config, cost: Cost) -> int:
    more = max(LAYERS_HELD * (cost.layer_bytes - USUAL_LAYER_BYTES), 0)
    named = config.inference.members
    kind = read_architecture(named[0]) if named else ARCHITECTURES[config.training.architecture]
    device = choose_device(config)
    device = resolve_device(config) if device == "auto" else device
    return round(choose_batch(config, kind, device) * more)


def _train_bytes(config: Config, cost: Cost) -> int:
    training = config.training
    if config.inference.members:
        return 0
    piece = training.batch_size // (training.ranks * training.subdivisions)
    held = TRAINING_HELD * piece * cost.held_bytes
    return PROCESS_BYTES + STATE_BYTES * cost.n_parameters + round(held)


def _checkpoint_bytes(config: Config, cost: Cost) -> dict[str, int]:
    # Weights of each checkpoint, and the last one's two moments.
    training = config.training
    if config.inference.members:
        return {}
    n = math.ceil(training.iterations / training.checkpoint_every) + 2
    return {"checkpoints": 4 * cost.n_parameters * n * training.ensemble.n_trained}


def _processes(config: Config) -> tuple[int, int]:
    # As `connect` starts them: of a job or of this machine; inline, this process with all cores.
    cluster = config.cluster
    if cluster.kind == "inline":
        return 1, len(os.sched_getaffinity(0))
    if cluster.kind in QUEUES:
        return cluster.n_workers, cluster.job.cores // cluster.n_workers
    if cluster.kind == "allocation":
        return cluster.n_workers, int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    if cluster.kind == "scheduler":
        return max((cluster.gpus or 0) + (cluster.cpu_workers or 0), 1), 1
    n_gpus, n_cpu_workers = count_local_workers(cluster)
    threads = threads_of_gpu_worker(n_gpus, n_cpu_workers) if n_gpus else 1
    return n_gpus + n_cpu_workers, threads


def _count_nodes(config: Config) -> int:
    in_allocation = config.cluster.kind == "allocation"
    return int(os.environ.get("SLURM_NNODES", "1")) if in_allocation else 1


def _machine_bytes(config: Config) -> int:
    if config.cluster.kind in QUEUES:
        return int(parse_bytes(config.cluster.job.memory))
    return int(MEMORY_LIMIT) if config.cluster.kind in ("local", "inline") else 0


def _expected_hit_rate(config: Config) -> float:
    if config.hits.threshold == "none":
        return 1.0
    return config.simulation.hit_rate if config.simulation else HIT_RATE


def _expected_single_share(config: Config) -> float:
    return config.selection.expected_single_fraction or SINGLE_SHARE


def _output_bytes(
    config: Config, n_frames: int, hit_rate: float, pixels: int, event_ids: int
) -> dict[str, int]:
    members = len(config.inference.members or []) or config.training.ensemble.size
    n_hits = n_frames * hit_rate
    n_selected = n_hits * _expected_single_share(config)
    pixels //= config.handoff.bin**2
    return {
        "labels.zarr": n_frames * (LABEL_BYTES + 4 * members + 8 * event_ids),
        "selection.csv": n_frames * ROW_BYTES,
        "dragonfly/photons.h5": round(n_hits * pixels * PHOTON_BYTES),
        "selection.cxi": round(n_selected * pixels * CXI_BYTES),
    }

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
from spidask.io.calibration import recipe_of
from spidask.io.layout import ENERGIES
from spidask.io.maps import Region
from spidask.io.runs import choose_block
from spidask.io.stack import EVENT_IDS
from spidask.networks.cost import Cost, measure_networks
from spidask.provenance import awaits_simulation
from spidask.simulation.detector import PANEL
from spidask.units import format_bytes, format_seconds

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
FRAMES_PER_SECOND = 600.0
"""Read, calibrated and searched for hits by one worker: 512 x 1024 pixels, bitshuffle/LZ4."""
USUAL_GFLOP, USUAL_LAYER_BYTES = 0.1005, 714_240
"""Of the compact network on 123 x 240 pixels, whose rates are known."""
PATTERNS_PER_SECOND = 250.0
"""Scored by one member on one core."""
TRAINED_PER_SECOND = 90.0
"""Patterns that one core trains on."""
EXPORTED_PER_SECOND = 200.0
"""Hits that one worker reads again and writes."""
LAYERS_HELD = 3.5
"""Memory of a network for each pattern of a batch, in units of its largest layer."""
BLOCKS_HELD = 8
"""Blocks of patterns that wait for an adaptive threshold whose windows cut the blocks."""


@dataclass(frozen=True)
class Plan:
    """What a config costs.

    Attributes
    ----------
    runs, files, frames : int
        What can be read.
    unreadable : list
        [path, reason] of files whose frames are unknown.
    shape : tuple of int
        Rows and columns of a frame.
    dtype : str
        NumPy dtype of a raw pixel.
    shards : int
        Tasks of the stage classify.
    frames_per_shard, frames_per_block : int
        Frames of a task, and of what it reads at once.
    raw_bytes, read_bytes : int
        Uncompressed raw frames, and the part of them that is read.
    task_bytes, process_bytes : int
        What a task reads, and the memory of the process that does it.
    processes : int
        Processes at a time, on this machine, in a job, or on an allocation's node.
    machine_bytes : int
        Memory of this machine, or of a batch job; 0 where the workers' machines are not known.
    hit_rate : float
        Share of hits that `output_bytes` assumes.
    output_bytes : dict
        File to the bytes expected.
    workers : int
        Workers of all jobs, of an allocation, or of this machine; of a scheduler that runs, what
        `gpus` and `cpu_workers` say.
    jobs : int
        Batch jobs at a time; 0 where there is no batch system.
    seconds : dict
        Stage to the time expected.
    script : str
        The job script, empty where there is no batch system.
    """

    runs: int
    files: int
    frames: int
    unreadable: list[list[str]]
    shape: tuple[int, int]
    dtype: str
    shards: int
    frames_per_shard: int
    frames_per_block: int
    raw_bytes: int
    read_bytes: int
    task_bytes: int
    process_bytes: int
    processes: int
    machine_bytes: int
    hit_rate: float
    output_bytes: dict[str, int]
    workers: int
    jobs: int
    seconds: dict[str, float]
    script: str

    def lines(self) -> list[str]:
        """Say it to a person.

        Returns
        -------
        list of str
            Lines of text.
        """
        memory = self.processes * self.process_bytes
        output = ", ".join(f"{k} {format_bytes(v)}" for k, v in self.output_bytes.items())
        place = "a job's" if self.jobs else "this"
        has = f"{place} machine has {format_bytes(self.machine_bytes)}"
        times = ", ".join(f"{k} {format_seconds(v)}" for k, v in self.seconds.items())
        jobs = f"{self.jobs} jobs at a time, {self.workers} workers in all"
        told = [
            f"input    {self.frames} frames of {self.shape[0]} x {self.shape[1]} {self.dtype} in "
            f"{self.runs} runs, {self.files} files; {len(self.unreadable)} files unreadable",
            f"raw      {format_bytes(self.raw_bytes)}, of which "
            f"{format_bytes(self.read_bytes)} are within the region to read",
            f"work     {self.shards} shards of up to {self.frames_per_shard} frames, read in "
            f"blocks of up to {self.frames_per_block}",
            f"task     reads {format_bytes(self.task_bytes)}; its process takes about "
            f"{format_bytes(self.process_bytes)}",
            f"memory   {self.processes} processes at a time, about {format_bytes(memory)}; "
            + (has if self.machine_bytes else "the memory of their machines is not known here"),
            f"output   {format_bytes(sum(self.output_bytes.values()))} if {self.hit_rate:.1%} of "
            f"the frames are hits: {output}",
            f"time     {times}, at the rates of one CPU core for each worker; neither GPUs nor a "
            "busy file system are in that",
        ]
        return [*told, f"jobs     {jobs}; each:", "", self.script] if self.jobs else told


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
    adaptive threshold.
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
        processes=processes,
        machine_bytes=_machine_bytes(config),
        hit_rate=hit_rate,
        output_bytes=_output_bytes(config, n_frames, hit_rate, pixels, given.event_ids),
        workers=n_workers,
        jobs=config.cluster.jobs if queued else 0,
        seconds=_seconds(config, n_frames, hit_rate, n_workers, cost.gflop / USUAL_GFLOP),
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
    config: Config, n_frames: int, hit_rate: float, n_workers: int, cost: float
) -> dict[str, float]:
    # `cost`: of the network, against that of the patterns whose rates are known.
    training, n_hits = config.training, n_frames * hit_rate
    ensemble = training.ensemble
    members = len(config.inference.members or []) or ensemble.size
    networks = ensemble.n_members if ensemble.kind == "seeds" else 1
    trained = networks * training.iterations * training.batch_size * cost
    # A network is trained by `ranks` workers, and several networks side by side.
    side_by_side = max(1, min(n_workers, networks * training.ranks))
    work = n_frames / FRAMES_PER_SECOND + n_hits * members * cost / PATTERNS_PER_SECOND
    seconds = (
        {} if config.inference.members else {"train": trained / TRAINED_PER_SECOND / side_by_side}
    )
    return seconds | {
        "classify": work / n_workers,
        "export": n_hits / EXPORTED_PER_SECOND / n_workers,
    }


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
    return round(config.inference.batch_size * more)


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


def _output_bytes(
    config: Config, n_frames: int, hit_rate: float, pixels: int, event_ids: int
) -> dict[str, int]:
    members = len(config.inference.members or []) or config.training.ensemble.size
    n_hits = n_frames * hit_rate
    n_selected = n_hits * (config.selection.expected_single_fraction or SINGLE_SHARE)
    pixels //= config.handoff.bin**2
    return {
        "labels.zarr": n_frames * (LABEL_BYTES + 4 * members + 8 * event_ids),
        "selection.csv": n_frames * ROW_BYTES,
        "dragonfly/photons.h5": round(n_hits * pixels * PHOTON_BYTES),
        "selection.cxi": round(n_selected * pixels * CXI_BYTES),
    }

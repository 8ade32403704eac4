"""Measure spidask on this machine, everything side by side in one run.

    python jobs/benchmark.py all FOLDER [--gpu]  # all but scale; one table, one JSON, a picture
    python jobs/benchmark.py dask FOLDER     # two Dask workers against plain loops, and against one
    python jobs/benchmark.py scale FOLDER    # 12 million frames in 400 runs: what all shards cost
    python jobs/benchmark.py read FOLDER     # a region of every layout against plain Dask
    python jobs/benchmark.py networks FOLDER [--gpu]  # each against eager torch and the matrix rate
    python jobs/benchmark.py kernels FOLDER  # from the raw region to what a network sees
    python jobs/benchmark.py pipeline FOLDER # the whole against reading alone and a plain loop
    python jobs/benchmark.py pipeline FOLDER --gpu  # the whole and YOLOv2-416 on a CUDA device

FOLDER gets the files that are measured, about 4 GB. Prints a table and writes it as JSON into
FOLDER/NAME.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import dask
import h5py
import hdf5plugin
import numpy as np
import torch
import xarray as xr
from benchmark_all import measure_all
from benchmark_gpu import benchmark_gpu
from benchmark_kernels import benchmark_kernels
from benchmark_memory import peak_memory
from benchmark_networks import benchmark_networks
from benchmark_pipeline import benchmark_pipeline, ratio
from benchmark_reading import benchmark_read
from distributed import Client

from spidask.cluster import connect
from spidask.cluster.memory import KEEP
from spidask.config import Config, parse_config
from spidask.inference import Shard, classify_runs, label_lazily, label_shard
from spidask.io import store
from spidask.io.runs import open_runs, select_run, sign_files
from spidask.networks.member import SHIPPED
from spidask.planning import make_plan

SHAPE = (123, 240)
N_WORKERS = 2
N_RUNS = 4
N_RUNS_TO_DO = 16
REPEATS = 3
GPU_WORKERS = (1, 8, 64)
ON_GPU = ("networks", "pipeline")

Row = dict[str, str | float]


def write_run(path: Path, n_frames: int, hit_rate: float, seed: int) -> None:
    """A run of photons, bitshuffle/LZ4: frames of stray light, and hits twenty times as bright."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    fall = (1 / (1 + np.hypot(y + 3, x - 119.5) / 6) ** 3).astype(np.float32)
    stock = random.poisson(3 * fall, (512, *SHAPE)).astype(np.uint16)
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "data",
            (n_frames, *SHAPE),
            np.uint16,
            chunks=(1, *SHAPE),
            **hdf5plugin.Bitshuffle(cname="lz4"),
        )
        for i in range(n_frames):
            is_hit = random.random() < hit_rate
            data[i] = random.poisson(60 * fall) if is_hit else stock[random.integers(len(stock))]


def config_of(files: list[Path], output: Path, **sections: dict) -> Config:
    """Settings for these files, with the shipped network as the only member."""
    return parse_config(
        {
            "runs": {"files": [str(path) for path in files], "dataset": "data"},
            "output": str(output),
            "inference": {"members": [str(SHIPPED)]},
            "hits": {"threshold": 700.0},
            "cluster": {"cpu_workers": N_WORKERS},
            **sections,
        }
    )


def fresh_store(frames: xr.Dataset, config: Config) -> Path:
    """An empty store for all runs, as `classify_runs` makes one."""
    labels = Path(config.output) / "labels.zarr"
    shutil.rmtree(labels, ignore_errors=True)
    names = [str(name) for name in frames["run_name"].values]
    template = label_lazily(select_run(frames, names[0]), [SHIPPED], config)
    for name in names:
        n_frames = select_run(frames, name).sizes["frame"]
        store.create_run(labels, name, template, n_frames, config.inference.frames_per_shard)
    return labels


def loop(
    config: Config, shards: list[tuple[str, int]], start: Callable[[], object], took: object
) -> None:
    """One plain process: its part of the shards, one after another."""
    frames = open_runs(config.runs.files, config.runs.dataset)
    labels = Path(config.output) / "labels.zarr"
    runs = {name: select_run(frames, name) for name in {name for name, _ in shards}}
    label_shard(runs[shards[0][0]], [SHIPPED], config, labels, shards[0][1])  # warm
    start()
    begin = time.perf_counter()
    for name, number in shards:
        label_shard(runs[name], [SHIPPED], config, labels, number)
    took.put(time.perf_counter() - begin)  # type: ignore[attr-defined]


def time_loops(frames: xr.Dataset, config: Config) -> float:
    """Seconds until the slower of the plain processes is done."""
    labels = fresh_store(frames, config)
    shards = [
        (name, n) for name in store.list_runs(labels) for n in store.missing_shards(labels, name)
    ]
    context = multiprocessing.get_context("spawn")
    barrier, took = context.Barrier(N_WORKERS), context.Queue()
    processes = [
        context.Process(target=loop, args=(config, shards[i::N_WORKERS], barrier.wait, took))
        for i in range(N_WORKERS)
    ]
    # Memory and threads as of workers.
    given = dask.config.get("distributed.nanny.pre-spawn-environ")
    environment = {name: str(value) for name, value in given.items()} | KEEP
    with mock.patch.dict(os.environ, environment):
        for process in processes:
            process.start()
    seconds = [took.get() for _ in processes]
    for process in processes:
        process.join()
    return max(seconds)


@dataclass(frozen=True)
class Classified:
    """The stage classify: its seconds, those that all workers together computed, its shards."""

    seconds: float
    computed: float
    shards: list[Shard]


def time_dask(frames: xr.Dataset, config: Config, client: Client) -> Classified:
    """Classify on warm workers."""
    labels = fresh_store(frames, config)
    before, start = client.run(time.process_time), time.perf_counter()
    done = classify_runs(frames, [SHIPPED], config, labels, sign_files(frames), client)
    seconds, after = time.perf_counter() - start, client.run(time.process_time)
    return Classified(seconds, sum(after.values()) - sum(before.values()), done)


def benchmark_dask(folder: Path) -> list[Row]:
    """Two Dask workers against two plain loops and against one worker, default size of shards."""
    files = [folder / f"r{number:04d}.h5" for number in range(1, N_RUNS + 1)]
    for number, path in enumerate(files):
        if not path.exists() and number < 2:
            write_run(path, 16_384, 0.02, number)
        elif not path.exists():
            path.symlink_to(files[number % 2])
    config = config_of(files, folder / "out")
    single = config_of(files, folder / "single", cluster={"cpu_workers": 1})
    frames = open_runs(config.runs.files, config.runs.dataset)
    plain: list[float] = []
    two: list[Classified] = []
    alone: list[Classified] = []
    with (
        connect(config.cluster, config.output) as client,
        connect(single.cluster, single.output) as one,
    ):
        assert client is not None
        assert one is not None
        time_dask(frames, config, client)  # warm
        time_dask(frames, single, one)
        for _ in range(REPEATS):
            plain.append(time_loops(frames, config))
            two.append(time_dask(frames, config, client))
            alone.append(time_dask(frames, single, one))
        memory = max(client.run(peak_memory).values())
    n_frames = frames.sizes["frame"]
    seconds, seconds_alone = [t.seconds for t in two], [t.seconds for t in alone]
    outside = [
        (t.seconds - sum(s.seconds for s in t.shards) / N_WORKERS) / len(t.shards) for t in two
    ]
    return [
        {"what": "plain loops, two processes", "frames/s": n_frames / statistics.median(plain)},
        {
            "what": "one Dask worker, which reads while it computes",
            "frames/s": n_frames / statistics.median(seconds_alone),
            "cores kept busy": statistics.median(t.computed / t.seconds for t in alone),
        },
        {
            "what": "two Dask workers",
            "frames/s": n_frames / statistics.median(seconds),
            "cores kept busy": statistics.median(t.computed / t.seconds for t in two),
            "x the time of plain loops": ratio(seconds, plain),
            "x the rate of one": ratio(seconds_alone, seconds),
            "x the rate of one, for a second that a core computed": ratio(
                [t.computed for t in alone], [t.computed for t in two]
            ),
            "seconds outside of shards, per shard": statistics.median(outside),
            "MB a worker at most": memory,
            "MB driver and scheduler at most": peak_memory(),
        },
    ]


def benchmark_scale(folder: Path) -> list[Row]:
    """A beamtime whose chunks were never written, so that it takes no space."""
    files = [folder / f"r{number:04d}.h5" for number in range(1, 401)]
    for path in files:
        if not path.exists():
            with h5py.File(path, "w", libver="latest") as file:
                shape = (30_000, 512, 1024)
                file.create_dataset("data", shape, np.uint16, chunks=(1, *shape[1:]))
    region = {"region": {"y": [0, 123], "x": [392, 632]}}
    config = config_of(files, folder / "out", preprocessing=region)
    start = time.perf_counter()
    plan = make_plan(config)
    rows: list[Row] = [
        {"what": "plan of 12 million frames", "seconds": time.perf_counter() - start}
    ]
    rows.append({"what": "memory after it", "MB": peak_memory()})
    frames = open_runs(config.runs.files, config.runs.dataset)
    start = time.perf_counter()
    labels = fresh_store(frames, config)
    rows.append(
        {"what": "labels.zarr of 400 runs, still empty", "seconds": time.perf_counter() - start}
    )
    # All shards but those of some runs count as done, for the driver has to hold all runs anyhow.
    for name in store.list_runs(labels)[N_RUNS_TO_DO:]:
        array = store.open_run(labels, name)["done"]
        array[:] = 1  # type: ignore[index]
    ends: list[float] = []
    with connect(config.cluster, config.output) as client:
        assert client is not None
        before, cpu = time.perf_counter(), time.process_time()
        done = classify_runs(
            frames,
            [SHIPPED],
            config,
            labels,
            sign_files(frames),
            client,
            lambda _shard, _n: ends.append(time.perf_counter()),
        )
        cpu = time.process_time() - cpu
        start, again = time.perf_counter(), time.process_time()
        classify_runs(frames, [SHIPPED], config, labels, sign_files(frames), client)
        again = time.process_time() - again
        looked = time.perf_counter() - start
    first = min(end - shard.seconds for end, shard in zip(ends, done, strict=True))
    inside = sum(shard.seconds for shard in done) / len(done)
    outside = N_WORKERS * (max(ends) - first) / len(done) - inside
    driver = (cpu - again) / len(done)
    rows += [
        {"what": "until the first shard begins, all 400 runs looked at", "seconds": first - before},
        {"what": "the same where all shards are done", "seconds": looked},
        {"what": f"inside of {len(done)} shards with nothing to score, each", "seconds": inside},
        {"what": "a worker's time outside of them, per shard", "seconds": outside},
        {"what": "driver and scheduler, CPU per shard", "seconds": driver},
        {"what": "driver and scheduler, one process, memory at most", "MB": peak_memory()},
        {"what": "shards of 12 million frames", "": float(plan.shards)},
        {"what": "raw bytes of the region", "GB": plan.read_bytes / 1e9},
    ]
    for n in GPU_WORKERS:
        # Workers as fast as one core here, on these empty frames or on real ones as of `plan`.
        empty = (inside + outside) * plan.shards / n
        real = plan.seconds["classify"] * plan.workers / n + outside * plan.shards / n
        rows.append(
            {
                "what": f"projected for {n} workers, each as one core here; not measured",
                "hours at least": max(empty, driver * plan.shards) / 3600,
                "hours with real frames": max(real, driver * plan.shards) / 3600,
                "GB/s of whole frames before compression": plan.raw_bytes
                / 1e9
                / max(real, driver * plan.shards),
                "of the driver's time": driver * plan.shards / max(real, driver * plan.shards),
            }
        )
    return rows


def refuse_without_gpu(name: str) -> None:
    """End where rows of a GPU are asked for that cannot be measured."""
    if name not in ("all", *ON_GPU):
        raise SystemExit(f"benchmark.py {name} has no rows of a GPU; give networks or pipeline")
    if not torch.cuda.is_available():
        raise SystemExit(
            f"torch {torch.__version__} sees no CUDA device on this machine: no row of a GPU was "
            "measured; run this where there is one, or leave out --gpu"
        )


def main() -> None:
    """Measure, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "name", choices=["all", "dask", "scale", "read", "kernels", "networks", "pipeline"]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpu", action="store_true", help="networks, pipeline: on the CUDA device")
    options = parser.parse_args()
    if options.gpu:
        refuse_without_gpu(options.name)
    if not os.environ.keys() >= KEEP.keys():
        # Memory is kept as workers keep it: fresh pages cost more than the kernels.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
    if options.name == "all":
        names = ON_GPU if options.gpu else ("read", "kernels", "networks", "pipeline", "dask")
        measure_all(names, Path(__file__), options.folder, gpu=options.gpu)
        return
    folder = options.folder / options.name
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.WARNING)
    networks = functools.partial(benchmark_networks, gpu=options.gpu)
    benchmarks = {
        "dask": benchmark_dask,
        "scale": benchmark_scale,
        "read": benchmark_read,
        "kernels": benchmark_kernels,
        "networks": networks,
        "pipeline": benchmark_gpu if options.gpu else benchmark_pipeline,
    }
    rows = benchmarks[options.name](folder)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    if options.gpu:
        machine += f", {torch.cuda.get_device_name()}"
    print(f"{machine}, {time.strftime('%Y-%m-%d')}")
    for row in rows:
        what, *_ = row.values()
        told = ", ".join(f"{v:.4g} {k}" for k, v in row.items() if isinstance(v, float))
        print(f"  {what:60} {told}")
    facts = {"machine": machine, "date": time.strftime("%Y-%m-%d"), "rows": rows}
    name = f"{options.name}-gpu" if options.gpu else options.name
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()

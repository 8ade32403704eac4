"""What `benchmark.py pipeline --gpu` measures, by the clock, on one CUDA device.

YOLOv2-416 as inference runs it against the device's matrix rate, its training, what is done on the
device with raw frames against the bus, and the whole classification from the raw region of
page-cached files.
The rows were never run on a GPU: there was none.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import benchmark_pipeline as pipeline
import numpy as np
import torch
import xarray as xr
from benchmark_kernels import ADU_PER_PHOTON, LIT, MAX_ADU, calibration, raw_frames
from benchmark_networks import (
    PICTURES,
    SHAPE,
    cases,
    clock,
    interleave,
    judge,
    matrix_rates,
    ratio,
    simulate,
)

from spidask.config import Config, Representation, Training, parse_config
from spidask.frames.calibrate import Calibration
from spidask.inference import label_shard
from spidask.inference.scoring import load_current
from spidask.io import store
from spidask.io.hdf5 import StackReader
from spidask.io.runs import open_runs
from spidask.metrics import average_precision
from spidask.networks import preprocess, spheres
from spidask.networks.batches import Labelled, draw_batch, upload
from spidask.networks.classifier import SINGLE
from spidask.networks.cost import measure_cost
from spidask.networks.device import choose_batch
from spidask.networks.learning import Team, begin, train_rank
from spidask.networks.member import SHIPPED, Member, load_member, save_member
from spidask.preprocessing import load_library
from spidask.schema import CLASSES
from spidask.stopwatch import take_seconds

ROUNDS = 9
AGIPD_RATE = 3520
"""Frames a second."""
AGIPD = (16 * 512, 128)
N_AGIPD = 32
N_VALIDATE = 128
N_ITERATIONS = 4400
"""Of YOLOv2 in the paper."""

Row = dict[str, str | float]


def benchmark_gpu(folder: Path, device: str = "cuda") -> list[Row]:
    """Measure all of it.

    Parameters
    ----------
    folder : Path
        Gets about 3 GB, which the page cache has to hold.
    device : str
        What torch calls the device.

    Returns
    -------
    list of dict
        Rows.
    """
    patterns = simulate(folder)
    yolo = write_yolo(folder, device)
    rates = matrix_rates(device)
    rows: list[Row] = [
        {"what": f"products of matrices, {name}", "GFLOP/s": rate / 1e9}
        for name, rate in rates.items()
    ]
    rows += [measure_network(yolo, patterns, device, p, rates[p]) for p in ("fp32", "bf16")]
    rows.append(measure_training(folder, patterns, device))
    rows += measure_kernels(patterns, device)
    for layout in pipeline.LAYOUTS:
        members = {"compact": SHIPPED, "YOLOv2-416": yolo}
        rows += measure_layout(folder, layout, patterns, members, device)
    return rows


def write_yolo(folder: Path, device: str) -> Path:
    """A member of random numbers that looks at pictures of 416 x 416."""
    path = folder / "yolov2.safetensors"
    (network,) = (case.network for case in cases(device) if case.name == "yolov2 416")
    save_member(Member(network.cpu(), Representation(size=(416, 416), **PICTURES)), path)
    return path


def settings(member: Path, device: str, precision: str) -> Config:
    """A config that scores with one member."""
    given = {"members": [str(member)], "device": device, "precision": precision}
    return parse_config({"runs": {"files": ["none"]}, "output": "none", "inference": given})


def measure_network(
    path: Path, patterns: np.ndarray, device: str, precision: str, rate: float
) -> Row:
    """A network as inference runs it, in full batches, from patterns that are on the device."""
    config = settings(path, device, precision)
    member = load_current(str(path), config)
    size = choose_batch(config, member.network, device)
    given = torch.from_numpy(np.resize(patterns, (size, *patterns.shape[1:]))).to(device)
    with torch.inference_mode():
        seen = member.network.see(given, member.representation)
        works = {
            "view": lambda: member.network.see(given, member.representation),
            "forward": lambda: member.network(*seen),
        }
        seconds = interleave(works, ROUNDS, device)
    gflop = measure_cost(load_member(path).network, member.representation, SHAPE).gflop
    both = [a + b for a, b in zip(seconds["view"], seconds["forward"], strict=True)]
    return {
        "what": f"{path.stem} as inference runs it, {precision}, batches of {size}",
        "patterns/s": size / statistics.median(both),
        "of the matrix rate": gflop * 1e9 * size / statistics.median(seconds["forward"]) / rate,
        "of the matrix rate with the view": gflop * 1e9 * size / statistics.median(both) / rate,
    }


def measure_training(folder: Path, patterns: np.ndarray, device: str, **training: Any) -> Row:
    """Iterations of YOLOv2 from the first checkpoint to the last, and the paper's training of it.

    Batches are drawn and augmented on the device as in `spidask run`; every checkpoint is scored.
    """
    seen = {"size": (416, 416), **PICTURES}
    fixed = {"architecture": "yolov2", "initial": "random", "precision": "bf16"}
    config = Training(**{**fixed, "iterations": 75, "representation": seen, **training})
    n = len(patterns)
    boxes = np.tile(np.float32([0.5, 0.1, 0.6, 0.6]), (n, 1))
    labelled = Labelled(patterns, np.arange(n) % len(CLASSES), boxes)
    is_single = labelled.classes == SINGLE
    ends: list[float] = []

    def judge_scores(scored: np.ndarray) -> dict[str, float]:
        return {"validation_average_precision": average_precision(scored, is_single[:N_VALIDATE])}

    shutil.rmtree(folder / "training", ignore_errors=True)  # it would be continued
    train_rank(
        partial(begin, config, labelled),
        partial(draw_batch, upload(labelled, device), 0),
        patterns[:N_VALIDATE],
        judge_scores,
        config,
        0,
        folder / "training",
        Team(device=device),
        lambda _row: ends.append(clock(device)),
    )
    each = (ends[-1] - ends[config.checkpoint_every - 1]) / (len(ends) - config.checkpoint_every)
    return {
        "what": f"yolov2 416 trains, {config.precision}, batches of {config.batch_size}",
        "iterations/s": 1 / each,
        f"minutes for {N_ITERATIONS} iterations": N_ITERATIONS * each / 60,
    }


def measure_kernels(patterns: np.ndarray, device: str) -> list[Row]:
    """Photons, counts and sizes on the device against the bus that brings the raw frames."""
    there = torch.device(device)
    random = np.random.default_rng(1)
    offset = random.normal(1000, 1, AGIPD).astype(np.float32)
    divisor = np.full(AGIPD, ADU_PER_PHOTON, np.float32)
    modules = Calibration(offset, divisor, asic=(64, 64), max_adu=MAX_ADU)
    stacked = random.normal(1000, 8, (N_AGIPD, *AGIPD)).astype(np.uint16)
    panel = raw_frames()
    works = {
        "panel of 123 x 240": (panel, calibration()),
        "the same, common mode of 1 x 120": (panel, calibration((1, 120))),
        "16 modules, common mode of 64 x 64": (stacked, modules),
    }
    rows = [measure_calibration(what, *work, there) for what, work in works.items()]
    config = settings(SHIPPED, device, "fp32")
    library = spheres.to_device(
        load_library(config.geometry, config.sizing, (0, 392), SHAPE), there
    )
    hits = torch.from_numpy(patterns[: spheres.AT_ONCE]).to(there)
    fits = {"fit": lambda: spheres.fit_patterns(hits, library)}
    seconds = interleave(fits, ROUNDS, device)["fit"]
    what = f"spheres fitted, {len(library.diameters)} diameters"
    return [*rows, {"what": what, "patterns/s": len(hits) / statistics.median(seconds)}]


def measure_calibration(what: str, raw: np.ndarray, maps: Calibration, device: torch.device) -> Row:
    """Raw frames to photons and counts, and the copy of the raw frames, in turn."""
    host = torch.from_numpy(raw)
    host = host.pin_memory() if device.type == "cuda" else host
    given, there = host.to(device), preprocess.to_device(maps, device)
    works: dict[str, Callable[[], Any]] = {
        "bus": lambda: host.to(device, non_blocking=True, copy=True),
        "photons": lambda: preprocess.calibrate(given, there, lit_photons=LIT),
    }
    seconds = interleave(works, ROUNDS, device.type)
    return {
        "what": f"photons and counts on the device, {what}",
        "frames/s": len(raw) / statistics.median(seconds["photons"]),
        "raw GB/s": raw.nbytes / statistics.median(seconds["photons"]) / 1e9,
        "GB/s of the bus": raw.nbytes / statistics.median(seconds["bus"]) / 1e9,
        "x the bus": ratio(seconds["bus"], seconds["photons"]),
    }


def measure_layout(
    folder: Path, layout: str, hits: np.ndarray, members: dict[str, Path], device: str
) -> list[Row]:
    """Shards of one file as a worker with a GPU labels them, and reading alone, in turn."""
    path = folder / f"{layout.replace('/', '-')}.h5"
    pipeline.write_run(path, layout, hits)
    n_threads = len(os.sched_getaffinity(0))
    configs = {
        name: pipeline.configure(
            path, folder, [str(member)], device=device, precision="bf16"
        ).model_copy(update={"output": str(folder / name)})
        for name, member in members.items()
    }
    run = open_runs([str(path)], "data")
    works: dict[str, Callable[[], Any]] = {"reading alone": partial(read_alone, path, n_threads)}
    works |= {name: prepare(run, config) for name, config in configs.items()}
    seconds = interleave(works, ROUNDS, device)
    rows: list[Row] = [
        {
            "what": f"{layout}, reading alone, {n_threads} threads",
            "frames/s": pipeline.N_FRAMES / statistics.median(seconds["reading alone"]),
        }
    ]
    for name in configs:
        rate = pipeline.N_FRAMES / statistics.median(seconds[name])
        rows.append(
            {
                "what": f"{layout}, whole pipeline, {name}, bf16, {n_threads} threads",
                "frames/s": rate,
                "of AGIPD's rate": rate / AGIPD_RATE,
                "of reading alone": ratio(seconds["reading alone"], seconds[name]),
                **split(works[name], device),
            }
        )
    return [*rows, *compare(run, configs["compact"], layout)]


def read_alone(path: Path, n_threads: int) -> None:
    """The region, in as many blocks at once as there are threads."""
    reader = StackReader(str(path), "data", (pipeline.N_FRAMES, *pipeline.FRAME), np.dtype("u2"))
    size = -(-pipeline.N_FRAMES // n_threads)
    blocks = [slice(start, start + size) for start in range(0, pipeline.N_FRAMES, size)]
    with ThreadPoolExecutor(n_threads) as pool:
        for block in pool.map(lambda block: len(reader[(block, *pipeline.REGION)]), blocks):
            assert block


def prepare(run: xr.Dataset, config: Config) -> Callable[[], object]:
    """Make a store; gives what labels the one shard of a run in it, again and again."""
    labels = pipeline.empty_store(run, config)
    return partial(label_shard, run, config.inference.members or [], config, labels, 0)


def label(run: xr.Dataset, config: Config) -> xr.Dataset:
    """Label the one shard of a run; gives its labels."""
    prepare(run, config)()
    return store.gather_labels(Path(config.output) / "labels.zarr")


def split(work: Callable[[], object], device: str) -> Row:
    """Where the time of one more shard goes, and the largest memory of the device."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = clock(device)
    work()
    whole = clock(device) - start
    row: Row = {f"s {work}": seconds for work, seconds in take_seconds().items()}
    row["s by the clock, of which reading is in all threads"] = whole
    if device == "cuda":
        row["GB on the device"] = torch.cuda.max_memory_allocated() / 1e9
    return row


def compare(run: xr.Dataset, config: Config, layout: str) -> list[Row]:
    """Labels of the device against those of the CPU in single precision, by the law."""
    inference = config.inference.model_copy(update={"device": "cpu", "precision": "fp32"})
    expected = label(run, config.model_copy(update={"inference": inference}))
    thresholds = np.array([load_member(path).threshold for path in config.inference.members or []])
    rows: list[Row] = []
    for precision in ("fp32", "bf16"):
        changed = config.inference.model_copy(update={"precision": precision})
        found = label(run, config.model_copy(update={"inference": changed}))
        for name in ("photon_count", "lit_pixels", "hit_score", "readable", "hit"):
            if not np.array_equal(found[name], expected[name], equal_nan=name == "hit_score"):
                raise SystemExit(f"{layout}: the device gives another {name} than the CPU")
        hit = expected["hit"].values
        scores, reference = found["scores"].values[hit], expected["scores"].values[hit]
        row = judge(scores, reference, thresholds, f"the device, {layout}", precision)
        apart = np.nanmax(np.abs(found["diameter"] / expected["diameter"] - 1))
        rows.append({**row, "largest relative difference of diameters": float(apart)})
    return rows

"""What `benchmark.py kernels` measures: from the raw region to what a network sees."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import numpy as np
import torch
from PIL import Image

from spidask.frames.calibrate import Calibration, calibrate
from spidask.networks.picture import render

matplotlib.use("Agg")
from matplotlib import pyplot

SHAPE = (123, 240)
ADU_PER_PHOTON, MAX_ADU, LIT = 130.0, 60.0, 0.7
N_FRAMES, N_PICTURES = 512, 16
ROUNDS = 15

Row = dict[str, str | float]


def raw_frames(seed: int = 0) -> np.ndarray:
    """Stray light on a panel with noise, a dark level and offsets of its ASICs, uint16."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    photons = random.poisson(3 / (1 + np.hypot(y + 3, x - 119.5) / 6) ** 3, (N_FRAMES, *SHAPE))
    noise = random.normal(1000, 8, photons.shape)
    common = random.normal(0, 15, (N_FRAMES, SHAPE[0], 2)).repeat(SHAPE[1] // 2, axis=2)
    return (photons * ADU_PER_PHOTON + noise + common).round().astype(np.uint16)


def calibration(asic: tuple[int, int] | None = None) -> Calibration:
    """Maps of the panel, one pixel in fifty bad."""
    random = np.random.default_rng(1)
    offset = random.normal(1000, 1, SHAPE).astype(np.float32)
    offset[random.random(SHAPE) < 0.02] = np.nan
    divisor = (ADU_PER_PHOTON * random.uniform(0.9, 1.1, SHAPE)).astype(np.float32)
    return Calibration(offset, divisor, asic=asic, max_adu=MAX_ADU)


def calibrate_plainly(block: np.ndarray, maps: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """The same with NumPy, one step after the other."""
    adu = block.astype(np.float32) - maps.offset
    adu[block == np.iinfo(block.dtype).max] = np.nan
    if maps.asic:
        rows, columns = maps.asic
        for top in range(0, SHAPE[0], rows):
            for left in range(0, SHAPE[1], columns):
                asic = adu[:, top : top + rows, left : left + columns]
                unlit = np.where(asic <= maps.max_adu, asic, np.nan)
                asic -= np.nanmedian(unlit, axis=(1, 2), keepdims=True)
    photons = np.maximum(np.floor(adu / maps.divisor + np.float32(0.5)), 0)
    return photons, np.stack(
        [
            np.nansum(photons, axis=(1, 2), dtype=np.float64),
            (photons > LIT).sum(axis=(1, 2)),
            np.isfinite(photons).sum(axis=(1, 2)),
        ],
        axis=1,
    )


def fringes() -> np.ndarray:
    """Patterns like those of single hits."""
    random = np.random.default_rng(2)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    r = np.hypot(y + 3, x - 119.5)
    mean = 3e6 / (r + 5) ** 3 * (1 + np.cos(r / 6))
    return random.poisson(mean, (N_PICTURES, *SHAPE)).astype(np.float32)


def draw_published(pattern: np.ndarray) -> np.ndarray:
    """The published path: figure of 954 x 1855 pixels, PNG, resized into 416 x 416."""
    figure = pyplot.figure(figsize=(18.55, 9.54), dpi=100, frameon=False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(pattern, cmap="jet", aspect="auto", vmin=0)
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    pyplot.close(figure)
    drawn = Image.open(file).convert("RGB")
    rows = drawn.height * 416 // drawn.width
    picture = Image.new("RGB", (416, 416), (128, 128, 128))
    picture.paste(drawn.resize((416, rows), Image.Resampling.BILINEAR), (0, (416 - rows) // 2))
    return np.asarray(picture)


def take_turns(
    works: dict[str, tuple[Callable[[], object], int]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds a frame of each work, round by round, one after the other in each round."""
    for work, _ in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, (work, n) in works.items():
            start = clock()
            work()
            seconds[name].append((clock() - start) / n)
    return seconds


def ratio(of: list[float], to: list[float]) -> float:
    """How many times faster, as the median over rounds."""
    return statistics.median(b / a for a, b in zip(of, to, strict=True))


def benchmark_preprocessing() -> list[Row]:
    """One pass against memcpy of the bytes that it writes, and against NumPy."""
    raw, plain, common = raw_frames(), calibration(), calibration((1, 120))
    few = raw[:32]
    for maps in (plain, common):
        for found, expected in zip(
            calibrate(few, maps, lit_photons=LIT), calibrate_plainly(few, maps), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
    source, target = np.ones((2, *raw.shape), np.float32)
    seconds = take_turns(
        {
            "memcpy": (lambda: np.copyto(target, source), N_FRAMES),
            "patterns and counts": (lambda: calibrate(raw, plain, lit_photons=LIT), N_FRAMES),
            "the same, with common mode of 1 x 120 pixels": (
                lambda: calibrate(raw, common, lit_photons=LIT),
                N_FRAMES,
            ),
            "NumPy": (lambda: calibrate_plainly(few, plain), len(few)),
            "NumPy with common mode": (lambda: calibrate_plainly(few, common), len(few)),
        },
        ROUNDS,
        time.process_time,
    )
    rows: list[Row] = []
    for name, taken in seconds.items():
        reference = "NumPy with common mode" if "common" in name else "NumPy"
        rows.append(
            {
                "what": f"{name}, one core",
                "us/frame": 1e6 * statistics.median(taken),
                "of memcpy's bytes/s": ratio(taken, seconds["memcpy"]),
                "x NumPy": ratio(taken, seconds[reference]),
            }
        )
    return rows


def benchmark_pictures() -> list[Row]:
    """Pictures of 416 x 416 in colour against the published path."""
    patterns = fringes()
    tensors = torch.from_numpy(patterns)

    def paint() -> torch.Tensor:
        return render(tensors, (416, 416), colours="jet", scale="linear")

    with ThreadPoolExecutor(2) as pool:
        works = {
            "published": (lambda: draw_published(patterns[0]), 1),
            "one": (paint, N_PICTURES),
            "two": (lambda: list(pool.map(lambda _: paint(), range(8))), 8 * N_PICTURES),
        }
        cpu = take_turns(works, 5, time.process_time)
        wall = take_turns(works, 5, time.perf_counter)
    return [
        {"what": "figure, PNG, resize to 416", "frames/s": 1 / statistics.median(cpu["published"])},
        {
            "what": "colour 416 by kernel, one core",
            "frames/s": 1 / statistics.median(cpu["one"]),
            "x published, CPU time": ratio(cpu["one"], cpu["published"]),
        },
        {
            "what": "colour 416 by kernel, two threads, by the clock",
            "frames/s": 1 / statistics.median(wall["two"]),
            "x published": ratio(wall["two"], wall["published"]),
        },
    ]


def benchmark_kernels(_folder: object) -> list[Row]:
    """All kernels between the raw region and the network."""
    torch.set_num_threads(1)
    return benchmark_preprocessing() + benchmark_pictures()

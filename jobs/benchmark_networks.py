"""Networks against eager torch and against the device's matrix rate; see benchmark.py.

On the CPU one core is measured by the time it computed, so that what else runs counts little; on
the GPU the clock is. The rows of the GPU were never run: there was none.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spidask.config import Config, Representation, parse_config
from spidask.inference.scoring import score_patterns
from spidask.networks.classifier import Classifier, in_single_precision
from spidask.networks.compact import Compact, autocorrelation, roughen_on_device
from spidask.networks.cost import measure_cost
from spidask.networks.device import BATCH_ON_GPU
from spidask.networks.efficientnet import EfficientNet
from spidask.networks.folding import fold_norms
from spidask.networks.member import SHIPPED, load_member, save_member
from spidask.networks.representation import represent
from spidask.networks.resnet import ResNet18
from spidask.networks.runtime import Ready
from spidask.networks.yolo import YoloV2, YoloV3
from spidask.simulation.beamtime import simulate_patterns

SHAPE = (123, 240)
N_PATTERNS = 256
N_MEMBERS, SURVIVING = 5, 0.07
LAW = {"fp32": 1e-3, "bf16": 1e-2}
"""How far from its threshold a score may lie whose frame changes sides (the same-answer law)."""
PICTURES = {"colours": "jet", "maximum": "own"}

Row = dict[str, str | float]
Work = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, what it sees of a pattern, and how many patterns and rounds are measured."""

    name: str
    network: Classifier
    representation: Representation
    n: int
    rounds: int


def cases(device: str) -> list[Case]:
    """All networks, YOLO's from random numbers."""
    torch.manual_seed(0)
    member = load_member(SHIPPED)
    pictures = {size: Representation(size=(size, size), **PICTURES) for size in (224, 416, 608)}
    found = [
        Case("compact", member.network, member.representation, 64, 11),
        Case("resnet18", ResNet18(), member.representation, 8, 5),
        Case("yolov2 416", YoloV2(), pictures[416], 1, 5),
        Case("yolov3 608", YoloV3(), pictures[608], 1, 2),
    ]
    if importlib.util.find_spec("efficientnet_lite_pytorch"):
        found.insert(2, Case("efficientnet 224", EfficientNet(), pictures[224], 8, 5))
    for case in found:
        case.network.eval().requires_grad_(False).to(device)
    if device == "cpu":
        return found
    return [dataclasses.replace(case, n=BATCH_ON_GPU, rounds=9) for case in found]


def clock(device: str) -> float:
    """Seconds that this process computed, or, once the GPU is done, that went by."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def interleave(works: Mapping[str, Work], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each work in each round, one after another, after a round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            start = clock(device)
            work()
            if number:
                found[name].append(clock(device) - start)
    return found


def ratio(one: list[float], other: list[float]) -> float:
    """Median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def matrix_rates(device: str) -> dict[str, float]:
    """Operations a second in products of large matrices."""
    n = 1024 if device == "cpu" else 8192
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        one, other = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        seconds = interleave({"product": lambda a=one, b=other: a @ b}, 15, device)["product"]
        rates[name] = 2 * n**3 / statistics.median(seconds)
    return rates


def see_plainly(
    network: Classifier, patterns: torch.Tensor, representation: Representation
) -> tuple[torch.Tensor, ...]:
    """What the network sees, by plain torch, as it would be written without kernels."""
    if not isinstance(network, Compact):
        return network.see(patterns, representation)
    values, present = represent(patterns, representation)
    rough = roughen_on_device(values, present, network.stretch)
    return values, network.stem.scale_windows(present), autocorrelation(rough)


def forms(case: Case, device: str) -> dict[tuple[str, str], Callable[..., Any]]:
    """(How a network is run, its precision) to the network."""
    plain = case.network.to(memory_format=torch.contiguous_format)
    found: dict[tuple[str, str], Callable[..., Any]] = {("eager NCHW", "fp32"): plain}
    if device == "cpu":
        for precision in ("fp32", "bf16"):
            found["torch", precision] = Ready(plain, precision)
            if importlib.util.find_spec("openvino"):
                found["openvino", precision] = Ready(plain, precision, "openvino")
        return found
    for precision, dtype in (("fp32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        network = fold_norms(plain)
        compiled = torch.compile(fold_norms(plain), mode="reduce-overhead")
        found["torch", precision] = in_dtype(network, dtype)
        found["torch.compile with CUDA graphs", precision] = in_dtype(compiled, dtype)
    return found


def in_dtype(network: Callable[..., Any], dtype: torch.dtype | None) -> Callable[..., Any]:
    """The network with its products in a precision, on the GPU."""

    def forward(*seen: torch.Tensor) -> Any:
        with torch.autocast("cuda", dtype) if dtype else nullcontext():
            return in_single_precision(network(*seen))

    return forward


def measure(
    case: Case, patterns: torch.Tensor, device: str, rates: Mapping[str, float]
) -> tuple[list[Row], dict[str, float]]:
    """Rows of one network, and its seconds for a pattern by precision at best."""
    size = BATCH_ON_GPU if device != "cpu" else case.network.batch_on_cpu
    parts = patterns[: case.n].to(device).split(size)
    given = [case.network.see(part, case.representation) for part in parts]
    views = {"plain view": see_plainly, "view": type(case.network).see}
    works: dict[str, Work] = {
        name: lambda see=see: [see(case.network, part, case.representation) for part in parts]
        for name, see in views.items()
    }
    for (how, precision), network in forms(case, device).items():
        works[f"{how}, {precision}"] = lambda network=network: [network(*seen) for seen in given]
    seconds = interleave(works, case.rounds, device)
    plain_view, view = seconds.pop("plain view"), seconds.pop("view")
    alone = seconds["eager NCHW, fp32"]
    eager = [a + b for a, b in zip(plain_view, alone, strict=True)]
    gflop = measure_cost(case.network, case.representation, SHAPE).gflop
    rows, best = [], dict[str, float]()
    for name, forward in seconds.items():
        precision = name.rpartition(", ")[2]
        first = plain_view if forward is alone else view
        whole = [a + b for a, b in zip(first, forward, strict=True)]
        each = statistics.median(whole) / case.n
        best[precision] = min(each, best.get(precision, each))
        rate = rates["bf16" if precision == "fp16" else precision]
        rows.append(
            {
                "what": f"{case.name}, {name}",
                "ms": 1e3 * each,
                "patterns/s": 1 / each,
                "times eager": ratio(eager, whole),
                "ms of it the view": 1e3 * statistics.median(first) / case.n,
                "times eager without the view": ratio(alone, forward),
                "of the matrix rate": gflop * 1e9 * case.n / statistics.median(forward) / rate,
            }
        )
    return rows, best


def simulate(folder: Path) -> np.ndarray:
    """Patterns of the 2018 experiment with its two dead columns groups, once for all calls."""
    path = folder / "patterns.npy"
    if not path.exists():
        expected, *_ = simulate_patterns(N_PATTERNS, seed=7)
        photons = np.random.default_rng(7).poisson(expected).astype(np.float32)
        photons[:, :, 60:66] = photons[:, :30, 117:123] = np.nan
        np.save(path, photons)
    return np.load(path)[:N_PATTERNS]


def write_members(folder: Path, patterns: np.ndarray) -> list[str]:
    """Five relatives of the shipped network; the first accepts 7 % of the patterns."""
    shipped, paths = load_member(SHIPPED), []
    for number in range(N_MEMBERS):
        torch.manual_seed(number)
        member = load_member(SHIPPED)
        for weight in member.network.parameters():
            weight.add_(0.03 * weight.std().nan_to_num(0) * torch.randn_like(weight))
        paths.append(folder / f"m{number}.safetensors")
        save_member(dataclasses.replace(shipped, network=member.network), paths[-1])
    config = settings(paths, "cpu")
    first = score_patterns(patterns, [str(paths[0])], config)[:, 0]
    threshold = float(np.quantile(first, 1 - SURVIVING))
    save_member(dataclasses.replace(load_member(paths[0]), threshold=threshold), paths[0])
    return [str(path) for path in paths]


def settings(members: list[Any], device: str, **inference: str) -> Config:
    """A config that scores with these members."""
    given = {"members": [str(path) for path in members], "device": device, **inference}
    return parse_config({"runs": {"files": ["none"]}, "output": "none", "inference": given})


def measure_ensemble(
    folder: Path, patterns: np.ndarray, device: str, yolo: Mapping[str, float]
) -> list[Row]:
    """Five members, with and without an early exit, in each precision; and the law."""
    members = write_members(folder, patterns)
    thresholds = np.array([load_member(path).threshold for path in members])
    runtimes = ["torch"]
    if device == "cpu" and importlib.util.find_spec("openvino"):
        runtimes.append("openvino")
    rows: list[Row] = []
    reference: np.ndarray | None = None
    for runtime in runtimes:
        for precision in ("fp32", "bf16"):
            found: dict[str, np.ndarray] = {}

            def work(ensemble: str, how: str = runtime, p: str = precision) -> None:
                config = settings(members, device, runtime=how, precision=p, ensemble=ensemble)
                found[ensemble] = score_patterns(patterns, members, config)  # noqa: B023

            seconds = interleave(
                {name: lambda name=name: work(name) for name in ("all", "early_exit")}, 3, device
            )
            selected = {k: (v.astype(float) >= thresholds).all(1) for k, v in found.items()}
            if not np.array_equal(selected["all"], selected["early_exit"]):
                raise AssertionError(f"{runtime}, {precision}: an early exit selects otherwise")
            each = statistics.median(seconds["early_exit"]) / len(patterns)
            reference = found["all"] if reference is None else reference
            rows.append(
                {
                    "what": f"{N_MEMBERS} members, early exit, {runtime}, {precision}",
                    "ms": 1e3 * each,
                    "times all members": ratio(seconds["all"], seconds["early_exit"]),
                    "times one YOLOv2-416": yolo[precision] / each,
                    "survive the first": float(selected_first(found["all"], thresholds)),
                }
            )
            rows.append(judge(found["all"], reference, thresholds, runtime, precision))
    return rows


def selected_first(scores: np.ndarray, thresholds: np.ndarray) -> float:
    """Share of the patterns that the first member accepts."""
    return float((scores[:, 0].astype(float) >= thresholds[0]).mean())


def judge(
    scores: np.ndarray, reference: np.ndarray, thresholds: np.ndarray, runtime: str, precision: str
) -> Row:
    """How scores differ from those in fp32, and whether the same-answer law holds."""
    apart = np.abs(scores - reference)
    flipped = (scores.astype(float) >= thresholds) != (reference.astype(float) >= thresholds)
    far = flipped & (np.abs(reference - thresholds) > LAW[precision])
    if far.any():
        raise AssertionError(f"{runtime}, {precision}: {far.sum()} scores far off change sides")
    return {
        "what": f"scores against torch in fp32: {runtime}, {precision}",
        "largest difference": float(apart.max()),
        f"of {scores.size} scores changed sides, all within {LAW[precision]}": float(flipped.sum()),
    }


def benchmark_networks(folder: Path, *, gpu: bool = False) -> list[Row]:
    """Every network in every form that this machine runs."""
    torch.set_num_threads(1)
    device = "cuda" if gpu else "cpu"
    patterns = simulate(folder)
    rates = matrix_rates(device)
    rows: list[Row] = [
        {"what": f"products of matrices, {name}", "GFLOP/s": rate / 1e9}
        for name, rate in rates.items()
    ]
    rows[0] |= {"load of the machine": os.getloadavg()[0]}
    best: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        for case in cases(device):
            found, best[case.name] = measure(case, torch.from_numpy(patterns), device, rates)
            rows += found
    return rows + measure_ensemble(folder, patterns, device, best["yolov2 416"])

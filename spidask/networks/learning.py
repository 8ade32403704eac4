"""The training loop: batches in, checkpoints and a table of losses out."""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from spidask.config import Training
from spidask.errors import TrainingError
from spidask.networks.augmentation import augment
from spidask.networks.compact import Compact
from spidask.networks.member import SHIPPED, load_member, load_tensors, logits, save_tensors
from spidask.networks.representation import represent
from spidask.schema import CLASSES

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
log = logging.getLogger(__name__)

WARM_UP = 0.1
"""Share of the iterations in which the learning rate rises; it then falls as a cosine."""
SMOOTHING = 0.05
"""Share of a label spread over all classes (Szegedy et al. 2016, arXiv:1512.00567)."""


@dataclass(frozen=True)
class Labelled:
    """Patterns with their classes.

    Attributes
    ----------
    patterns : numpy.ndarray
        Shape (frame, y, x), float32, photons, NaN where missing.
    classes : numpy.ndarray
        Codes into schema.CLASSES, shape (frame,), int64.
    """

    patterns: FloatArray
    classes: IntArray


Draw = Callable[[int], Labelled]
"""Gives the batch of an iteration; the same iteration always gives the same batch."""
Judge = Callable[[FloatArray], dict[str, float]]
"""Turns the log odds of the validation patterns into the numbers of a row of metrics.csv."""


@dataclass(frozen=True)
class Checkpoint:
    """One stage of a training run.

    Attributes
    ----------
    path : pathlib.Path
        The file; it holds the network, the optimizer and everything below.
    iteration : int
        Iterations done.
    validation : numpy.ndarray
        Log odds of a single hit for each validation pattern, shape (frame,), float32.
    history : list of dict
        The rows of metrics.csv up to here.
    network : Compact
        The network at this stage, in evaluation mode.
    """

    path: Path
    iteration: int
    validation: FloatArray
    history: list[dict[str, float]]
    network: Compact


def draw_batch(labelled: Labelled, size: int, seed: int, iteration: int) -> Labelled:
    """Draw a batch and augment it.

    Parameters
    ----------
    labelled : Labelled
        What to draw from, with replacement. A class is drawn in proportion to the square
        root of its number of patterns, so that a rare one is seen often and not always.
    size : int
        Patterns in the batch.
    seed, iteration : int
        What is drawn, and how it is augmented, depends on these and on the place in the
        batch only.

    Returns
    -------
    Labelled
        The batch.
    """
    counts = np.bincount(labelled.classes, minlength=len(CLASSES))
    weights = 1 / np.sqrt(counts[labelled.classes])
    random = np.random.default_rng([seed, iteration])
    rows = random.choice(len(weights), size, p=weights / weights.sum())
    patterns = [
        augment(labelled.patterns[row], np.random.default_rng([seed, iteration, place + 1]))
        for place, row in enumerate(rows)
    ]
    return Labelled(np.stack(patterns), labelled.classes[rows])


def train_rank(
    draw: Draw,
    validation: FloatArray,
    judge: Judge,
    settings: Training,
    seed: int,
    folder: Path,
    device: str = "cpu",
) -> None:
    """Train one network, or go on with it from its last checkpoint.

    Parameters
    ----------
    draw : callable
        Gives the batch of an iteration.
    validation : numpy.ndarray
        Patterns that are scored at every checkpoint, shape (frame, y, x), float32, photons.
    judge : callable
        Turns their log odds into numbers for the table.
    settings : Training
        Iterations, learning rate and so on.
    seed : int
        Of the initial weights and of dropout.
    folder : pathlib.Path
        Gets ``NNNNNN.safetensors``, one for each checkpoint, and ``metrics.csv``.
    device : str
        Where the network is trained.

    Raises
    ------
    TrainingError
        If the loss is not finite; the last checkpoint stays.
    """
    with _threads(settings.threads):
        torch.manual_seed(seed)
        network = _initial(settings).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        history = _resume(folder, network, optimizer)
        for iteration in range(len(history) + 1, settings.iterations + 1):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule(iteration, settings.iterations)
            torch.manual_seed(_mix(seed, iteration))  # dropout, so that a resumed run is equal
            batch = draw(iteration)
            seen = represent(torch.from_numpy(batch.patterns).to(device), settings.representation)
            target = torch.from_numpy(batch.classes).to(device)
            loss = functional.cross_entropy(network(*seen), target, label_smoothing=SMOOTHING)
            if not math.isfinite(loss.item()):
                raise TrainingError(
                    f"the loss is {loss.item()} at iteration {iteration}; lower "
                    f"training.learning_rate ({settings.learning_rate:g}) and run again",
                    iteration=iteration,
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            row: dict[str, float] = {"iteration": iteration, "loss": round(loss.item(), 6)}
            if iteration % settings.checkpoint_every == 0 or iteration == settings.iterations:
                found = logits(network.eval(), settings.representation, validation, 64)
                network.train()
                row |= judge(found)
                _save(folder, network, optimizer, found, [*history, row])
            if len(row) > 2 or iteration % 10 == 0:
                log.info("seed %d: %s", seed, "  ".join(f"{k} {v:.6g}" for k, v in row.items()))
            history.append(row)
            _write_row(folder / "metrics.csv", row)


def list_checkpoints(folder: Path) -> list[Path]:
    """Find the checkpoints of a run.

    Parameters
    ----------
    folder : pathlib.Path
        Where `train_rank` wrote.

    Returns
    -------
    list of pathlib.Path
        Their files, the earliest first.
    """
    return sorted(folder.glob("[0-9]*.safetensors"))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, without the optimizer.

    Parameters
    ----------
    path : pathlib.Path
        One of `list_checkpoints`.

    Returns
    -------
    Checkpoint
        What it holds.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    return _load(path)[0]


def _initial(settings: Training) -> Compact:
    if settings.initial == "random":
        return Compact().train()
    member = load_member(SHIPPED if settings.initial == "shipped" else settings.initial)
    if member.representation != settings.representation:
        raise TrainingError(
            f"training.representation: {settings.representation}, but training.initial "
            f"'{settings.initial}' was trained on {member.representation}; set it to that, or "
            "training.initial to random"
        )
    return member.network.requires_grad_(True).train()


def _schedule(iteration: int, iterations: int) -> float:
    warm = max(1, round(WARM_UP * iterations))
    if iteration <= warm:
        return iteration / warm
    return 0.5 * (1 + math.cos(math.pi * (iteration - warm) / max(1, iterations - warm + 1)))


def _mix(seed: int, iteration: int) -> int:
    return int(np.random.SeedSequence([seed, iteration]).generate_state(1)[0])


def _save(
    folder: Path,
    network: Compact,
    optimizer: torch.optim.Optimizer,
    validation: FloatArray,
    history: list[dict[str, float]],
) -> None:
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
    tensors["validation"] = torch.from_numpy(validation)
    metadata = {"history": history, "architecture_settings": network.settings()}
    save_tensors(tensors, folder / f"{len(history):06d}.safetensors", metadata)


def _resume(
    folder: Path, network: Compact, optimizer: torch.optim.Optimizer
) -> list[dict[str, float]]:
    (folder / "metrics.csv").unlink(missing_ok=True)
    found = list_checkpoints(folder)
    if not found:
        return []
    checkpoint, tensors = _load(found[-1])
    network.load_state_dict(checkpoint.network.state_dict())
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            number, _, key = rest.partition(".")
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for row in checkpoint.history:
        _write_row(folder / "metrics.csv", row)
    return list(checkpoint.history)


def _load(path: Path) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    tensors, metadata = load_tensors(path)
    network = Compact(**metadata["architecture_settings"])
    weights = {name: t for name, t in tensors.items() if name.startswith("network.")}
    network.load_state_dict({name.removeprefix("network."): t for name, t in weights.items()})
    history = metadata["history"]
    validation = tensors["validation"].numpy()
    return Checkpoint(path, len(history), validation, history, network.eval()), tensors


def _write_row(path: Path, row: dict[str, float]) -> None:
    columns = ("iteration", "loss", "validation_f1", "validation_average_precision")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n or len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        torch.set_num_threads(before)

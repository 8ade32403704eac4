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
from torch import nn
from torch.nn import functional

from spidask.config import Training
from spidask.errors import DataError, TrainingError
from spidask.networks.augmentation import augment
from spidask.networks.compact import Compact
from spidask.networks.member import SHIPPED, load_member, load_tensors, logits, save_tensors
from spidask.networks.representation import represent, stretch_of
from spidask.schema import CLASSES

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
log = logging.getLogger(__name__)

WARM_UP = 0.1
"""Share of the iterations in which the learning rate rises; it then falls as a cosine."""
WHOLE = slice(None)
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


Draw = Callable[[int, slice], Labelled]
"""Gives a part of the batch of an iteration; the same iteration always gives the same batch."""
Judge = Callable[[FloatArray], dict[str, float]]
"""Turns the log odds of the validation patterns into the numbers of a row of metrics.csv."""


@dataclass(frozen=True)
class Team:
    """The processes that train one network together, as one of them sees them.

    Attributes
    ----------
    rank, size : int
        Which of them this is, and how many there are: one, or `ranks` of the settings.
    device : str
        Where this one computes.
    neighbours : int
        Processes that train on this machine at a time; they share its cores.
    wrap : callable
        Makes a network whose backward pass leaves the mean of all ranks' gradients.
    total : callable
        Sums a tensor over all ranks.
    beat : callable
        Called before every exchange with the others, as a sign of life.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    neighbours: int = 1
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network
    total: Callable[[torch.Tensor], torch.Tensor] = lambda value: value
    beat: Callable[[], object] = lambda: None


ALONE = Team()
"""One process that does the work of all ranks, piece after piece."""


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


def draw_batch(
    labelled: Labelled, size: int, seed: int, iteration: int, part: slice = WHOLE
) -> Labelled:
    """Draw a batch and augment a part of it.

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
    part : slice
        Places in the batch that are wanted.

    Returns
    -------
    Labelled
        That part of the batch.
    """
    counts = np.bincount(labelled.classes, minlength=len(CLASSES))
    weights = 1 / np.sqrt(counts[labelled.classes])
    random = np.random.default_rng([seed, iteration])
    rows = random.choice(len(weights), size, p=weights / weights.sum())
    patterns = [
        augment(labelled.patterns[rows[place]], np.random.default_rng([seed, iteration, place + 1]))
        for place in range(size)[part]
    ]
    return Labelled(np.stack(patterns), labelled.classes[rows[part]])


def train_rank(
    draw: Draw,
    validation: FloatArray,
    judge: Judge,
    settings: Training,
    seed: int,
    folder: Path,
    team: Team = ALONE,
    watch: Callable[[dict[str, float]], None] = lambda _row: None,
) -> None:
    """Train one network, or go on with it from its last checkpoint.

    Parameters
    ----------
    draw : callable
        Gives a part of the batch of an iteration.
    validation : numpy.ndarray
        Patterns that are scored at every checkpoint, shape (frame, y, x), float32, photons;
        only rank 0 looks at them.
    judge : callable
        Turns their log odds into numbers for the table.
    settings : Training
        Iterations, learning rate and so on.
    seed : int
        Of the initial weights and of dropout.
    folder : pathlib.Path
        Gets ``NNNNNN.safetensors``, one for each checkpoint, and ``metrics.csv``, all from
        rank 0; every rank reads the last checkpoint there.
    team : Team
        With whom the network is trained.
    watch : callable
        Sees every row of metrics.csv, on rank 0.

    Raises
    ------
    TrainingError
        If the loss is not finite; the last checkpoint stays.
    DataError
        If the ranks do not find the same checkpoints.

    Notes
    -----
    A batch is cut into as many pieces as the settings have ranks, each normalized by itself; a
    rank takes one of them, or one process all of them in turn. The gradients are the same but
    for rounding; the running statistics are those that rank 0 saw.
    """
    pieces, n = range(team.rank, settings.ranks, team.size), settings.batch_size // settings.ranks
    with _threads(settings.threads, team.neighbours), _reproducible(team.device):
        torch.manual_seed(seed)
        network = _initial(settings).to(team.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        history = _resume(folder, network, optimizer, team)
        trained = team.wrap(network)
        for iteration in range(len(history) + 1, settings.iterations + 1):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule(iteration, settings.iterations)
            optimizer.zero_grad()
            total = torch.zeros((), device=team.device)
            for piece in pieces:
                torch.manual_seed(_mix(seed, iteration, piece))  # dropout: no state to resume
                batch = draw(iteration, slice(piece * n, (piece + 1) * n))
                patterns = torch.from_numpy(batch.patterns).to(team.device)
                target = torch.from_numpy(batch.classes).to(team.device)
                outputs = trained(*represent(patterns, settings.representation))
                loss = functional.cross_entropy(outputs, target, label_smoothing=SMOOTHING)
                team.beat()
                (loss / len(pieces)).backward()  # type: ignore[no-untyped-call]
                total += loss.detach() / settings.ranks
            mean = team.total(total).item()
            if not math.isfinite(mean):
                raise TrainingError(
                    f"the loss is {mean} at iteration {iteration}; lower "
                    f"training.learning_rate ({settings.learning_rate:g}) and run again",
                    iteration=iteration,
                )
            optimizer.step()
            row: dict[str, float] = {"iteration": iteration, "loss": round(mean, 6)}
            history.append(row)
            if team.rank:
                continue
            if iteration % settings.checkpoint_every == 0 or iteration == settings.iterations:
                found = logits(network.eval(), settings.representation, validation, 64)
                network.train()
                row |= judge(found)
                _save(folder, network, optimizer, found, history)
            if len(row) > 2 or iteration % 10 == 0:
                log.info("seed %d: %s", seed, "  ".join(f"{k} {v:.6g}" for k, v in row.items()))
            _write_row(folder / "metrics.csv", row)
            watch(row)


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
        return Compact(stretch=stretch_of(settings.representation)).train()
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


def _mix(seed: int, iteration: int, piece: int) -> int:
    return int(np.random.SeedSequence([seed, iteration, piece]).generate_state(1)[0])


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
    folder: Path, network: Compact, optimizer: torch.optim.Optimizer, team: Team
) -> list[dict[str, float]]:
    found = list_checkpoints(folder)
    history = _restore(found[-1], network, optimizer) if found else []
    done = torch.tensor(float(len(history)), device=team.device)
    if team.total(done.clone()) != team.size * done:
        raise DataError(
            f"rank {team.rank} finds {len(history)} iterations done in {folder} and other ranks "
            "do not; the output has to be a folder that all workers share"
        )
    if team.rank == 0:
        (folder / "metrics.csv").unlink(missing_ok=True)
        for row in history:
            _write_row(folder / "metrics.csv", row)
    return history


def _restore(
    path: Path, network: Compact, optimizer: torch.optim.Optimizer
) -> list[dict[str, float]]:
    checkpoint, tensors = _load(path)
    network.load_state_dict(checkpoint.network.state_dict())
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            number, _, key = rest.partition(".")
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
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
def _threads(n: int, neighbours: int) -> Iterator[None]:
    # Holds for this thread and those that start later, be it a worker's or the main one.
    before = torch.get_num_threads()
    torch.set_num_threads(n or max(1, len(os.sched_getaffinity(0)) // neighbours))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _reproducible(device: str) -> Iterator[None]:
    if device == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)

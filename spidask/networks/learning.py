"""The training loop: batches in, checkpoints and a table of losses out."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from spidask.config import Representation, Training
from spidask.errors import DataError, TrainingError
from spidask.networks.architectures import is_darknet, new_network
from spidask.networks.batches import Draw, Labelled, draw_ahead
from spidask.networks.checkpoints import restore, save_checkpoint, write_row
from spidask.networks.classifier import SINGLE, Classifier, in_single_precision
from spidask.networks.device import in_precision
from spidask.networks.member import SHIPPED, load_member, logits
from spidask.networks.runtime import Ready

FloatArray = npt.NDArray[np.float32]
log = logging.getLogger(__name__)

WARM_UP = 0.1
"""Share of the iterations in which the learning rate rises; it then falls as a cosine."""
MOMENTUM, FALL, BURN_POWER = 0.9, 0.1, 4
"""Of stochastic gradient descent, as in Darknet's cfg files."""
SCORED_AT_ONCE = 64
"""Validation patterns that the network sees at once, or as many as a piece of a batch has."""


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
        Makes a network whose backward pass leaves the mean of all ranks' gradients; it is given
        an example of what the network takes.
    hold : callable
        Gives a context in which the backward pass of such a network leaves the gradients on their
        rank, for the next one outside to sum over the ranks.
    total : callable
        Sums a tensor over all ranks.
    beat : callable
        Called before every exchange with the others, as a sign of life.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    neighbours: int = 1
    wrap: Callable[[nn.Module, tuple[torch.Tensor, ...]], nn.Module] = lambda network, _: network
    hold: Callable[[nn.Module], AbstractContextManager[object]] = contextlib.nullcontext
    total: Callable[[torch.Tensor], torch.Tensor] = lambda value: value
    beat: Callable[[], object] = lambda: None


ALONE = Team()
"""One process that does the work of all ranks, piece after piece."""


def begin(settings: Training, labelled: Labelled) -> Classifier:
    """Build the network that a config asks for, with the weights that it starts from.

    Parameters
    ----------
    settings : Training
        Architecture and starting weights.
    labelled : Labelled
        What it will be trained on, for the anchors of networks that draw boxes.

    Returns
    -------
    Classifier
        In training mode.

    Raises
    ------
    TrainingError
        If the starting weights are of another architecture or representation.
    """
    rows, columns = labelled.patterns.shape[1:]
    single = labelled.classes == SINGLE
    boxes = None if labelled.boxes is None else labelled.boxes[single]
    wanted = new_network(settings, boxes, (rows, columns))
    if settings.initial in ("random", "imagenet") or is_darknet(settings):
        return wanted.train()
    member = load_member(SHIPPED if settings.initial == "shipped" else settings.initial)
    for key, asked, found in (
        ("architecture", settings.architecture, member.network.name),
        ("representation", _seen(settings.representation), _seen(member.representation)),
    ):
        if asked != found:
            raise TrainingError(
                f"training.{key}: {asked}, but training.initial '{settings.initial}' was trained "
                f"with {found}; set it to that, or training.initial to random"
            )
    network = member.network
    sizes, others = ({k: v.shape for k, v in n.state_dict().items()} for n in (wanted, network))
    if sizes != others:
        raise TrainingError(
            f"training.initial: '{settings.initial}' is of another width or first filter than "
            f"training.width {settings.width:g} and training.first_filter {settings.first_filter}; "
            "set these as they were, or training.initial to random"
        )
    return network.requires_grad_(True).train()


def _seen(representation: Representation) -> Representation:
    # What is no picture has no size.
    blank = {} if representation.colours != "none" else {"size": Representation().size}
    return representation.model_copy(update=blank)


def train_rank(
    build: Callable[[], Classifier],
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
    build : callable
        Gives the network to begin with, in training mode.
    draw : callable
        Gives a part of the batch of an iteration, on the device of the team.
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
        If the loss or a score is not finite; the last checkpoint stays.
    DataError
        If the ranks do not find the same checkpoints.

    Notes
    -----
    A batch is cut into as many pieces as the settings have ranks times subdivisions, each
    normalized by itself; a rank takes its share of them, or one process all of them in turn. The
    gradients are the same but for rounding; the running statistics are those that rank 0 saw.
    """
    n_pieces = settings.ranks * settings.subdivisions
    pieces, n = range(team.rank, n_pieces, team.size), settings.batch_size // n_pieces
    with _threads(settings.threads, team.neighbours), _reproducible(team.device):
        torch.manual_seed(seed)
        network = build().to(team.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = _make_optimizer(network, settings)
        history = _resume(folder, network, optimizer, team)
        blank = torch.zeros(2, *validation.shape[1:], device=team.device)
        trained = team.wrap(network, network.see(blank, settings.representation))
        todo = range(len(history) + 1, settings.iterations + 1)
        parts = [slice(piece * n, (piece + 1) * n) for piece in pieces]
        batches = draw_ahead(draw, itertools.product(todo, parts))
        for iteration in todo:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate_share(iteration, settings)
            optimizer.zero_grad()
            terms: dict[str, torch.Tensor] = {}
            for piece in pieces:
                torch.manual_seed(_mix(seed, iteration, piece))  # dropout: no state to resume
                batch = next(batches)
                pictures = network.see(batch.patterns, settings.representation)
                with team.hold(trained) if piece != pieces[-1] else contextlib.nullcontext():
                    with in_precision(team.device, settings.precision):
                        outputs = in_single_precision(trained(*pictures))
                    seen = (iteration - 1) * settings.batch_size
                    found = network.losses(outputs, batch, settings.representation, seen)
                    team.beat()
                    (torch.stack([*found.values()]).sum() / len(pieces)).backward()  # type: ignore[no-untyped-call]
                for name, term in found.items():
                    terms[name] = terms.get(name, 0) + term.detach() / n_pieces
            means = team.total(torch.stack([*terms.values()])).tolist()
            mean = sum(means)
            if not math.isfinite(mean):
                raise _diverged(f"the loss is {mean}", iteration, settings)
            optimizer.step()
            row: dict[str, float] = {"iteration": iteration, "loss": round(mean, 6)}
            if len(terms) > 1:
                row |= {name: round(m, 6) for name, m in zip(terms, means, strict=True)}
            history.append(row)
            if team.rank:
                continue
            if iteration % settings.checkpoint_every == 0 or iteration == settings.iterations:
                at_once = min(SCORED_AT_ONCE, n)
                scored = _validate(network, validation, at_once, settings)
                if not np.isfinite(scored).all():
                    raise _diverged("a score is no number", iteration, settings)
                row |= judge(scored)
                save_checkpoint(folder, network, optimizer, scored, history)
            if "validation_f1" in row or iteration % 10 == 0:
                log.info("seed %d: %s", seed, "  ".join(f"{k} {v:.6g}" for k, v in row.items()))
            write_row(folder / "metrics.csv", row)
            watch(row)


def _validate(
    network: Classifier, validation: FloatArray, at_once: int, settings: Training
) -> FloatArray:
    # As inference computes: in bf16, eager scores differ from them by some hundredths.
    ready = Ready(network, settings.precision)
    scored = logits(ready, settings.representation, validation, at_once)
    network.train()
    return scored


def rate_share(iteration: int, settings: Training) -> float:
    """Say how large the learning rate is at an iteration.

    Parameters
    ----------
    iteration : int
        From 1 on.
    settings : Training
        Optimizer, iterations, and for ``sgd`` the burn-in and the steps.

    Returns
    -------
    float
        Share of `learning_rate`.
    """
    iterations = settings.iterations
    if settings.optimizer == "sgd":
        if iteration < settings.burn_in:
            return float((iteration / settings.burn_in) ** BURN_POWER)
        return float(FALL ** sum(iteration >= step for step in settings.steps))
    warm = max(1, round(WARM_UP * iterations))
    if iteration <= warm:
        return iteration / warm
    return 0.5 * (1 + math.cos(math.pi * (iteration - warm) / max(1, iterations - warm + 1)))


def _diverged(what: str, iteration: int, settings: Training) -> TrainingError:
    rate = f"lower training.learning_rate ({settings.learning_rate:g}) and run again"
    return TrainingError(f"{what} at iteration {iteration}; {rate}", iteration=iteration)


def _make_optimizer(network: Classifier, settings: Training) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    # Darknet lets the weights of convolutions decay, and neither biases nor batch norms.
    decays = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decays, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM)


def _mix(seed: int, iteration: int, piece: int) -> int:
    return int(np.random.SeedSequence([seed, iteration, piece]).generate_state(1)[0])


def _resume(
    folder: Path, network: Classifier, optimizer: torch.optim.Optimizer, team: Team
) -> list[dict[str, float]]:
    history = restore(folder, network, optimizer)
    done = torch.tensor(float(len(history)), device=team.device)
    if team.total(done.clone()) != team.size * done:
        raise DataError(
            f"rank {team.rank} finds {len(history)} iterations done in {folder} and other ranks "
            "do not; the output has to be a folder that all workers share"
        )
    if team.rank == 0:
        (folder / "metrics.csv").unlink(missing_ok=True)
        for row in history:
            write_row(folder / "metrics.csv", row)
    return history


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
    deterministic: Any = torch.utils.deterministic
    filled = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It shows who reads what was never written, and costs a pass over every new tensor.
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        deterministic.fill_uninitialized_memory = filled

"""Checkpoints of a training run: everything that it takes to go on, or to become a member."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from spidask.errors import DataError
from spidask.networks.architectures import rebuild
from spidask.networks.classifier import Classifier
from spidask.networks.tensors import load_tensors, save_tensors

FloatArray = npt.NDArray[np.float32]
COLUMNS = (
    "iteration",
    "loss",
    "objectness",
    "localization",
    "classification",
    "validation_f1",
    "validation_average_precision",
)
"""Of metrics.csv; the terms of the loss where there are several."""


@dataclass(frozen=True)
class Checkpoint:
    """One stage of a training run.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    iteration : int
        Iterations done.
    validation : numpy.ndarray
        Log odds of a single hit for each validation pattern, shape (frame,), float32.
    history : list of dict
        The rows of metrics.csv up to here.
    network : Classifier
        The network at this stage, in evaluation mode.
    """

    path: Path
    iteration: int
    validation: FloatArray
    history: list[dict[str, float]]
    network: Classifier


def list_checkpoints(folder: Path) -> list[Path]:
    """Find the checkpoints of a run.

    Parameters
    ----------
    folder : pathlib.Path
        Where `save_checkpoint` wrote.

    Returns
    -------
    list of pathlib.Path
        Their files, the earliest first.
    """
    return sorted(folder.glob("[0-9]*.safetensors"))


def find_last(folder: Path) -> tuple[Path, Path] | None:
    """Find what a run goes on with.

    Parameters
    ----------
    folder : pathlib.Path
        Where `save_checkpoint` wrote.

    Returns
    -------
    checkpoint, optimizer : pathlib.Path
        The last checkpoint and its optimizer; nothing where there is no checkpoint.

    Raises
    ------
    DataError
        If one of them is damaged, or the optimizer's is not there.
    """
    found = list_checkpoints(folder)
    if not found:
        return None
    beside = found[-1].with_name(f"optimizer_{found[-1].name}")
    remedy = f"remove {folder} to train from the start"
    if not beside.exists():
        raise DataError(
            f"{beside} is not there, and without it the training cannot go on; {remedy}"
        )
    for path in (found[-1], beside):
        try:
            load_tensors(path, only=())
        except DataError as error:
            raise DataError(f"{error}; {remedy}") from None
    return found[-1], beside


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
    tensors, metadata = load_tensors(path)
    network = rebuild(metadata["architecture"], metadata["architecture_settings"])
    validation, history = tensors.pop("validation").numpy(), metadata["history"]
    network.load_state_dict(tensors)
    return Checkpoint(path, len(history), validation, history, network.eval())


def read_history(path: Path) -> list[dict[str, float]]:
    """Read the rows of metrics.csv up to a checkpoint.

    Parameters
    ----------
    path : pathlib.Path
        One of `list_checkpoints`.

    Returns
    -------
    list of dict
        A row for each iteration.
    """
    return list(load_tensors(path, only=())[1]["history"])


def save_checkpoint(
    folder: Path,
    network: Classifier,
    optimizer: torch.optim.Optimizer,
    validation: FloatArray,
    history: list[dict[str, float]],
) -> None:
    """Write a checkpoint.

    Parameters
    ----------
    folder : pathlib.Path
        Gets ``NNNNNN.safetensors`` and, in place of the last one, ``optimizer_NNNNNN.safetensors``.
    network : Classifier
        The network.
    optimizer : torch.optim.Optimizer
        What trains it.
    validation : numpy.ndarray
        Log odds of a single hit for each validation pattern, shape (frame,), float32.
    history : list of dict
        The rows of metrics.csv up to here.
    """
    name = f"{len(history):06d}.safetensors"
    state = {
        f"{number}.{key}": tensor
        for number, values in optimizer.state_dict()["state"].items()
        for key, tensor in values.items()
    }
    # First, for the checkpoint counts as made once its own file is there.
    save_tensors(state, folder / f"optimizer_{name}", {})
    metadata = {
        "history": history,
        "architecture": network.name,
        "architecture_settings": network.settings(),
    }
    tensors = {**network.state_dict(), "validation": torch.from_numpy(validation)}
    save_tensors(tensors, folder / name, metadata)
    # Only the last one is gone on with, and it is as large as the network or twice that.
    for path in folder.glob("optimizer_*.safetensors"):
        if path.name != f"optimizer_{name}":
            path.unlink()


def restore(
    folder: Path, network: Classifier, optimizer: torch.optim.Optimizer
) -> list[dict[str, float]]:
    """Put the last checkpoint of a folder into a network and its optimizer.

    Parameters
    ----------
    folder : pathlib.Path
        Where `save_checkpoint` wrote.
    network : Classifier
        Changed in place.
    optimizer : torch.optim.Optimizer
        Changed in place.

    Returns
    -------
    list of dict
        The rows of metrics.csv up to there; none where there is no checkpoint.

    Raises
    ------
    DataError
        If the file is damaged, or the optimizer's is not there.
    """
    found = find_last(folder)
    if found is None:
        return []
    last, beside = found
    checkpoint = load_checkpoint(last)
    network.load_state_dict(checkpoint.network.state_dict())
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in load_tensors(beside)[0].items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return list(checkpoint.history)


def write_row(path: Path, row: dict[str, float]) -> None:
    """Add a row to metrics.csv.

    Parameters
    ----------
    path : pathlib.Path
        The file; begun with its header where it is not there.
    row : dict
        Numbers by column; what is missing stays empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)

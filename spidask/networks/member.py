"""A member: one trained classifier in one safetensors file."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from scipy.special import expit

from spidask.config import Representation
from spidask.errors import DataError
from spidask.networks.compact import Compact
from spidask.networks.representation import represent
from spidask.schema import CLASSES

FloatArray = npt.NDArray[np.float32]
SINGLE = CLASSES.index("single")
SHIPPED = Path(__file__).parent / "compact.safetensors"
"""A member trained on simulated patterns of the 2018 experiment, to start from."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What torch's batch norms store beside their parameters."""


@dataclass(frozen=True)
class Member:
    """One trained classifier: it takes raw patterns and gives probabilities.

    Attributes
    ----------
    network : torch.nn.Module
        The network, in evaluation mode.
    representation : Representation
        What the network sees of a pattern.
    threshold : float
        Probabilities from here on are single hits.
    slope, intercept : float
        The probability is sigmoid(slope * logit + intercept), the logit being the
        network's log odds of a single hit (Platt 1999).
    provenance : dict
        What it was trained on: settings, iteration, validation F1, software.
    """

    network: Compact
    representation: Representation
    threshold: float = 0.5
    slope: float = 1.0
    intercept: float = 0.0
    provenance: dict[str, Any] = field(default_factory=dict)


def save_member(member: Member, path: str | Path) -> None:
    """Write a member to one file.

    Parameters
    ----------
    member : Member
        The classifier.
    path : str or pathlib.Path
        A ``.safetensors`` file; written beside and moved into place.
    """
    metadata = {
        "architecture": "compact",
        "architecture_settings": member.network.settings(),
        "representation": member.representation.model_dump(),
        "threshold": member.threshold,
        "slope": member.slope,
        "intercept": member.intercept,
        "provenance": member.provenance,
    }
    save_tensors(member.network.state_dict(), path, metadata)


def load_member(path: str | Path, device: str | torch.device = "cpu") -> Member:
    """Read a member.

    Parameters
    ----------
    path : str or pathlib.Path
        A file that `save_member` wrote.
    device : str or torch.device
        Where the network goes.

    Returns
    -------
    Member
        The classifier, in evaluation mode.

    Raises
    ------
    DataError
        If the file is no member.
    """
    tensors, metadata = load_tensors(path, device)
    try:
        network = Compact(**metadata["architecture_settings"])
        network.load_state_dict(tensors)
        representation = Representation.model_validate(metadata["representation"])
        numbers = {name: float(metadata[name]) for name in ("threshold", "slope", "intercept")}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is no member of this version: {reason}", path=str(path)) from None
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.eval().requires_grad_(False)
    return Member(network, representation, provenance=metadata["provenance"], **numbers)


def score(member: Member, patterns: FloatArray, batch_size: int) -> FloatArray:
    """Probability of a single hit for each pattern.

    Parameters
    ----------
    member : Member
        The classifier.
    patterns : numpy.ndarray
        Shape (frame, y, x), float32, photons, NaN where missing.
    batch_size : int
        Patterns that the network sees at once; see `logits`.

    Returns
    -------
    numpy.ndarray
        Calibrated probabilities, shape (frame,), float32.
    """
    found = logits(member.network, member.representation, patterns, batch_size)
    return expit(member.slope * found + member.intercept).astype(np.float32)


def logits(
    network: Compact,
    representation: Representation,
    patterns: FloatArray,
    batch_size: int,
) -> FloatArray:
    """Log odds of a single hit against all other classes.

    Parameters
    ----------
    network : Compact
        The network, in evaluation mode.
    representation : Representation
        What the network sees of a pattern.
    patterns : numpy.ndarray
        Shape (frame, y, x), float32, photons, NaN where missing.
    batch_size : int
        Patterns that the network sees at once; the last batch is padded to it, because the
        last digits of a convolution depend on the size.

    Returns
    -------
    numpy.ndarray
        Log odds, shape (frame,), float32.
    """
    device = next(network.parameters()).device
    out = np.empty(len(patterns), np.float32)
    for start in range(0, len(patterns), batch_size):
        part = patterns[start : start + batch_size]
        batch = np.zeros((batch_size, *patterns.shape[1:]), np.float32)
        batch[: len(part)] = part
        with torch.inference_mode():
            seen = represent(torch.from_numpy(batch).to(device), representation)
            out[start : start + len(part)] = single_logit(network(*seen))[: len(part)].cpu()
    return out


def single_logit(outputs: torch.Tensor) -> torch.Tensor:
    """Log odds of a single hit against all other classes.

    Parameters
    ----------
    outputs : torch.Tensor
        Network outputs, shape (frame, class), in the order of schema.CLASSES.

    Returns
    -------
    torch.Tensor
        Shape (frame,).

    Examples
    --------
    >>> round(float(single_logit(torch.zeros(1, 4))), 4)  # log(1/3)
    -1.0986
    """
    others = [i for i in range(len(CLASSES)) if i != SINGLE]
    return outputs[:, SINGLE] - torch.logsumexp(outputs[:, others], 1)


def save_tensors(tensors: dict[str, torch.Tensor], path: str | Path, metadata: Any) -> None:
    """Write tensors and JSON metadata to one safetensors file, all or nothing.

    Parameters
    ----------
    tensors : dict of torch.Tensor
        What to write.
    path : str or pathlib.Path
        The file; written beside and moved into place.
    metadata : object
        Anything JSON can hold.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    # Written here and not by safetensors, which leaves files that the group cannot read.
    beside.write_bytes(save(contiguous, {"spidask": json.dumps(metadata, sort_keys=True)}))
    beside.replace(path)


def load_tensors(
    path: str | Path, device: str | torch.device = "cpu"
) -> tuple[dict[str, torch.Tensor], Any]:
    """Read what `save_tensors` wrote.

    Parameters
    ----------
    path : str or pathlib.Path
        The file.
    device : str or torch.device
        Where the tensors go.

    Returns
    -------
    tensors : dict of torch.Tensor
        The tensors.
    metadata : object
        The JSON metadata.

    Raises
    ------
    DataError
        If the file is missing, damaged or not from spidask.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = json.loads((file.metadata() or {})["spidask"])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} is no spidask tensor file: {error}", path=str(path)) from None


def count_parameters(path: str | Path) -> int:
    """Count a member's parameters from the header of its file.

    Parameters
    ----------
    path : str or pathlib.Path
        A ``.safetensors`` file.

    Returns
    -------
    int
        Numbers that training adjusts; the running statistics of batch norms are none.

    Raises
    ------
    DataError
        If it is no such file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if not name.endswith(STATISTICS)]  # noqa: SIM118
            return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is no file of tensors: {error}", path=str(path)) from None


def digest(path: str | Path) -> str:
    """Hash of a file's bytes.

    Parameters
    ----------
    path : str or pathlib.Path
        The file.

    Returns
    -------
    str
        SHA-256, hexadecimal.
    """
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()

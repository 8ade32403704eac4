"""A member: one trained classifier in one safetensors file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from spidask.config import Representation
from spidask.errors import DataError
from spidask.networks.architectures import ARCHITECTURES, rebuild
from spidask.networks.classifier import Classifier, in_single_precision
from spidask.networks.tensors import load_tensors, save_tensors

FloatArray = npt.NDArray[np.float32]
SHIPPED = Path(__file__).parent / "compact.safetensors"
"""A member trained on simulated patterns of the 2018 experiment, to start from."""


@dataclass(frozen=True)
class Member:
    """One trained classifier: it takes raw patterns and gives probabilities.

    Attributes
    ----------
    network : Classifier
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

    network: Classifier
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
        "architecture": member.network.name,
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
        network = rebuild(metadata["architecture"], metadata["architecture_settings"])
        network.load_state_dict(tensors)
        representation = Representation.model_validate(metadata["representation"])
        numbers = {name: float(metadata[name]) for name in ("threshold", "slope", "intercept")}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is no member of this version: {reason}", path=str(path)) from None
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.eval().requires_grad_(False)
    return Member(network, representation, provenance=metadata["provenance"], **numbers)


def read_architecture(path: str | Path) -> type[Classifier]:
    """Find out what kind of network a member has.

    Parameters
    ----------
    path : str or pathlib.Path
        A file that `save_member` wrote.

    Returns
    -------
    type of Classifier
        The kind.

    Raises
    ------
    DataError
        If the file is no member.
    """
    _, metadata = load_tensors(path, only=())
    try:
        return ARCHITECTURES[metadata["architecture"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is no member of this version: {error}", path=str(path)) from None


def logits(
    network: Classifier,
    representation: Representation,
    patterns: FloatArray,
    batch_size: int,
) -> FloatArray:
    """Log odds of a single hit against all other classes.

    Parameters
    ----------
    network : Classifier
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
            seen = network.see(torch.from_numpy(batch).to(device), representation)
            found = network.log_odds(in_single_precision(network(*seen)))
            out[start : start + len(part)] = found[: len(part)].cpu()
    return out


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

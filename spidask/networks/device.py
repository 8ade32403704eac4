"""Which device a config computes on."""

from __future__ import annotations

import socket

import torch

from spidask.config import Config, Precision
from spidask.errors import ClusterError
from spidask.networks.classifier import Classifier

BATCH_ON_GPU = 64


def in_precision(device: str, precision: Precision) -> torch.autocast:
    """Have networks multiply in a precision.

    Parameters
    ----------
    device : str
        ``cpu`` or ``cuda``.
    precision : {"fp32", "bf16"}
        ``bf16``: convolutions and products of matrices in bfloat16, the rest as before.

    Returns
    -------
    torch.autocast
        A context for the forward pass.
    """
    kind = torch.device(device).type
    # Weights are cast anew each time, for they change under a cache's hands in training.
    return torch.autocast(kind, torch.bfloat16, precision == "bf16", cache_enabled=False)


def choose_device(config: Config) -> str:
    """Tell what a config computes on, as far as its settings alone say.

    Parameters
    ----------
    config : Config
        Sections `inference` and `cluster`.

    Returns
    -------
    str
        ``cpu`` or ``cuda``, as `cluster.gpus` says, so that all labels are made on the same kind
        of device; ``auto`` where only this machine can tell.
    """
    device, cluster = config.inference.device, config.cluster
    if config.inference.runtime == "openvino":
        return "cpu"
    is_told = cluster.gpus is not None or cluster.kind not in ("local", "inline")
    if device == "auto" and is_told:
        return "cuda" if cluster.gpus else "cpu"
    return device


def choose_batch(config: Config, network: Classifier | type[Classifier], device: str) -> int:
    """Choose the one size of all batches of a network.

    Parameters
    ----------
    config : Config
        Section `inference`.
    network : Classifier or type of Classifier
        The network, or its kind.
    device : str
        ``cpu`` or ``cuda``.

    Returns
    -------
    int
        Patterns at once. The last digits of a score depend on it, so that it is recorded with the
        labels.
    """
    size = config.inference.batch_size
    if size != "auto":
        return size
    return network.batch_on_cpu if device == "cpu" else BATCH_ON_GPU


def resolve_device(config: Config) -> str:
    """Tell what this process computes on; ``auto`` is what it finds.

    Parameters
    ----------
    config : Config
        Sections `inference` and `cluster`.

    Returns
    -------
    str
        ``cpu`` or ``cuda``.

    Raises
    ------
    ClusterError
        If a GPU is asked for and there is none.
    """
    if config.inference.runtime == "openvino":
        return "cpu"
    device, available = config.inference.device, torch.cuda.is_available()
    if device == "cuda" and not available:
        if config.cluster.kind in ("local", "inline") and not config.cluster.gpus:
            raise ClusterError(
                "inference.device: cuda, but torch sees no CUDA device; use auto or cpu"
            )
        raise ClusterError(
            f"cluster.gpus: {config.cluster.gpus}, but torch sees no CUDA device on "
            f"{socket.gethostname()}; see to it that jobs get GPUs (cluster.job.directives), or "
            "set inference.device to cpu"
        )
    if device == "auto":
        return "cuda" if available else "cpu"
    return device

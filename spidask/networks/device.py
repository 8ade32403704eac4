"""Which device a process computes on."""

from __future__ import annotations

import torch

from spidask.errors import ClusterError


def resolve_device(name: str) -> str:
    """Choose the device of this process.

    Parameters
    ----------
    name : str
        ``auto``, ``cpu`` or ``cuda``.

    Returns
    -------
    str
        ``cpu`` or ``cuda``.

    Raises
    ------
    ClusterError
        If ``cuda`` is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ClusterError("inference.device: cuda, but torch sees no CUDA device; use auto or cpu")
    if name == "auto":
        return "cuda" if available else "cpu"
    return name

"""Tensors with JSON metadata in one safetensors file; no pickle is ever read."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from spidask.errors import DataError

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What torch's batch norms store beside their parameters."""


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
    path: str | Path,
    device: str | torch.device = "cpu",
    only: Collection[str] | None = None,
) -> tuple[dict[str, torch.Tensor], Any]:
    """Read what `save_tensors` wrote.

    Parameters
    ----------
    path : str or pathlib.Path
        The file.
    device : str or torch.device
        Where the tensors go.
    only : collection of str, optional
        Names of the tensors to read; nothing: all.

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
            names = [name for name in file.keys() if only is None or name in only]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}, metadata
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

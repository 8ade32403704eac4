"""Distributed data parallelism: gradients and sums over the ranks of a group."""

from __future__ import annotations

import copy
import warnings
from contextlib import AbstractContextManager

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


def average_gradients(network: nn.Module, example: tuple[torch.Tensor, ...]) -> nn.Module:
    """Let all ranks of a group train one network.

    Parameters
    ----------
    network : torch.nn.Module
        The same on every rank.
    example : tuple of torch.Tensor
        What it takes, of any values.

    Returns
    -------
    torch.nn.Module
        Its gradients are means over the ranks; its running statistics are each rank's own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its new name is not in every torch
        trained = DistributedDataParallel(
            network, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    # After its first pass it sorts the gradients anew, and more than two ranks then sum them in
    # another order. One pass that counts for nothing lets a resumed run find the same digits.
    state = copy.deepcopy(network.state_dict())
    outputs = trained(*example)
    sum(output.sum() for output in outputs).backward()  # one tensor, or several
    network.load_state_dict(state)
    return trained


def hold_gradients(trained: nn.Module) -> AbstractContextManager[None]:
    """Let the gradients of pieces of a batch add up on their rank before they travel.

    Parameters
    ----------
    trained : torch.nn.Module
        As `average_gradients` gives it.

    Returns
    -------
    contextlib.AbstractContextManager
        For the forward and backward passes of all pieces but the last.
    """
    assert isinstance(trained, DistributedDataParallel)
    return trained.no_sync()


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over all ranks of a group.

    Parameters
    ----------
    value : torch.Tensor
        Of the same shape on every rank; changed in place.

    Returns
    -------
    torch.Tensor
        The sum.
    """
    distributed.all_reduce(value)
    return value

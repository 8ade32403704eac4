"""What a network costs, found without computing anything."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from operator import add
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spidask.config import Config, Representation
from spidask.errors import ConfigError
from spidask.networks.architectures import new_network
from spidask.networks.classifier import Classifier
from spidask.networks.member import load_member

LEAST_EDGE = 8
"""Pixels of a region along an axis; in training, patterns are shifted by up to 3."""


@dataclass(frozen=True)
class Cost:
    """What a network costs for each pattern.

    Attributes
    ----------
    gflop : float
        Billions of floating-point operations, a multiplication and an addition counted as two:
        convolutions, linear layers, the rendering of pictures, and Fourier transforms
        (5/2 n log2 n for n real numbers).
    n_parameters : int
        Numbers that are learnt.
    layer_bytes : int
        Input and output of the layer whose input and output are largest.
    held_bytes : int
        Outputs of all layers, which training keeps for the gradients.
    """

    gflop: float
    n_parameters: int
    layer_bytes: int
    held_bytes: int


def measure_cost(
    network: Classifier, representation: Representation, shape: tuple[int, int]
) -> Cost:
    """Count what a network costs for a pattern.

    Parameters
    ----------
    network : Classifier
        The network; it is left as it is.
    representation : Representation
        What it sees.
    shape : tuple of int
        Rows and columns of a pattern.

    Returns
    -------
    Cost
        Its cost, counted on tensors without values.
    """
    blank = copy.deepcopy(network).to("meta").eval()
    inputs, outputs = [0], [0]

    def note(_layer: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        for noted, tensors in ((inputs, given), (outputs, (out,))):
            noted.append(sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor)))

    for layer in blank.modules():
        if not any(True for _ in layer.children()):
            layer.register_forward_hook(note)
    pattern = torch.empty(1, *shape, device="meta")
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._fft_r2c: _count_fft})
    with torch.inference_mode(), counter:
        blank(*blank.see(pattern, representation))
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    largest = max(map(add, inputs, outputs))
    return Cost(counter.get_total_flops() / 1e9, n_parameters, largest, sum(outputs))


def measure_networks(config: Config, shape: tuple[int, int]) -> Cost:
    """Count what a pattern costs a network of a config.

    Parameters
    ----------
    config : Config
        Section `training`, or the first of `inference.members`.
    shape : tuple of int
        Rows and columns of the region.

    Returns
    -------
    Cost
        Of one network.

    Raises
    ------
    ConfigError
        If the region is too small for networks.
    DataError
        If `inference.members` names no member.
    TrainingError
        If a package is missing that the architecture needs.
    """
    if min(shape) < LEAST_EDGE:
        raise ConfigError(
            f"preprocessing.region: {shape[0]} x {shape[1]} pixels are too few for networks; give "
            f"at least {LEAST_EDGE} along both axes"
        )
    if config.inference.members:
        member = load_member(config.inference.members[0])
        return measure_cost(member.network, member.representation, shape)
    random = config.training.model_copy(update={"initial": "random"})
    network = new_network(random, np.array([[0.5, 0.5, 1, 1]], np.float32), shape)
    return measure_cost(network, random.representation, shape)


def _count_fft(shape: torch.Size, *_: Any, **__: Any) -> int:
    n = math.prod(shape[-2:])
    return round(2.5 * n * math.log2(n)) * math.prod(shape[:-2])

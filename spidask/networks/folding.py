"""Networks as they are used: what training needed and inference does not is multiplied out."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from spidask.networks.classifier import Classifier


def fold_norms(network: Classifier) -> Classifier:
    """Multiply batch norms into the convolutions before them.

    Parameters
    ----------
    network : Classifier
        In evaluation mode; it is left as it is.

    Returns
    -------
    Classifier
        The same function but for rounding, for inference only. Norms that do not follow a
        convolution in a `torch.nn.Sequential` stay.
    """
    folded = copy.deepcopy(network)
    for block in folded.modules():
        if isinstance(block, nn.Sequential):
            _fold(block)
    return folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _fold(block: nn.Sequential) -> None:
    for place in range(len(block) - 1):
        layer, norm = block[place], block[place + 1]
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            block[place] = fuse_conv_bn_eval(layer, norm)
            block[place + 1] = nn.Identity()

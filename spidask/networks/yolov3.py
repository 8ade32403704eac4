"""YOLOv3 for one class: Darknet's yolov3, its boxes and its loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from spidask.networks.boxes import decode_cells, logistic, match_anchors, misplacement, overlap
from spidask.networks.darknet import Conv, Darknet, Layer, Route, Shortcut, Upsample

ANCHORS = (
    (10.0, 13.0),
    (16.0, 30.0),
    (33.0, 23.0),
    (30.0, 61.0),
    (62.0, 45.0),
    (59.0, 119.0),
    (116.0, 90.0),
    (156.0, 198.0),
    (373.0, 326.0),
)
"""Widths and heights in pixels of the network's input; the largest three belong to the first
output."""
IGNORE = 0.5
"""Boxes that overlap a true one by more are not held to be empty: .5 in section 2.1 of the paper
and in Darknet's cfg/yolov3-voc.cfg; cfg/yolov3.cfg has .7 by now."""
STRIDES = (32, 16, 8)
"""Pixels of the input for each cell of an output."""
PER_OUTPUT = 3
"""Anchors of an output."""
EXTRACTOR_STAGES = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))
"""Filters and residual blocks of Darknet-53."""
LATERAL = (61, 36)
"""Layers of the extractor that are joined again, at strides 16 and 8."""


def yolov3(width: float = 1.0) -> Darknet:
    """Build the network.

    Parameters
    ----------
    width : float
        Share of the filters of each layer; 1 is Darknet's network.

    Returns
    -------
    Darknet
        Three outputs of 18 channels at strides 32, 16 and 8: x, y, width, height, objectness and
        the one class, for each of three anchors.

    Notes
    -----
    Redmon and Farhadi 2018 (arXiv:1804.02767); layers as in Darknet's cfg/yolov3.cfg, of which the
    first 75, without the last pooling and the classifier, are ``darknet53.conv.74``.
    """
    layers: list[Layer] = [Conv(_scale(32, width))]
    for filters, n_blocks in EXTRACTOR_STAGES:
        layers.append(Conv(_scale(filters, width), stride=2))
        for _ in range(n_blocks):
            layers += [Conv(_scale(filters // 2, width), 1), Conv(_scale(filters, width))]
            layers.append(Shortcut(-3))
    for filters, lateral in zip((512, 256, 128), (None, *LATERAL), strict=True):
        if lateral is not None:
            # Back over the output and the last 3 x 3 to the bottleneck before them.
            layers += [Route((-3,)), Conv(_scale(filters, width), 1), Upsample()]
            layers.append(Route((-1, lateral - len(layers))))
        for _ in range(3):
            layers += [Conv(_scale(filters, width), 1), Conv(_scale(2 * filters, width))]
        layers.append(Conv(6 * PER_OUTPUT, 1, is_output=True))
    return Darknet(layers)


def decode(
    outputs: Sequence[torch.Tensor], anchors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read boxes and scores out of what the network gives.

    Parameters
    ----------
    outputs
        Three of shape (picture, 18, y, x), at strides 32, 16 and 8.
    anchors
        Widths and heights in pixels of the input, shape (9, 2), the smallest first.

    Returns
    -------
    boxes : torch.Tensor
        Shape (picture, box, 4): centre x, centre y, width and height, relative to the picture.
    scores : torch.Tensor
        Shape (picture, box): the probability of an object times that of its class.
    """
    found = [_decode(*one) for one in zip(outputs, _of_outputs(anchors), STRIDES, strict=True)]
    boxes = torch.cat([boxes.flatten(1, 3) for boxes, _ in found], 1)
    return boxes, torch.cat([scores.flatten(1) for _, scores in found], 1)


def loss(
    outputs: Sequence[torch.Tensor], truth: torch.Tensor, anchors: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Compute the loss, term by term.

    Parameters
    ----------
    outputs
        Three of shape (picture, 18, y, x), at strides 32, 16 and 8.
    truth
        The box of each picture, shape (picture, 4), relative to the picture; NaN where the picture
        has none.
    anchors
        Widths and heights in pixels of the input, shape (9, 2), the smallest first.

    Returns
    -------
    dict
        ``objectness``, ``localization`` and ``classification``; each a sum over boxes and a mean
        over pictures.

    Notes
    -----
    The function whose gradient Darknet's yolo layer passes on: logistic terms for x, y, objectness
    and class, squares for the logarithms of width and height, these and x, y weighted by
    2 - width * height of the true box. The anchor of the most similar shape stands for it. Each
    picture has at most one box, for a pattern is a single hit or is not.
    """
    has = torch.isfinite(truth).all(-1)
    true = torch.where(has[:, None], truth, 0.0)
    pixels = torch.tensor(outputs[0].shape[:1:-1], device=truth.device) * STRIDES[0]
    best = match_anchors(true, anchors / pixels)
    zero = outputs[0].new_zeros(())
    terms = {"objectness": zero, "localization": zero, "classification": zero}
    for number, (output, own) in enumerate(zip(outputs, _of_outputs(anchors), strict=True)):
        first = PER_OUTPUT * (len(outputs) - 1 - number)
        mine = has & (best >= first) & (best < first + PER_OUTPUT)
        cells, (boxes, _) = by_anchor(output), _decode(output.detach(), own, STRIDES[number])
        size = torch.tensor(output.shape[:1:-1], device=truth.device)
        pictures = torch.nonzero(mine).flatten()
        at = (true[pictures, :2] * size).long().minimum(size - 1)
        where = (pictures, best[pictures] - first, at[:, 1], at[:, 0])
        covered = overlap(boxes, true[:, None, None, None]) * has[:, None, None, None]
        weight, target = (covered <= IGNORE).to(output.dtype), torch.zeros_like(covered)
        weight[where] = target[where] = 1
        cell, box = cells[where], true[pictures]
        extent = torch.log(box[:, 2:] * pixels / anchors[best[pictures]])
        off = misplacement(cell, box[:, :2] * size - at, extent)
        found = {
            "objectness": weight * logistic(cells[..., 4], target),
            "localization": (2 - box[:, 2:].prod(-1)) * off,
            "classification": logistic(cell[:, 5], torch.ones_like(cell[:, 5])),
        }
        terms = {name: term + found[name].sum() for name, term in terms.items()}
    return {name: term / len(truth) for name, term in terms.items()}


def _of_outputs(anchors: torch.Tensor) -> list[torch.Tensor]:
    """Anchors of each output, the largest first."""
    return list(torch.split(anchors, PER_OUTPUT))[::-1]


def _decode(
    output: torch.Tensor, anchors: torch.Tensor, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    cells = by_anchor(output)
    pixels = torch.tensor(output.shape[:1:-1], device=output.device) * stride
    scores = torch.sigmoid(cells[..., 4]) * torch.sigmoid(cells[..., 5])
    return decode_cells(cells, anchors / pixels), scores


def by_anchor(output: torch.Tensor) -> torch.Tensor:
    """Sort what the network gives by anchor.

    Parameters
    ----------
    output
        Shape (picture, 18, y, x).

    Returns
    -------
    torch.Tensor
        Shape (picture, anchor, y, x, 6): x, y, width, height, objectness and the class.
    """
    n, _, rows, columns = output.shape
    return output.reshape(n, PER_OUTPUT, 6, rows, columns).permute(0, 1, 3, 4, 2)


def _scale(filters: int, width: float) -> int:
    return max(2, 2 * round(filters * width / 2))

"""YOLOv2 for one class: Darknet's yolov2-voc, its boxes and its loss."""

from __future__ import annotations

import torch

from spidask.networks.boxes import decode_cells, logistic, match_anchors, misplacement, overlap
from spidask.networks.darknet import Conv, Darknet, Layer, Pool, Reorg, Route

ANCHORS = (
    (1.3221, 1.73145),
    (3.19275, 4.00944),
    (5.05587, 8.09892),
    (9.47112, 4.84053),
    (11.2364, 10.0071),
)
"""Widths and heights in cells of 32 pixels, of yolov2-voc."""
IGNORE = 0.6
"""Boxes that overlap a true one by more are not held to be empty."""
OBJECT_SCALE = 5.0
PRIOR_SCALE, PRIOR_PICTURES = 0.01, 12_800
"""While so few pictures were seen, boxes are drawn to their anchors."""


def yolov2(width: float = 1.0, anchors: int = len(ANCHORS)) -> Darknet:
    """Build the network.

    Parameters
    ----------
    width : float
        Share of the filters of each layer; 1 is Darknet's network.
    anchors : int
        Boxes that each cell predicts.

    Returns
    -------
    Darknet
        One output of 6 * anchors channels at stride 32: x, y, width, height, objectness and the
        one class, for each anchor.

    Notes
    -----
    Redmon and Farhadi 2016 (arXiv:1612.08242); layers as in Darknet's cfg/yolov2-voc.cfg, of which
    the first 23 are the feature extractor, ``darknet19_448.conv.23``.
    """

    def convs(*filters: int) -> list[Layer]:
        # Filters of 3 x 3; every second of a row is a bottleneck of 1 x 1.
        return [Conv(_scale(n, width), 1 if i % 2 else 3) for i, n in enumerate(filters)]

    return Darknet(
        [
            *convs(32),
            Pool(),
            *convs(64),
            Pool(),
            *convs(128, 64, 128),
            Pool(),
            *convs(256, 128, 256),
            Pool(),
            *convs(512, 256, 512, 256, 512),
            Pool(),
            *convs(1024, 512, 1024, 512, 1024),
            *convs(1024),
            *convs(1024),
            Route((-9,)),
            Conv(_scale(64, width), 1),
            Reorg(),
            Route((-1, -4)),
            *convs(1024),
            Conv(6 * anchors, 1, is_output=True),
        ]
    )


def decode(output: torch.Tensor, anchors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Read boxes and scores out of what the network gives.

    Parameters
    ----------
    output
        Shape (picture, 6 * anchor, y, x).
    anchors
        Widths and heights in cells, shape (anchor, 2).

    Returns
    -------
    boxes : torch.Tensor
        Shape (picture, anchor, y, x, 4): centre x, centre y, width and height, relative to the
        picture.
    scores : torch.Tensor
        Shape (picture, anchor, y, x): the probability of an object; that of its class is 1, as
        there is only one.
    """
    cells = by_anchor(output, len(anchors))
    size = torch.tensor(output.shape[:1:-1], device=output.device)
    return decode_cells(cells, anchors / size), torch.sigmoid(cells[..., 4])


def loss(
    output: torch.Tensor, truth: torch.Tensor, anchors: torch.Tensor, seen: int
) -> dict[str, torch.Tensor]:
    """Compute the loss, term by term.

    Parameters
    ----------
    output
        Shape (picture, 6 * anchor, y, x).
    truth
        The box of each picture, shape (picture, 4), relative to the picture; NaN where the picture
        has none.
    anchors
        Widths and heights in cells, shape (anchor, 2).
    seen : int
        Pictures that were seen before.

    Returns
    -------
    dict
        ``objectness``, ``localization`` and ``classification`` (0: there is one class, and Darknet
        takes the softmax over it); each a sum over boxes and a mean over pictures.

    Notes
    -----
    The function whose gradient Darknet's region layer passes on (``bias_match``, ``rescore``,
    ``softmax``; scales 5, 1, 1, 1): logistic terms for x, y and objectness, squares for the
    logarithms of width and height, these and x, y weighted by 2 - width * height of the true box.
    A box that stands for a true one has its overlap as the target of objectness. Each picture
    has at most one box, for a pattern is a single hit or is not.
    """
    cells = by_anchor(output, len(anchors))
    boxes, _ = decode(output.detach(), anchors)
    n_pictures, _, rows, columns = boxes.shape[:4]
    size = torch.tensor([columns, rows], device=output.device)
    has = torch.isfinite(truth).all(-1)
    true = torch.where(has[:, None], truth, 0.0)
    covered = overlap(boxes, true[:, None, None, None]) * has[:, None, None, None]
    pictures = torch.nonzero(has).flatten()
    at = (true[pictures, :2] * size).long().minimum(size - 1)
    best = match_anchors(true[pictures], anchors / size)
    where = (pictures, best, at[:, 1], at[:, 0])
    weight, target = (covered <= IGNORE).to(output.dtype), torch.zeros_like(covered)
    weight[where], target[where] = OBJECT_SCALE, covered[where]
    objectness = weight * logistic(cells[..., 4], target)
    cell, box = cells[where], true[pictures]
    centre, extent = box[:, :2] * size - at, torch.log(box[:, 2:] * size / anchors[best])
    localization = ((2 - box[:, 2:].prod(-1)) * misplacement(cell, centre, extent)).sum()
    if seen < PRIOR_PICTURES:
        drawn = misplacement(
            cells, torch.full_like(cells[..., :2], 0.5), torch.zeros_like(cells[..., :2])
        )
        drawn = drawn.index_put(where, drawn.new_zeros(()))  # a true box goes before its anchor
        localization = localization + PRIOR_SCALE * drawn.sum()
    return {
        "objectness": objectness.sum() / n_pictures,
        "localization": localization / n_pictures,
        "classification": output.new_zeros(()),
    }


def by_anchor(output: torch.Tensor, n_anchors: int) -> torch.Tensor:
    """Sort what the network gives by anchor.

    Parameters
    ----------
    output
        Shape (picture, 6 * anchor, y, x).
    n_anchors : int
        Boxes that each cell predicts.

    Returns
    -------
    torch.Tensor
        Shape (picture, anchor, y, x, 6): x, y, width, height, objectness and the class.
    """
    n, _, rows, columns = output.shape
    return output.reshape(n, n_anchors, 6, rows, columns).permute(0, 1, 3, 4, 2)


def _scale(filters: int, width: float) -> int:
    # `reorg` wants multiples of four.
    return max(4, 4 * round(filters * width / 4))

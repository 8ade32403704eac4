"""Boxes on a picture: overlap, suppression of doubles, anchors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

STARTS = 10
"""Times that the search for anchors is begun; the best result counts."""


STEPS = 300
"""Most steps of each search."""


def overlap(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes with each other, pair by pair.

    Parameters
    ----------
    boxes, others
        Shapes (..., 4) that broadcast: centre x, centre y, width and height, in any unit.

    Returns
    -------
    torch.Tensor
        Shape (...), 0 to 1; 0 for boxes without an area.

    Examples
    --------
    >>> halves = torch.tensor([[1.0, 1.0, 2.0, 2.0], [2.0, 1.0, 2.0, 2.0]])
    >>> round(float(overlap(halves[0], halves[1])), 4)
    0.3333
    """
    low = torch.maximum(boxes[..., :2] - boxes[..., 2:] / 2, others[..., :2] - others[..., 2:] / 2)
    high = torch.minimum(boxes[..., :2] + boxes[..., 2:] / 2, others[..., :2] + others[..., 2:] / 2)
    shared = (high - low).clamp(min=0).prod(-1)
    union = boxes[..., 2:].prod(-1) + others[..., 2:].prod(-1) - shared
    return torch.where(union > 0, shared / union.clamp(min=1e-30), torch.zeros_like(union))


def match_anchors(boxes: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Find the anchor whose shape is most like a box's.

    Parameters
    ----------
    boxes
        Shape (box, 4): centre x, centre y, width and height.
    sizes
        Widths and heights of the anchors, shape (anchor, 2), in the same unit.

    Returns
    -------
    torch.Tensor
        Shape (box,), int64.
    """
    shapes = torch.cat([torch.zeros_like(sizes), sizes], -1)
    own = torch.cat([torch.zeros_like(boxes[:, :2]), boxes[:, 2:]], -1)
    return torch.argmax(overlap(own[:, None], shapes), 1)


def decode_cells(cells: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Read boxes out of what the cells of a grid give.

    Parameters
    ----------
    cells
        Shape (picture, anchor, y, x, 4 or more): x, y, width and height.
    sizes
        Widths and heights of the anchors relative to the picture, shape (anchor, 2).

    Returns
    -------
    torch.Tensor
        Shape (picture, anchor, y, x, 4): centre x, centre y, width and height, relative to the
        picture.
    """
    rows, columns = cells.shape[2:4]
    axes = (torch.arange(n, device=cells.device) for n in (rows, columns))
    y, x = torch.meshgrid(*axes, indexing="ij")
    n_cells = torch.tensor([columns, rows], device=cells.device)
    centre = (torch.sigmoid(cells[..., :2]) + torch.stack([x, y], -1)) / n_cells
    return torch.cat([centre, torch.exp(cells[..., 2:4]) * sizes[:, None, None]], -1)


def misplacement(cells: torch.Tensor, centre: torch.Tensor, extent: torch.Tensor) -> torch.Tensor:
    """Say how far cells are off a box: logistic in x and y, squares in width and height.

    Parameters
    ----------
    cells
        Shape (..., 4 or more): x, y, width and height as the network gives them.
    centre
        Where in its cell the box's centre lies, 0 to 1, shape (..., 2).
    extent
        Logarithms of its width and height over the anchor's, shape (..., 2).

    Returns
    -------
    torch.Tensor
        Shape (...).
    """
    squares = (cells[..., 2:4] - extent).square().sum(-1) / 2
    return logistic(cells[..., :2], centre).sum(-1) + squares


def logistic(values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the sigmoid of values with targets, one by one.

    Parameters
    ----------
    values, target
        Of the same shape; targets between 0 and 1.

    Returns
    -------
    torch.Tensor
        Of that shape.
    """
    return functional.binary_cross_entropy_with_logits(values, target, reduction="none")


def suppress(boxes: torch.Tensor, scores: torch.Tensor, limit: float = 0.45) -> torch.Tensor:
    """Keep the best of boxes that lie on each other (non-maximum suppression).

    Parameters
    ----------
    boxes
        Shape (box, 4): centre x, centre y, width and height.
    scores
        Shape (box,).
    limit : float
        Boxes that overlap a better one by more than this go; 0.45 is Darknet's.

    Returns
    -------
    torch.Tensor
        Positions of those that stay, int64, the best first.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    kept: list[int] = []
    for place in order.tolist():
        if not kept or bool((overlap(boxes[place], boxes[kept]) <= limit).all()):
            kept.append(place)
    return torch.tensor(kept, dtype=torch.int64)


def find_anchors(
    sizes: npt.NDArray[np.float64], n_anchors: int, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Choose typical widths and heights by k-means, the distance being 1 - overlap.

    Parameters
    ----------
    sizes : numpy.ndarray
        Widths and heights of boxes, shape (box, 2), any unit.
    n_anchors : int
        How many to choose.
    seed : int
        Of the boxes to begin with, `STARTS` times.

    Returns
    -------
    numpy.ndarray
        Shape (n_anchors, 2), the smallest area first; each is the median of its boxes. Where there
        are fewer different boxes than anchors, some stand twice.

    Notes
    -----
    Redmon and Farhadi 2016 (arXiv:1612.08242), section 2.
    """
    random = np.random.default_rng(seed)
    found = [_cluster(sizes, n_anchors, random) for _ in range(STARTS)]
    best = max(found, key=lambda anchors: _share(sizes, anchors).max(1).mean())
    return best[np.argsort(best.prod(-1), kind="stable")]


def _cluster(
    sizes: npt.NDArray[np.float64], n_anchors: int, random: np.random.Generator
) -> npt.NDArray[np.float64]:
    different = np.unique(sizes, axis=0)
    chosen = random.choice(len(different), n_anchors, replace=len(different) < n_anchors)
    anchors = different[chosen].astype(float)
    for _ in range(STEPS):  # medians under this distance need not come to rest
        nearest = np.argmax(_share(sizes, anchors), 1)
        moved = np.array(
            [
                np.median(sizes[nearest == i], axis=0) if (nearest == i).any() else anchors[i]
                for i in range(n_anchors)
            ]
        )
        if np.array_equal(moved, anchors):
            break
        anchors = moved
    return anchors


def _share(
    sizes: npt.NDArray[np.float64], anchors: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    shared = np.minimum(sizes[:, None], anchors).prod(-1)
    return np.asarray(shared / (sizes.prod(-1)[:, None] + anchors.prod(-1) - shared))

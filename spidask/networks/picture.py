"""Patterns as the pictures that YOLO networks were shown: colour map, figure, letterbox."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from spidask.frames.painting import paint

FIGURE_SCALE = (954 / 123, 1855 / 240)
"""Pixels of the figure for each row and column of the pattern (Ignatenko 2021)."""
FILL = 0.5
"""Grey of what the letterbox leaves free."""
LEVELS = 256


def render(
    patterns: torch.Tensor,
    size: tuple[int, int],
    *,
    colours: Literal["jet", "grey"],
    scale: Literal["linear", "logarithmic"],
    maximum: float | None = None,
) -> torch.Tensor:
    """Render patterns as the files of Ignatenko 2021 would show them to a network.

    Parameters
    ----------
    patterns
        Shape (frame, y, x), float32, photons; NaN where a pixel is missing.
    size : tuple of int
        Rows and columns of the network's input.
    colours : {"jet", "grey"}
        Colour map; grey has one channel, which stands for three alike.
    scale : {"linear", "logarithmic"}
        Linear: photons; logarithmic: log10(max(photons, 1)). Missing pixels are 0.
    maximum : float, optional
        Photons of the brightest level; nothing: each pattern's own largest number.

    Returns
    -------
    torch.Tensor
        Shape (frame, 3 or 1, rows, columns), float32, 0 to 1, on the patterns' device.

    Notes
    -----
    The published chain maps the pattern to 256 colours, draws a figure of 954 x 1855 pixels for
    123 x 240 (each pixel repeated; other regions in proportion), saves it with 8 bits, and
    letterboxes it as Darknet does (bilinear, no smoothing, grey 0.5 around). Repeating and resizing
    are linear and separable, so that one product with a matrix from each side does both; on the CPU
    a kernel that knows that each row of these has two numbers only.
    """
    values = _scale(patterns, scale, maximum)
    levels = (values * LEVELS).clamp_(max=LEVELS - 1)
    table = _table(colours)
    figure, inner = _sizes((patterns.shape[1], patterns.shape[2]), size)
    rows = (patterns.shape[1], figure[0], inner[0])
    columns = (patterns.shape[2], figure[1], inner[1])
    if patterns.device.type == "cpu":
        seen = levels.to(torch.uint8).numpy()
        painted = paint(seen, table.numpy(), _taps(*rows), _taps(*columns), size, FILL)
        return torch.from_numpy(painted)
    return _paint_by_matrices(levels.long(), table, rows, columns, size)


def place_boxes(boxes: torch.Tensor, shape: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """Find where boxes on patterns lie on their pictures.

    Parameters
    ----------
    boxes
        Shape (..., 4): centre x, centre y, width and height, relative to the pattern.
    shape : tuple of int
        Rows and columns of the pattern.
    size : tuple of int
        Rows and columns of the picture.

    Returns
    -------
    torch.Tensor
        The same, relative to the picture.

    Examples
    --------
    >>> whole = torch.tensor([0.5, 0.5, 1.0, 1.0])
    >>> place_boxes(whole, (123, 240), (416, 416)).tolist()  # 213 of 416 rows, in the middle
    [0.5, 0.49879807233810425, 1.0, 0.5120192170143127]
    """
    _, inner = _sizes(shape, size)
    top, left = ((outer - own) // 2 for outer, own in zip(size, inner, strict=True))
    scale = torch.tensor([inner[1] / size[1], inner[0] / size[0]] * 2, device=boxes.device)
    start = torch.tensor([left / size[1], top / size[0], 0, 0], device=boxes.device)
    return boxes * scale + start


def fold_channels(weight: torch.Tensor) -> torch.Tensor:
    """Make the first convolution of three equal channels one of a single channel.

    Parameters
    ----------
    weight
        Shape (filter, 3, y, x).

    Returns
    -------
    torch.Tensor
        Shape (filter, 1, y, x): the sum, which gives the same for pictures in grey.
    """
    return weight.sum(1, keepdim=True)


class PictureConv(nn.Conv2d):
    """A first convolution that takes one channel for as many alike, which is exact."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve.

        Parameters
        ----------
        input
            Shape (picture, channel, y, x), or one channel.

        Returns
        -------
        torch.Tensor
            As of torch.nn.Conv2d.
        """
        alike = input.shape[1] == 1 < self.in_channels
        weight = fold_channels(self.weight) if alike else self.weight
        return torch.as_tensor(self._conv_forward(input, weight, self.bias))


def _scale(patterns: torch.Tensor, scale: str, maximum: float | None) -> torch.Tensor:
    photons = torch.nan_to_num(patterns, nan=0.0).clamp(min=0.0)
    brightest = photons.amax((1, 2), keepdim=True) if maximum is None else maximum
    if scale == "logarithmic":
        photons = torch.log10(photons.clamp(min=1.0))
        brightest = torch.log10(torch.as_tensor(brightest).clamp(min=1.0))
    # A pattern of nothing but zeros stays dark.
    return photons / torch.as_tensor(brightest).clamp(min=1e-30)


def _sizes(
    pattern: tuple[int, int], size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the figure, and of its part of the network's input."""
    rows, columns = (round(n * f) for n, f in zip(pattern, FIGURE_SCALE, strict=True))
    if size[1] / columns < size[0] / rows:
        return (rows, columns), (rows * size[1] // columns, size[1])
    return (rows, columns), (size[0], columns * size[0] // rows)


def _paint_by_matrices(
    levels: torch.Tensor,
    table: torch.Tensor,
    rows: tuple[int, int, int],
    columns: tuple[int, int, int],
    size: tuple[int, int],
) -> torch.Tensor:
    """What `paint` does, on any device."""
    seen = table.to(levels.device)[levels].permute(0, 3, 1, 2)
    down, across = (_composed(*edge).to(levels.device) for edge in (rows, columns))
    picture = seen.new_full((*seen.shape[:2], *size), FILL)
    top, left = (size[0] - rows[2]) // 2, (size[1] - columns[2]) // 2
    picture[:, :, top : top + rows[2], left : left + columns[2]] = down @ seen @ across.T
    return picture


@lru_cache(maxsize=8)
def _table(colours: str) -> torch.Tensor:
    """The colours of all levels, shape (256, channel), as 8 bits keep them."""
    name = {"jet": "jet", "grey": "gray"}[colours]
    rgb = matplotlib.colormaps[name](np.arange(LEVELS), bytes=True)[:, :3]
    channels = rgb if colours == "jet" else rgb[:, :1]
    return torch.from_numpy(channels.astype(np.float32) / 255)


@lru_cache(maxsize=32)
def _taps(
    n_pattern: int, n_figure: int, n_out: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Repeating to the figure and Darknet's resizing of it: two sources and their weights."""
    # A pixel of the figure whose centre lies between two takes the lower, as matplotlib does.
    source = np.ceil((np.arange(n_figure) + 0.5) * n_pattern / n_figure).astype(np.int32) - 1
    # As Darknet: the corners of both stand on each other, and the last pixel is the last.
    place = np.arange(n_out) * np.float32((n_figure - 1) / max(n_out - 1, 1))
    low = np.minimum(place.astype(int), n_figure - 1)
    share: npt.NDArray[np.float32] = (place - low).astype(np.float32)
    low[-1], share[-1] = n_figure - 1, 0
    high = np.minimum(low + 1, n_figure - 1)
    return np.stack([source[low], source[high]], 1), np.stack([1 - share, share], 1)


@lru_cache(maxsize=32)
def _composed(n_pattern: int, n_figure: int, n_out: int) -> torch.Tensor:
    """The same as a matrix, shape (n_out, n_pattern)."""
    sources, shares = _taps(n_pattern, n_figure, n_out)
    weights = np.zeros((n_out, n_pattern), np.float32)
    np.add.at(weights, (np.arange(n_out)[:, None], sources), shares)
    return torch.from_numpy(weights)

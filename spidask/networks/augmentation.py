"""Changes to patterns that leave their classes alone, as far as physics allows, on their device."""

from __future__ import annotations

import torch
from torch.nn import functional

MAX_SHIFT = 3
"""Pixels by which the beam wanders at most, along each axis."""
MAX_HOLE = 30
"""Edge of the largest rectangle of pixels that is taken away."""
LEAST_FLUENCE = 0.4
"""Smallest share of photons that is kept."""


def add_margin(patterns: torch.Tensor) -> torch.Tensor:
    """Surround patterns with missing pixels, which come in when they are shifted.

    Parameters
    ----------
    patterns
        Shape (frame, y, x), float32, photons, NaN where missing.

    Returns
    -------
    torch.Tensor
        Shape (frame, y + 2 * MAX_SHIFT, x + 2 * MAX_SHIFT).
    """
    return functional.pad(patterns, (MAX_SHIFT,) * 4, value=torch.nan)


def augment(
    framed: torch.Tensor, rows: torch.Tensor, boxes: torch.Tensor | None, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Shift patterns, and thin, mirror and punch half of them each, in all combinations.

    Parameters
    ----------
    framed
        Patterns to choose from, as `add_margin` gives them, in whole photons.
    rows
        Which ones, shape (n,), int64; their order has to be random, for it is the place of a
        pattern that decides between changes.
    boxes
        Around the signal of those chosen, shape (n, 4), float32: centre x, centre y, width and
        height, relative to the pattern; or none.
    random : torch.Generator
        Of the device; the result depends on its state only.

    Returns
    -------
    patterns : torch.Tensor
        Shape (n, y, x), float32.
    boxes : torch.Tensor or None
        Where they went; their widths and heights stay, and their centres on the pattern.

    Notes
    -----
    Nothing here waits for the device, nor does the device wait for Python.
    """
    n, half, device = len(rows), len(rows) // 2, framed.device
    height, width = (edge - 2 * MAX_SHIFT for edge in framed.shape[1:])
    # Of double precision, so that a product with a whole number stays below it.
    uniform = torch.rand((7, n), generator=random, device=device, dtype=torch.float64)
    top, left = (uniform[:2] * (2 * MAX_SHIFT + 1)).long()
    windows = framed.unfold(1, height, 1).unfold(2, width, 1)
    patterns = windows[rows, top, left]
    share = LEAST_FLUENCE + (1 - LEAST_FLUENCE) * uniform[2]
    patterns[::2] = thin(patterns[::2], share[::2], random)
    patterns[:half] = patterns[:half].flip(2)
    middle = slice((n + 2) // 4, (n + 2) // 4 + half)
    _punch(patterns[middle], uniform[3:, middle])
    if boxes is None:
        return patterns, None
    x = boxes[:, 0] + (MAX_SHIFT - left) / width
    y = boxes[:, 1] + (MAX_SHIFT - top) / height
    x[:half] = 1 - x[:half]
    return patterns, torch.cat([torch.stack([x, y], 1).clamp(0, 1), boxes[:, 2:]], 1)


def thin(patterns: torch.Tensor, share: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Give the patterns that weaker pulses would have given.

    Parameters
    ----------
    patterns
        Shape (frame, y, x), float32, whole photons, NaN where missing.
    share
        Fluence of the weaker pulse in units of the pulse's, shape (frame,).
    random : torch.Generator
        Of the device.

    Returns
    -------
    torch.Tensor
        New patterns of the same shape and dtype.

    Notes
    -----
    If n is Poisson with mean m, a binomial draw of n with probability p is Poisson with mean
    p m (Raikov's theorem of thinning), so the noise is that of a real weaker pulse.
    """
    photons = patterns.nan_to_num()  # a draw from NaN photons would never end
    shares = share.to(photons.dtype)[:, None, None].expand_as(photons)
    kept = torch.binomial(photons, shares, generator=random)
    return torch.add(kept, patterns, alpha=0)  # NaN stays NaN


def _punch(patterns: torch.Tensor, uniform: torch.Tensor) -> None:
    """Take a rectangle of pixels away from each."""
    place = torch.arange(len(patterns), device=patterns.device)
    y, x = (
        _run_from(edge, start, length)
        for edge, start, length in zip(patterns.shape[1:], uniform[:2], uniform[2:], strict=True)
    )
    patterns[place[:, None, None], y[:, :, None], x[:, None]] = torch.nan


def _run_from(edge: int, start: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Coordinates along an edge; the last of those that are too many stand for the others."""
    step = torch.arange(MAX_HOLE, device=start.device)
    last = (length * MAX_HOLE).long()[:, None]
    return ((start * edge).long()[:, None] + step.minimum(last)).clamp(max=edge - 1)

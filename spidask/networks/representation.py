"""From a pattern in photons to what a network sees, on the device."""

from __future__ import annotations

import math

import torch

from spidask.config import Representation


def represent(
    patterns: torch.Tensor, settings: Representation
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale patterns and tell missing pixels apart from dark ones.

    Parameters
    ----------
    patterns
        Patterns, shape (frame, y, x), float32, photons; NaN where a pixel is missing.
    settings
        Scale and the number of photons that maps to 1.

    Returns
    -------
    values
        Network input, shape (frame, 1, y, x), float32; 0 where a pixel is missing.
    present
        1 where a pixel holds a measurement, else 0; same shape and dtype.

    Examples
    --------
    >>> linear = Representation(scale="linear", maximum=10)
    >>> values, present = represent(torch.tensor([[[5.0, float("nan")]]]), linear)
    >>> values.flatten().tolist(), present.flatten().tolist()
    ([0.5, 0.0], [1.0, 0.0])
    """
    assert settings.maximum != "own"
    present = torch.isfinite(patterns)
    photons = torch.where(present, patterns, 0.0).clamp_(min=0.0)
    if settings.scale == "linear":
        values = (photons / settings.maximum).clamp_(max=1.0)
    else:
        values = torch.log1p(photons) / math.log1p(settings.maximum)
    return values.unsqueeze(1), present.to(values.dtype).unsqueeze(1)


def stretch_of(settings: Representation) -> float:
    """Say how a network finds the photons again in the values that it sees.

    Parameters
    ----------
    settings
        Scale and the number of photons that maps to 1.

    Returns
    -------
    float
        The values are log(1 + photons) over this; 0: they are photons times a factor.

    Examples
    --------
    >>> round(stretch_of(Representation(scale="logarithmic", maximum=30)), 3)
    3.434
    """
    assert settings.maximum != "own"
    return 0.0 if settings.scale == "linear" else math.log1p(settings.maximum)

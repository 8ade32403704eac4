"""Patterns on classes at every turn at once: products of matrices between transforms over angle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

FAINTEST = 1e-6
"""Least brightness whose logarithm is taken."""


@dataclass(frozen=True)
class Polar:
    """Patterns in rings and angles, as `spidask.frames.polar.to_polar` gives them.

    Attributes
    ----------
    photons, n_pixels : numpy.ndarray
        Photons and pixels of each cell, shape (frame, ring, angle).
    """

    photons: npt.NDArray[np.float32]
    n_pixels: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Spectra:
    """The same patterns on the device, transformed over the angle once for all steps.

    Attributes
    ----------
    photons, n_pixels : torch.Tensor
        Shape (frequency, frame, ring), complex128: a matrix for each frequency.
    total : torch.Tensor
        Photons of each pattern, shape (frame,), float64.
    n_angles : int
        Angles, and so turns.
    """

    photons: torch.Tensor
    n_pixels: torch.Tensor
    total: torch.Tensor
    n_angles: int


@dataclass(frozen=True)
class Overlap:
    """Patterns laid on classes at each turn.

    Attributes
    ----------
    logs : torch.Tensor
        Sum over cells of photons times the logarithm of a class, shape (frame, class, turn),
        float64.
    exposure : torch.Tensor
        Sum over cells of pixels times the class: the photons expected of a pattern as bright as it,
        same shape and dtype.
    """

    logs: torch.Tensor
    exposure: torch.Tensor


def transform(patterns: Polar, device: str) -> Spectra:
    """Bring patterns to the device and transform them.

    Parameters
    ----------
    patterns : Polar
        The patterns.
    device : str
        ``cpu`` or ``cuda``.

    Returns
    -------
    Spectra
        On that device.
    """
    photons, n_pixels = (
        torch.fft.rfft(torch.from_numpy(values).to(device, torch.float64)).permute(2, 0, 1)
        for values in (patterns.photons, patterns.n_pixels)
    )
    n_angles, total = patterns.photons.shape[2], photons[0].real.sum(1)
    return Spectra(photons.contiguous(), n_pixels.contiguous(), total, n_angles)


def overlap(patterns: Spectra, intensity: torch.Tensor) -> Overlap:
    """Lay patterns on classes.

    Parameters
    ----------
    patterns : Spectra
        The patterns.
    intensity : torch.Tensor
        Photons a pixel of each class, shape (class, ring, angle), float64.

    Returns
    -------
    Overlap
        A turn t says that angle a of the pattern is angle a + t of the class.
    """

    def correlate(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        around = torch.fft.rfft(theirs).permute(2, 1, 0)
        # Conjugates of the class and of the product, for those of the patterns are more numbers.
        product = torch.bmm(ours, around.conj_physical()).permute(1, 2, 0)
        by_turn: torch.Tensor = torch.fft.irfft(product.conj(), patterns.n_angles)
        return by_turn

    return Overlap(
        correlate(patterns.photons, intensity.log()), correlate(patterns.n_pixels, intensity)
    )


def log_likelihood(patterns: Spectra, on: Overlap, scale: torch.Tensor) -> torch.Tensor:
    """Give the log likelihood of Poisson counts at every turn, without their factorials.

    Parameters
    ----------
    patterns : Spectra
        The patterns.
    on : Overlap
        How they lie on the classes.
    scale : torch.Tensor
        Brightness of each pattern against its class, shape (frame,), float64.

    Returns
    -------
    torch.Tensor
        Shape (frame, class, turn), float64.
    """
    bright = (patterns.total * scale.clamp(min=FAINTEST).log())[:, None, None]
    return (on.logs + bright).addcmul_(on.exposure, scale[:, None, None], value=-1)


def gather(
    patterns: Spectra, chance: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add up patterns, turned into the frame of each class.

    Parameters
    ----------
    patterns : Spectra
        The patterns.
    chance : torch.Tensor
        Weight of each class and turn, shape (frame, class, turn), float64.
    scale : torch.Tensor
        Brightness of each pattern against its class, shape (frame,), float64.

    Returns
    -------
    photons, exposure : torch.Tensor
        Photons, and pixels times brightness, shape (class, ring, angle), float64.
    """
    turned = torch.fft.rfft(chance).permute(2, 1, 0)

    def add_up(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        product = torch.bmm(weights, values).permute(1, 2, 0)
        by_angle: torch.Tensor = torch.fft.irfft(product, patterns.n_angles)
        return by_angle.clamp_(min=0)

    return add_up(turned, patterns.photons), add_up(turned * scale, patterns.n_pixels)

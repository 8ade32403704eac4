"""A small network for diffraction patterns: it sees the pattern and its autocorrelation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from spidask.config import Representation
from spidask.frames.residuals import FLOOR, LOCAL, TINY, roughen, scale_windows
from spidask.frames.spectrum import (
    fold_rows,
    is_awkward,
    plan_transform,
    pool_log_power,
    square,
    unfold_power,
)
from spidask.networks.classifier import Classifier
from spidask.networks.representation import represent
from spidask.schema import CLASSES

WIDTHS, AUTOCORRELATION_WIDTHS, HIDDEN = (12, 18, 32, 48), (8, 16, 32), 64
LOGARITHMIC = math.log1p(30.0)
"""Stretch of the default representation, in which 30 photons are 1."""


class PartialConv(nn.Module):
    """Convolution over the pixels that are there, rescaled to a full window.

    Parameters
    ----------
    channels : int
        Output channels.
    kernel : int
        Edge of the window in pixels, odd.
    stride : int
        Step of the window in pixels.

    Notes
    -----
    Liu et al. 2018, arXiv:1804.07723, equation 1, for one input channel and without bias. A
    window without any pixel gives 0.
    """

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, kernel, stride, kernel // 2, bias=False)

    def scale_windows(self, present: torch.Tensor) -> torch.Tensor:
        """Say by how much each window is to be rescaled.

        Parameters
        ----------
        present
            1 where a pixel is there, else 0, shape (frame, 1, y, x).

        Returns
        -------
        torch.Tensor
            Pixels of a window over those that are there, or 0, shape
            (frame, 1, y / stride, x / stride).
        """
        kernel = self.conv.kernel_size[0]
        n = functional.avg_pool2d(
            present, kernel, self.conv.stride, kernel // 2, divisor_override=1
        )
        return torch.as_tensor((n > 0) * kernel**2 / n.clamp(min=1.0))

    def forward(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Convolve.

        Parameters
        ----------
        values
            Shape (frame, 1, y, x), 0 where a pixel is missing.
        scale
            As of `scale_windows`.

        Returns
        -------
        torch.Tensor
            Shape (frame, channels, y / stride, x / stride).
        """
        out: torch.Tensor = self.conv(values) * scale
        return out


class Residual(nn.Module):
    """A strided convolution and one residual block.

    Parameters
    ----------
    n_in : int
        Input channels.
    n_out : int
        Output channels.

    Notes
    -----
    He et al. 2016, arXiv:1512.03385.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.down = nn.Sequential(*_convolution(n_in, n_out, 2), nn.ReLU())
        self.block = nn.Sequential(
            *_convolution(n_out, n_out, 1), nn.ReLU(), *_convolution(n_out, n_out, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both.

        Parameters
        ----------
        x
            Shape (frame, n_in, y, x).

        Returns
        -------
        torch.Tensor
            Shape (frame, n_out, y / 2, x / 2).
        """
        x = self.down(x)
        return functional.relu(x + self.block(x))


class Compact(Classifier):
    """Classify patterns of any size from the pattern and its autocorrelation.

    Parameters
    ----------
    widths : sequence of int
        Channels of the stem and of the stages on the pattern.
    autocorrelation_widths : sequence of int
        Channels of the stem and of the stages on the autocorrelation.
    kernel : int
        Edge of the first filter in pixels.
    hidden : int
        Units between the features and the classes.
    dropout : float
        Share of features dropped in training.
    stretch : float
        The values seen are log(1 + photons) / stretch; 0: photons times a factor.

    Notes
    -----
    A second particle at distance d adds fringes of period wavelength * distance / d to the whole
    pattern. One filter sees little of a faint fringe, but the Fourier transform of the pattern
    collects it in one spot at d: the autocorrelation of the electron density. Both branches end
    in means and maxima over the map, so that the size of the region is free.
    """

    name = "compact"
    batch_on_cpu = 8

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        autocorrelation_widths: Sequence[int] = AUTOCORRELATION_WIDTHS,
        kernel: int = 7,
        hidden: int = HIDDEN,
        dropout: float = 0.2,
        stretch: float = LOGARITHMIC,
    ) -> None:
        super().__init__()
        self._settings = {
            "widths": tuple(widths),
            "autocorrelation_widths": tuple(autocorrelation_widths),
            "kernel": kernel,
            "hidden": hidden,
            "dropout": dropout,
            "stretch": stretch,
        }
        self.stretch = stretch
        self.stem = PartialConv(widths[0], kernel, 2)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential(*(Residual(a, b) for a, b in itertools.pairwise(widths)))
        first = autocorrelation_widths[0]
        self.autocorrelation_stem = nn.Sequential(
            nn.BatchNorm2d(2), *_convolution(2, first, 1, 5), nn.ReLU()
        )
        self.autocorrelation_stages = nn.Sequential(
            *(Residual(a, b) for a, b in itertools.pairwise(autocorrelation_widths))
        )
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(2 * (widths[-1] + autocorrelation_widths[-1]), hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, len(CLASSES)),
        )

    def settings(self) -> dict[str, Any]:
        """Arguments that build the same network.

        Returns
        -------
        dict
            Keyword arguments of this class.
        """
        return dict(self._settings)

    def see(
        self, patterns: torch.Tensor, representation: Representation
    ) -> tuple[torch.Tensor, ...]:
        """Turn patterns into what `forward` takes; nothing of it is learned.

        Parameters
        ----------
        patterns
            Shape (frame, y, x), float32, photons, NaN where missing.
        representation : Representation
            Scale and maximum.

        Returns
        -------
        tuple of torch.Tensor
            Arguments of `forward`.
        """
        if patterns.device.type == "cpu":
            maximum, is_log = representation.maximum, representation.scale == "logarithmic"
            assert maximum != "own"
            seen = roughen(patterns.numpy(), maximum, is_logarithmic=is_log)
            kernel, stride = self.stem.conv.kernel_size[0], self.stem.conv.stride[0]
            scale = torch.from_numpy(scale_windows(seen[1], kernel, stride))
            power = pool_log_power(_power(torch.from_numpy(seen[2]).flatten(0, 1)))
            distances = torch.from_numpy(power.reshape(len(patterns), 2, *power.shape[1:]))
            return torch.from_numpy(seen[0])[:, None], scale[:, None], distances
        values, present = represent(patterns, representation)
        rough = roughen_on_device(values, present, self.stretch)
        return values, self.stem.scale_windows(present), autocorrelation(rough)

    def sight(self, representation: Representation) -> tuple[Hashable, ...]:
        """Tell networks apart that see patterns differently.

        Parameters
        ----------
        representation : Representation
            Scale and maximum.

        Returns
        -------
        tuple
            Equal for networks whose `see` gives the same of all patterns.
        """
        windows = self.stem.conv.kernel_size, self.stem.conv.stride
        return *super().sight(representation), *windows, self.stretch

    def forward(
        self, values: torch.Tensor, scale: torch.Tensor, distances: torch.Tensor
    ) -> torch.Tensor:
        """Class scores.

        Parameters
        ----------
        values
            Patterns as `represent` gives them, shape (frame, 1, y, x), 0 where missing.
        scale
            As of `PartialConv.scale_windows`.
        distances
            As of `autocorrelation`.

        Returns
        -------
        torch.Tensor
            Unnormalized log probabilities, shape (frame, class), in the order of schema.CLASSES.
        """
        pattern = functional.relu(self.stem_norm(self.stem(values, scale)))
        pattern = self.stages(pattern)
        distances = self.autocorrelation_stages(self.autocorrelation_stem(distances))
        features = [*_pool(pattern), *_pool(distances)]
        out: torch.Tensor = self.head(torch.cat(features, 1))
        return out


def autocorrelation(rough: torch.Tensor) -> torch.Tensor:
    """Logarithm of the power of the Fourier transform of patterns without their slow part.

    Parameters
    ----------
    rough
        As `roughen` gives them, shape (frame, 2, y, x).

    Returns
    -------
    torch.Tensor
        Shape (frame, 2, y // 2, (x // 2 + 1) // 2); distance 0 in the middle of the first column,
        pooled two by two. White noise of any strength has the mean log(2) or less. First of the
        values, then of the photons.

    Notes
    -----
    The Fourier transform of an intensity is the autocorrelation of the scattering density
    (Wiener-Khinchin). The steep fall of a pattern, which would drown everything else, is gone from
    both, and in the residuals of the photons faint fringes stand out best.
    """
    amplitude = torch.fft.rfft2(rough, norm="ortho")
    power = amplitude.real.square() + amplitude.imag.square()
    return torch.log1p(functional.avg_pool2d(torch.fft.fftshift(power, dim=2), 2))


def roughen_on_device(
    values: torch.Tensor, present: torch.Tensor, stretch: float = LOGARITHMIC
) -> torch.Tensor:
    """Take off what changes slowly, as `frames.residuals.roughen` does, on any device.

    Parameters
    ----------
    values
        Shape (frame, 1, y, x), 0 where a pixel is missing.
    present
        1 where a pixel is there, else 0; same shape.
    stretch
        The values are log(1 + photons) / stretch; 0: photons times a factor.

    Returns
    -------
    torch.Tensor
        Shape (frame, 2, y, x).
    """
    photons = torch.expm1(values * stretch) if stretch else values
    n_present = _local_sum(present).clamp(min=1.0)
    slow, mean = _local_sum(values) / n_present, _local_sum(photons) / n_present
    noise = (mean + FLOOR * photons.mean((2, 3), keepdim=True) + TINY).sqrt()
    rough = torch.cat([values - slow, (photons - mean) / noise], 1) * present
    return rough / (rough.square().mean((2, 3), keepdim=True) + TINY).sqrt()


def _power(images: torch.Tensor) -> npt.NDArray[np.float32]:
    """Square what torch.fft.rfft2 gives of real images, faster where it is slow."""
    rows = images.shape[1]
    if not is_awkward(rows):
        return square(torch.fft.rfft2(images, norm="ortho").numpy())
    plan = plan_transform(rows)
    even, odd = fold_rows(torch.fft.rfft(images, norm="ortho").numpy())
    cosine = torch.from_numpy(plan.cosines) @ torch.from_numpy(even)
    sine = torch.from_numpy(plan.sines) @ torch.from_numpy(odd)
    return unfold_power(cosine.numpy(), sine.numpy(), rows)


def _convolution(n_in: int, n_out: int, stride: int, kernel: int = 3) -> list[nn.Module]:
    convolution = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(n_out)]


def _local_sum(x: torch.Tensor) -> torch.Tensor:
    # Differences of running sums: three times as fast as pooling.
    return _window_sum(_window_sum(x, 2), 3)


def _window_sum(x: torch.Tensor, dim: int) -> torch.Tensor:
    n, margin = x.shape[dim], LOCAL // 2
    place = torch.arange(n, device=x.device)
    running = torch.cat([torch.zeros_like(x.narrow(dim, 0, 1)), x.cumsum(dim)], dim)
    stop = running.index_select(dim, (place + margin + 1).clamp(max=n))
    return stop - running.index_select(dim, (place - margin).clamp(min=0))


def _pool(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.float()
    return x.mean((2, 3)), x.amax((2, 3))

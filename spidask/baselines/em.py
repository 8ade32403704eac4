"""Expectation maximization: classes of patterns that are alike but for a rotation in the plane."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from spidask.baselines.turns import (
    Overlap,
    Polar,
    Spectra,
    gather,
    log_likelihood,
    overlap,
    transform,
)

if TYPE_CHECKING:
    from distributed import Client

FloatArray = npt.NDArray[np.float64]
BEGIN, GROWTH = 0.02, 1.15
"""Exponent of the probabilities at the first step, and its growth a step."""
FLOOR = 1e-6
"""Least intensity of a model, photons a pixel, so that a single photon forbids nothing."""


@dataclass(frozen=True)
class Model:
    """What is known of the classes.

    Attributes
    ----------
    intensity : numpy.ndarray
        Photons a pixel of each class, shape (class, ring, angle), float64.
    share : numpy.ndarray
        Share of the patterns in each class, shape (class,), float64; their sum is 1.
    """

    intensity: FloatArray
    share: FloatArray


@dataclass(frozen=True)
class Sums:
    """What a block of patterns adds to the next model; those of all blocks are added up.

    Attributes
    ----------
    photons, exposure : numpy.ndarray
        Photons, and pixels times brightness, turned into the frame of each class, shape
        (class, ring, angle), float64.
    weight : numpy.ndarray
        Patterns in each class, shape (class,), float64.
    log_likelihood : float
        Of the block under the model before, without the factorials of the photons.
    """

    photons: FloatArray
    exposure: FloatArray
    weight: FloatArray
    log_likelihood: float

    def __add__(self, other: Sums) -> Sums:
        """Add up two blocks."""
        return Sums(
            self.photons + other.photons,
            self.exposure + other.exposure,
            self.weight + other.weight,
            self.log_likelihood + other.log_likelihood,
        )


@dataclass(frozen=True)
class Part:
    """What a step finds out about a block.

    Attributes
    ----------
    scale : numpy.ndarray
        Brightness of each pattern against its class, shape (frame,), float64.
    sums : Sums
        What the block adds to the next model.
    """

    scale: FloatArray
    sums: Sums


@dataclass(frozen=True)
class Fit:
    """Classes that were found.

    Attributes
    ----------
    model : Model
        The classes.
    chances : list of numpy.ndarray
        For each block, the probability of each class, shape (frame, class), float64.
    log_likelihoods : list of float
        After each step.
    """

    model: Model
    chances: list[FloatArray]
    log_likelihoods: list[float]


def fit(
    blocks: Sequence[Polar],
    n_classes: int,
    seed: int,
    n_steps: int = 60,
    client: Client | None = None,
    device: Callable[[], str] = lambda: "cpu",
    demand: Mapping[str, float] | None = None,
) -> Fit:
    """Find classes from a random start.

    Parameters
    ----------
    blocks : sequence of Polar
        The patterns; of the first block the start is drawn.
    n_classes : int
        How many classes.
    seed : int
        Of the start.
    n_steps : int
        Steps; the first are less sharp, so that chance decides less.
    client : distributed.Client, optional
        Whose workers hold the blocks and do them; this process without it.
    device : callable
        Says, where a block is done, whether ``cpu`` or ``cuda`` computes.
    demand : mapping, optional
        Resources that a task takes; workers without them do nothing.

    Returns
    -------
    Fit
        Several starts may end in different classes; the best has the largest last likelihood.

    Notes
    -----
    Patterns are Poisson counts around a class that is turned and made brighter: Loh and Elser 2009
    (Phys. Rev. E 80, 026705) in the plane, with several classes. From `BEGIN` on the exponent of
    the probabilities grows by `GROWTH` a step up to 1 (deterministic annealing); from there
    the likelihood never falls.
    """

    def submit(function: Callable[..., Any], *arguments: Any) -> Any:
        if client is None:
            return function(*arguments)
        return client.submit(function, *arguments, pure=False, resources=demand)

    held = client.scatter(list(blocks)) if client else blocks
    held = [submit(_transform_on, block, device) for block in held]
    parts: list[Any] = [None] * len(held)
    model, told = begin(blocks[0], n_classes, seed), []
    for step in range(n_steps):
        sharpness = min(1.0, BEGIN * GROWTH**step)
        pairs = zip(held, parts, strict=True)
        parts = [submit(advance, block, part, model, sharpness) for block, part in pairs]
        found = submit(_add_up, parts)
        sums: Sums = client.gather(found) if client else found
        model = maximize(sums, model)
        told.append(sums.log_likelihood)
    chances = [submit(_chances, *pair, model) for pair in zip(held, parts, strict=True)]
    return Fit(model, client.gather(chances) if client else chances, told)


def _transform_on(patterns: Polar, device: Callable[[], str]) -> Spectra:
    return transform(patterns, device())


def _add_up(parts: Sequence[Part]) -> Sums:
    return reduce(add, (part.sums for part in parts))


def _chances(patterns: Spectra, part: Part, model: Model) -> FloatArray:
    return np.asarray(responsibilities(patterns, part.scale, model).sum(2))


def begin(patterns: Polar, n_classes: int, seed: int) -> Model:
    """Draw a model to begin with.

    Parameters
    ----------
    patterns : Polar
        Patterns whose mean over the angles each class gets.
    n_classes : int
        How many classes.
    seed : int
        Of the draw.

    Returns
    -------
    Model
        That mean of each ring, times a random texture.
    """
    random = np.random.default_rng(seed)
    mean = patterns.photons.sum(0) / np.maximum(patterns.n_pixels.sum(0), 1)
    ring = mean.sum(1, keepdims=True) / np.maximum((mean > 0).sum(1, keepdims=True), 1)
    texture = random.uniform(0.5, 1.5, (n_classes, *mean.shape))
    share = np.full(n_classes, 1 / n_classes)
    return Model(np.maximum(ring * texture, FLOOR), share)


def advance(patterns: Spectra, before: Part | None, model: Model, sharpness: float = 1.0) -> Part:
    """Do the part of a step that goes block by block: `rescale`, then `expect`.

    Parameters
    ----------
    patterns : Spectra
        A block of patterns.
    before : Part or None
        What the step before found; without it all patterns are as bright as their class.
    model : Model
        The classes.
    sharpness : float
        As of `responsibilities`.

    Returns
    -------
    Part
        The sums of all blocks are for `maximize`.
    """
    laid = _lay(patterns, model)
    if before is None:
        scale = torch.ones_like(patterns.total)
    else:
        scale = _rescale(patterns, laid, _like(patterns, before.scale), sharpness)
    return Part(scale.cpu().numpy(), _expect(patterns, laid, scale, sharpness))


def rescale(
    patterns: Spectra, scale: FloatArray, model: Model, sharpness: float = 1.0
) -> FloatArray:
    """Measure how bright each pattern is, averaged over where it may belong.

    Parameters
    ----------
    patterns : Spectra
        The patterns.
    scale : numpy.ndarray
        How bright they are by now, shape (frame,), float64.
    model : Model
        The classes.
    sharpness : float
        As of `responsibilities`.

    Returns
    -------
    numpy.ndarray
        Photons over what the classes expect, shape (frame,), float64.
    """
    found = _rescale(patterns, _lay(patterns, model), _like(patterns, scale), sharpness)
    return np.asarray(found.cpu())


def responsibilities(
    patterns: Spectra, scale: FloatArray, model: Model, sharpness: float = 1.0
) -> FloatArray:
    """Probability of every class and turn for every pattern.

    Parameters
    ----------
    patterns : Spectra
        The patterns.
    scale : numpy.ndarray
        How bright they are, shape (frame,), float64.
    model : Model
        The classes.
    sharpness : float
        Exponent of the probabilities; below 1 for the first steps, so that chance decides less.

    Returns
    -------
    numpy.ndarray
        Shape (frame, class, turn), float64; each frame's sum is 1. There are as many turns as
        angles; a turn t says that angle a of the pattern is angle a + t of the class.
    """
    on, prior = _lay(patterns, model)
    log = log_likelihood(patterns, on, _like(patterns, scale)).add_(prior)
    return np.asarray(_normalize(sharpness * log).cpu())


def expect(patterns: Spectra, scale: FloatArray, model: Model, sharpness: float = 1.0) -> Sums:
    """Add up what a block of patterns says about the next model.

    Parameters
    ----------
    patterns : Spectra
        A block of patterns.
    scale : numpy.ndarray
        How bright they are, shape (frame,), float64.
    model : Model
        The classes.
    sharpness : float
        As of `responsibilities`.

    Returns
    -------
    Sums
        For `maximize`, after those of all blocks are added up.
    """
    return _expect(patterns, _lay(patterns, model), _like(patterns, scale), sharpness)


def maximize(sums: Sums, model: Model) -> Model:
    """Make the next model.

    Parameters
    ----------
    sums : Sums
        Of all patterns.
    model : Model
        The model before; it stands where no pattern saw anything.

    Returns
    -------
    Model
        The most likely one, given where the patterns belong.
    """
    seen = sums.exposure > 1e-9 * sums.exposure.max()
    intensity = np.where(seen, sums.photons / np.where(seen, sums.exposure, 1), model.intensity)
    return Model(np.maximum(intensity, FLOOR), sums.weight / sums.weight.sum())


def _lay(patterns: Spectra, model: Model) -> tuple[Overlap, torch.Tensor]:
    """Overlap with the classes, and the logarithm of their prior probability."""
    on = overlap(patterns, _like(patterns, model.intensity))
    share = _like(patterns, model.share).clamp(min=1e-300)
    return on, share.log()[:, None] - math.log(patterns.n_angles)


def _rescale(
    patterns: Spectra, laid: tuple[Overlap, torch.Tensor], scale: torch.Tensor, sharpness: float
) -> torch.Tensor:
    on, prior = laid
    chance = _normalize(sharpness * log_likelihood(patterns, on, scale).add_(prior))
    expected = torch.einsum("fkt,fkt->f", chance, on.exposure)
    return patterns.total / expected.clamp(min=FLOOR)


def _expect(
    patterns: Spectra, laid: tuple[Overlap, torch.Tensor], scale: torch.Tensor, sharpness: float
) -> Sums:
    on, prior = laid
    log = log_likelihood(patterns, on, scale).add_(prior)
    total = float(log.logsumexp((1, 2)).sum())
    chance = _normalize(sharpness * log)
    photons, exposure = (values.cpu().numpy() for values in gather(patterns, chance, scale))
    return Sums(photons, exposure, chance.sum((0, 2)).cpu().numpy(), total)


def _normalize(log: torch.Tensor) -> torch.Tensor:
    return torch.softmax(log.flatten(1), 1).view_as(log)


def _like(patterns: Spectra, values: FloatArray) -> torch.Tensor:
    return torch.as_tensor(values, device=patterns.total.device)

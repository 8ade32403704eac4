"""Expectation maximization: classes of patterns that are alike but for a rotation in the plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

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
class Polar:
    """Patterns in rings and angles, as `spidask.frames.polar.to_polar` gives them.

    Attributes
    ----------
    photons, n_pixels : numpy.ndarray
        Photons and pixels of each cell, shape (frame, ring, angle).
    scale : numpy.ndarray
        Brightness of each pattern against its class, shape (frame,), float64.
    """

    photons: npt.NDArray[np.float32]
    n_pixels: npt.NDArray[np.float32]
    scale: FloatArray


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
    submit: Callable[..., Any] = client.submit if client else lambda f, *a, **_: f(*a)
    gather: Callable[[Any], Any] = client.gather if client else lambda found: found
    held = client.scatter(list(blocks)) if client else list(blocks)
    model, told = begin(blocks[0], n_classes, seed), []
    for step in range(n_steps):
        sharpness = min(1.0, BEGIN * GROWTH**step)
        if step:
            held = [submit(rescale, block, model, sharpness, pure=False) for block in held]
        parts = [submit(expect, block, model, sharpness, pure=False) for block in held]
        sums: Sums = gather(submit(_add_up, parts, pure=False))
        model = maximize(sums, model)
        told.append(sums.log_likelihood)
    chances = [submit(_chances, block, model, pure=False) for block in held]
    return Fit(model, gather(chances), told)


def _add_up(parts: Sequence[Sums]) -> Sums:
    return reduce(add, parts)


def _chances(patterns: Polar, model: Model) -> FloatArray:
    return np.asarray(responsibilities(patterns, model).sum(2))


def begin(patterns: Polar, n_classes: int, seed: int) -> Model:
    """Draw a model to begin with.

    Parameters
    ----------
    patterns : Polar
        Patterns whose mean radial profile each class gets.
    n_classes : int
        How many classes.
    seed : int
        Of the draw.

    Returns
    -------
    Model
        For each class the mean radial profile of the patterns times a random texture.
    """
    random = np.random.default_rng(seed)
    mean = patterns.photons.sum(0) / np.maximum((patterns.n_pixels.T * patterns.scale).T.sum(0), 1)
    ring = mean.sum(1, keepdims=True) / np.maximum((mean > 0).sum(1, keepdims=True), 1)
    texture = random.uniform(0.5, 1.5, (n_classes, *mean.shape))
    share = np.full(n_classes, 1 / n_classes)
    return Model(np.maximum(ring * texture, FLOOR), share)


def rescale(patterns: Polar, model: Model, sharpness: float = 1.0) -> Polar:
    """Measure how bright each pattern is, averaged over where it may belong.

    Parameters
    ----------
    patterns : Polar
        The patterns.
    model : Model
        The classes.
    sharpness : float
        As of `responsibilities`.

    Returns
    -------
    Polar
        The same with a new `scale`: photons over what the classes expect.
    """
    _, exposure = _correlate(patterns, model)
    chance = responsibilities(patterns, model, sharpness)
    expected = (chance * exposure).sum((1, 2))
    total = patterns.photons.sum((1, 2), dtype=np.float64)
    return Polar(patterns.photons, patterns.n_pixels, total / np.maximum(expected, FLOOR))


def responsibilities(patterns: Polar, model: Model, sharpness: float = 1.0) -> FloatArray:
    """Probability of every class and turn for every pattern.

    Parameters
    ----------
    patterns : Polar
        The patterns.
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
    log = sharpness * _log_joint(patterns, model)
    return np.exp(log - logsumexp(log, axis=(1, 2), keepdims=True))


def expect(patterns: Polar, model: Model, sharpness: float = 1.0) -> Sums:
    """Do the part of a step that goes block by block.

    Parameters
    ----------
    patterns : Polar
        A block of patterns.
    model : Model
        The classes.
    sharpness : float
        As of `responsibilities`.

    Returns
    -------
    Sums
        For `maximize`, after those of all blocks are added up.
    """
    log = _log_joint(patterns, model)
    total = logsumexp(log, axis=(1, 2))
    sharp = sharpness * log
    chance = np.exp(sharp - logsumexp(sharp, axis=(1, 2), keepdims=True))
    exposure = patterns.n_pixels * patterns.scale[:, None, None]
    n_angles = patterns.photons.shape[2]
    turned = np.fft.rfft(chance, axis=2)

    def gather(values: npt.NDArray[np.floating]) -> FloatArray:
        # Sum over patterns and turns of chance[t] * values[angle - t].
        around = np.fft.rfft(values.astype(np.float64), axis=2)
        summed = np.einsum("fkw,frw->krw", turned, around, optimize=True)
        return np.asarray(np.fft.irfft(summed, n_angles, axis=2))

    return Sums(
        np.maximum(gather(patterns.photons), 0),
        np.maximum(gather(exposure), 0),
        chance.sum((0, 2)),
        float(total.sum()),
    )


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


def _log_joint(patterns: Polar, model: Model) -> FloatArray:
    """Logarithm of share times likelihood, shape (frame, class, turn)."""
    logs, exposure = _correlate(patterns, model)
    n_turns = logs.shape[2]
    scale = patterns.scale[:, None, None]
    total = patterns.photons.sum((1, 2), dtype=np.float64)[:, None, None]
    likelihood = logs + total * np.log(np.maximum(scale, FLOOR)) - scale * exposure
    return np.asarray(
        likelihood + np.log(np.maximum(model.share, 1e-300))[:, None] - np.log(n_turns)
    )


def _correlate(patterns: Polar, model: Model) -> tuple[FloatArray, FloatArray]:
    """Sums over cells of photons times log intensity, and of pixels times intensity, by turn."""
    n_angles = patterns.photons.shape[2]

    def correlate(values: npt.NDArray[np.floating], model: FloatArray) -> FloatArray:
        # sum over rings and angles of values[angle] * model[angle + turn]
        ours = np.fft.rfft(values.astype(np.float64), axis=2)
        theirs = np.fft.rfft(model, axis=2)
        summed = np.einsum("frw,krw->fkw", np.conj(ours), theirs, optimize=True)
        return np.asarray(np.fft.irfft(summed, n_angles, axis=2))

    return (
        correlate(patterns.photons, np.log(model.intensity)),
        correlate(patterns.n_pixels, model.intensity),
    )

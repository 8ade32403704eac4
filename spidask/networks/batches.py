"""Labelled patterns, and batches of them that are drawn while the network learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from spidask.networks.augmentation import add_margin, augment
from spidask.networks.classifier import Batch
from spidask.schema import CLASSES

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """Patterns with their classes.

    Attributes
    ----------
    patterns : numpy.ndarray
        Shape (frame, y, x), float32, photons, NaN where missing.
    classes : numpy.ndarray
        Codes into schema.CLASSES, shape (frame,), int64.
    boxes : numpy.ndarray or None
        Around the signal, shape (frame, 4), float32: centre x, centre y, width and height, relative
        to the pattern; networks that draw no boxes go without.
    """

    patterns: FloatArray
    classes: IntArray
    boxes: FloatArray | None = None

    def take(self, rows: IntArray) -> Labelled:
        """Take some of the patterns.

        Parameters
        ----------
        rows : numpy.ndarray
            Their positions, shape (n,), int64.

        Returns
        -------
        Labelled
            Shape (n, ...).
        """
        boxes = None if self.boxes is None else self.boxes[rows]
        return Labelled(self.patterns[rows], self.classes[rows], boxes)


@dataclass(frozen=True)
class Supply:
    """Labelled patterns on the device, to draw batches from.

    Attributes
    ----------
    framed : torch.Tensor
        As of `augmentation.add_margin`.
    classes : torch.Tensor
        Codes into schema.CLASSES, shape (frame,), int64.
    boxes : torch.Tensor or None
        As of `Labelled`.
    chance : torch.Tensor
        That a pattern is drawn or one before it, shape (frame,), float64.
    """

    framed: torch.Tensor
    classes: torch.Tensor
    boxes: torch.Tensor | None
    chance: torch.Tensor


Draw = Callable[[int, slice], Batch]
"""Gives a part of the batch of an iteration; the same of both always gives the same."""


def upload(labelled: Labelled, device: str) -> Supply:
    """Bring patterns to the device, once and for all batches.

    Parameters
    ----------
    labelled : Labelled
        The patterns. A class is drawn in proportion to the square root of its number of patterns,
        so that a rare one is seen often and not always.
    device : str
        Where the network learns.

    Returns
    -------
    Supply
        All of them.
    """
    counts = np.bincount(labelled.classes, minlength=len(CLASSES))
    chance = np.cumsum(1 / np.sqrt(counts[labelled.classes]))
    boxes = None if labelled.boxes is None else torch.from_numpy(labelled.boxes).to(device)
    return Supply(
        add_margin(torch.from_numpy(labelled.patterns).to(device)),
        torch.from_numpy(labelled.classes).to(device),
        boxes,
        torch.from_numpy(chance / chance[-1]).to(device),
    )


def draw_batch(supply: Supply, seed: int, iteration: int, part: slice) -> Batch:
    """Draw a part of a batch, with replacement, and augment it.

    Parameters
    ----------
    supply : Supply
        What to draw from.
    seed, iteration : int
        What is drawn, and how it is augmented, depends on these and on the part only.
    part : slice
        Places in the batch that are wanted.

    Returns
    -------
    Batch
        That part of the batch, on the device of the supply.
    """
    random = seed_generator(supply.chance.device, seed, iteration, part)
    n, device = part.stop - part.start, supply.chance.device
    drawn = torch.rand(n, generator=random, device=device, dtype=torch.float64)
    rows = torch.searchsorted(supply.chance, drawn, right=True)
    boxes = None if supply.boxes is None else supply.boxes[rows]
    patterns, boxes = augment(supply.framed, rows, boxes, random)
    return Batch(patterns, supply.classes[rows], boxes)


def seed_generator(device: torch.device, seed: int, iteration: int, part: slice) -> torch.Generator:
    """Make the source of randomness of a part of a batch.

    Parameters
    ----------
    device : torch.device
        Where it is used.
    seed, iteration : int
        What it depends on.
    part : slice
        Places in the batch; it depends on the first.

    Returns
    -------
    torch.Generator
        For `augment`; nothing else draws the same numbers.
    """
    mixed = np.random.SeedSequence([seed, iteration, part.start], spawn_key=(1,))
    return torch.Generator(device).manual_seed(int(mixed.generate_state(1, np.uint64)[0]))


def draw_ahead(draw: Draw, wanted: Iterable[tuple[int, slice]]) -> Iterator[Batch]:
    """Draw batches one after another, each while the one before is learned from.

    Parameters
    ----------
    draw : callable
        Gives a part of the batch of an iteration.
    wanted : iterable of (int, slice)
        Iterations and parts, in order.

    Yields
    ------
    Batch
        The batches.
    """
    with ThreadPoolExecutor(1, "draw") as pool:
        waiting = None
        for iteration, part in wanted:
            following = pool.submit(draw, iteration, part)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()

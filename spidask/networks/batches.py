"""Labelled patterns, and batches of them that are drawn while the network learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spidask.networks.augmentation import augment
from spidask.schema import CLASSES

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
WHOLE = slice(None)


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


Draw = Callable[[int, slice], Labelled]
"""Gives a part of the batch of an iteration; the same iteration always gives the same batch."""


def draw_batch(
    labelled: Labelled, size: int, seed: int, iteration: int, part: slice = WHOLE
) -> Labelled:
    """Draw a batch and augment a part of it.

    Parameters
    ----------
    labelled : Labelled
        What to draw from, with replacement. A class is drawn in proportion to the square
        root of its number of patterns, so that a rare one is seen often and not always.
    size : int
        Patterns in the batch.
    seed, iteration : int
        What is drawn, and how it is augmented, depends on these and on the place in the
        batch only.
    part : slice
        Places in the batch that are wanted.

    Returns
    -------
    Labelled
        That part of the batch.
    """
    counts = np.bincount(labelled.classes, minlength=len(CLASSES))
    weights = 1 / np.sqrt(counts[labelled.classes])
    random = np.random.default_rng([seed, iteration])
    rows = random.choice(len(weights), size, p=weights / weights.sum())
    drawn = labelled.take(rows[part])
    patterns, boxes = drawn.patterns, drawn.boxes
    for at, place in enumerate(range(size)[part]):
        own = np.random.default_rng([seed, iteration, place + 1])
        box = None if boxes is None else boxes[at]
        patterns[at], moved = augment(patterns[at], box, own)
        if boxes is not None:
            boxes[at] = moved
    return drawn


def draw_ahead(draw: Draw, wanted: Iterable[tuple[int, slice]]) -> Iterator[Labelled]:
    """Draw batches one after another, each while the one before is learned from.

    Parameters
    ----------
    draw : callable
        Gives a part of the batch of an iteration.
    wanted : iterable of (int, slice)
        Iterations and parts, in order.

    Yields
    ------
    Labelled
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

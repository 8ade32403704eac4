"""Changes to a pattern that leave its class alone, as far as physics allows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

MAX_SHIFT = 3
"""Pixels by which the beam wanders at most, along each axis."""
MAX_HOLE = 30
"""Edge of the largest rectangle of pixels that is taken away."""
LEAST_FLUENCE = 0.4
"""Smallest share of photons that is kept."""


def augment(
    pattern: FloatArray, box: FloatArray | None, random: np.random.Generator
) -> tuple[FloatArray, FloatArray | None]:
    """Thin, mirror, shift a pattern and drop some of its pixels.

    Parameters
    ----------
    pattern
        Shape (y, x), float32, whole photons, NaN where missing.
    box
        Around its signal, shape (4,), float32: centre x, centre y, width and height, relative to
        the pattern; or none.
    random
        Where the changes come from; each pattern brings its own.

    Returns
    -------
    pattern : numpy.ndarray
        A new array of the same shape and dtype.
    box : numpy.ndarray or None
        Where the box went; its width and height stay, and its centre on the pattern.
    """
    if random.random() < 0.5:
        pattern = thin(pattern, random.uniform(LEAST_FLUENCE, 1.0), random)
    is_mirrored = random.random() < 0.5
    if is_mirrored:
        pattern = pattern[:, ::-1]
    dy, dx = random.integers(-MAX_SHIFT, MAX_SHIFT + 1, 2)
    pattern = shift(pattern, dy, dx)
    if random.random() < 0.5:
        _punch(pattern, random)
    if box is None:
        return pattern, None
    (height, width), (x, y, *size) = pattern.shape, box
    centre = np.clip([(1 - x if is_mirrored else x) + dx / width, y + dy / height], 0, 1)
    return pattern, np.array([*centre, *size], np.float32)


def thin(pattern: FloatArray, share: float, random: np.random.Generator) -> FloatArray:
    """The pattern that a weaker pulse would have given.

    Parameters
    ----------
    pattern
        Shape (y, x), float32, whole photons, NaN where missing.
    share
        Fluence of the weaker pulse in units of the pulse's.
    random
        Source of randomness.

    Returns
    -------
    numpy.ndarray
        A new array of the same shape and dtype.

    Notes
    -----
    If n is Poisson with mean m, a binomial draw of n with probability p is Poisson with mean
    p m (Raikov's theorem of thinning), so the noise is that of a real weaker pulse.
    """
    out = pattern.copy()
    lit = np.nonzero(pattern > 0)
    out[lit] = random.binomial(pattern[lit].astype(np.int64), share)
    return out


def shift(pattern: FloatArray, dy: int, dx: int) -> FloatArray:
    """Move a pattern; what comes in from outside is missing.

    Parameters
    ----------
    pattern
        Shape (y, x), float32.
    dy, dx
        Pixels to move by along each axis.

    Returns
    -------
    numpy.ndarray
        A new array of the same shape and dtype.

    Examples
    --------
    >>> shift(np.array([[1, 2], [3, 4]], np.float32), 0, 1).tolist()
    [[nan, 1.0], [nan, 3.0]]
    """
    out = np.full_like(pattern, np.nan)
    height, width = pattern.shape
    to_y, to_x = slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0))
    from_y, from_x = slice(max(-dy, 0), height - max(dy, 0)), slice(max(-dx, 0), width - max(dx, 0))
    out[to_y, to_x] = pattern[from_y, from_x]
    return out


def _punch(pattern: FloatArray, random: np.random.Generator) -> None:
    height, width = pattern.shape
    y, x = random.integers(0, height), random.integers(0, width)
    dy, dx = random.integers(1, MAX_HOLE + 1, 2)
    pattern[y : y + dy, x : x + dx] = np.nan

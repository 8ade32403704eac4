"""Shells of a 3D intensity: correlation with another one, cuts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spidask.errors import DataError
from spidask.intensity.sampling import flatten, refuse_unsuitable, sphere_points, turn_hand

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Alignment:
    """How one intensity lies in another.

    Attributes
    ----------
    rotation : numpy.ndarray
        Takes places in the reference to those in the intensity, shape (3, 3), float64.
    inverted : bool
        Whether the intensity has to be inverted at the origin first: it is of the other hand.
    score : float
        Mean over the shells of the correlation at this rotation, each shell of equal weight.
    """

    rotation: Floats
    inverted: bool
    score: float


ALIGNED = Alignment(np.eye(3), False, float("nan"))
"""Of two intensities that lie alike."""


def correlate_shells(
    intensity: Floats, reference: Floats, shells: tuple[int, int], alignment: Alignment = ALIGNED
) -> Floats:
    """Correlate two intensities shell by shell.

    Parameters
    ----------
    intensity, reference : numpy.ndarray
        Both of shape (n, n, n), float64; NaN where they are not known.
    shells : tuple of int
        First and last radius, voxels.
    alignment : Alignment
        What `find_rotation` gives; nothing: they lie alike.

    Returns
    -------
    numpy.ndarray
        Pearson's correlation for each shell from 0 to n // 2, float64, over as many evenly
        spread points as a shell has voxels; NaN outside `shells`, where a shell does not vary,
        and where less than half of it is known.

    Raises
    ------
    DataError
        If the shapes differ or are no odd cubes, or the shells are not within the intensity.

    Examples
    --------
    >>> x = np.arange(-3.0, 4.0)
    >>> cube = 9 + np.broadcast_to(x[:, None, None], (7, 7, 7))
    >>> correlate_shells(cube, 18 - cube, (2, 3)).round(6).tolist()
    [nan, nan, -1.0, -1.0]
    """
    if intensity.shape != reference.shape:
        raise DataError(
            f"intensities of {intensity.shape} and {reference.shape} voxels cannot be compared; "
            "reconstruct both with the same detector file"
        )
    refuse_unsuitable(intensity, shells)
    moving, still = flatten(turn_hand(intensity, alignment.inverted)), flatten(reference)
    out = np.full(len(intensity) // 2 + 1, np.nan)
    for radius in range(shells[0], shells[1] + 1):
        places = radius * sphere_points(int(4 * np.pi * radius**2))
        one, one_known = moving.at(places @ alignment.rotation.T)
        other, other_known = still.at(places)
        known = one_known & other_known
        if 2 * known.sum() >= len(known):
            out[radius] = _pearson(one[known], other[known])
    return out


def measure_contrast(intensity: Floats, shells: tuple[int, int]) -> Floats:
    """Measure how much an intensity varies over each shell.

    Parameters
    ----------
    intensity : numpy.ndarray
        Shape (n, n, n), float64; NaN where it is not known.
    shells : tuple of int
        First and last radius, voxels.

    Returns
    -------
    numpy.ndarray
        Standard deviation over mean for each shell from 0 to n // 2, float64; NaN outside
        `shells`, and where nothing is known.

    Raises
    ------
    DataError
        If the intensity is no odd cube, or the shells are not within it.

    Examples
    --------
    >>> z = np.arange(-3.0, 4.0)
    >>> cube = np.broadcast_to(9 + z, (7, 7, 7))
    >>> round(float(measure_contrast(cube, (2, 2))[2]) * 9 * 3**0.5 / 2, 1)
    1.0
    """
    refuse_unsuitable(intensity, shells)
    flat = flatten(intensity)
    out = np.full(len(intensity) // 2 + 1, np.nan)
    for radius in range(shells[0], shells[1] + 1):
        values, known = flat.at(radius * sphere_points(int(4 * np.pi * radius**2)))
        if known.any() and values[known].mean() > 0:
            out[radius] = values[known].std() / values[known].mean()
    return out


def cut_plane(intensity: Floats, alignment: Alignment = ALIGNED) -> Floats:
    """Cut an intensity through its origin, in the plane x = 0 of its alignment's reference.

    Parameters
    ----------
    intensity : numpy.ndarray
        Shape (n, n, n), float64; NaN where it is not known.
    alignment : Alignment
        What `find_rotation` gives; nothing: the plane of the intensity itself.

    Returns
    -------
    numpy.ndarray
        Shape (n, n), axes y and z, float64; NaN where it is not known, and beyond the largest
        whole shell.
    """
    half = len(intensity) // 2
    flat = flatten(turn_hand(intensity, alignment.inverted))
    axis = np.arange(len(intensity)) - half
    places = np.stack(np.meshgrid([0], axis, axis, indexing="ij"), axis=-1)[0]
    radius = np.linalg.norm(places, axis=-1)
    values, known = flat.at(places @ alignment.rotation.T)
    return np.where(known & (radius <= half), values * flat.envelope_at(radius), np.nan)


def mean_over_shells(correlation: Floats, shells: tuple[int, int]) -> float:
    """Average a correlation over shells, each of equal weight.

    Parameters
    ----------
    correlation : numpy.ndarray
        Correlation of each shell from 0 on, float64; NaN where there is none.
    shells : tuple of int
        First and last radius, voxels.

    Returns
    -------
    float
        Its mean; NaN where no shell has a correlation.

    Examples
    --------
    >>> mean_over_shells(np.array([np.nan, 0.5, 1.0, 0.0]), (0, 2))
    0.75
    """
    values = correlation[shells[0] : shells[1] + 1]
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


def _pearson(one: Floats, other: Floats) -> float:
    a, b = one - one.mean(), other - other.mean()
    variances = float(np.mean(a * a) * np.mean(b * b))
    return float(np.mean(a * b)) / variances**0.5 if variances > 1e-24 else float("nan")

"""How an intensity is oriented: in another one, or against the axes of an icosahedron."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from spidask.errors import DataError
from spidask.intensity.sampling import (
    flatten,
    refuse_unsuitable,
    sphere_points,
    turn_hand,
)
from spidask.intensity.shells import Alignment, correlate_shells, mean_over_shells

Floats = npt.NDArray[np.float64]
Score = Callable[[Floats], Floats]
"""Rotations, shape (rotation, 3, 3), to how well each fits, shape (rotation,)."""

STEP_DEG = 6.0
"""Distance of the rotations tried first."""
FIRST_REACH = 2.0
"""Shells that such a step moves by more than so many voxels are left out of the first trial."""
N_KEPT = 10
"""Rotations that are refined."""
FEWEST_POINTS, FEWEST_ORBITS = 24, 4
"""Of a shell: points, and sets of 60 points that the group's rotations exchange."""
POINTS_FIRST, POINTS_REFINED = 800, 12_000
"""Points of all shells together in the first trial, and in refining."""


def find_rotation(
    intensity: Floats, reference: Floats, shells: tuple[int, int], *, both_hands: bool = False
) -> Alignment:
    """Find the rotation at which an intensity is most like another.

    Parameters
    ----------
    intensity, reference : numpy.ndarray
        Both of shape (n, n, n), float64; NaN where they are not known.
    shells : tuple of int
        First and last radius of the shells that are compared, voxels.
    both_hands : bool
        Whether the inverted intensity is tried as well. The intensity of a density without
        absorption is its own inverse, so this matters for strong absorbers only.

    Returns
    -------
    Alignment
        The best rotation of all.

    Raises
    ------
    DataError
        If the shapes differ or are no odd cubes, or the shells are not within the intensity.

    Notes
    -----
    Maximizes the mean over shells, of equal weight, of Pearson's correlation at evenly spread
    points. Tries rotations 6 degrees apart everywhere in SO(3) (Alexa, CVPR 2022, super-Fibonacci
    spirals) on the inner shells, and refines the best ten by the simplex of Nelder and Mead on
    all of them.
    """
    for one in (intensity, reference):
        refuse_unsuitable(one, shells)
    if intensity.shape != reference.shape:
        raise DataError(
            f"intensities of {intensity.shape} and {reference.shape} voxels cannot be aligned; "
            "reconstruct both with the same detector file"
        )
    grid = _spread_rotations(STEP_DEG)
    still = flatten(reference).values
    found = []
    for inverted in (False, True)[: 1 + both_hands]:
        moving = flatten(turn_hand(intensity, inverted)).values
        first = _likeness(moving, still, _first_shells(shells), POINTS_FIRST)
        refined = _likeness(moving, still, shells, POINTS_REFINED)
        rotation, score = _search(first, refined, grid)
        found.append(Alignment(rotation, inverted, score))
    best = max(found, key=lambda alignment: alignment.score)
    correlation = correlate_shells(intensity, reference, shells, best)
    return replace(best, score=mean_over_shells(correlation, shells))


def measure_symmetry(intensity: Floats, shells: tuple[int, int]) -> tuple[Floats, Floats]:
    """Correlate an intensity with itself under the rotations of an icosahedron.

    Parameters
    ----------
    intensity : numpy.ndarray
        Shape (n, n, n), float64, no symmetry imposed; NaN where it is not known.
    shells : tuple of int
        First and last radius of the shells that the orientation of the icosahedron is found on,
        voxels.

    Returns
    -------
    correlation : numpy.ndarray
        Mean of the correlations under the 59 rotations other than identity, for each shell from
        0 to n // 2, float64; NaN outside `shells`. Their mean is the purity meter: 1 for the
        intensity of an icosahedral particle, 0 for one without this symmetry.
    rotation : numpy.ndarray
        Takes the axes of `scipy.spatial.transform.Rotation.create_group("I")` to those of the
        intensity, shape (3, 3), float64.

    Raises
    ------
    DataError
        If it is no odd cube, or the shells are not within it.

    Notes
    -----
    The points are closed under the group, so the mean over all pairs of rotations is
    (sum_j (sum_k z_kj)^2 - sum z^2) / (59 sum z^2) with z_kj the deviation from the shell's mean
    at the image k of point j: the intraclass correlation of Fisher (1925). The orientation
    maximizes its mean over the shells, each of equal weight, as in `find_rotation`.
    """
    refuse_unsuitable(intensity, shells)
    flat = flatten(intensity)
    grid = _spread_rotations(STEP_DEG, one_of_sixty=True)
    first = _self_likeness(flat.values, _first_shells(shells), POINTS_FIRST)
    refined = _self_likeness(flat.values, shells, POINTS_REFINED)
    rotation, _ = _search(first, refined, grid)
    correlation = np.full(len(intensity) // 2 + 1, np.nan)
    for radius in range(shells[0], shells[1] + 1):
        places = radius * _icosahedral_points(max(int(4 * np.pi * radius**2), FEWEST_ORBITS * 60))
        correlation[radius] = _intraclass(flat.at(places @ rotation.T)[0][None])[0]
    return correlation, rotation


def _first_shells(shells: tuple[int, int]) -> tuple[int, int]:
    reach = int(FIRST_REACH / np.deg2rad(STEP_DEG))
    return shells[0], min(shells[1], max(reach, shells[0] + 2))


def _points_per_shell(shells: tuple[int, int], n_points: int, fewest: int) -> dict[int, int]:
    radii = np.arange(shells[0], shells[1] + 1)
    wanted = n_points * radii**2 / np.sum(radii**2)
    # No more than there are voxels.
    n = np.clip(wanted, fewest, np.maximum(4 * np.pi * radii**2, fewest)).astype(int)
    return dict(zip(radii.tolist(), n.tolist(), strict=True))


def _likeness(moving: Floats, still: Floats, shells: tuple[int, int], n_points: int) -> Score:
    numbers = _points_per_shell(shells, n_points, FEWEST_POINTS)
    places = np.concatenate([r * sphere_points(n) for r, n in numbers.items()])
    starts = np.cumsum([0, *numbers.values()])[:-1]
    target = _standardized(_sample(still, places, np.eye(3)[None]), starts)[0]

    def score(rotations: Floats) -> Floats:
        values = _sample(moving, places, rotations)
        products = np.add.reduceat(_standardized(values, starts) * target, starts, axis=1)
        return np.asarray(products.mean(axis=1))

    return score


def _self_likeness(values: Floats, shells: tuple[int, int], n_points: int) -> Score:
    numbers = _points_per_shell(shells, n_points, FEWEST_ORBITS * 60)
    shell_places = [r * _icosahedral_points(n).reshape(-1, 3) for r, n in numbers.items()]

    def score(rotations: Floats) -> Floats:
        found = [
            _intraclass(_sample(values, places, rotations).reshape(len(rotations), 60, -1))
            for places in shell_places
        ]
        return np.asarray(np.mean(found, axis=0))

    return score


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _sample(values, places, rotations):  # type: ignore[no-untyped-def]
    """Interpolate linearly at every place turned by every rotation, shape (rotation, place)."""
    half, last = values.shape[0] // 2, values.shape[0] - 2
    out = np.empty((len(rotations), len(places)))
    for r in range(len(rotations)):
        turn = rotations[r]
        for p in range(len(places)):
            a, b, c = places[p]
            x = turn[0, 0] * a + turn[0, 1] * b + turn[0, 2] * c + half
            y = turn[1, 0] * a + turn[1, 1] * b + turn[1, 2] * c + half
            z = turn[2, 0] * a + turn[2, 1] * b + turn[2, 2] * c + half
            i, j, k = (
                min(max(int(x), 0), last),
                min(max(int(y), 0), last),
                min(max(int(z), 0), last),
            )
            x, y, z = x - i, y - j, z - k
            low = (1 - y) * ((1 - z) * values[i, j, k] + z * values[i, j, k + 1]) + y * (
                (1 - z) * values[i, j + 1, k] + z * values[i, j + 1, k + 1]
            )
            high = (1 - y) * ((1 - z) * values[i + 1, j, k] + z * values[i + 1, j, k + 1]) + y * (
                (1 - z) * values[i + 1, j + 1, k] + z * values[i + 1, j + 1, k + 1]
            )
            out[r, p] = (1 - x) * low + x * high
    return out


def _standardized(values: Floats, starts: npt.NDArray[np.int64]) -> Floats:
    """Each shell less its mean, its sum of squares one; shape (rotation, point)."""
    lengths = np.diff(np.append(starts, values.shape[1]))
    mean = np.add.reduceat(values, starts, axis=1) / lengths
    centred = values - np.repeat(mean, lengths, axis=1)
    squares = np.add.reduceat(centred**2, starts, axis=1)
    norm = np.sqrt(np.where(squares > 1e-20, squares, np.inf))
    return np.asarray(centred / np.repeat(norm, lengths, axis=1))


def _intraclass(values: Floats) -> Floats:
    """Mean correlation of all pairs of images, shape (rotation, image, point) to (rotation,)."""
    centred = values - values.mean(axis=(1, 2), keepdims=True)
    squares = (centred**2).sum(axis=(1, 2))
    pairs = (centred.sum(axis=1) ** 2).sum(axis=1) - squares
    return np.asarray(pairs / np.where(squares > 1e-20, 59 * squares, np.inf))


def _search(first: Score, refined: Score, grid: Floats) -> tuple[Floats, float]:
    n_batch = 256
    batches = [grid[start : start + n_batch] for start in range(0, len(grid), n_batch)]
    scores = np.concatenate([first(batch) for batch in batches])
    best = grid[np.argsort(scores)[::-1][:N_KEPT]]
    refinements = [_refine(refined, start) for start in best]
    return max(refinements, key=lambda found: found[1])


def _refine(score: Score, start: Floats) -> tuple[Floats, float]:
    def misfit(vector: Any) -> float:
        turned = Rotation.from_rotvec(vector).as_matrix() @ start
        return -float(score(turned[None])[0])

    step = np.deg2rad(STEP_DEG) / 2
    corners = np.vstack([np.zeros(3), step * np.eye(3)])
    options: Any = {"initial_simplex": corners, "xatol": 1e-4, "fatol": 1e-6}
    found = minimize(misfit, np.zeros(3), method="Nelder-Mead", options=options)
    return Rotation.from_rotvec(found.x).as_matrix() @ start, -float(found.fun)


@lru_cache(maxsize=4)
def _spread_rotations(step_deg: float, one_of_sixty: bool = False) -> Floats:
    """Rotations evenly over SO(3), or over those that differ for an icosahedron."""
    # Alexa, "Super-Fibonacci spirals", CVPR 2022.
    n = int(8 * np.pi**2 / np.deg2rad(step_deg) ** 3)
    s = np.arange(n) + 0.5
    inner, outer = np.sqrt(s / n), np.sqrt(1 - s / n)
    alpha, beta = 2 * np.pi * s / np.sqrt(2), 2 * np.pi * s / 1.533751168755204288118041
    parts = inner * np.sin(alpha), inner * np.cos(alpha), outer * np.sin(beta), outer * np.cos(beta)
    quaternions = np.stack(parts, axis=1)
    if one_of_sixty:
        group = Rotation.create_group("I").as_quat()
        nearest = np.abs(quaternions @ group.T)
        identity = np.argmax(np.abs(group[:, 3]))
        quaternions = quaternions[nearest.argmax(axis=1) == identity]
    return np.asarray(Rotation.from_quat(quaternions).as_matrix())


@lru_cache(maxsize=512)
def _icosahedral_points(n: int) -> Floats:
    """About n points on the unit sphere, closed under the group, shape (60, point, 3)."""
    group = Rotation.create_group("I").as_matrix()
    points = sphere_points(n)
    # Of 60 equivalent points, that nearest to a direction off all axes.
    off_axes = np.array([0.9, 0.4, 0.17])
    own = (points @ (group @ off_axes).T).argmax(axis=1) == np.argmax(np.trace(group.T))
    return np.asarray(points[own] @ group.transpose(0, 2, 1))

"""A random forest on measured features: what a careful person does without deep learning."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from spidask.baselines.hits import Result, find_hits, label_hits, make_grid, read_patterns
from spidask.config import Config
from spidask.errors import ConfigError, TrainingError
from spidask.frames.polar import PolarGrid, to_polar
from spidask.io.labels import read_labels
from spidask.networks.calibration import choose_threshold

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier

Floats = npt.NDArray[np.float64]
N_RINGS, N_ANGLES = 40, 72
N_COEFFICIENTS = 12
"""Of the angular correlation of a ring, from the first on."""
LEAST_OVERLAP = 0.3
"""Share of a ring's pairs of pixels from which on a turn of it against itself is measured."""
N_TREES = 500


def list_settings(config: Config) -> dict[str, Any]:
    """List the settings on which the result depends.

    Parameters
    ----------
    config : Config
        The beamtime, with `labels.file`.

    Returns
    -------
    dict
        The key's path to its value; the labels stand there as text.

    Raises
    ------
    ConfigError
        If there are no labels.
    """
    if config.labels.file is None:
        raise ConfigError("labels.file: missing; the forest learns from labelled hits")
    return {
        "labels.file": read_labels(config.labels.file, config.labels).to_csv(index=False),
        "training.runs": config.training.runs,
        "validation.runs": config.validation.runs,
        "training.seed": config.training.seed,
        "selection.expected_single_fraction": config.selection.expected_single_fraction,
        "selection.size_window_nm": list(config.selection.size_window_nm),
    }


def classify(output: str | Path, config: Config) -> Result:
    """Learn from the labelled hits of an output folder and judge all its hits.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder of a run that was exported.
    config : Config
        Labels, and their runs in the sections `training` and `validation`.

    Returns
    -------
    Result
        Of every hit; its score is the probability of a single hit minus the threshold. The time
        is that of features and trees.

    Raises
    ------
    TrainingError
        If there are no single hits, or nothing but single hits, among the labelled hits.

    Notes
    -----
    There is no validation set: each tree leaves out a part of the hits, and what the trees say of
    the hits that they left out gives the threshold, that of the largest expected F1 at the share
    of single hits that is expected in the data.
    """
    hits = find_hits(output)
    label = label_hits(hits, config)
    labelled = label.notna().to_numpy() & _are_in_training(hits, config)
    is_single = (label[labelled] == "single").to_numpy()
    if not 0 < is_single.sum() < len(is_single):
        raise TrainingError(
            f"forest: {is_single.sum()} single hits and {(~is_single).sum()} others among the "
            f"labelled hits of {output}, both are needed; label more"
        )
    features, seconds = _measure_hits(output, hits, config)
    trees = grow_forest(features[labelled], is_single, config.training.seed)
    # What the trees say of hits that they have not seen.
    honest = trees.oob_decision_function_[:, 1]
    threshold, _ = choose_threshold(honest, is_single, config.selection.expected_single_fraction)
    start = time.perf_counter()
    score = (trees.predict_proba(features)[:, 1] - threshold).astype(np.float32)
    seconds += time.perf_counter() - start
    reason = np.where(score >= 0, "", "not_single")
    verdicts = hits[["run", "index"]].assign(score=score, reason=reason)
    speed = len(hits) / seconds
    return Result("random forest", verdicts, hits[labelled], _count_numbers(trees), speed)


def measure_features(patterns: npt.NDArray[np.float32], grid: PolarGrid) -> Floats:
    """Describe patterns by numbers that do not change when they turn around the beam.

    Parameters
    ----------
    patterns : numpy.ndarray
        Shape (frame, y, x), float32, photons; NaN where a pixel is missing.
    grid : PolarGrid
        Rings and angles.

    Returns
    -------
    numpy.ndarray
        Shape (frame, feature), float64: logarithm of the radial profile over its mean
        (`n_rings`), coefficients of the angular correlation (`n_rings` * `N_COEFFICIENTS`),
        logarithm of the photons, and the share of lit pixels.
    """
    photons, n_pixels = (values.astype(float) for values in to_polar(patterns, grid))
    of_ring, size = photons.sum(2), n_pixels.sum(2)
    mean = of_ring.sum(1, keepdims=True) / np.maximum(size.sum(1, keepdims=True), 1)
    # Half a photon more, so that an empty ring has a logarithm.
    profile = np.log10((of_ring + 0.5) / np.maximum(size, 1) / np.maximum(mean, 1e-9))
    correlation = correlate_angles(photons, n_pixels, N_COEFFICIENTS)
    there = np.isfinite(patterns).sum((1, 2))
    total = np.log10(np.nansum(patterns, (1, 2), dtype=float) + 1)
    lit = (np.nan_to_num(patterns) > 0.7).sum((1, 2)) / np.maximum(there, 1)
    flat = correlation.reshape(len(patterns), -1)
    return np.concatenate([profile, flat, total[:, None], lit[:, None]], axis=1)


def correlate_angles(photons: Floats, n_pixels: Floats, n_coefficients: int) -> Floats:
    """Compute the Fourier coefficients of the angular correlation of rings.

    Parameters
    ----------
    photons : numpy.ndarray
        Photons of each cell, shape (..., angle), float64.
    n_pixels : numpy.ndarray
        Pixels of each cell, same shape; 0 where a cell saw nothing.
    n_coefficients : int
        Coefficients 1 to this are given.

    Returns
    -------
    numpy.ndarray
        Shape (..., coefficient), float64; 0 in a ring that saw no photons.

    Notes
    -----
    C(t) = sum of p(a) p(a + t) over sum of n(a) n(a + t), over the mean squared, minus 1, with
    photons p and pixels n of angle a (Kam 1977, Macromolecules 10, 927, for a single pattern). At
    t = 0 the photons' own sum is taken off, which is what Poisson noise adds. So a ring without
    structure has C = 0 on average, whatever is masked. Turns t at which fewer pairs of pixels are
    left than `LEAST_OVERLAP` of all count as 0.
    """
    n_angles = photons.shape[-1]

    def turn(values: Floats) -> Floats:
        power = np.abs(np.fft.rfft(values, axis=-1)) ** 2
        return np.asarray(np.fft.irfft(power, n_angles, axis=-1))

    pairs, seen = turn(photons), turn(n_pixels)
    pairs[..., 0] -= photons.sum(-1)
    total = photons.sum(-1, keepdims=True)
    mean = total / np.maximum(n_pixels.sum(-1, keepdims=True), 1)
    there = (seen > LEAST_OVERLAP * seen[..., :1]) & (total > 0)
    expected = np.where(there, seen * mean**2, 1)
    excess = np.where(there, pairs / expected - 1, 0)
    coefficients = np.fft.rfft(excess, axis=-1).real / n_angles
    return np.asarray(coefficients[..., 1 : n_coefficients + 1])


def grow_forest(
    features: Floats, is_single: npt.NDArray[np.bool_], seed: int
) -> RandomForestClassifier:
    """Grow the trees.

    Parameters
    ----------
    features : numpy.ndarray
        Shape (hit, feature), float64.
    is_single : numpy.ndarray
        Shape (hit,), bool; both kinds are there.
    seed : int
        Of the draws.

    Returns
    -------
    sklearn.ensemble.RandomForestClassifier
        `N_TREES` trees; ``oob_decision_function_`` holds what those say of a hit that have not
        seen it.
    """
    from sklearn.ensemble import RandomForestClassifier

    trees = RandomForestClassifier(N_TREES, oob_score=True, random_state=seed)
    return trees.fit(features, is_single)


def _are_in_training(hits: pd.DataFrame, config: Config) -> npt.NDArray[np.bool_]:
    """Tell which hits are of runs whose labels train or validate."""
    training, validation = config.training.runs, config.validation.runs
    if training is None or validation is None:
        return np.ones(len(hits), bool)
    named = [*training, *validation]
    return np.array([any(fnmatchcase(run, one) for one in named) for run in hits["run"]], bool)


def _measure_hits(output: str | Path, hits: pd.DataFrame, config: Config) -> tuple[Floats, float]:
    grid, blocks, seconds = make_grid(output, config, N_RINGS, N_ANGLES), [], 0.0
    for patterns in read_patterns(output, hits):
        start = time.perf_counter()
        blocks.append(measure_features(patterns, grid))
        seconds += time.perf_counter() - start
    return np.concatenate(blocks), seconds


def _count_numbers(trees: RandomForestClassifier) -> int:
    """Count what was learned: feature and value of each branch, share of each leaf."""
    leaves = [int(tree.get_n_leaves()) for tree in trees.estimators_]
    return sum(2 * (n - 1) + n for n in leaves)

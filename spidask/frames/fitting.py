"""The fit of radial averages with form factors, on the CPU or on a device."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

Array = Any
"""A numpy.ndarray or a torch.Tensor, float64 where nothing else is said."""

MODEL_ERROR = 0.4
"""Share by which a real particle's radial average deviates from a sphere's."""

SMOOTH = 8
"""Bins on either side over which the expected counts, for the weights, are averaged."""

ELECTRON_RADIUS_NM = 2.8179403e-6

ELECTRONS_PER_NM3 = 430.0
"""Electron density for which the fluence is stated: protein of 1.35 g/cm^3 (Fischer et al.,
Protein Sci. 13 (2004) 2825), 0.53 electrons a dalton. The fluence goes with its inverse square."""


def fit_amplitudes(
    photons: Array, exposures: Array, amplitudes: Array, diameters: Array, brightest: float
) -> tuple[Array, Array, Array]:
    """Fit radial averages with form factors, on whichever device these are.

    Parameters
    ----------
    photons, exposures
        As of `fit_spheres`, numpy.ndarray or torch.Tensor.
    amplitudes, diameters, brightest
        As of `SphereLibrary`, the arrays of the same kind.

    Returns
    -------
    diameter, quality, fluence
        As of `fit_spheres`, arrays of the same kind.
    """
    xp = _namespace(photons)
    average, weights = _averages_and_weights(photons, exposures)
    chi2, total = _misfit(average, weights, amplitudes)
    best = chi2.argmin(axis=1)
    diameter = _refine(chi2, best, diameters)
    flat = xp.ones((1, average.shape[1]), dtype=average.dtype, device=average.device)
    constant, _ = _misfit(average, weights, flat)
    empty = total <= 0
    share = xp.amin(chi2, 1) / xp.where(constant[:, 0] > 0, constant[:, 0], 1)
    quality = xp.clip(1 - share, 0, 1)
    fluence = _fluence(photons, exposures, amplitudes[best], diameters[best], brightest)
    found = (diameter, quality, fluence)
    out = [xp.asarray(xp.where(empty, np.nan, values), dtype=xp.float32) for values in found]
    return out[0], out[1], out[2]


def forward_length(diameter: Array) -> Array:
    """Give the scattering length of a solid sphere straight ahead.

    Parameters
    ----------
    diameter : numpy.ndarray
        Diameters, any shape, float64, nm.

    Returns
    -------
    numpy.ndarray
        Electron radius times `ELECTRONS_PER_NM3` times volume, same shape, float64, nm. Its square
        times fluence and solid angle are the photons straight ahead.

    Examples
    --------
    >>> forward_length(np.array([60.0])).round(3).tolist()
    [137.042]
    """
    return ELECTRON_RADIUS_NM * ELECTRONS_PER_NM3 * np.pi / 6 * diameter**3


def _namespace(array: Array) -> ModuleType:
    # NumPy or torch, of whose functions those are used here that both have alike.
    return sys.modules[type(array).__module__.partition(".")[0]]


def _averages_and_weights(photons: Array, exposures: Array) -> tuple[Array, Array]:
    xp = _namespace(photons)
    seen = exposures > 0
    average = xp.sqrt(photons / xp.where(seen, exposures, 1))
    apart = np.arange(photons.shape[1])
    near = (np.abs(apart[:, None] - apart) <= SMOOTH).astype(float)
    near = xp.asarray(near, device=photons.device)
    expected = (photons @ near) / xp.clip(exposures @ near, 1e-12, None)
    variance = 0.25 / xp.where(seen, exposures, 1) + (MODEL_ERROR / 2) ** 2 * expected
    return average, xp.where(seen, 1 / variance, 0)


def _misfit(average: Array, weights: Array, models: Array) -> tuple[Array, Array]:
    # Minimum over s of sum w (average - s model)^2, for every frame and model.
    total = (weights * average**2).sum(axis=1)
    overlap = (weights * average) @ models.T
    norm = weights @ (models**2).T
    return total[:, None] - overlap**2 / _namespace(norm).clip(norm, 1e-300, None), total


def _refine(chi2: Array, best: Array, diameters: Array) -> Array:
    xp = _namespace(chi2)
    inner = xp.clip(best, 1, len(diameters) - 2)
    frame = xp.arange(len(best), device=best.device)
    left, middle, right = (chi2[frame, inner + k] for k in (-1, 0, 1))
    curvature = left - 2 * middle + right
    shift = 0.5 * (left - right) / xp.where(curvature > 0, curvature, np.inf)
    ratio = xp.log(diameters[1] / diameters[0])
    return diameters[inner] * xp.exp(xp.clip(shift, -1, 1) * ratio)


def _fluence(
    photons: Array, exposures: Array, amplitude: Array, diameter: Array, brightest: float
) -> Array:
    # Of the diameter tried, not of the refined one: form factor and volume have to agree.
    norm = (exposures * amplitude**3).sum(axis=1)
    norm = _namespace(norm).clip(norm, 1e-300, None)
    ahead = (photons * amplitude).sum(axis=1) / norm / brightest
    return ahead / forward_length(diameter) ** 2 * 1e6

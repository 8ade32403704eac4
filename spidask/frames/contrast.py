"""Contrast of the fringes in the power spectral density of many patterns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

SIGNIFICANT = 5.0
"""Standard deviations by which a profile must turn back, to count as an extremum."""


@dataclass(frozen=True)
class Rings:
    """Which pixels make which ring around the beam.

    Attributes
    ----------
    pixels : scipy.sparse.csr_array
        Shape (pixel, ring), float64: 1 where a pixel that is used lies in a ring.
    exposure : scipy.sparse.csr_array
        The same with the pixel's relative exposure instead of 1.
    """

    pixels: sp.csr_array
    exposure: sp.csr_array


def make_rings(q: Float64, exposure: Float64, used: NDArray[np.bool_]) -> Rings:
    """Divide pixels into rings of width 1.

    Parameters
    ----------
    q : numpy.ndarray
        Momentum transfer of each pixel, shape (pixel,), float64, in widths of a ring.
    exposure : numpy.ndarray
        Solid angle times polarization of each pixel, shape (pixel,), float64, any unit.
    used : numpy.ndarray
        False for pixels to leave out, shape (pixel,), bool.

    Returns
    -------
    Rings
        Ring k holds the pixels with k <= q < k + 1.

    Examples
    --------
    >>> rings = make_rings(np.array([0.2, 1.1, 1.9]), np.array([4.0, 2, 2]), np.ones(3, bool))
    >>> rings.exposure.toarray().tolist()
    [[1.0, 0.0], [0.0, 0.5], [0.0, 0.5]]
    """
    pixels = np.flatnonzero(used)
    ring = q[pixels].astype(np.int64)
    shape = (len(q), int(ring.max(initial=0)) + 1)
    weights = exposure[pixels] / exposure[pixels].max(initial=np.finfo(float).tiny)
    return Rings(
        sp.csr_array((np.ones(len(pixels)), (pixels, ring)), shape),
        sp.csr_array((weights, (pixels, ring)), shape),
    )


def ring_sums(
    photons: sp.csr_array, missing: list[NDArray[np.int32]], rings: Rings
) -> tuple[Float64, Float64]:
    """Sum photons and exposure over rings.

    Parameters
    ----------
    photons : scipy.sparse.csr_array
        Patterns, shape (frame, pixel), photons.
    missing : list of numpy.ndarray
        Positions of the pixels without a number, for each frame, int.
    rings : Rings
        From `make_rings`.

    Returns
    -------
    photons, exposures : numpy.ndarray
        Sums over the pixels that are there, both of shape (frame, ring), float64.

    Examples
    --------
    >>> rings = make_rings(np.array([0.2, 1.1, 1.9]), np.ones(3), np.ones(3, bool))
    >>> photons = sp.csr_array(np.array([[4, 2, 0]]))
    >>> ring_sums(photons, [np.array([2])], rings)
    (array([[4., 2.]]), array([[1., 1.]]))
    """
    ends = np.append(0, np.cumsum([len(pixels) for pixels in missing]))
    places = np.concatenate([np.empty(0, np.int64), *missing])
    shape = (len(missing), rings.pixels.shape[0])
    gone = sp.csr_array((np.ones(len(places)), places, ends), shape)
    whole = rings.exposure.sum(axis=0)
    exposures = whole - (gone @ rings.exposure).toarray()
    # What a ring whose pixels are all missing has left is rounding.
    exposures[exposures < 1e-9 * whole] = 0
    return (photons @ rings.pixels).toarray(), exposures


def profile_sums(photons: Float64, exposures: Float64) -> Float64:
    """Sum over patterns what their mean profile is made of.

    Parameters
    ----------
    photons : numpy.ndarray
        Photons in each ring, shape (frame, ring), float64.
    exposures : numpy.ndarray
        Exposure of each ring, shape (frame, ring), float64.

    Returns
    -------
    numpy.ndarray
        Shape (3, ring), float64: photons by the pattern's total, exposures, and photons by the
        square of the total. Sums over blocks of patterns add.
    """
    total = photons.sum(axis=1, keepdims=True)
    seen = total[:, 0] > 0
    photons, exposures, total = photons[seen], exposures[seen], total[seen]
    return np.stack([(photons / total).sum(0), exposures.sum(0), (photons / total**2).sum(0)])


def mean_profile(sums: Float64) -> tuple[Float64, Float64]:
    """Give the mean radial profile of patterns, each divided by its total.

    Parameters
    ----------
    sums : numpy.ndarray
        What `profile_sums` gives, shape (3, ring), float64.

    Returns
    -------
    intensity, deviation : numpy.ndarray
        Mean profile and its standard deviation by counting, both of shape (ring,), float64;
        NaN where all pixels are missing.

    Notes
    -----
    Patterns are divided by their photons, so that bright ones do not outweigh the others.

    Examples
    --------
    >>> mean_profile(profile_sums(np.array([[3.0, 1], [30, 10]]), np.array([[1.0, 2], [1, 2]])))[0]
    array([0.75 , 0.125])
    """
    photons, exposures, variance = sums
    seen = np.where(exposures > 0, exposures, np.nan)
    return photons / seen, np.sqrt(variance) / seen


def fringe_contrasts(intensity: Float64, deviation: Float64) -> Float64:
    """Compute the contrast of every fringe of a radial profile.

    Parameters
    ----------
    intensity : numpy.ndarray
        Radial profile from the beam outward, shape (ring,), float64; NaN where there is none.
    deviation : numpy.ndarray
        Its standard deviation, shape (ring,), float64.

    Returns
    -------
    numpy.ndarray
        (I_max - I_min) / (I_max + I_min) of each fringe from the inside outward, shape
        (fringe,), float64, from 0 to 1; empty for a profile without fringes.

    Notes
    -----
    A fringe is a minimum and the maximum that follows it outward; the maximum before it is
    higher for the fall of the profile alone. An extremum counts where the profile turns back by
    more than `SIGNIFICANT` standard deviations, so that noise makes none. Assalauova et al.,
    J. Appl. Cryst. 55 (2022), compare selections by the contrast of their power spectral density.

    Examples
    --------
    >>> fringe_contrasts(np.array([9.0, 1, 3, 2]), np.full(4, 0.1))
    array([0.5])
    """
    seen = np.isfinite(intensity)
    low, high = intensity[seen][_fringes(intensity[seen], deviation[seen])].T
    return np.asarray((high - low) / (high + low))


def _fringes(intensity: Float64, deviation: Float64) -> NDArray[np.int64]:
    """Rings of minima and of the maxima that follow them, shape (fringe, 2)."""
    pairs: list[tuple[int, int]] = []
    minimum: int | None = None
    turn, falls = 0, False  # the outermost extremum so far that does not count yet
    for ring in range(1, len(intensity)):
        back = intensity[ring] - intensity[turn] if falls else intensity[turn] - intensity[ring]
        if back < 0:
            turn = ring
        elif back > SIGNIFICANT * np.hypot(deviation[ring], deviation[turn]):
            if falls:
                minimum = turn
            elif minimum is not None:
                pairs.append((minimum, turn))
            turn, falls = ring, not falls
    return np.array(pairs, np.int64).reshape(-1, 2)

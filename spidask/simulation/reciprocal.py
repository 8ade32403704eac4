"""The 3D intensity of the particle that single hits show."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from spidask.config import Sample
from spidask.simulation.density import read_particle
from spidask.simulation.formfactor import amplitude
from spidask.simulation.particle import Particle
from spidask.simulation.scene import draw_particle

N_DRAWS = 24
"""Particles of different sizes and densities whose mean intensity stands for the sample."""


def model_intensity(
    sample: Sample, photon_energy_ev: float, size: int, voxel: float, seed: int = 0
) -> NDArray[np.float64]:
    """Compute the mean intensity of the particles of single hits, all oriented alike.

    Parameters
    ----------
    sample : Sample
        What is injected.
    photon_energy_ev : float
        Photon energy, eV.
    size : int
        Voxels along each axis, odd.
    voxel : float
        Edge of a voxel, 1/nm.
    seed : int
        Of the sizes and densities that are drawn.

    Returns
    -------
    numpy.ndarray
        Shape (size, size, size), axes x, y, z, momentum transfer 0 in the middle voxel, float64,
        squared electrons; NaN beyond the largest whole shell.

    Raises
    ------
    DataError
        If the file of the particle cannot be read.

    Notes
    -----
    The mean of |F(q)|^2 over the particles, see `formfactor.amplitude`. Absorption is left out of
    the symmetry: voxels at -q get the value at q. A merge of patterns whose brightness is fitted
    has the same mean: each pattern counts with its photons.
    """
    half = size // 2
    places = np.argwhere(np.ones((half + 1, size, size), bool)) - [0, half, half]
    inside = np.linalg.norm(places, axis=1) <= half
    q = np.ascontiguousarray(places[inside] * voxel)
    particles = _particles(sample, photon_energy_ev, seed)
    total = np.zeros(len(q))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for amplitudes in pool.map(lambda particle: amplitude(particle, q), particles):
            total += np.abs(amplitudes) ** 2
    out = np.full((size, size, size), np.nan)
    out[half:][inside.reshape(half + 1, size, size)] = total / len(particles)
    out[:half] = out[::-1, ::-1, ::-1][:half]
    return out


def _particles(sample: Sample, photon_energy_ev: float, seed: int) -> list[Particle]:
    if sample.particle != "icosahedron":
        return [read_particle(sample.particle, photon_energy_ev, sample.map_contour)]
    rng = np.random.default_rng(seed)
    return [draw_particle(sample, photon_energy_ev, rng) for _ in range(N_DRAWS)]

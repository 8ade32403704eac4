"""Particles from PDB files and density maps."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import gemmi
import numpy as np
import xraydb
from numpy.typing import NDArray

from spidask.errors import DataError
from spidask.simulation.particle import Particle, Volume, electron_density

Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]

VOXEL_NM = 0.5
"""Spacing of the density that atoms are put into: half a period at q = 6 / nm."""

# Kaiser-Bessel interpolation of the transform: TAPS samples along each axis, the box twice
# the object (Beatty, Nishimura and Pauly 2005).
TAPS = 6
BETA = np.pi * np.sqrt((TAPS / 2 * 1.5) ** 2 - 0.8)


def read_particle(path: str | Path, photon_energy_ev: float, contour: float | None) -> Particle:
    """Read what single hits show from a file.

    Parameters
    ----------
    path : str or pathlib.Path
        A PDB or mmCIF file, or an MRC/CCP4 map (suffix ``.mrc``, ``.map`` or ``.ccp4``).
    photon_energy_ev : float
        Photon energy, eV.
    contour : float or None
        Voxels of a map above this are protein; None: values are electrons per cubic angstrom.

    Returns
    -------
    Particle
        The atoms of the file's first biological assembly (of its first model where it has
        none) around their centre, or the map around its own.

    Raises
    ------
    DataError
        If the file cannot be read, or holds no atoms or no density.
    """
    maps = (".mrc", ".map", ".ccp4", ".mrc.gz", ".map.gz", ".ccp4.gz")
    try:
        if str(path).lower().endswith(maps):
            return _read_map(str(path), photon_energy_ev, contour)
        return _read_molecule(str(path), photon_energy_ev)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{path} holds no particle: {error}; give a PDB, mmCIF or MRC/CCP4 file", path=str(path)
        ) from None


def volume(density: Complexes, voxel: float, spread: float = 0.0) -> Volume:
    """Transform a sampled density.

    Parameters
    ----------
    density : numpy.ndarray
        Electrons per nm^3, shape (x, y, z), complex128; the body's origin is the centre of
        sample (nx // 2, ny // 2, nz // 2).
    voxel : float
        Distance of samples along each axis, nm.
    spread : float
        Knots of the quadratic spline by which points became samples, nm, 0 for none;
        their amplitude is corrected for it.

    Returns
    -------
    Volume
        A body whose amplitude is the trapezoidal sum over the samples.
    """
    half = max(density.shape) // 2 + 1
    n = 4 * half
    grid = np.zeros((n, n, n), np.complex64)
    # The origin goes to sample 0, negative coordinates to the far end.
    places = [(np.arange(size) - size // 2) % n for size in density.shape]
    windows = [_window(np.arange(size) - size // 2, n) for size in density.shape]
    scaled = density * windows[0][:, None, None] * windows[1][None, :, None] * windows[2]
    grid[np.ix_(*places)] = scaled * voxel**3
    transform = np.fft.fftn(grid).astype(np.complex64)
    step = 2 * np.pi / (n * voxel)
    return Volume(transform, step, spread, _kernel(), np.zeros(3), np.eye(3))


def _window(index: NDArray[np.int64], n: int) -> Floats:
    """One over the transform of the interpolation kernel."""
    root = np.sqrt(BETA**2 - (np.pi * TAPS * index / n) ** 2)
    return np.asarray(root / (TAPS * np.sinh(root)))


@lru_cache(maxsize=1)
def _kernel() -> Floats:
    """Half of the interpolation kernel, 1024 values for each tap."""
    distance = np.linspace(0, 1, 512 * TAPS + 1)
    return np.asarray(np.append(np.i0(BETA * np.sqrt(1 - distance**2)), 0.0))


def _read_molecule(path: str, photon_energy_ev: float) -> Particle:
    structure = gemmi.read_structure(path)
    atoms = [site.atom for site in _assembly(structure).all()] if len(structure) else []
    if not atoms:
        raise ValueError("no atom in it")
    places = np.array([atom.pos.tolist() for atom in atoms]) / 10
    names = np.array([atom.element.name for atom in atoms])
    occupancy = np.array([atom.occ for atom in atoms])
    electrons = np.zeros(len(atoms), complex)
    for name in np.unique(names):
        electrons[names == name] = _atom(name, photon_energy_ev)
    places -= np.average(places, axis=0, weights=occupancy)
    electrons *= occupancy
    grid = _spread(places, electrons)
    radius = float(np.linalg.norm(places, axis=1).max()) + VOXEL_NM
    # Proteins of 1.35 g/cm^3 tell the volume from the electrons.
    matter = electrons.real.sum() / electron_density("protein", photon_energy_ev).real
    return Particle((volume(grid, VOXEL_NM, spread=VOXEL_NM),), "particle", _sphere(matter), radius)


def _read_map(path: str, photon_energy_ev: float, contour: float | None) -> Particle:
    found = gemmi.read_ccp4_map(path, setup=True)
    values = np.asarray(found.grid.array, np.float64)
    sides = np.array(found.grid.unit_cell.parameters[:3]) / np.array(values.shape) / 10
    if not np.allclose(sides, sides[0], rtol=1e-3):
        raise ValueError(f"its voxels of {sides.round(4).tolist()} nm are no cubes")
    protein = electron_density("protein", photon_energy_ev)
    density = np.zeros(values.shape, complex)
    density[...] = values * 1000 if contour is None else np.where(values > contour, protein, 0)
    filled = np.argwhere(density != 0)
    if len(filled) == 0:
        raise ValueError(f"no voxel above the contour {contour:g}" if contour else "it is all zero")
    low, high = filled.min(axis=0), filled.max(axis=0) + 1
    density = density[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    voxel = float(sides[0])
    radius = float(np.linalg.norm(np.array(density.shape) / 2) * voxel)
    matter = density.real.sum() * voxel**3 / protein.real
    return Particle((volume(density, voxel),), "particle", _sphere(matter), radius)


def _sphere(volume_nm3: float) -> float:
    return float((6 / np.pi * volume_nm3) ** (1 / 3))


def _assembly(structure: gemmi.Structure) -> gemmi.Model:
    """Copy a capsid's asymmetric unit to where the file's first assembly says."""
    if not structure.assemblies:
        return structure[0]
    names = gemmi.HowToNameCopiedChain.Dup
    return gemmi.make_assembly(structure.assemblies[0], structure[0], names)


@lru_cache
def _atom(element: str, photon_energy_ev: float) -> complex:
    factor = xraydb.f1_chantler(element, photon_energy_ev) + xraydb.atomic_number(element)
    return complex(factor, -xraydb.f2_chantler(element, photon_energy_ev))


def _spread(places: Floats, electrons: Complexes) -> Complexes:
    """Put points onto a grid, each by a quadratic spline onto 27 samples; electrons per nm^3."""
    half = np.ceil(np.abs(places).max(axis=0) / VOXEL_NM).astype(int) + 2
    shape = 2 * half + 1
    scaled = places / VOXEL_NM + half
    nearest = np.rint(scaled).astype(int)
    off = scaled - nearest
    shares = np.stack([(0.5 - off) ** 2 / 2, 0.75 - off**2, (0.5 + off) ** 2 / 2])
    grid = np.zeros(int(np.prod(shape)), complex)
    for step in np.ndindex(3, 3, 3):
        weight = np.prod([shares[s, :, d] for d, s in enumerate(step)], axis=0)
        where = np.ravel_multi_index((nearest + np.array(step) - 1).T, shape)
        np.add.at(grid, where, electrons * weight)
    return np.asarray(grid.reshape(shape) / VOXEL_NM**3)

"""How good a recovered intensity is: the meters of orientation determination."""

from __future__ import annotations

import configparser
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from spidask.config import Config, Sample
from spidask.errors import DataError
from spidask.intensity import (
    ALIGNED,
    correlate_shells,
    cut_plane,
    find_rotation,
    mean_over_shells,
    measure_contrast,
    measure_symmetry,
)
from spidask.io.dragonfly import Detector, read_blacklist, read_detector, write_detector
from spidask.io.emc import read_photons
from spidask.io.manifest import read_config
from spidask.io.reconstruction import read_reconstruction
from spidask.records import write_json
from spidask.simulation.reciprocal import model_intensity

Floats = npt.NDArray[np.float64]

FRINGES = 2
"""Fringes of the particle that are left out in the middle: there all particles are spheres."""
ROTATION_STEP = 0.944
"""Distance of Dragonfly's rotations, rad, times num_div (Loh and Elser, PRE 80 (2009) 026705)."""
INNER_FRINGES = 1.65
"""Fringes whose pixels stay out of orientation."""
START_NOISE = 0.5
"""By how much the start deviates from the radial mean, at most."""
WEIGHTS = "each shell counts the same"


def measure(
    output: str | Path,
    folder: str | Path | None = None,
    model: Floats | None = None,
    shells: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Measure what Dragonfly's EMC recovered from a selection.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder of a run.
    folder : str or pathlib.Path, optional
        Where EMC ran; ``orientation`` in the output folder without it.
    model : numpy.ndarray, optional
        Intensity of the true particle, as of `compute_model`; computed where the config simulates.
    shells : tuple of int, optional
        First and last radius of the shells, voxels; `choose_shells` without it.

    Returns
    -------
    dict
        What ``meters.json`` in `folder` holds: ``made``, ``frames``, ``iterations``,
        ``rms_change`` of each, ``voxel`` (1/nm), ``shells``, ``weights``, and with ``mean`` and
        the values of the ``shells`` each: ``contrast`` (standard deviation over mean), and the
        correlations ``symmetry`` (with itself under the 59 rotations of an icosahedron),
        ``model`` (None without one) and ``halves`` (None unless each half of the frames was
        recovered).

    Raises
    ------
    DataError
        If nothing was recovered, a file is not what it should be, or no shell is known.

    Notes
    -----
    Where EMC finds no orientations it recovers the radial mean and the faint trace of its own grid
    of rotations, which has the symmetry of an icosahedron: the symmetry says something only where
    the contrast is that of a particle.

    ``slices.npz`` holds cuts through the origin: ``recovered``, and ``model`` where there is one,
    oriented alike.
    """
    folder = Path(output) / "orientation" if folder is None else Path(folder)
    config, found = read_config(output), read_reconstruction(folder)
    voxel, reach = _sampling(Path(output) / "dragonfly")
    shells = shells or choose_shells(config, voxel, reach, found.num_div)
    if model is None and config.simulation is not None:
        model = compute_model(output, config.simulation.sample)
    alignment = ALIGNED
    if model is not None:
        alignment = find_rotation(found.intensity, model, shells)
        with_model = correlate_shells(found.intensity, model, shells, alignment)
    symmetry, _ = measure_symmetry(found.intensity, shells)
    meters = {
        "made": f"{datetime.now():%Y-%m-%d %H:%M}",
        "frames": int(np.sum(~read_blacklist(folder / "blacklist.txt"))),
        "iterations": found.iterations,
        "rms_change": found.rms_change,
        "voxel": voxel,
        "shells": list(shells),
        "weights": WEIGHTS,
        "contrast": _tell(measure_contrast(found.intensity, shells), shells),
        "symmetry": _tell(symmetry, shells),
        "model": None if model is None else _tell(with_model, shells),
        "halves": _correlate_halves(folder, shells),
    }
    slices: dict[str, Any] = {"recovered": cut_plane(found.intensity, alignment)}
    if model is not None:
        slices["model"] = cut_plane(model)
    np.savez_compressed(folder / "slices.npz", **slices)
    write_json(folder / "meters.json", meters)
    return meters


def compute_model(output: str | Path, sample: Sample) -> Floats:
    """Compute the intensity of a simulated particle on the voxels of a reconstruction.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder of a run.
    sample : Sample
        What was injected.

    Returns
    -------
    numpy.ndarray
        Shape (n, n, n) as Dragonfly chooses it, float64, see
        `simulation.reciprocal.model_intensity`.
    """
    voxel, _ = _sampling(Path(output) / "dragonfly")
    size = _size(read_detector(Path(output) / "dragonfly" / "detector.h5"))
    return model_intensity(sample, read_config(output).geometry.photon_energy_ev, size, voxel)


def choose_shells(config: Config, voxel: float, reach: float, num_div: int) -> tuple[int, int]:
    """Choose the shells on which intensities are compared.

    Parameters
    ----------
    config : Config
        The middle of its size window stands for the particle.
    voxel : float
        Edge of a voxel, 1/nm.
    reach : float
        Radius up to which the detector covers every shell, voxels.
    num_div : int
        Dragonfly's rotations are 0.944 / num_div rad apart.

    Returns
    -------
    tuple of int
        First and last radius, voxels: from the third fringe, of 2 pi / diameter each, to where
        the detector ends or neighbouring rotations are a fringe apart.

    Raises
    ------
    DataError
        If that ends before it begins.

    Examples
    --------
    >>> config = Config.model_validate({"runs": {"files": ["x"]}, "output": "y"})
    >>> choose_shells(config, 0.015, 40.9, 4)
    (14, 25)
    """
    fringe = _fringe(config, voxel)
    first = int(np.ceil(1 + FRINGES * fringe))
    last = int(min(reach, fringe * num_div / ROTATION_STEP))
    if first > last:
        raise DataError(
            f"nothing tells orientations: the third fringe begins at {first} voxels of "
            f"{voxel:.3g} / nm, the detector reaches {reach:.0f} and num_div {num_div} as far as "
            f"{fringe * num_div / ROTATION_STEP:.0f}; raise num_div, or export a larger region"
        )
    return first, last


def prepare(output: str | Path, folder: str | Path, seed: int = 0) -> None:
    """Write what EMC starts from, besides what the export wrote.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder of a run.
    folder : str or pathlib.Path
        Where EMC is to run: its ``blacklist.txt`` says which frames. ``start.h5`` (the radial mean
        of the frames, with noise) and ``detector.h5`` are written.
    seed : int
        Of the noise.

    Raises
    ------
    DataError
        If the blacklist leaves nothing, or a file is not what it should be.

    Notes
    -----
    From Dragonfly's own start, white noise of no radial fall, the few brightest pixels choose one
    rotation for all frames, and nothing gets out of it. The innermost pixels hold most photons
    and tell sizes, not orientations: the detector's mask keeps them out of orientation (1), not
    of the intensity.
    """
    dragonfly, folder = Path(output) / "dragonfly", Path(folder)
    used = np.flatnonzero(~read_blacklist(folder / "blacklist.txt"))
    if not len(used):
        raise DataError(f"{folder}/blacklist.txt leaves no frame")
    detector = read_detector(dragonfly / "detector.h5")
    photons = np.asarray(read_photons(dragonfly / "photons.h5", used).sum(axis=0)) / len(used)
    start = _spread_radially(photons, detector)
    start *= np.random.default_rng(seed).uniform(1 - START_NOISE, 1 + START_NOISE, start.shape)
    with h5py.File(folder / "start.h5", "w") as file:
        file["intens"] = start[None]
    voxel, _ = _sampling(dragonfly)
    inner = _lengths(detector) < INNER_FRINGES * _fringe(read_config(output), voxel)
    mask = np.where(inner & (detector.mask == 0), 1, detector.mask).astype(np.uint8)
    write_detector(folder / "detector.h5", replace(detector, mask=mask))


def _spread_radially(photons: Floats, detector: Detector) -> Floats:
    """The intensity that depends on the radius alone and gives these photons, on all voxels."""
    good = detector.mask < 2
    value = (photons / detector.corr * detector.corr[good].mean())[good]
    q, size = _lengths(detector)[good], _size(detector)
    inner = q.astype(int)
    shares = np.concatenate([1 - (q - inner), q - inner])
    places = np.concatenate([inner, inner + 1])
    weight = np.bincount(places, shares, size)
    total = np.bincount(places, shares * np.tile(value, 2), size)
    known = np.flatnonzero(weight > 0)
    squares = (np.arange(size) - size // 2) ** 2
    radius = np.sqrt(squares[:, None, None] + squares[:, None] + squares)
    level = np.maximum(total[known] / weight[known], 1e-3 * float(value.mean()))
    return np.asarray(np.interp(radius, known, level))


def _fringe(config: Config, voxel: float) -> float:
    return float(2 * np.pi / np.mean(config.selection.size_window_nm) / voxel)


def _lengths(detector: Detector) -> Floats:
    return np.sqrt(detector.qx**2 + detector.qy**2 + detector.qz**2)


def _size(detector: Detector) -> int:
    # Voxels along each axis as Dragonfly chooses them.
    return 2 * int(np.ceil(_lengths(detector).max())) + 3


def _sampling(dragonfly: Path) -> tuple[float, float]:
    """Edge of a voxel, 1/nm, and the radius up to which shells are covered, voxels."""
    parser = configparser.ConfigParser()
    parser.read(dragonfly / "config.ini")
    detector = read_detector(dragonfly / "detector.h5")
    wavelength_nm = float(parser["parameters"]["lambda"]) / 10
    # The nearest of the detector's far edges: beyond it, shells are seen in part.
    used = detector.mask < 2
    reach = min(np.abs(axis[used]).max() for axis in (detector.qx, detector.qy))
    return 2 * np.pi / wavelength_nm / float(detector.ewald_rad), float(reach)


def _correlate_halves(folder: Path, shells: tuple[int, int]) -> dict[str, Any] | None:
    halves = [folder / name for name in ("half0", "half1")]
    if not all(half.exists() for half in halves):
        return None
    one, other = (read_reconstruction(half).intensity for half in halves)
    alignment = find_rotation(one, other, shells)
    return _tell(correlate_shells(one, other, shells, alignment), shells)


def _tell(correlation: Floats, shells: tuple[int, int]) -> dict[str, Any]:
    values = correlation[shells[0] : shells[1] + 1]
    if not np.isfinite(values).any():
        raise DataError(f"no shell from {shells[0]} to {shells[1]} voxels is known")
    return {
        "mean": mean_over_shells(correlation, shells),
        "shells": [float(v) if np.isfinite(v) else None for v in values],
    }

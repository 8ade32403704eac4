"""How good a recovered intensity is: the meters of orientation determination."""

from __future__ import annotations

import configparser
from datetime import datetime
from pathlib import Path
from typing import Any

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
    measure_symmetry,
)
from spidask.io.dragonfly import read_blacklist, read_detector
from spidask.io.manifest import read_config
from spidask.io.reconstruction import read_reconstruction
from spidask.records import write_json
from spidask.simulation.reciprocal import model_intensity

Floats = npt.NDArray[np.float64]

FRINGES = 2
"""Fringes of the particle that are left out in the middle: there all particles are spheres."""
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
        ``rms_change`` of each, ``voxel`` (1/nm), ``shells``, ``weights``, and the correlations
        ``symmetry`` (with itself under the 59 rotations of an icosahedron), ``model`` (None
        without one) and ``halves`` (None unless each half of the frames was recovered), each with
        ``mean`` and the values of the ``shells``.

    Raises
    ------
    DataError
        If nothing was recovered, a file is not what it should be, or no shell varies.

    Notes
    -----
    ``slices.npz`` holds cuts through the origin: ``recovered``, and ``model`` where there is one,
    oriented alike.
    """
    folder = Path(output) / "orientation" if folder is None else Path(folder)
    config, found = read_config(output), read_reconstruction(folder)
    voxel, reach = _sampling(Path(output) / "dragonfly")
    shells = shells or choose_shells(config, voxel, reach)
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
    detector = read_detector(Path(output) / "dragonfly" / "detector.h5")
    q = np.sqrt(detector.qx**2 + detector.qy**2 + detector.qz**2)
    size = 2 * int(np.ceil(q.max())) + 3
    return model_intensity(sample, read_config(output).geometry.photon_energy_ev, size, voxel)


def choose_shells(config: Config, voxel: float, reach: float) -> tuple[int, int]:
    """Choose the shells on which intensities are compared.

    Parameters
    ----------
    config : Config
        The middle of its size window stands for the particle.
    voxel : float
        Edge of a voxel, 1/nm.
    reach : float
        Radius up to which the detector covers every shell, voxels.

    Returns
    -------
    tuple of int
        First and last radius, voxels: from the third fringe, of 2 pi / diameter each, to `reach`.

    Raises
    ------
    DataError
        If the detector ends before.

    Examples
    --------
    >>> config = Config.model_validate({"runs": {"files": ["x"]}, "output": "y"})
    >>> choose_shells(config, 0.015, 40.9)
    (14, 40)
    """
    diameter = float(np.mean(config.selection.size_window_nm))
    first = int(np.ceil(1 + FRINGES * 2 * np.pi / diameter / voxel))
    if first > int(reach):
        raise DataError(
            f"the detector reaches {reach:.0f} voxels of {voxel:.3g} / nm, the third fringe of "
            f"{diameter:.0f} nm begins at {first}; nothing tells orientations there"
        )
    return first, int(reach)


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
        raise DataError(f"no shell from {shells[0]} to {shells[1]} voxels is known and varies")
    return {
        "mean": mean_over_shells(correlation, shells),
        "shells": [float(v) if np.isfinite(v) else None for v in values],
    }

"""What Dragonfly's EMC recovers: the 3D intensity and how it was approached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from spidask.errors import DataError


@dataclass(frozen=True)
class Reconstruction:
    """The end of a run of EMC.

    Attributes
    ----------
    intensity : numpy.ndarray
        Shape (n, n, n), n odd, axes x, y, z, momentum transfer 0 in the middle voxel, float64,
        photons of the mean frame over the detector's `corr`; NaN where no frame reaches.
    iterations : int
        Iterations done.
    num_div : int
        Refinement of the rotations; they are 0.944 / num_div rad apart.
    rms_change : list of float
        Root mean square change of the voxels in each iteration.
    """

    intensity: npt.NDArray[np.float64]
    iterations: int
    num_div: int
    rms_change: list[float]


def read_reconstruction(folder: str | Path) -> Reconstruction:
    """Read the last intensity that EMC wrote.

    Parameters
    ----------
    folder : str or pathlib.Path
        Where its ``EMC.log`` and ``output/output_NNN.h5`` are.

    Returns
    -------
    Reconstruction
        Of several modes the first.

    Raises
    ------
    DataError
        If there is no output, or it holds no 3D intensity.

    Notes
    -----
    Source: the writer of dragonfly-spi 0.1.0. ``intens`` is (mode, x, y, z), ``inter_weight`` the
    weight that each voxel got.
    """
    outputs = sorted(Path(folder).glob("output/output_[0-9][0-9][0-9]*.h5"), key=_number)
    if not outputs or _number(outputs[-1]) == 0:
        raise DataError(
            f"{folder}/output holds no output_NNN.h5 of an iteration; run jobs/orient.sh first",
            path=str(folder),
        )
    path = outputs[-1]
    try:
        with h5py.File(path, "r") as file:
            intensity, weight = (file[name][0].astype(float) for name in ("intens", "inter_weight"))
            num_div = int(np.max(file["params/num_div"][()]))
            if intensity.ndim != 3 or intensity.shape != weight.shape:
                raise ValueError(f"intens and inter_weight of {intensity.shape}, {weight.shape}")
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: holds no 3D intensity of Dragonfly: {error}") from None
    intensity[weight <= 0] = np.nan
    changes = _read_changes(Path(folder) / "EMC.log")
    return Reconstruction(intensity, _number(path), num_div, changes)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("output_"))


def _read_changes(path: Path) -> list[float]:
    # A table of iteration, time, rms_change and more follows the header.
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [float(row[2]) for row in rows if len(row) > 3 and row[0].isdigit()]

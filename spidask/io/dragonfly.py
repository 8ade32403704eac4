"""What stands beside the photons in Dragonfly: detector, blacklist and settings, both ways.

Source: https://github.com/duaneloh/Dragonfly/wiki and the readers of dragonfly-spi 0.1.0.
"""

from __future__ import annotations

import configparser
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the compression filters)
import numpy as np
import numpy.typing as npt

from spidask.errors import DataError
from spidask.frames.geometry import momentum_transfer, polarization, solid_angle
from spidask.io.arrays import read_array


@dataclass(frozen=True)
class Detector:
    """What Dragonfly knows of each pixel; all arrays have the shape (pixel,).

    Attributes
    ----------
    qx, qy, qz : numpy.ndarray
        Scattering vector, float64, in voxels.
    corr : numpy.ndarray
        Polarization times solid angle of a unit pixel, float64.
    mask : numpy.ndarray
        0 use, 1 use but not for orientation, 2 ignore; uint8.
    detd : float
        Detector distance, in pixels.
    ewald_rad : float
        Radius of the Ewald sphere, in voxels.
    """

    qx: npt.NDArray[np.float64]
    qy: npt.NDArray[np.float64]
    qz: npt.NDArray[np.float64]
    corr: npt.NDArray[np.float64]
    mask: npt.NDArray[np.uint8]
    detd: float
    ewald_rad: float


def make_detector(
    y: npt.NDArray[np.float64],
    x: npt.NDArray[np.float64],
    distance: float,
    ignored: npt.NDArray[np.bool_],
) -> Detector:
    """Describe a flat detector in a beam that is polarized along x.

    Parameters
    ----------
    y : numpy.ndarray
        Distance from the beam along the rows, shape (y, x), float64, pixels.
    x : numpy.ndarray
        Distance from the beam along the columns, shape (y, x), float64, pixels.
    distance : float
        Sample to detector, pixels.
    ignored : numpy.ndarray
        True for pixels not to use at all, shape (y, x), bool.

    Returns
    -------
    Detector
        Its Ewald sphere has the radius `distance`, so that a voxel is a pixel near the beam.

    Notes
    -----
    q = ewald_rad (x/f, y/f, distance/f - 1) and corr = distance/f^3 (1 - x^2/f^2) with
    f^2 = x^2 + y^2 + distance^2, as Dragonfly computes them.

    Examples
    --------
    >>> detector = make_detector(np.array([[0.0]]), np.array([[3.0]]), 4.0, np.array([[False]]))
    >>> [round(float(v[0]), 3) for v in (detector.qx, detector.qy, detector.qz, detector.corr)]
    [2.4, 0.0, -0.8, 0.02]
    """
    qx, qy, qz = momentum_transfer(y, x, distance, 2 * np.pi / distance).reshape(3, -1)
    corr = solid_angle(y, x, distance, 1.0) * polarization(y, x, distance)
    mask = np.where(ignored, 2, 0).astype(np.uint8)
    return Detector(qx, qy, qz, corr.ravel(), mask.ravel(), distance, distance)


def write_detector(path: str | Path, detector: Detector) -> None:
    """Write Dragonfly's detector file.

    Parameters
    ----------
    path : str or pathlib.Path
        File to write; it appears when it is complete.
    detector : Detector
        What to write.
    """
    part = Path(f"{path}.part")
    with h5py.File(part, "w") as file:
        for name in ("qx", "qy", "qz", "corr"):
            file[name] = np.asarray(getattr(detector, name), np.float64)
        file["mask"] = np.asarray(detector.mask, np.uint8)
        file["detd"] = float(detector.detd)
        file["ewald_rad"] = float(detector.ewald_rad)
    os.replace(part, path)


def read_detector(path: str | Path) -> Detector:
    """Read Dragonfly's detector file.

    Parameters
    ----------
    path : str or pathlib.Path
        File to read.

    Returns
    -------
    Detector
        What it holds; a background is left out.

    Raises
    ------
    DataError
        If it is no such file or its arrays differ in length.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            values = {f.name: read_array(file, f.name, str(path)) for f in fields(Detector)}
    except (OSError, RuntimeError, ValueError, TypeError, DataError) as error:
        why = " ".join(str(error).split()).removeprefix(f"{path}: ")
        raise DataError(
            f"{path}: is no detector file of Dragonfly: {why}", path=str(path)
        ) from None
    shapes = {values[name].shape for name in ("qx", "qy", "qz", "corr", "mask")}
    if len(shapes) != 1:
        raise DataError(f"{path}: arrays of different lengths {sorted(shapes)}", path=str(path))
    for name, array in values.items():
        is_number = name in ("detd", "ewald_rad")
        if array.dtype.kind not in "iuf" or array.ndim != (0 if is_number else 1):
            raise DataError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}, expected "
                f"{'one number' if is_number else 'one number for each pixel'}",
                path=str(path),
            )
    known: dict[str, Any] = {name: array[()] for name, array in values.items()}
    return Detector(**known)


def write_blacklist(path: str | Path, excluded: npt.NDArray[np.bool_]) -> None:
    """Write which frames Dragonfly leaves out.

    Parameters
    ----------
    path : str or pathlib.Path
        File to write, a line for each frame: 1 excluded, 0 used.
    excluded : numpy.ndarray
        True for frames to leave out, shape (frame,), bool.
    """
    lines = np.where(excluded, b"1\n", b"0\n").tobytes()
    part = Path(f"{path}.part")
    part.write_bytes(lines)
    os.replace(part, path)


def read_blacklist(path: str | Path) -> npt.NDArray[np.bool_]:
    """Read which frames Dragonfly leaves out.

    Parameters
    ----------
    path : str or pathlib.Path
        File to read.

    Returns
    -------
    numpy.ndarray
        True for frames left out, shape (frame,), bool.

    Raises
    ------
    DataError
        If a line is neither 0 nor 1.
    """
    lines = Path(path).read_text().split()
    for number, line in enumerate(lines, 1):
        if line not in ("0", "1"):
            raise DataError(f"{path}, line {number}: '{line}', expected 0 or 1", path=str(path))
    return np.array([line == "1" for line in lines], bool)


def write_classes(path: str | Path, letters: Sequence[str]) -> None:
    """Write the classes of frames, as Dragonfly's frame viewer keeps them.

    Parameters
    ----------
    path : str or pathlib.Path
        File to write, a line for each frame.
    letters : sequence of str
        A lower-case letter for each frame.
    """
    part = Path(f"{path}.part")
    part.write_text("".join(f"{letter}\n" for letter in letters))
    os.replace(part, path)


def write_scale(path: str | Path, scale: npt.NDArray[np.float64]) -> None:
    """Write how bright frames are relative to each other.

    Parameters
    ----------
    path : str or pathlib.Path
        File to write; Dragonfly's setting ``scale_file`` names it.
    scale : numpy.ndarray
        Positive factors of about 1, shape (frame,), float64.
    """
    part = Path(f"{path}.part")
    with h5py.File(part, "w") as file:
        file["scale"] = np.asarray(scale, np.float64)
    os.replace(part, path)


def write_background(path: str | Path, background: npt.NDArray[np.float64]) -> None:
    """Put a background into a detector file, in place of one that is there.

    Parameters
    ----------
    path : str or pathlib.Path
        File of `write_detector`; it is whole at any time.
    background : numpy.ndarray
        Photons expected in each pixel of a frame without a particle, shape (pixel,), float64.
    """
    part = Path(f"{path}.part")
    shutil.copyfile(path, part)
    with h5py.File(part, "a") as file:
        file.pop("background", None)
        file["background"] = np.asarray(background, np.float64)
    os.replace(part, path)


def write_settings(path: str | Path, sections: Mapping[str, Mapping[str, object]]) -> None:
    """Write Dragonfly's config.ini.

    Parameters
    ----------
    path : str or pathlib.Path
        File to write; paths among the values are taken from its folder.
    sections : mapping
        Section to key to value.
    """
    parser = configparser.ConfigParser()
    parser.read_dict(sections)
    with open(path, "w") as file:
        parser.write(file)

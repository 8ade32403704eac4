"""The pixels that are handed over, and where they look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from spidask.config import Config, Geometry
from spidask.errors import ConfigError
from spidask.frames.geometry import momentum_transfer, pixel_positions, wavelength
from spidask.masked import find_masked

TOLERANCE_PX = 0.5
"""Runs whose pixels look at directions closer than this share one detector file."""


@dataclass(frozen=True)
class Layout:
    """Pixels as handed over: those of the region, summed in squares of `bin`.

    Attributes
    ----------
    corner : tuple of int
        First row and column of the region in the full frame.
    hidden : numpy.ndarray
        True where any run with hits masks the pixel, shape (y, x), bool.
    bin : int
        Pixels of the frame along each axis of a square.
    """

    corner: tuple[int, int]
    hidden: npt.NDArray[np.bool_]
    bin: int


def find_layout(rows: npt.NDArray[np.int64], frames: xr.Dataset, config: Config) -> Layout:
    """Find out which pixels the runs with hits have in common.

    Parameters
    ----------
    rows : numpy.ndarray
        Where the hits stand in `frames`, shape (hit,), int64.
    frames : xarray.Dataset
        As of `open_runs`.
    config : Config
        Sections `preprocessing`, `runs`, `handoff` and `per_run`.

    Returns
    -------
    Layout
        One for all.

    Raises
    ------
    ConfigError
        If the region is smaller than a square.
    """
    masked, corner = find_masked(frames, rows, config)
    if config.handoff.bin > min(masked.shape):
        raise ConfigError(
            f"handoff.bin: {config.handoff.bin} is more than the region of {masked.shape[0]} x "
            f"{masked.shape[1]} pixels; lower it"
        )
    return Layout(corner, sum_squares(masked, config.handoff.bin) > 0, config.handoff.bin)


def sum_squares(patterns: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    """Sum squares of pixels.

    Parameters
    ----------
    patterns : numpy.ndarray
        Shape (..., y, x), photons; NaN is missing.
    width : int
        Pixels along each axis of a square.

    Returns
    -------
    numpy.ndarray
        Shape (..., y // width, x // width), photons; NaN where one pixel of the square is. Rows
        and columns beyond the last whole square are left out.

    Examples
    --------
    >>> sum_squares(np.array([[1.0, 2, 9], [3, 4, 9]]), 2).tolist()
    [[10.0]]
    """
    rows, columns = (size // width for size in patterns.shape[-2:])
    cut = patterns[..., : rows * width, : columns * width]
    squares = cut.reshape(*cut.shape[:-2], rows, width, columns, width)
    return np.asarray(squares.sum(axis=(-3, -1)))


def common_geometry(hits: xr.Dataset, config: Config, layout: Layout) -> Geometry:
    """Give the geometry of the run with most hits, which has to serve for all.

    Parameters
    ----------
    hits : xarray.Dataset
        The hits of a selection.
    config : Config
        Sections `geometry` and `per_run`.
    layout : Layout
        The pixels.

    Returns
    -------
    Geometry
        Where the detector stands.

    Raises
    ------
    ConfigError
        If a pixel of another run with hits looks elsewhere by more than `TOLERANCE_PX`.
    """
    counts = np.bincount(hits["run"].values, minlength=hits.sizes["run_code"])
    names = hits["run_name"].values.astype(str)
    most = str(names[np.argmax(counts)]) if len(names) else ""
    common = config.geometry_of(most)
    here = scattering_vectors(common, layout)
    voxel = 2 * np.pi / wavelength(common.photon_energy_ev) / detector_distance(common, layout)
    others = {config.geometry_of(name): name for name in names[counts > 0].tolist()}
    for other, name in others.items():
        shift = np.linalg.norm(scattering_vectors(other, layout) - here, axis=0).max() / voxel
        if shift > TOLERANCE_PX:
            raise ConfigError(
                f"per_run: the geometry of {name} is off that of {most} by {shift:.1f} pixels, "
                f"and one detector file bears {TOLERANCE_PX}; process these runs to another output",
                run=name,
                shift=float(shift),
            )
    return common


def place_pixels(
    geometry: Geometry, layout: Layout
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Give the places of the squares' centres.

    Parameters
    ----------
    geometry : Geometry
        Where the detector stands.
    layout : Layout
        The squares.

    Returns
    -------
    y, x : numpy.ndarray
        Distances from the beam in squares, shape (y, x), float64.
    """
    rows, columns = (
        start + layout.bin * np.arange(n) + (layout.bin - 1) / 2
        for start, n in zip(layout.corner, layout.hidden.shape, strict=True)
    )
    beam = geometry.beam_centre_y_px, geometry.beam_centre_x_px
    return pixel_positions(rows, columns, beam, 1 / layout.bin)


def detector_distance(geometry: Geometry, layout: Layout) -> float:
    """Give the detector's distance in squares.

    Parameters
    ----------
    geometry : Geometry
        Where the detector stands.
    layout : Layout
        The squares.

    Returns
    -------
    float
        Distance over the edge of a square.
    """
    return geometry.detector_distance_m / (geometry.pixel_size_um * 1e-6 * layout.bin)


def scattering_vectors(geometry: Geometry, layout: Layout) -> npt.NDArray[np.float64]:
    """Give the momentum transfer of the squares' centres.

    Parameters
    ----------
    geometry : Geometry
        Where the detector stands.
    layout : Layout
        The squares.

    Returns
    -------
    numpy.ndarray
        Shape (3, y, x), float64, 1/m.
    """
    distance = detector_distance(geometry, layout)
    length = wavelength(geometry.photon_energy_ev)
    return momentum_transfer(*place_pixels(geometry, layout), distance, length)

"""The pnCCD panel: stray light, electronics, and what they make of expected photons."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spidask.config import Geometry

PANEL = (512, 1024)
Maps = NDArray[np.float32]


def stray_light(
    geometry: Geometry, rows: range, columns: range, rng: np.random.Generator
) -> Maps:
    """Draw the shape of a beamline's stray light, as parts that vary from pulse to pulse.

    Parameters
    ----------
    geometry : Geometry
        Gives the beam centre.
    rows, columns : range
        Pixels of the full frame.
    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    numpy.ndarray
        Shape (4, rows, columns), float32: scatter of the optics (a power law), of the gas
        (nearly flat), flares of the horizontal and of the vertical slits. Each part sums to 1
        over the whole panel.
    """
    reach, power = rng.uniform(10, 30), rng.uniform(2.2, 3.2)
    broad = rng.uniform(250, 450)
    tilts, widths = rng.normal(0, 0.03, 2), rng.uniform(2.0, 5.0, 2)
    lengths = rng.uniform(25, 70, 2)

    def parts(y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        v = (y - geometry.beam_centre_y_px)[:, None]
        u = (x - geometry.beam_centre_x_px)[None, :]
        r2 = u * u + v * v
        maps = [(1 + r2 / reach**2) ** (-power / 2), np.exp(-r2 / (2 * broad**2))]
        for along, across, tilt, width, length in zip(
            (u, v), (v, u), tilts, widths, lengths, strict=True
        ):
            # Fraunhofer edge of a slit: 1 / distance^2 along, narrow across.
            narrow = np.exp(-(((across - tilt * along) / width) ** 2) / 2)
            maps.append(narrow / (1 + (along / length) ** 2))
        return np.stack(maps)

    # Each part's sum over the panel, from every third pixel (none of them is sharper).
    whole = parts(np.arange(1.0, PANEL[0], 3), np.arange(1.0, PANEL[1], 3)).sum(axis=(1, 2)) * 9
    here = parts(np.array(rows, float), np.array(columns, float))
    return (here / whole[:, None, None]).astype(np.float32)

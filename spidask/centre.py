"""Where the beam is, seen from the hits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from spidask.config import Config
from spidask.errors import DataError
from spidask.frames.geometry import find_beam_centre, suggest_region
from spidask.io.runs import take_frames
from spidask.planning import open_headers
from spidask.preprocessing import preprocess

N_HITS = 300
"""Hits in the powder pattern of `find_centre`."""
N_STRETCHES, STRETCH = 8, 1024
"""Runs, and frames of each, in which `find_centre` looks for hits."""
RING_PHOTONS = 0.05
"""The region of interest ends where the mean of the brightest hits falls below this."""
RING_PX = 4.0
"""Width of those rings."""
FAR_PX = 2.0
"""A beam centre further than this from the configured one is worth a warning."""


@dataclass(frozen=True)
class Centre:
    """Where the beam is.

    Attributes
    ----------
    found, uncertainty, configured : tuple of float
        Row and column of the full frame, px.
    region : tuple of int
        Suggested region of interest: first row, row after the last, first column, column after
        the last.
    n_hits : int
        Hits in the powder pattern.
    """

    found: tuple[float, float]
    uncertainty: tuple[float, float]
    configured: tuple[float, float]
    region: tuple[int, int, int, int]
    n_hits: int

    @property
    def distance(self) -> float:
        """Distance of the beam from the configured centre, px."""
        return math.dist(self.found, self.configured)

    def lines(self) -> list[str]:
        """Say it to a person.

        Returns
        -------
        list of str
            Lines of text; the last one is a warning where the configured centre is off.
        """
        (y, x), (dy, dx), (y0, y1, x0, x1) = self.found, self.uncertainty, self.region
        lines = [
            f"beam centre    y {y:.2f} +- {dy:.2f}, x {x:.2f} +- {dx:.2f} px, "
            f"from the powder of {self.n_hits} hits",
            f"configured     y {self.configured[0]:.2f}, x {self.configured[1]:.2f} px, "
            f"{self.distance:.2f} px away",
            f"region         {{y: [{y0}, {y1}], x: [{x0}, {x1}]}}",
        ]
        if self.distance > FAR_PX:
            lines.append(
                f"warning: geometry: the configured beam centre is {self.distance:.1f} px off; set "
                f"geometry.beam_centre_y_px={y:.1f} and geometry.beam_centre_x_px={x:.1f}"
            )
        return lines


def find_centre(config: Config) -> Centre:
    """Find the beam centre and the region of interest from the powder of hits.

    Parameters
    ----------
    config : Config
        The beamtime. Hits are looked for in the region configured; the powder is of the whole
        frame.

    Returns
    -------
    Centre
        What was found, and what is configured.

    Raises
    ------
    DataError
        If there are no hits among the frames looked at, or their powder shows no centre.

    Notes
    -----
    Looks at up to 8 runs, 1024 frames from the middle of each, and takes the 300 brightest hits.
    The region ends where their mean falls below 0.05 photons a pixel.
    """
    frames = open_headers(config)
    rows = _brightest_hits(frames, config)
    powder = _add_up(take_frames(frames, rows), _without_region(config))
    place = config.geometry
    configured = (place.beam_centre_y_px, place.beam_centre_x_px)
    shape = (powder.shape[0], powder.shape[1])
    y0, y1, x0, x1 = suggest_region(configured, shape, _reach(powder, configured))
    found, uncertainty = find_beam_centre(
        powder[y0:y1, x0:x1], np.arange(y0, y1), np.arange(x0, x1), configured
    )
    edges = suggest_region(found, shape, _reach(powder, found))
    y0, y1, x0, x1 = (edge // config.preprocessing.bin * config.preprocessing.bin for edge in edges)
    return Centre(found, uncertainty, configured, (y0, y1, x0, x1), len(rows))


def _brightest_hits(frames: xr.Dataset, config: Config) -> npt.NDArray[np.int64]:
    """Find the brightest hits among stretches of some runs; their positions in order."""
    codes = frames["run"].values
    edges = np.flatnonzero(np.diff(codes, prepend=-1, append=-1))
    chosen = np.unique(np.linspace(0, len(edges) - 2, N_STRETCHES).round().astype(int))
    rows, photons = [], []
    for first, stop in zip(edges[chosen], edges[chosen + 1], strict=True):
        start = max(first, (first + stop - STRETCH) // 2)
        stretch = slice(int(start), int(min(stop, start + STRETCH)))
        found = preprocess(take_frames(frames, stretch), config)[["hit", "photon_count"]].compute()
        hit = np.flatnonzero(found["hit"].values)
        rows.append(stretch.start + hit)
        photons.append(found["photon_count"].values[hit])
    order = np.argsort(np.concatenate(photons))[::-1][:N_HITS]
    if not len(order):
        raise DataError(
            f"no hits among {N_STRETCHES} stretches of up to {STRETCH} frames; lower "
            "hits.n_sigma, or set hits.threshold to none if the files hold only hits"
        )
    return np.sort(np.concatenate(rows)[order])


def _without_region(config: Config) -> Config:
    # In the pixels of which a config gives centre and region, which are not binned.
    changed = {"region": None, "bin": 1}
    whole = config.preprocessing.model_copy(update=changed)
    per_run = {
        name: changes.model_copy(update={"preprocessing": {**changes.preprocessing, **changed}})
        for name, changes in config.per_run.items()
    }
    return config.model_copy(update={"preprocessing": whole, "per_run": per_run})


def _add_up(frames: xr.Dataset, config: Config) -> npt.NDArray[np.float64]:
    """Mean pattern, NaN where no frame has a value."""
    patterns = preprocess(frames, config)["patterns"]
    both = xr.Dataset({"sum": patterns.sum("frame"), "n": patterns.notnull().sum("frame")})
    both = both.compute()
    mean = both["sum"].values / np.maximum(both["n"].values, 1)
    return np.where(both["n"].values > 0, mean, np.nan)


def _reach(powder: npt.NDArray[np.float64], centre: tuple[float, float]) -> float:
    """Distance from the beam at which the mean of a ring falls below `RING_PHOTONS`."""
    y, x = np.nonzero(np.isfinite(powder))
    ring = (np.hypot(y - centre[0], x - centre[1]) / RING_PX).astype(int)
    mean = np.bincount(ring, powder[y, x]) / np.maximum(np.bincount(ring), 1)
    brightest = int(np.argmax(mean))
    dark = np.flatnonzero((mean[brightest:] < RING_PHOTONS) & (np.bincount(ring)[brightest:] > 0))
    return float(RING_PX * (brightest + dark[0] if len(dark) else len(mean)))

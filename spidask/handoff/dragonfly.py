"""What stands beside the photons for Dragonfly: settings, blacklists, classes and scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from spidask.config import Config, Geometry
from spidask.frames.geometry import wavelength
from spidask.frames.sizing import fitted_photons
from spidask.handoff.layout import Layout
from spidask.handoff.photons import iterate_photons
from spidask.io import dragonfly, emc
from spidask.preprocessing import load_library
from spidask.schema import REASONS

LETTERS = {"": "s", "not_single": "n", "size": "z"}
"""Class letter of a hit by the reason why it is not selected; nothing: it is."""
DARKEST = 1e-3
"""Smallest scale; Dragonfly divides by them."""


def write_dragonfly(
    hits: xr.Dataset, geometry: Geometry, layout: Layout, config: Config, folder: Path
) -> None:
    """Write all but photons and detector, which say what frames and pixels there are.

    Parameters
    ----------
    hits : xarray.Dataset
        The hits of a selection, in the order of photons.h5.
    geometry : Geometry
        Where the detector stands.
    layout : Layout
        Its pixels.
    config : Config
        The beamtime's settings.
    folder : pathlib.Path
        Where photons.h5 and detector.h5 are.

    Notes
    -----
    ``photons.emc`` where `handoff.photons` asks for it, ``blacklist.txt`` of the selection and
    ``blacklist_55_84.txt`` of each further size window, ``my_classes.dat`` (`LETTERS`),
    ``scale.h5`` and ``config.ini``.
    """
    if config.handoff.photons != "hdf5" and not (folder / "photons.emc").exists():
        places = np.arange(hits.sizes["frame"])
        blocks = (photons for _, photons in iterate_photons(folder / "photons.h5", places))
        emc.write_photons_binary(folder / "photons.emc", blocks, len(places), layout.hidden.size)
    dragonfly.write_blacklist(folder / "blacklist.txt", ~hits["selected"].values)
    _write_blacklists(hits, config, folder)
    letters = [LETTERS[REASONS[code]] for code in hits["reason"].values]
    dragonfly.write_classes(folder / "my_classes.dat", letters)
    dragonfly.write_scale(folder / "scale.h5", relative_scale(hits, geometry, layout, config))
    dragonfly.write_settings(folder / "config.ini", _settings(geometry, layout, config))


def relative_scale(
    hits: xr.Dataset, geometry: Geometry, layout: Layout, config: Config
) -> npt.NDArray[np.float64]:
    """Say how bright hits are relative to each other.

    Parameters
    ----------
    hits : xarray.Dataset
        With photon_count, selected, and diameter and fluence where hits were sized.
    geometry : Geometry
        Where the detector stands.
    layout : Layout
        Its pixels.
    config : Config
        Section `sizing`.

    Returns
    -------
    numpy.ndarray
        Photons of the fitted sphere over their mean among the selected hits, shape (frame,),
        float64; where nothing was fitted, those of the whole pattern. Not below `DARKEST`.
    """
    photons = hits["photon_count"].values.astype(float)
    if "fluence" in hits:
        shape = (layout.hidden.shape[0] * layout.bin, layout.hidden.shape[1] * layout.bin)
        library = load_library(geometry, config.sizing, layout.corner, shape)
        seen = ~np.kron(layout.hidden, np.ones((layout.bin, layout.bin), bool))
        fitted = fitted_photons(hits["diameter"].values, hits["fluence"].values, library, seen)
        photons = np.where(np.isfinite(fitted), fitted, photons)
    counted = photons[hits["selected"].values & np.isfinite(photons)]
    mean = counted.mean() if len(counted) and counted.mean() > 0 else np.nan
    scale = np.nan_to_num(photons / mean, nan=1.0, posinf=1.0)
    return np.asarray(np.maximum(scale, DARKEST))


def _write_blacklists(hits: xr.Dataset, config: Config, folder: Path) -> None:
    for path in folder.glob("blacklist_*_*.txt"):
        path.unlink()
    single = hits["score"].values >= 0
    diameter = hits["diameter"].values
    for low, high in config.handoff.blacklists:
        inside = single & (diameter >= low) & (diameter <= high)
        dragonfly.write_blacklist(folder / f"blacklist_{low:g}_{high:g}.txt", ~inside)


def _settings(geometry: Geometry, layout: Layout, config: Config) -> dict[str, dict[str, object]]:
    rows, columns = layout.hidden.shape
    return {
        "parameters": {
            "detd": f"{geometry.detector_distance_m * 1e3:.10g}",
            "lambda": f"{wavelength(geometry.photon_energy_ev) * 1e10:.10g}",
            "detsize": f"{columns} {rows}",
            "pixsize": f"{geometry.pixel_size_um * 1e-3 * layout.bin:.10g}",
            "stoprad": 0,
            "polarization": "x",
        },
        "emc": {
            "in_photons_file": _photons_file(config),
            "in_detector_file": "detector.h5",
            "blacklist_file": "blacklist.txt",
            "scale_file": "scale.h5",
            "output_folder": "output/",
            "log_file": "EMC.log",
            "num_div": config.handoff.num_div,
            "need_scaling": 1,
            # With 1 and "1.414 10" nothing is recovered from the hits of jobs/orientation_worth.py.
            "beta_factor": 1.5,
            "beta_schedule": "1.3 3",
        },
    }


def _photons_file(config: Config) -> str:
    return "photons.emc" if config.handoff.photons == "binary" else "photons.h5"

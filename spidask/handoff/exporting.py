"""The stage export: every file that the next step gets."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from spidask.config import Config
from spidask.handoff.background import (
    add_powders,
    background_is_current,
    draw_misses,
    write_background,
    write_detector_background,
)
from spidask.handoff.cxi import write_photons_cxi, write_virtual_cxi
from spidask.handoff.dragonfly import write_dragonfly
from spidask.handoff.euxfel import write_hit_lists
from spidask.handoff.layout import common_geometry
from spidask.handoff.lists import write_lists
from spidask.handoff.photons import is_hit, photons_are_current, read_layout, write_photons
from spidask.handoff.tables import write_tables
from spidask.io import emc
from spidask.io.manifest import PACKAGES
from spidask.records import read_json
from spidask.schema import validate

if TYPE_CHECKING:
    from distributed import Client

EARLIER = ("read", "train", "classify")
"""Stages whose counts in the manifest are those of this selection."""


def export(
    selection: xr.Dataset,
    frames: xr.Dataset | None,
    config: Config,
    out: str | Path,
    client: Client | None = None,
) -> dict[str, int]:
    """Write what orientation determination and other programs need.

    Parameters
    ----------
    selection : xarray.Dataset
        All classified frames as of `select`, in memory, with photon_count.
    frames : xarray.Dataset or None
        The runs as of `open_runs`. None is enough unless `needs_frames`.
    config : Config
        The beamtime's settings.
    out : str or pathlib.Path
        Output folder.
    client : distributed.Client, optional
        Who reads and calibrates hits and misses; this process without it.

    Returns
    -------
    dict
        ``hits`` (frames in photons.h5), ``selected``, ``photons_written`` (0 where photons.h5
        was current), ``pixels``, ``pixels_ignored`` (mask 2 in detector.h5), ``missing_values``
        (pixels of selected frames that have no number there alone, such as saturated ones: 0
        photons in photons.h5, a mask bit in selection.cxi), ``misses`` (all readable ones) and
        ``misses_in_background``; for the European XFEL also ``listed`` and ``without_ids``.

    Raises
    ------
    ConfigError
        If the geometry or the region differs between runs by more than one detector file bears,
        or a virtual CXI is wanted of runs that are no HDF5 files.
    DataError
        If hits are not among the frames, or frames are needed and None.

    Notes
    -----
    ``dragonfly/``: photons.h5 holds all hits, selected or not, and is written anew only if the
    hits or their photons changed; detector.h5, config.ini and index.csv (frame in photons.h5 to
    run and index) go with it. ``blacklist.txt`` alone makes the selection. See `write_dragonfly`
    for what else is there, and `write_background` for background.h5. Besides, ``selection.cxi``,
    `write_lists`, `write_hit_lists` and `write_tables`.

    A pixel that any run with hits masks is ignored for all (mask 2). With ``handoff.bin``, a
    square that holds a masked pixel is masked, and rows and columns beyond the last whole
    square are left out. The polarization is along x.
    """
    _refuse_unsuitable(selection)
    out = Path(out)
    hits = selection.isel(frame=is_hit(selection))
    folder = out / "dragonfly"
    folder.mkdir(parents=True, exist_ok=True)
    written = not photons_are_current(selection, config, out)
    if written:
        write_photons(hits, frames, config, folder, client)
    layout = read_layout(folder)
    geometry = common_geometry(hits, config, layout)
    drawn = draw_misses(selection, config)
    if not background_is_current(selection, config, out):
        misses = selection.isel(frame=drawn)
        write_background(misses, frames, layout, config, folder, client)
    add_powders(hits, layout, folder, renew=written)
    write_detector_background(hits, folder)
    write_dragonfly(hits, geometry, layout, config, folder)
    places = np.flatnonzero(hits["selected"].values)
    chosen, provenance = hits.isel(frame=places), _provenance(config, out)
    write_lists(chosen, out)
    if config.handoff.cxi == "copy":
        write_photons_cxi(chosen, places, geometry, layout, provenance, out)
    elif config.handoff.cxi == "virtual":
        write_virtual_cxi(chosen, frames, geometry, config, provenance, out)
    else:
        (out / "selection.cxi").unlink(missing_ok=True)
    write_tables(selection, config, provenance, out)
    missing = emc.read_missing(folder / "photons.h5", places)
    return {
        "hits": hits.sizes["frame"],
        "selected": len(places),
        "photons_written": int(written),
        "pixels": layout.hidden.size,
        "pixels_ignored": int(layout.hidden.sum()),
        "missing_values": sum(map(len, missing)),
        "misses": int((selection["readable"].values & ~selection["hit"].values).sum()),
        "misses_in_background": len(drawn),
    } | write_hit_lists(selection, drawn, config, out)


def needs_frames(selection: xr.Dataset, config: Config, out: str | Path) -> bool:
    """Tell whether `export` has to read raw frames, or to know where they are.

    Parameters
    ----------
    selection : xarray.Dataset
        All classified frames as of `select`, in memory, with photon_count.
    config : Config
        The beamtime's settings.
    out : str or pathlib.Path
        Output folder.

    Returns
    -------
    bool
        False if photons and background are there already, and no virtual CXI is wanted.
    """
    return (
        config.handoff.cxi == "virtual"
        or not photons_are_current(selection, config, out)
        or not background_is_current(selection, config, out)
    )


def _refuse_unsuitable(selection: xr.Dataset) -> None:
    names = ("run", "index", "run_name", "readable", "hit", "selected", "reason", "score")
    validate(selection, *names, "photon_count", "diameter")


def _provenance(config: Config, out: Path) -> dict[str, str]:
    texts = {
        "settings": config.model_dump_json(),
        "versions": json.dumps({name: version(name) for name in PACKAGES}),
    }
    path = out / "manifest.json"
    if path.exists():
        counts = read_json(path)["counts"]
        texts["counts"] = json.dumps({name: counts[name] for name in EARLIER if name in counts})
    return texts

"""The selection with all its variables, as xarray reads it."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import xarray as xr

from spidask.config import Config
from spidask.schema import annotate

FRAMES_PER_CHUNK = 1_000_000


def write_tables(
    selection: xr.Dataset, config: Config, provenance: Mapping[str, str], out: Path
) -> None:
    """Write ``selection.zarr`` and ``selection.nc``, those that are wanted.

    Parameters
    ----------
    selection : xarray.Dataset
        All classified frames as of `select`, in memory.
    config : Config
        Section `handoff`.
    provenance : mapping of str to str
        Attributes of the Dataset: what made it.
    out : pathlib.Path
        Output folder. Tables of a selection before are removed.

    Notes
    -----
    ``xarray.open_zarr`` and ``xarray.open_dataset`` give the Dataset back: a row for each frame,
    units and meaning of every variable in its attributes.
    """
    folder, file = out / "selection.zarr", out / "selection.nc"
    shutil.rmtree(folder, ignore_errors=True)
    file.unlink(missing_ok=True)
    table = annotate(selection).assign_attrs(provenance)
    if "zarr" in config.handoff.tables:
        _write_zarr(table, folder)
    if "netcdf" in config.handoff.tables:
        part = Path(f"{file}.part")
        table.to_netcdf(part, engine="h5netcdf")
        os.replace(part, file)


def _write_zarr(table: xr.Dataset, folder: Path) -> None:
    part = Path(f"{folder}.part")
    shutil.rmtree(part, ignore_errors=True)
    encoding = {
        name: {"chunks": (min(FRAMES_PER_CHUNK, v.shape[0]), *v.shape[1:])}
        for name, v in table.variables.items()
        if "frame" in v.dims and v.size
    }
    with warnings.catch_warnings():
        # Of texts, whose form in Zarr 3 is not final.
        warnings.filterwarnings("ignore", message=".*Zarr format 3 specification.*")
        table.to_zarr(part, mode="w", zarr_format=3, consolidated=False, encoding=encoding)
    os.replace(part, folder)

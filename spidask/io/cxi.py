"""Patterns as CXI 1.5 (cxidb.org/cxi.html), with mask bits, geometry, scores, tags and ids."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import numpy.typing as npt
import xarray as xr

from spidask.errors import DataError
from spidask.io.stack import EVENT_IDS
from spidask.schema import annotate

VERSION = 150
EV_IN_JOULE = 1.602176634e-19
DETECTOR = "entry_1/instrument_1/detector_1"
TAGS = ("selected", "trained_on")
NUMBERS = ("index", *EVENT_IDS, "diameter")
"""Variables of a frame that stand under ``entry_1`` by their own names."""

Block = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint32]]
"""Photons and mask bits of some frames, both of shape (frame, y, x)."""


@dataclass(frozen=True)
class Setup:
    """Where the pixels of a pattern stand.

    Attributes
    ----------
    photon_energy : float
        In eV.
    distance : float
        Sample to detector, m.
    pixel_size : float
        Edge of a pixel, m.
    beam_centre : tuple of float
        Row and column of the beam, in pixels of the pattern; pixel centres are integers.
    """

    photon_energy: float
    distance: float
    pixel_size: float
    beam_centre: tuple[float, float]


def write_cxi(
    path: str | Path,
    blocks: Iterable[Block],
    frames: xr.Dataset,
    shape: tuple[int, int],
    setup: Setup,
    provenance: Mapping[str, str],
) -> None:
    """Write patterns as a CXI file, block by block.

    Parameters
    ----------
    path : str or pathlib.Path
        File to write; it appears when it is complete.
    blocks : iterable of (numpy.ndarray, numpy.ndarray)
        Consecutive frames: photons int32 and mask bits uint32, each (frame, y, x).
    frames : xarray.Dataset
        What is known of the same frames: run, index, run_name, score, and whatever it has of
        diameter, selected, trained_on and event ids.
    shape : tuple of int
        Rows and columns of a pattern.
    setup : Setup
        Geometry, the same for all frames.
    provenance : mapping of str to str
        Texts that tell what made the file; they go to ``entry_1/process_1``.

    Raises
    ------
    DataError
        If the blocks hold another number of frames.
    """
    n_frames = frames.sizes["frame"]
    part = Path(f"{path}.part")
    with h5py.File(part, "w") as file:
        file["cxi_version"] = VERSION
        file["number_of_entries"] = 1
        _write_setup(file, setup)
        _write_frames(file, frames)
        for name, text in provenance.items():
            file[f"entry_1/process_1/{name}"] = text
        data = _stack(file, "data", np.int32, n_frames, shape)
        mask = _stack(file, "mask", np.uint32, n_frames, shape)
        start = 0
        for photons, bits in blocks:
            stop = start + len(photons)
            data[start:stop], mask[start:stop] = photons, bits
            start = stop
        if start != n_frames:
            raise DataError(f"{path}: {start} patterns came for {n_frames} frames")
        _write_links(file)
    os.replace(part, path)


def read_cxi(path: str | Path) -> xr.Dataset:
    """Read a CXI file of `write_cxi` into memory.

    Parameters
    ----------
    path : str or pathlib.Path
        File to read.

    Returns
    -------
    xarray.Dataset
        ``patterns`` (frame, y, x) float32, photons, NaN where a mask bit is set; run, index,
        score, tags as bool variables, event ids, and run_name (run_code,). ``attrs`` hold
        ``setup`` and ``provenance`` as dicts.

    Raises
    ------
    DataError
        If the file cannot be read or lacks something.
    """
    try:
        with h5py.File(path, "r") as file:
            return _read(file)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: is no CXI file of a selection: {' '.join(str(error).split())}", path=str(path)
        ) from None


def _write_setup(file: h5py.File, setup: Setup) -> None:
    size, (row, column) = setup.pixel_size, setup.beam_centre
    detector = file.create_group(DETECTOR)
    detector["distance"] = setup.distance
    detector["x_pixel_size"] = detector["y_pixel_size"] = size
    # The outer corner of the first pixel, as seen from the beam: x, y, z.
    corner = [(-0.5 - column) * size, (-0.5 - row) * size, setup.distance]
    detector["corner_position"] = corner
    detector["basis_vectors"] = [[0.0, size, 0.0], [size, 0.0, 0.0]]
    file["entry_1/instrument_1/source_1/energy"] = setup.photon_energy * EV_IN_JOULE
    image = file.create_group("entry_1/image_1")
    image["data_type"] = "intensities"
    image["data_space"] = "diffraction"
    image["image_center"] = [column, row, 0.0]


def _write_frames(file: h5py.File, frames: xr.Dataset) -> None:
    names = frames["run_name"].values.astype(str)[frames["run"].values]
    text = h5py.string_dtype()
    file.create_dataset("entry_1/run", data=names.astype(object), dtype=text)
    index = frames["index"].values
    places = np.array([f"{name}:{i}" for name, i in zip(names, index, strict=True)], object)
    file.create_dataset("entry_1/experiment_identifier", data=places, dtype=text)
    for name in NUMBERS:
        if name in frames.variables:
            file[f"entry_1/{name}"] = frames[name].values
    file[f"{DETECTOR}/score"] = frames["score"].values
    present = [tag for tag in TAGS if tag in frames.variables]
    rows = [frames[tag].values.astype(np.int8) for tag in present]
    tags = file.create_dataset(f"{DETECTOR}/tags", data=np.array(rows).reshape(len(present), -1))
    tags.attrs["headings"] = present


def _stack(
    file: h5py.File, name: str, dtype: Any, n_frames: int, shape: tuple[int, int]
) -> h5py.Dataset:
    chunks = {"chunks": (1, *shape), "compression": "gzip", "compression_opts": 1, "shuffle": True}
    return file.create_dataset(
        f"{DETECTOR}/{name}", (n_frames, *shape), dtype, **(chunks if n_frames else {})
    )


def _write_links(file: h5py.File) -> None:
    file[f"{DETECTOR}/data"].attrs["axes"] = "experiment_identifier:y:x"
    for name in ("data", "mask", "tags"):
        file[f"entry_1/image_1/{name}"] = h5py.SoftLink(f"/{DETECTOR}/{name}")
    file["entry_1/data_1/data"] = h5py.SoftLink(f"/{DETECTOR}/data")


def _read(file: h5py.File) -> xr.Dataset:
    detector, entry = file[DETECTOR], file["entry_1"]
    patterns = detector["data"][()].astype(np.float32)
    patterns[detector["mask"][()] != 0] = np.nan
    runs, codes = np.unique(entry["run"].asstr()[()], return_inverse=True)
    frame = {"run": codes.astype(np.int32), "score": detector["score"][()]}
    frame |= {name: entry[name][()] for name in NUMBERS if name in entry}
    tags = detector["tags"]
    headings = map(str, tags.attrs["headings"])
    frame |= {tag: row.astype(bool) for tag, row in zip(headings, tags[()], strict=True)}
    column, row, _ = map(float, entry["image_1/image_center"][()])
    setup = Setup(
        photon_energy=float(entry["instrument_1/source_1/energy"][()] / EV_IN_JOULE),
        distance=float(detector["distance"][()]),
        pixel_size=float(detector["x_pixel_size"][()]),
        beam_centre=(row, column),
    )
    provenance = {name: text.asstr()[()] for name, text in entry["process_1"].items()}
    return annotate(
        xr.Dataset(
            {name: ("frame", values) for name, values in frame.items()}
            | {"patterns": (("frame", "y", "x"), patterns), "run_name": ("run_code", runs)},
            attrs={"setup": asdict(setup), "provenance": provenance},
        )
    )

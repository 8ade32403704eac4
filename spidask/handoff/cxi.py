"""The selected patterns as a CXI file: their photons, or the raw frames where they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import numpy.typing as npt
import xarray as xr

from spidask.config import Config, Geometry
from spidask.errors import ConfigError, DataError
from spidask.frames.mask import PixelBit, mask_bits, usable_pixels
from spidask.handoff.layout import Layout
from spidask.handoff.photons import iterate_photons, list_frames
from spidask.io import cxi, emc
from spidask.io.calibration import recipe_of
from spidask.io.hdf5 import open_hdf5
from spidask.io.labels import locate
from spidask.io.maps import is_inside, load_map
from spidask.io.runs import take_frames


def write_photons_cxi(
    chosen: xr.Dataset,
    places: npt.NDArray[np.intp],
    geometry: Geometry,
    layout: Layout,
    provenance: Mapping[str, str],
    out: Path,
) -> None:
    """Write the photons of the selected frames.

    Parameters
    ----------
    chosen : xarray.Dataset
        The selected frames.
    places : numpy.ndarray
        Where each stands in photons.h5, increasing, shape (frame,).
    geometry : Geometry
        Where the detector stands.
    layout : Layout
        Its pixels.
    provenance : mapping of str to str
        What made the file.
    out : pathlib.Path
        Output folder, in which ``selection.cxi`` is written.
    """
    row, column = (
        (centre - start - (layout.bin - 1) / 2) / layout.bin
        for centre, start in zip(_beam(geometry), layout.corner, strict=True)
    )
    setup = cxi.Setup(
        photon_energy=geometry.photon_energy_ev,
        distance=geometry.detector_distance_m,
        pixel_size=geometry.pixel_size_um * 1e-6 * layout.bin,
        beam_centre=(row, column),
    )
    blocks = _stored_patterns(out / "dragonfly" / "photons.h5", places, layout)
    cxi.write_cxi(out / "selection.cxi", blocks, chosen, layout.hidden.shape, setup, provenance)


def write_virtual_cxi(
    chosen: xr.Dataset,
    frames: xr.Dataset | None,
    geometry: Geometry,
    config: Config,
    provenance: Mapping[str, str],
    out: Path,
) -> None:
    """Write where the raw frames of the selection are, as one stack that is no second copy.

    Parameters
    ----------
    chosen : xarray.Dataset
        The selected frames.
    frames : xarray.Dataset or None
        The runs as of `open_runs`.
    geometry : Geometry
        Where the detector stands.
    config : Config
        The beamtime's settings.
    provenance : mapping of str to str
        What made the file.
    out : pathlib.Path
        Output folder, in which ``selection.cxi`` is written.

    Raises
    ------
    ConfigError
        If the runs are no stacks (frame, y, x) in HDF5 files, their pixels are assembled or
        binned, or masks of each frame are no bits of CXI.
    DataError
        If there are no frames.
    """
    if frames is None:
        raise DataError(f"{out}/selection.cxi: a virtual dataset needs the runs; give their frames")
    raw = take_frames(frames, locate(list_frames(chosen), frames))
    shape = tuple(frames.attrs["frame_shape"])
    paths, datasets = (
        raw[name].values.astype(str)[raw["file"].values] for name in ("file_path", "file_dataset")
    )
    for path, dataset in dict.fromkeys(zip(paths.tolist(), datasets.tolist(), strict=True)):
        if not _holds_stack(path, dataset, shape):
            raise ConfigError(
                "handoff.cxi: virtual is for frames that lie in HDF5 files as they are used, and "
                f"{path} holds none of {shape[0]} x {shape[1]} pixels; set it to copy"
            )
    names = chosen["run_name"].values.astype(str)
    codes = np.unique(chosen["run"].values)
    settings = {name: config.preprocessing_of(name) for name in names[codes].tolist()}
    if any(one.assembly or one.bin > 1 for one in settings.values()):
        raise ConfigError(
            "handoff.cxi: virtual is of raw frames, and preprocessing.assembly or bin makes other "
            "pixels of them; set it to copy"
        )
    setup = cxi.Setup(
        photon_energy=geometry.photon_energy_ev,
        distance=geometry.detector_distance_m,
        pixel_size=geometry.pixel_size_um * 1e-6,
        beam_centre=_beam(geometry),
    )
    # As in detector.h5: a pixel that any of the runs masks is bad.
    mask, inside = _inside_mask(config, paths, shape)
    for name in settings:
        mask |= _raw_mask(config, name, shape)
    masked = {"mask": config.runs.mask, "mask_good": config.runs.mask_good}
    calibration = {name: one.model_dump(mode="json") | masked for name, one in settings.items()}
    source = cxi.RawFrames(
        paths=paths,
        rows=raw["row"].values,
        lengths=raw["file_frames"].values[raw["file"].values],
        datasets=datasets,
        shape=shape,
        dtype=frames["frames"].dtype,
        mask=inside,
        mask_dtype=open_hdf5(paths[0], inside).dtype.str if inside else "uint32",
    )
    provenance = {**provenance, "calibration": json.dumps(calibration)}
    cxi.write_virtual(out / "selection.cxi", source, mask, chosen, setup, provenance)


def _holds_stack(path: str, dataset: str, shape: tuple[int, ...]) -> bool:
    return bool(h5py.is_hdf5(path) and open_hdf5(path, dataset).shape[1:] == shape)


def _beam(geometry: Geometry) -> tuple[float, float]:
    return geometry.beam_centre_y_px, geometry.beam_centre_x_px


def _raw_mask(config: Config, run: str, shape: tuple[int, int]) -> npt.NDArray[np.uint32]:
    recipe = recipe_of(config, run, shape)
    if recipe.mask is None:
        return np.zeros(shape, np.uint32)
    mask = load_map(recipe.mask, shape, (0, shape[0], 0, shape[1]), "mask")
    return mask_bits(usable_pixels(mask, recipe.mask_good))


def _inside_mask(
    config: Config, paths: npt.NDArray[np.str_], shape: tuple[int, int]
) -> tuple[npt.NDArray[np.uint32], str]:
    """Give the mask in the files of the frames, or its path where each frame has one."""
    runs, mask = config.runs, np.zeros(shape, np.uint32)
    if runs.mask is None or not is_inside(runs.mask):
        return mask, ""
    place = runs.mask[1:]
    arrays = [open_hdf5(path, place) for path in dict.fromkeys(paths.tolist())]
    if all(array.ndim == 2 for array in arrays):
        for array in arrays:
            mask |= mask_bits(usable_pixels(array[()], runs.mask_good))
        return mask, ""
    kinds = {array.dtype if array.ndim == 3 else None for array in arrays}
    if runs.mask_good != "zero" or len(kinds) > 1 or arrays[0].dtype.kind not in "iu":
        raise ConfigError(
            f"handoff.cxi: virtual leads to masks of each frame, {place}, only where all files "
            "have such, of one dtype, in the bits of CXI (runs.mask_good: zero); set it to copy"
        )
    return mask, place


def _stored_patterns(
    path: Path, places: npt.NDArray[np.intp], layout: Layout
) -> Iterator[cxi.Block]:
    shape = layout.hidden.shape
    for rows, photons in iterate_photons(path, places):
        bits = np.tile(mask_bits(~layout.hidden).ravel(), (len(rows), 1))
        for row, missing in enumerate(emc.read_missing(path, rows)):
            bits[row, missing] |= np.uint32(PixelBit.MISSING)
        yield photons.toarray().reshape(-1, *shape), bits.reshape(-1, *shape)

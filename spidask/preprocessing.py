"""From raw frames to patterns, hits and diameters, lazily."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import chain, pairwise
from operator import attrgetter
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import xarray as xr
from dask.graph_manipulation import clone
from numpy.typing import DTypeLike, NDArray

from spidask.config import Config, Geometry, Hits, Sizing
from spidask.errors import ConfigError, DataError
from spidask.frames import geometry, hits, sizing
from spidask.frames.calibrate import calibrate
from spidask.io.calibration import Recipe, load_calibration, recipe_of
from spidask.schema import annotate, validate
from spidask.stopwatch import measure

SIZES = ("diameter", "fit_quality", "fluence")
"""What the fit of a sphere gives."""


def preprocess(frames: xr.Dataset, config: Config) -> xr.Dataset:
    """Calibrate the region of interest of every frame and find the hits.

    Parameters
    ----------
    frames : xarray.Dataset
        What `open_runs` gives: `frames` (frame, y, x), a Dask array of any integer or float dtype
        in ADU, with the coordinates `run` (frame) and `run_name` (run_code).
    config : Config
        The sections `preprocessing`, `hits`, `runs.mask`, `geometry` and `per_run` are used.

    Returns
    -------
    xarray.Dataset
        The same coordinates with, all lazy: `patterns` (frame, y, x) float32 [photons], NaN where
        masked, missing, saturated or unreadable; `photon_count` float32 [photons], `lit_pixels`
        int32, `hit_score` float32, `readable` bool and `hit` bool, all (frame). The coordinates
        `y` and `x` are pixel numbers of the full frame, or of the image assembled from it, in
        binned pixels.

    Raises
    ------
    ConfigError
        If the region does not fit into the frames, or the image assembled from them, or differs
        from run to run.
    DataError
        If `frames` is not there, not lazy, or not whole along y and x. A calibration file that
        cannot be used raises when a block is computed.

    Notes
    -----
    Where frames have a `photon_energy`, ADU per photon are scaled by it over the one of the section
    `geometry`, unless they are 1, which says that the frames are in photons.
    Only the region's pixels are read; with common mode, those of the ASICs that it touches; of a
    detector of several modules that is assembled, the modules that it touches. Dask reads whole
    frames where one block holds several runs, as `take_frames` may make them.
    The adaptive threshold takes each stretch of one run for the run: give whole runs, and slice
    the result.
    """
    _refuse_unsuitable(frames, "frames")
    recipes = _recipes(frames, config)
    region = next(iter(recipes.values())).region
    names = frames["run_name"].values
    calibrated = [
        _calibrate(frames, part, recipes[code], config, str(names[code]))
        for code, part in _stretches(frames)
    ]
    out = frames.drop_vars(["frames", "y", "x"], errors="ignore").assign_coords(
        y=np.arange(region[0], region[1]), x=np.arange(region[2], region[3])
    )
    found = {}
    for name, (dims, dtype, take) in TAKEN.items():
        sizes = {dim: out.sizes[dim] for dim in dims[1:]}
        parts = [map_frames(take, one, dtype=dtype, **sizes) for one in calibrated]
        found[name] = xr.Variable(dims, da.concatenate(parts))
    found["hit"] = xr.Variable("frame", _hit(found, _stretches(frames), config.hits))
    return annotate(out.assign(found))


def measure_sizes(patterns: xr.Dataset, config: Config) -> xr.Dataset:
    """Fit every hit with the form factor of a sphere.

    Parameters
    ----------
    patterns : xarray.Dataset
        What `preprocess` gives.
    config : Config
        The sections `sizing`, `geometry` and `per_run` are used.

    Returns
    -------
    xarray.Dataset
        The same with `diameter` float32 [nm], `fit_quality` float32 and `fluence` float32
        [photons/um^2], all (frame), lazy; NaN for frames that are no hits. The photon energy is
        that of the frame where it has a `photon_energy`, see `geometry.energy_ratio`, else that of
        the section `geometry`.

    Raises
    ------
    DataError
        If `patterns` or `hit` is missing, not lazy, or has another form than `preprocess` gives.
    """
    _refuse_unsuitable(patterns, "patterns")
    validate(patterns, "hit")
    names = patterns["run_name"].values
    corner = (int(patterns["y"][0]), int(patterns["x"][0]))
    parts = [
        _sizes(patterns, part, config.geometry_of(str(names[code])), config.sizing, corner)
        for code, part in _stretches(patterns)
    ]
    sizes = da.concatenate(parts)
    found = {name: ("frame", sizes[:, i]) for i, name in enumerate(SIZES)}
    return annotate(patterns.assign(found))


def map_frames(
    function: Callable[..., Any], *arrays: da.Array | None, dtype: DTypeLike, **sizes: int
) -> da.Array:
    """Apply a function to each block of frames, lazily.

    Parameters
    ----------
    function : callable
        Takes one block of each array, and gives one of shape (frame, *sizes).
    *arrays : dask.array.Array or None
        Shape (frame, ...), chunked along the first axis alone and alike; for None the function
        gets None.
    dtype : dtype-like
        What the function gives.
    **sizes : int
        Length of each axis after the first of what it gives, by name.

    Returns
    -------
    dask.array.Array
        Shape (frame, *sizes).

    Notes
    -----
    `dask.array.map_blocks` copies every block of which an axis is dropped.
    """
    axes = [
        None if array is None else ("frame", *(f"{i}.{k}" for k in range(1, array.ndim)))
        for i, array in enumerate(arrays)
    ]
    mapped: da.Array = da.blockwise(
        partial(_apply, function),
        ("frame", *sizes),
        *chain(*zip(arrays, axes, strict=True)),
        new_axes=sizes,
        dtype=dtype,
        meta=np.empty((0,) * (1 + len(sizes)), dtype),
    )
    return mapped


def _apply(function: Callable[..., Any], *blocks: Any) -> Any:
    return function(*(_unpack(block) for block in blocks))


def _unpack(block: Any) -> Any:
    # Dask hands over the blocks along axes that are gone as nested lists; here, of one block.
    while isinstance(block, list):
        (block,) = block
    return block


class Calibrated(NamedTuple):
    """What one pass over a block of frames gives, see `calibrate`; patterns may be on a device."""

    patterns: Any
    counts: NDArray[np.float64]


def _photon_count(block: Calibrated) -> NDArray[np.float32]:
    return block.counts[:, 0].astype(np.float32)


def _lit_pixels(block: Calibrated) -> NDArray[np.int32]:
    return block.counts[:, 1].astype(np.int32)


def _hit_score(block: Calibrated) -> NDArray[np.float32]:
    return hits.hit_score(block.counts, math.prod(block.patterns.shape[1:]))


def _readable(block: Calibrated) -> NDArray[np.bool_]:
    return block.counts[:, 2] > 0


TAKEN: dict[str, tuple[tuple[str, ...], type, Callable[[Calibrated], Any]]] = {
    "patterns": (("frame", "y", "x"), np.float32, attrgetter("patterns")),
    "photon_count": (("frame",), np.float32, _photon_count),
    "lit_pixels": (("frame",), np.int32, _lit_pixels),
    "hit_score": (("frame",), np.float32, _hit_score),
    "readable": (("frame",), np.bool_, _readable),
}
"""Variables made of calibrated blocks: dimensions, dtype and how."""


@lru_cache(maxsize=16)
def load_library(
    place: Geometry, settings: Sizing, corner: tuple[int, int], shape: tuple[int, int]
) -> sizing.SphereLibrary:
    """Prepare the fit of spheres for a region of the detector, once per process.

    Parameters
    ----------
    place : Geometry
        Where the detector stands.
    settings : Sizing
        Section `sizing`.
    corner : tuple of int
        First row and column of the region in the full frame.
    shape : tuple of int
        Rows and columns of the region.

    Returns
    -------
    sizing.SphereLibrary
        For `sizing.fit_spheres`.
    """
    pixel, distance = place.pixel_size_um * 1e-6, place.detector_distance_m
    length = geometry.wavelength(place.photon_energy_ev)
    y, x = geometry.pixel_positions(
        corner[0] + np.arange(shape[0]),
        corner[1] + np.arange(shape[1]),
        (place.beam_centre_y_px, place.beam_centre_x_px),
        pixel,
    )
    q = np.linalg.norm(geometry.momentum_transfer(y, x, distance, length), axis=0)
    exposure = geometry.solid_angle(y, x, distance, pixel) * geometry.polarization(y, x, distance)
    q_step = 2 * np.pi / length * pixel / distance
    return sizing.sphere_library(q, exposure, q_step, settings.range_nm, settings.particle)


def _refuse_unsuitable(dataset: xr.Dataset, name: str) -> None:
    validate(dataset, name, "run", "run_name")
    array = dataset[name]
    if not isinstance(array.data, da.Array):
        raise DataError(
            f"'{name}' is in memory, expected a Dask array; use .chunk({{'frame': 128}})", name=name
        )
    for dim in ("y", "x"):
        if len(array.chunksizes[dim]) > 1:
            raise DataError(
                f"'{name}' is chunked along {dim}, expected along 'frame' alone; "
                f"use .chunk({{'{dim}': -1}})",
                name=name,
            )
    if 0 in array.shape:
        raise DataError(
            f"'{name}' has shape {array.shape}, expected at least one frame; "
            "see attrs['unreadable_files']",
            name=name,
        )


def _recipes(frames: xr.Dataset, config: Config) -> dict[int, Recipe]:
    names = frames["run_name"].values
    shape = (frames.sizes["y"], frames.sizes["x"])
    codes = np.unique(frames["run"].values)
    recipes = {int(c): recipe_of(config, str(names[c]), shape) for c in codes}
    regions = {recipe.region for recipe in recipes.values()}
    if len(regions) > 1:
        raise ConfigError(
            f"per_run: {len(regions)} regions of interest; all runs must share one, "
            "because patterns of one Dataset have one pair of axes"
        )
    return recipes


def _stretches(dataset: xr.Dataset) -> list[tuple[int, slice]]:
    # Neighbouring frames of the same run, as (run code, where).
    codes = dataset["run"].values
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    return [(int(codes[a]), slice(a, b)) for a, b in pairwise(edges)]


def _calibrate(
    frames: xr.Dataset, part: slice, recipe: Recipe, config: Config, run: str
) -> da.Array:
    """Calibrate a stretch of a run: one `Calibrated` for each block."""
    whole = frames["frames"].data
    # The slices come first, each of an array of its own, so that Dask reads no more than these.
    arrays = [whole, *(clone(whole, seed=i) for i in range(1, len(recipe.read)))]
    raw = [
        array[part, y0:y1, x0:x1]
        for array, (y0, y1, x0, x1) in zip(arrays, recipe.read, strict=True)
    ]
    in_photons = recipe.adu_per_photon == 1
    place = config.geometry_of(run)
    ratio = None if in_photons else _energy_ratio(frames, part, raw[0].chunks[0], place)
    work = partial(_calibrate_block, recipe=recipe, lit_photons=config.hits.lit_photons)
    return map_frames(work, ratio, *raw, dtype=object)


def _energy_ratio(
    dataset: xr.Dataset, part: slice, chunks: tuple[int, ...], place: Geometry
) -> da.Array | None:
    """Ratio of each frame's photon energy, shape (frame,); nothing where none is known."""
    if "photon_energy" not in dataset.variables:
        return None
    energy = dataset["photon_energy"].variable[part].chunk({"frame": chunks}).data
    ratio: da.Array = energy.map_blocks(
        geometry.energy_ratio, expected=place.photon_energy_ev, dtype=np.float64
    )
    return ratio


@measure("preprocess")
def _calibrate_block(
    ratio: NDArray[np.float64] | None,
    *blocks: NDArray[Any],
    recipe: Recipe,
    lit_photons: float,
) -> Calibrated:
    block = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
    return Calibrated(*calibrate(block, load_calibration(recipe), ratio, lit_photons=lit_photons))


def _hit(
    found: dict[str, xr.Variable], stretches: list[tuple[int, slice]], settings: Hits
) -> da.Array:
    score, lit, readable = (found[name].data for name in ("hit_score", "lit_pixels", "readable"))
    if settings.threshold == "adaptive":
        runs = [_adaptive(score[part], lit[part], settings) for _, part in stretches]
        hit: da.Array = da.concatenate(runs)
    else:
        hit = hits.apply_threshold(score, lit, readable, settings)
    return hit


def _adaptive(score: da.Array, lit: da.Array, settings: Hits) -> da.Array:
    # Blocks of whole windows, and back again: only numbers per frame move between tasks.
    windows = (hits.align_to_windows(score.chunks[0], settings.window),)
    found: da.Array = da.map_blocks(
        partial(hits.find_hits, window=settings.window, n_sigma=settings.n_sigma),
        score.rechunk(windows),
        lit.rechunk(windows),
        dtype=bool,
        meta=np.empty(0, bool),
    )
    aligned: da.Array = found.rechunk(score.chunks)
    return aligned


def _sizes(
    patterns: xr.Dataset,
    part: slice,
    place: Geometry,
    settings: Sizing,
    corner: tuple[int, int],
) -> da.Array:
    array, hit = patterns["patterns"].data[part], patterns["hit"].data[part]
    ratio = _energy_ratio(patterns, part, array.chunks[0], place)
    work = partial(_size_block, place=place, settings=settings, corner=corner)
    return map_frames(work, array, hit, ratio, dtype=np.float32, size=len(SIZES))


@measure("size")
def _size_block(
    block: NDArray[np.float32],
    hit: NDArray[np.bool_],
    ratio: NDArray[np.float64] | None,
    *,
    place: Geometry,
    settings: Sizing,
    corner: tuple[int, int],
) -> NDArray[np.float32]:
    out = np.full((len(block), len(SIZES)), np.nan, np.float32)
    found = np.flatnonzero(hit)
    if len(found):
        library = load_library(place, settings, corner, block.shape[1:])
        photons, exposures = sizing.radial_sums(block[found], library.bins, library.exposure)
        diameter, quality, fluence = sizing.fit_spheres(photons, exposures, library)
        if ratio is not None:
            diameter, fluence = sizing.rescale(diameter, fluence, ratio[found])
        out[found] = np.stack([diameter, quality, fluence], axis=1)
    return out

"""What a run needs to be calibrated: its recipe, small enough for a graph, and its maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spidask.config import Config, Preprocessing
from spidask.errors import ConfigError, DataError
from spidask.frames.calibrate import Calibration, whole_asics
from spidask.frames.mask import usable_pixels
from spidask.io.maps import Region, check_map, is_inside, load_map, modified


@dataclass(frozen=True)
class Recipe:
    """What a task has to know to calibrate a run: paths and numbers, never arrays.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns of a frame.
    region : tuple of int
        Region of interest: first row, row after the last, first column, column after the last.
    read : tuple of int
        Region to read, in the same form: larger where common mode needs whole ASICs.
    dark, gain, mask : str or None
        Where the maps are, see `load_map`.
    mask_good : {"nonzero", "zero"}
        Which mask values are usable pixels.
    adu_per_photon, photon_threshold, saturation_adu, max_adu : float
        As in `Calibration`.
    asic : tuple of int or None
        Rows and columns that share one common-mode offset.
    """

    shape: tuple[int, int]
    region: Region
    read: Region
    dark: str | None
    gain: str | None
    mask: str | None
    mask_good: Literal["nonzero", "zero"]
    adu_per_photon: float
    photon_threshold: float
    saturation_adu: float
    asic: tuple[int, int] | None
    max_adu: float

    def maps(self) -> list[tuple[str, str]]:
        """List the maps that are configured.

        Returns
        -------
        list of tuple of str
            What it is, and where.
        """
        maps = (("dark", self.dark), ("gain", self.gain), ("mask", self.mask))
        return [(what, location) for what, location in maps if location]


def recipe_of(config: Config, run: str, shape: tuple[int, int]) -> Recipe:
    """Collect the calibration settings of a run.

    Parameters
    ----------
    config : Config
        The sections `preprocessing`, `runs` and `per_run` are used.
    run : str
        The run's name; it takes the place of ``{run}`` in paths.
    shape : tuple of int
        Rows and columns of a frame.

    Returns
    -------
    Recipe
        Paths and numbers; no file is touched.

    Raises
    ------
    ConfigError
        If the region of interest reaches beyond the frame.
    """
    settings = config.preprocessing_of(run)
    region = _region(settings, shape)
    common = settings.common_mode
    asic = common.asic if common else None
    return Recipe(
        shape=shape,
        region=region,
        read=whole_asics(region, asic, shape),
        dark=_of_run(settings.dark, run),
        gain=_of_run(settings.gain, run),
        mask=_of_run(None if is_inside(config.runs.mask) else config.runs.mask, run),
        mask_good=config.runs.mask_good,
        adu_per_photon=settings.adu_per_photon,
        photon_threshold=settings.photon_threshold,
        saturation_adu=settings.saturation_adu or np.inf,
        asic=asic,
        max_adu=common.max_adu if common else 0.0,
    )


def check_calibration(recipe: Recipe) -> Iterator[str]:
    """Look at the headers of a run's calibration maps.

    Parameters
    ----------
    recipe : Recipe
        From `recipe_of`.

    Yields
    ------
    str
        One problem, with its remedy: a file or dataset that is missing, or of another shape.
    """
    for what, location in recipe.maps():
        try:
            check_map(location, recipe.shape, what, stack=what == "dark")
        except DataError as error:
            yield str(error)


def load_calibration(recipe: Recipe) -> Calibration:
    """Read the calibration of a run, once per process and again where a file has changed.

    Parameters
    ----------
    recipe : Recipe
        From `recipe_of`.

    Returns
    -------
    Calibration
        Maps of the region to read. A pixel is bad where the mask says so, where dark or gain is
        not finite, and where the gain is not positive.

    Raises
    ------
    DataError
        If a map cannot be used, or no pixel of the region of interest is usable.
    """
    return _load(recipe, tuple(modified(location, what) for what, location in recipe.maps()))


@lru_cache(maxsize=16)
def _load(recipe: Recipe, _modified: tuple[int, ...]) -> Calibration:
    maps = {
        what: load_map(location, recipe.shape, recipe.read, what, stack=what == "dark")
        for what, location in recipe.maps()
    }
    y0, y1, x0, x1 = recipe.read
    dark = maps.get("dark", np.zeros((y1 - y0, x1 - x0)))
    gain = maps.get("gain", np.ones((y1 - y0, x1 - x0)))
    good = np.isfinite(dark) & np.isfinite(gain) & (gain > 0)
    if "mask" in maps:
        good &= usable_pixels(maps["mask"], recipe.mask_good)
    _refuse_all_bad(good, recipe)
    return Calibration(
        offset=np.where(good, dark, np.nan).astype(np.float32),
        divisor=(np.where(good, gain, 1) * recipe.adu_per_photon).astype(np.float32),
        photon_threshold=recipe.photon_threshold,
        saturation_adu=recipe.saturation_adu,
        asic=recipe.asic,
        max_adu=recipe.max_adu,
    )


def _refuse_all_bad(good: NDArray[np.bool_], recipe: Recipe) -> None:
    (y0, y1, x0, x1), (top, _, left, _) = recipe.region, recipe.read
    if not good[y0 - top : y1 - top, x0 - left : x1 - left].any():
        raise DataError(
            f"{', '.join(location for _, location in recipe.maps())}: no usable pixel in rows "
            f"{y0} to {y1 - 1} and columns {x0} to {x1 - 1}; correct preprocessing.region, or "
            f"runs.mask_good, which says that usable pixels are {recipe.mask_good}",
            region=recipe.region,
        )


def _region(settings: Preprocessing, shape: tuple[int, int]) -> Region:
    if settings.region is None:
        return (0, shape[0], 0, shape[1])
    for name, span, size in zip("yx", (settings.region.y, settings.region.x), shape, strict=True):
        if span[1] > size:
            raise ConfigError(
                f"preprocessing.region.{name}: {list(span)} reaches beyond the frame, which has "
                f"{size} pixels along {name}; give [first, one after the last]",
                found=span,
                expected=size,
            )
    return (*settings.region.y, *settings.region.x)


def _of_run(location: str | None, run: str) -> str | None:
    return location.replace("{run}", run) if location else None

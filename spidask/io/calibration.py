"""What a run needs to be calibrated: its recipe, small enough for a graph, and its maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spidask.assembly import Assembly, read_assembly
from spidask.config import Config, Preprocessing
from spidask.errors import ConfigError, DataError
from spidask.frames.assemble import pixel_index, renumber, touched_modules
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
    image : tuple of int
        Rows and columns of what regions are cut from: the frame, or the image that is assembled
        from it, binned.
    region : tuple of int
        Region of interest of the image: first row, row after the last, first column, column after
        the last.
    read : tuple of tuple of int
        Regions of the frame to read, in the same form, one below the other: larger where common
        mode needs whole ASICs; whole modules where an image is assembled.
    assembly : str or None
        Geometry file by which the image is assembled.
    bin : int
        Pixels along each axis that are summed into one of the image.
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
    image: tuple[int, int]
    region: Region
    read: tuple[Region, ...]
    assembly: str | None
    bin: int
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

    @property
    def n_read(self) -> int:
        """Pixels of a frame that are read."""
        return sum((y1 - y0) * (x1 - x0) for y0, y1, x0, x1 in self.read)


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
        Paths and numbers; of all files, only that of the geometry is touched.

    Raises
    ------
    ConfigError
        If the region of interest reaches beyond the frame or the assembled image, or the geometry
        file cannot be used.
    """
    settings = config.preprocessing_of(run)
    assembly = _assembly(settings, shape)
    image, width = assembly.index.shape if assembly else shape, settings.bin
    region = _region(settings, image)
    common = settings.common_mode
    asic = common.asic if common else None
    return Recipe(
        shape=shape,
        image=(image[0] // width, image[1] // width),
        region=(region[0] // width, region[1] // width, region[2] // width, region[3] // width),
        read=_modules(assembly, region) if assembly else (whole_asics(region, asic, shape),),
        assembly=settings.assembly,
        bin=width,
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
    files = [*recipe.maps(), *([("assembly", recipe.assembly)] if recipe.assembly else [])]
    return _load(recipe, tuple(modified(location, what) for what, location in files))


def usable_share(recipe: Recipe) -> float:
    """Tell how much of the region of interest the mask leaves.

    Parameters
    ----------
    recipe : Recipe
        From `recipe_of`, with a mask.

    Returns
    -------
    float
        Usable pixels among those of the region that are on the detector.

    Raises
    ------
    DataError
        If the mask cannot be used.
    """
    assert recipe.mask
    good = usable_pixels(_load_map(recipe, "mask", recipe.mask), recipe.mask_good)
    index = _index(recipe)
    return float(good.ravel()[index[index >= 0]].mean())


@lru_cache(maxsize=16)
def _load(recipe: Recipe, _modified: tuple[int, ...]) -> Calibration:
    maps = {what: _load_map(recipe, what, location) for what, location in recipe.maps()}
    rows, columns = (
        sum(y1 - y0 for y0, y1, *_ in recipe.read),
        recipe.read[0][3] - recipe.read[0][2],
    )
    dark = maps.get("dark", np.zeros((rows, columns)))
    gain = maps.get("gain", np.ones((rows, columns)))
    good = np.isfinite(dark) & np.isfinite(gain) & (gain > 0)
    if "mask" in maps:
        good &= usable_pixels(maps["mask"], recipe.mask_good)
    index = _index(recipe)
    _refuse_all_bad(good, recipe, index)
    return Calibration(
        offset=np.where(good, dark, np.nan).astype(np.float32),
        divisor=(np.where(good, gain, 1) * recipe.adu_per_photon).astype(np.float32),
        photon_threshold=recipe.photon_threshold,
        saturation_adu=recipe.saturation_adu,
        asic=recipe.asic,
        max_adu=recipe.max_adu,
        index=None if (recipe.region,) == recipe.read and not recipe.assembly else index,
    )


def _load_map(recipe: Recipe, what: str, location: str) -> NDArray[Any]:
    parts = [
        load_map(location, recipe.shape, region, what, stack=what == "dark")
        for region in recipe.read
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _index(recipe: Recipe) -> NDArray[np.int32]:
    """Give the pixels of the block that is read of which each pixel of the region is the sum."""
    if recipe.assembly:
        assembly = read_assembly(recipe.assembly)
        index = pixel_index(assembly.index, recipe.region, recipe.bin)
        size = assembly.module_rows * assembly.stack[1]
        return renumber(index, touched_modules(index, size), size)
    y0, y1, x0, x1 = recipe.read[0]
    numbers = np.full(recipe.shape, -1, np.int32)
    numbers[y0:y1, x0:x1] = np.arange((y1 - y0) * (x1 - x0)).reshape(y1 - y0, x1 - x0)
    return pixel_index(numbers, recipe.region, recipe.bin)


def _refuse_all_bad(good: NDArray[np.bool_], recipe: Recipe, index: NDArray[np.int32]) -> None:
    if not good.ravel()[index[index >= 0]].any():
        y0, y1, x0, x1 = recipe.region
        raise DataError(
            f"{', '.join(location for _, location in recipe.maps())}: no usable pixel in rows "
            f"{y0} to {y1 - 1} and columns {x0} to {x1 - 1}; correct preprocessing.region, or "
            f"runs.mask_good, which says that usable pixels are {recipe.mask_good}",
            region=recipe.region,
        )


def _assembly(settings: Preprocessing, shape: tuple[int, int]) -> Assembly | None:
    if settings.assembly is None:
        return None
    assembly = read_assembly(settings.assembly)
    if assembly.stack != shape:
        raise ConfigError(
            f"preprocessing.assembly: {settings.assembly}: is of another detector: its stacked "
            f"modules have {assembly.stack} pixels, the frames {shape}; give that of this "
            "detector, or leave it out where frames are whole images",
            found=assembly.stack,
            expected=shape,
        )
    return assembly


def _modules(assembly: Assembly, region: Region) -> tuple[Region, ...]:
    """Give the stretches of modules that a region of the assembled image touches."""
    y0, y1, x0, x1 = region
    rows, columns = assembly.module_rows, assembly.stack[1]
    touched = touched_modules(assembly.index[y0:y1, x0:x1], rows * columns)
    if not len(touched):
        raise ConfigError(
            f"preprocessing.region: y {[y0, y1]}, x {[x0, x1]} holds nothing but gaps of the "
            "assembled image; move it"
        )
    stretches = np.split(touched, np.flatnonzero(np.diff(touched) > 1) + 1)
    return tuple((int(s[0]) * rows, int(s[-1] + 1) * rows, 0, columns) for s in stretches)


def _region(settings: Preprocessing, shape: tuple[int, int]) -> Region:
    width = settings.bin
    # What does not fill a binned pixel at the edge is left out.
    whole = (shape[0] // width * width, shape[1] // width * width)
    if settings.region is None:
        return (0, whole[0], 0, whole[1])
    what = "assembled image" if settings.assembly else "frame"
    for name, span, size in zip("yx", (settings.region.y, settings.region.x), shape, strict=True):
        if span[1] > size:
            raise ConfigError(
                f"preprocessing.region.{name}: {list(span)} reaches beyond the {what}, which has "
                f"{size} pixels along {name}; give [first, one after the last]",
                found=span,
                expected=size,
            )
        if span[0] % width or span[1] % width:
            raise ConfigError(
                f"preprocessing.region.{name}: {list(span)} cuts binned pixels; give multiples of "
                f"preprocessing.bin, which is {width}",
                found=span,
            )
    return (*settings.region.y, *settings.region.x)


def _of_run(location: str | None, run: str) -> str | None:
    return location.replace("{run}", run) if location else None

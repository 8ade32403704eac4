"""Geometry files of detectors of several modules: where each pixel lies in the assembled image."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spidask.errors import ConfigError

DETECTORS = {128: "AGIPD_1MGeometry", 64: "AGIPD_500K2GGeometry", 256: "LPD_1MGeometry"}
"""Panels of a geometry file to the class of extra-geom that reads it; square pixels only."""
JUNGFRAU = 1024, 8
"""Columns and panels of a module of JUNGFRAU, of which a detector has any number."""
INSTALL = "pip install 'spidask[euxfel]'"


@dataclass(frozen=True, eq=False)
class Assembly:
    """Where the pixels of stacked modules lie in the assembled image.

    Attributes
    ----------
    index : numpy.ndarray
        Position of each pixel of the image in the flattened stack of modules, shape (y, x),
        int32; -1 in the gaps.
    stack : tuple of int
        Rows and columns of the stacked modules: modules times slow scan, and fast scan.
    module_rows : int
        Rows of one module.
    beam : tuple of float
        Row and column of the geometry file's origin in the image; pixel centres are integers.
    pixel_size : float
        Edge of a pixel, m.
    displacement : float
        Largest distance between a pixel's place in the image and where the file has it, px.

    Notes
    -----
    Each tile of the detector is turned to the nearest right angle and moved to the nearest whole
    pixel, as extra-geom does, so that every pixel of the image is one pixel of the detector.
    `beam` is the origin that fits the moved pixels best, and distances along the beam that differ
    between tiles are left out.
    """

    index: NDArray[np.int32]
    stack: tuple[int, int]
    module_rows: int
    beam: tuple[float, float]
    pixel_size: float
    displacement: float


def read_assembly(path: str) -> Assembly:
    """Read a geometry file, once per process and again where it has changed.

    Parameters
    ----------
    path : str
        A CrystFEL geometry file of AGIPD 1M, AGIPD 500K or LPD 1M.

    Returns
    -------
    Assembly
        Pixel index, beam centre and pixel size.

    Raises
    ------
    ConfigError
        If extra-geom is not installed, or the file is missing, no geometry, or of another
        detector.
    """
    return _read(path, *_modified(path))


def _modified(path: str) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError as error:
        raise ConfigError(
            f"preprocessing.assembly: {path}: {error.strerror}; expected a CrystFEL .geom file; "
            "correct the path",
            path=path,
        ) from None
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=8)
def _read(path: str, _size: int, _mtime_ns: int) -> Assembly:
    try:
        import extra_geom
    except ImportError as error:
        raise ConfigError(
            f"preprocessing.assembly: geometry files are read by extra-geom ({error}); {INSTALL}"
        ) from None
    try:
        name = _detector(Path(path).read_text())
        geometry = getattr(extra_geom, name).from_crystfel_geom(path)
        shape = geometry.expected_data_shape
        numbers = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
        image, _ = geometry.position_modules(numbers)
    except ConfigError:
        raise
    except Exception as error:  # extra-geom's parser raises whatever it stumbles over
        raise ConfigError(
            f"preprocessing.assembly: {path}: is no geometry that extra-geom reads: "
            f"{type(error).__name__} {error}; expected a CrystFEL .geom file",
            path=path,
        ) from None
    y, x = np.nonzero(np.isfinite(image))
    places = geometry.get_pixel_positions().reshape(-1, 3)[image[y, x].astype(np.int64)]
    # The rows and columns that the origin would have, were each pixel where the file has it.
    origin = np.stack([y, x], 1) - places[:, 1::-1] / geometry.pixel_size
    beam = origin.mean(axis=0)
    return Assembly(
        index=np.where(np.isfinite(image), image, -1).astype(np.int32),
        stack=(shape[0] * shape[1], shape[2]),
        module_rows=shape[1],
        beam=(float(beam[0]), float(beam[1])),
        pixel_size=float(geometry.pixel_size),
        displacement=float(np.linalg.norm(origin - beam, axis=1).max()),
    )


def _detector(text: str) -> str:
    panels = set(re.findall(r"^\s*(\w+)/corner_x\s*=", text, re.MULTILINE))
    last = max(map(int, re.findall(r"/max_fs\s*=\s*(\d+)", text)), default=0)
    if (last + 1, len(panels) % JUNGFRAU[1]) == (JUNGFRAU[0], 0):
        return "JUNGFRAUGeometry"
    if len(panels) not in DETECTORS:
        known = ", ".join(f"{n} ({name[:-8]})" for n, name in DETECTORS.items())
        raise ConfigError(
            f"preprocessing.assembly: the geometry file has {len(panels)} panels with a corner_x, "
            f"expected {known} or {JUNGFRAU[1]} a module (JUNGFRAU); give that of this detector"
        )
    return DETECTORS[len(panels)]

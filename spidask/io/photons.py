"""Frames in Dragonfly's files of photons, HDF5 and binary, read region first.

Source: https://github.com/duaneloh/Dragonfly/wiki and the readers of dragonfly-spi 0.1.0.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from spidask.errors import DataError
from spidask.io.arrays import claims_too_much
from spidask.io.dragonfly import read_detector
from spidask.io.emc import HEADER_BYTES, KINDS, PARTS, open_lists
from spidask.io.hdf5 import N_OPEN, open_hdf5
from spidask.io.layout import PHOTONS, FileLayout
from spidask.io.stack import StackInfo, fill_value, read_frames

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MISSING = "place_missing"
"""List of pixels without a number, which spidask writes beside those of Dragonfly."""
GRID_TOLERANCE_PX = 1e-3
"""By so much may pixels stand off a rectangular grid."""


@dataclass(frozen=True)
class PhotonsReader:
    """Frames of photons in a file of Dragonfly, opened where it is read.

    Attributes
    ----------
    path : str
        The file.
    shape : tuple of int
        Number of frames, rows and columns.
    dtype : numpy.dtype
        Dtype of what is returned.
    """

    path: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of dimensions, always 3."""
        return 3

    def __getitem__(self, key: object) -> NDArray[Any]:
        """Read frames (slice or integers), rows and columns (slices)."""
        kind = _Hdf5 if _is_hdf5(self.path) else _Binary
        source = kind(self.path, self.shape[1:])
        return read_frames(source, key, self.shape, self.dtype, self.path)


def are_photons(path: str) -> bool:
    """Tell whether a file holds photons of Dragonfly, by its first bytes and not by its name.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    bool
        True for HDF5 files with ``num_pix`` and ``place_ones``, and for other files that begin
        with a header of Dragonfly; False where nothing can be read.
    """
    try:
        if not _is_hdf5(path):
            return _read_header(path) is not None
        with h5py.File(path, "r", driver="stdio", locking=False) as file:
            return PHOTONS in file and "num_pix" in file
    except (OSError, RuntimeError, ValueError, KeyError):
        return False


def scan_photons(path: str, layout: FileLayout) -> StackInfo:
    """Read what the header of a file of photons says.

    Parameters
    ----------
    path : str
        The file.
    layout : FileLayout
        With the shape of a frame, which the file does not know.

    Returns
    -------
    StackInfo
        int32, float64 for dense binary files of that kind, float32 where pixels may be missing;
        no photon is read.

    Raises
    ------
    DataError
        If there is no shape, it has another number of pixels, or the file is cut off; the message
        has no path in it.
    """
    try:
        n_frames, n_pixels, dtype = (
            _describe_hdf5(path) if _is_hdf5(path) else _describe_binary(path)
        )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        text = " ".join(str(error).split())
        raise DataError(f"holds no photons of Dragonfly: {text}; transfer it again") from error
    if layout.shape is None:
        raise DataError(
            f"holds photons of Dragonfly, {n_pixels} pixels a frame; set runs.shape to [rows, "
            "columns] or to its detector file"
        )
    rows, columns = layout.shape
    if rows * columns != n_pixels:
        raise DataError(
            f"holds {n_pixels} pixels a frame, expected {rows} x {columns}; correct runs.shape"
        )
    if not n_frames:
        raise DataError("holds no frames; leave the file out of runs.files")
    if layout.mask is not None or layout.identity is not None:
        raise DataError("holds photons alone; leave out runs.identity and masks in the files")
    return StackInfo((n_frames, rows, columns), dtype, None, {}, PHOTONS)


def find_shape(path: str) -> tuple[int, int]:
    """Find rows and columns of the frames that a detector file of Dragonfly describes.

    Parameters
    ----------
    path : str
        The detector file, HDF5.

    Returns
    -------
    tuple of int
        Rows and columns.

    Raises
    ------
    DataError
        If it is no detector file, or its pixels are not a whole rectangle, one row after the
        other.

    Notes
    -----
    From q = ewald_rad (x/f, y/f, detd/f - 1) follows x = detd qx / (qz + ewald_rad), in pixels,
    and the same for y.
    """
    detector = read_detector(path)
    ahead = detector.qz + detector.ewald_rad
    if not len(ahead) or not (np.abs(ahead) > 0).all():
        raise DataError(f"{path}: describes no flat detector; give runs.shape as [rows, columns]")
    places = np.stack([detector.qx, detector.qy]) * (detector.detd / ahead)
    for slow, fast in (places, places[::-1]):
        shape = _grid(slow, fast)
        if shape:
            return shape
    raise DataError(
        f"{path}: its {len(ahead)} pixels are no whole rectangle, row after row, so photons have "
        "no place in an image; use frames of pixels, or photons of a full detector",
        path=str(path),
    )


def _grid(slow: NDArray[np.float64], fast: NDArray[np.float64]) -> tuple[int, int] | None:
    breaks = np.flatnonzero(np.abs(np.diff(slow)) > 0.5)
    columns = int(breaks[0]) + 1 if len(breaks) else len(slow)
    if len(slow) % columns:
        return None
    slow, fast = slow.reshape(-1, columns), fast.reshape(-1, columns)
    flat = np.abs(slow - slow[:, :1]).max() + np.abs(fast - fast[:1]).max()
    steps = [np.diff(slow[:, 0]), np.diff(fast[0])]
    uneven = sum(float(np.ptp(step)) for step in steps if len(step))
    moved = all(np.abs(step).min() > 0.5 for step in steps if len(step))
    return slow.shape if flat + uneven < GRID_TOLERANCE_PX and moved else None


class _Hdf5:
    """Photons as lists for each frame, as an array that can be sliced."""

    def __init__(self, path: str, frame: tuple[int, int]) -> None:
        self.path = path
        self.lists, n_pixels = open_lists(open_hdf5(path, PHOTONS).file)
        # Frames of another size are filled, as those of any file whose frames have another shape.
        fits = n_pixels == frame[0] * frame[1]
        self.shape = (len(self.lists[PHOTONS]), *(frame if fits else (1, n_pixels)))

    def __getitem__(self, key: tuple[slice, slice, slice]) -> NDArray[Any]:
        rows, y, x = key
        if any(claims_too_much(part, rows) for part in self.lists.values()):
            raise ValueError("a list that claims to be longer than the file")
        ones, multi, counts = (self.lists[name][rows] for name in PARTS)
        out = _spread(*_join(ones, multi, counts), self.shape, (y, x))
        if MISSING in self.lists:
            missing = list(self.lists[MISSING][rows])
            hidden = _spread(missing, [np.ones(len(m), bool) for m in missing], self.shape, (y, x))
            out = np.where(hidden, np.float32(fill_value(np.dtype("f4"))), out.astype(np.float32))
        return out


class _Binary:
    """Photons in a binary file, as an array that can be sliced."""

    def __init__(self, path: str, frame: tuple[int, int]) -> None:
        stat = os.stat(path)
        self.path = path
        self.kind, n_frames, n_pixels, self.starts = _offsets(path, stat.st_size, stat.st_mtime_ns)
        fits = n_pixels == frame[0] * frame[1]
        self.shape = (n_frames, *(frame if fits else (1, n_pixels)))

    def __getitem__(self, key: tuple[slice, slice, slice]) -> NDArray[Any]:
        rows, y, x = key
        n_frames = self.shape[0]
        if self.kind:
            dense = np.memmap(self.path, KINDS[self.kind], "r", HEADER_BYTES, self.shape)
            return np.array(dense[rows, y, x])
        n_ones, n_multi = (int(start[-1]) for start in self.starts)
        first = HEADER_BYTES + 8 * n_frames
        lists = zip(
            (self.starts[0], self.starts[1], self.starts[1]),
            (first, first + 4 * n_ones, first + 4 * (n_ones + n_multi)),
            strict=True,
        )
        ones, multi, counts = (_read_lists(self.path, begin, s, rows) for s, begin in lists)
        return _spread(*_join(ones, multi, counts), self.shape, (y, x))


def _read_lists(
    path: str, begin: int, starts: NDArray[np.int64], rows: slice
) -> list[NDArray[np.int32]]:
    cuts = starts[rows.start : rows.stop + 1]
    n = int(cuts[-1] - cuts[0])
    values = np.fromfile(path, "<i4", n, offset=begin + 4 * int(cuts[0]))
    if len(values) < n:
        raise EOFError(f"{path} is cut off")
    return np.split(values, (cuts[1:-1] - cuts[0]).tolist())


Lists = list[NDArray[Any]]


def _join(ones: Lists, multi: Lists, counts: Lists) -> tuple[Lists, Lists]:
    """Give places and photons of each frame."""
    ends = zip(ones, multi, counts, strict=True)
    joined = [(np.concatenate(p[:2]), np.append(np.ones(len(p[0]), np.int32), p[2])) for p in ends]
    return [places for places, _ in joined], [photons for _, photons in joined]


def _spread(
    places: Lists,
    values: Lists,
    shape: tuple[int, int, int],
    region: tuple[slice, slice],
) -> NDArray[Any]:
    """Put the values of each frame at their places; no more than the region is made."""
    (y0, y1, _), (x0, x1, _) = (part.indices(n) for part, n in zip(region, shape[1:], strict=True))
    out = np.zeros((len(places), y1 - y0, x1 - x0), values[0].dtype if values else np.int32)
    for frame, where, what in zip(out, places, values, strict=True):
        if len(where) != len(what):
            raise ValueError("places and counts differ in length")
        if len(where) and not 0 <= where.min() <= where.max() < shape[1] * shape[2]:
            raise ValueError(f"positions {where.min()} to {where.max()} in a frame of {shape[1:]}")
        y, x = np.divmod(where, shape[2])
        inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
        np.add.at(frame, (y[inside] - y0, x[inside] - x0), what[inside])
    return out


def _is_hdf5(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def _read_header(path: str) -> tuple[int, int, int] | None:
    """Give frames, pixels and kind; None where this is no header."""
    words = np.fromfile(path, "<i4", HEADER_BYTES // 4)
    if len(words) < HEADER_BYTES // 4:
        return None
    n_frames, n_pixels, kind = map(int, words[:3])
    return (n_frames, n_pixels, kind) if n_frames >= 0 and n_pixels > 0 and kind in KINDS else None


def _describe_hdf5(path: str) -> tuple[int, int, str]:
    with h5py.File(path, "r", driver="stdio", locking=False) as file:
        lists, n_pixels = open_lists(file)
        return len(lists[PHOTONS]), n_pixels, "<f4" if MISSING in lists else "<i4"


def _describe_binary(path: str) -> tuple[int, int, str]:
    stat = os.stat(path)
    kind, n_frames, n_pixels, starts = _offsets(path, stat.st_size, stat.st_mtime_ns)
    needed = HEADER_BYTES
    if kind:
        needed += n_frames * n_pixels * np.dtype(KINDS[kind]).itemsize
    else:
        needed += 8 * n_frames + 4 * int(starts[0][-1] + 2 * starts[1][-1])
    if stat.st_size < needed:
        raise ValueError(f"truncated, {stat.st_size} of {needed} bytes")
    return n_frames, n_pixels, KINDS[kind] if kind else "<i4"


Offsets = tuple[int, int, int, tuple[NDArray[np.int64], NDArray[np.int64]]]


@lru_cache(maxsize=N_OPEN)
def _offsets(path: str, size: int, mtime_ns: int) -> Offsets:
    """Give kind, frames, pixels, and where each frame's ones and multiples begin."""
    del mtime_ns  # in the key, so that a rewritten file is opened anew
    header = _read_header(path)
    if header is None:
        raise ValueError("no header")
    n_frames, n_pixels, kind = header
    lengths = np.zeros((2, 0), "<i4")
    if not kind:
        if size < HEADER_BYTES + 8 * n_frames:
            raise ValueError(f"truncated, {size} of at least {HEADER_BYTES + 8 * n_frames} bytes")
        lengths = np.fromfile(path, "<i4", 2 * n_frames, offset=HEADER_BYTES).reshape(2, n_frames)
        if lengths.min(initial=0) < 0:
            raise ValueError("a negative number of pixels in a frame")
    ones, multi = (np.concatenate([[0], np.cumsum(row, dtype=np.int64)]) for row in lengths)
    return kind, n_frames, n_pixels, (ones, multi)

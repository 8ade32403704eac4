"""Where things stand inside a file: frames at usual places, masks, energies, identities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from spidask.errors import DataError

DATASET = "entry_1/data_1/data"
"""Where CXI files have their frames, and so the default of ``runs.dataset``."""

USUAL_STACKS = (
    "entry_*/data_*/data",
    "entry_*/instrument_*/detector_*/photons",
    "entry_*/instrument_*/detector_*/data",
    "entry_*/image_*/data",
    "photonConverter/pnccdBack/photonCount",
)
"""Places of frames that are looked at in this order where the default is not there: CXI 1.5,
psocake (photons before ADU), CXIDB 58."""

MOST_FRAMES = 20_000_000
"""Of a file: 12 million frames are a long beamtime."""

MOST_PIXELS = 2**25
"""Of a frame: the largest detectors have 18 million."""

PHOTONS = "place_ones"
"""First of the lists in which Dragonfly keeps photons; stands for the dataset of such files."""

ALL_BITS = 0xFFFFFFFF

JOULE_PER_EV = 1.602176634e-19

ENERGIES: dict[str, tuple[tuple[str, float], ...]] = {
    "photon_energy": (
        ("LCLS/photon_energy_eV", 1.0),
        ("{entry}/photon_energy", 1.0),
        ("{entry}/instrument_1/source_1/energy", 1 / JOULE_PER_EV),
        ("{entry}/source_1/energy", 1 / JOULE_PER_EV),
    ),
    "pulse_energy": (
        ("{entry}/pulse_energy", 1.0),
        ("{entry}/instrument_1/source_1/pulse_energy", 1e3),
        ("{entry}/source_1/pulse_energy", 1e3),
    ),
}
"""Where files have the energies of the vocabulary, and the factor that gives its unit."""


@dataclass(frozen=True)
class FileLayout:
    """What a user says of the inside of files, besides the path of the frames.

    Attributes
    ----------
    shape : tuple of int or None
        Rows and columns of frames in files that hold pixels without a shape (Dragonfly).
    mask : str or None
        Path of a mask inside each file, of shape (y, x) or (frame, y, x).
    mask_good : {"nonzero", "zero"}
        Which values of it are usable pixels.
    identity : tuple of str or None
        Paths of two arrays, shape (frame,), that name the original run and the index in it.
    mask_bits : int
        Bits of the mask beside the frames of several modules that make a pixel missing; 0 leaves
        that mask alone.
    """

    shape: tuple[int, int] | None = None
    mask: str | None = None
    mask_good: Literal["nonzero", "zero"] = "nonzero"
    identity: tuple[str, str] | None = None
    mask_bits: int = ALL_BITS


ANYTHING = FileLayout()
"""Frames with shapes, and nothing else that has to be there."""

Describe = Callable[[str], tuple[tuple[int, ...], str] | None]
"""From the path of an array to its shape and the kind of its dtype, None where there is none."""


def find_stack(root: Any, dataset: str) -> str:
    """Find the frames in a file whose `dataset` is not there.

    Parameters
    ----------
    root : h5py.File or zarr.Group
        The open HDF5 file or Zarr group.
    dataset : str
        Path that was looked at; only where it is `DATASET`, the default, others are tried.

    Returns
    -------
    str
        Path of the stack; empty where there is none at the usual places.

    Raises
    ------
    DataError
        If the first place that holds any holds several different ones.
    """
    if dataset != DATASET:
        return ""
    for place in USUAL_STACKS:
        found = find_arrays(root, place, ndim=3)
        if len(found) > 1:
            raise DataError(
                f"holds several stacks of frames, {', '.join(found)}; set runs.dataset",
                stacks=found,
            )
        if found:
            return found[0]
    return ""


def find_arrays(root: Any, place: str, ndim: int) -> list[str]:
    """List the arrays at a place that is given by patterns.

    Parameters
    ----------
    root : h5py.File or zarr.Group
        The open file or folder.
    place : str
        Path with patterns for names, such as ``entry_*/data_*/data``.
    ndim : int
        Dimensions that the arrays have.

    Returns
    -------
    list of str
        Paths; of several links to one array the first.
    """
    found: dict[Any, str] = {}
    for path in expand(root, place):
        item = root.get(path)
        if getattr(item, "ndim", None) == ndim:
            # Zarr has no links, and no ids.
            found.setdefault(getattr(item, "id", path), path)
    return list(found.values())


def expand(root: Any, place: str) -> Iterator[str]:
    """List what is at a place that is given by patterns.

    Parameters
    ----------
    root : h5py.File or zarr.Group
        The open file or folder.
    place : str
        As for `find_arrays`.

    Yields
    ------
    str
        Paths of arrays and groups, in natural order.
    """
    paths = [""]
    for pattern in place.split("/"):
        paths = [
            f"{path}/{name}".lstrip("/")
            for path in paths
            for name in _names(root.get(path) if path else root)
            if fnmatchcase(name, pattern)
        ]
    yield from paths


def _names(group: Any) -> list[str]:
    return (
        sorted(group.keys(), key=lambda name: (len(name), name)) if hasattr(group, "keys") else []
    )


def refuse_absurd(shape: Sequence[int]) -> None:
    """Refuse a stack of frames that no detector and no beamtime gives, before memory is taken.

    Parameters
    ----------
    shape : sequence of int
        Number of frames, rows and columns.

    Raises
    ------
    DataError
        If it claims more than `MOST_FRAMES` or `MOST_PIXELS`.
    """
    if shape[0] > MOST_FRAMES or math.prod(shape[1:]) > MOST_PIXELS:
        raise DataError(
            f"claims the shape {tuple(shape)}, more than {MOST_FRAMES} frames or {MOST_PIXELS} "
            "pixels of one; transfer it again"
        )


def find_energies(dataset: str, n_frames: int, describe: Describe) -> dict[str, list[Any]]:
    """Look for the photon energy and the pulse energy of the frames at the known places.

    Parameters
    ----------
    dataset : str
        Path of the frames inside the file.
    n_frames : int
        Number of frames.
    describe : callable
        As for `find_event_ids`.

    Returns
    -------
    dict
        Name in the vocabulary to the path of one number, or of one for each frame, and the
        factor that gives the vocabulary's unit.
    """
    first = dataset.strip("/").split("/")[0]
    entry = first if first.startswith("entry") else "entry_1"
    found: dict[str, list[Any]] = {}
    for name, variants in ENERGIES.items():
        for text, factor in variants:
            path = text.format(entry=entry)
            there = describe(path)
            if there and there[0] in ((), (1,), (n_frames,)) and there[1] in "iuf":
                found[name] = [path, factor]
                break
    return found


def refuse_unfitting(layout: FileLayout, shape: tuple[int, ...], describe: Describe) -> None:
    """Refuse a file that lacks the arrays of a layout, or holds them in another form.

    Parameters
    ----------
    layout : FileLayout
        What the user says.
    shape : tuple of int
        Frames, rows and columns of its stack.
    describe : callable
        As for `find_event_ids`.

    Raises
    ------
    DataError
        If one is missing or unfit; names the setting.
    """
    if layout.mask is not None:
        found = describe(layout.mask)
        if not found or found[0] not in (shape, shape[1:]) or found[1] not in "biuf":
            raise DataError(
                f"{_say_array('mask', layout.mask, found)}, expected {shape[1:]} or {shape}; "
                "set runs.mask"
            )
    for path, kinds in zip(layout.identity or (), ("iuOSTU", "iu"), strict=False):
        found = describe(path)
        if not found or found[0] != shape[:1] or found[1] not in kinds:
            raise DataError(
                f"{_say_array('array', path, found)}, expected one number for each of "
                f"{shape[0]} frames, whole, or a text for the run; set runs.identity to the paths "
                "of run and index"
            )


def _say_array(what: str, path: str, found: tuple[tuple[int, ...], str] | None) -> str:
    return f"{what} '{path}' has shape {found[0]}" if found else f"has no {what} '{path}'"

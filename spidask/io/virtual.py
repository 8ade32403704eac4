"""Stacks of several modules in one HDF5 file, such as extra-data's virtual CXI."""

from __future__ import annotations

from collections.abc import Mapping

import h5py

from spidask.errors import DataError
from spidask.io.arrays import find_array, list_broken_sources
from spidask.io.links import find_home, has_link, name_mask
from spidask.io.modules import Layout, Piece, find_faults, fits_mask

MOST_MODULES = 128
"""More are no detector; images in colour have as many rows."""


def find_modules(path: str, array: h5py.Dataset) -> Layout:
    """Find the frames of each module.

    Parameters
    ----------
    path : str
        The file.
    array : h5py.Dataset
        Corrected frames (frame, module, slow scan, fast scan), or raw ones (frame, module, plane,
        slow scan, fast scan), of which plane 0 is the image; as a rule virtual.

    Returns
    -------
    Layout
        Where the modules' frames are. What a virtual dataset maps to no file, or to one that is
        gone, is missing, whatever value the dataset has there.

    Raises
    ------
    DataError
        If the array has other dimensions; the message has no path in it.
    """
    if array.ndim not in (4, 5) or 0 in array.shape or array.shape[1] > MOST_MODULES:
        raise DataError(
            f"has {array.ndim} dimensions {array.shape}, expected (frame, y, x) or, of up to "
            f"{MOST_MODULES} modules, (frame, module, slow scan, fast scan); set runs.dataset to "
            "such a stack"
        )
    n_frames, n_modules = array.shape[:2]
    lost = list_broken_sources(array) if array.is_virtual else {}
    spans = _mapped(array, lost) if array.is_virtual else {}
    place = name_mask(find_home(array.file, array.name))
    mask = find_array(array.file, place)
    fits = mask is not None and fits_mask(mask, array)
    is_odd = not fits and has_link(array.file, place)
    if mask is None or not fits:
        mask = None
    elif mask.is_virtual:
        broken = {k: v for k, v in list_broken_sources(mask).items() if k not in lost}
        for name, why in broken.items():
            raise DataError(f"has a virtual mask whose source {name} {why}; transfer that again")
    modules = []
    for module in range(n_modules):
        lead = (module, 0)[: array.ndim - 3]
        found = sorted(spans.get(module, [])) if array.is_virtual else [(0, n_frames)]
        modules.append(
            [
                Piece(a, b - a, path, a, array.name, lead, mask.name if mask else "")
                for a, b in found
            ]
        )
    faults = find_faults(n_frames, tuple(modules))
    if lost:
        faults["unreadable_files"] = [f"{name} {why}" for name, why in lost.items()]
    if is_odd:
        faults["odd_masks"] = 1
    return Layout(
        n_frames,
        (array.shape[-2], array.shape[-1]),
        array.dtype.newbyteorder("="),
        tuple(modules),
        {},
        faults,
    )


def _mapped(array: h5py.Dataset, lost: Mapping[str, str]) -> dict[int, list[tuple[int, int]]]:
    """List the frames of each module that are mapped to files that can be read."""
    spans: dict[int, list[tuple[int, int]]] = {}
    for part in array.virtual_sources():
        if str(part.file_name) in lost:
            continue
        first, last = part.vspace.get_select_bounds()
        for module in range(first[1], last[1] + 1):
            spans.setdefault(module, []).append((int(first[0]), int(last[0]) + 1))
    return spans

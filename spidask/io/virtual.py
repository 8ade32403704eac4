"""Stacks of several modules in one HDF5 file, such as extra-data's virtual CXI."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import h5py

from spidask.errors import DataError
from spidask.io.links import find_home, name_mask
from spidask.io.modules import Layout, Piece, find_faults

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
    spans, lost = _mapped(path, array) if array.is_virtual else ({}, [])
    mask = array.file.get(name_mask(find_home(array.file, array.name)))
    if not (isinstance(mask, h5py.Dataset) and mask.shape[: array.ndim] == array.shape):
        mask = None
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
        faults["unreadable_files"] = lost
    return Layout(
        n_frames,
        (array.shape[-2], array.shape[-1]),
        array.dtype.newbyteorder("="),
        tuple(modules),
        {},
        faults,
    )


def _mapped(path: str, array: h5py.Dataset) -> tuple[dict[int, list[tuple[int, int]]], list[str]]:
    """List the frames of each module that are mapped to files that are there, and files gone."""
    spans: dict[int, list[tuple[int, int]]] = {}
    gone = find_gone(path, array)
    sources = sorted(array.virtual_sources(), key=lambda source: str(source.file_name))
    for name, parts in groupby(sources, key=lambda source: str(source.file_name)):
        if name in gone:
            continue
        for part in parts:
            first, last = part.vspace.get_select_bounds()
            for module in range(first[1], last[1] + 1):
                spans.setdefault(module, []).append((int(first[0]), int(last[0]) + 1))
    return spans, [f"{name} is gone" for name in gone]


def find_gone(path: str, array: h5py.Dataset) -> list[str]:
    """List the files to which a dataset leads and that are not there.

    Parameters
    ----------
    path : str
        The file.
    array : h5py.Dataset
        A dataset in it, virtual or not.

    Returns
    -------
    list of str
        Their names as the dataset has them; HDF5 gives fill values for what they held.
    """
    sources = array.virtual_sources() if array.is_virtual else []
    # A relative path is one from the virtual file's folder.
    folder, names = Path(path).parent, sorted({str(source.file_name) for source in sources})
    return [name for name in names if name != "." and not folder.joinpath(name).is_file()]

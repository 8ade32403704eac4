"""Other files that an array of an HDF5 file is made of."""

from __future__ import annotations

import os
from contextlib import suppress

import h5py


def locate_source(path: str, name: str) -> str:
    """Find a file that another one names, as HDF5 does.

    Parameters
    ----------
    path : str
        The file with a virtual array.
    name : str
        What it calls a source.

    Returns
    -------
    str
        In the virtual file's folder, else where we are.
    """
    beside = os.path.join(os.path.dirname(os.path.realpath(path)), name)
    return name if os.path.isfile(name) and not os.path.isfile(beside) else beside


def list_sources(path: str, array: h5py.Dataset) -> list[str]:
    """List the files besides its own in which the values of an array lie.

    Parameters
    ----------
    path : str
        The file by which the array was opened.
    array : h5py.Dataset
        The array; virtual, reached by a link into another file, or with values of its own in
        files that are no HDF5, it has sources.

    Returns
    -------
    list of str
        Real paths, sorted, also of files that are gone.
    """
    found: set[tuple[str, str]] = set()
    _collect(array, found)
    return sorted({file for file, _ in found} - {os.path.realpath(path)})


def _collect(array: h5py.Dataset, found: set[tuple[str, str]]) -> None:
    file = os.path.realpath(array.file.filename)
    found.add((file, array.name))
    found.update(
        (os.path.realpath(locate_source(file, name)), "") for name, *_ in array.external or ()
    )
    named = array.virtual_sources() if array.is_virtual else []
    for name, dataset in {(str(one.file_name), str(one.dset_name)) for one in named}:
        place = file if name == "." else os.path.realpath(locate_source(file, name))
        if (place, dataset) in found:
            continue
        found.add((place, dataset))
        # What cannot be opened is told by those who read it.
        with (
            suppress(OSError, KeyError, RuntimeError, ValueError),
            h5py.File(place, "r", driver="stdio", locking=False) as source,
        ):
            if isinstance(nested := source.get(dataset), h5py.Dataset):
                _collect(nested, found)

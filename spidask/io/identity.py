"""Runs and indices that a file of hits gives its frames: those of the frames they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import h5py
import numpy as np
from numpy.typing import NDArray

from spidask.errors import DataError
from spidask.io.arrays import ABSENT, read_whole
from spidask.io.files import natural_key
from spidask.io.hdf5 import open_hdf5
from spidask.io.links import has_link
from spidask.io.stack import EVENT_IDS, PLACES, UNDECODABLE
from spidask.io.zarr import is_zarr, open_zarr


@dataclass(frozen=True)
class Originals:
    """Frames of several files in the order of their original runs and indices.

    Attributes
    ----------
    names : list of str
        The runs, in natural order.
    run : numpy.ndarray
        Code of each frame's run, shape (frame,), int32.
    index : numpy.ndarray
        Its position in that run, shape (frame,), int64; not consecutive.
    file, row : numpy.ndarray
        Where it lies, both of shape (frame,), int64.
    n_repeated : int
        Frames whose run and index another frame has too.
    """

    names: list[str]
    run: NDArray[np.int32]
    index: NDArray[np.int64]
    file: NDArray[np.int64]
    row: NDArray[np.int64]
    n_repeated: int


def read_originals(paths: Sequence[str], names: tuple[str, str]) -> Originals:
    """Read which frames of which runs the frames of some files are.

    Parameters
    ----------
    paths : sequence of str
        HDF5 files and Zarr folders.
    names : tuple of str
        Paths of two arrays inside each: the run, as text or as a number, and the index in it.

    Returns
    -------
    Originals
        All frames, sorted by run and index; those that share both stand in the files' order. Run
        number 182 is named ``r0182``.

    Raises
    ------
    DataError
        If an array cannot be read, or an index is negative.
    """
    runs: list[NDArray[np.str_]] = []
    indices: list[NDArray[np.int64]] = []
    for path in paths:
        runs.append(name_runs(_read(path, names[0])))
        indices.append(_read(path, names[1]).astype(np.int64))
        if indices[-1].min(initial=0) < 0:
            raise DataError(
                f"{path}: {names[1]} holds {indices[-1].min()}, expected positions from 0 on; "
                "set runs.identity",
                path=path,
            )
    file = np.repeat(np.arange(len(paths)), [len(one) for one in indices])
    row = np.concatenate([np.arange(len(one)) for one in indices])
    index = np.concatenate(indices)
    found, code = np.unique(np.concatenate(runs), return_inverse=True)
    ordered = sorted(found.tolist(), key=natural_key)
    rank = np.array([ordered.index(name) for name in found.tolist()], np.int32)
    run = rank[code]
    order = np.lexsort((row, file, index, run))
    run, index = run[order], index[order]
    same = (np.diff(run) == 0) & (np.diff(index) == 0)
    repeated = np.append(same, False) | np.append(False, same)
    return Originals(ordered, run, index, file[order], row[order], int(repeated.sum()))


def name_runs(runs: NDArray[np.generic]) -> NDArray[np.str_]:
    """Name runs that a table gives as text or as numbers.

    Parameters
    ----------
    runs : numpy.ndarray
        Shape (frame,), text, bytes or integers.

    Returns
    -------
    numpy.ndarray
        Names, shape (frame,), text.

    Examples
    --------
    >>> name_runs(np.array([182, 9])).tolist(), name_runs(np.array([b"r9"], object)).tolist()
    (['r0182', 'r0009'], ['r9'])
    """
    if runs.dtype.kind in "iu":
        numbers, code = np.unique(runs, return_inverse=True)
        return np.array([f"r{number:04d}" for number in numbers.tolist()], np.str_)[code]
    return np.array(
        [one.decode() if isinstance(one, bytes) else str(one) for one in runs.tolist()], np.str_
    )


def _read(path: str, name: str) -> NDArray[np.generic]:
    try:
        array = open_zarr(path, name) if is_zarr(path) else open_hdf5(path, name)
        return read_whole(array, path)
    except UNDECODABLE as error:
        raise DataError(
            f"{path}: {name} cannot be read: {' '.join(str(error).split())}; set runs.identity",
            path=path,
        ) from error


def refuse_lost_names(file: h5py.File, place: str, path: str) -> None:
    """Refuse a file whose frames have names that cannot be opened.

    Parameters
    ----------
    file : h5py.File
        The open file.
    place : str
        Path of what is known of each frame, such as a label.
    path : str
        The file, for the message.

    Raises
    ------
    DataError
        If a run, an index or an event id is there and leads nowhere: the place in the file would
        then stand for another frame.
    """
    names = {name for variants in EVENT_IDS.values() for names in variants for name in names}
    above = place.strip("/").split("/")[:-1]
    groups = {*("/".join(above[:n]) for n in range(len(above) + 1)), *PLACES}
    for name in sorted(f"{group}/{name}" for group in groups for name in names | {"run", "index"}):
        try:
            lost = has_link(file, name) and file.get(name) is None
        except ABSENT:
            lost = True
        if lost:
            raise DataError(
                f"{path}: '{name.lstrip('/')}', which names the frames, cannot be opened; transfer "
                "the file again, or set labels.run",
                path=path,
            )

"""Links inside HDF5 files: where frames lie to which others lead, and the mask beside them."""

from __future__ import annotations

import h5py

from spidask.io.arrays import ABSENT
from spidask.io.layout import USUAL_STACKS, expand


def find_home(file: h5py.File, dataset: str) -> str:
    """Find where frames lie that a link may lead to.

    Parameters
    ----------
    file : h5py.File
        The open file.
    dataset : str
        Path of the frames, through any links.

    Returns
    -------
    str
        Path without soft links; of several such paths, one beside which there is a mask.
    """
    home, frames = follow_links(file, dataset), file[dataset]
    places = (other for usual in USUAL_STACKS for other in expand(file, usual))
    others = (follow_links(file, other) for other in places if _look_up(file, other) == frames)
    return next((one for one in (home, *others) if name_mask(one) in file), home)


def _look_up(file: h5py.File, name: str) -> object:
    try:
        return file.get(name)
    except ABSENT:
        return None


def has_link(group: h5py.Group, name: str) -> bool:
    """Tell whether a name is there, whatever it leads to.

    Parameters
    ----------
    group : h5py.Group or h5py.File
        Where to look.
    name : str
        Path in it.

    Returns
    -------
    bool
        True too where it cannot be opened.
    """
    try:
        return group.get(name, getlink=True) is not None
    except ABSENT:
        return True


def find_mask(path: str, dataset: str) -> str:
    """Find a mask beside frames that is not read with them.

    Parameters
    ----------
    path : str
        A file.
    dataset : str
        Path of the frames in it.

    Returns
    -------
    str
        Path of the mask; empty where there is none, for frames of several modules, which come
        with theirs, and for files that are no HDF5.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            mask = name_mask(find_home(file, dataset))
            is_mask = isinstance(file.get(mask), h5py.Dataset)
            return mask if is_mask and file[dataset].ndim == 3 else ""
    except ABSENT:
        return ""


def name_mask(dataset: str) -> str:
    """Name the mask beside frames.

    Parameters
    ----------
    dataset : str
        Path of the frames.

    Returns
    -------
    str
        Path of the mask in the same group, which may not be there.
    """
    return f"{dataset.strip('/').rpartition('/')[0]}/mask".lstrip("/")


def follow_links(file: h5py.File, dataset: str) -> str:
    """Give the path of an array without soft links.

    Parameters
    ----------
    file : h5py.File
        The open file.
    dataset : str
        Path of the array, through any links.

    Returns
    -------
    str
        Path of the same array.
    """
    parts = [part for part in dataset.split("/") if part not in ("", ".")]
    for n in range(len(parts)):
        link = file.get("/".join(parts[: n + 1]), getlink=True)
        if isinstance(link, h5py.SoftLink):
            above = [] if link.path.startswith("/") else parts[:n]
            return follow_links(file, "/".join([*above, link.path, *parts[n + 1 :]]))
    return "/".join(parts)

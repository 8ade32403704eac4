"""What stands beside the frames in an HDF5 file or a Zarr folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import zarr

MOST_BYTES = 512 * 2**20
"""A larger array beside the frames is no label of theirs."""


@dataclass
class Contents:
    """Everything in a file but its stacks.

    Attributes
    ----------
    home : str
        Path of the frames, not of a link to them.
    arrays : dict
        Path to the values of arrays of at most two dimensions: numbers, booleans or texts.
    attributes : dict
        Path of an array or a group to its attributes; the root is the empty path.
    links : dict
        Path to the path to which it links.
    scales : dict
        Path of an array to those that are the scales of its dimensions, as in netCDF; an empty
        path where there is none.
    left_out : list of str
        Paths of what is neither: other stacks, links to other files, compound values.
    """

    home: str
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    scales: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def read_hdf5_contents(path: str, dataset: str, skip: frozenset[str] = frozenset()) -> Contents:
    """Read what stands beside the frames in an HDF5 file.

    Parameters
    ----------
    path : str
        The file.
    dataset : str
        Path of the frames, no link to them.
    skip : frozenset of str
        Paths to pass over.

    Returns
    -------
    Contents
        In memory.
    """
    with h5py.File(path, "r", locking=False) as file:
        out = Contents(dataset.strip("/"))
        passed = [out.home, *(name for name in skip if name in file)]
        # Further links to one of them lead there.
        _walk(file, "", out, {file[name].id: name for name in passed}, skip | {out.home})
        _take_attributes(file[dataset], out.home, out)
        return out


def _walk(
    group: h5py.Group, place: str, out: Contents, seen: dict[Any, str], skip: frozenset[str]
) -> None:
    seen[group.id] = place
    if len(group.attrs):
        out.attributes[place] = _plain(group.attrs)
    for name in group:
        path = f"{place}/{name}".lstrip("/")
        link = group.get(name, getlink=True)
        if path in skip:
            continue
        if isinstance(link, h5py.SoftLink):
            whole = link.path if link.path.startswith("/") else f"{place}/{link.path}"
            out.links[path] = whole.strip("/")
            continue
        item = None if isinstance(link, h5py.ExternalLink) else group.get(name)
        if item is not None and item.id in seen:
            out.links[path] = seen[item.id]
        elif isinstance(item, h5py.Group):
            _walk(item, path, out, seen, skip)
        elif isinstance(item, h5py.Dataset):
            seen[item.id] = path
            _take_hdf5(item, path, out)
        else:
            out.left_out.append(path)


def _take_hdf5(item: h5py.Dataset, path: str, out: Contents) -> None:
    texts = h5py.check_string_dtype(item.dtype)
    fits = item.shape is not None and item.ndim < 3 and item.nbytes <= MOST_BYTES
    if not fits or (not texts and item.dtype.kind not in "iufb"):
        out.left_out.append(path)
        return
    values = np.asarray(item.asstr(errors="replace")[()], object) if texts else item[()]
    out.arrays[path] = np.asarray(values)
    _take_attributes(item, path, out)


def _take_attributes(item: h5py.Dataset, path: str, out: Contents) -> None:
    out.attributes[path] = _plain(item.attrs)
    if item.is_scale:
        # Which array is a scale of which stands in attributes that lead to places in this file.
        del out.attributes[path]["CLASS"]
        out.attributes[path].pop("NAME", None)
    scales = [dim[0].name.strip("/") if len(dim) else "" for dim in item.dims]
    if any(scales):
        out.scales[path] = scales


def read_zarr_contents(path: str, dataset: str) -> Contents:
    """Read what stands beside the frames in a Zarr folder.

    Parameters
    ----------
    path : str
        The folder.
    dataset : str
        Path of the frames; means nothing where the folder itself is the array.

    Returns
    -------
    Contents
        In memory.
    """
    root = zarr.open(path, mode="r")
    if isinstance(root, zarr.Array):
        return Contents("data", attributes={"data": _plain(root.attrs)})
    home = dataset.strip("/")
    out = Contents(home, attributes={"": _plain(root.attrs)})
    for name, item in root.members(max_depth=None):
        if len(item.attrs):
            out.attributes[name] = _plain(item.attrs)
        if isinstance(item, zarr.Group) or name == home:
            continue
        texts = item.dtype.kind in "UTO"
        if item.ndim > 2 or item.nbytes > MOST_BYTES or not (texts or item.dtype.kind in "iufb"):
            out.left_out.append(name)
        else:
            values = np.asarray(item[()])
            out.arrays[name] = values.astype(object) if texts else values
    return out


def write_hdf5_contents(file: h5py.File, contents: Contents) -> None:
    """Write what stood beside the frames; what is there already stays.

    Parameters
    ----------
    file : h5py.File
        Open for writing, with its frames.
    contents : Contents
        What to write.
    """
    for path, values in contents.arrays.items():
        if path not in file:
            texts = values.dtype.kind == "O"
            file.create_dataset(path, data=values, dtype=h5py.string_dtype() if texts else None)
    for path, target in contents.links.items():
        if path not in file and target in file:
            file[path] = h5py.SoftLink(f"/{target}")
    for path, attributes in contents.attributes.items():
        item = file.require_group(path) if path and path not in file else file[path or "/"]
        for name, value in attributes.items():
            item.attrs[name] = _for_hdf5(value)
    for path, scales in contents.scales.items():
        for dimension, scale in enumerate(scales):
            if path in file and scale in file:
                if not file[scale].is_scale:
                    file[scale].make_scale(scale)
                file[path].dims[dimension].attach_scale(file[scale])


def write_zarr_contents(root: zarr.Group, contents: Contents) -> None:
    """Write what stood beside the frames; what is there already stays.

    Parameters
    ----------
    root : zarr.Group
        Open for writing, with its frames.
    contents : Contents
        What to write. Zarr has no links: they are left out.
    """
    frames = root[contents.home]
    assert isinstance(frames, zarr.Array)
    for path, values in contents.arrays.items():
        if path not in root:
            texts = values.dtype.kind == "O"
            array = root.create_array(
                path,
                shape=values.shape,
                dtype="string" if texts else values.dtype,
                dimension_names=_name_dimensions(path, values.shape, frames.shape),
            )
            array[...] = values
    for path, attributes in contents.attributes.items():
        item = root[path] if path and path in root else root
        if path and path not in root:
            item = root.create_group(path)
        item.update_attributes({name: _for_json(value) for name, value in attributes.items()})


def _name_dimensions(path: str, shape: tuple[int, ...], of_frames: tuple[int, ...]) -> list[str]:
    """Name them as xarray asks: what goes with the frames or their pixels is called as theirs."""
    own = [f"{path.rpartition('/')[2]}_{axis}" for axis in range(len(shape))]
    if shape == of_frames[1:]:
        return ["y", "x"]
    if shape[:1] == of_frames[:1]:
        return ["frame", *own[1:]]
    return own


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in attributes.items() if _is_value(value)}


def _is_value(value: Any) -> bool:
    """Tell values from references to places in the same file, which mean nothing elsewhere."""
    if isinstance(value, h5py.Empty | list | dict | None):
        return True
    array = np.asarray(value)
    texts = array.dtype.kind == "O" and all(isinstance(one, str | bytes) for one in array.flat)
    return texts or array.dtype.kind in "iufbcSU"


def _for_json(value: Any) -> Any:
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray):
        return [_for_json(one) for one in value.tolist()] if value.ndim else _for_json(value[()])
    if isinstance(value, np.generic):
        return _for_json(value.item())
    if isinstance(value, list | tuple):
        return [_for_json(one) for one in value]
    return value if isinstance(value, str | int | float | bool | dict | None) else str(value)


def _for_hdf5(value: Any) -> Any:
    if isinstance(value, dict) or value is None:
        return json.dumps(value)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return np.array(value, object)
    return value

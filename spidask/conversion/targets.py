"""Files and folders into which stacks of frames are converted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import zarr
from zarr.codecs import BloscCodec

from spidask.conversion.contents import Contents, write_hdf5_contents, write_zarr_contents
from spidask.conversion.sources import Source, Stack, digest_frames, read_block, split_blocks
from spidask.errors import DataError
from spidask.io import cxi, emc
from spidask.io.links import name_mask
from spidask.io.stack import PLACES

Form = Literal["zarr", "hdf5", "cxi", "dragonfly", "emc"]
Codec = Literal["lz4", "zstd"]
Digests = list[bytes]
Map = Callable[[Callable[[Any], Any], list[Any]], Iterator[Any]]
"""Does tasks, in order and a bounded number at a time."""

SHARD_BYTES = 128 * 2**20
CHUNK_BYTES = 2**20
"""Before compression; a chunk holds a frame or, where frames are small, several."""
MOST_PHOTONS = np.float64(np.iinfo(np.int32).max)
"""In a pixel; a number that no smaller dtype rounds."""
OF_CXI = ("cxi_version", "number_of_entries")
"""What every CXI file holds, and is written anew."""


@dataclass(frozen=True)
class Target:
    """Where the stacks of a source are in what was written.

    Attributes
    ----------
    frames : Stack
        The frames.
    mask : Stack or None
        The mask of every frame.
    contents : Contents
        All else, without what was left out.
    left_out : list of str
        Paths of what this form has no place for.
    """

    frames: Stack
    mask: Stack | None
    contents: Contents
    left_out: list[str]


def plan_target(source: Source, path: Path, form: Form) -> Target:
    """Say where everything goes.

    Parameters
    ----------
    source : Source
        What is converted.
    path : pathlib.Path
        File or folder to write.
    form : str
        Its form.

    Returns
    -------
    Target
        Nothing is written.
    """
    kinds: dict[Form, Literal["hdf5", "zarr", "photons"]]
    kinds = {"zarr": "zarr", "hdf5": "hdf5", "cxi": "hdf5", "dragonfly": "photons"}
    kind = kinds.get(form, "photons")
    frames = replace(source.frames, path=str(path), kind=kind, chunk=1)
    contents, mask, left_out = source.contents, source.mask, list(source.contents.left_out)
    home = contents.home
    if form == "emc":
        left_out += [*contents.arrays, *([mask.dataset] if mask else [])]
        return Target(frames, None, Contents(home), left_out)
    if form == "cxi":
        contents = _move(source, f"{cxi.DETECTOR}/data")
        home = contents.home
    if mask:
        beside = name_mask(home)
        mask_kind: Literal["hdf5", "zarr"] = "zarr" if form == "zarr" else "hdf5"
        mask = replace(mask, path=str(path), kind=mask_kind, dataset=beside, chunk=1)
    if form == "zarr":
        left_out += contents.links
        contents = replace(contents, links={})
    return Target(replace(frames, dataset=home), mask, contents, left_out)


def write_target(source: Source, target: Target, form: Form, codec: Codec, do: Map) -> Digests:
    """Write frames and all that goes with them.

    Parameters
    ----------
    source : Source
        What is converted.
    target : Target
        From `plan_target`.
    form : str
        Its form.
    codec : {"lz4", "zstd"}
        Compression; Dragonfly's files have none.
    do : callable
        Does tasks, in order.

    Returns
    -------
    list of bytes
        `digest_frames` of all frames, then of their masks.

    Raises
    ------
    DataError
        If a frame cannot be read, or the form cannot hold it.
    """
    if form == "zarr":
        return _write_zarr(source, target, codec, do)
    if form in ("dragonfly", "emc"):
        return _write_photons(source, target, form, codec, do)
    with h5py.File(target.frames.path, "w") as file:
        digests = _write_hdf5(file, source, target, codec, do)
        if form == "cxi":
            _finish_cxi(file, target)
        write_hdf5_contents(file, target.contents)
    return digests


def _move(source: Source, home: str) -> Contents:
    """Put the frames elsewhere; ids that stood beside them alone would not be found any more."""
    old = source.contents
    new = {old.home: home, name_mask(old.home): name_mask(home)}
    for path in source.event_ids:
        place, _, name = path.rpartition("/")
        if place not in PLACES:
            new[path] = f"entry_1/{name}"
    kept = {path: values for path, values in old.arrays.items() if path not in OF_CXI}
    return Contents(
        home,
        {new.get(path, path): values for path, values in kept.items()},
        {new.get(path, path): values for path, values in old.attributes.items()},
        {path: new.get(link, link) for path, link in old.links.items()},
        {
            new.get(path, path): [new.get(scale, scale) for scale in scales]
            for path, scales in old.scales.items()
        },
    )


def _pairs(source: Source, target: Target) -> list[tuple[Stack, Stack]]:
    masks = [(source.mask, target.mask)] if source.mask and target.mask else []
    return [(source.frames, target.frames), *masks]


def _read(task: tuple[Stack, slice]) -> tuple[npt.NDArray[Any], Digests]:
    block = read_block(*task)
    return block, digest_frames(block)


def _write_hdf5(file: h5py.File, source: Source, target: Target, codec: Codec, do: Map) -> Digests:
    digests: Digests = []
    filters = hdf5plugin.Bitshuffle(cname=codec)
    for old, new in _pairs(source, target):
        array = file.create_dataset(
            new.dataset, new.shape, new.dtype, chunks=(1, *new.shape[1:]), **filters
        )
        parts = split_blocks(old, old.chunk)
        for part, (block, found) in zip(
            parts, do(_read, [(old, part) for part in parts]), strict=True
        ):
            array[part] = block
            digests += found
    return digests


def _finish_cxi(file: h5py.File, target: Target) -> None:
    file["cxi_version"] = cxi.VERSION
    file["number_of_entries"] = 1
    for path in ("entry_1/data_1/data", "entry_1/image_1/data"):
        if path not in target.contents.arrays:
            file[path] = h5py.SoftLink(f"/{target.frames.dataset}")


def _write_zarr(source: Source, target: Target, codec: Codec, do: Map) -> Digests:
    root = zarr.open_group(target.frames.path, mode="w", zarr_format=3)
    digests: Digests = []
    for old, new in _pairs(source, target):
        chunk = min(max(CHUNK_BYTES // max(new.frame_bytes, 1), 1), new.shape[0])
        step = chunk * max(SHARD_BYTES // max(chunk * new.frame_bytes, 1), 1)
        shard = min(step, -(-new.shape[0] // chunk) * chunk)
        root.create_array(
            new.dataset,
            shape=new.shape,
            dtype=new.dtype,
            chunks=(chunk, *new.shape[1:]),
            shards=(shard, *new.shape[1:]),
            compressors=BloscCodec(cname=codec, shuffle="bitshuffle"),
            dimension_names=("frame", "y", "x"),
        )
        parts = split_blocks(old, shard, shard * new.frame_bytes)
        # One task writes whole shards.
        for found in do(_copy_shard, [(old, new, part) for part in parts]):
            digests += found
    write_zarr_contents(root, target.contents)
    return digests


def _copy_shard(task: tuple[Stack, Stack, slice]) -> Digests:
    old, new, part = task
    block = read_block(old, part)
    array = zarr.open_group(new.path, mode="r+", use_consolidated=False)[new.dataset]
    assert isinstance(array, zarr.Array)
    array[part] = block
    return digest_frames(block)


def _write_photons(source: Source, target: Target, form: Form, codec: Codec, do: Map) -> Digests:
    frames, digests = source.frames, list[bytes]()
    parts = split_blocks(frames, frames.chunk)
    found = do(_sparse, [(frames, part, form == "emc") for part in parts])

    def blocks() -> Iterator[sp.csr_array]:
        for block, more in found:
            digests.extend(more)
            yield block

    n_frames, rows, columns = frames.shape
    if form == "emc":
        emc.write_photons_binary(target.frames.path, blocks(), n_frames, rows * columns)
        return digests
    told = {"shape": json.dumps([rows, columns]), "dtype": frames.dtype}
    told["dataset"] = target.contents.home
    emc.write_photons(target.frames.path, blocks(), n_frames, rows * columns, told)
    # The frames' own attributes have no array here.
    attributes = dict(target.contents.attributes)
    attributes.pop(target.contents.home, None)
    with h5py.File(target.frames.path, "a") as file:
        if source.mask and target.mask:
            only_mask = replace(source, frames=source.mask, mask=None)
            digests += _write_hdf5(file, only_mask, replace(target, frames=target.mask), codec, do)
        write_hdf5_contents(file, replace(target.contents, attributes=attributes, links={}))
    return digests


def _sparse(task: tuple[Stack, slice, bool]) -> tuple[sp.csr_array, Digests]:
    stack, part, binary = task
    block = read_block(stack, part)
    missing = np.isnan(block) if block.dtype.kind == "f" else np.zeros(block.shape, bool)
    whole = (block >= 0) & (block <= MOST_PHOTONS) & (block == np.trunc(block))
    bad = ~(whole | (missing & (not binary)))
    if bad.any():
        frame, y, x = (int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"{stack.path}: frame {part.start + frame} holds {block[frame, y, x]} in pixel "
            f"({y}, {x}); Dragonfly's files hold whole photons from 0 on"
            + (", the binary ones no missing pixels" if missing[frame, y, x] else "")
            + "; convert to another form",
            path=stack.path,
        )
    photons = np.where(missing, emc.MISSING, np.where(missing, 0, block)).astype(np.int32)
    return sp.csr_array(photons.reshape(len(photons), -1)), digest_frames(block)

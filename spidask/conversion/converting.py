"""From one form into another, read back and compared."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from spidask.cluster import map_in_order
from spidask.conversion.contents import read_hdf5_contents, read_zarr_contents
from spidask.conversion.sources import Stack, digest_frames, open_source, read_block, split_blocks
from spidask.conversion.targets import Codec, Digests, Form, Target, plan_target, write_target
from spidask.errors import DataError
from spidask.io.emc import PARTS
from spidask.io.layout import DATASET

if TYPE_CHECKING:
    from distributed import Client

SUFFIXES: dict[str, Form] = {
    ".zarr": "zarr",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".cxi": "cxi",
    ".emc": "emc",
}


@dataclass(frozen=True)
class Converted:
    """What was converted, and that it is the same.

    Attributes
    ----------
    path : str
        File or folder that was written.
    form : str
        Its form.
    shape : tuple of int
        Frames, rows and columns.
    dtype : str
        Of a pixel.
    bytes_before, bytes_after : int
        Of the file or folder read and of the one written.
    checksum : str
        SHA-256 over the SHA-256 of the values of each frame, then of each mask: the same for the
        one read and the one written.
    left_out : list of str
        What the form has no place for.
    """

    path: str
    form: str
    shape: tuple[int, int, int]
    dtype: str
    bytes_before: int
    bytes_after: int
    checksum: str
    left_out: list[str]

    def lines(self) -> list[str]:
        """Tell it in a few lines.

        Returns
        -------
        list of str
            For the terminal.
        """
        n_frames, rows, columns = self.shape
        size = f"{self.bytes_before / 1e6:.1f} MB as {self.bytes_after / 1e6:.1f} MB"
        told = [
            f"{self.path}: {n_frames} frames of {rows} x {columns} {np.dtype(self.dtype)}, {size}",
            f"sha256 {self.checksum}, read back and equal",
        ]
        return told + ([f"left out: {', '.join(self.left_out)}"] if self.left_out else [])


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dataset: str = DATASET,
    form: Form | None = None,
    codec: Codec = "lz4",
    shape: tuple[int, int] | None = None,
    client: Client | None = None,
) -> Converted:
    """Convert a stack of frames, with event ids, mask and attributes.

    Parameters
    ----------
    source : str or pathlib.Path
        HDF5, CXI or psocake file, Zarr folder, or Dragonfly's photons in either form.
    target : str or pathlib.Path
        File or folder to write; it appears when it is complete and compared.
    dataset : str
        Path of the frames in the source.
    form : {"zarr", "hdf5", "cxi", "dragonfly", "emc"}, optional
        Nothing: by the suffix of the target.
    codec : {"lz4", "zstd"}
        Compression of chunks, after a shuffle of bits.
    shape : tuple of int, optional
        Rows and columns of Dragonfly's frames, where nothing else tells.
    client : distributed.Client, optional
        Who reads, and writes the shards of Zarr; this process without it.

    Returns
    -------
    Converted
        Sizes and checksum.

    Raises
    ------
    DataError
        If the target is there, the source cannot be read, the form cannot hold its values, or
        what was written reads back otherwise.

    Notes
    -----
    Chunks hold one frame in HDF5, about 1 MiB in Zarr, whose shards hold about 128 MiB. Arrays of
    at most two dimensions beside the frames are taken along, as are the attributes of arrays and
    groups; a mask, ``mask`` beside the frames, also where it is one for each frame. In memory are
    two blocks of 64 MiB, or two shards, for each thread.
    """
    target = Path(os.path.abspath(target))
    form = form or _form_of(target)
    if target.exists():
        raise DataError(f"{target}: is there already; remove it or name another", path=str(target))
    known = open_source(source, dataset, shape)
    target.parent.mkdir(parents=True, exist_ok=True)
    do = partial(_do, client=client)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        plan = plan_target(known, Path(folder, target.name), form)
        written = write_target(known, plan, form, codec, do)
        _compare(written, plan, do)
        _compare_contents(plan, form)
        os.replace(plan.frames.path, target)
    return Converted(
        str(target),
        form,
        known.frames.shape,
        known.frames.dtype,
        _count_bytes(Path(source)),
        _count_bytes(target),
        hashlib.sha256(b"".join(written)).hexdigest(),
        sorted(plan.left_out),
    )


def _form_of(target: Path) -> Form:
    if target.suffix not in SUFFIXES:
        raise DataError(
            f"{target.name}: no form by this suffix; name it {', '.join(SUFFIXES)} or give --format"
        )
    return SUFFIXES[target.suffix]


def _do(
    work: Callable[[Any], Any], tasks: list[Any], client: Client | None = None
) -> Iterator[Any]:
    return map_in_order(work, iter(tasks), len(tasks), client)


def _compare(written: Digests, plan: Target, do: Callable[..., Iterator[Any]]) -> None:
    stacks = [plan.frames, *([plan.mask] if plan.mask else [])]
    tasks = [(stack, part) for stack in stacks for part in split_blocks(stack)]
    again = [digest for found in do(_digest, tasks) for digest in found]
    wrong = [i for i, (a, b) in enumerate(zip(written, again, strict=True)) if a != b]
    if wrong:
        raise DataError(
            f"{plan.frames.path}: {len(wrong)} of {len(again)} frames read back otherwise than "
            f"they were written, the first {wrong[0]}; check the disk and convert again",
            frames=wrong,
        )


def _digest(task: tuple[Stack, slice]) -> Digests:
    return digest_frames(read_block(*task))


def _compare_contents(plan: Target, form: Form) -> None:
    if form == "emc":
        return
    path, home = plan.frames.path, plan.frames.dataset
    found = (
        read_zarr_contents(path, home)
        if form == "zarr"
        else read_hdf5_contents(path, PARTS[0] if form == "dragonfly" else home)
    )
    for name, values in plan.contents.arrays.items():
        there = found.arrays.get(name)
        is_float = values.dtype.kind == "f"
        same = there is not None and np.array_equal(there, values, equal_nan=is_float)
        if not same:
            raise DataError(
                f"{path}: '{name}' reads back otherwise than it was written; convert again"
            )


def _count_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())

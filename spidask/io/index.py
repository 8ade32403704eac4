"""The index of a beamtime's files: what each header says, kept from one start to the next."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from spidask.errors import DataError
from spidask.io.euxfel import is_run_folder, scan_run_folder, stat_run_folder
from spidask.io.hdf5 import scan_hdf5
from spidask.io.layout import ANYTHING, FileLayout
from spidask.io.photons import are_photons, scan_photons
from spidask.io.stack import StackInfo
from spidask.io.zarr import is_zarr, scan_zarr, stat_zarr

VERSION = 3
"""Of the cache; another one is not read."""


@dataclass(frozen=True)
class FileEntry:
    """One file of the index.

    Attributes
    ----------
    path : str
        The file, or the Zarr folder.
    size, mtime_ns : int
        As of `stat_file`; they say whether the entry still holds.
    info : StackInfo or None
        What the header says; None where it cannot be read.
    problem : str
        Why it cannot be read and what to do, else empty.
    """

    path: str
    size: int
    mtime_ns: int
    info: StackInfo | None
    problem: str = ""


def index_files(
    paths: Sequence[str],
    dataset: str,
    cache: Path | None = None,
    layout: FileLayout = ANYTHING,
) -> list[FileEntry]:
    """Describe files by their headers, from the cache where they have not changed.

    Parameters
    ----------
    paths : sequence of str
        HDF5 files, Zarr folders and run folders of the European XFEL.
    dataset : str
        Path of the stack of frames inside each; of run folders, the detector.
    cache : pathlib.Path, optional
        JSON file that keeps the index; read if it is there, and written anew if anything changed.
    layout : FileLayout
        What else each file has to hold.

    Returns
    -------
    list of FileEntry
        One for each path, in their order. Files that cannot be read are in it with their problem.
    """
    key = [dataset, *astuple(layout)]
    known = _load(cache, key) if cache else {}
    entries = [_refresh(path, dataset, layout, known.get(path)) for path in paths]
    good = {entry.path: entry for entry in entries if entry.info}
    if cache and good != known:
        _save(cache, key, good)
    return entries


def stat_file(path: str, dataset: str, sources: Sequence[str] = ()) -> tuple[int, int]:
    """Size and time of the last change of a file or a folder, so that a change shows.

    Parameters
    ----------
    path : str
        The file or folder.
    dataset : str
        Path of the stack of frames inside it.
    sources : sequence of str
        Other files in which its frames lie.

    Returns
    -------
    tuple of int
        Bytes and nanoseconds, zeros where nothing is there; with sources, the sums over all.
    """
    return _add_sources(_stat_one(path, dataset), sources)


def _add_sources(own: tuple[int, int], sources: Sequence[str]) -> tuple[int, int]:
    sizes, times = zip(own, *(_stat_one(source, "") for source in sources), strict=True)
    return sum(sizes), sum(times) % 2**63


def _stat_one(path: str, dataset: str) -> tuple[int, int]:
    try:
        if is_zarr(path):
            return stat_zarr(path, dataset)
        if os.path.isdir(path):
            return stat_run_folder(path)
        stat = os.stat(path)
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _refresh(path: str, dataset: str, layout: FileLayout, known: FileEntry | None) -> FileEntry:
    # Before it is scanned, so that a change meanwhile shows the next time.
    own = _stat_one(path, dataset)
    if known and known.info:
        signature = _add_sources(own, known.info.sources)
        if (known.size, known.mtime_ns) == signature:
            return known
    try:
        info = _scan(path, dataset, layout)
    except DataError as error:
        return FileEntry(path, *own, None, str(error))
    return FileEntry(path, *_add_sources(own, info.sources), info)


def _scan(path: str, dataset: str, layout: FileLayout) -> StackInfo:
    if is_zarr(path):
        return scan_zarr(path, dataset, layout)
    if is_run_folder(path):
        return scan_run_folder(path, dataset, layout)
    try:
        return scan_hdf5(path, dataset, layout)
    except DataError:
        if not are_photons(path):
            raise
    return scan_photons(path, layout)


def _load(cache: Path, key: list[object]) -> dict[str, FileEntry]:
    """Read the cache; one that is missing, damaged or of other settings is empty."""
    try:
        stored = json.loads(cache.read_text())
        if (stored["version"], stored["dataset"]) != (VERSION, json.loads(json.dumps(key))):
            return {}
        return {entry["path"]: _revive(entry) for entry in stored["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _revive(entry: dict[str, object]) -> FileEntry:
    info = dict(entry.pop("info"))  # type: ignore[call-overload]
    chunks = info["chunks"]
    info |= {"shape": tuple(info["shape"]), "chunks": tuple(chunks) if chunks else None}
    return FileEntry(info=StackInfo(**info), **entry)  # type: ignore[arg-type]


def _save(cache: Path, key: list[object], entries: dict[str, FileEntry]) -> None:
    files = [asdict(entry) for entry in entries.values()]
    text = json.dumps({"version": VERSION, "dataset": key, "files": files})
    cache.parent.mkdir(parents=True, exist_ok=True)
    # A reader never sees half a cache: the new one takes its place in one step.
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, cache)

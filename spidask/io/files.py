"""A beamtime's files, and the run to which each belongs."""

from __future__ import annotations

import glob
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from spidask.errors import ConfigError
from spidask.io.euxfel import is_run_folder, stat_run_folder
from spidask.io.zarr import is_zarr

log = logging.getLogger(__name__)

FOLLOW_EVERY_S = 30.0
"""Seconds between two looks for new files; one that has not changed in between is whole."""


def find_runs(files: str | Sequence[str], pattern: str | None = None) -> dict[str, list[str]]:
    """Find a beamtime's files and the run to which each belongs.

    Parameters
    ----------
    files : str or sequence of str
        Paths or globs of HDF5 files, Zarr folders and run folders of the European XFEL; ``**``
        stands for any folders.
    pattern : str, optional
        Regular expression with a group ``run``, searched in the file's name; files with the same
        run are joined. Without it a file is a run, named by its stem.

    Returns
    -------
    dict of str to list of str
        Names of the runs to absolute paths, both in natural order (r9 before r10).

    Raises
    ------
    ConfigError
        If a path or glob matches nothing, a name does not match the pattern, or two files
        claim one run without a pattern.
    """
    given = [files] if isinstance(files, str) else files
    paths = dict.fromkeys(path for text in given for path in _expand(text))
    runs: dict[str, list[str]] = {}
    for path in sorted(paths, key=natural_key):
        runs.setdefault(_run_name(path, pattern), []).append(path)
    if pattern is None:
        _refuse_duplicates(runs)
    return {name: runs[name] for name in sorted(runs, key=natural_key)}


def follow_files(
    files: Sequence[str], every_s: float = FOLLOW_EVERY_S
) -> Iterator[dict[str, tuple[int, int]]]:
    """Look for files again and again, until interrupted by Ctrl-C.

    Parameters
    ----------
    files : sequence of str
        Paths or globs.
    every_s : float
        Seconds between two looks.

    Yields
    ------
    dict
        At every look that finds any, the files that have not changed between two looks, each with
        its size and modification time. A file that is written to comes later; one that was whole
        and grows again keeps its place, as it was, until it is whole once more.
    """
    states: dict[str, tuple[int, int]] = {}
    settled: dict[str, tuple[int, int]] = {}
    log.info("waiting for runs; Ctrl-C ends this")
    with suppress(KeyboardInterrupt):
        while True:
            found = {p for f in files for p in glob.glob(os.path.expanduser(f), recursive=True)}
            # What is moved while it is looked at comes later under its new name.
            before, states = states, {p: s for p in found if (s := _state(p))}
            now = {p: s for p, s in states.items() if before.get(p) == s}
            # One that grows again keeps its place until it is whole.
            now |= {p: s for p, s in settled.items() if p in states and p not in now}
            settled = now
            if settled:
                yield dict(settled)
            time.sleep(every_s)


def _state(path: str) -> tuple[int, int] | None:
    try:
        if is_run_folder(path):
            size, mtime_ns = stat_run_folder(path)
            return size, mtime_ns
        if os.path.isdir(path) and not is_zarr(path):
            return None
        # The chunks of a Zarr folder change without the folder itself.
        inside = [Path(path), *Path(path).rglob("*")] if os.path.isdir(path) else [Path(path)]
        told = [one.stat() for one in inside]
    except FileNotFoundError:
        return None
    return sum(one.st_size for one in told), max(one.st_mtime_ns for one in told)


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key by which r9 comes before r10.

    Parameters
    ----------
    text : str
        A name or a path.

    Returns
    -------
    list of tuple
        The key.

    Examples
    --------
    >>> sorted(["r10", "r9"], key=natural_key)
    ['r9', 'r10']
    """
    parts = re.split(r"([0-9]+)", text)
    return [(0, int(p), p) if p[:1].isdecimal() else (1, 0, p) for p in parts]


def _expand(text: str) -> list[str]:
    # A name with brackets in it may be a file after all.
    found = [text] if os.path.exists(text) else glob.glob(os.path.expanduser(text), recursive=True)
    paths = [os.path.abspath(path) for path in found]
    usable = [p for p in paths if not os.path.isdir(p) or is_zarr(p) or is_run_folder(p)]
    if usable:
        return usable
    if paths:
        raise ConfigError(
            f"runs.files: '{text}' is a folder and neither a Zarr nor a run of the European XFEL; "
            f"name the files in it, such as {os.path.join(text, '*.h5')}",
            path=text,
        )
    raise ConfigError(f"runs.files: '{text}' matches nothing; {_surroundings(text)}", path=text)


def _surroundings(text: str) -> str:
    folder = Path(os.path.abspath(os.path.expanduser(text))).parent
    while not folder.is_dir():
        folder = folder.parent
    there = sorted(os.listdir(folder), key=natural_key)
    shown = ", ".join(there[:5]) + (f" and {len(there) - 5} more" if len(there) > 5 else "")
    return f"the nearest folder there is, {folder}, holds {shown or 'nothing'}"


def _run_name(path: str, pattern: str | None) -> str:
    if pattern is None:
        return Path(path).stem
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"runs.pattern: '{pattern}' is no regular expression: {error}") from None
    if "run" not in expression.groupindex:
        raise ConfigError(
            f"runs.pattern: '{pattern}' has no group 'run'; write (?P<run>...) around the run"
        )
    found = expression.search(Path(path).name)
    if not found or not found["run"]:
        raise ConfigError(
            f"runs.pattern: '{pattern}' finds no run in '{Path(path).name}'; "
            "widen the pattern or narrow runs.files",
            path=path,
        )
    return found["run"]


def _refuse_duplicates(runs: dict[str, list[str]]) -> None:
    for name, paths in runs.items():
        if len(paths) > 1:
            raise ConfigError(
                f"runs.files: run '{name}' would be {paths[0]} and {paths[1]}; rename one, "
                "or join them with a runs.pattern that has a group 'run'",
                run=name,
                paths=paths,
            )

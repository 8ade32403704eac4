"""Runs of the European XFEL: the modules' files of a folder as one stack of frames."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from spidask.errors import ConfigError, DataError
from spidask.io.arrays import find_array
from spidask.io.layout import ANYTHING, FileLayout, refuse_unfitting
from spidask.io.modules import Layout, find_faults
from spidask.io.stack import StackInfo
from spidask.io.trains import Rows, Table, join_rows, match, pieces, read_rows
from spidask.proposals import INSTALL

FILE_NAME = re.compile(r"[A-Z]+-R\d{4}-(?P<aggregator>\w+?)(-S\d{5})?\.h5")
SOURCE = re.compile(
    r"(?P<detector>[^/]+)/(?P<kind>DET|CORR)/"
    r"((?P<module>\d+)CH\d*|(MODULE_|RECEIVER-|JNGFR)(?P<from_1>\d+)):\w+"
)
"""Source of a module, as in extra-data's classes AGIPD1M, AGIPD500K, DSSC1M, LPD1M, JUNGFRAU."""
MODULES = {"AGIPD1M": 16, "AGIPD500K": 8, "DSSC1M": 16, "LPD1M": 16}
MODULES |= {"_JF4M": 8, "_JF1M": 2, "_JF500K": 1, "_JNGFR": 1, "_JUNGF": 1, "_JF": 1}
"""Part of a detector's name to its number of modules, or the least one."""
N_LAYOUTS = 4
"""Runs whose layout a process keeps; one of a million frames takes 24 MB."""

Int64 = NDArray[np.int64]


def is_run_folder(path: str) -> bool:
    """Tell whether a folder is a run of the European XFEL.

    Parameters
    ----------
    path : str
        The folder.

    Returns
    -------
    bool
        True if it holds files with names such as ``RAW-R0012-AGIPD00-S00000.h5``.
    """
    return os.path.isdir(path) and any(FILE_NAME.fullmatch(name) for name in os.listdir(path))


def stat_run_folder(path: str) -> tuple[int, int]:
    """Size and time of the last change of a run's files.

    Parameters
    ----------
    path : str
        The folder.

    Returns
    -------
    tuple of int
        Bytes of all files and the newest modification, ns.
    """
    stats = [os.stat(name) for name in _files(path)]
    return sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)


def scan_run_folder(path: str, detector: str, layout: FileLayout = ANYTHING) -> StackInfo:
    """Read what the files of a run say about the frames of a detector.

    Parameters
    ----------
    path : str
        The folder.
    detector : str
        Name of the detector or a pattern of names; the path of a dataset stands for any.
    layout : FileLayout
        A mask or an identity that it wants inside the files is refused: runs have none.

    Returns
    -------
    StackInfo
        Shape (frame, module * slow scan, fast scan), dtype, event ids and faults; no frame is
        read. Corrected data is preferred to raw data in the same folder.

    Raises
    ------
    ConfigError
        If extra-data is not installed.
    DataError
        If there is no such detector, there are several, or no file of it can be read; the message
        has no path in it.
    """
    info = find_layout(path, detector).describe(detector, _nowhere)
    refuse_unfitting(layout, info.shape, _nowhere)
    return info


def read_run_ids(path: str, names: list[str], rows: slice) -> Int64:
    """Read one event id of a stretch of frames.

    Parameters
    ----------
    path : str
        The folder.
    names : list of str
        What was given as the detector, and the name of the id, as ``*AGIPD1M*/trainId``.
    rows : slice
        Frames.

    Returns
    -------
    ndarray
        Event ids, shape (frame,), int64.
    """
    detector, _, name = names[0].rpartition("/")
    return find_layout(path, detector).ids[name][rows]


def find_layout(path: str, detector: str) -> Layout:
    """Find where the frames of a detector are, once per process and again after a change.

    Parameters
    ----------
    path : str
        The folder.
    detector : str
        As for `scan_run_folder`.

    Returns
    -------
    Layout
        The frames of all modules.

    Raises
    ------
    ConfigError
        If extra-data is not installed.
    DataError
        As `scan_run_folder`.

    Notes
    -----
    Frames are matched over modules by trainId and pulseId, and stand in their order, whatever the
    order in the files. Where a module has a frame twice, its second one is matched with the second
    one of other modules; they stand behind the train. Suspect trains are taken.
    """
    return _find_layout(path, detector, *stat_run_folder(path))


@lru_cache(maxsize=N_LAYOUTS)
def _find_layout(path: str, detector: str, _size: int, _mtime_ns: int) -> Layout:
    opened, unreadable = _open_files(path)
    name, sources = _choose(opened, detector, unreadable)
    tables: dict[int, Table] = {}
    for module, parts in sources.items():
        files = _read_files(parts, unreadable)
        if any(len(rows.row) for rows in files):
            tables[module] = join_rows(files, next(iter(tables.values()), None))
    if not tables:
        raise DataError(
            f"holds no frames of {name}" + "".join(f"; not read: {text}" for text in unreadable)
        )
    files = [rows for table in tables.values() for rows in table.files]
    shapes = sorted({rows.shape[1:] for rows in files})
    if len(shapes) > 1 or len(shapes[0]) not in (2, 3):
        raise DataError(f"holds modules of {name} of shapes {shapes}, expected one (y, x)")
    places, ids, faults = match(tables)
    modules = tuple(
        list(pieces(tables[module], places[module])) if module in tables else []
        for module in range(max(_count_modules(name), max(tables) + 1))
    )
    n_frames = len(ids["trainId"])
    faults |= {
        **find_faults(n_frames, modules),
        "lost_rows": sum(rows.lost for rows in files),
        "odd_masks": sum(rows.odd_mask for rows in files),
        "unreadable_files": unreadable,
    }
    faults = {key: value for key, value in faults.items() if value}
    dtype = np.result_type(*(rows.dtype for rows in files)).newbyteorder("=")
    shape = (shapes[0][-2], shapes[0][-1])
    return Layout(n_frames, shape, dtype, modules, ids, faults)


def _files(path: str) -> list[str]:
    # An overview file only links to the others.
    matches = {name: FILE_NAME.fullmatch(name) for name in sorted(os.listdir(path))}
    return [
        os.path.join(path, name)
        for name, match in matches.items()
        if match and match["aggregator"] != "OVERVIEW"
    ]


def _open_files(path: str) -> tuple[list[Any], list[str]]:
    """Open the files of a run with extra-data, which knows all versions of their format."""
    try:
        from extra_data.file_access import FileAccess
    except ImportError as error:
        raise ConfigError(
            f"runs.files: {path}: runs of the European XFEL are read with extra-data ({error}); "
            f"{INSTALL}"
        ) from None
    opened, unreadable = [], []
    for name in _files(path):
        try:
            _refuse_unsound(name)
            opened.append(FileAccess(name))
        except Exception as error:  # whatever a damaged file makes h5py or extra-data raise
            unreadable.append(_say(name, error))
    return opened, unreadable


def _refuse_unsound(path: str) -> None:
    """Refuse a file that extra-data could not read, before it does."""
    with h5py.File(path, "r", driver="stdio", locking=False) as file:
        for place in ("INDEX", "METADATA"):
            names: list[str] = []
            group = file.get(place)
            if isinstance(group, h5py.Group):
                group.visit_links(names.append)
            for name in names:
                find_array(group, name)


@dataclass(frozen=True)
class _Part:
    """One module's source in one file."""

    file: Any
    source: str


def _choose(
    opened: Sequence[Any], pattern: str, unreadable: list[str]
) -> tuple[str, dict[int, list[_Part]]]:
    """Choose the detector, and list the files of each of its modules."""
    there: dict[tuple[str, str], dict[int, list[_Part]]] = {}
    for file in opened:
        for source in sorted(file.instrument_sources - set(file.legacy_sources)):
            if (match := SOURCE.fullmatch(source)) and _count_modules(match["detector"]):
                modules = there.setdefault((match["detector"], match["kind"]), defaultdict(list))
                modules[_number(match)].append(_Part(file, source))
    names = sorted({name for name, _ in there})
    wanted = [n for n in names if "/" in pattern or fnmatchcase(n, pattern)]
    if len(wanted) != 1:
        what = f"holds {len(wanted)} detectors" if wanted else "holds no detector"
        raise DataError(
            f"{what} that '{pattern}' matches; there are {', '.join(names) or 'none at all'}"
            + (f", and {len(unreadable)} files that cannot be read" if unreadable else "")
            + "; set euxfel.detector",
            detectors=names,
        )
    return wanted[0], there.get((wanted[0], "CORR")) or there[wanted[0], "DET"]


def _nowhere(_name: str) -> None:
    """Tell that there is no such array beside the frames, whose ids come with the modules."""


def _number(match: re.Match[str]) -> int:
    """Give the number of a module from 0 on."""
    if match["module"]:
        return int(match["module"])
    # One module alone has the number of a place at the instrument.
    return 0 if "_JF500K" in match["detector"] else int(match["from_1"]) - 1


def _count_modules(detector: str) -> int:
    return next((n for name, n in MODULES.items() if name in detector), 0)


def _read_files(parts: Sequence[_Part], unreadable: list[str]) -> list[Rows]:
    files = []
    for part in parts:
        try:
            files.append(read_rows(part.file, part.source))
        except Exception as error:  # whatever a damaged file makes h5py raise
            unreadable.append(_say(part.file.filename, error))
        part.file.close()
    return files


def _say(path: str, error: Exception) -> str:
    return f"{Path(path).name} ({' '.join(str(error).split())}; transfer it again)"

"""Small data of a facility: what it says of each event, joined to the frames by time stamp."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from spidask.config import Events
from spidask.errors import ConfigError, DataError
from spidask.io.arrays import find_array, read_array
from spidask.io.files import natural_key
from spidask.io.stack import EVENT_IDS, MISSING_ID, find_event_ids, read_event_ids
from spidask.io.stretches import Energies, EventIds

USUAL_COLUMNS = {
    "photon_energy": (
        "ebeam/photon_energy",
        "ebeam/photonEnergy",
        "ebeam/ebeamPhotonEnergy",
        "LCLS/photon_energy_eV",
        "photon_energy",
    ),
    "pulse_energy": (
        "gas_detector/f_11_ENRC",
        "gmd/milliJoulesPerPulse",
        "gmd/millijoulesperpulse",
        "gmd/energy",
        "pulse_energy",
    ),
}
"""Where small data of LCLS-1 and LCLS-2 have the energies, in eV and mJ."""

MISSING_INTEGER = -99999
"""What LCLS-2 writes for an integer that is missing."""


@dataclass(frozen=True)
class EventTable:
    """The events of all files, sorted by time stamp.

    Attributes
    ----------
    timestamp : numpy.ndarray
        Time stamps, shape (event,), int64.
    columns : dict
        Name in the vocabulary to one value for each event: float64 with NaN where there is none,
        event ids int64.
    """

    timestamp: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]


def list_event_files(settings: Events) -> list[str]:
    """List the files with small data.

    Parameters
    ----------
    settings : Events
        The section `events`.

    Returns
    -------
    list of str
        Absolute paths in natural order.

    Raises
    ------
    ConfigError
        If a path or glob matches nothing.
    """
    paths: dict[str, None] = {}
    for text in settings.files:
        there = os.path.exists(text)
        found = [text] if there else glob.glob(os.path.expanduser(text), recursive=True)
        if not found:
            raise ConfigError(f"events.files: '{text}' matches nothing; correct the path")
        paths |= dict.fromkeys(os.path.abspath(path) for path in found)
    return sorted(paths, key=natural_key)


def load_events(paths: Sequence[str], settings: Events) -> EventTable:
    """Read the small data, once per process and again where a file has changed.

    Parameters
    ----------
    paths : sequence of str
        HDF5 files.
    settings : Events
        Names of the datasets; those left out are looked for at the usual places.

    Returns
    -------
    EventTable
        Events without a time stamp are left out; -99999, NaN and energies not above 0 are
        missing.

    Raises
    ------
    DataError
        If a file cannot be read, or lacks what was asked for.
    """
    changed = tuple(_modified(path) for path in paths)
    return _load(tuple(paths), settings.model_dump_json(), changed)


def _modified(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; correct events.files", path=path) from None


@lru_cache(maxsize=2)
def _load(paths: tuple[str, ...], settings: str, _changed: tuple[int, ...]) -> EventTable:
    section = Events.model_validate_json(settings)
    parts = [_read_file(path, section) for path in paths]
    stamp = np.concatenate([part["timestamp"] for part in parts])
    columns = {}
    for name in dict.fromkeys(name for part in parts for name in part if name != "timestamp"):
        fill: Any = MISSING_ID if name in EVENT_IDS else np.nan
        columns[name] = np.concatenate(
            [part.get(name, np.full(len(part["timestamp"]), fill)) for part in parts]
        )
    # Rows need not be sorted by time; those of one time stamp stay in the files' order.
    order = np.argsort(stamp, kind="stable")
    order = order[stamp[order] > 0]
    return EventTable(stamp[order], {name: values[order] for name, values in columns.items()})


def _read_file(path: str, settings: Events) -> dict[str, NDArray[Any]]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _read_columns(file, path, settings)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: holds no small data: {' '.join(str(error).split())}; correct events.files",
            path=path,
        ) from error


def _read_columns(file: h5py.File, path: str, settings: Events) -> dict[str, NDArray[Any]]:
    ids = find_ids(file, settings.timestamp)
    if "timestamp" not in ids:
        wanted = settings.timestamp or "timestamp, event_time or machineTime"
        raise DataError(
            f"{path}: has no time stamps, {wanted}; it holds {', '.join(file)}; set "
            "events.timestamp",
            path=path,
        )
    read: dict[str, NDArray[Any]] = {
        name: read_event_ids({p: read_array(file, p, path) for p in places}, slice(None))
        for name, places in ids.items()
    }
    n_events = len(read["timestamp"])
    for name, usual in USUAL_COLUMNS.items():
        given = getattr(settings, name)
        places = [p for p in ([given] if given else usual) if _is_column(file, p, n_events)]
        if places:
            read[name] = _clean(read_array(file, places[0], path))
        elif given:
            raise DataError(
                f"{path}: has no '{given}' with one number for each of {n_events} events; "
                f"it holds {', '.join(file)}; set events.{name}",
                path=path,
            )
    return read


def find_ids(
    file: h5py.File,
    timestamp: str | None = None,
    n_frames: int | None = None,
    beside: str = "",
) -> dict[str, list[str]]:
    """Find the event ids of a file that need not hold frames.

    Parameters
    ----------
    file : h5py.File
        The open file.
    timestamp : str, optional
        Path of the time stamps, where they are not at a usual place.
    n_frames : int, optional
        How many events there are, where that is known.
    beside : str
        Path of an array of as many; the groups above it are looked at first.

    Returns
    -------
    dict
        Name in the vocabulary to one path, or to the paths of seconds and nanoseconds.
    """

    def describe(name: str) -> tuple[tuple[int, ...], str] | None:
        item = find_array(file, name)
        return None if item is None else (item.shape, item.dtype.kind)

    if n_frames is not None:
        return find_event_ids(beside, n_frames, describe)
    places = ("", "entry_1/", "LCLS/")
    usual = [f"{place}{names[0]}" for place in places for names in EVENT_IDS["timestamp"]]
    for name in [timestamp] if timestamp else usual:
        found = describe(name)
        if found and len(found[0]) == 1 and found[1] in "iu":
            ids = find_event_ids(name, found[0][0], describe)
            return ids | {"timestamp": [name]} if timestamp else ids
    return {}


def _is_column(file: h5py.File, name: str, n_events: int) -> bool:
    item = find_array(file, name)
    return item is not None and item.shape == (n_events,) and item.dtype.kind in "iuf"


def _clean(values: NDArray[Any]) -> NDArray[np.float64]:
    numbers = values.astype(np.float64)
    usable = np.isfinite(numbers) & (numbers != MISSING_INTEGER) & (numbers > 0)
    return np.where(usable, numbers, np.nan)


class Joined(BackendArray):
    """What the small data say of every frame, looked up by time stamp when asked for.

    Parameters
    ----------
    timestamps : EventIds
        Time stamps of the frames.
    fiducials : EventIds or None
        Fiducials of the frames; they tell events of one time stamp apart.
    paths : sequence of str
        Files with small data.
    settings : Events
        The section `events`.
    name : str
        A column of the small data, or ``n_events``: how many events have the frame's time stamp.
    own : EventIds or Energies or None
        What the files of the frames say themselves; taken where the small data say nothing.
    """

    def __init__(
        self,
        timestamps: EventIds,
        fiducials: EventIds | None,
        paths: Sequence[str],
        settings: Events,
        name: str,
        own: EventIds | Energies | None,
    ) -> None:
        self.timestamps, self.fiducials = timestamps, fiducials
        self.paths, self.settings, self.name, self.own = paths, settings, name, own
        kinds = {"n_events": "int32"} | dict.fromkeys(EVENT_IDS, "int64")
        self.shape, self.dtype = timestamps.shape, np.dtype(kinds.get(name, "float64"))

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Look up the values of some frames."""
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._values
        )

    def _values(self, key: tuple[Any, ...]) -> Any:
        stamps = np.asarray(self.timestamps.read(key))
        marks = None if self.fiducials is None else np.asarray(self.fiducials.read(key)).ravel()
        table = load_events(self.paths, self.settings)
        rows, n_events = find_events(table, stamps.ravel(), marks)
        if self.name == "n_events":
            return n_events.astype(self.dtype).reshape(stamps.shape)[()]
        missing: Any = MISSING_ID if self.dtype.kind == "i" else np.nan
        column = table.columns.get(self.name)
        values = np.full(len(rows), missing, self.dtype)
        if column is not None:
            values[rows >= 0] = column[rows[rows >= 0]]
        values = values.reshape(stamps.shape)
        if self.own is None:
            return values[()]
        lacking = values == MISSING_ID if self.dtype.kind == "i" else np.isnan(values)
        return np.where(lacking, self.own.read(key), values)[()]


def join_events(
    arrays: dict[str, EventIds | Energies | Joined], settings: Events
) -> dict[str, EventIds | Energies | Joined]:
    """Add what the small data say to what the files of the frames say.

    Parameters
    ----------
    arrays : dict
        Event ids and energies of the frames' own files, by their names in the vocabulary.
    settings : Events
        The section `events`.

    Returns
    -------
    dict
        The same with ``photon_energy`` and ``pulse_energy`` of the small data, where these have
        them, else of the files; with ``n_events``; and with a fiducial where only the small data
        have one. Nothing is read.

    Raises
    ------
    ConfigError
        If there are no such files, or the frames have no time stamps.
    """
    timestamps, fiducials = arrays.get("timestamp"), arrays.get("fiducial")
    if not isinstance(timestamps, EventIds):
        names = ", ".join("+".join(names) for names in EVENT_IDS["timestamp"])
        raise ConfigError(
            f"events.files: the frames have no time stamps to join by (looked for {names} beside "
            "them, in entry_1 and in LCLS); leave the section out"
        )
    marks = fiducials if isinstance(fiducials, EventIds) else None
    paths = tuple(list_event_files(settings))
    joined = dict(arrays)
    for name in ("n_events", *USUAL_COLUMNS, *(() if marks else ("fiducial",))):
        own = arrays.get(name)
        assert not isinstance(own, Joined)
        joined[name] = Joined(timestamps, marks, paths, settings, name, own)
    return joined


def find_events(
    table: EventTable, timestamp: NDArray[np.int64], fiducial: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the event of each frame.

    Parameters
    ----------
    table : EventTable
        The events.
    timestamp : numpy.ndarray
        Time stamps of the frames, in any order, shape (frame,), int64.
    fiducial : numpy.ndarray, optional
        Fiducials of the frames, shape (frame,), int64, -1 where there is none.

    Returns
    -------
    row : numpy.ndarray
        Row of the table, -1 where no event or more than one has the time stamp (and the
        fiducial), shape (frame,), int64.
    n_events : numpy.ndarray
        Events that have it, shape (frame,), int64.

    Examples
    --------
    >>> table = EventTable(np.array([3, 5, 5, 8]), {"fiducial": np.array([1, 2, 4, 7])})
    >>> rows, n_events = find_events(table, np.array([8, 5, 4, 3]))
    >>> rows.tolist(), n_events.tolist()
    ([3, -1, -1, 0], [1, 2, 0, 1])
    >>> find_events(table, np.array([5, 3]), np.array([4, 9]))[0].tolist()
    [2, -1]
    """
    first = np.searchsorted(table.timestamp, timestamp, "left")
    n_events = np.searchsorted(table.timestamp, timestamp, "right") - first
    rows = np.where(n_events == 1, first, -1)
    marks = table.columns.get("fiducial")
    if fiducial is None or marks is None:
        return rows, n_events
    one = np.flatnonzero((n_events == 1) & (fiducial >= 0))
    # An event without a fiducial contradicts none.
    other = one[(marks[rows[one]] != fiducial[one]) & (marks[rows[one]] != MISSING_ID)]
    rows[other], n_events[other] = -1, 0
    for frame in np.flatnonzero((n_events > 1) & (fiducial >= 0)):
        candidates = first[frame] + np.arange(n_events[frame])
        fits = candidates[np.isin(marks[candidates], (fiducial[frame], MISSING_ID))]
        n_events[frame] = len(fits)
        rows[frame] = fits[0] if len(fits) == 1 else -1
    return rows, n_events

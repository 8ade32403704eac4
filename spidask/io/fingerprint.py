"""What determined the stored labels, and whether it is still so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spidask.errors import StoreError
from spidask.io.files import natural_key
from spidask.io.store import FILES, list_runs, open_root, open_run

FINGERPRINT = "fingerprint"
"""Attribute of the root: every setting that determines a label."""


def write_fingerprint(store: str | Path, settings: Mapping[str, Any]) -> None:
    """Record every setting that determines a label.

    Parameters
    ----------
    store : str or pathlib.Path
        The folder ``labels.zarr``; created if it is not there.
    settings : mapping
        Flat, key to value; values are what JSON can hold.
    """
    open_root(store).attrs[FINGERPRINT] = dict(settings)


def read_fingerprint(store: str | Path) -> dict[str, Any]:
    """Read what determined the labels of a store.

    Parameters
    ----------
    store : str or pathlib.Path
        The folder ``labels.zarr``.

    Returns
    -------
    dict
        The recorded settings and, as ``files.<run>``, the description of each run's files.
        Empty if there is no store yet.
    """
    if not Path(store, "zarr.json").exists():
        return {}
    stored = open_root(store).attrs.get(FINGERPRINT, {})
    settings = dict(stored) if isinstance(stored, Mapping) else {}
    files = {f"{FILES}.{run}": open_run(store, run).attrs[FILES] for run in list_runs(store)}
    return {**settings, **files}


def check_fingerprint(stored: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuse labels that other settings or other files have determined.

    Parameters
    ----------
    stored : mapping
        From `read_fingerprint`; empty if there is nothing yet, which is accepted.
    present : mapping
        The same of now, with ``files.<run>`` for every run. A run that is new is accepted.

    Raises
    ------
    StoreError
        If anything differs; names each key with its old and new value.

    Examples
    --------
    >>> check_fingerprint({"hits.n_sigma": 4.0}, {"hits.n_sigma": 4.0, "files.r2": []})
    """
    if not stored:
        return
    now = json.loads(json.dumps(dict(present)))
    before = json.loads(json.dumps(dict(stored)))
    new_runs = {key for key in now.keys() - before.keys() if key.startswith(f"{FILES}.")}
    changed = {
        key: (before.get(key), now.get(key))
        for key in sorted((now.keys() | before.keys()) - new_runs, key=natural_key)
        if before.get(key) != now.get(key)
    }
    if changed:
        told = "; ".join(_say_change(key, *values) for key, values in changed.items())
        raise StoreError(
            f"the stored labels are stale: {told}. Set it back, or choose another output folder",
            changed=changed,
        )


def find_changed_runs(
    store: str | Path, files: Mapping[str, Sequence[Sequence[str | int]]]
) -> list[str]:
    """Find the stored runs whose files have changed since.

    Parameters
    ----------
    store : str or pathlib.Path
        The folder ``labels.zarr``.
    files : mapping
        Name of the run to what describes its files now.

    Returns
    -------
    list of str
        Their names; runs that are not among `files` are left alone.
    """
    now = json.loads(json.dumps(dict(files)))
    stored = read_fingerprint(store)
    return [run for run in now if stored.get(f"{FILES}.{run}", now[run]) != now[run]]


def drop_run(store: str | Path, run: str) -> None:
    """Remove the labels of a run, all or nothing.

    Parameters
    ----------
    store : str or pathlib.Path
        The folder ``labels.zarr``.
    run : str
        The run.
    """
    # Under the name of one that is still being made, which nobody lists.
    going = Path(store, f".{run}.unfinished")
    shutil.rmtree(going, ignore_errors=True)
    Path(store, run).rename(going)
    shutil.rmtree(going)


def _say_change(key: str, old: Any, new: Any) -> str:
    if not key.startswith(f"{FILES}."):
        return f"{key} was {json.dumps(old)}, is {json.dumps(new)}"
    if new is None:
        return f"run '{key.removeprefix(f'{FILES}.')}' is no longer among runs.files"
    before, now = ({file[0]: file[1:] for file in files} for files in (old, new))
    names = sorted((k for k in before | now if before.get(k) != now.get(k)), key=natural_key)
    return ", ".join(_say_file(name, before.get(name), now.get(name)) for name in names)


def _say_file(name: str, old: Sequence[int] | None, new: Sequence[int] | None) -> str:
    if old is None or new is None:
        return f"file {name} {'came' if old is None else 'went'}"
    if old[-1] != new[-1]:
        return f"file {name} had {old[-1]} frames, has {new[-1]}"
    return f"file {name} was changed"

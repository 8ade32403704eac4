"""Who works on an output folder, for `spidask status` and for the driver that comes after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spidask.records import read_json, write_json


def read_cluster(output: str | Path) -> dict[str, Any]:
    """Read what the last driver wrote of its workers.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder.

    Returns
    -------
    dict
        ``kind`` of cluster, ``scheduler``, ``dashboard`` and ``tunnel`` as of
        `connection_facts`, ``jobs`` (their numbers in the queue) and ``workers`` (how many there
        were); empty where no driver is at work and none was killed.

    Raises
    ------
    StoreError
        If the file is damaged.
    """
    path = _place(output)
    return read_json(path) if path.exists() else {}


def write_cluster(output: str | Path, **facts: object) -> None:
    """Write or renew what a driver knows of its workers.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder.
    **facts
        Some of the entries of `read_cluster`.
    """
    before = read_cluster(output)
    if before != {**before, **facts}:
        write_json(_place(output), {**before, **facts})


def remove_cluster(output: str | Path) -> None:
    """Say that no workers are left.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder.
    """
    _place(output).unlink(missing_ok=True)


def _place(output: str | Path) -> Path:
    return Path(output) / "cluster.json"

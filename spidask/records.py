"""Small files of an output folder: JSON, all or nothing, and the lock of who works on it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from spidask.errors import StoreError

log = logging.getLogger(__name__)

PATIENCE_S = 1.0
"""`find_holder` holds the lock for a moment as well."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Returns
    -------
    dict
        What it holds.

    Raises
    ------
    StoreError
        If it cannot be read or holds something else.
    """
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}); remove it and what it describes", path=str(path)
        ) from None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object, all or nothing.

    Parameters
    ----------
    path : pathlib.Path
        The file; its folder is made.
    values : mapping
        What JSON can hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(dict(values), indent=1))
    beside.replace(path)


@contextmanager
def hold(output: str | Path) -> Iterator[None]:
    """Keep others from working on an output folder meanwhile.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder; made if it is not there.

    Yields
    ------
    None
        While nobody else can hold it. The lock goes with its process, however that ends.

    Raises
    ------
    StoreError
        If somebody else works on it; names the process.

    Notes
    -----
    A POSIX ``flock`` on the file ``.lock``. Some file systems know none, or only within one
    machine; then two runs in one folder are not told apart.
    """
    path = Path(output) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            _lock(file)
        except BlockingIOError:
            file.seek(0)
            raise StoreError(
                f"{output} is worked on by {file.read()}; wait for that, stop it, or choose "
                "another output"
            ) from None
        except OSError as error:
            log.warning("%s: no lock (%s); see to it that nothing else runs there", path, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _lock(file: IO[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def find_holder(output: str | Path) -> str | None:
    """Tell who works on an output folder.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder.

    Returns
    -------
    str or None
        The process and its machine; None if nobody does, or the file system knows no locks.
    """
    try:
        with (Path(output) / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return (Path(output) / ".lock").read_text()
    except OSError:
        return None
    return None

"""How far the stage classify is: ``progress.json`` for `spidask status`."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

from spidask.records import read_json, write_json

WRITE_EVERY_S = 2.0
"""Seconds between two writes."""
KEPT_FAILURES = 20
RATE_OVER = 50
"""Frames per second are of so many last shards."""


class Progress:
    """Counts shards while they are done, and keeps the counts in a file.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder.
    n_shards : int
        Shards to do.
    """

    def __init__(self, output: str | Path, n_shards: int) -> None:
        self._path = Path(output) / "progress.json"
        self._recent: deque[tuple[float, int]] = deque([(time.time(), 0)], RATE_OVER)
        self._written = 0.0
        self._facts: dict[str, Any] = {
            "shards": n_shards,
            "done": 0,
            "frames": 0,
            "hits": 0,
            "failed": 0,
            "failures": [],
            "stopped": "",
        }

    def add(self, n_frames: int, n_hits: int) -> None:
        """Count a finished shard.

        Parameters
        ----------
        n_frames, n_hits : int
            Frames and hits in it.
        """
        self._facts["done"] += 1
        self._facts["frames"] += n_frames
        self._facts["hits"] += n_hits
        self._recent.append((time.time(), self._facts["frames"]))

    def fail(self, run: str, number: int, cause: str) -> None:
        """Count a shard that failed; the first few are kept with their causes.

        Parameters
        ----------
        run : str
            Name of its run.
        number : int
            Its place in the run.
        cause : str
            What stopped it.
        """
        self._facts["failed"] += 1
        if len(self._facts["failures"]) < KEPT_FAILURES:
            self._facts["failures"].append([run, number, cause])

    def stop(self, cause: str) -> None:
        """Say what ended the stage before all shards were done.

        Parameters
        ----------
        cause : str
            Why.
        """
        self._facts["stopped"] = cause

    def write(self, *, ended: bool = False) -> None:
        """Write the file, unless that was done a moment ago.

        Parameters
        ----------
        ended : bool
            Whether the stage is over; then it is written in any case.
        """
        now = time.time()
        if now - self._written < WRITE_EVERY_S and not ended:
            return
        self._written = now
        (before, frames), (last, all_frames) = self._recent[0], self._recent[-1]
        rate = (all_frames - frames) / (last - before) if last > before else 0.0
        self._facts |= {"updated": now, "ended": ended, "frames_per_second": round(rate, 2)}
        write_json(self._path, self._facts)


def read_progress(output: str | Path) -> dict[str, Any]:
    """Read what `Progress` wrote.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder.

    Returns
    -------
    dict
        Counts, rate, failures, and what stopped it; empty before the first shard.

    Raises
    ------
    StoreError
        If the file is damaged.
    """
    path = Path(output) / "progress.json"
    return read_json(path) if path.exists() else {}

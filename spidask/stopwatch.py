"""Where the time of a shard goes: seconds by kind of work, summed over a process's threads."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_seconds: defaultdict[str, float] = defaultdict(float)
_lock = Lock()


@contextmanager
def measure(work: str) -> Iterator[None]:
    """Add the time that a block of code takes.

    Parameters
    ----------
    work : str
        What it does: read, preprocess, score, size or write.
    """
    start = time.perf_counter()
    try:
        yield
    finally:
        with _lock:
            _seconds[work] += time.perf_counter() - start


def take_seconds() -> dict[str, float]:
    """Give the sums and start anew.

    Returns
    -------
    dict
        Work to seconds. A worker does one shard at a time, so they are that shard's.
    """
    with _lock:
        taken = dict(_seconds)
        _seconds.clear()
    return taken

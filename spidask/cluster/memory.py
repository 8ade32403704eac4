"""Memory of workers: kept for the next array, given back before Dask minds."""

from __future__ import annotations

import ctypes
from typing import Any

from distributed import Worker, WorkerPlugin

KEEP = {
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_ARENA_MAX": "1",
}
"""Environment of workers. glibc's defaults give every freed array back to the system, and a network
asks for it again at once: a shard took twice as long. Arenas of threads hold no more than 64 MiB,
so that blocks of frames, which are larger, would be given back all the same."""


FULL = 0.5
"""Share of a worker's memory from which on what is free is given back; at 0.8 Dask pauses it."""


class GiveBack(WorkerPlugin):
    """Gives freed memory back to the system after a task, where there is much of it.

    Dask goes by what a process holds, freed or not: a worker that kept the memory of its training
    was paused for good.
    """

    name = "spidask-memory"

    def setup(self, worker: Worker) -> None:
        """Find the C library; Dask calls it in every worker.

        Parameters
        ----------
        worker : distributed.Worker
            The worker.
        """
        self._worker = worker
        library = ctypes.CDLL(None)
        # Only glibc has it, and only glibc keeps memory for the variables above.
        self._trim = getattr(library, "malloc_trim", lambda _kept: 0)

    def transition(self, key: object, start: str, finish: str, **_: Any) -> None:  # noqa: ARG002
        """Give memory back when a task is done; Dask calls it at every change.

        Parameters
        ----------
        key : object
            The task.
        start, finish : str
            What it was and what it is now.
        """
        limit = self._worker.memory_manager.memory_limit or float("inf")
        if start == "executing" and self._worker.monitor.get_process_memory() > FULL * limit:
            self._trim(0)

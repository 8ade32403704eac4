"""Tasks whose results are wanted one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from distributed import Client

from spidask.cluster.pool import Pool, wait_for_some


def map_in_order(
    work: Callable[[Any], Any],
    tasks: Iterator[Any],
    n_tasks: int,
    client: Client | None = None,
    pool: Pool | None = None,
) -> Iterator[Any]:
    """Do tasks on workers, a bounded number at a time, and give their results in order.

    Parameters
    ----------
    work : callable
        Takes a task.
    tasks : iterator
        What to do; a task is made when a worker is free for it.
    n_tasks : int
        How many there are.
    client : distributed.Client, optional
        Who does them; this process without it.
    pool : Pool, optional
        Keeps the client's workers while they are needed.

    Yields
    ------
    object
        What `work` gives for each task. No more than two results for each thread of the workers
        are kept at a time.
    """
    if client is None:
        yield from map(work, tasks)
        return
    waiting: deque[Any] = deque()
    for n_left in range(n_tasks, 0, -1):
        done = False
        while not done:
            n_threads = pool.n_threads if pool else sum(client.nthreads().values())
            n_free = min(2 * max(n_threads, 1), n_left) - len(waiting)
            for task in islice(tasks, max(n_free, 0)):
                waiting.append(client.submit(work, task, pure=False))
            if pool:
                pool.tend(n_left)
            done = bool(wait_for_some([waiting[0]]))
        yield waiting.popleft().result()

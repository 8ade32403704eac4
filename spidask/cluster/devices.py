"""One worker, one GPU: which worker gets which, also as a preload of Dask's nannies."""

from __future__ import annotations

import os
from pathlib import Path

from distributed import Nanny

from spidask import config

GPU, CPU = "GPU", "CPU"
"""Resources of workers: each has one of either kind, and a shard takes one."""
GPUS_OF_NODE = "SPIDASK_GPUS"
"""Environment variable of a job's nannies: the first so many workers get a GPU each."""
WORKERS_OF_NODE = "SPIDASK_WORKERS"
"""Environment variable of a job's nannies: how many there are."""


def count_local_workers(settings: config.Cluster) -> tuple[int, int]:
    """Count the workers with and without a GPU that this machine runs.

    Parameters
    ----------
    settings : config.Cluster
        Section `cluster`.

    Returns
    -------
    n_gpus, n_cpu_workers : int
        Workers of either kind.
    """
    n_gpus = len(visible_gpus()) if settings.gpus is None else settings.gpus
    n_cpu = settings.cpu_workers
    if n_cpu is None:
        n_cpu = 0 if n_gpus else len(os.sched_getaffinity(0))
    return n_gpus, n_cpu


def threads_of_gpu_worker(n_gpus: int, n_cpu_workers: int) -> int:
    """Share this machine's cores out among its workers with a GPU.

    Parameters
    ----------
    n_gpus, n_cpu_workers : int
        Workers with and without one; the latter have one thread each.

    Returns
    -------
    int
        Threads of a worker with a GPU, at least two: it reads the next block while its device
        scores the present one.
    """
    n_cores = len(os.sched_getaffinity(0))
    return max((n_cores - n_cpu_workers) // max(n_gpus, 1), 2)


def visible_gpus() -> list[str]:
    """List the GPUs that this process may use.

    Returns
    -------
    list of str
        Numbers or UUIDs, as CUDA_VISIBLE_DEVICES takes them.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*"))
    if given is None:
        return [str(i) for i in range(len(found))]
    # Batch systems may name devices that are not there, and an empty text means none.
    return [name for name in given.split(",") if name.strip()] if found else []


def pin_environment(index: int, devices: list[str]) -> dict[str, str]:
    """Environment that shows a worker its own GPU and no other.

    Parameters
    ----------
    index : int
        Place of the worker on its node.
    devices : list of str
        GPUs of the node; workers beyond their number see none.

    Returns
    -------
    dict
        Variables to set before the worker imports anything that uses GPUs.
    """
    device = devices[index] if index < len(devices) else ""
    return {"CUDA_VISIBLE_DEVICES": device}


async def dask_setup(nanny: Nanny) -> None:
    """Give each nanny of a batch job its own GPU; Dask calls it for ``--preload-nanny``.

    Parameters
    ----------
    nanny : distributed.Nanny
        One of the job's; where a job has several their names end in -0, -1, ...
    """
    n_gpus = int(os.environ.get(GPUS_OF_NODE, "0"))
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    # Sites that give whole nodes may set no variable: the job has every GPU.
    devices = given.split(",") if given else [str(i) for i in range(n_gpus)]
    several = int(os.environ.get(WORKERS_OF_NODE, "1")) > 1
    index = int(str(nanny.name).rpartition("-")[2]) if several else 0
    nanny.env.update(pin_environment(index, devices[:n_gpus]))
    # Fewer GPUs than were asked for: the others are no GPU workers.
    nanny.resources = {GPU: 1} if index < min(n_gpus, len(devices)) else {CPU: 1}

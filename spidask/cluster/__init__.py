"""Dask clients: the only room where one is made, and where batch systems are known."""

from spidask.cluster.allocation import is_driver
from spidask.cluster.connecting import connect, connection_facts
from spidask.cluster.devices import CPU, count_local_workers, threads_of_gpu_worker
from spidask.cluster.ordered import map_in_order
from spidask.cluster.pool import Pool, wait_for_some
from spidask.cluster.queues import JobState, job_script, list_jobs, say_jobs
from spidask.cluster.record import read_cluster

__all__ = [
    "CPU",
    "JobState",
    "Pool",
    "connect",
    "connection_facts",
    "count_local_workers",
    "is_driver",
    "job_script",
    "list_jobs",
    "map_in_order",
    "read_cluster",
    "say_jobs",
    "threads_of_gpu_worker",
    "wait_for_some",
]

"""Dask clients: the only room where one is made, and where batch systems are known."""

from spidask.cluster.connecting import connect, connection_facts
from spidask.cluster.devices import count_local_workers
from spidask.cluster.pool import Pool
from spidask.cluster.queues import JobState, job_script, list_jobs, say_jobs

__all__ = [
    "JobState",
    "Pool",
    "connect",
    "connection_facts",
    "count_local_workers",
    "job_script",
    "list_jobs",
    "say_jobs",
]

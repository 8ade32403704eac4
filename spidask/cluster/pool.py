"""The workers of a client while they come and go."""

from __future__ import annotations

import logging
import time
from typing import Any

from distributed import Client

from spidask import config
from spidask.cluster.devices import CPU, GPU
from spidask.cluster.queues import JobState, list_jobs, log_folder, say_jobs
from spidask.config import QUEUES
from spidask.errors import ClusterError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 15.0
"""Seconds between two questions to the queue."""


class Pool:
    """Keeps as many workers as were asked for, and says when none come.

    Parameters
    ----------
    client : distributed.Client
        As of `connect`.
    settings : config.Cluster
        Section `cluster`.
    output : str
        Output folder; errors name its logs.
    """

    def __init__(self, client: Client, settings: config.Cluster, output: str) -> None:
        self._client, self._settings, self._output = client, settings, output
        self._last_look, self._last_worker = -LOOK_EVERY_S, time.monotonic()
        self._silent: dict[str, float] = {}
        self.jobs: list[JobState] | None = []

    @property
    def demand(self) -> dict[str, float]:
        """Resources that a shard takes: a whole worker, with a GPU where there are any."""
        kinds = {kind for worker in self.workers.values() for kind in worker["resources"]}
        if GPU in kinds or (self._settings.gpus and self._settings.kind in QUEUES):
            return {GPU: 1}
        # Workers that somebody else started may have neither.
        return {CPU: 1} if CPU in kinds or self._settings.kind in QUEUES else {}

    @property
    def workers(self) -> dict[str, Any]:
        """Workers that are there, address to what the scheduler knows of each."""
        return dict(self._client.scheduler_info(n_workers=-1)["workers"])

    @property
    def n_able(self) -> int:
        """Workers that can do a shard."""
        demand = self.demand
        return sum(demand.keys() <= worker["resources"].keys() for worker in self.workers.values())

    def tend(self, n_left: int) -> None:
        """Replace lost jobs; to be called now and then while work is left.

        Parameters
        ----------
        n_left : int
            Tasks that are still to be done; no more jobs than these are kept.

        Raises
        ------
        ClusterError
            If there was no worker for `wait_minutes`; says what the queue says.
        """
        now = time.monotonic()
        if self.n_able:
            self._last_worker = now
        if now - self._last_look >= LOOK_EVERY_S:
            self._last_look = now
            if self._settings.kind in QUEUES:
                self._keep_jobs(n_left)
        if now - self._last_worker > 60 * self._settings.wait_minutes:
            raise ClusterError(self._say_none(), jobs=self.jobs)

    @property
    def _cluster(self) -> Any:
        return self._client.cluster

    def _keep_jobs(self, n_left: int) -> None:
        ids = {str(job.job_id): name for name, job in self._cluster.workers.items() if job.job_id}
        # Those without a number were refused by the queue.
        lost = [name for name, job in self._cluster.workers.items() if not job.job_id]
        if self._settings.kind == "slurm":
            self.jobs = list_jobs(list(ids))
            lost += self._find_lost(ids)
        self._client.sync(self._replace, lost, min(self._settings.jobs, max(n_left, 1)))

    async def _replace(self, lost: list[Any], wanted: int) -> None:
        cluster = self._cluster
        for name in lost:
            job_id = cluster.workers[name].job_id
            log.warning("job %s is lost" if job_id else "%s was not accepted", job_id or "a job")
            cluster.worker_spec.pop(name, None)
            await cluster.workers.pop(name).close()
        if len(cluster.workers) < wanted:
            log.info("%d more jobs asked for", wanted - len(cluster.workers))
            # Also asks anew for jobs whose place is kept but which Dask knows to have ended.
            cluster.scale(jobs=max(wanted, len(cluster.worker_spec)))

    def _find_lost(self, ids: dict[str, Any]) -> list[Any]:
        """Names of jobs that the queue does not know, or whose workers are silent too long."""
        if self.jobs is None:
            return []
        states = {job.job_id: job.state for job in self.jobs}
        heard = {str(worker["name"]) for worker in self.workers.values()}
        lost, now = [], time.monotonic()
        for job_id, name in ids.items():
            speaks = any(one == str(name) or one.startswith(f"{name}-") for one in heard)
            if speaks or states.get(job_id) != "RUNNING":
                self._silent[job_id] = now
            silence = now - self._silent.setdefault(job_id, now)
            if job_id not in states or silence > self._settings.worker_timeout_s:
                lost.append(name)
        return lost

    def _say_none(self) -> str:
        minutes = f"{self._settings.wait_minutes:g} minutes"
        if self._settings.kind not in QUEUES:
            return f"no worker for {minutes}; see cluster.kind ({self._settings.kind})"
        if self._settings.kind == "slurm":
            ids = [str(job.job_id) for job in self._cluster.workers.values()]
            told = f"squeue says: {say_jobs(list_jobs(ids))}"
        else:
            told = "ask the queue about jobs named spidask"
        return (
            f"no worker came within {minutes}; {told}; the jobs' logs are in "
            f"{log_folder(self._settings, self._output)}; check the job's script with "
            "`spidask plan`, or raise cluster.wait_minutes"
        )

"""The workers of a client while they come and go."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed import Client, Future, Status, wait

from spidask import config
from spidask.cluster.devices import CPU, GPU, count_local_workers
from spidask.cluster.queues import JobState, list_jobs, log_folder, say_jobs
from spidask.cluster.record import write_cluster
from spidask.config import QUEUES
from spidask.errors import ClusterError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 15.0
"""Seconds between two questions to the queue."""
POLL_S = 2.0
"""Seconds after which the workers are looked at while no task is done."""
REFUSALS = (RuntimeError, ValueError, OSError)
"""What dask-jobqueue raises where a job is not accepted."""
TRIES = 4
"""So many refusals, or jobs that end before a worker was heard of, in a row are no accident."""


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

    Attributes
    ----------
    demand : dict
        Resources that a shard or a rank takes: a whole worker, with a GPU where there are any.
    jobs : list of JobState or None
        What Slurm said last; None if it gave no answer.
    """

    def __init__(self, client: Client, settings: config.Cluster, output: str) -> None:
        self._client, self._settings, self._output = client, settings, output
        self._last_look, self._last_worker = -LOOK_EVERY_S, time.monotonic()
        self._silent: dict[str, float] = {}
        self._paused: dict[str, float] = {}
        self._heard: set[str] = set()
        self._n_refused = self._n_in_vain = 0
        self._refusal = ""
        self.demand = _demand(settings)
        self.jobs: list[JobState] | None = []
        if settings.kind in QUEUES:
            # Those of an earlier stage: they worked, and may have ended meanwhile.
            self._heard.update(self._job_ids())

    @property
    def workers(self) -> dict[str, Any]:
        """Workers that are there, address to what the scheduler knows of each."""
        return dict(self._client.scheduler_info(n_workers=-1)["workers"])

    @property
    def n_able(self) -> int:
        """Workers that can do a shard."""
        return self._count(self.demand)

    @property
    def n_helpers(self) -> int:
        """Workers without a GPU beside those that have one: they can do all but the scores."""
        return self._count({CPU: 1}) if GPU in self.demand else 0

    def _count(self, demand: Mapping[str, float]) -> int:
        running = [one for one in self.workers.values() if one["status"] == "running"]
        return sum(demand.keys() <= worker["resources"].keys() for worker in running)

    @property
    def n_threads(self) -> int:
        """Threads of all workers."""
        return sum(worker["nthreads"] for worker in self.workers.values())

    def tend(self, n_left: int) -> None:
        """Replace lost jobs; to be called now and then while work is left.

        Parameters
        ----------
        n_left : int
            Tasks that are still to be done; no more jobs than these are kept.

        Raises
        ------
        ClusterError
            If there was no worker for `wait_minutes`, or jobs are refused or end in vain again
            and again; says what the queue says.
        """
        now, workers = time.monotonic(), self.workers
        if self.n_able:
            self._last_worker = now
        self._restart_paused(workers)
        if now - self._last_look >= LOOK_EVERY_S:
            self._last_look = now
            if self._settings.kind in QUEUES:
                self._keep_jobs(n_left, {str(worker["name"]) for worker in workers.values()})
            write_cluster(self._output, workers=len(workers))
        if now - self._last_worker > 60 * self._settings.wait_minutes:
            raise ClusterError(self._say_none(), jobs=self.jobs)

    @property
    def _cluster(self) -> Any:
        return self._client.cluster

    def _job_ids(self) -> dict[str, Any]:
        """Numbers of the jobs that the queue accepted, each to its name."""
        jobs = self._cluster.workers.items()
        return {str(job.job_id): name for name, job in jobs if job.job_id}

    def _restart_paused(self, workers: Mapping[str, Any]) -> None:
        # Dask gives a paused worker's tasks to nobody else, and only a nanny can restart one.
        now = time.monotonic()
        paused = [a for a, one in workers.items() if one["status"] == "paused" and one["nanny"]]
        self._paused = {address: self._paused.get(address, now) for address in paused}
        limit = self._settings.worker_timeout_s
        if long := [address for address, since in self._paused.items() if now - since > limit]:
            log.warning("%d workers are restarted: their memory was full for too long", len(long))
            self._client.restart_workers(long, timeout=limit, raise_for_error=False)

    def _keep_jobs(self, n_left: int, names: set[str]) -> None:
        refused = [name for name, job in self._cluster.workers.items() if not job.job_id]
        self._client.sync(self._ask_again, refused)
        ids = self._job_ids()
        if self._n_refused >= TRIES and not ids:
            raise ClusterError(
                f"the queue refuses jobs: {self._refusal}. Check the job's script with "
                "`spidask plan`",
                jobs=self.jobs,
            )
        if self._settings.kind == "slurm":
            self.jobs = list_jobs(list(ids))
        lost = self._find_lost(ids, names)
        in_vain = [job_id for job_id in lost if job_id not in self._heard]
        self._n_in_vain = 0 if self._heard & ids.keys() - lost.keys() else self._n_in_vain
        self._n_in_vain += len(in_vain)
        if self._n_in_vain >= max(TRIES, self._settings.jobs):
            self._refuse_in_vain(in_vain)
        per_job = self._settings.gpus or self._settings.n_workers
        wanted = min(self._settings.jobs, max(math.ceil(n_left / per_job), 1))
        self._client.sync(self._replace, lost, wanted)
        write_cluster(self._output, jobs=list(self._job_ids()))

    async def _ask_again(self, refused: list[Any]) -> None:
        for name in refused:
            try:
                # Where the first request is still under way, this waits for it.
                await self._cluster.workers[name]
            except REFUSALS as error:
                told = str(error).rpartition("stderr:")[2].strip() or str(error)
                self._refusal = " ".join(told.split())
                log.warning("a job was not accepted: %s", self._refusal)
                self._n_refused += 1
                return  # the others would fare alike
        self._n_refused = 0

    async def _replace(self, lost: Mapping[str, Any], wanted: int) -> None:
        cluster = self._cluster
        for job_id, name in lost.items():
            log.warning("job %s is lost", job_id)
            await self._remove(name)
        # Those that still wait for their turn would come too late.
        waiting = [n for n, job in cluster.workers.items() if str(job.job_id) not in self._heard]
        for name in waiting[: max(len(cluster.workers) - wanted, 0)]:
            await self._remove(name)
        if len(cluster.workers) < wanted:
            log.info("%d more jobs asked for", wanted - len(cluster.workers))
            # Also asks anew for jobs whose place is kept but which Dask knows to have ended.
            cluster.scale(jobs=max(wanted, len(cluster.worker_spec)))
            with suppress(*REFUSALS):  # told when they are asked for again
                await cluster

    async def _remove(self, name: Any) -> None:
        self._cluster.worker_spec.pop(name, None)
        job = self._cluster.workers.pop(name)
        await job.close()
        job.status = Status.closed

    def _find_lost(self, ids: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
        """Jobs that the queue does not know, or whose workers are silent too long."""
        is_asked = self._settings.kind == "slurm"
        states = {job.job_id: job.state for job in self.jobs or []}
        lost, now = {}, time.monotonic()
        for job_id, name in ids.items():
            speaks = any(one == str(name) or one.startswith(f"{name}-") for one in names)
            if speaks:
                self._heard.add(job_id)
            # Other queues are not asked: a job that never spoke may wait for its turn.
            runs = states.get(job_id) == "RUNNING" if is_asked else job_id in self._heard
            # Where the queue gives no answer, nobody is lost.
            if speaks or not runs or self.jobs is None:
                self._silent[job_id] = now
            silence = now - self._silent.setdefault(job_id, now)
            is_gone = is_asked and self.jobs is not None and job_id not in states
            if is_gone or silence > self._settings.worker_timeout_s:
                lost[job_id] = name
        return lost

    def _refuse_in_vain(self, in_vain: list[str]) -> None:
        logs = log_folder(self._settings, self._output)
        raise ClusterError(
            f"{self._n_in_vain} jobs in a row ended before a worker was heard of; the end of the "
            f"last one's log in {logs}: {_last_words(Path(logs), in_vain[-1])}. Check the job's "
            "script with `spidask plan`",
            jobs=self.jobs,
        )

    def _say_none(self) -> str:
        minutes = f"{self._settings.wait_minutes:g} minutes"
        able = [w for w in self.workers.values() if self.demand.keys() <= w["resources"].keys()]
        if able:
            less = "raise cluster.job.memory, or lower"
            less = less if self._settings.kind in QUEUES else "start fewer workers, or lower"
            return (
                f"{len(able)} workers take no work since {minutes}, for their memory is full; "
                f"{less} inference.frames_per_block"
            )
        there = f"; of {len(self.workers)} workers none has a GPU" if self.workers else ""
        if self._settings.kind not in QUEUES:
            return f"no worker for {minutes}{there}; see cluster.kind ({self._settings.kind})"
        if self._settings.kind == "slurm":
            told = f"squeue says: {say_jobs(list_jobs(list(self._job_ids())))}"
        else:
            told = "ask the queue about jobs named spidask"
        told += f"; the last refusal: {self._refusal}" if self._refusal else ""
        return (
            f"no worker came within {minutes}{there}; {told}; the jobs' logs are in "
            f"{log_folder(self._settings, self._output)}; check the job's script with "
            "`spidask plan`, or raise cluster.wait_minutes"
        )


def wait_for_some(futures: Collection[Future[Any]]) -> list[Future[Any]]:
    """Wait until one of some tasks is done, but not for long, so that a `Pool` can be tended.

    Parameters
    ----------
    futures : collection of distributed.Future
        What was submitted.

    Returns
    -------
    list of distributed.Future
        Those that are done, after `POLL_S` perhaps none.
    """
    with suppress(TimeoutError):
        wait(list(futures), timeout=POLL_S, return_when="FIRST_COMPLETED")
    return [future for future in futures if future.done()]


def _demand(settings: config.Cluster) -> dict[str, float]:
    n_gpus = count_local_workers(settings)[0] if settings.kind == "local" else settings.gpus
    if n_gpus:
        return {GPU: 1}
    # Workers that somebody else started have no resources.
    return {} if settings.kind == "scheduler" else {CPU: 1}


def _last_words(folder: Path, job_id: str) -> str:
    lines = [
        line.strip()
        for path in sorted(folder.glob(f"*{job_id}*"))
        for line in path.read_text(errors="replace").splitlines()
    ]
    return next((line for line in reversed(lines) if line), "nothing")

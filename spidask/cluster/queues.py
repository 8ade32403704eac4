"""Batch systems: the script of a worker's job as text, and what the queue says of jobs."""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.security import Security

from spidask import config
from spidask.cluster.devices import GPUS_OF_NODE, WORKERS_OF_NODE
from spidask.cluster.memory import KEEP
from spidask.errors import ConfigError

CLASSES = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "htcondor": "HTCondorCluster",
}
"""Names of dask-jobqueue's classes."""
DEATH_TIMEOUT_S = 300
"""A job whose scheduler is gone for so long ends by itself."""
LAST_SHARE, LAST_SECONDS = 0.1, 300
"""Workers leave this share of the walltime before its end, or so many seconds if that is less."""
SCHEDULER_PLACE = "tls://<scheduler>:<port>"
"""Stands in scripts that are shown before there is a scheduler."""


@dataclass(frozen=True)
class JobState:
    """What the queue says of one job.

    Attributes
    ----------
    job_id : str
        Its number.
    state : str
        In the queue's words, such as RUNNING or PENDING.
    reason : str
        Why it waits, or where it runs.
    """

    job_id: str
    state: str
    reason: str


def job_script(settings: config.Cluster, output: str | Path) -> str:
    """Write the script of a worker's job, without submitting or creating anything.

    Parameters
    ----------
    settings : config.Cluster
        Section `cluster`, of a batch system.
    output : str or pathlib.Path
        Output folder, where logs and certificates go.

    Returns
    -------
    str
        The script; the scheduler's address and the worker's name are placeholders.

    Raises
    ------
    ConfigError
        If `kind` is no batch system or a directive does not fit it.
    """
    # Files that do not exist yet: dask-jobqueue writes the certificates when jobs are submitted.
    names = {key: f"{tls_folder(output)}/{key}.pem" for key in ("ca_file", "cert", "key")}
    security = Security(
        tls_ca_file=names["ca_file"],
        tls_worker_cert=names["cert"],
        tls_worker_key=names["key"],
        require_encryption=True,
    )
    arguments = job_arguments(settings, output)
    kind = queue_class(settings.kind).job_cls
    # A job makes its folder for logs at once; this one is to leave no trace.
    with tempfile.TemporaryDirectory() as elsewhere:
        arguments["log_directory"] = elsewhere
        job = kind(
            SCHEDULER_PLACE, name="spidask-0", security=security, protocol="tls://", **arguments
        )
        return str(job.job_script()).replace(elsewhere, log_folder(settings, output))


def job_arguments(settings: config.Cluster, output: str | Path) -> dict[str, Any]:
    """Arguments that make dask-jobqueue write the jobs of a config.

    Parameters
    ----------
    settings : config.Cluster
        Section `cluster`, of a batch system.
    output : str or pathlib.Path
        Output folder, where logs go unless `job.log_directory` names another.

    Returns
    -------
    dict
        Keyword arguments of its job classes.

    Raises
    ------
    ConfigError
        If a path cannot stand in a job's script, or a directive does not fit.
    """
    job = settings.job
    for path in (str(tls_folder(output)), log_folder(settings, output)):
        if len(path.split()) > 1:
            raise ConfigError(
                f"output: '{path}' has a space in it, and the scripts of jobs do not bear that; "
                "choose another output"
            )
    arguments: dict[str, Any] = {
        "cores": job.cores,
        "memory": job.memory,
        "processes": settings.n_workers,
        "job_name": "spidask",
        "job_extra_directives": job.directives,
        "job_directives_skip": job.skip_directives,
        "job_script_prologue": [
            *job.prologue,
            f"cd {shlex.quote(os.getcwd())}",
            *_exports(settings),
        ],
        "worker_extra_args": _worker_arguments(settings),
        "local_directory": job.local_directory,
        "log_directory": log_folder(settings, output),
        "interface": job.interface,
        "python": job.python or sys.executable,
        "death_timeout": DEATH_TIMEOUT_S,
    }
    return {**arguments, **_of_kind(settings)}


def queue_class(kind: str) -> Any:
    """Import dask-jobqueue's class of a batch system.

    Parameters
    ----------
    kind : str
        As in section `cluster`.

    Returns
    -------
    type
        A subclass of ``dask_jobqueue.core.JobQueueCluster``.
    """
    return getattr(import_jobqueue(), CLASSES[kind])


def import_jobqueue() -> Any:
    """Import dask-jobqueue, and undo that it then answers Ctrl-C with a silent success.

    Returns
    -------
    module
        dask_jobqueue. Only a main thread can import it, so no module does so at its top.
    """
    handler = signal.getsignal(signal.SIGINT)
    jobqueue = importlib.import_module("dask_jobqueue")
    signal.signal(signal.SIGINT, handler)
    return jobqueue


def log_folder(settings: config.Cluster, output: str | Path) -> str:
    """Folder of the jobs' logs.

    Parameters
    ----------
    settings : config.Cluster
        Section `cluster`.
    output : str or pathlib.Path
        Output folder.

    Returns
    -------
    str
        Absolute, because jobs start elsewhere.
    """
    return str(Path(settings.job.log_directory or Path(output) / "logs").absolute())


def tls_folder(output: str | Path) -> Path:
    """Folder of the certificates that jobs read; only its owner may.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder.

    Returns
    -------
    pathlib.Path
        Absolute path.
    """
    return (Path(output) / "tls").absolute()


def list_jobs(job_ids: list[str]) -> list[JobState] | None:
    """Ask Slurm about jobs.

    Parameters
    ----------
    job_ids : list of str
        Their numbers.

    Returns
    -------
    list of JobState or None
        Those that wait or run; None if Slurm gives no answer.
    """
    if not job_ids:
        return []
    command = ["squeue", "--noheader", "--format=%i|%T|%R", "--jobs", ",".join(job_ids)]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # Slurm forgets ended jobs after some minutes and then calls their numbers invalid.
    if told.returncode and "Invalid job id" not in told.stderr:
        return None
    rows = [line.split("|", 2) for line in told.stdout.splitlines() if line.count("|") >= 2]
    return [JobState(*row) for row in rows if row[1] not in ("COMPLETING", "COMPLETED")]


def cancel_jobs(job_ids: list[str]) -> int:
    """Take jobs out of Slurm's queue.

    Parameters
    ----------
    job_ids : list of str
        Their numbers.

    Returns
    -------
    int
        How many of them were still there.
    """
    left = list_jobs(job_ids)
    if left:
        subprocess.run(["scancel", *(job.job_id for job in left)], check=False, timeout=30)
    return len(left or [])


def say_jobs(jobs: list[JobState] | None) -> str:
    """Say in one line what the queue says.

    Parameters
    ----------
    jobs : list of JobState or None
        As of `list_jobs`.

    Returns
    -------
    str
        Alike ones counted, such as "2 RUNNING, 1 PENDING (Resources)".
    """
    if jobs is None:
        return "the queue gives no answer"
    told = Counter(
        job.state if job.state == "RUNNING" else f"{job.state} {job.reason}" for job in jobs
    )
    return ", ".join(f"{n} {text}" for text, n in sorted(told.items())) or "no jobs in the queue"


def _exports(settings: config.Cluster) -> list[str]:
    # Workers serve nothing over HTTP, and the nannies learn how many GPUs to share out.
    return [
        f"export {GPUS_OF_NODE}={settings.gpus or 0}",
        f"export {WORKERS_OF_NODE}={settings.n_workers}",
        "export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES=[]",
        *(f"export {name}={value}" for name, value in KEEP.items()),
    ]


def _worker_arguments(settings: config.Cluster) -> list[str]:
    last = min(round(LAST_SHARE * settings.job.walltime_seconds), LAST_SECONDS)
    return [
        "--preload-nanny",
        "spidask.cluster.devices",
        "--no-dashboard",
        "--dashboard-address",
        "127.0.0.1:0",
        # The stagger goes both ways.
        "--lifetime",
        f"{settings.job.walltime_seconds - 2 * last}s",
        "--lifetime-stagger",
        f"{last}s",
    ]


def _of_kind(settings: config.Cluster) -> dict[str, Any]:
    job, kind = settings.job, settings.kind
    if kind == "htcondor":
        return {"disk": job.disk, "job_extra_directives": _as_pairs(job.directives)}
    minutes, seconds = divmod(job.walltime_seconds, 60)
    hours, minutes = divmod(minutes, 60)
    walltime = f"{hours:02d}:{minutes:02d}"  # all that LSF takes
    account = "project" if kind in ("sge", "lsf") else "account"
    if kind != "lsf":
        walltime += f":{seconds:02d}"
    return {"queue": job.queue, account: job.account, "walltime": walltime}


def _as_pairs(directives: list[str]) -> dict[str, str]:
    pairs = {}
    for directive in directives:
        key, equals, value = directive.partition("=")
        if not equals:
            raise ConfigError(
                f"cluster.job.directives: {directive}: HTCondor expects 'key = value'"
            )
        pairs[key.strip()] = value.strip()
    return pairs

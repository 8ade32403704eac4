"""Workers that cannot come, or cannot do what they are to do."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from spidask.checks.problems import Beamtime, Problem, as_problem, finds
from spidask.cluster import count_local_workers, job_script
from spidask.config import QUEUES
from spidask.errors import ConfigError

SUBMIT = {
    "slurm": "sbatch",
    "pbs": "qsub",
    "sge": "qsub",
    "lsf": "bsub",
    "htcondor": "condor_submit",
}
ASKS_FOR_GPUS = ("gpu", "gres", "exclusive")
"""A directive with one of these may bring GPUs."""


@finds
def _no_queue(beamtime: Beamtime) -> Iterator[Problem]:
    """A batch system that this machine does not know, or a job that cannot be written."""
    cluster = beamtime.config.cluster
    if cluster.kind not in QUEUES:
        return
    if not shutil.which(SUBMIT[cluster.kind]):
        yield Problem(
            "cluster.kind",
            f"{cluster.kind}: this machine has no {SUBMIT[cluster.kind]}; run on a login node, or "
            "set local",
        )
    try:
        job_script(cluster, beamtime.config.output)
    except ConfigError as error:
        yield as_problem(error, "cluster.job")


@finds
def _bad_job(beamtime: Beamtime) -> Iterator[Problem]:
    """What a job needs and will not find."""
    cluster = beamtime.config.cluster
    if cluster.kind not in QUEUES:
        return
    job, interfaces = cluster.job, [name for _, name in socket.if_nameindex()]
    if job.interface and job.interface not in interfaces:
        yield Problem(
            "cluster.job.interface",
            f"{job.interface}: this machine has {', '.join(interfaces)}; the scheduler runs here",
        )
    if job.python and not Path(job.python).is_file():
        yield Problem(
            "cluster.job.python",
            f"{job.python} is not on this machine; is it on the nodes?",
            "warning",
        )
    if beamtime.config.inference.device == "cuda" and not cluster.gpus:
        yield Problem(
            "cluster.gpus", "missing, but inference.device is cuda; say how many a job has"
        )
    directives = " ".join(job.directives).lower()
    if cluster.gpus and not any(word in directives for word in ASKS_FOR_GPUS):
        yield Problem(
            "cluster.gpus",
            f"{cluster.gpus}, and none of cluster.job.directives asks for a GPU, as "
            f"'--gres=gpu:{cluster.gpus}' does; fine where the queue gives whole nodes",
            "warning",
        )


@finds
def _too_many_ranks(beamtime: Beamtime) -> Iterator[Problem]:
    """More ranks than there will ever be workers."""
    config = beamtime.config
    if config.inference.members or config.cluster.kind not in ("local", *QUEUES):
        return
    if config.cluster.kind == "local":
        n_gpus, n_cpu_workers = count_local_workers(config.cluster)
        n_workers = n_gpus or n_cpu_workers
    else:
        n_workers = config.cluster.jobs * (config.cluster.gpus or config.cluster.n_workers)
    if config.training.ranks > n_workers:
        yield Problem(
            "training.ranks",
            f"{config.training.ranks}, but there are at most {n_workers} workers that train; lower "
            "it, or ask for more",
        )

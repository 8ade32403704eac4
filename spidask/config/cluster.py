"""The section of the YAML file that says who does the work."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from spidask.config.base import Count, Positive, Section

QUEUES = ("slurm", "pbs", "sge", "lsf", "htcondor")
"""Kinds whose workers are batch jobs."""
WALLTIME = re.compile(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?")
"""[days-]hours:minutes[:seconds]"""
SIZE = re.compile(r"\d+(\.\d+)? ?[kKMGT]i?B")


class Job(Section):
    """What one batch job asks for."""

    cores: Count = 8
    """CPU cores, shared by the job's workers."""
    memory: str = "32GB"
    """Shared by the job's workers."""
    walltime: str = "04:00:00"
    """[days-]hours:minutes[:seconds]; workers leave by themselves before it is over."""
    queue: str | None = None
    """Queue or partition; Slurm takes several with commas between them."""
    account: str | None = None
    directives: list[str] = Field(default_factory=list)
    """More lines for the job's header, such as ``--gres=gpu:1``; HTCondor: ``key = value``."""
    skip_directives: list[str] = Field(default_factory=list)
    """Header lines that hold one of these texts are left out, such as ``--mem``."""
    prologue: list[str] = Field(default_factory=list)
    """Shell commands before the workers start."""
    local_directory: str | None = None
    """Folder on the node's own disk; nothing: the job's working folder."""
    log_directory: str | None = None
    """Nothing: ``logs`` in the output folder."""
    interface: str | None = None
    """Network interface of scheduler and workers, such as ``ib0``; nothing: the default route's."""
    python: str | None = None
    """Python of the workers; nothing: the one that runs here."""
    disk: str = "1GB"
    """HTCondor only."""

    @field_validator("walltime", mode="before")
    @classmethod
    def _is_a_time(cls, text: object) -> object:
        # YAML reads 12:00:00 without quotes as a number.
        if (
            not isinstance(text, str)
            or not WALLTIME.fullmatch(text)
            or not re.search("[1-9]", text)
        ):
            raise ValueError(f"{text} is no time; give hours:minutes:seconds, and quote it")
        return text

    @field_validator("memory", "disk")
    @classmethod
    def _is_a_size(cls, text: str) -> str:
        if not SIZE.fullmatch(text) or not re.search("[1-9]", text):
            raise ValueError(f"{text} is no size; give a number with a unit, as 64GB")
        return text

    @property
    def walltime_seconds(self) -> int:
        """Walltime in seconds."""
        found = WALLTIME.fullmatch(self.walltime)
        assert found is not None
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


class Cluster(Section):
    """Who does the work."""

    kind: Literal[
        "local", "inline", "scheduler", "allocation", "slurm", "pbs", "sge", "lsf", "htcondor"
    ] = "local"
    """Processes of this machine; this process; a scheduler that runs; one Slurm allocation
    started with ``srun``; or jobs of a batch system."""
    site: str | None = None
    """YAML file whose section ``cluster`` holds what is not given here."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs of a job or an allocation's node, of this machine, or of all workers of a scheduler that
    runs (these have the resource GPU); one worker each. Nothing: all of this machine, else none."""
    cpu_workers: Annotated[int, Field(ge=0)] | None = None
    """Workers without a GPU, of a job or of this machine; nothing: one for each core where there
    is no GPU, else none."""
    jobs: Count = 1
    """Batch jobs at a time; lost ones are replaced."""
    job: Job = Job()
    scheduler: str | None = None
    """Address, or scheduler file, of a scheduler that runs; its TLS is that of Dask's
    configuration."""
    wait_minutes: Positive = 60.0
    """Without any worker for so long, the run stops and says what the queue says."""
    worker_timeout_s: Positive = 300.0
    """A worker that is not heard of for so long is given up; its shards go to others."""
    dashboard_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """On 127.0.0.1; 0: any that is free."""
    jump_host: str | None = None
    """Where ``ssh`` has to pass to reach the dashboard, such as user@gateway."""

    @model_validator(mode="after")
    def _complete(self) -> Cluster:
        if (self.kind == "scheduler") != (self.scheduler is not None):
            raise ValueError(
                "scheduler: an address or a file goes with kind: scheduler, and with no other kind"
            )
        none = self.n_workers == 0 if self.kind in QUEUES else self.gpus == self.cpu_workers == 0
        if none:
            raise ValueError("cpu_workers: 0, and no gpus; give at least one worker")
        if self.kind in QUEUES and self.n_workers > self.job.cores:
            raise ValueError(
                f"job.cores: {self.job.cores} cores for {self.n_workers} workers; give each one"
            )
        return self

    @property
    def n_workers(self) -> int:
        """Workers of a batch job, or of an allocation's node."""
        gpus = self.gpus or 0
        cpu_workers = self.cpu_workers
        if cpu_workers is None:
            cpu_workers = 0 if gpus else self.job.cores
        return gpus + cpu_workers

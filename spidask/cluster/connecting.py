"""Start the workers that a config asks for, and stop them at the end."""

from __future__ import annotations

import getpass
import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dask
from distributed import Client, Nanny, Scheduler, Status
from distributed.deploy.spec import SpecCluster
from distributed.security import Security
from distributed.system import MEMORY_LIMIT
from distributed.utils import get_ip

from spidask import config
from spidask.cluster.allocation import join_allocation
from spidask.cluster.devices import (
    CPU,
    GPU,
    count_local_workers,
    pin_environment,
    threads_of_gpu_worker,
    visible_gpus,
)
from spidask.cluster.memory import KEEP, GiveBack
from spidask.cluster.queues import cancel_jobs, job_arguments, log_folder, queue_class, tls_folder
from spidask.cluster.record import read_cluster, remove_cluster, write_cluster
from spidask.errors import ClusterError

log = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 20
"""A scheduler that runs answers within so many seconds."""
DASK_SETTINGS = {
    # Workers on a busy machine take longer than the default to import torch.
    "distributed.comm.timeouts.connect": "120s",
    # A preempted worker is no fault of the shard that it held.
    "distributed.scheduler.allowed-failures": 10,
    # Nannies restart their workers; jobs that are gone are found by asking the queue.
    "distributed.deploy.lost-worker-timeout": "1h",
    "distributed.worker.http.routes": [],
    **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in KEEP.items()},
}


@contextmanager
def connect(settings: config.Cluster, output: str | Path) -> Iterator[Client | None]:
    """Start what a config asks for, and stop it at the end.

    Parameters
    ----------
    settings : config.Cluster
        Section `cluster`.
    output : str or pathlib.Path
        Output folder; jobs keep their logs and certificates there.

    Yields
    ------
    distributed.Client or None
        A client of the workers; None where the work is done inline. All speak TLS, with
        certificates that are thrown away in the end; a scheduler that runs already is asked with
        those of Dask's configuration.

    Raises
    ------
    ClusterError
        If there is no such scheduler or queue.

    Notes
    -----
    With `kind: allocation` only one of the processes gets here: one serves as the scheduler and
    the others as workers, and these end without coming back.
    """
    if settings.kind == "inline":
        yield None
        return
    port = settings.dashboard_port or _find_free_port()
    settings = settings.model_copy(update={"dashboard_port": port})
    _clear_up(output)
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(DASK_SETTINGS | _dask_settings(settings)))
        if settings.kind == "scheduler":
            client = stack.enter_context(_join(str(settings.scheduler)))
        elif settings.kind == "allocation":
            client = stack.enter_context(join_allocation(settings, output))
        else:
            start = _start_local if settings.kind == "local" else _start_queue
            client = stack.enter_context(Client(stack.enter_context(start(settings, output))))
        client.register_plugin(GiveBack())
        if settings.kind == "scheduler":  # its workers stay
            stack.callback(client.unregister_worker_plugin, GiveBack.name)
        facts = connection_facts(client, settings)
        log.info("dashboard: %s", facts["tunnel"])
        write_cluster(output, kind=settings.kind, **facts)
        stack.callback(remove_cluster, output)
        yield client


def connection_facts(client: Client, settings: config.Cluster) -> dict[str, str]:
    """Say where the scheduler and its dashboard are.

    Parameters
    ----------
    client : distributed.Client
        A client of the scheduler.
    settings : config.Cluster
        Section `cluster`; gives the host to jump over.

    Returns
    -------
    dict
        ``scheduler`` (address), ``dashboard`` (address as seen on the scheduler's machine) and
        ``tunnel`` (the command that reaches it from elsewhere).
    """
    info = client.scheduler_info(n_workers=0)
    port = info["services"].get("dashboard")
    here = urlsplit(info["address"]).hostname
    host = socket.getfqdn() if here in ("127.0.0.1", None) else here
    jump = f"-J {settings.jump_host} " if settings.jump_host else ""
    tunnel = f"ssh {jump}-N -L {port}:127.0.0.1:{port} {getpass.getuser()}@{host}"
    page = f"http://127.0.0.1:{port}/spidask"
    return {
        "scheduler": info["address"],
        "dashboard": page,
        "tunnel": f"{tunnel}, then {page}",
    }


def _dask_settings(settings: config.Cluster) -> dict[str, Any]:
    hosts = [f"{host}:{settings.dashboard_port}" for host in ("127.0.0.1", "localhost")]
    return {
        "distributed.scheduler.worker-ttl": f"{settings.worker_timeout_s:g}s",
        # Else any page that is open in a user's browser may talk to the dashboard.
        "distributed.scheduler.dashboard.bokeh-application.allow-websocket-origin": hosts,
    }


def _find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def _start_local(settings: config.Cluster, _output: str | Path) -> Iterator[SpecCluster]:
    n_gpus, n_cpu_workers = count_local_workers(settings)
    n_workers = n_gpus + n_cpu_workers
    if n_workers == 0:
        raise ClusterError("cluster: 0 GPUs and 0 cpu_workers; give at least one worker")
    devices = visible_gpus() or [str(i) for i in range(n_gpus)]
    cores = threads_of_gpu_worker(n_gpus, n_cpu_workers)
    security = Security.temporary()
    shared: dict[str, Any] = {
        "host": "127.0.0.1",
        "protocol": "tls://",
        "security": security,
        "memory_limit": MEMORY_LIMIT // n_workers,
        "dashboard": False,
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": logging.ERROR,
    }
    workers = {}
    for index in range(n_workers):
        on_gpu = index < n_gpus
        own = {
            "nthreads": cores if on_gpu else 1,
            "resources": {GPU if on_gpu else CPU: 1},
            "env": pin_environment(index, devices[:n_gpus]),
        }
        workers[index] = {"cls": Nanny, "options": {**shared, **own}}
    scheduler = {"cls": Scheduler, "options": _scheduler_options(settings, security, "127.0.0.1")}
    log.info("%d workers with a GPU, %d without", n_gpus, n_cpu_workers)
    with SpecCluster(workers, scheduler, security=security, silence_logs=logging.ERROR) as cluster:
        yield cluster


@contextmanager
def _start_queue(settings: config.Cluster, output: str | Path) -> Iterator[Any]:
    folder = tls_folder(output)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    for path in folder.glob(".dask-jobqueue.worker.*"):
        path.unlink(missing_ok=True)  # of a driver that was killed
    security = Security.temporary()
    options = _scheduler_options(settings, security, None)
    if settings.job.interface:
        options["interface"] = settings.job.interface
    else:
        options["host"] = get_ip()
    cluster = queue_class(settings.kind)(
        security=security,
        shared_temp_directory=str(folder),
        scheduler_options=options,
        silence_logs="error",
        **job_arguments(settings, output),
    )
    try:
        with cluster:
            # A `Pool` asks for jobs when there is work for them.
            log.info("jobs' logs: %s", log_folder(settings, output))
            try:
                yield cluster
            finally:
                # Dask wants to see that jobs which are gone soon, or were refused, do not run.
                for job in list(cluster._created):
                    job.status = Status.closing
    finally:
        for part in ("ca_file", "cert", "key"):
            getattr(cluster, f"_job_{part}").close()


def _clear_up(output: str | Path) -> None:
    """Take the jobs of a driver that was killed out of the queue."""
    before = read_cluster(output)
    if before.get("kind") == "slurm" and (n_cancelled := cancel_jobs(before.get("jobs", []))):
        log.info("%d jobs of a run that was killed are cancelled", n_cancelled)
    remove_cluster(output)


def _scheduler_options(
    settings: config.Cluster, security: Security, host: str | None
) -> dict[str, Any]:
    options = {
        "protocol": "tls://",
        "security": security,
        "dashboard_address": f"127.0.0.1:{settings.dashboard_port}",
    }
    return options if host is None else {**options, "host": host}


def _join(place: str) -> Client:
    if "://" not in place and not Path(place).is_file():
        raise ClusterError(
            f"cluster.scheduler: {place} is neither an address, such as tls://node:8786, nor a "
            "scheduler file that is there"
        )
    if place.startswith("tcp://"):
        log.warning("%s speaks no TLS: whoever reaches it can run code as you", place)
    try:
        if "://" in place:
            return Client(place, security=Security(), timeout=JOIN_TIMEOUT_S)
        return Client(scheduler_file=place, security=Security(), timeout=JOIN_TIMEOUT_S)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ClusterError(
            f"cluster.scheduler: {place} cannot be reached ({reason}); is it running, and are its "
            "certificates in Dask's configuration (distributed.comm.tls)?"
        ) from None

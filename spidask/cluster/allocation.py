"""One Slurm allocation: ``srun`` starts a scheduler, a driver and workers in it."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.security import Security
from distributed.utils import get_ip

from spidask import config
from spidask.cluster.devices import CPU, GPU, pin_environment
from spidask.errors import ClusterError

log = logging.getLogger(__name__)

SCHEDULER, DRIVER = 0, 1
"""Ranks of the processes that do not work; SLURMRunner gives them out like this."""
CERTIFICATE_WAIT_S = START_S = 120
ROLES = ("scheduler", "worker", "client")


@contextmanager
def join_allocation(settings: config.Cluster, output: str | Path) -> Iterator[Client]:
    """Play this process's part in an allocation.

    Parameters
    ----------
    settings : config.Cluster
        Section `cluster`; `gpus` are those of each node.
    output : str or pathlib.Path
        Output folder; the certificates and the scheduler's address go there.

    Yields
    ------
    distributed.Client
        In one process only, the driver; the scheduler and the workers end here.

    Raises
    ------
    ClusterError
        If ``srun`` did not start this process, or started too few.
    """
    try:
        rank, local = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_LOCALID"])
    except (KeyError, ValueError):
        raise ClusterError(
            "cluster.kind: allocation works inside of a Slurm job only; start it with "
            "`srun spidask run ...`"
        ) from None
    folder = (Path(output) / "tls").absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    # A restarted job must not read the address or the key of the time before.
    step = "-".join(
        os.environ.get(name, "0")
        for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    )
    if rank == DRIVER:
        # A job that was killed left its own; the driver has the folder for itself.
        _remove(path for path in folder.iterdir() if step not in path.name)
    security = share_security(folder / f"{step}.pem", create=rank == SCHEDULER)
    slurm = importlib.import_module("dask_jobqueue.slurm")
    try:
        runner = slurm.SLURMRunner(
            scheduler_file=str(folder / f"scheduler-{step}.json"),
            scheduler_options={
                "protocol": "tls://",
                "security": security,
                "host": get_ip(),
                "dashboard_address": f"127.0.0.1:{settings.dashboard_port}",
            },
            worker_class="distributed.Nanny",
            worker_options=_worker_options(settings, security, place_on_node(rank, local)),
        )
    except slurm.WorldTooSmallException as error:
        raise ClusterError(f"cluster.kind: allocation: {error} Raise srun's --ntasks.") from None
    # The runner's own comm knows no TLS, so that ending the scheduler is the client's part.
    runner.scheduler_comm = None
    with Client(runner.scheduler_address, security=security) as client:
        try:
            _wait_for_all(client, int(os.environ["SLURM_NTASKS"]) - DRIVER - 1)
            yield client
        finally:
            # First, as a job that is cancelled has little time.
            _remove(folder.glob(f"*{step}*"))
            client.shutdown()


def is_driver() -> bool:
    """Tell whether this process of an allocation is the one that `join_allocation` comes back in.

    Returns
    -------
    bool
        By Slurm's number of the process; False outside of an allocation.
    """
    return os.environ.get("SLURM_PROCID") == str(DRIVER)


def _worker_options(settings: config.Cluster, security: Security, index: int) -> dict[str, Any]:
    on_gpu = 0 <= index < (settings.gpus or 0)
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = given.split(",") if given else [str(i) for i in range(settings.gpus or 0)]
    return {
        "protocol": "tls://",
        "security": security,
        "nthreads": int(os.environ.get("SLURM_CPUS_PER_TASK", "1")),
        "resources": {GPU if on_gpu else CPU: 1},
        "env": pin_environment(index if on_gpu else len(devices), devices),
        "local_directory": settings.job.local_directory,
        "dashboard": False,
        "dashboard_address": "127.0.0.1:0",
    }


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        path.unlink(missing_ok=True)


def _wait_for_all(client: Client, n_workers: int) -> None:
    # One that started after the work is done would fail, and with it the whole job.
    try:
        client.wait_for_workers(n_workers, timeout=START_S)
    except TimeoutError:
        log.warning("not all of %d workers came within %d s; going on", n_workers, START_S)


def place_on_node(rank: int, local: int) -> int:
    """Place of a worker among the workers of its node.

    Parameters
    ----------
    rank : int
        Number of the process among all, Slurm's SLURM_PROCID; node after node (srun's default
        distribution, block).
    local : int
        Number among those of its node, SLURM_LOCALID.

    Returns
    -------
    int
        0, 1, ... for workers; negative for scheduler and driver.

    Examples
    --------
    >>> [place_on_node(rank, local) for rank, local in [(1, 1), (2, 2), (3, 3), (4, 0), (5, 1)]]
    [-1, 0, 1, 0, 1]
    """
    first = rank - local
    return local - max(DRIVER + 1 - first, 0)


def share_security(path: Path, create: bool) -> Security:
    """Make, or wait for, the certificate that all processes of an allocation share.

    Parameters
    ----------
    path : pathlib.Path
        File on a disk that all see; only its owner may read it.
    create : bool
        One process makes it.

    Returns
    -------
    distributed.security.Security
        TLS for every role.

    Raises
    ------
    ClusterError
        If nobody makes it.
    """
    if create:
        _write_private(path, Security.temporary())
    deadline = time.monotonic() + CERTIFICATE_WAIT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{path} did not appear within {CERTIFICATE_WAIT_S} s; does every node see this "
                "folder, and does the first process run?"
            )
        time.sleep(0.2)
    names = [f"tls_{role}_{part}" for role in ROLES for part in ("cert", "key")]
    return Security(
        require_encryption=True, tls_ca_file=str(path), **dict.fromkeys(names, str(path))
    )


def _write_private(path: Path, made: Security) -> None:
    beside = path.with_suffix(".part")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        # Certificate and key in one file, as TLS libraries take it.
        file.write("\n".join(made.get_tls_config_for_role("scheduler")[k] for k in ("cert", "key")))
    beside.replace(path)

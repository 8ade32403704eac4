"""Memory high-water marks of workers."""

from __future__ import annotations

from logging import CRITICAL
from pathlib import Path

import dask
import xarray as xr
from distributed import Client, LocalCluster

from spidask.cluster.memory import KEEP
from spidask.config import Config
from spidask.inference import label_shard

TIMES = 3


def peak_memory() -> float:
    """Largest memory of this process so far, MB; of the process itself, not of what forked it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def measure_memory(run: xr.Dataset, config: Config, labels: Path, n_threads: int) -> float:
    """Label the first shard of a run a few times on a fresh Dask worker.

    Parameters
    ----------
    run : xarray.Dataset
        Raw frames as of `select_run`.
    config : Config
        As of `label_shard`.
    labels : Path
        The folder ``labels.zarr``, where the run exists.
    n_threads : int
        Threads of the worker.

    Returns
    -------
    float
        Its largest memory, MB.
    """
    environment = {f"distributed.nanny.pre-spawn-environ.{k}": v for k, v in KEEP.items()}
    members = config.inference.members
    with (
        dask.config.set(environment),
        LocalCluster(
            n_workers=1, threads_per_worker=n_threads, dashboard_address=None, silence_logs=CRITICAL
        ) as cluster,
        Client(cluster) as client,
    ):
        for _ in range(TIMES):
            client.submit(label_shard, run, members, config, labels, 0, pure=False).result()
        (peak,) = client.run(peak_memory).values()
    return float(peak)

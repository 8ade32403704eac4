"""Dask clients: the only room where one is made."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import dask
from distributed import Client, LocalCluster
from distributed.security import Security

from spidask import config

log = logging.getLogger(__name__)


@contextmanager
def connect(settings: config.Cluster) -> Iterator[Client | None]:
    """Start what a config asks for, and stop it at the end.

    Parameters
    ----------
    settings : config.Cluster
        Section `cluster`.

    Yields
    ------
    distributed.Client or None
        A client of worker processes on this machine, with one thread each, that speak TLS with
        throw-away certificates; None where the work is done inline.
    """
    if settings.kind == "inline":
        yield None
        return
    n_workers = settings.workers or len(os.sched_getaffinity(0))
    # Workers on a busy machine take longer than the default to import torch.
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "120s"}),
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            host="tls://127.0.0.1",
            dashboard_address="127.0.0.1:0",
            security=Security.temporary(),
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        log.info("%d workers; dashboard at %s", n_workers, client.dashboard_link)
        yield client

"""Clients: encrypted, local, and no more open ports than needed."""

import pytest
from distributed import Client

from spidask.cluster import connect
from spidask.config import Cluster


def test_inline_is_no_client():
    with connect(Cluster(kind="inline")) as client:
        assert client is None


def test_local_workers_speak_tls_on_this_machine_only():
    with connect(Cluster(workers=1)) as client:
        info = client.scheduler_info(n_workers=-1)
        assert info["address"].startswith("tls://127.0.0.1:")
        (worker,) = info["workers"].values()
        assert worker["nthreads"] == 1
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        with pytest.raises((OSError, TypeError, RuntimeError)):
            Client(info["address"].replace("tls://", "tcp://"), timeout=3)

"""Clients: encrypted, no more open ports than needed, and pinned workers."""

import os
import socket
import urllib.error
import urllib.request
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster, get_worker
from distributed.security import Security

from spidask.cluster import connect, connecting, connection_facts
from spidask.config import Cluster
from spidask.errors import ClusterError


def test_inline_is_no_client(tmp_path):
    with connect(Cluster(kind="inline"), tmp_path) as client:
        assert client is None


def listening(port: int) -> set[str]:
    """Addresses on which this machine listens at a port, as Linux tells."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            host, found_port = address.split(":")
            if state == "0A" and int(found_port, 16) == port:
                found.add(host)
    return found


LOOPBACK = "0100007F"


def test_local_workers_speak_tls_on_this_machine_only(tmp_path):
    with connect(Cluster(cpu_workers=1), tmp_path) as client:
        info = client.scheduler_info(n_workers=-1)
        assert info["address"].startswith("tls://127.0.0.1:")
        ((address, worker),) = info["workers"].items()
        assert worker["nthreads"] == 1
        assert worker["resources"] == {"CPU": 1}
        facts = connection_facts(client, Cluster(jump_host="me@gateway"))
        assert facts["dashboard"] == f"http://127.0.0.1:{info['services']['dashboard']}/spidask"
        assert facts["tunnel"].startswith("ssh -J me@gateway -N -L")
        http = worker["services"]["dashboard"]
        ports = [info["services"]["dashboard"], http]
        ports += [int(one.rpartition(":")[2]) for one in (info["address"], address)]
        for port in ports:
            assert listening(port) == {LOOPBACK}, port
        # The worker's port for metrics is always there; nothing is served on it.
        for page in ("metrics", "status", "health", "info/main/workers.html"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{http}/{page}", timeout=10)


def test_who_has_no_certificate_is_refused(tmp_path):
    with connect(Cluster(cpu_workers=1), tmp_path) as client:
        address = client.scheduler_info(n_workers=0)["address"]
        with pytest.raises((OSError, TypeError, RuntimeError)):
            Client(address.replace("tls://", "tcp://"), timeout=3)
        with pytest.raises((OSError, TypeError, RuntimeError)):
            Client(address, security=Security.temporary(), timeout=3)
        # And the one with the certificate goes on.
        assert client.submit(lambda: 1 + 1).result() == 2


def hold_and_free(n_arrays: int, n_bytes: int) -> int:
    """Touch memory, free it, and tell what the process then holds, in bytes."""
    arrays = [np.ones(n_bytes, np.uint8) for _ in range(n_arrays)]
    # A small one above them stays, so that this is no end of a heap that shrinks by itself.
    get_worker().kept = np.ones(100_000, np.uint8)
    del arrays
    return resident()


def resident() -> int:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in x)
    return 1024 * int(line.split()[1])


@pytest.mark.parametrize(("limit", "is_kept"), [(800_000_000, False), (8_000_000_000, True)])
def test_freed_memory_is_given_back_where_it_is_much(tmp_path, monkeypatch, limit, is_kept):
    monkeypatch.setattr(connecting, "MEMORY_LIMIT", limit)
    n_bytes = 20 * 20_000_000
    with connect(Cluster(cpu_workers=1), tmp_path) as client:
        before = client.submit(resident, pure=False).result()
        within = client.submit(hold_and_free, 20, n_bytes // 20).result()
        after = client.submit(resident, pure=False).result()
    assert within - before > 0.9 * n_bytes
    assert (after - before > 0.2 * n_bytes) is is_kept


def test_each_gpu_has_a_worker_that_sees_no_other(tmp_path):
    # The devices are pretended: no process here touches one.
    with connect(Cluster(gpus=2, cpu_workers=1), tmp_path) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        seen = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        found = sorted((w["name"], w["resources"], seen[a]) for a, w in workers.items())
        assert found == [(0, {"GPU": 1}, "0"), (1, {"GPU": 1}, "1"), (2, {"CPU": 1}, "")]


def test_a_scheduler_that_runs_is_joined_with_the_tls_of_dasks_configuration(tmp_path):
    security = Security.temporary()
    names = {}
    for role in ("scheduler", "worker", "client"):
        told = security.get_tls_config_for_role(role)
        for part in ("ca_file", "cert", "key"):
            path = tmp_path / f"{role}_{part}.pem"
            path.write_text(told[part])
            name = "ca-file" if part == "ca_file" else f"{role}.{part}"
            names[f"distributed.comm.tls.{name}"] = str(path)
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            security=security,
            host="tls://127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        dask.config.set(names),
    ):
        settings = Cluster(kind="scheduler", scheduler=cluster.scheduler_address)
        with connect(settings, tmp_path) as client:
            assert client.submit(lambda: 6 * 7).result() == 42
            assert "spidask-memory" in cluster.scheduler.worker_plugins
        # Its workers stay, as they were.
        assert "spidask-memory" not in cluster.scheduler.worker_plugins


def test_a_scheduler_that_is_not_there_is_named(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(connecting, "JOIN_TIMEOUT_S", 1)
    with (
        pytest.raises(ClusterError, match=place),
        connect(Cluster(kind="scheduler", scheduler=place), tmp_path),
    ):
        pass

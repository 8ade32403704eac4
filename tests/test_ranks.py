"""Ranks: they meet, they are replaced, and the first cause is what one hears."""

import contextlib
import logging
import os
import signal
import socket
import time
from pathlib import Path

import dask
import psutil
import pytest
import torch
from distributed import Client, get_worker
from torch import distributed

from spidask.cluster import connect
from spidask.config import Cluster
from spidask.errors import ClusterError, DataError, TrainingError
from spidask.ranks import Rank, average_gradients, hold_gradients, launching, run_ranks


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    # Within that time of a loss Dask would close a worker's nanny for good, if it is lost again.
    patient = dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"})
    folder = tmp_path_factory.mktemp("cluster")
    with connect(Cluster(cpu_workers=3, gpus=0), folder) as client, patient:
        yield client


def cpu() -> str:
    return "cpu"


def run(client: Client, function, jobs, n_ranks: int, timeout_s=60.0, wait_s=60.0, **more):
    given = {"demand": {"CPU": 1}, **more}
    return run_ranks(client, function, jobs, n_ranks, cpu, timeout_s, wait_s, **given)


def listening() -> list:
    found = psutil.Process().net_connections()
    return [one.laddr for one in found if one.status == psutil.CONN_LISTEN]


def meet(rank: Rank, number: float) -> dict:
    value = torch.tensor([number * (rank.number + 1)])
    distributed.all_reduce(value)
    return {
        "rank": rank.number,
        "size": rank.size,
        "neighbours": rank.neighbours,
        "sum": value.item(),
        "hosts": {here.ip for here in listening()},
    }


def test_ranks_meet_on_the_network_of_the_scheduler_only(client):
    expected = {"rank": 0, "size": 3, "neighbours": 3, "hosts": {"127.0.0.1"}}
    found = run(client, meet, [(1.0,), (10.0,)], 3)
    assert found == [{**expected, "sum": 6.0}, {**expected, "sum": 60.0}]


def learn_two_pieces(rank: Rank) -> list[float]:
    network = torch.nn.Linear(1, 1, bias=False)
    trained = average_gradients(network, (torch.ones(1, 1),))
    network.zero_grad()
    found = []
    for piece, value in enumerate((1.0 + rank.number, 10.0 + rank.number)):
        with hold_gradients(trained) if piece == 0 else contextlib.nullcontext():
            trained(torch.tensor([[value]])).sum().backward()
        found.append(network.weight.grad.item())
    return found


def test_gradients_travel_with_the_last_piece_only(client):
    # Rank 0 sees 1 and 10, rank 1 sees 2 and 11: held, then the mean of the sums.
    assert run(client, learn_two_pieces, [()], 2) == [[1.0, 12.0]]


def wait_for_others(rank: Rank, folder: Path, name: str, n: int) -> str:
    (folder / name).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < n and time.monotonic() < deadline:
        time.sleep(0.01)
        rank.beat()
    return get_worker().address


def test_jobs_run_side_by_side_on_workers_of_their_own(client, tmp_path):
    found = run(client, wait_for_others, [(tmp_path, name, 3) for name in "abc"], 1)
    assert len(set(found)) == 3


def test_the_store_listens_for_the_workers_only(client):
    store = launching._listen(client)
    assert [here.ip for here in listening() if here.port == store.port] == ["127.0.0.1"]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", store.port), timeout=5)


def fail(rank: Rank, folder: Path, error: Exception) -> None:
    (folder / f"{rank.number}-{time.monotonic_ns()}").touch()
    if rank.number == 1:
        raise error
    distributed.all_reduce(torch.ones(3))


def test_the_first_cause_is_reported_and_not_the_closed_connection(client, tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "ATTEMPTS", 2)
    with pytest.raises(ClusterError, match=r"^rank 1 on tls://.*: KeyError: 'boo'; 2 attempts"):
        run(client, fail, [(tmp_path, KeyError("boo"))], 2)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("kind", [TrainingError, DataError])
def test_what_will_fail_again_is_not_tried_again(client, tmp_path, kind):
    with pytest.raises(kind, match=r"^the loss is nan$") as caught:
        run(client, fail, [(tmp_path, kind("the loss is nan", iteration=3))], 2)
    assert caught.value.iteration == 3
    assert len(list(tmp_path.iterdir())) == 2


def signal_once(rank: Rank, folder: Path, number: int) -> float:
    marker = folder / "signalled"
    if rank.number == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), number)
    rank.beat()
    value = torch.ones(1)
    distributed.all_reduce(value)
    return value.item()


@pytest.mark.parametrize(
    ("number", "cause"), [(signal.SIGKILL, "vanished"), (signal.SIGSTOP, "hung for 3 s")]
)
def test_a_lost_rank_is_named_and_the_job_begins_again(client, tmp_path, caplog, number, cause):
    caplog.set_level(logging.WARNING, "spidask")
    assert run(client, signal_once, [(tmp_path, number)], 2, timeout_s=3) == [2.0]
    (told,) = (r.getMessage() for r in caplog.records if r.name == "spidask.ranks.launching")
    assert told.startswith("rank 1 on tls://")
    assert cause in told


def test_too_few_workers_are_counted(client):
    client.wait_for_workers(3, timeout=60)
    with pytest.raises(ClusterError, match=r"training\.ranks: 9 workers are needed and 3 are"):
        run(client, meet, [(1.0,)], 9, wait_s=0.1)


def describe(**resources: float) -> dict:
    return {"status": "running", "resources": resources, "nanny": None}


def test_ranks_want_a_worker_with_what_they_take_and_a_process_of_their_own():
    workers = {"tls://a:1": describe(CPU=1), "tls://a:2": describe(GPU=1), "tls://b:1": describe()}
    assert launching._choose(workers, {"GPU": 1}) == ["tls://a:2"]
    assert launching._choose(workers, {}) == list(workers)
    workers["tls://a:2"]["status"] = "closing_gracefully"
    assert launching._choose(workers, {"GPU": 1}) == []
    threads = {f"inproc://10.0.0.1/7/{i}": describe() for i in range(3)}
    assert len(launching._choose(threads, {})) == 1


def test_ranks_run_where_the_gpu_is(tmp_path):
    with connect(Cluster(gpus=1, cpu_workers=1), tmp_path) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        found = run(client, wait_for_others, [(tmp_path, "a", 0)], 1, demand={"GPU": 1})
    (gpu,) = (address for address, worker in workers.items() if worker["resources"].get("GPU"))
    assert found == [gpu]


def stumble(rank: Rank, folder: Path, n_faults: int) -> int:
    """Fail so many times, each time a step further."""
    steps = len(list(folder.iterdir()))
    if rank.number == 0 and steps < n_faults:
        (folder / f"step{steps}").touch()
        raise KeyError(steps)
    return steps


def count_steps(arguments: tuple) -> int:
    return len(list(arguments[0].iterdir()))


def test_faults_with_progress_between_them_are_not_counted_together(client, tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "ATTEMPTS", 2)
    assert run(client, stumble, [(tmp_path, 3)], 1, progress=count_steps) == [3]
    with pytest.raises(ClusterError, match="KeyError: 3; 2 attempts failed"):
        run(client, stumble, [(tmp_path, 9)], 1)


def test_progress_in_the_last_attempt_counts(monkeypatch):
    monkeypatch.setattr(launching, "ATTEMPTS", 3)
    steps = iter([1, 1, 2, 2, 2])
    job = launching._Job(0, (), reached=1)
    for _ in range(2):
        job = launching._count_attempt(job, "bad node", lambda _: next(steps))
    assert len(job.causes) == 2
    # The third got further before it was lost, so it is the first of three.
    job = launching._count_attempt(job, "preempted", lambda _: next(steps))
    assert job.causes == ("preempted",)

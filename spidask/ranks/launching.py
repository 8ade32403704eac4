"""Run one function per rank inside one torch process group, over Dask workers."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from distributed.comm.addressing import get_address_host
from distributed.utils import get_ip
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from spidask.errors import ClusterError
from spidask.ranks.rank import Failure, Spot, run_rank

if TYPE_CHECKING:
    from distributed import Client, Future

Workers = Mapping[str, Mapping[str, Any]]
log = logging.getLogger(__name__)

ATTEMPTS = 4
"""Times that a job is begun before its failure is final."""
POLL_S = 0.5
"""Time between two looks at the ranks."""
GRACE_S = 10.0
"""After a rank's error, time for another rank's end to show that it came before."""
START_S = 300.0
"""Time for all ranks of a group to begin, behind other work and imports."""
RESTART_S = 20.0
"""Time for restarted workers to come back."""


def run_ranks(
    client: Client,
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    n_ranks: int,
    device: Callable[[], str],
    timeout_s: float,
    wait_s: float,
    demand: Mapping[str, float],
    progress: Callable[[tuple[Any, ...]], object] = lambda _arguments: None,
    tend: Callable[[], object] = lambda: None,
) -> list[Any]:
    """Run a function on groups of workers, one process group for each job.

    Parameters
    ----------
    client : distributed.Client
        Whose workers do it.
    function : callable
        Gets its `Rank` and a job's arguments, and calls ``rank.beat`` regularly. After a fault
        it is begun anew, so it has to go on from what it left on disk.
    jobs : sequence of tuple
        The arguments of each; jobs run side by side as far as there are workers.
    n_ranks : int
        Workers for each job, one rank on each.
    device : callable
        Says, on the worker, whether to compute on ``cpu`` (gloo) or ``cuda`` (NCCL).
    timeout_s : float
        Ranks of which none beats for so long are hung.
    wait_s : float
        How long to wait for workers while no job runs.
    demand : mapping
        Resources that a rank takes; workers without them do nothing.
    progress : callable
        Says, of a job's arguments, how far it is on disk. A job that got further since it was
        last begun has all its attempts anew.
    tend : callable
        Called again and again meanwhile, to look after the workers.

    Returns
    -------
    list
        What rank 0 of each job returned.

    Raises
    ------
    SpidaskError
        The first that a rank raised; it is not tried again.
    ClusterError
        If there are too few workers, or a job failed `ATTEMPTS` times without getting further;
        with the first cause.

    Notes
    -----
    A rank that is lost or raises anything but a SpidaskError ends its group. Workers of others
    are restarted, as nothing else ends a thread inside a collective, and the job begins again.
    The driver hosts the store through which ranks meet, on the scheduler's network only; neither
    it nor gloo nor NCCL knows passwords or encryption.
    """
    crew = _Crew(client, function, n_ranks, device, timeout_s, demand, _listen(client))
    waiting = deque(_Job(number, arguments) for number, arguments in enumerate(jobs))
    running: list[_Group] = []
    results: dict[int, Any] = {}
    idle_since = time.monotonic()
    try:
        while waiting or running:
            workers = _list_workers(client)
            fit = _choose(workers, demand)
            free = [a for a in fit if not any(a in group.addresses for group in running)]
            while waiting and len(free) >= n_ranks:
                chosen, free = free[:n_ranks], free[n_ranks:]
                crew.neighbours = crew.neighbours or _count_neighbours(fit, n_ranks * len(jobs))
                job = waiting.popleft()
                job = dataclasses.replace(job, reached=progress(job.arguments))
                running.append(crew.start(job, chosen))
            is_idle = not running
            for group in list(running):
                group.collect()
                if cause := _find_fault(group, workers, timeout_s):
                    waiting.appendleft(_count_attempt(group.job, cause, progress))
                    running.remove(group)
                    _end(client, group)
                elif group.is_done:
                    results[group.job.number] = group.outcomes[0]
                    running.remove(group)
            if not is_idle:
                idle_since = time.monotonic()
            elif waiting and time.monotonic() - idle_since > wait_s:
                _refuse_too_few(len(fit), n_ranks, wait_s, waiting[0])
            tend()
            time.sleep(POLL_S)
    except Exception:
        # Whoever interrupts closes the workers as well, or ends them by closing the store.
        for group in running:
            _end(client, group)
        raise
    return [results[number] for number in range(len(jobs))]


@dataclass(frozen=True)
class _Job:
    """Arguments of one process group, and why earlier attempts failed."""

    number: int
    arguments: tuple[Any, ...]
    causes: tuple[str, ...] = ()
    reached: object = None


@dataclass
class _Group:
    """The ranks of a job that runs, and when they last moved."""

    job: _Job
    addresses: list[str]
    futures: list[Future[Any]]
    store: Store
    outcomes: dict[int, Any] = field(default_factory=dict)
    signs: list[int] = field(default_factory=list)
    moved_at: float = field(default_factory=time.monotonic)
    failed_at: float | None = None

    @property
    def is_done(self) -> bool:
        return len(self.outcomes) == len(self.futures)

    def name(self, rank: int) -> str:
        return f"rank {rank} on {self.addresses[rank]}"

    def collect(self) -> None:
        for rank, future in enumerate(self.futures):
            if rank not in self.outcomes and future.done():
                # A worker that dies now takes its rank's outcome along: the next look tells.
                with contextlib.suppress(TimeoutError):
                    self.outcomes[rank] = _fetch(future)


@dataclass
class _Crew:
    """What all groups of a call have in common."""

    client: Client
    function: Callable[..., Any]
    n_ranks: int
    device: Callable[[], str]
    timeout_s: float
    demand: Mapping[str, float]
    store: TCPStore
    neighbours: int = 0

    def start(self, job: _Job, addresses: list[str]) -> _Group:
        prefix, host, port = uuid.uuid4().hex, self.store.host, self.store.port
        # Longer than the driver waits, so that it is the driver who tells what hangs.
        timeout = timedelta(seconds=START_S + 2 * self.timeout_s)
        more = (self.n_ranks, host, port, prefix, timeout, self.device, self.neighbours)
        futures = [
            self.client.submit(
                run_rank,
                self.function,
                Spot(number, *more),
                job.arguments,
                key=f"rank{number}-{prefix}",
                workers=[address],
                allow_other_workers=False,
                resources=self.demand,
                pure=False,
                retries=0,
            )
            for number, address in enumerate(addresses)
        ]
        return _Group(job, addresses, futures, PrefixStore(prefix, self.store))


def _fetch(future: Future[Any]) -> Any:
    try:
        return future.result(timeout=GRACE_S)
    except TimeoutError:
        raise
    except Exception as error:
        # Not from the rank itself, which says when it failed.
        return Failure(f"{type(error).__name__}: {error}", sys.maxsize)


def _listen(client: Client) -> TCPStore:
    host = get_ip(get_address_host(client.scheduler_info()["address"]))
    # Given only a name, the store would listen on every network of this machine.
    server = socket.create_server((host, 0))
    address = (host, server.getsockname()[1], None, True)
    return TCPStore(*address, wait_for_workers=False, master_listen_fd=server.detach())


def _list_workers(client: Client) -> Workers:
    return cast(Workers, client.scheduler_info(n_workers=-1)["workers"])


def _choose(workers: Workers, demand: Mapping[str, float]) -> list[str]:
    by_process = {
        # A process has one process group; workers in threads of one process share it.
        address.rpartition("/")[0] if address.startswith("inproc") else address: address
        for address, worker in workers.items()
        if worker["status"] == "running" and demand.keys() <= worker["resources"].keys()
    }
    return list(by_process.values())


def _count_neighbours(addresses: list[str], n_ranks: int) -> int:
    on_host = Counter(get_address_host(address) for address in addresses)
    return min(n_ranks, max(on_host.values()))


def _find_fault(group: _Group, workers: Workers, timeout_s: float) -> str | None:
    gone = [rank for rank, address in enumerate(group.addresses) if address not in workers]
    if gone:
        return f"{group.name(gone[0])} vanished (killed, or cut off?)"
    failures = {r: found for r, found in group.outcomes.items() if isinstance(found, Failure)}
    if not failures:
        return _find_hung(group, workers, timeout_s)
    group.failed_at = group.failed_at or time.monotonic()
    if not group.is_done and time.monotonic() - group.failed_at < GRACE_S:
        return None
    first = min(failures, key=lambda rank: failures[rank].order)
    if error := failures[first].error:
        raise error
    return f"{group.name(first)} failed: {failures[first].cause}"


def _find_hung(group: _Group, workers: Workers, timeout_s: float) -> str | None:
    ranks = range(len(group.futures))
    begun = [group.store.add(f"begun/{rank}", 0) for rank in ranks]
    signs = [n + group.store.add(f"beats/{rank}", 0) for rank, n in enumerate(begun)]
    limit = timeout_s if all(begun) else max(START_S, timeout_s)
    if signs != group.signs:
        group.signs, group.moved_at = signs, time.monotonic()
    if time.monotonic() - group.moved_at <= limit:
        return None
    # The others wait for one that is behind, or, of equals, for the one that is silent.
    last = min(ranks, key=lambda rank: (signs[rank], workers[group.addresses[rank]]["last_seen"]))
    return f"{group.name(last)} {'hung' if begun[last] else 'did not begin'} for {limit:g} s"


def _count_attempt(job: _Job, cause: str, progress: Callable[[tuple[Any, ...]], object]) -> _Job:
    # One that got further has all its attempts anew.
    earlier = job.causes if progress(job.arguments) == job.reached else ()
    causes = (*earlier, cause)
    if len(causes) == ATTEMPTS:
        raise ClusterError(f"{causes[0]}; {ATTEMPTS} attempts failed", causes=causes)
    log.warning("%s; begins again", cause)
    return dataclasses.replace(job, causes=causes)


def _end(client: Client, group: _Group) -> None:
    stuck = [a for rank, a in enumerate(group.addresses) if rank not in group.outcomes]
    # Whatever happens here must not hide why the group ends: the scheduler may be gone.
    with contextlib.suppress(OSError, TimeoutError, KeyError, RuntimeError):
        client.cancel(group.futures)
        nannies = {address: worker["nanny"] for address, worker in _list_workers(client).items()}
        if living := [address for address in stuck if nannies.get(address)]:
            client.restart_workers(living, timeout=RESTART_S, raise_for_error=False)


def _refuse_too_few(n_workers: int, n_ranks: int, wait_s: float, job: _Job) -> None:
    cause = f" after {job.causes[0]}" if job.causes else ""
    raise ClusterError(
        f"training.ranks: {n_ranks} workers are needed and {n_workers} are there{cause}; "
        f"waited {wait_s:g} s for more. Ask for more workers, or fewer ranks",
        n_workers=n_workers,
    )

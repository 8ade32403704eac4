"""What happens on a worker: a rank meets the others, runs its function, and says how it ended."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

# Its functions keep the group of the moment of its import, for good; now there is none.
import torch.distributed.nn
from distributed import get_worker
from distributed.comm.addressing import get_address_host
from distributed.utils import get_ip_interface
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from spidask.errors import SpidaskError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rank:
    """What a function that runs as a rank knows of itself.

    Attributes
    ----------
    number, size : int
        Which rank it is, and how many there are.
    device : str
        Where it computes.
    neighbours : int
        Ranks, of this group and of others, that may run on its machine at a time.
    beat : callable
        Tells the driver that there is progress.
    """

    number: int
    size: int
    device: str
    neighbours: int
    beat: Callable[[], object]


@dataclass(frozen=True)
class Spot:
    """Where a rank finds the others, and what it needs besides."""

    number: int
    size: int
    host: str
    port: int
    prefix: str
    timeout: timedelta
    device: Callable[[], str]
    neighbours: int

    def connect(self) -> Store:
        store = TCPStore(self.host, self.port, is_master=False, timeout=self.timeout)
        return PrefixStore(self.prefix, store)


@dataclass(frozen=True)
class Failure:
    """Why a rank ended, and as which one of its group."""

    cause: str
    order: int
    error: SpidaskError | None = None


def run_rank(function: Callable[..., Any], spot: Spot, arguments: tuple[Any, ...]) -> Any:
    store = spot.connect()
    if store.add(f"begun/{spot.number}", 1) != 1:
        raise RuntimeError("begun twice; its worker was restarted (killed?)")
    try:
        device = spot.device()
        _join(spot, store, device)
        beat = functools.partial(store.add, f"beats/{spot.number}", 1)
        result = function(Rank(spot.number, spot.size, device, spot.neighbours, beat), *arguments)
        distributed.barrier()  # rank 0 may be busy still, and NCCL ends for all at a time
        return result
    except Exception as error:
        # Before the group ends, for that makes the others fail for their part.
        order = store.add("failures", 1)
        log.info("rank %d failed", spot.number, exc_info=True)
        # Its frames hold the group, whose connections would stay open.
        traceback.clear_frames(error.__traceback__)
        cause = f"{type(error).__name__}: {error}"
        return Failure(cause, order, error if isinstance(error, SpidaskError) else None)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _join(spot: Spot, store: Store, device: str) -> None:
    host = get_address_host(get_worker().address)
    for _, name in socket.if_nameindex():
        with contextlib.suppress(ValueError):
            if get_ip_interface(name) == host:
                # The network that Dask talks over, and no other.
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
                os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")
    on_gpu = device == "cuda"
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=spot.number,
        world_size=spot.size,
        timeout=spot.timeout,
        device_id=torch.device("cuda", 0) if on_gpu else None,
    )

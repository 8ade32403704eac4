"""The stage classify: all shards of a beamtime, on workers that come and go."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import xarray as xr
from distributed import Client, Future

from spidask.cluster import CPU, Pool, wait_for_some
from spidask.config import Config
from spidask.errors import SpidaskError
from spidask.inference.shards import (
    Prepared,
    Shard,
    finish_shard,
    label_lazily,
    label_shard,
    prepare_shard,
)
from spidask.io import store
from spidask.io.progress import Progress
from spidask.io.runs import select_run
from spidask.monitor import tell
from spidask.networks.device import resolve_device

log = logging.getLogger(__name__)

TASKS_PER_WORKER = 2
"""Shards in flight for each worker: one in work and one that waits."""


def classify_runs(
    frames: xr.Dataset,
    members: Sequence[str | Path],
    config: Config,
    labels: str | Path,
    files: Mapping[str, Sequence[Sequence[str | int]]],
    client: Client | None = None,
    progress: Callable[[Shard, int], None] = lambda _shard, _n: None,
) -> list[Shard]:
    """Label every frame and store the labels, one task a shard.

    Parameters
    ----------
    frames : xarray.Dataset
        Raw frames as `open_runs` gives them.
    members : sequence of str or pathlib.Path
        The members' files.
    config : Config
        All sections that determine a label.
    labels : str or pathlib.Path
        The folder ``labels.zarr``. Shards that are there stay.
    files : mapping
        What describes the files of each run, as `sign_files` does; kept with the labels.
    client : distributed.Client, optional
        Who does the work; this process without it.
    progress : callable
        Called with every finished shard and the number of shards to do.

    Returns
    -------
    list of Shard
        The shards done now.

    Raises
    ------
    SpidaskError
        The first cause, if shards failed; all others are finished and stored before.
    StoreError
        If a run is stored in another layout.
    """
    if client is None:
        resolve_device(config)
    # Workers may run in another folder.
    members = [Path(path).absolute() for path in members]
    tasks = list(_missing(frames, members, config, Path(labels).absolute(), files))
    log.info("%d shards to do", len(tasks))
    done: list[Shard] = []
    failed: list[tuple[str, int, Exception]] = []
    record = Progress(config.output, len(tasks))
    tell("stage", name="classify", n_shards=len(tasks), n_frames=_count_frames(tasks))
    try:
        for run, number, result in _evaluate(tasks, client, config, record):
            if isinstance(result, Exception):
                log.error("shard %d of %s failed: %s", number, run, result)
                tell("failed", run=run, number=number, cause=str(result))
                record.fail(run, number, str(result))
                failed.append((run, number, result))
            else:
                done.append(result)
                record.add(result.n_frames, result.n_hits)
                progress(result, len(tasks))
    except BaseException as error:
        record.stop(str(error) or type(error).__name__)
        raise
    finally:
        record.write(ended=True)
    if failed:
        run, number, cause = failed[0]
        message = f"{len(failed)} of {len(tasks)} shards failed, first shard {number} of {run}: "
        kind = type(cause) if isinstance(cause, SpidaskError) else SpidaskError
        raise kind(message + str(cause), failed=[(r, n) for r, n, _ in failed]) from cause
    return done


def count_labels(labels: str | Path) -> dict[str, int]:
    """Count what is stored.

    Parameters
    ----------
    labels : str or pathlib.Path
        The folder ``labels.zarr``, all of whose shards are done.

    Returns
    -------
    dict
        ``frames``, ``unreadable`` and ``hits`` of all runs.
    """
    counts = {"frames": 0, "unreadable": 0, "hits": 0}
    for name in store.list_runs(labels):
        group = store.open_run(labels, name)
        readable, hit = np.asarray(group["readable"]), np.asarray(group["hit"])
        counts["frames"] += len(hit)
        counts["unreadable"] += int((~readable).sum())
        counts["hits"] += int(hit.sum())
    return counts


Task = tuple[xr.Dataset, Sequence[str | Path], Config, Path, int]


def _missing(
    frames: xr.Dataset,
    members: Sequence[str | Path],
    config: Config,
    labels: Path,
    files: Mapping[str, Sequence[Sequence[str | int]]],
) -> Iterator[tuple[str, int, Task]]:
    template: xr.Dataset | None = None
    for name in map(str, frames["run_name"].values):
        run = select_run(frames, name)
        if not run.sizes["frame"]:
            continue
        if template is None:  # every run has the same variables
            template = label_lazily(run, members, config)
        n_frames, per_shard = run.sizes["frame"], config.inference.frames_per_shard
        index = run["index"].values
        store.create_run(labels, name, template, n_frames, per_shard, files[name], index)
        for number in store.missing_shards(labels, name):
            yield name, number, (run, members, config, labels, number)


def _count_frames(tasks: Sequence[tuple[str, int, Task]]) -> int:
    spans = [
        store.slice_shard(run.sizes["frame"], config.inference.frames_per_shard, number)
        for _, number, (run, _, config, _, _) in tasks
    ]
    return sum(span.stop - span.start for span in spans)


def _evaluate(
    tasks: Sequence[tuple[str, int, Task]],
    client: Client | None,
    config: Config,
    progress: Progress,
) -> Iterator[tuple[str, int, Any]]:
    if client is None:
        for run, number, task in tasks:
            yield run, number, _attempt(label_shard, *task)
            progress.write()
        return
    pool = Pool(client, config.cluster, config.output)
    # Where every frame is a hit, to send the hits costs more than to read them again.
    splits = config.hits.threshold != "none"
    waiting, running = deque(tasks), dict[Future[Any], _Running]()
    n_left = len(tasks)
    while n_left:
        pool.tend(n_left)
        n_helpers = pool.n_helpers if splits else 0
        if not n_helpers:
            waiting.extendleft(_take_back(client, running))
        # Workers come and go, and each has one shard in work and one that waits.
        n_split = sum(one.prepared is not None for one in running.values())
        n_whole = len(running) - n_split
        for _ in range(min(TASKS_PER_WORKER * max(pool.n_able, 1) - n_whole, len(waiting))):
            running |= _submit(client, waiting.popleft(), pool.demand)
        for _ in range(min(TASKS_PER_WORKER * n_helpers - n_split, len(waiting))):
            running |= _submit_split(client, waiting.popleft(), pool.demand)
        for future in wait_for_some(running):
            run, number, _ = running.pop(future).task
            error = future.exception()
            yield run, number, error if error is not None else future.result()
            n_left -= 1
        progress.write()


@dataclass(frozen=True)
class _Running:
    """A shard in work, and what a worker without a GPU does for it before."""

    task: tuple[str, int, Task]
    prepared: Future[Prepared] | None = None


def _submit(
    client: Client, task: tuple[str, int, Task], demand: Mapping[str, float]
) -> dict[Future[Any], _Running]:
    key = f"label-shard-{task[0]}-{task[1]}-{uuid4().hex[:8]}"
    future = client.submit(_attempt, label_shard, *task[2], pure=False, key=key, resources=demand)
    return {future: _Running(task)}


def _submit_split(
    client: Client, task: tuple[str, int, Task], demand: Mapping[str, float]
) -> dict[Future[Any], _Running]:
    name, (run, members, config, labels, number) = f"{task[0]}-{task[1]}-{uuid4().hex[:8]}", task[2]
    prepared = client.submit(
        prepare_shard, run, config, number, key=f"prepare-shard-{name}", resources={CPU: 1}
    )
    future = client.submit(
        _attempt,
        finish_shard,
        prepared,
        *(run, members, config, labels, number),
        key=f"finish-shard-{name}",
        resources=demand,
        priority=1,  # its hits take memory until then
    )
    return {future: _Running(task, prepared)}


def _take_back(client: Client, running: dict[Future[Any], _Running]) -> list[tuple[str, int, Task]]:
    """Give up shards that wait for workers which are gone."""
    stuck = [
        future
        for future, one in running.items()
        if one.prepared is not None and not one.prepared.done()
    ]
    if stuck:
        client.cancel([*stuck, *(running[future].prepared for future in stuck)])
    return [running.pop(future).task for future in stuck]


def _attempt(function: Callable[..., Shard], *task: Any) -> Shard | Exception:
    try:
        return function(*task)
    except Exception as error:
        return error

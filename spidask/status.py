"""How far an output folder is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from spidask.cluster import JobState, list_jobs, read_cluster, say_jobs
from spidask.io import store
from spidask.io.manifest import read_manifest
from spidask.io.progress import read_progress
from spidask.records import find_holder
from spidask.units import format_seconds


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes
    ----------
    name : str
        The run.
    shards, done : int
        Its shards, and those of them that are stored.
    frames, labelled, hits : int
        Its frames, those in stored shards, and the hits among these.
    """

    name: str
    shards: int
    done: int
    frames: int
    labelled: int
    hits: int


@dataclass(frozen=True)
class Status:
    """How far an output folder is.

    Attributes
    ----------
    output : str
        The folder.
    members : int
        Members that classify.
    runs : list of RunStatus
        What the stage classify has done.
    counts : dict
        What finished stages counted, from ``manifest.json``.
    training : dict or None
        While networks are trained, the name of each to its last iteration and its best
        validation F1 (NaN before the first checkpoint).
    progress : dict
        What `spidask.io.progress` keeps of the last classification; empty before the first.
    driver : str or None
        The process that works on the folder.
    cluster : dict
        What a driver wrote of its workers, as `spidask.cluster.read_cluster` gives it.
    jobs : list of JobState or None
        What Slurm says of their jobs; None if it was asked and gave no answer.
    """

    output: str
    members: int
    runs: list[RunStatus]
    counts: dict[str, dict[str, object]]
    training: dict[str, tuple[int, float]] | None
    progress: dict[str, Any]
    driver: str | None
    cluster: dict[str, Any]
    jobs: list[JobState] | None

    def lines(self) -> list[str]:
        """Say it to a person.

        Returns
        -------
        list of str
            Lines of text: one for each run, and one for each stage.
        """
        width = max([len("all runs"), *(len(run.name) for run in self.runs)])
        names = ("shards", "done", "frames", "labelled", "hits")
        total = [sum(getattr(run, name) for run in self.runs) for name in names]
        rows = [*self.runs, RunStatus("all runs", *total)] if self.runs else []
        table = [
            f"{row.name:{width}}  {row.done} of {row.shards} shards, {row.labelled} of "
            f"{row.frames} frames, {row.hits} hits"
            for row in rows
        ]
        told = {stage: _say_counts(counts) for stage, counts in self.counts.items()}
        stages = [f"{stage}: {text}" for stage, text in told.items() if text]
        head = [f"{self.members} members", f"driver: {self.driver or 'none at work'}"]
        if self.training == {}:
            head.append("training: begun")
        head += [
            f"training: {name} at iteration {iteration}, best validation F1 {f1:.3g}"
            for name, (iteration, f1) in (self.training or {}).items()
        ]
        return [
            *head,
            *self._say_workers(),
            *(table or ["no labels yet"]),
            *self._say_progress(),
            *stages,
        ]

    def _say_workers(self) -> list[str]:
        told = self.cluster
        asked = told.get("jobs") and told.get("kind") == "slurm"
        lines = [f"jobs: {say_jobs(self.jobs)}"] if asked else []
        if told and self.driver:
            lines.append(f"{told.get('workers', 0)} workers; dashboard: {told['tunnel']}")
        return lines

    def _say_progress(self) -> list[str]:
        if not self.progress:
            return []
        told, now = self.progress, time.time()
        share = told["hits"] / max(told["frames"], 1)
        state = "ended" if told["ended"] else "last heard of"
        lines = [
            f"classify: {told['done']} of {told['shards']} shards in this go, "
            f"{told['frames_per_second']:g} frames/s, {share:.2%} hits, {told['failed']} shards "
            f"failed; {state} {format_seconds(round(now - told['updated']))} ago",
        ]
        if told.get("stopped"):
            lines.append(f"classify: stopped: {told['stopped']}")
        return lines + [
            f"failed: shard {n} of {run}: {cause}" for run, n, cause in told["failures"]
        ]


def measure_status(output: str | Path) -> Status:
    """Tell how far an output folder is.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder of a run, finished or not.

    Returns
    -------
    Status
        Shards, frames and hits of each run, and what finished stages counted.

    Raises
    ------
    StoreError
        If it is no output folder.
    """
    folder = Path(output)
    training = _measure_training(folder)
    # Before the members are trained there is none.
    manifest = read_manifest(output) if training is None else {"config": {}}
    labels = folder / "labels.zarr"
    runs = [_measure_run(labels, name) for name in store.list_runs(labels)]
    given = manifest["config"].get("inference", {}).get("members")
    members = len(given or list((folder / "members").glob("*.safetensors")))
    cluster = read_cluster(output)
    # Other queues are not asked.
    jobs = list_jobs(cluster.get("jobs", [])) if cluster.get("kind") == "slurm" else []
    told = read_progress(output), find_holder(output), cluster, jobs
    return Status(str(output), members, runs, manifest.get("counts", {}), training, *told)


def _measure_training(output: Path) -> dict[str, tuple[int, float]] | None:
    begun = (output / "checkpoints" / "settings.json").exists()
    if not begun or (output / "members" / "training.json").exists():
        return None
    found = {}
    for path in sorted((output / "checkpoints").glob("*/metrics.csv")):
        with suppress(OSError, ValueError):  # begun anew at this moment
            table = pd.read_csv(path)
            best = float(table["validation_f1"].max())
            found[path.parent.name] = int(table["iteration"].max()), best
    return found


def _measure_run(labels: Path, name: str) -> RunStatus:
    group, missing = store.open_run(labels, name), store.missing_shards(labels, name)
    hit = group["hit"]
    assert isinstance(hit, zarr.Array)
    n_frames, per_shard = hit.shape[0], hit.chunks[0]
    is_done = ~np.isin(np.arange(n_frames) // per_shard, missing)
    shards = store.count_shards(n_frames, per_shard)
    hits = int((np.asarray(hit[:]) & is_done).sum())
    return RunStatus(name, shards, shards - len(missing), n_frames, int(is_done.sum()), hits)


def _say_counts(counts: Mapping[str, object]) -> str:
    # Lists, such as files that cannot be read, are counted; tables are left to the manifest.
    plain = {k: len(v) if isinstance(v, list) else v for k, v in counts.items()}
    told = [f"{k.replace('_', ' ')} {v}" for k, v in plain.items() if not isinstance(v, dict)]
    return ", ".join(told)

"""How far an output folder is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from spidask.io import store
from spidask.io.manifest import read_manifest


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
        Trained members in it.
    runs : list of RunStatus
        What the stage classify has done.
    counts : dict
        What finished stages counted, from ``manifest.json``.
    """

    output: str
    members: int
    runs: list[RunStatus]
    counts: dict[str, dict[str, object]]

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
        return [f"{self.members} members", *(table or ["no labels yet"]), *stages]


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
    manifest = read_manifest(output)
    labels = Path(output) / "labels.zarr"
    runs = [_measure_run(labels, name) for name in store.list_runs(labels)]
    members = len(list((Path(output) / "members").glob("*.safetensors")))
    return Status(str(output), members, runs, manifest.get("counts", {}))


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

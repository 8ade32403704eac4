"""From labelled frames to an ensemble of members."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import xarray as xr
from distributed import Client
from scipy.special import expit

from spidask.cluster import Pool
from spidask.config import Config, Ensemble
from spidask.errors import TrainingError
from spidask.labelled import Split, load_labelled, split
from spidask.metrics import average_precision, best_threshold
from spidask.monitor import tell
from spidask.networks.batches import Labelled, draw_batch, upload
from spidask.networks.calibration import calibrate, choose_threshold
from spidask.networks.checkpoints import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    read_history,
)
from spidask.networks.classifier import SINGLE
from spidask.networks.device import resolve_device
from spidask.networks.learning import Team, begin, train_rank
from spidask.networks.member import Member, save_member
from spidask.networks.tensors import load_tensors, save_tensors
from spidask.ranks import Rank, average_gradients, hold_gradients, run_ranks, sum_over_ranks

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Logits = npt.NDArray[np.float64]
log = logging.getLogger(__name__)


Job = tuple[Split, Config, int, Path]
"""What makes one network: the split, the settings, the seed, and where checkpoints go."""


def train(
    frames: xr.Dataset,
    labels: pd.DataFrame,
    config: Config,
    folder: Path,
    client: Client | None = None,
) -> tuple[list[Path], dict[str, list[int]]]:
    """Train the ensemble on labelled frames and write its members.

    Parameters
    ----------
    frames : xarray.Dataset
        Raw frames as `open_runs` gives them.
    labels : pandas.DataFrame
        Labels as `read_labels` gives them.
    config : Config
        Sections `training`, `validation`, `selection`, and what preprocessing needs.
    folder : pathlib.Path
        Output folder; gets ``members/``, ``metrics.csv`` and ``checkpoints/``. Checkpoints
        found there are continued. With a client, all workers have to see it.
    client : distributed.Client, optional
        Whose workers train, `training.ranks` for each network and networks side by side; this
        process without it.

    Returns
    -------
    members : list of pathlib.Path
        The members' files.
    used : dict
        Run name to positions of the frames that trained or validated.

    Raises
    ------
    TrainingError
        If there are no single hits, or nothing but single hits, on either side of the split,
        or the loss is no longer finite.
    DataError
        If a label names a frame that is not there.
    ClusterError
        If workers do not come, or ranks fail again and again.
    """
    labelled, runs, index = load_labelled(frames, labels, config)
    ensemble, first = config.training.ensemble, config.training.seed
    seeds = [first + i for i in range(ensemble.n_trained)]
    part = split(runs, labelled.classes, config, first)
    into = [folder.absolute() / "checkpoints" / f"seed{seed}" for seed in seeds]
    jobs = [(part, config, seed, path) for seed, path in zip(seeds, into, strict=True)]
    try:
        if client is None:
            alone = Team(device=resolve_device(config))
            for job in jobs:
                _train_seed(alone, labelled, *job)
        else:
            _train_on_workers(client, labelled, jobs, config, folder)
    finally:
        _write_metrics(folder, seeds)
    is_single = labelled.classes[part.validation] == SINGLE
    picked = [pair for job in jobs for pair in _pick_members(is_single, *job[1:])]
    kept = _set_threshold(picked, is_single, config.selection.expected_single_fraction)
    used = np.zeros(len(index), bool)
    used[part.training] = used[part.validation] = True
    seen = {str(run): sorted(index[used & (runs == run)].tolist()) for run in np.unique(runs[used])}
    paths = [folder / "members" / f"member{number}.safetensors" for number in range(len(kept))]
    for member, path in zip(kept, paths, strict=True):
        provenance = {**member.provenance, "frames": seen}
        save_member(dataclasses.replace(member, provenance=provenance), path)
    return paths, seen


def pick_stages(f1: list[float], ensemble: Ensemble) -> list[int]:
    """Choose consecutive checkpoints around the best.

    Parameters
    ----------
    f1 : list of float
        Validation F1 of each checkpoint, the earliest first.
    ensemble : Ensemble
        How many, and how far apart.

    Returns
    -------
    list of int
        Positions of the checkpoints, moved inward where they would leave the ends.

    Raises
    ------
    TrainingError
        If there are not that many checkpoints.

    Examples
    --------
    >>> pick_stages([0.1, 0.2, 0.9, 0.3, 0.2, 0.1], Ensemble(n_members=3))
    [1, 2, 3]
    >>> pick_stages([0.1, 0.2, 0.3, 0.3, 0.2, 0.9], Ensemble(n_members=3))
    [3, 4, 5]
    """
    span = (ensemble.n_members - 1) * ensemble.spacing
    if span >= len(f1):
        raise TrainingError(
            f"training.ensemble needs {span + 1} checkpoints and there are {len(f1)}; train for "
            "more iterations or lower training.checkpoint_every"
        )
    first = int(np.argmax(f1)) - (ensemble.n_members // 2) * ensemble.spacing
    first = min(max(first, 0), len(f1) - 1 - span)
    return [first + i * ensemble.spacing for i in range(ensemble.n_members)]


def _train_on_workers(
    client: Client, labelled: Labelled, jobs: list[Job], config: Config, folder: Path
) -> None:
    # Ranks read the patterns from a file, so that they do not travel through the scheduler.
    shared = folder.absolute() / "checkpoints" / "labelled.safetensors"
    arrays = {name: array for name, array in vars(labelled).items() if array is not None}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_tensors(tensors, shared, {})
    pool = Pool(client, config.cluster, config.output)
    ranks = config.training.ranks
    client.forward_logging(train_rank.__module__, logging.INFO)
    try:
        run_ranks(
            client,
            _train_as_rank,
            [(shared, *job) for job in jobs],
            ranks,
            device=functools.partial(resolve_device, config),
            timeout_s=config.training.timeout_s,
            wait_s=60 * config.cluster.wait_minutes,
            demand=pool.demand,
            progress=lambda job: len(list_checkpoints(job[-1])),
            tend=functools.partial(pool.tend, len(jobs) * ranks),
        )
    finally:
        client.unforward_logging(train_rank.__module__)
        shared.unlink()


def _train_as_rank(rank: Rank, patterns: Path, *job: Any) -> None:
    logging.getLogger(train_rank.__module__).setLevel(logging.INFO)  # the driver hears it
    tensors, _ = load_tensors(patterns)
    labelled = Labelled(**{name: tensor.numpy() for name, tensor in tensors.items()})
    team = Team(rank.number, rank.size, rank.device, rank.neighbours, beat=rank.beat)
    if rank.size > 1:
        team = dataclasses.replace(
            team, wrap=average_gradients, hold=hold_gradients, total=sum_over_ranks
        )
    _train_seed(team, labelled, *job)


def _train_seed(
    team: Team, labelled: Labelled, parts: Split, config: Config, seed: int, folder: Path
) -> None:
    settings = config.training
    training, validation = labelled.take(parts.training), labelled.take(parts.validation)
    is_single = validation.classes == SINGLE
    fraction = config.selection.expected_single_fraction
    log.info("seed %d: %d patterns train, %d validate", seed, len(training.classes), len(is_single))
    train_rank(
        functools.partial(begin, settings, training),
        functools.partial(draw_batch, upload(training, team.device), seed),
        validation.patterns,
        functools.partial(_judge, is_single=is_single, fraction=fraction),
        settings,
        seed,
        folder,
        team,
        lambda row: tell("loss", seed=seed, **row),
    )


def _set_threshold(
    picked: list[tuple[Member, Logits]], is_single: BoolArray, fraction: float | None
) -> list[Member]:
    """Choose the threshold of all members.

    A pattern is selected if all of them accept it, so the F1 to be made largest is that of the
    smallest of their probabilities; the best of each alone would reject too much together.
    """
    least = np.min([logits for _, logits in picked], axis=0)
    at, f1 = choose_threshold(least, is_single, fraction)
    threshold = float(expit(at))
    log.info("%d members together: validation F1 %.3f", len(picked), f1)
    return [
        dataclasses.replace(
            member,
            threshold=threshold,
            provenance={**member.provenance, "validation_f1_together": f1},
        )
        for member, _ in picked
    ]


def _pick_members(
    is_single: BoolArray, config: Config, seed: int, folder: Path
) -> list[tuple[Member, Logits]]:
    ensemble, paths = config.training.ensemble, list_checkpoints(folder)
    if ensemble.stages:
        paths = [path for path in paths if int(path.stem) in ensemble.stages]
        return [_member(path, is_single, config, seed) for path in paths]
    f1 = [read_history(path)[-1]["validation_f1"] for path in paths]
    stages = [int(np.argmax(f1))] if ensemble.kind == "seeds" else pick_stages(f1, ensemble)
    return [_member(paths[stage], is_single, config, seed) for stage in stages]


def _judge(logits: FloatArray, is_single: BoolArray, fraction: float | None) -> dict[str, float]:
    scores = logits.astype(float)
    return {
        "validation_f1": round(best_threshold(scores, is_single, fraction)[1], 6),
        "validation_average_precision": round(average_precision(scores, is_single), 6),
    }


def _member(path: Path, is_single: BoolArray, config: Config, seed: int) -> tuple[Member, Logits]:
    """A checkpoint as a member, and its calibrated log odds of the validation patterns."""
    checkpoint = load_checkpoint(path)
    fraction = config.selection.expected_single_fraction
    slope, intercept = calibrate(checkpoint.validation, is_single, fraction)
    logits = slope * checkpoint.validation.astype(float) + intercept
    _, f1 = best_threshold(logits, is_single, fraction)
    provenance = _provenance(checkpoint, f1, config, seed)
    representation = config.training.representation
    member = Member(
        checkpoint.network, representation, slope=slope, intercept=intercept, provenance=provenance
    )
    return member, logits


def _provenance(checkpoint: Checkpoint, f1: float, config: Config, seed: int) -> dict[str, Any]:
    return {
        "iteration": checkpoint.iteration,
        "seed": seed,
        "validation_f1": f1,
        "n_validation": len(checkpoint.validation),
        "training": config.training.model_dump(mode="json"),
        "expected_single_fraction": config.selection.expected_single_fraction,
    }


def _write_metrics(folder: Path, seeds: list[int]) -> None:
    paths = {seed: folder / "checkpoints" / f"seed{seed}" / "metrics.csv" for seed in seeds}
    tables = [pd.read_csv(p).assign(seed=seed) for seed, p in paths.items() if p.exists()]
    if tables:
        pd.concat(tables).to_csv(folder / "metrics.csv", index=False)

"""What is wrong with labels, members and their training."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from spidask.checks.problems import Beamtime, Problem, finds
from spidask.config import Config
from spidask.errors import DataError, SpidaskError
from spidask.io.files import natural_key
from spidask.io.labels import read_labels
from spidask.labelled import split
from spidask.networks.classifier import SINGLE
from spidask.networks.learning import Labelled, begin
from spidask.networks.member import load_member
from spidask.provenance import awaits_simulation
from spidask.schema import CLASSES
from spidask.training import pick_stages

REGION = (123, 240)
"""Rows and columns to try weights on; networks take any."""


@finds
def _no_labels(beamtime: Beamtime) -> Iterator[Problem]:
    """Nothing to train on."""
    config = beamtime.config
    if config.labels.file is None and not config.inference.members:
        yield Problem(
            "labels.file",
            "missing; give a CSV of run,index,label to train on, or the members of another "
            "beamtime as inference.members",
        )


@finds
def _bad_truth(beamtime: Beamtime) -> Iterator[Problem]:
    """A truth that is missing or wrong."""
    config = beamtime.config
    if config.labels.truth and not awaits_simulation(config):
        try:
            truth = read_labels(config.labels.truth, config.labels)
            if not {"run", "index"} <= set(truth):
                yield Problem(
                    "labels.truth",
                    f"{config.labels.truth} names frames by {', '.join(truth.columns[:-1])}, and "
                    "selections are compared by run,index; give a table of run,index,label",
                )
        except DataError as error:
            yield Problem("labels.truth", str(error))


@finds
def _bad_split(beamtime: Beamtime) -> Iterator[Problem]:
    """Runs that match no label, stand on both sides, or leave a side without single hits."""
    labels, frames, config = beamtime.labels, beamtime.frames, beamtime.config
    if labels is None or frames is None:
        return
    names = frames["run_name"].values.astype(str)
    runs = names[frames["run"].values[labels["at"].to_numpy()]]
    unmatched = list(_unmatched_runs(config, sorted(set(runs), key=natural_key)))
    yield from unmatched
    if unmatched:
        return
    classes = np.array([CLASSES.index(label) for label in labels["label"]], np.int64)
    try:
        split(runs, classes, config, config.training.seed)
    except SpidaskError as error:
        side = "validation" if str(error).startswith("validation") else "training"
        yield Problem(f"{side}.runs", str(error).removeprefix(f"{side}: "))


def _unmatched_runs(config: Config, labelled: list[str]) -> Iterator[Problem]:
    for side, patterns in (
        ("training", config.training.runs),
        ("validation", config.validation.runs),
    ):
        for pattern in patterns or []:
            if not any(fnmatchcase(run, pattern) for run in labelled):
                named = ", ".join(labelled[:5])
                yield Problem(f"{side}.runs", f"'{pattern}' is no labelled run; those are {named}")


@finds
def _bad_ensemble(beamtime: Beamtime) -> Iterator[Problem]:
    """More members than there will be checkpoints."""
    settings = beamtime.config.training
    if beamtime.config.inference.members or settings.ensemble.kind != "checkpoints":
        return
    n_checkpoints = -(-settings.iterations // settings.checkpoint_every)
    try:
        pick_stages([0.0] * n_checkpoints, settings.ensemble)
    except SpidaskError as error:
        yield Problem("training.ensemble", str(error).removeprefix("training.ensemble "))


@finds
def _bad_members(beamtime: Beamtime) -> Iterator[Problem]:
    """Members to classify with that are missing or damaged."""
    config = beamtime.config
    for path in config.inference.members or []:
        if not Path(path).is_file():
            yield Problem("inference.members", f"{path} is not there; give the path of a member")
            continue
        try:
            known = load_member(path).provenance.get("expected_single_fraction")
        except DataError as error:
            yield Problem("inference.members", f"{error}; give the path of a member")
            continue
        if (fraction := config.selection.expected_single_fraction) not in (None, known):
            yield Problem(
                "selection.expected_single_fraction",
                f"{fraction:g} has no effect: {path} has a threshold for {known}; leave it out, or "
                "train",
                "warning",
            )


@finds
def _bad_beginning(beamtime: Beamtime) -> Iterator[Problem]:
    """Weights to start from that are missing, damaged or of another network."""
    config, initial = beamtime.config, beamtime.config.training.initial
    if config.inference.members:
        return
    if initial not in ("shipped", "random", "imagenet") and not Path(initial).is_file():
        yield Problem(
            "training.initial",
            f"{initial} is not there; give a file of weights, or random, or shipped",
        )
        return
    blank = Labelled(
        np.zeros((1, *REGION), np.float32),
        np.array([SINGLE]),
        np.array([[0.5, 0.5, 1, 1]], np.float32),
    )
    try:
        begin(config.training, blank)
    except SpidaskError as error:
        key, _, text = str(error).partition(": ")
        named = key.startswith("training.")
        yield Problem(key if named else "training.initial", text if named else str(error))


@finds
def _lost_ranking(beamtime: Beamtime) -> Iterator[Problem]:
    """An early exit where the report ranks frames."""
    config = beamtime.config
    if config.inference.ensemble == "early_exit" and config.labels.truth:
        yield Problem(
            "inference.ensemble",
            "early_exit leaves no average precision to report, for rejected frames are not scored "
            "by all members; give all, or leave labels.truth out",
        )


@finds
def _unreachable_sizes(beamtime: Beamtime) -> Iterator[Problem]:
    """A size window outside of the diameters that are tried."""
    (low, high), tried = beamtime.config.selection.size_window_nm, beamtime.config.sizing.range_nm
    if low < tried[0] or high > tried[1]:
        yield Problem(
            "selection.size_window_nm",
            f"[{low:g}, {high:g}] reaches beyond sizing.range_nm, [{tried[0]:g}, {tried[1]:g}], "
            "the diameters that can be found; widen sizing.range_nm",
            "error" if high <= tried[0] or low >= tried[1] else "warning",
        )

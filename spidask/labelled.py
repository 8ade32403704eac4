"""Labelled frames: read, preprocessed, and divided into training and validation."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from spidask.config import DRAW_BOXES, Config
from spidask.errors import TrainingError
from spidask.frames.extent import signal_boxes
from spidask.io.labels import locate, relative_boxes
from spidask.io.runs import take_frames
from spidask.networks.batches import Labelled
from spidask.networks.classifier import SINGLE
from spidask.preprocessing import preprocess
from spidask.schema import CLASSES

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Which labels train and which validate.

    Attributes
    ----------
    training, validation : numpy.ndarray
        Positions in the table of labels, int64.
    """

    training: IntArray
    validation: IntArray


def load_labelled(
    frames: xr.Dataset, labels: pd.DataFrame, config: Config
) -> tuple[Labelled, npt.NDArray[np.str_], IntArray]:
    """Read and preprocess the labelled frames.

    Parameters
    ----------
    frames : xarray.Dataset
        Raw frames as `open_runs` gives them.
    labels : pandas.DataFrame
        Labels as `read_labels` gives them.
    config : Config
        What preprocessing needs.

    Returns
    -------
    labelled : Labelled
        Patterns and classes of the labels whose frame is readable; boxes where the architecture
        draws some: those of the table, else from the signal, else the whole region.
    runs : numpy.ndarray
        The run of each, shape (frame,), text.
    index : numpy.ndarray
        The position of each in its run, shape (frame,), int64.

    Raises
    ------
    DataError
        If a label names a frame that is not there, or a box of the table lies outside of the
        region.
    """
    rows = locate(labels, frames)
    classes = np.array([CLASSES.index(name) for name in labels["label"]], np.int64)
    taken = take_frames(frames, rows)
    lazy = preprocess(taken, config)
    patterns = lazy["patterns"].data.compute(scheduler="threads")
    readable = np.isfinite(patterns).any((1, 2))
    if not readable.all():
        log.warning("%d labelled frames are unreadable and left out", np.sum(~readable))
    runs = taken["run_name"].values[taken["run"].values].astype(str)[readable]
    labelled = Labelled(patterns[readable], classes[readable])
    if config.training.architecture in DRAW_BOXES:
        corner = (int(lazy["y"][0]), int(lazy["x"][0]))
        drawn = relative_boxes(labels[readable], corner, patterns.shape[1:])
        boxes = _find_boxes(labelled.patterns, runs, drawn, corner, config)
        labelled = dataclasses.replace(labelled, boxes=boxes)
    return labelled, runs, taken["index"].values[readable]


def _find_boxes(
    patterns: FloatArray,
    runs: npt.NDArray[np.str_],
    drawn: FloatArray,
    corner: tuple[int, int],
    config: Config,
) -> FloatArray:
    boxes = drawn.copy()
    for run in np.unique(runs):
        place, here = config.geometry_of(str(run)), (runs == run) & np.isnan(boxes).any(1)
        beam = (place.beam_centre_y_px - corner[0], place.beam_centre_x_px - corner[1])
        if here.any():
            boxes[here] = signal_boxes(patterns[here], beam)
    empty = np.isnan(boxes).any(1)
    if empty.any():
        log.info("%d labelled patterns without visible signal get the whole region", empty.sum())
    boxes[empty] = (0.5, 0.5, 1, 1)
    return boxes


def split(runs: npt.NDArray[np.str_], classes: IntArray, config: Config, seed: int) -> Split:
    """Divide labels into those that train and those that validate.

    Parameters
    ----------
    runs : numpy.ndarray
        The run of each label, shape (label,), text.
    classes : numpy.ndarray
        Codes into schema.CLASSES, shape (label,), int64.
    config : Config
        Sections `training` and `validation`: runs by name, else a share of each class drawn
        with the seed.
    seed : int
        Of the draw.

    Returns
    -------
    Split
        Positions of the labels.

    Raises
    ------
    TrainingError
        If a side lacks single hits or others, or a run is on both sides.
    """
    by_training = _named(runs, config.training.runs)
    by_validation = _named(runs, config.validation.runs)
    if by_training is None and by_validation is None:
        drawn = np.zeros(len(runs), bool)
        random = np.random.default_rng([seed, len(runs)])
        for code in np.unique(classes):
            members = random.permutation(np.flatnonzero(classes == code))
            drawn[members[: round(config.validation.fraction * len(members))]] = True
        by_training, by_validation = ~drawn, drawn
    elif by_training is None:
        by_training = ~np.asarray(by_validation)
    elif by_validation is None:
        by_validation = ~by_training
    assert by_validation is not None
    if (both := np.unique(runs[by_training & by_validation])).size:
        raise TrainingError(
            f"run {both[0]} is in training.runs and in validation.runs; leave it out of one"
        )
    for name, side in (("training", by_training), ("validation", by_validation)):
        _refuse_one_sided(name, classes[side], np.unique(runs))
    return Split(np.flatnonzero(by_training), np.flatnonzero(by_validation))


def _named(runs: npt.NDArray[np.str_], patterns: list[str] | None) -> BoolArray | None:
    if patterns is None:
        return None
    return np.array([any(fnmatchcase(run, pattern) for pattern in patterns) for run in runs], bool)


def _refuse_one_sided(name: str, classes: IntArray, runs: npt.NDArray[np.str_]) -> None:
    n_single = int(np.sum(classes == SINGLE))
    if n_single == 0 or n_single == len(classes):
        raise TrainingError(
            f"{name}: {n_single} single hits and {len(classes) - n_single} others among its "
            f"labels, both are needed; the labels are of the runs {', '.join(runs)}: "
            f"see {name}.runs"
        )

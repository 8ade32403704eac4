"""Scores of an ensemble, lazily."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from spidask.config import Config, Precision, Runtime
from spidask.errors import DataError
from spidask.networks.cascade import score_members
from spidask.networks.device import choose_batch, resolve_device
from spidask.networks.member import Member, load_member
from spidask.networks.runtime import Ready
from spidask.preprocessing import map_frames
from spidask.schema import annotate, validate
from spidask.stopwatch import measure

FloatArray = npt.NDArray[np.float32]


def classify(patterns: xr.Dataset, members: Sequence[str | Path], config: Config) -> xr.Dataset:
    """Score the hits with every member of an ensemble, lazily.

    Parameters
    ----------
    patterns : xarray.Dataset
        What `preprocess` gives: patterns (frame, y, x) float32 in photons and hit (frame).
    members : sequence of str or pathlib.Path
        The members' files; each is loaded once in a process.
    config : Config
        Section `inference`.

    Returns
    -------
    xarray.Dataset
        The same with `scores` (frame, member) float32, lazy: calibrated probabilities of a single
        hit, NaN for frames that are no hits. The coordinate `member` holds the files' stems.

    Raises
    ------
    DataError
        If `patterns` or `hit` is missing, or there are no members.
    ClusterError
        If a device is asked for that is not there.
    """
    validate(patterns, "patterns", "hit")
    if not members:
        raise DataError("there are no members to score with; run the stage 'train' first")
    array, hit = patterns["patterns"].data, patterns["hit"].data
    paths = tuple(str(path) for path in members)
    work = partial(_score_block, paths=paths, config=config)
    scores = map_frames(work, array, hit, dtype=np.float32, member=len(paths))
    names = [Path(path).stem for path in paths]
    return annotate(
        patterns.assign(scores=(("frame", "member"), scores)).assign_coords(member=names)
    )


def load_current(path: str, config: Config) -> Member:
    """Load a member for inference, once in a process unless its file changes.

    Parameters
    ----------
    path : str
        The member's file.
    config : Config
        Sections `inference` and `cluster`.

    Returns
    -------
    Member
        The classifier, its network made ready.

    Raises
    ------
    ClusterError
        If a device or a runtime is asked for that is not there.
    """
    settings = config.inference
    device, modified = resolve_device(config), Path(path).stat().st_mtime_ns
    return _load(path, modified, device, settings.precision, settings.runtime)


@lru_cache(maxsize=64)
def _load(path: str, _mtime_ns: int, device: str, precision: Precision, runtime: Runtime) -> Member:
    member = load_member(path, device)
    return dataclasses.replace(member, network=Ready(member.network, precision, runtime))


def _score_block(
    block: FloatArray, hit: npt.NDArray[np.bool_], paths: tuple[str, ...], config: Config
) -> FloatArray:
    rows = np.flatnonzero(hit)
    out = np.full((len(block), len(paths)), np.nan, np.float32)
    out[rows] = score_patterns(block[rows], paths, config)
    return out


@measure("score")
def score_patterns(
    patterns: FloatArray | torch.Tensor, paths: Sequence[str], config: Config
) -> FloatArray:
    """Score patterns with every member of an ensemble.

    Parameters
    ----------
    patterns : numpy.ndarray or torch.Tensor
        Shape (n, y, x), float32, photons; NaN where a pixel is missing.
    paths : sequence of str
        The members' files.
    config : Config
        Sections `inference` and `cluster`.

    Returns
    -------
    numpy.ndarray
        Shape (n, member), float32: calibrated probabilities of a single hit. With early exit, NaN
        for the members after the first that rejects the pattern: the intersection is the same.

    Raises
    ------
    ClusterError
        If a device or a runtime is asked for that is not there.
    """
    # One thread, whatever the machine: the last digits of a convolution depend on their number.
    torch.set_num_threads(1)
    device, members = resolve_device(config), [load_current(path, config) for path in paths]
    sizes = [choose_batch(config, member.network, device) for member in members]
    early_exit = config.inference.ensemble == "early_exit"
    return score_members(members, patterns, sizes, early_exit=early_exit)

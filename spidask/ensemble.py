"""The members that classify: those that a config names, or those that are trained for it."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from spidask.config import Config
from spidask.errors import ConfigError, DataError, StoreError
from spidask.io.files import natural_key
from spidask.io.labels import drop_unreadable, read_labels
from spidask.networks.member import load_member
from spidask.provenance import refuse_changed_training, training_settings
from spidask.records import read_json, write_json
from spidask.training import train

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)


def find_members(config: Config) -> list[Path]:
    """List the members that classify.

    Parameters
    ----------
    config : Config
        The beamtime.

    Returns
    -------
    list of pathlib.Path
        Those of `inference.members`, else those in the output folder.

    Raises
    ------
    ConfigError
        If a file of `inference.members` is not there.
    StoreError
        If the output folder has none.
    """
    if config.inference.members:
        paths = [Path(path) for path in config.inference.members]
        for path in paths:
            if not path.is_file():
                raise ConfigError(f"inference.members: {path} is not there")
        return paths
    folder = Path(config.output) / "members"
    found = sorted(folder.glob("*.safetensors"), key=lambda path: natural_key(path.name))
    if not found:
        raise StoreError(f"{folder} holds no members; run the stage train first")
    return found


def train_members(
    frames: xr.Dataset, config: Config, client: Client | None, *, patient: bool = False
) -> tuple[list[Path], dict[str, Any]]:
    """Train the ensemble of a config, unless that is done.

    Parameters
    ----------
    frames : xarray.Dataset
        As of `open_runs`.
    config : Config
        The beamtime.
    client : distributed.Client or None
        Whose workers train; this process without it.
    patient : bool
        Whether labels of runs that cannot be read are refused, for these may become whole; else
        they are left out.

    Returns
    -------
    members : list of pathlib.Path
        The members' files, in ``members/`` of the output folder.
    facts : dict
        For the manifest: ``frames`` that trained or validated, and ``thresholds``.

    Raises
    ------
    ConfigError
        If there are no labels.
    DataError
        If labels are of runs that are not there or, being patient, cannot be read.
    StoreError
        If members or checkpoints are there that were made with other settings.
    """
    if config.labels.file is None:
        raise ConfigError(
            "labels.file: missing; give a CSV of run,index,label to train on, or the members of "
            "another beamtime as inference.members"
        )
    output = Path(config.output)
    record, begun = output / "members" / "training.json", output / "checkpoints" / "settings.json"
    settings = training_settings(config)
    # Without a checkpoint nothing depends on the settings of before.
    is_begun = any((output / "checkpoints").glob("*/*.safetensors"))
    for path in (record, begun) if is_begun else (record,):
        stored = read_json(path)["settings"] if path.exists() else {}
        refuse_changed_training(stored, settings, path.parent)
    if not record.exists():
        write_json(begun, {"settings": settings})
        start = time.perf_counter()
        labels, n_unreadable = drop_unreadable(
            read_labels(config.labels.file, config.labels), frames
        )
        if n_unreadable and patient:
            raise DataError(f"{n_unreadable} labels are of runs that cannot be read yet")
        if n_unreadable:
            log.warning("%d labels are of runs that cannot be read", n_unreadable)
        members, used = train(frames, labels, config, output, client)
        write_json(record, {"settings": settings, "frames": used})
        log.info("%d members trained in %.0f s", len(members), time.perf_counter() - start)
    members = find_members(config)
    thresholds = {path.stem: round(load_member(path).threshold, 4) for path in members}
    n_frames = sum(map(len, read_json(record)["frames"].values()))
    return members, {"frames": n_frames, "thresholds": thresholds}


def take_members(config: Config) -> list[Path]:
    """Take the members that a config names.

    Parameters
    ----------
    config : Config
        The beamtime, with `inference.members`.

    Returns
    -------
    list of pathlib.Path
        Their files, where they are.

    Raises
    ------
    ConfigError
        If one is not there.
    """
    # What these members were trained on has to stay out of the metrics here as well.
    members = find_members(config)
    frames: dict[str, set[int]] = {}
    for path in members:
        for run, index in load_member(path).provenance.get("frames", {}).items():
            frames.setdefault(run, set()).update(index)
    record = Path(config.output) / "members" / "training.json"
    write_json(record, {"settings": {}, "frames": {run: sorted(i) for run, i in frames.items()}})
    return members

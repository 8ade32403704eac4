"""What a result was made from, and whether that has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from spidask.config import DRAW_BOXES, Config
from spidask.errors import ConfigError, StoreError
from spidask.io.fingerprint import check_fingerprint, read_fingerprint, write_fingerprint
from spidask.io.labels import read_labels
from spidask.io.maps import is_inside, sign_map
from spidask.io.runs import select_run, sign_files
from spidask.networks.device import choose_batch, choose_device, resolve_device
from spidask.networks.member import SHIPPED, digest, read_architecture
from spidask.records import read_json, write_json

READ_BY = {"dataset", "mask", "mask_good", "mask_bits", "shape", "identity"}
"""Settings of the section `runs` that determine what is read."""


def awaits_simulation(config: Config) -> bool:
    """Tell whether the runs of a config are still to be simulated.

    Parameters
    ----------
    config : Config
        The beamtime.

    Returns
    -------
    bool
        True if it has a section `simulation` and that beamtime is not finished.
    """
    return config.simulation is not None and not _simulation_record(config).exists()


def sign_beamtime(config: Config) -> None:
    """Record that a beamtime is simulated, and from which settings.

    Parameters
    ----------
    config : Config
        With a section `simulation`, whose folder is there.
    """
    write_json(_simulation_record(config), _simulation_settings(config))


def refuse_other_beamtime(config: Config) -> None:
    """Refuse to go on with a simulated beamtime of other settings.

    Parameters
    ----------
    config : Config
        The beamtime.

    Raises
    ------
    StoreError
        If the folder of the section `simulation` holds one; names the keys.
    """
    record = _simulation_record(config)
    stored, settings = read_json(record), _simulation_settings(config)
    before, now = _flatten(stored), _flatten(settings)
    changed = _changed(before, now)
    if changed:
        told = ", ".join(f"{key} (was {before.get(key)}, is {now.get(key)})" for key in changed)
        raise StoreError(
            f"{record.parent} holds a beamtime of other settings: {told}. Set them back, remove "
            "it, or choose another simulation.folder",
            changed=changed,
        )


def training_settings(config: Config) -> dict[str, Any]:
    """Everything that determines the members, besides the raw files.

    Parameters
    ----------
    config : Config
        The beamtime, with `labels.file`.

    Returns
    -------
    dict
        The key's path to its value; the labels stand there as text.
    """
    names = {"training", "validation", "preprocessing", "per_run"}
    if config.training.architecture in DRAW_BOXES:
        names.add("geometry")  # around whose beam boxes are drawn
    # How fast it is done is nobody's business, but `ranks` changes the weights.
    left_out = {"training": {"threads", "timeout_s"}}
    flat = _flatten(config.model_dump(mode="json", include=names, exclude=left_out))
    flat |= _settings_of_frames(config)
    if config.preprocessing.adu_per_photon != 1:
        # By which the photon energies of frames scale it.
        flat["geometry.photon_energy_ev"] = config.geometry.photon_energy_ev
    flat["selection.expected_single_fraction"] = config.selection.expected_single_fraction
    if config.training.initial not in ("random", "imagenet"):
        shipped = config.training.initial == "shipped"
        flat["training.initial"] = digest(SHIPPED if shipped else config.training.initial)
    assert config.labels.file is not None
    return flat | {
        "labels.file": read_labels(config.labels.file, config.labels).to_csv(index=False)
    }


def refuse_changed_training(config: Config) -> None:
    """Refuse to go on with members or checkpoints that were trained with other settings.

    Parameters
    ----------
    config : Config
        The beamtime, with `labels.file`.

    Raises
    ------
    StoreError
        If a value differs; names the keys.
    """
    output = Path(config.output)
    records = [output / "members" / "training.json"]
    # Without a checkpoint nothing depends on the settings of before.
    if any((output / "checkpoints").glob("*/*.safetensors")):
        records.append(output / "checkpoints" / "settings.json")
    for record in filter(Path.exists, records):
        stored, present = read_json(record).get("settings", {}), training_settings(config)
        changed = _changed(stored, present) if stored else []
        if changed:
            values = {key: f" (was {stored.get(key)}, is {present.get(key)})" for key in changed}
            told = ", ".join(key + values[key] * (key != "labels.file") for key in changed)
            raise StoreError(
                f"{record.parent} was trained with other settings: {told}. Set them back, or "
                "choose another output",
                changed=changed,
            )


def refuse_stale_labels(
    members: Sequence[Path],
    files: Mapping[str, Sequence[Sequence[str | int]]],
    config: Config,
    *,
    follow: bool = False,
) -> None:
    """Refuse to go on with labels made from something else.

    Parameters
    ----------
    members : sequence of pathlib.Path
        The members that classify.
    files : mapping
        What `sign_inputs` gives.
    config : Config
        The beamtime.
    follow : bool
        Whether files may come, change and go; then only settings and members count.

    Raises
    ------
    StoreError
        If a setting, a member or a file has changed; names each.
    """
    stored = read_fingerprint(Path(config.output) / "labels.zarr")
    signed = {f"files.{run}": description for run, description in files.items()}
    if follow:
        stored = {k: v for k, v in stored.items() if not k.startswith("files.")}
    check_fingerprint(stored, _label_settings(members, config) | signed)


def sign_labels(members: Sequence[Path], config: Config) -> None:
    """Record what labels are made from; that of each run's files goes with its labels.

    Parameters
    ----------
    members : sequence of pathlib.Path
        The members that classify.
    config : Config
        The beamtime.
    """
    write_fingerprint(Path(config.output) / "labels.zarr", _label_settings(members, config))


def refuse_other_labels(before: Config, config: Config) -> None:
    """Refuse settings that stored labels cannot serve.

    Parameters
    ----------
    before, config : Config
        The settings of the labels, and those wanted.

    Raises
    ------
    ConfigError
        If they differ in more than selection, handoff and em; names the key.
    """
    free = {"selection", "handoff", "em", "labels", "cluster"}
    old, new = (_flatten(c.model_dump(mode="json", exclude=free)) for c in (before, config))
    fraction = "selection.expected_single_fraction"
    old[fraction] = before.selection.expected_single_fraction
    new[fraction] = config.selection.expected_single_fraction
    for key in _changed(old, new):
        raise ConfigError(
            f"{key}: changes members or labels, not only the selection; use `spidask run` with "
            "another output"
        )


def _label_settings(members: Sequence[Path], config: Config) -> dict[str, Any]:
    names = {"geometry", "preprocessing", "hits", "sizing", "per_run"}
    flat = _flatten(config.model_dump(mode="json", include=names))
    flat |= _settings_of_frames(config)
    kept = ("frames_per_shard", "ensemble", "precision", "runtime")
    flat |= {f"inference.{key}": getattr(config.inference, key) for key in kept}
    device = choose_device(config)
    # The devices of other machines are not here.
    device = resolve_device(config) if device == "auto" else device
    sizes = [choose_batch(config, read_architecture(path), device) for path in members]
    flat |= {"inference.device": device, "inference.batch_size": sizes}
    # Numbered, because the order is that of the scores' columns.
    return flat | {f"members.{i}": digest(path) for i, path in enumerate(members)}


def sign_inputs(frames: xr.Dataset, config: Config) -> dict[str, list[list[str | int]]]:
    """Describe the files that a run's labels come from so that a change shows.

    Parameters
    ----------
    frames : xarray.Dataset
        As of `open_runs`.
    config : Config
        The beamtime.

    Returns
    -------
    dict
        Name of the run to [path, bytes, modification time in ns, frames] of its raw files, and
        [location, 0, signature, 0] of its dark, gain, mask and geometry file, and of the photon
        energies that its frames have from the small data.
    """
    signed = sign_files(frames)
    for name in signed:
        settings = config.preprocessing_of(name)
        for what, location in (
            ("dark", settings.dark),
            ("gain", settings.gain),
            ("mask", config.runs.mask),
        ):
            if location and not is_inside(location):
                place = location.replace("{run}", name)
                signed[name].append([place, 0, sign_map(place, what), 0])
        if config.events:
            energies = select_run(frames, name)["photon_energy"].values
            found = hashlib.sha256(energies.tobytes()).hexdigest()
            signed[name].append(["photon energies of the events", 0, int(found[:12], 16), 0])
        if settings.assembly:
            content = Path(settings.assembly).read_bytes()
            signature = int(hashlib.sha256(content).hexdigest()[:12], 16)
            signed[name].append([settings.assembly, 0, signature, 0])
    return signed


def _settings_of_frames(config: Config) -> dict[str, Any]:
    values = config.runs.model_dump(mode="json", include=READ_BY)
    return {f"runs.{key}": value for key, value in values.items()}


def _simulation_record(config: Config) -> Path:
    assert config.simulation is not None
    return Path(config.simulation.folder) / "simulation.json"


def _simulation_settings(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", include={"simulation", "geometry"})


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    # A key that went is a change as well.
    return [key for key in {**before, **now} if before.get(key) != now.get(key)]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        flat |= _flatten(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flat

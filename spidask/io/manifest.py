"""What an output folder says of itself: ``manifest.json``."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spidask.config import Config, parse_config, put_settings
from spidask.errors import StoreError
from spidask.records import read_json, write_json

PACKAGES = ("spidask", "dask", "distributed", "h5py", "numpy", "torch", "xarray", "zarr")


def read_manifest(output: str | Path) -> dict[str, Any]:
    """Read what is known of an output folder.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder of a run.

    Returns
    -------
    dict
        ``config``, ``versions`` and ``counts``.

    Raises
    ------
    StoreError
        If there is no manifest.
    """
    path = Path(output) / "manifest.json"
    if not path.exists():
        raise StoreError(f"{path} is not there; is {output} the output folder of `spidask run`?")
    manifest = read_json(path)
    if not isinstance(manifest.get("config"), dict):
        raise StoreError(f"{path} holds no config; remove it and use `spidask run` again")
    return manifest


def read_config(output: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the settings that made an output folder.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder of a run.
    overrides : sequence of str
        Settings of the form ``section.key=value``.

    Returns
    -------
    Config
        The settings, with the overrides; `output` is the folder given.

    Raises
    ------
    StoreError
        If there is no manifest.
    ConfigError
        If a setting is unknown or wrong.
    """
    # The folder may have been moved since, or be named from elsewhere.
    values = {**read_manifest(output)["config"], "output": str(output)}
    return parse_config(put_settings(values, overrides))


def note(config: Config, counts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write settings and versions to the manifest, and add counts.

    Parameters
    ----------
    config : Config
        The merged settings; they name the output folder.
    counts : mapping, optional
        Stage to what it counted.

    Returns
    -------
    dict
        What the manifest holds now.
    """
    path = Path(config.output) / "manifest.json"
    manifest = read_manifest(path.parent) if path.exists() else {"counts": {}}
    manifest["config"] = config.model_dump(mode="json")
    manifest["versions"] = {name: version(name) for name in PACKAGES}
    manifest["versions"]["python"] = platform.python_version()
    manifest["counts"] |= counts or {}
    write_json(path, manifest)
    return manifest

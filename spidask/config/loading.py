"""Read the YAML file and the overrides of the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from spidask.assembly import read_assembly
from spidask.config.beamtime import Config
from spidask.config.cluster import Cluster
from spidask.config.explain import explain
from spidask.config.sections import EuXFEL
from spidask.errors import ConfigError
from spidask.proposals import find_proposal_runs

_ASSEMBLED = ("preprocessing", "geometry")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a beamtime's YAML file.

    Parameters
    ----------
    path : str or pathlib.Path
        The YAML file. Relative paths in it are taken from the folder where the program runs.
    overrides : sequence of str
        Settings of the form ``section.key=value``, the value parsed as YAML.

    Returns
    -------
    Config
        The settings with every default filled in.

    Raises
    ------
    ConfigError
        If the file cannot be read or a setting is unknown or wrong; names the key's path.
    """
    return parse_config(read_settings(path, overrides))


def parse_config(values: dict[str, Any]) -> Config:
    """Check settings that were read before.

    Parameters
    ----------
    values : dict
        Nested sections as plain values.

    Returns
    -------
    Config
        The settings with every default filled in.

    Raises
    ------
    ConfigError
        If a setting is unknown or wrong; one line for each, with the key's path.
    """
    try:
        return Config.model_validate(_with_beam(_with_euxfel(_with_site(values))))
    except ValidationError as error:
        raise ConfigError(explain(error, Config)) from None


def read_settings(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file and put overrides into it, without checking names or types.

    Parameters
    ----------
    path : str or pathlib.Path
        The YAML file.
    overrides : sequence of str
        Settings of the form ``section.key=value``, the value parsed as YAML.

    Returns
    -------
    dict
        Nested sections as plain values.

    Raises
    ------
    ConfigError
        If the file cannot be read or parsed, or an override has another form.
    """
    return put_settings(_read(path), overrides)


def _read(path: str | Path) -> dict[str, Any]:
    try:
        values = yaml.load(Path(path).read_text(), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; check the path") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: is no YAML: {error.problem}; correct it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no sections; expected at least 'runs:' and 'output:'")
    return values


def put_settings(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Put single settings into nested sections.

    Parameters
    ----------
    values : dict
        Nested sections as plain values; changed in place.
    overrides : sequence of str
        Settings of the form ``section.key=value``, the value parsed as YAML.

    Returns
    -------
    dict
        The same sections.

    Raises
    ------
    ConfigError
        If an override has another form.

    Examples
    --------
    >>> put_settings({}, ["selection.size_window_nm=[50, 90]"])
    {'selection': {'size_window_nm': [50, 90]}}
    """
    for override in overrides:
        _put(values, override)
    return values


def schema_json() -> str:
    """Describe the YAML file to an editor.

    Returns
    -------
    str
        A JSON schema.
    """
    return json.dumps(Config.model_json_schema(), indent=2)


def _with_site(values: dict[str, Any]) -> dict[str, Any]:
    """Fill the section `cluster` with what its site's file says; what is given here goes first."""
    own = values.get("cluster")
    if not isinstance(own, dict) or not isinstance(own.get("site"), str):
        return values
    path = own["site"]
    try:
        site = _read(path)
    except ConfigError as error:
        raise ConfigError(f"cluster.site: {error}") from None
    section = site.get("cluster")
    if set(site) != {"cluster"} or not isinstance(section, dict) or "site" in section:
        raise ConfigError(
            f"cluster.site: {path}: expected one section 'cluster:' with settings, and no 'site' "
            f"in it; it holds {', '.join(site)}"
        )
    try:
        Cluster.model_validate(section)
    except ValidationError as error:
        raise ConfigError(explain(error, Cluster, f"cluster.site: {path}: cluster")) from None
    merged = {**section, **own, "site": None}
    if isinstance(own.get("job", {}), dict):
        merged["job"] = {**section.get("job", {}), **own.get("job", {})}
    return {**values, "cluster": merged}


def _with_euxfel(values: dict[str, Any]) -> dict[str, Any]:
    """Fill `runs.files` and `runs.dataset` from the section `euxfel` where they are not given."""
    runs = values.get("runs") or {}
    try:
        section = EuXFEL.model_validate(values.get("euxfel") or {})
    except ValidationError:
        return values  # told with everything else that is wrong
    if not isinstance(runs, dict):
        return values
    filled: dict[str, Any] = {}
    if section.proposal is not None and "files" not in runs:
        filled["files"] = find_proposal_runs(section.proposal, section.runs, section.data)
    if section.detector is not None:
        filled["dataset"] = section.detector
    return {**values, "runs": {**filled, **runs}} if filled else values


def _with_beam(values: dict[str, Any]) -> dict[str, Any]:
    """Fill beam centre and pixel size of assembled images where they are not given."""
    per_run = values.get("per_run")
    if isinstance(per_run, dict):
        values = {**values, "per_run": {name: _filled(part) for name, part in per_run.items()}}
    filled: dict[str, Any] = _filled(values)
    return filled


def _filled(values: Any) -> Any:
    sections = [values.get(n) or {} for n in _ASSEMBLED] if isinstance(values, dict) else []
    if not sections or not all(isinstance(section, dict) for section in sections):
        return values
    preprocessing, given = sections
    path = preprocessing.get("assembly")
    if not isinstance(path, str):
        return values
    try:
        assembly = read_assembly(path)
    except ConfigError:
        return values  # told where the image is assembled
    y, x = assembly.beam
    place = {"beam_centre_y_px": y, "beam_centre_x_px": x}
    place["pixel_size_um"] = assembly.pixel_size * 1e6
    filled: dict[str, Any] = {**values, "geometry": {**place, **given}}
    return filled


class _Loader(yaml.SafeLoader):
    """Reads YAML, and refuses a key that stands twice: the first would be dropped in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                line = node.value[number][0].start_mark.line + 1
                raise ConfigError(f"{key}: stands twice, again in line {line}; keep one")
        return super().construct_mapping(node, deep)


def _put(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"--set {override}: expected section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: '{text}' is no YAML value; quote it") from None
    *sections, last = key.strip().split(".")
    for name in sections:
        if values.get(name) is None:
            values[name] = {}
        values = values[name]
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: '{name}' is no section")
    values[last] = value

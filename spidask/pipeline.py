"""The stages of a beamtime, in order; what is done is not done again."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client

from spidask.cluster import connect, is_driver
from spidask.comparison import judge_selections
from spidask.config import Config
from spidask.ensemble import find_members, take_members, train_members
from spidask.errors import ClusterError, ConfigError, DataError, SpidaskError, StoreError
from spidask.handoff import export, needs_frames
from spidask.inference import Shard, classify_runs, count_labels
from spidask.io.beamtime import judge_ids, open_configured
from spidask.io.files import follow_files, natural_key
from spidask.io.fingerprint import drop_run, find_changed_runs
from spidask.io.manifest import note, read_config
from spidask.io.store import gather_labels
from spidask.io.tables import read_trained_frames, write_selection_csv
from spidask.monitor import report_performance, tell, watch
from spidask.networks.device import choose_device
from spidask.networks.member import load_member
from spidask.provenance import (
    awaits_simulation,
    refuse_other_beamtime,
    refuse_other_labels,
    refuse_stale_labels,
    sign_beamtime,
    sign_inputs,
    sign_labels,
)
from spidask.records import hold
from spidask.reporting import write_report
from spidask.selection import count_reasons, select
from spidask.simulation.beamtime import simulate_beamtime

STAGES = ("train", "classify", "select", "export", "report")
OnShard = Callable[[Shard, int], None]
log = logging.getLogger(__name__)


def run(
    config: Config,
    until: str = "report",
    progress: OnShard = lambda _shard, _n: None,
    *,
    follow: bool = False,
) -> dict[str, Any]:
    """Take a beamtime from raw runs to a selection, its files and its report.

    Parameters
    ----------
    config : Config
        The beamtime.
    until : str
        The last stage to do: train, classify, select, export or report.
    progress : callable
        Called with every finished shard and the number of shards to do.
    follow : bool
        Wait for more runs when all are done, and do them, until interrupted. A run whose files
        change later is labelled anew.

    Returns
    -------
    dict
        What ``manifest.json`` holds.

    Raises
    ------
    ConfigError
        If there is no such stage.
    StoreError
        If the output folder was made with other settings; names them.
    ClusterError
        If workers do not come.
    SpidaskError
        Whatever stops a stage.
    """
    if until not in STAGES:
        raise ConfigError(f"--until {until}: no such stage; stages are {', '.join(STAGES)}")
    last = STAGES.index(until)
    # All workers compute on the same kind of device, or fail.
    device = config.inference.model_copy(update={"device": choose_device(config)})
    config = config.model_copy(update={"inference": device})
    with _start(config) as client:
        if not follow:
            return _do_stages(config, last, progress, client)
        return _follow(config, last, progress, client)


def _follow(config: Config, last: int, progress: OnShard, client: Client | None) -> dict[str, Any]:
    manifest: dict[str, Any] = {"counts": {}}
    done: dict[str, object] = {}
    told = ""
    for files in follow_files(config.runs.files):
        if files == done:
            continue
        runs = config.runs.model_copy(update={"files": sorted(files, key=natural_key)})
        now = config.model_copy(update={"runs": runs})
        try:
            manifest = _do_stages(now, last, progress, client, follow=True)
            done, told = dict(files), ""
        except (ClusterError, StoreError):
            raise
        except SpidaskError as error:
            # A file that is at fault, a labelled run or the labels may be on their way.
            if str(error) != told:
                log.warning("%s; looking again", error)
            told = str(error)
    return manifest


@contextmanager
def _start(config: Config) -> Iterator[Client | None]:
    # In an allocation only one process comes back from `connect`: it has the folder, from before
    # anything of an earlier run is removed, and simulates when the others are at their places.
    in_allocation = config.cluster.kind == "allocation"
    with ExitStack() as stack:
        if not in_allocation or is_driver():
            stack.enter_context(hold(config.output))
        if config.simulation and not in_allocation:
            make_beamtime(config)
        client = stack.enter_context(connect(config.cluster, config.output))
        if config.simulation and in_allocation:
            make_beamtime(config)
        stack.enter_context(watch(client))
        yield client


def _do_stages(
    config: Config,
    last: int,
    progress: OnShard,
    client: Client | None,
    *,
    follow: bool = False,
) -> dict[str, Any]:
    frames = open_beamtime(config)
    facts = {"read": _count_read(frames) | _tell_ids(frames, config)}
    output = Path(config.output)
    if config.inference.members:
        members = take_members(config)
    else:
        with report_performance(client, output / "performance" / "train.html"):
            members, facts["train"] = train_members(frames, config, client, patient=follow)
    files = sign_inputs(frames, config)
    changed = find_changed_runs(output / "labels.zarr", files) if follow else []
    refuse_stale_labels(members, files, config, follow=follow)
    for name in changed:
        log.warning("the files of run %s have changed: it is labelled anew", name)
        drop_run(output / "labels.zarr", name)
    # Not before here, so that settings which were refused leave no trace.
    note(config, facts)
    if last >= STAGES.index("classify"):
        sign_labels(members, config)
        with report_performance(client, output / "performance" / "classify.html"):
            labels = output / "labels.zarr"
            classify_runs(frames, members, config, labels, files, client, progress)
        note(config, {"classify": count_labels(labels)})
    if last >= STAGES.index("select"):
        selection = choose(config)
        note(config, _tabulate(selection, config))
    if last >= STAGES.index("export"):
        with report_performance(client, output / "performance" / "export.html"):
            note(config, {"export": export(selection, frames, config, output, client)})
    if last >= STAGES.index("report"):
        log.info("report: %s", write_report(selection, frames, config, output))
    return note(config)


def select_again(output: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Select and hand off anew from stored labels; report and comparison of before are removed.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder of `run`.
    overrides : sequence of str
        Settings of the form ``selection.key=value``.

    Returns
    -------
    dict
        What ``manifest.json`` holds.

    Raises
    ------
    ConfigError
        If an override changes a setting on which members or labels depend.
    StoreError
        If labels are missing.
    """
    config = read_config(output, overrides)
    refuse_other_labels(read_config(output), config)
    with hold(output):
        selection = choose(config)
        frames = open_beamtime(config) if needs_frames(selection, config, output) else None
        exported = export(selection, frames, config, output)
        # Not before here: where the export is refused, the selection of before stands.
        facts = {**_tabulate(selection, config), "export": exported}
        # They tell of the selection before; `spidask compare` and `report` write those of this.
        for name in ("report.html", "comparison.csv"):
            (Path(output) / name).unlink(missing_ok=True)
        return note(config, facts)


def report_again(output: str | Path) -> Path:
    """Write the report anew from stored labels.

    Parameters
    ----------
    output : str or pathlib.Path
        Output folder of `run`.

    Returns
    -------
    pathlib.Path
        The report.

    Raises
    ------
    StoreError
        If labels are missing.
    """
    config = read_config(output)
    with hold(output):
        selection, frames = choose(config), open_beamtime(config)
        note(config, _tabulate(selection, config))
        path: Path = write_report(selection, frames, config, Path(output))
    return path


def choose(config: Config) -> xr.Dataset:
    """Select from stored labels.

    Parameters
    ----------
    config : Config
        The beamtime.

    Returns
    -------
    xarray.Dataset
        As of `select`, in memory.

    Raises
    ------
    StoreError
        If labels are missing.
    """
    output = Path(config.output)
    thresholds = [load_member(path).threshold for path in find_members(config)]
    labels = gather_labels(output / "labels.zarr")
    return select(labels, thresholds, config.selection, read_trained_frames(output))


def _tabulate(selection: xr.Dataset, config: Config) -> dict[str, Any]:
    """Write the table of all frames and judge it; gives facts for the manifest."""
    write_selection_csv(selection, Path(config.output) / "selection.csv")
    counts = count_reasons(selection)
    tell("selected", **{k: v for k, v in counts.items() if k != "runs"})
    log.info("%s", _in_words({k: v for k, v in counts.items() if k != "runs"}))
    metrics = _judge(config) if config.labels.truth else {}
    return {"select": counts, "metrics": metrics}


def make_beamtime(config: Config) -> Path:
    """Simulate the beamtime of a config, unless it is there.

    Parameters
    ----------
    config : Config
        With a section `simulation`.

    Returns
    -------
    pathlib.Path
        Its folder.

    Raises
    ------
    ConfigError
        If there is no section `simulation`.
    StoreError
        If the folder holds a beamtime of other settings.
    """
    if config.simulation is None:
        raise ConfigError("simulation: missing; a beamtime is computed from this section")
    folder = Path(config.simulation.folder)
    if not awaits_simulation(config):
        refuse_other_beamtime(config)
        return folder
    start = time.perf_counter()
    simulate_beamtime(config.simulation, config.geometry)
    sign_beamtime(config)
    n_frames = config.simulation.runs * config.simulation.frames
    log.info("%d frames simulated in %.0f s", n_frames, time.perf_counter() - start)
    return folder


def open_beamtime(config: Config) -> xr.Dataset:
    """Open the runs of a config and say which files cannot be read.

    Parameters
    ----------
    config : Config
        Sections `runs`, `events` and `inference`.

    Returns
    -------
    xarray.Dataset
        As of `open_runs`; the index of files is cached in the output folder.
    """
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    frames = open_configured(config, output / "index.json")
    faulty = {name: frames.attrs[name] for name in ("unreadable_files", "odd_files")}
    for path, why in [*faulty["unreadable_files"], *faulty["odd_files"]]:
        log.warning("%s %s", path, why)
    return frames


def _count_read(frames: xr.Dataset) -> dict[str, Any]:
    faulty = {name: frames.attrs[name] for name in ("unreadable_files", "odd_files")}
    n_files = frames.sizes["file_code"] + len(faulty["unreadable_files"])
    counts = {"files": n_files, "frames": frames.sizes["frame"], **faulty}
    return counts | ({"faults": frames.attrs["faults"]} if frames.attrs["faults"] else {})


def _tell_ids(frames: xr.Dataset, config: Config) -> dict[str, Any]:
    odd = judge_ids(frames, config)
    for name, n_frames in odd.items():
        log.warning("%d of %d frames: %s", n_frames, frames.sizes["frame"], name.replace("_", " "))
    return {"ids": odd}


def _judge(config: Config) -> dict[str, Any]:
    try:
        table = judge_selections(config.output, truth=config.labels.truth, meanings=config.labels)
    except DataError as error:
        # A truth that cannot serve must not cost the selection and the report.
        log.warning("no metrics: %s", error)
        return {}
    table = table.set_axis(["selection", "reject everything"])
    metrics: dict[str, Any] = json.loads(table.to_json(orient="index"))
    log.info("against %s: %s", config.labels.truth, _in_words(metrics["selection"]))
    return metrics


def _in_words(counts: Mapping[str, float | None]) -> str:
    return ", ".join(
        f"{key.replace('_', ' ')} {value:.4g}"
        if isinstance(value, float) and not np.isnan(value)
        else f"{key.replace('_', ' ')} {value}"
        for key, value in counts.items()
        if value is not None
    )

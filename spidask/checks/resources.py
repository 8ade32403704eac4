"""What the machine and the output folder do not give."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from spidask.checks.problems import Beamtime, Problem, as_problem, finds
from spidask.config import Config
from spidask.errors import ClusterError, SpidaskError, StoreError
from spidask.io.files import natural_key
from spidask.io.fingerprint import read_fingerprint
from spidask.networks.checkpoints import find_last
from spidask.networks.device import resolve_device
from spidask.networks.runtime import require
from spidask.planning import make_plan
from spidask.provenance import (
    awaits_simulation,
    refuse_changed_training,
    refuse_other_beamtime,
    refuse_stale_labels,
    sign_inputs,
)
from spidask.units import format_bytes


@finds
def _no_device(beamtime: Beamtime) -> Iterator[Problem]:
    """A GPU that is asked for and not there, or that this torch does not run on."""
    if beamtime.config.cluster.kind not in ("local", "inline"):
        return  # the devices are elsewhere
    try:
        device = resolve_device(beamtime.config)
        require(beamtime.config.inference.runtime)
    except ClusterError as error:
        yield as_problem(error, "inference.device")
        return
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        built = torch.cuda.get_arch_list()
        if not _runs_on((major, minor), built):
            yield Problem(
                "inference.device",
                f"this GPU has compute capability {major}.{minor}, torch {torch.__version__} is "
                f"built for {', '.join(built)}; set cpu or install another torch",
            )


def _runs_on(capability: tuple[int, int], built: list[str]) -> bool:
    # Binary code (sm_) runs within its major version, intermediate code (compute_) on all later.
    for name in built:
        kind, _, number = name.partition("_")
        digits = re.sub(r"\D", "", number)
        wanted = (int(digits[:-1]), int(digits[-1]))
        if wanted <= capability and (kind == "compute" or wanted[0] == capability[0]):
            return True
    return False


@finds
def _unaligned_shards(beamtime: Beamtime) -> Iterator[Problem]:
    """Shards that cut the windows of the adaptive threshold."""
    window, shard = beamtime.config.hits.window, beamtime.config.inference.frames_per_shard
    if beamtime.config.hits.threshold == "adaptive" and shard % window:
        yield Problem(
            "inference.frames_per_shard",
            f"{shard} is no multiple of hits.window ({window}), so frames at the edges are read "
            f"twice; set {max(shard // window, 1) * window}",
            "warning",
        )


@finds
def _too_large(beamtime: Beamtime) -> Iterator[Problem]:
    """More memory or disk than there is."""
    if not beamtime.recipes:
        return
    try:
        plan = make_plan(beamtime.config, beamtime.frames)
    except SpidaskError:
        return  # told where jobs and members are checked
    needed = plan.processes * plan.process_bytes
    other = "raise cluster.job.memory" if plan.jobs else "cluster.cpu_workers"
    if plan.machine_bytes and needed > plan.machine_bytes:
        yield Problem(
            "inference.frames_per_block",
            f"{plan.processes} processes with blocks of {plan.frames_per_block} frames take about "
            f"{format_bytes(needed)}, there are {format_bytes(plan.machine_bytes)}; lower it, or "
            f"{other}",
            "warning",
        )
    if plan.train_bytes > plan.machine_bytes > 0 and _trains_here(beamtime.config):
        yield Problem(
            "training.subdivisions",
            f"a process that trains takes about {format_bytes(plan.train_bytes)}, there are "
            f"{format_bytes(plan.machine_bytes)}; raise it, or lower training.batch_size",
            "warning",
        )
    output, size = _nearest(Path(beamtime.config.output)), sum(plan.output_bytes.values())
    free = shutil.disk_usage(output).free
    if size > free:
        yield Problem(
            "output",
            f"{output} has {format_bytes(free)} free, about {format_bytes(size)} are expected; "
            "free some space or choose another output",
            "warning",
        )


def _trains_here(config: Config) -> bool:
    """Whether networks are trained on CPUs whose memory is known."""
    try:
        return not config.cluster.gpus and resolve_device(config) == "cpu"
    except ClusterError:
        return False  # told where devices are checked


def _nearest(path: Path) -> Path:
    """The path itself, or the nearest of its parents that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


@finds
def _bad_output(beamtime: Beamtime) -> Iterator[Problem]:
    """An output folder that cannot be written."""
    output = _nearest(Path(beamtime.config.output))
    if not output.is_dir():
        yield Problem("output", f"{output} is a file, expected a folder; choose another output")
        return
    try:
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        yield Problem("output", f"{output}: {error.strerror}; choose another output")


@finds
def _other_beamtime(beamtime: Beamtime) -> Iterator[Problem]:
    """A beamtime that was simulated with other settings."""
    if beamtime.config.simulation and not awaits_simulation(beamtime.config):
        try:
            refuse_other_beamtime(beamtime.config)
        except StoreError as error:
            yield Problem("simulation.folder", str(error))


@finds
def _stale_output(beamtime: Beamtime) -> Iterator[Problem]:
    """Members or labels that were made with other settings or files."""
    config, folder = beamtime.config, Path(beamtime.config.output) / "members"
    if beamtime.labels is not None:
        try:
            refuse_changed_training(config)
            if not (folder / "training.json").exists():
                for begun in sorted((folder.parent / "checkpoints").glob("seed*")):
                    find_last(begun)
        except SpidaskError as error:
            yield Problem("output", str(error))
            return
        except OSError:
            return  # told where the starting weights are checked
    members = [Path(path) for path in config.inference.members or []]
    members = members or sorted(folder.glob("*.safetensors"), key=lambda p: natural_key(p.name))
    if beamtime.frames is not None and beamtime.recipes and all(p.is_file() for p in members):
        try:
            if read_fingerprint(folder.parent / "labels.zarr"):
                refuse_stale_labels(members, sign_inputs(beamtime.frames, config), config)
        except SpidaskError as error:
            yield Problem("output", str(error))

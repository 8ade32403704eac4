"""Single hits of X-ray free-electron laser beamtimes, selected on a Dask cluster."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spidask.checks import check as check
    from spidask.cluster import connect as connect
    from spidask.comparison import compare as compare
    from spidask.config import load_config as load_config
    from spidask.handoff import export as export
    from spidask.inference import classify as classify
    from spidask.inference import classify_runs as classify_runs
    from spidask.io.labels import read_labels as read_labels
    from spidask.io.runs import open_runs as open_runs
    from spidask.io.store import gather_labels as gather_labels
    from spidask.pipeline import run as run
    from spidask.preprocessing import measure_sizes as measure_sizes
    from spidask.preprocessing import preprocess as preprocess
    from spidask.reporting import write_report as write_report
    from spidask.selection import select as select
    from spidask.simulation.beamtime import simulate_beamtime as simulate_beamtime
    from spidask.training import train as train

# Loaded when asked for: torch alone takes seconds, and the lower rooms must not see the upper ones.
_ROOMS = {
    "check": "checks",
    "classify": "inference",
    "classify_runs": "inference",
    "compare": "comparison",
    "connect": "cluster",
    "export": "handoff",
    "gather_labels": "io.store",
    "load_config": "config",
    "measure_sizes": "preprocessing",
    "open_runs": "io.runs",
    "preprocess": "preprocessing",
    "read_labels": "io.labels",
    "run": "pipeline",
    "select": "selection",
    "simulate_beamtime": "simulation.beamtime",
    "train": "training",
    "write_report": "reporting",
}
__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"spidask.{_ROOMS[name]}"), name)
    raise AttributeError(f"spidask has no '{name}'; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__

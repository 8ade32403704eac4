"""The report as one HTML file that needs nothing beside it."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import xarray as xr
import yaml

from spidask.config import Config
from spidask.io.dragonfly import read_blacklist
from spidask.io.files import natural_key
from spidask.io.tables import read_comparison_csv
from spidask.networks.member import Member, load_member
from spidask.records import read_json
from spidask.reporting import figures
from spidask.reporting.facts import estimate_purity, make_funnel, match_truth, measure_quality
from spidask.reporting.patterns import (
    Floats,
    choose_brightest,
    choose_powder,
    choose_sheets,
    paint,
    read_patterns,
)
from spidask.schema import REASONS, validate
from spidask.selection import count_reasons

PACKAGES = ("spidask", "dask", "h5py", "matplotlib", "numpy", "torch", "xarray", "zarr")
NOTHING = "\u2013"
"""Stands where there is no number."""
MEANINGS = {
    "": "selected",
    "unreadable": "unreadable",
    "miss": "misses",
    "not_single": "not single",
    "size": "outside the size window",
}

COMPARISON = {
    "manual": "single hits",
    "selected": "selected",
    "intersection": "in both",
    "iou": "IoU",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "average_precision": "average precision",
    "contrast": "contrast",
    "iou_with_first": "IoU with the first",
    "patterns_per_second": "patterns/s",
    "n_parameters": "parameters",
    "device": "device",
}
"""Columns of the comparison and their heads."""


@dataclass(frozen=True)
class Thumbnail:
    """A pattern of a contact sheet.

    Attributes
    ----------
    source : str
        Data URI.
    alt : str
        What it is.
    caption : list of str
        Lines below it.
    """

    source: str
    alt: str
    caption: list[str]


@dataclass(frozen=True)
class Comparison:
    """What ``comparison.csv`` holds, as it is shown.

    Attributes
    ----------
    made : str
        When it was written.
    n_frames : int
        Frames on which the measured rows are compared.
    n_fringes : int
        Fringes behind the contrast; 0 where there is none.
    columns : list of str
        Heads of the columns that hold anything.
    measured, published : list of tuple
        Name, cells and note of each row.
    """

    made: str
    n_frames: int
    n_fringes: int
    columns: list[str]
    measured: list[tuple[str, list[str], str]]
    published: list[tuple[str, list[str], str]]


def write_report(selection: xr.Dataset, frames: xr.Dataset, config: Config, output: Path) -> Path:
    """Write ``report.html``: what became of the frames, and how good the selection is.

    Parameters
    ----------
    selection : xarray.Dataset
        What `selection.select` gives: all frames, in memory.
    frames : xarray.Dataset
        What `open_runs` gives, of the same runs; some hundred frames are read, by run and index.
    config : Config
        The settings that made the selection; `labels.truth` is read here.
    output : pathlib.Path
        Output folder. Its ``members/``, ``metrics.csv``, ``comparison.csv``,
        ``orientation/meters.json`` and ``manifest.json`` are shown if they are there.

    Returns
    -------
    pathlib.Path
        The page. Its images are embedded; it loads nothing and runs no script.

    Raises
    ------
    DataError
        If a variable is missing, a shown frame is not among `frames`, or the truth cannot be read.
    """
    validate(selection, "photon_count", "selected", "reason", "score", "scores", "trained_on")
    counts = count_reasons(selection)
    context = {
        "name": output.resolve().name,
        "counts": counts,
        "steps": make_funnel(counts),
        "unreadable_files": frames.attrs["unreadable_files"],
        "odd_files": frames.attrs.get("odd_files", []),
        "n_trained_on": int(selection["trained_on"].values.sum()),
        "window": config.selection.size_window_nm,
        "seed": config.training.seed,
        "meanings": [MEANINGS[reason] for reason in REASONS],
        **_judge(selection, config),
        **_show_patterns(selection, frames, config),
        **_draw(selection, counts, config, output),
        **_describe(config, output),
        "comparison": _read_comparison(output),
        "orientation": _read_orientation(output),
    }
    path = output / "report.html"
    part = path.with_name("report.html.part")
    part.write_text(_template().render(context), encoding="utf-8")
    os.replace(part, path)
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(n=_count, pct=_percent, f3=_decimals)
    environment.globals.update(logarithm=math.log, nan=math.nan)
    text = resources.files("spidask.reporting").joinpath("report.html.j2").read_text("utf-8")
    return environment.from_string(text)


def _judge(selection: xr.Dataset, config: Config) -> dict[str, Any]:
    truth = match_truth(selection, config)
    seed = config.training.seed
    is_ranked = config.inference.ensemble != "early_exit"
    quality = measure_quality(selection, truth, seed, is_ranked=is_ranked) if truth else None
    curve = None
    if quality and quality.curve and quality.average_precision is not None:
        curve = figures.draw_curve(quality.curve, quality.metrics, quality.average_precision)
    purity = estimate_purity(selection, truth, seed)
    return {"truth": truth, "quality": quality, "purity": purity, "curve": curve}


def _show_patterns(selection: xr.Dataset, frames: xr.Dataset, config: Config) -> dict[str, Any]:
    seed = config.training.seed
    powder, sheets = choose_powder(selection, seed), choose_sheets(selection, seed)
    shown = np.concatenate([np.zeros(0, np.int64), *(sheet.rows for sheet in sheets)])
    small, sums = read_patterns(selection, frames, config, shown, powder)
    brightest = choose_brightest(small)
    return {
        "sheets": [
            (sheet, [_thumbnail(selection, int(row), small, brightest) for row in sheet.rows])
            for sheet in sheets
        ],
        "brightest": brightest,
        "powder": figures.draw_powder(sums),
        "powder_numbers": {name: sums[name].n if name in sums else 0 for name in powder},
    }


def _thumbnail(
    selection: xr.Dataset, row: int, small: dict[int, Floats], brightest: float
) -> Thumbnail:
    frame = selection.isel(frame=row)
    run, index = str(frame["run_name"].values[int(frame["run"])]), int(frame["index"])
    scores, diameter = frame["scores"].values, float(frame["diameter"])
    facts = []
    if np.isfinite(scores).any():
        facts.append(f"p {np.nanmean(scores):.2f}")
    if math.isfinite(diameter):
        facts.append(f"{diameter:.0f} nm")
    if not facts:
        facts.append(f"{_count(round(float(frame['photon_count'])))} photons")
    named, state = f"run {run}, frame {index}", MEANINGS[REASONS[int(frame["reason"])]]
    used, mark = (", trained on", " †") if frame["trained_on"] else ("", "")
    alt = f"Pattern of {named}: {state}{used}, {', '.join(facts)}"
    caption = [f"{run} · {index}{mark}", " · ".join(facts)]
    return Thumbnail(paint(small[row], brightest), alt, caption)


def _draw(
    selection: xr.Dataset, counts: dict[str, Any], config: Config, output: Path
) -> dict[str, Any]:
    members = _load_members(config, output)
    thresholds = [member.threshold for member in members]
    if len(thresholds) != selection.sizes["member"]:
        thresholds = []
    path = output / "metrics.csv"
    training = figures.draw_training(pd.read_csv(path), members) if path.exists() else None
    window, tried = config.selection.size_window_nm, config.sizing.range_nm
    return {
        "members": [(member.threshold, member.provenance) for member in members],
        "training": training,
        "sizes": figures.draw_sizes(selection, window, tried),
        "scores": figures.draw_scores(selection, thresholds),
        "rates": figures.draw_hit_rates(counts["runs"]),
    }


def _load_members(config: Config, output: Path) -> list[Member]:
    paths: Sequence[str] = config.inference.members or sorted(
        map(str, (output / "members").glob("*.safetensors")), key=natural_key
    )
    return [load_member(path) for path in paths]


def _read_comparison(output: Path) -> Comparison | None:
    path = output / "comparison.csv"
    if not path.exists():
        return None
    table = read_comparison_csv(path)
    columns = [name for name in COMPARISON if table[name].replace("", None).notna().any()]
    cells = [[_cell(name, row[name]) for name in columns] for _, row in table.iterrows()]
    rows = list(zip(map(str, table.index), cells, table["note"], strict=True))
    measured = (table["source"] == "measured").tolist()
    return Comparison(
        made=f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}",
        n_frames=int(table["frames"].iloc[0]),
        n_fringes=int(table["fringes"].max()) if table["fringes"].notna().any() else 0,
        columns=[COMPARISON[name] for name in columns],
        measured=[row for row, ours in zip(rows, measured, strict=True) if ours],
        published=[row for row, ours in zip(rows, measured, strict=True) if not ours],
    )


def _read_orientation(output: Path) -> dict[str, Any] | None:
    folder = output / "orientation"
    if not (folder / "meters.json").exists():
        return None
    meters = read_json(folder / "meters.json")
    with np.load(folder / "slices.npz") as slices:
        cuts = {name: slices[name] for name in ("recovered", "model") if name in slices}
    first, last = (radius * meters["voxel"] for radius in meters["shells"])
    named = [(told, meters[key]) for key, told in figures.METERS.items() if meters[key]]
    lists = [path / "blacklist.txt" for path in (folder, output / "dragonfly")]
    return meters | {
        "picture": figures.draw_intensity(meters, cuts),
        "correlations": named,
        "range": (first, last),
        "change": meters["rms_change"][-1] / max(meters["rms_change"]),
        "is_selection": all(path.exists() for path in lists)
        and read_blacklist(lists[0]).tolist() == read_blacklist(lists[1]).tolist(),
    }


def _cell(column: str, value: Any) -> str:
    if column == "device":
        return str(value)
    if not math.isfinite(value):
        return NOTHING
    is_ratio = column not in ("manual", "selected", "intersection", "n_parameters")
    return _decimals(value) if is_ratio and value <= 1 else _count(value)


def _describe(config: Config, output: Path) -> dict[str, Any]:
    manifest = _read_manifest(output)
    current = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    return {
        "settings": _yaml(config.model_dump(mode="json")),
        "versions": manifest.get("versions", current),
        "stages": _yaml(manifest["counts"]) if "counts" in manifest else "",
    }


def _read_manifest(output: Path) -> dict[str, Any]:
    path = output / "manifest.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _yaml(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def _count(value: float) -> str:
    # Thousands apart by a narrow space that no line breaks at.
    return f"{value:,.0f}".replace(",", "\u202f")


def _percent(value: float) -> str:
    if not math.isfinite(value):
        return NOTHING
    digits = 1 if value >= 0.1 else 2 if value >= 0.01 else 3
    # A little less than all is not shown as all.
    shown = 100.0 if value == 1 else min(100 * value, 99.9)
    return f"{shown:.{digits}f}\u202f%"


def _decimals(value: float | None) -> str:
    return f"{value:.3f}" if value is not None and math.isfinite(value) else NOTHING

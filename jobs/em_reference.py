"""Classify the hits of an output folder by expectation maximization, as the EM row of the paper.

    python jobs/em_reference.py out --classes 10 --starts 5
    python jobs/em_reference.py out --single 2 --single 7 --truth truth.csv

The hits that pass the size window are read from the folder's photons.h5 and divided into classes of
patterns that are alike but for a rotation in the plane and their brightness; of several random
starts the most likely counts. Classes most of whose labelled frames are single hits are selected,
or those that --single names. Writes out/em: selection.csv, a picture of every class, classes.csv.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import h5py
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from spidask.baselines import em
from spidask.cluster import connect
from spidask.comparison import compare
from spidask.config import Config
from spidask.errors import DataError, SpidaskError
from spidask.frames.polar import PolarGrid, polar_grid, to_polar
from spidask.io import dragonfly, emc
from spidask.io.labels import read_labels
from spidask.io.manifest import read_config
from spidask.io.tables import read_selection_csv
from spidask.records import hold, write_json

N_RINGS, N_ANGLES = 40, 72
PER_BLOCK = 1000
N_STEPS = 60


def find_hits(output: Path, config: Config) -> pd.DataFrame:
    """Rows of selection.csv for the frames of photons.h5 that pass the size window."""
    low, high = config.selection.size_window_nm
    index = pd.read_csv(output / "dragonfly" / "index.csv", dtype={"run": str})
    table = read_selection_csv(output)
    found = index[["frame", "run", "index"]].merge(table, on=["run", "index"])
    return found[found["diameter_nm"].between(low, high)].sort_values("frame")


def make_grid(output: Path, config: Config) -> tuple[PolarGrid, tuple[int, int]]:
    """Rings around the beam as far as the nearer edge, and the shape of a pattern."""
    with h5py.File(output / "dragonfly" / "photons.h5") as file:
        corner, shape = (json.loads(file.attrs[name]) for name in ("corner", "shape"))
        width = int(file.attrs["bin"])
    centre = (config.geometry.beam_centre_y_px, config.geometry.beam_centre_x_px)
    beam = [
        (place - start - (width - 1) / 2) / width
        for place, start in zip(centre, corner, strict=True)
    ]
    reach = min(max(place, size - place) for place, size in zip(beam, shape, strict=True))
    near = max(max(-place, place - size, 0) for place, size in zip(beam, shape, strict=True))
    grid = polar_grid(tuple(shape), (beam[0], beam[1]), (near, reach), N_RINGS, N_ANGLES)
    return grid, tuple(shape)


def read_blocks(output: Path, frames: np.ndarray, config: Config) -> list[em.Polar]:
    """The hits in rings and angles; masked and missing pixels count as not there."""
    grid, shape = make_grid(output, config)
    path = output / "dragonfly" / "photons.h5"
    hidden = dragonfly.read_detector(output / "dragonfly" / "detector.h5").mask == 2
    blocks = []
    for start in range(0, len(frames), PER_BLOCK):
        rows = frames[start : start + PER_BLOCK]
        patterns = emc.read_photons(path, rows).toarray().astype(np.float32)
        patterns[:, hidden] = np.nan
        for pattern, missing in zip(patterns, emc.read_missing(path, rows), strict=True):
            pattern[missing] = np.nan
        photons, n_pixels = to_polar(patterns.reshape(-1, *shape), grid)
        blocks.append(em.Polar(photons, n_pixels, np.ones(len(rows))))
    return blocks


def count_labels(hits: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Hits, labelled hits and labelled single hits of every class."""
    labels = read_labels(str(config.labels.file)) if config.labels.file else None
    if labels is None or "run" not in labels:
        hits = hits.assign(label=None)
    else:
        labels = labels.assign(run=labels["run"].astype(str))
        hits = hits.merge(labels[["run", "index", "label"]], on=["run", "index"], how="left")
    grouped = hits.groupby("class")["label"]
    counts = {
        "hits": grouped.size(),
        "labelled": grouped.count(),
        "single": grouped.agg(lambda label: (label == "single").sum()),
    }
    return pd.DataFrame(counts)


def draw_classes(model: em.Model, counts: pd.DataFrame, chosen: list[int], path: Path) -> None:
    """Every class as a picture in rings and angles, those selected named in green."""
    n = len(model.share)
    figure, axes = plt.subplots(
        -(-n // 5), min(n, 5), subplot_kw={"projection": "polar"}, figsize=(12, 2.8 * -(-n // 5))
    )
    edges = np.linspace(0, 2 * np.pi, N_ANGLES + 1), np.linspace(0, 1, N_RINGS + 1)
    for number, axis in enumerate(np.ravel(axes)):
        axis.set_axis_off()
        if number < n:
            axis.pcolormesh(*edges, np.log10(model.intensity[number] + 1e-3), cmap="viridis")
            hits = counts["hits"].get(number, 0)
            colour = "green" if number in chosen else "black"
            axis.set_title(f"class {number}: {hits} hits", fontsize=9, color=colour)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Classify, write and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--single", type=int, action="append", help="a class to select")
    parser.add_argument("--truth", help="CSV of run,index,label; nothing: the config's")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    options = parser.parse_args()
    matplotlib.use("agg")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        with hold(options.output):
            run(options)
    except SpidaskError as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    output, config = options.output, read_config(options.output, options.set)
    hits = find_hits(output, config)
    if len(hits) < options.classes:
        raise DataError(
            f"{len(hits)} hits pass the size window; {options.classes} classes need more"
        )
    blocks = read_blocks(output, hits["frame"].to_numpy(), config)
    fits = []
    with connect(config.cluster, output) as client:
        for seed in range(options.starts):
            fits.append(em.fit(blocks, options.classes, seed, N_STEPS, client))
            logging.info("start %d: log likelihood %.8g", seed, fits[-1].log_likelihoods[-1])
    best = max(fits, key=lambda one: one.log_likelihoods[-1])
    chances = np.concatenate(best.chances)
    hits = hits.assign(**{"class": chances.argmax(1)})
    counts = count_labels(hits, config)
    chosen = options.single
    if chosen is None:
        chosen = counts.index[2 * counts["single"] > counts["labelled"]].tolist()
    folder = output / "em"
    folder.mkdir(exist_ok=True)
    counts.assign(selected=counts.index.isin(chosen)).to_csv(folder / "classes.csv")
    draw_classes(best.model, counts, chosen, folder / "classes.png")
    write_selection(output, hits, chances[:, chosen].sum(1), chosen, config)
    told = compare(output, folder, truth=options.truth or config.labels.truth)
    print(counts.assign(selected=counts.index.isin(chosen)).to_string())
    print(told.T.to_string(float_format=lambda value: f"{value:.4g}", na_rep=""))


def write_selection(
    output: Path, hits: pd.DataFrame, score: np.ndarray, chosen: list[int], config: Config
) -> None:
    """selection.csv of the EM; labels that chose the classes count as seen."""
    table = read_selection_csv(output).set_index(["run", "index"])
    keys = pd.MultiIndex.from_frame(hits[["run", "index"]])
    table["reason"] = table["reason"].astype(str)
    table["score"] = np.nan
    table.loc[keys, "score"] = score
    table["selected"] = False
    table.loc[keys, "selected"] = hits["class"].isin(chosen).to_numpy()
    table.loc[keys, "reason"] = np.where(hits["class"].isin(chosen), "", "not_single")
    table["selected"] = table["selected"].astype(int)
    table.reset_index().to_csv(output / "em" / "selection.csv", index=False)
    seen: dict[str, list[int]] = {}
    if config.labels.file:
        labels = read_labels(config.labels.file)
        for run_name, rows in labels.groupby("run") if "run" in labels else ():
            seen[str(run_name)] = sorted(map(int, rows["index"]))
    write_json(output / "em" / "members" / "training.json", {"settings": {}, "frames": seen})


if __name__ == "__main__":
    main()

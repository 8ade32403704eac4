"""What a selection is worth: the 3D intensity that EMC recovers from it, and from others.

    python jobs/orientation_worth.py out --csv worth.csv

`out` is the output folder of a run of simulated frames with labels.truth. Of the frames that have
a truth and were not trained on, EMC gets the true single hits, those that are selected, and all
that the size filter passes; they differ by the blacklist alone. The intensities are correlated
with that of the simulated particle, and with themselves under the rotations of an icosahedron.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

from spidask.config import Config, Sample
from spidask.errors import ConfigError, SpidaskError
from spidask.io.dragonfly import write_blacklist
from spidask.io.labels import read_labels
from spidask.io.manifest import read_config
from spidask.io.tables import (
    find_rows,
    frame_table,
    is_in,
    read_selection_csv,
    read_trained_frames,
)
from spidask.orientation import compute_model, measure

SETS = ("true single hits", "our selection", "size filter")
N_RANGES = 3
"""Ranges of shells, besides all of them together."""
ORIENT = Path(__file__).parent / "orient.sh"
log = logging.getLogger(__name__)


def main() -> None:
    """Run EMC on each set, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--most", type=int, help="frames of a set, drawn at random from more")
    parser.add_argument("--num-div", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="file to write the table to")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        table = run(options)
    except (SpidaskError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    print(table.to_string(index=False, float_format="%.3f"))
    if options.csv:
        table.to_csv(options.csv, index=False, float_format="%.4g")


def run(options: argparse.Namespace) -> pd.DataFrame:
    """Do what the command line asks for."""
    config = read_config(options.output)
    hits = read_hits(options.output, config)
    sample = config.simulation.sample if config.simulation else Sample()
    model = compute_model(options.output, sample)
    rows: list[dict[str, object]] = []
    for name in SETS:
        into = options.output / "worth" / name.replace(" ", "-")
        used = thin(hits[name].to_numpy(), options.most)
        recover(options, into, used)
        meters = measure(options.output, into, model)
        n_single = int((used & hits["single"]).sum())
        facts = {"set": name, "date": date.today().isoformat(), "frames": meters["frames"]}
        facts |= {"single_hits": n_single, "purity": n_single / meters["frames"]}
        rows += [facts | one for one in by_range(meters)]
    return pd.DataFrame(rows)


def read_hits(output: Path, config: Config) -> pd.DataFrame:
    """The frames of photons.h5: which are single hits, and which belong to each set."""
    if not config.labels.truth:
        raise ConfigError("labels.truth: not set; without truth nobody knows the single hits")
    hits = pd.read_csv(output / "dragonfly" / "index.csv", dtype={"run": str})
    truth, labels = read_labels(config.labels.truth), read_selection_csv(output / "selection.csv")
    trained = frame_table(read_trained_frames(output))
    known = is_in(hits, truth) & ~is_in(hits, trained)
    row = find_rows(hits, labels)
    kinds = truth["label"].to_numpy()[find_rows(hits, truth)]
    hits["single"] = known & (kinds == "single")
    sized = labels["diameter_nm"].between(*config.selection.size_window_nm).to_numpy()
    members = hits["single"], labels["selected"].to_numpy()[row], sized[row]
    for name, inside in zip(SETS, members, strict=True):
        hits[name] = known & inside
    return hits


def thin(used: np.ndarray, most: int | None) -> np.ndarray:
    """Draw at most so many of the frames that are used, at random."""
    chosen = np.flatnonzero(used)
    if most and len(chosen) > most:
        chosen = np.random.default_rng(0).choice(chosen, most, replace=False)
    return np.isin(np.arange(len(used)), chosen)


def recover(options: argparse.Namespace, into: Path, used: np.ndarray) -> None:
    """Run EMC on the frames that are used."""
    into.mkdir(parents=True, exist_ok=True)
    write_blacklist(into / "blacklist.txt", ~used)
    command = [str(ORIENT), str(options.output), "--blacklist", str(into / "blacklist.txt")]
    command += ["--into", str(into), "--num-div", str(options.num_div)]
    command += ["--iterations", str(options.iterations), "--threads", str(options.threads)]
    log.info("%s", " ".join(command))
    subprocess.run(command, check=True)


def by_range(meters: dict) -> list[dict[str, object]]:
    """The means over all shells, and over ranges of them; momentum transfer in 1/nm."""
    first, last = meters["shells"]
    radii = np.arange(first, last + 1)
    rows = []
    for part in (np.arange(len(radii)), *np.array_split(np.arange(len(radii)), N_RANGES)):
        values = {
            name: np.nanmean(np.array(meters[name]["shells"], float)[part])
            for name in ("contrast", "symmetry", "model")
        }
        q = meters["voxel"] * radii[part]
        rows.append({"q_from": q[0], "q_to": q[-1], **values})
    return rows


if __name__ == "__main__":
    main()

"""Train a beamtime's ensemble with several seeds and say how well each ranks the truth.

    python jobs/evaluate_seeds.py configs/lcls2018_pr772.yaml --seeds 3 \
        --set labels.truth=truth.csv --set output=out

Every seed has an output folder of its own beside `output` and goes on where it was interrupted.
Frames that trained or validated are left out.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

from spidask import pipeline
from spidask.config import Labels, load_config
from spidask.io.labels import read_labels
from spidask.io.tables import frame_table, is_in, read_selection_csv, read_trained_frames
from spidask.metrics import average_precision_interval


def interval(output: Path, settings: Labels) -> tuple[float, float]:
    """Bootstrap interval of the average precision of one output folder."""
    labels = read_labels(str(settings.truth), settings)
    labels = labels[~is_in(labels, frame_table(read_trained_frames(output)))]
    table = read_selection_csv(output).astype({"run": str})
    joined = labels.merge(table, on=["run", "index"])
    is_single = (joined["label"] == "single").to_numpy()
    return average_precision_interval(joined["score"].to_numpy(), is_single)


def main() -> None:
    """Run every seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    base = load_config(options.config, options.set)
    rows = []
    for seed in range(options.seeds):
        output = f"{base.output}_seed{seed}"
        overrides = [*options.set, f"training.seed={seed * 100}", f"output={output}"]
        config = load_config(options.config, overrides)
        manifest = pipeline.run(config, "report")
        metrics = manifest["counts"]["metrics"]["selection"]
        low, high = interval(Path(output), config.labels)
        rows.append(metrics["average_precision"])
        told = "  ".join(f"{k} {v:.3f}" for k, v in metrics.items() if v is not None)
        print(f"seed {seed}: {told}  interval {low:.3f} to {high:.3f}", flush=True)
    print(f"average precision: mean {np.mean(rows):.3f} of {len(rows)} seeds")


if __name__ == "__main__":
    main()

"""Simulate a beamtime with sets of the sizes of Ignatenko et al. 2021, and write its config.

    python jobs/paper_beamtime.py beamtime --share 0.25
    python jobs/reproduce_table.py beamtime/config.yaml

r0001 trains (165 single hits, 390 others), r0002 validates (53, 283), r0003 is the test (995 and
16 937, or a share of both), whose labels are the truth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from spidask.config import Geometry, HitMix, Sample, Simulation
from spidask.simulation.beamtime import simulate_beamtime

SETS = {"r0001": (165, 170, 180, 40), "r0002": (53, 120, 130, 33), "r0003": (995, 5929, 7623, 3385)}
"""Single and multiple hits, contaminants and background of each run; the others of the test are
mixed as in the independent test beamtime."""
SEED = 2021


def simulate(folder: Path, run: str, counts: tuple[int, ...]) -> None:
    """Compute one run in a folder of its own, and link its files under the run's name."""
    own, n_frames = folder / run, sum(counts)
    single, multiple, contaminant, background = counts
    settings = Simulation(
        folder=str(own),
        runs=1,
        frames=n_frames,
        labelled_runs=1,
        seed=SEED + int(run[1:]),
        hit_rate=1 - background / n_frames,
        hit_mix=HitMix(
            single=single / n_frames,
            multiple=multiple / n_frames,
            contaminant=contaminant / n_frames,
        ),
        # What passes the size filter is what is classified.
        sample=Sample(contaminants_in_window=1.0),
    )
    if not (folder / f"{run}.h5").is_symlink():
        simulate_beamtime(settings, Geometry())
        (folder / f"{run}.h5").symlink_to(own.absolute() / "r0001.h5")


def gather_labels(folder: Path, runs: list[str]) -> str:
    """The labels of some runs in one table, under their names."""
    rows = ["run,index,label"]
    for run in runs:
        lines = (folder / run / "labels.csv").read_text().splitlines()[1:]
        rows += [line.replace("r0001", run, 1) for line in lines]
    return "\n".join(rows) + "\n"


def make_config(folder: Path) -> dict[str, object]:
    """Settings of the beamtime, as in configs/quickstart.yaml."""
    return {
        "runs": {"files": [f"{folder}/r*.h5"], "mask": f"{folder}/{{run}}/masks.h5:r0001"},
        "labels": {"file": f"{folder}/labels.csv", "truth": f"{folder}/truth.csv"},
        "output": f"{folder}/table",
        "preprocessing": {
            "region": {"y": [0, 123], "x": [392, 632]},
            "dark": f"{folder}/{{run}}/dark/r0001.h5:entry_1/data_1/data",
            "gain": f"{folder}/{{run}}/gain.h5:gain",
            "common_mode": {"asic": [1, 128], "max_adu": 65},
            "adu_per_photon": 130,
            "photon_threshold": 0.7,
            "saturation_adu": 16383,
        },
        "hits": {"threshold": "none"},
        "training": {"runs": ["r0001"]},
        "validation": {"runs": ["r0002"]},
        "selection": {"expected_single_fraction": 0.055},
    }


def main() -> None:
    """Simulate what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the test set")
    options = parser.parse_args()
    folder = options.folder.absolute()
    for run, counts in SETS.items():
        share = options.share if run == "r0003" else 1
        simulate(folder, run, tuple(round(share * n) for n in counts))
    (folder / "labels.csv").write_text(gather_labels(folder, ["r0001", "r0002"]))
    (folder / "truth.csv").write_text(gather_labels(folder, ["r0003"]))
    (folder / "config.yaml").write_text(yaml.safe_dump(make_config(folder), sort_keys=False))
    print(folder / "config.yaml")


if __name__ == "__main__":
    main()

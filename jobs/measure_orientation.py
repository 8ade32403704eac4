"""Measure how good the 3D intensity is that jobs/orient.sh recovered, and write meters.json.

    python jobs/measure_orientation.py out
    python jobs/measure_orientation.py out out/orientation --simulated

--simulated compares with the particle of the config's section `simulation`, or of its defaults
where the config only reads what was simulated before. --prepare writes what EMC starts from
instead.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from spidask.config import Sample
from spidask.errors import SpidaskError
from spidask.io.manifest import read_config
from spidask.orientation import compute_model, measure, prepare


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", help="where EMC ran")
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--prepare", action="store_true")
    options = parser.parse_args()
    folder = options.folder or options.output / "orientation"
    try:
        if options.prepare:
            prepare(options.output, folder)
            return
        model = None
        if options.simulated:
            simulation = read_config(options.output).simulation
            model = compute_model(options.output, simulation.sample if simulation else Sample())
        meters = measure(options.output, folder, model)
    except SpidaskError as error:
        sys.exit(f"error: {error}")
    low, high = (radius * meters["voxel"] for radius in meters["shells"])
    print(
        f"{meters['frames']} frames, {meters['iterations']} iterations, {low:.3f}-{high:.3f} / nm"
    )
    for name, told in NAMES.items():
        if meters[name]:
            print(f"{told}: {meters[name]['mean']:.3f}")


NAMES = {
    "contrast": "contrast over a shell",
    "symmetry": "correlation with itself under the rotations of an icosahedron",
    "model": "correlation with the model",
    "halves": "correlation between the halves",
}

if __name__ == "__main__":
    main()

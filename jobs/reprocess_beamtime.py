"""Classify a beamtime with several ensembles, and compare what they select.

    python jobs/reprocess_beamtime.py my.yaml out/reprocessed \
        --ensemble old=out/members --ensemble new=other/members/member0.safetensors \
        --runs '/data/p1234/r*.h5' --set cluster.site=configs/sites/maxwell.yaml

An ensemble is a folder of members, one member, or the YAML file of another config, whose members
are trained if they are not there. --runs takes paths, globs, and folders, whose files are named as
the config's are. All shards of all runs are spread over the workers. What an interrupted call has
done is not done again.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from itertools import combinations
from pathlib import Path

import pandas as pd

from spidask import pipeline
from spidask.comparison import judge_selections
from spidask.config import Config, load_config
from spidask.errors import ConfigError, SpidaskError
from spidask.io.files import natural_key
from spidask.io.zarr import is_zarr


def find_ensemble(place: str) -> list[str]:
    """List the members of a folder, or of one file."""
    path = Path(place)
    found = [path]
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"), key=lambda one: natural_key(one.name))
    if not found or not all(one.is_file() for one in found):
        raise ConfigError(f"--ensemble {place}: no members there; give a folder or a file of them")
    return [str(one) for one in found]


def parse_ensembles(given: list[str]) -> dict[str, str]:
    """Names to places; names become folders."""
    pairs = [text.partition("=") for text in given]
    for text, (name, _, place) in zip(given, pairs, strict=True):
        if not name or not place or Path(name).name != name:
            raise ConfigError(f"--ensemble {text}: expected NAME=PLACE, NAME being a folder's name")
    if len(pairs) < 2 or len({name for name, _, _ in pairs}) < len(pairs):
        raise ConfigError("--ensemble: give two or more, each with a name of its own")
    return {name: place for name, _, place in pairs}


def config_of(base: str, name: str, place: str, output: Path, overrides: list[str]) -> Config:
    """The base config with another ensemble, or another config, and an output of its own."""
    overrides = [*overrides, f"output={output / name}"]
    if place.endswith((".yaml", ".yml")):
        return load_config(place, overrides)
    return load_config(base, [*overrides, f"inference.members={find_ensemble(place)}"])


def find_files(base: str, runs: list[str]) -> list[str]:
    """Paths and globs as they are; of a folder, the files that are named as the base config's."""
    names = [Path(pattern).name for pattern in load_config(base).runs.files]
    files = []
    for place in runs:
        is_folder = Path(place).is_dir() and not is_zarr(place)
        files += [str(Path(place) / name) for name in names] if is_folder else [place]
    return files


def reprocess(configs: dict[str, Config]) -> pd.DataFrame:
    """Run every config up to its selection; give a row for each, and one for each pair."""
    rows = []
    for name, config in configs.items():
        logging.info("ensemble %s", name)
        counts = pipeline.run(config, "select")["counts"]["select"]
        rows.append(pd.Series({k: v for k, v in counts.items() if k != "runs"}, name=name))
    for (a, one), (b, other) in combinations(configs.items(), 2):
        both = judge_selections(one.output, other.output).iloc[1]
        shared = {"in_both": both["in_first"], "iou_of_both": both["iou_with_first"]}
        rows.append(pd.Series(shared, name=f"{a} and {b}"))
    first = next(iter(configs.values()))
    if first.labels.truth:
        outputs = [config.output for config in configs.values()]
        table = judge_selections(*outputs, truth=first.labels.truth, meanings=first.labels)
        logging.info("against %s:\n%s", first.labels.truth, table.T.to_string(na_rep=""))
    return pd.DataFrame(rows)


def main() -> None:
    """Reprocess, print a table and write it beside the outputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("output", type=Path)
    parser.add_argument("--ensemble", action="append", required=True, metavar="NAME=PLACE")
    parser.add_argument(
        "--runs", nargs="+", default=[], help="paths, globs or folders; nothing: the config's"
    )
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # workers' jobs are cancelled
    try:
        files = find_files(options.config, options.runs) if options.runs else []
        overrides = [*options.set, *([f"runs.files={files}"] if files else [])]
        places = parse_ensembles(options.ensemble)
        configs = {
            name: config_of(options.config, name, place, options.output, overrides)
            for name, place in places.items()
        }
        table = reprocess(configs)
    except SpidaskError as error:
        sys.exit(f"error: {error}")
    table.to_csv(options.output / "comparison.csv")
    print(table.to_string(na_rep=""))


if __name__ == "__main__":
    main()

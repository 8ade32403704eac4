"""Put every classifier on one beamtime and print the table of Ignatenko et al. 2021.

    python jobs/reproduce_table.py my.yaml
    python jobs/reproduce_table.py my.yaml compact em forest rule --set labels.truth=truth.csv
    python jobs/reproduce_table.py beamtime/config.yaml --reduced        # see paper_beamtime.py

Rows are trained on `labels.file`, judged on `labels.truth` within `selection.size_window_nm`, and
kept in folders of their names in `output`; a row that is there is not done again, one that was
interrupted goes on, one of other settings or labels is refused. Writes table.csv and table.txt
there, and the table into the report of the row `compact`. With --reduced, networks train for a part
of the iterations, and YOLO networks have a quarter of the filters and see 128 x 256 pixels, so that
two cores can do it; their rows say so.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from spidask import pipeline
from spidask.baselines import classes, forest, rule
from spidask.baselines.hits import is_done, write_result
from spidask.comparison import compare, format_comparison
from spidask.config import Config, load_config
from spidask.ensemble import find_members
from spidask.errors import ConfigError, SpidaskError
from spidask.inference.scoring import score_patterns
from spidask.io.beamtime import open_configured
from spidask.io.labels import read_labels
from spidask.io.manifest import read_config
from spidask.io.tables import write_comparison_csv
from spidask.labelled import load_labelled
from spidask.networks.device import resolve_device
from spidask.records import hold, write_json

log = logging.getLogger(__name__)
FIRST = "compact"
"""The row whose exported hits the baselines classify, and that others are compared with."""
BASELINES = {"em": classes, "rule": rule, "forest": forest}
N_TIMED = 256


@dataclass(frozen=True)
class Row:
    """A network of the table.

    Attributes
    ----------
    name : str
        For people.
    settings : dict
        Keys of the section `training`, and values.
    reduced : dict
        Those that --reduced changes.
    """

    name: str
    settings: dict[str, object]
    reduced: dict[str, object]


def compact_row(name: str, *, n_patterns: int = 96_000, **changes: object) -> Row:
    """The compact network from random numbers, with one hyper-parameter of the paper's outlook."""
    size = int(str(changes.get("batch_size", 64)))
    iterations = n_patterns // size
    settings: dict[str, object] = {
        "initial": "random",
        "learning_rate": 0.002,
        "iterations": iterations,
        "checkpoint_every": iterations // 30,
        **changes,
    }
    few = iterations // 4
    return Row(name, settings, {"iterations": few, "checkpoint_every": few // 30})


def yolo_row(version: int, colours: str, scale: str) -> Row:
    """The paper's networks and protocol; stock settings of Darknet where it is silent."""
    steps, batch, size = {2: ([40_000, 60_000], 64, 416), 3: ([400_000, 450_000], 24, 608)}[version]
    representation = {"colours": colours, "scale": scale, "maximum": "own", "size": [size, size]}
    settings: dict[str, object] = {
        "architecture": f"yolov{version}",
        "initial": "random",
        "optimizer": "sgd",
        "learning_rate": 0.001,
        "weight_decay": 0.0005,
        "burn_in": 1000,
        "steps": steps,
        "batch_size": batch,
        "subdivisions": 8,
        "precision": "bf16",
        "iterations": 4400,
        "checkpoint_every": 100,
        "ensemble": {"stages": [4000, 4100, 4200, 4300, 4400]},
        "representation": representation,
    }
    reduced = {
        "width": 0.25,
        "subdivisions": 1,
        "burn_in": 150,
        "iterations": 660,
        "checkpoint_every": 15,
        "ensemble": {"stages": [600, 615, 630, 645, 660]},
        "representation": {**representation, "size": [128, 256]},
    }
    told = f"YOLOv{version} {'colour' if colours == 'jet' else 'grey'} {scale}"
    return Row(told, settings, reduced)


def picture_row(name: str, **changes: object) -> Row:
    """EfficientNet on the pictures of YOLO, fine-tuned."""
    representation = {"colours": "jet", "scale": "logarithmic", "maximum": "own"}
    settings: dict[str, object] = {
        "architecture": "efficientnet",
        "learning_rate": 0.001,
        "iterations": 1000,
        "batch_size": 32,
        "checkpoint_every": 25,
        "precision": "bf16",
        "representation": {**representation, "size": [224, 416]},
        **changes,
    }
    few = {"iterations": 300, "checkpoint_every": 10}
    return Row(name, settings, {**few, "representation": {**representation, "size": [128, 256]}})


ROWS = {
    FIRST: Row("compact, pre-trained on simulated patterns", {}, {}),
    "compact_random": compact_row("compact, filter 7, batch 64"),
    "compact_filter3": compact_row("compact, filter 3", first_filter=3),
    "compact_filter11": compact_row("compact, filter 11", first_filter=11),
    "compact_half": compact_row("compact, half width", width=0.5),
    "compact_batch256": compact_row("compact, batch 256", batch_size=256),
    "resnet18": compact_row("ResNet-18", architecture="resnet18", n_patterns=48_000),
    "imagenet": picture_row("EfficientNet-lite0, ImageNet", initial="imagenet"),
    "imagenet_random": picture_row("EfficientNet-lite0, random", initial="random"),
    **{
        f"yolov{version}_{colours}_{scale}": yolo_row(version, colours, scale)
        for version in (2, 3)
        for colours in ("jet", "grey")
        for scale in ("linear", "logarithmic")
    },
}
"""All networks; the first begins with weights of the package, the others as they say or from
random numbers."""


def config_of(options: argparse.Namespace, key: str) -> Config:
    """The config of a row: the beamtime's with the row's settings and a folder of its own."""
    base, row = load_config(options.config, options.set), ROWS[key]
    reduced = row.reduced if options.reduced else {}
    settings = {**row.settings, **reduced}
    overrides = [f"training.{name}={value}".replace("'", '"') for name, value in settings.items()]
    if settings.get("precision") == "bf16":
        overrides.append("inference.precision=bf16")
    output = Path(base.output) / (f"{key}_reduced" if reduced else key)
    return load_config(options.config, [*overrides, *options.set, f"output={output}"])


def time_network(config: Config) -> tuple[float, str]:
    """Patterns a second that the whole ensemble scores, and the device, or one core of it."""
    labels = read_labels(str(config.labels.file), config.labels)
    frames = open_configured(config)
    labelled, _, _ = load_labelled(frames, labels[:N_TIMED], config)
    members = [str(path) for path in find_members(config)]
    score_patterns(labelled.patterns[:1], members, config)
    start = time.perf_counter()
    score_patterns(labelled.patterns, members, config)
    device = resolve_device(config)
    rate = len(labelled.classes) / (time.perf_counter() - start)
    return rate, "CPU core" if device == "cpu" else device


def do_network(options: argparse.Namespace, key: str) -> None:
    """Train, classify and select; the first row exports too."""
    config = config_of(options, key)
    row_file = Path(config.output) / "row.json"
    pipeline.run(config, "report" if key == FIRST else "select")  # what is missing of it
    if row_file.exists():
        log.info("%s is done; remove %s to do it again", key, config.output)
        return
    # Those of the paper's networks are 10 GB a row.
    shutil.rmtree(Path(config.output) / "checkpoints", ignore_errors=True)
    rate, device = time_network(config)
    name = ROWS[key].name + (", reduced" if options.reduced and ROWS[key].reduced else "")
    write_json(row_file, {"name": name, "patterns_per_second": rate, "device": device})


def do_baseline(options: argparse.Namespace, key: str) -> None:
    """Classify the hits that the first row exported."""
    output = Path(config_of(options, FIRST).output)
    config, baseline = read_config(output, []), BASELINES[key]
    settings = baseline.list_settings(config)
    with hold(output):
        if is_done(output, key, settings):
            log.info("%s is done; remove %s to do it again", key, output / key)
        else:
            write_result(output, key, baseline.classify(output, config), settings, config)


def print_table(options: argparse.Namespace) -> None:
    """Compare all rows that are done."""
    base = load_config(options.config, options.set)
    output, first = Path(base.output), Path(base.output) / FIRST
    networks = [output / f"{key}{kind}" for key in ROWS for kind in ("", "_reduced")]
    folders = [*networks, *(first / key for key in BASELINES)]
    done = [folder for folder in folders if (folder / "row.json").exists()]
    window = base.selection.size_window_nm
    truth, meanings = base.labels.truth, base.labels
    table = compare(*done, truth=truth, meanings=meanings, within=window, paper=True)
    text = format_comparison(table)
    write_comparison_csv(table, output / "table.csv")
    (output / "table.txt").write_text(text + "\n")
    if done[0] == first:
        write_comparison_csv(table, first / "comparison.csv")
        pipeline.report_again(first)
    print(text)


def main() -> None:
    """Do the rows asked for, one after another, and print the table of all that are done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*ROWS, *BASELINES]
    parser.add_argument("config")
    parser.add_argument("rows", nargs="*", help=f"nothing: all of them: {', '.join(known)}")
    parser.add_argument("--reduced", action="store_true", help="as far as two cores can")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        if unknown := [key for key in options.rows if key not in known]:
            raise ConfigError(f"{', '.join(unknown)}: no row; they are {', '.join(known)}")
        if not load_config(options.config, options.set).labels.truth:
            raise ConfigError("labels.truth: missing; the table needs it")
        for key in options.rows or known:
            start = time.perf_counter()
            (do_network if key in ROWS else do_baseline)(options, key)
            log.info("%s: %.0f s", key, time.perf_counter() - start)
        print_table(options)
    except SpidaskError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

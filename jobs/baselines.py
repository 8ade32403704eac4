"""Classify the hits of an output folder without networks, to compare these with.

    python jobs/baselines.py out
    python jobs/baselines.py out em --set em.classes='[2, 7]' --truth truth.csv

em: classes of patterns that are alike but for a rotation in the plane and their brightness, by
expectation maximization; see the section `em`. rule: the adaptive threshold of a hit finder.
forest: a random forest on radial profiles and angular correlations, which learns from the labelled
hits. Each writes a folder of its name into the output folder, with a selection.csv that
`spidask compare` reads; one that is there is not done again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import pandas as pd

from spidask.baselines import classes, forest, rule
from spidask.baselines.hits import is_done, write_result
from spidask.comparison import compare, format_comparison
from spidask.errors import ConfigError, SpidaskError
from spidask.io.manifest import read_config
from spidask.records import hold

BASELINES = {"em": classes, "rule": rule, "forest": forest}
log = logging.getLogger(__name__)


def main() -> None:
    """Classify, write and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("names", nargs="*", help="em, rule, forest; nothing: all of them")
    parser.add_argument("--truth", help="CSV of run,index,label; nothing: the config's")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        with hold(options.output):
            run(options)
    except SpidaskError as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    names = list(dict.fromkeys(options.names)) or list(BASELINES)
    if unknown := set(names) - set(BASELINES):
        raise ConfigError(f"{', '.join(unknown)}: no baseline; they are {', '.join(BASELINES)}")
    output, config = options.output, read_config(options.output, options.set)
    for name in names:
        settings = BASELINES[name].list_settings(config)
        if is_done(output, name, settings):
            log.info("%s is done; remove %s to do it again", name, output / name)
        else:
            log.info("%s begins", name)
            write_result(output, name, BASELINES[name].classify(output, config), settings, config)
        if name == "em":
            print(pd.read_csv(output / name / "classes.csv").to_string(index=False), flush=True)
    folders = [output / name for name in names]
    truth = options.truth or config.labels.truth
    print(format_comparison(compare(output, *folders, truth=truth, meanings=config.labels)))


if __name__ == "__main__":
    main()

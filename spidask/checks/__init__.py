"""What is wrong with a config and its files, before anything is computed."""

from __future__ import annotations

# Imported for the checks that they add, in the order in which problems are told.
from spidask.checks import ensemble, inputs, resources, workers  # noqa: F401
from spidask.checks.problems import CHECKS, Beamtime, Problem, group
from spidask.config import Config

__all__ = ["Problem", "check"]


def check(config: Config) -> list[Problem]:
    """Find all that is wrong with a config and its files.

    Parameters
    ----------
    config : Config
        The beamtime. Checks of files wait until a beamtime with a section `simulation` is there.

    Returns
    -------
    list of Problem
        Errors and warnings, alike ones in one; empty if all is well. Nothing is written, and of
        the frames no more is read than a small sample to see whether all of them are hits.
    """
    beamtime = Beamtime(config)
    return group([problem for find in CHECKS for problem in find(beamtime)])

"""Problems as data, and the beamtime in which they are looked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import pandas as pd
import xarray as xr

from spidask.config import Config
from spidask.errors import ClusterError, ConfigError, DataError, SpidaskError
from spidask.io.calibration import Recipe, check_calibration, recipe_of
from spidask.io.labels import drop_unreadable, locate, read_labels
from spidask.planning import open_headers
from spidask.provenance import awaits_simulation

N_NAMED = 3
"""So many alike problems are told one by one; more become one line."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes
    ----------
    place : str
        The setting's path, or the file.
    message : str
        What is wrong, the value found, what was expected, what to do; one line.
    severity : {"error", "warning"}
        With an error a run fails or gives nothing of use; with a warning it goes on.
    """

    place: str
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.severity}: {self.place}: {self.message}"


class Beamtime:
    """A config with what several checks need of its files, each looked at once.

    Parameters
    ----------
    config : Config
        The beamtime.

    Attributes
    ----------
    trouble : list of Problem
        What went wrong on the way; what cannot be had is None, or empty.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.trouble: list[Problem] = []

    @cached_property
    def frames(self) -> xr.Dataset | None:
        """The runs as of `open_runs`; None where they are still to be simulated."""
        if awaits_simulation(self.config):
            return None
        try:
            frames = open_headers(self.config)
        except SpidaskError as error:
            unreadable = getattr(error, "unreadable_files", [])
            self.trouble += [Problem(path, why) for path, why in unreadable]
            if not unreadable:
                self.trouble.append(as_problem(error, "runs.files"))
            return None
        faulty = [*frames.attrs["unreadable_files"], *frames.attrs["odd_files"]]
        self.trouble += [Problem(path, why, "warning") for path, why in faulty]
        return frames

    @cached_property
    def runs(self) -> list[str]:
        """Names of the runs."""
        return [] if self.frames is None else list(map(str, self.frames["run_name"].values))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a frame; only where there are runs."""
        assert self.frames is not None
        rows, columns = self.frames.attrs["frame_shape"]
        return rows, columns

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """How each run is calibrated; empty where a region or a map of any run does not fit."""
        recipes, trouble = {}, []
        for run in self.runs:
            try:
                recipes[run] = recipe_of(self.config, run, self.shape)
            except ConfigError as error:
                trouble.append(as_problem(error, "preprocessing"))
                continue
            for text in check_calibration(recipes[run]):
                kind = text.partition(" ")[0]
                place = "runs.mask" if kind == "mask" else f"preprocessing.{kind}"
                trouble.append(Problem(place, text))
        self.trouble += trouble
        return {} if trouble else recipes

    @cached_property
    def labels(self) -> pd.DataFrame | None:
        """The labels that train, with the column ``at``, the positions of their frames."""
        config, frames = self.config, self.frames
        if config.inference.members or config.labels.file is None or awaits_simulation(config):
            return None
        try:
            labels = read_labels(config.labels.file, config.labels)
            if frames is None:
                return None
            labels, n_dropped = drop_unreadable(labels, frames)
            if n_dropped:
                text = f"{n_dropped} labels are of runs that cannot be read, and do not train"
                self.trouble.append(Problem("labels.file", text, "warning"))
            return labels.assign(at=locate(labels, frames))
        except DataError as error:
            self.trouble.append(Problem("labels.file", str(error)))
            return None


Check = Callable[[Beamtime], Iterator[Problem]]
CHECKS: list[Check] = []
"""Every check, in the order in which their problems are told."""


def finds(check: Check) -> Check:
    """Add a check to `CHECKS`.

    Parameters
    ----------
    check : callable
        A generator that yields the problems of a beamtime.

    Returns
    -------
    callable
        The same.
    """
    CHECKS.append(check)
    return check


def as_problem(error: SpidaskError, place: str) -> Problem:
    """Turn an error into a problem.

    Parameters
    ----------
    error : SpidaskError
        Errors about settings and clusters begin with the key's path.
    place : str
        Where it is, for other errors.

    Returns
    -------
    Problem
        Of severity "error".

    Examples
    --------
    >>> print(as_problem(ConfigError("runs.files: 'r*' matches nothing"), "runs"))
    error: runs.files: 'r*' matches nothing
    """
    if isinstance(error, ConfigError | ClusterError):
        place, _, message = str(error).partition(": ")
        return Problem(place, message)
    return Problem(place, str(error))


def group(problems: list[Problem]) -> list[Problem]:
    """Leave out repetitions, and make one of many problems that differ only in numbers.

    Parameters
    ----------
    problems : list of Problem
        In any order.

    Returns
    -------
    list of Problem
        In the order of first sight.

    Examples
    --------
    >>> for problem in group([Problem(f"r{n}.h5", f"is empty ({n} bytes)") for n in range(9)]):
    ...     print(problem)
    error: r0.h5, r1.h5, r2.h5 and 6 more: is empty (0 bytes) (9 alike)
    """
    alike: dict[tuple[str, ...], list[Problem]] = {}
    for problem in dict.fromkeys(problems):
        texts = (problem.severity, problem.place, problem.message)
        alike.setdefault(tuple(re.sub(r"\d+", "0", text) for text in texts), []).append(problem)
    return [told for members in alike.values() for told in _tell(members)]


def _tell(alike: list[Problem]) -> list[Problem]:
    if len(alike) <= N_NAMED:
        return alike
    places = list(dict.fromkeys(problem.place for problem in alike))
    more = f" and {len(places) - N_NAMED} more" if len(places) > N_NAMED else ""
    place = ", ".join(places[:N_NAMED]) + more
    return [replace(alike[0], place=place, message=f"{alike[0].message} ({len(alike)} alike)")]

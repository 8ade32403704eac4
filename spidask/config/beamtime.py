"""A whole beamtime: all sections together."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from spidask.config.base import Section, Text
from spidask.config.cluster import Cluster
from spidask.config.explain import explain
from spidask.config.sections import (
    EM,
    EuXFEL,
    Events,
    Geometry,
    Handoff,
    Hits,
    Inference,
    Labels,
    Preprocessing,
    Runs,
    Selection,
    Sizing,
    Validation,
)
from spidask.config.simulation import Simulation
from spidask.config.training import Training

S = TypeVar("S", bound=Section)


class PerRun(Section):
    """Settings that differ for some runs; anything left out is as in the main sections."""

    geometry: dict[str, Any] = Field(default_factory=dict)
    preprocessing: dict[str, Any] = Field(default_factory=dict)


class Config(Section):
    """A whole beamtime."""

    runs: Runs
    euxfel: EuXFEL | None = None
    output: Text
    """Folder for everything that is written."""
    labels: Labels = Labels()
    events: Events | None = None
    geometry: Geometry = Geometry()
    preprocessing: Preprocessing = Preprocessing()
    hits: Hits = Hits()
    sizing: Sizing = Sizing()
    training: Training = Training()
    validation: Validation = Validation()
    inference: Inference = Inference()
    selection: Selection = Selection()
    handoff: Handoff = Handoff()
    em: EM = EM()
    cluster: Cluster = Cluster()
    simulation: Simulation | None = None
    per_run: dict[str, PerRun] = Field(default_factory=dict)
    """Run name, or a pattern of names, to the settings that differ there."""

    def geometry_of(self, run: str) -> Geometry:
        """Geometry of one run.

        Parameters
        ----------
        run : str
            The run's name.

        Returns
        -------
        Geometry
            The main section with what `per_run` changes for this run; pixel size and beam centre
            are those of binned pixels.
        """
        place = self._merged(run, "geometry", self.geometry)
        width = self.preprocessing_of(run).bin
        centre = (place.beam_centre_y_px, place.beam_centre_x_px)
        # Pixel centres are integers before and after.
        y, x = ((at + 0.5) / width - 0.5 for at in centre)
        binned = {"pixel_size_um": place.pixel_size_um * width}
        binned |= {"beam_centre_y_px": y, "beam_centre_x_px": x}
        return place.model_copy(update=binned) if width > 1 else place

    def preprocessing_of(self, run: str) -> Preprocessing:
        """Calibration of one run.

        Parameters
        ----------
        run : str
            The run's name.

        Returns
        -------
        Preprocessing
            The main section with what `per_run` changes for this run.
        """
        return self._merged(run, "preprocessing", self.preprocessing)

    def _merged(self, run: str, name: str, main: S) -> S:
        values = main.model_dump()
        for pattern, changes in self.per_run.items():
            if fnmatchcase(run, pattern):
                values.update(getattr(changes, name))
        return type(main).model_validate(values)

    @model_validator(mode="after")
    def _per_run_is_valid(self) -> Config:
        for pattern, changes in self.per_run.items():
            for name in ("geometry", "preprocessing"):
                section = getattr(self, name)
                try:
                    type(section).model_validate({**section.model_dump(), **getattr(changes, name)})
                except ValidationError as error:
                    path = f"per_run.{pattern}.{name}"
                    raise ValueError(explain(error, type(section), path)) from None
        return self

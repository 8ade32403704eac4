"""One YAML file a beamtime: its sections, how it is read, and what is refused."""

from spidask.config.base import Precision, Runtime, Section
from spidask.config.beamtime import Config, PerRun
from spidask.config.cluster import QUEUES, Cluster, Job
from spidask.config.loading import (
    load_config,
    parse_config,
    put_settings,
    read_settings,
    schema_json,
)
from spidask.config.sections import (
    EM,
    CommonMode,
    EuXFEL,
    Events,
    Geometry,
    Handoff,
    Hits,
    Inference,
    Labels,
    Preprocessing,
    Region,
    Runs,
    Selection,
    Sizing,
    Validation,
)
from spidask.config.simulation import Beam, HitMix, Panel, Sample, Simulation
from spidask.config.training import DRAW_BOXES, PICTURES, Ensemble, Representation, Training

__all__ = [
    "DRAW_BOXES",
    "EM",
    "PICTURES",
    "QUEUES",
    "Beam",
    "Cluster",
    "CommonMode",
    "Config",
    "Ensemble",
    "EuXFEL",
    "Events",
    "Geometry",
    "Handoff",
    "HitMix",
    "Hits",
    "Inference",
    "Job",
    "Labels",
    "Panel",
    "PerRun",
    "Precision",
    "Preprocessing",
    "Region",
    "Representation",
    "Runs",
    "Runtime",
    "Sample",
    "Section",
    "Selection",
    "Simulation",
    "Sizing",
    "Training",
    "Validation",
    "load_config",
    "parse_config",
    "put_settings",
    "read_settings",
    "schema_json",
]

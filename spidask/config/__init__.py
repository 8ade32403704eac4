"""One YAML file a beamtime: its sections, how it is read, and what is refused."""

from spidask.config.base import Section
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
    Ensemble,
    Geometry,
    Handoff,
    Hits,
    Inference,
    Labels,
    Preprocessing,
    Region,
    Representation,
    Runs,
    Selection,
    Sizing,
    Training,
    Validation,
)
from spidask.config.simulation import Beam, HitMix, Panel, Sample, Simulation

__all__ = [
    "EM",
    "QUEUES",
    "Beam",
    "Cluster",
    "CommonMode",
    "Config",
    "Ensemble",
    "Geometry",
    "Handoff",
    "HitMix",
    "Hits",
    "Inference",
    "Job",
    "Labels",
    "Panel",
    "PerRun",
    "Preprocessing",
    "Region",
    "Representation",
    "Runs",
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

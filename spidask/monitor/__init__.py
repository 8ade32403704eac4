"""What a running job tells about itself, and the page in the Dask dashboard that shows it."""

from spidask.monitor.events import TOPIC, gpu_facts, shrink_pattern, tell
from spidask.monitor.plugin import Monitor, report_performance, watch

__all__ = [
    "TOPIC",
    "Monitor",
    "gpu_facts",
    "report_performance",
    "shrink_pattern",
    "tell",
    "watch",
]

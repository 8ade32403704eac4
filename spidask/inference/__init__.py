"""From raw frames to stored labels: hits, scores of the ensemble, diameters."""

from spidask.inference.running import classify_runs, count_labels
from spidask.inference.scoring import classify
from spidask.inference.shards import Shard, enclose_windows, label_lazily, label_shard

__all__ = [
    "Shard",
    "classify",
    "classify_runs",
    "count_labels",
    "enclose_windows",
    "label_lazily",
    "label_shard",
]

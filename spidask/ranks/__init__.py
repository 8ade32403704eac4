"""Process groups of torch over Dask workers, one rank on each."""

from spidask.ranks.gradients import average_gradients, hold_gradients, sum_over_ranks
from spidask.ranks.launching import run_ranks
from spidask.ranks.rank import Rank

__all__ = ["Rank", "average_gradients", "hold_gradients", "run_ranks", "sum_over_ranks"]

"""Selections of a beamtime against the truth, each other, and what was published."""

from spidask.comparison.table import compare, judge_selections
from spidask.comparison.text import format_comparison

__all__ = ["compare", "format_comparison", "judge_selections"]

"""What a config costs, before anything is computed."""

from spidask.planning.making import PROCESS_BYTES, make_plan, open_headers
from spidask.planning.plan import Plan

__all__ = ["PROCESS_BYTES", "Plan", "make_plan", "open_headers"]

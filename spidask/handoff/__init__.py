"""What orientation determination gets: one module for each of its files."""

from spidask.handoff.exporting import export, needs_frames
from spidask.handoff.photons import photons_are_current

__all__ = ["export", "needs_frames", "photons_are_current"]

"""Stacks of frames from one form into another, compressed for fast reading."""

from spidask.conversion.converting import Converted, convert
from spidask.conversion.targets import Codec, Form

__all__ = ["Codec", "Converted", "Form", "convert"]

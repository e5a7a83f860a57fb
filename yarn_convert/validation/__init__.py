"""Proves a checkpoint: its recipe, its weights, and what real runtimes compute from it, inside and beyond the window."""

from .run import Settings, validate
from .text import lines, seconds_of

__all__ = ["Settings", "lines", "seconds_of", "validate"]

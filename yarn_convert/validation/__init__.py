"""Proves a checkpoint: its recipe, its weights, and what real runtimes compute from it, inside and beyond the window."""

from .result import Validated
from .run import check, validate
from .text import lines

__all__ = ["Validated", "check", "lines", "validate"]

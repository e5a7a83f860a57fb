"""Proves a checkpoint: its recipe, its weights, and what real runtimes compute from it, inside and beyond the window."""

from .matrix import DeviceMatrix, device_matrix, matrix_lines
from .result import Validated
from .run import check, validate
from .text import lines

__all__ = ["DeviceMatrix", "Validated", "check", "device_matrix", "lines", "matrix_lines", "validate"]

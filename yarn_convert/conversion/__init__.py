"""From a checkpoint to another: what is asked and meant (`extension`, `intention`), the plan of it and its run, `repair` of someone
else's, `describe` for who only looks."""

from .extension import Extension, extend
from .recording import window_off
from .run import Conversion, Converted, prepare
from .several import convert

__all__ = ["Conversion", "Converted", "Extension", "convert", "extend", "prepare", "window_off"]

"""A model as it lies there: where it comes from (`source`), what its files say (`config`, `manifest`, `packing`, `lengths`), and what all
of it is, whatever the format (`model`, `opening`)."""

from .model import RECIPE, SAME_FORMAT, WINDOW, Checkpoint
from .opening import open_checkpoint

__all__ = ["RECIPE", "SAME_FORMAT", "WINDOW", "Checkpoint", "open_checkpoint"]

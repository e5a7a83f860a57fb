"""What can be asked for, as data: each option stands once, at its field, with its type, its default and what it means.

The command line is made of these fields (`cli.commands`), and the library takes them by keyword (`asking.taking`). A part that several
commands have is a dataclass that theirs hold: `Recipe` is what convert, validate, repair and evaluate have in common. None means "as the
base has it", or the method's own default. Pure, and imported without anything heavy.
"""

from .commands import (
    ConvertOptions,
    Dtype,
    InspectOptions,
    Like,
    OverridesOptions,
    RepairOptions,
    UploadOptions,
    ValidateOptions,
)
from .measures import (
    AdviseOptions,
    DivergenceOptions,
    EvaluateOptions,
    LongpplOptions,
    NeedleOptions,
    PasskeyOptions,
    PerplexityOptions,
    RulerOptions,
    SearchPart,
    TemperatureOptions,
    Texts,
)
from .reading import NAMED, seconds, tokens
from .recipe import Ramp, Recipe
from .training import FinetuneOptions, Preset, Trainer

__all__ = [
    "NAMED",
    "AdviseOptions",
    "ConvertOptions",
    "DivergenceOptions",
    "Dtype",
    "EvaluateOptions",
    "FinetuneOptions",
    "InspectOptions",
    "Like",
    "LongpplOptions",
    "NeedleOptions",
    "OverridesOptions",
    "PasskeyOptions",
    "PerplexityOptions",
    "Preset",
    "Ramp",
    "Recipe",
    "RepairOptions",
    "RulerOptions",
    "SearchPart",
    "TemperatureOptions",
    "Texts",
    "Trainer",
    "UploadOptions",
    "ValidateOptions",
    "seconds",
    "tokens",
]

"""Extends RoPE language models to longer contexts, so that other runtimes compute exactly what was meant.

    from pathlib import Path
    from yarn_convert import Recipe, convert, validate

    done = convert("smollm2-135m", Recipe(scale=4), out="gguf", output=Path("long.gguf"))
    print(done.output, done.manifest.context)

Every command of `yarn-convert` is one call of a function here, with the options of the command by keyword; what it returns is a frozen
dataclass, whose `to_dict()` is what `--json` prints. `reading_anew` is for a model that transformers has loaded. A function raises
`YarnConvertError` with one line and a hint. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import evaluation as evaluate
    from .cli.progress import progress
    from .compute.anew import reading_anew
    from .conversion import convert
    from .conversion.describe import inspect
    from .conversion.overriding import overrides
    from .conversion.recipes import recipe
    from .errors import YarnConvertError
    from .finetuning import finetune
    from .options import Recipe
    from .publishing.hub import upload
    from .validation import validate

    __version__: str

__all__ = [
    "Recipe",
    "YarnConvertError",
    "__version__",
    "convert",
    "evaluate",
    "finetune",
    "inspect",
    "overrides",
    "progress",
    "reading_anew",
    "recipe",
    "upload",
    "validate",
]

_WHERE = {  # the modules that are imported when a name is first asked for
    "Recipe": "options",
    "YarnConvertError": "errors",
    "convert": "conversion",
    "finetune": "finetuning",
    "inspect": "conversion.describe",
    "overrides": "conversion.overriding",
    "progress": "cli.progress",
    "reading_anew": "compute.anew",
    "recipe": "conversion.recipes",
    "upload": "publishing.hub",
    "validate": "validation",
}


def __getattr__(name: str) -> object:
    from importlib import import_module
    from importlib.metadata import version

    if name == "__version__":
        return version("yarn-convert")
    if name == "evaluate":
        return import_module(".evaluation", __name__)
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

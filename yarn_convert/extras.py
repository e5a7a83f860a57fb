"""Packages that only some commands need: which extra of this project brings one, said before any work is done."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from .errors import UsageError

EXTRAS: Mapping[str, tuple[str, ...]] = {  # extra of pyproject.toml -> the modules of it that are imported here
    "validate": ("torch", "transformers", "accelerate", "tokenizers", "psutil", "matplotlib"),
    "torch": ("torch",),
    "llama-cpp": ("llama_cpp",),
    "datasets": ("datasets",),
}
REPORT = ("matplotlib",)  # what only plots and pages need


def install(extra: str, newer: bool = False) -> str:
    """The command that brings an extra; `newer`: also where an older one is there."""
    return f"pip install {'-U ' if newer else ''}'yarn-convert[{extra}]'"


def need(extra: str, what: str, *modules: str) -> None:
    """Raise UsageError, with what to install, unless `modules`, by default all of the extra but those of reports, are here.

    `what` begins the sentence: "a validation". None of them is imported.
    """
    wanted = modules or tuple(m for m in EXTRAS[extra] if m not in REPORT)
    missing = [m for m in wanted if not there(m)]
    if missing:
        raise UsageError(f"{what} needs {' and '.join(m.replace('_', '-') for m in missing)}", install(extra))


def there(module: str) -> bool:
    """Whether a module can be imported; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # of a dotted name's parent, which find_spec imports
        return False


def missing(e: ModuleNotFoundError) -> UsageError | None:
    """The same for an import that failed all the same; None for a module of no extra, which is a fault of ours."""
    name = (e.name or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if name in modules), None)
    return UsageError(f"this needs {name}", install(extra)) if extra else None

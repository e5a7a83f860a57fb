"""`overrides`: the commands with which runtimes extend a model as it is, without a file of its own, and what of the recipe each loses."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from msgspec import Struct

from ..asking import check_choices, help_of, option_names, taking
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.manifest import RopeRecord, recorded
from ..checkpoint.source import resolve
from ..errors import UsageError
from ..formats.decoding import Result
from ..options import OverridesOptions, Recipe
from ..readers.gguf import LLAMA_CPP
from ..rope import table
from .extension import Extension, extend
from .ways import Override, overrides_of


class ToldRuntime(Struct, frozen=True, kw_only=True):
    """How one runtime is told. `why` it is not `exact`, in words that follow its name; `command`: None where it cannot be told, or fails.
    `told`: members of config.json, or llama.cpp's `flags` and `keys`. `instead`: the conversion that does without."""

    runtime: str
    version: str
    exact: bool
    why: str
    command: str | None
    language: Literal["shell", "python"]
    told: Mapping[str, Any]
    instead: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides(Result):
    """The recipe that is meant, over `context` tokens, s = L'/L, with `notes` on it, and how each of the `runtimes` is told it."""

    model: str
    format: Literal["gguf", "safetensors"]
    recipe: RopeRecord
    attention_factor: float
    context: int
    scale: float
    notes: tuple[str, ...]
    runtimes: tuple[ToldRuntime, ...]


@taking(OverridesOptions)
def overrides(model: str, options: OverridesOptions) -> Overrides:
    """How runtimes are told to extend `model` as it is: the whole of `yarn-convert overrides` as one call, with the fields of
    `OverridesOptions` by keyword. Raises as `convert` does for a model or a recipe that is not to be extended."""
    c, e = opened(model, options.recipe, options.revision)
    found = overrides_of(c, e, options.runtimes)
    return Overrides(
        model=c.source.name,
        format="gguf" if c.gguf else "safetensors",
        recipe=recorded(e.rope),
        attention_factor=float(table(e.rope).multiplier),
        context=e.context,
        scale=e.scale,
        notes=(*e.notes, *window_notes(c, e), *_revision_notes(c, options.revision)),
        runtimes=tuple(_shown(c, o, model, options.recipe) for o in found),
    )


def opened(model: str, recipe: Recipe, revision: str | None = None) -> tuple[Checkpoint, Extension]:
    """The model, without its weights where they are on the Hub, and the recipe over it. UsageError where nothing is to be told."""
    check_choices(recipe)
    if recipe.method == "none":
        raise UsageError("--method none keeps the model's own RoPE: there is nothing to tell a runtime", "--scale 4")
    if recipe.short:
        raise UsageError("--short base is for a file that serves both: a runtime that is told nothing has the base's table", "leave it out")
    c = open_checkpoint(resolve(model, revision, weights=False))
    return c.counting_from(recipe.original_context), extend(c, recipe)


def window_notes(c: Checkpoint, e: Extension) -> list[str]:
    """What no override here changes."""
    if not c.own_window or c.own_window >= e.context:
        return []
    return [f"attention keeps its sliding window of {c.own_window:,} tokens; a conversion with --sliding-window off does not"]


def _revision_notes(c: Checkpoint, revision: str | None) -> list[str]:
    return [f"the commands name {c.source.repo} as it is now: add {revision!r}, as each runtime takes a revision"] if revision else []


def _shown(c: Checkpoint, o: Override, model: str, asked: Recipe) -> ToldRuntime:
    gguf = o.row.reads != "safetensors"
    name = model if c.gguf is None or o.row.name != LLAMA_CPP else str(c.source.path)
    name = c.source.repo or name if not gguf else name if c.gguf else f"{c.source.name}.gguf"
    out = ["--out", "gguf"] if gguf and c.gguf is None else []
    return ToldRuntime(
        runtime=o.row.name,
        version=o.row.version,
        exact=o.verdict.exact,
        why=o.verdict.text.removeprefix(f"{o.row.name} {o.row.version}: ") if o.verdict.kind == "refuses" else o.verdict.why,
        command=o.command(name) or None,
        language=o.row.language,
        told=o.told,
        instead=shlex.join(["yarn-convert", model, *asked_words(asked), *out]),
        evidence=o.row.evidence,
    )


def asked_words(asked: Recipe) -> list[str]:
    """The options of a recipe as they are given at the command line; lists come from a file."""
    words: list[str] = []
    for f in fields(asked):
        value, told = getattr(asked, f.name), help_of(Recipe, f.name)
        if value != f.default and told is None:
            words += ["--recipe", "FILE"] if "FILE" not in words else []
        elif value != f.default and told:
            yes, *no = option_names(f.name, told)[0].split("/")
            words += no if value is False else [yes, f"{value:.17g}" if isinstance(value, float) else str(value)]
    return words

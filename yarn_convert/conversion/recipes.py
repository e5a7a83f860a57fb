"""Recipes as files: what a conversion was asked for, read, written, and found again in what it has made.

A file is a mapping, in YAML or JSON, with the names of `options.Recipe`; no list of them stands here, so that a field which is added
there is in files too. Other forms are a manifest, and lists of factors (`lists`).
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Collection, Container, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ..asking import help_of, hints, split
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.manifest import Manifest, RopeRecord, read_manifest
from ..checkpoint.source import resolve
from ..errors import FormatError, InputError, Unsupported, UsageError
from ..formats.decoding import decoded, parse
from ..formats.files import inside, open_regular, page
from ..formats.gguf_file import is_gguf
from ..formats.yaml_text import parse_yaml
from ..options import Recipe
from ..rope import Rope, factors_of, table
from . import lists
from .extension import asked_by
from .intention import claimed
from .tempering import in_record

MOST = 16 << 20  # bytes of a file: a manifest, whose notes and readers may be many, is the largest
NOTE = "note"  # a key of a file that is for people
FIX = f"{page('formats')} has the form of such a file"
KNOWN = {f.name: f for f in fields(Recipe)}


def recipe(source: str | Path) -> Recipe:
    """The recipe of a file of recipes, a manifest, a list of factors, or of a model, an alias or Hub id as for `convert`: by it, `convert`
    makes the same RoPE of the same base. Raises InputError where there is none, FormatError for a file of another form, Unsupported for a
    model whose RoPE no conversion makes."""
    path = Path(os.path.expanduser(source))  # noqa: PTH111 - Path.expanduser raises for an unknown ~user
    if path.is_file() and not is_gguf(path) and path.name != "config.json":
        return read_recipe(path)
    return recipe_of_model(open_checkpoint(resolve(str(source), weights=False)))


def read_recipe(path: Path) -> Recipe:
    """The recipe of a file; see `recipe`."""
    if path.is_dir() or is_gguf(path):
        raise UsageError(f"{path} is a model, not a recipe's file", f"--like {path} takes the recipe of a model")
    text, name = _text(path), path.name
    if (found := lists.of_table(text, name)) is not None:
        return found
    value = _value(text, name)
    if (found := lists.of_json(value, name)) is not None:
        return found
    if not isinstance(value, dict):
        raise FormatError(f"{name} is no recipe: it is {_word(value)}, not a mapping", FIX)
    if isinstance(value.get("recipe"), dict) and "context" in value:
        manifest = decoded(value, Manifest, name, FIX)
        return of_record(manifest.recipe, manifest.context, manifest)
    if "model_type" in value:
        raise FormatError(f"{name} has no lists of factors, and its RoPE hangs on all of its model", "--like FOLDER, where it lies")
    return from_mapping(value, name)


def _text(path: Path) -> str:
    try:
        with open_regular(inside(path.parent, path.name)) as f:
            data = f.read(MOST + 1)
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror or e}", "give the file of a recipe") from None
    if len(data) > MOST:
        raise FormatError(f"{path.name} has more than {MOST:,} bytes", FIX)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FormatError(f"{path.name} is not UTF-8", FIX) from None


def _value(text: str, name: str) -> Any:
    """JSON where it begins as JSON does and is such, else YAML."""
    try:
        if text.lstrip()[:1] in ("{", "["):
            try:
                return parse(text.encode())
            except ValueError:
                if name.endswith(".json"):
                    raise
        return parse_yaml(text)
    except ValueError as e:
        raise FormatError(f"{name} is no recipe: {e}", FIX) from None


def _word(value: Any) -> str:
    return "a list" if isinstance(value, list) else "nothing" if value is None else f"{str(value)[:40]!r}"


# -- a mapping and a Recipe -------------------------------------------------------------------------------------------


def from_mapping(value: Mapping[str, Any], name: str) -> Recipe:
    """A recipe of a parsed mapping; null counts as absent. FormatError that names `name` and the member that is unknown or odd."""
    given = {k: v for k, v in value.items() if v is not None and k != NOTE}
    for key, v in given.items():
        if key not in KNOWN:
            raise _no_such(f"{name}: unknown key {str(key)[:80]!r}", key, KNOWN, "known:")
        given[key] = _member(key, v, name)
    return decoded(given, Recipe, name, FIX)


def _no_such(message: str, given: object, known: Collection[str], of_all: str) -> FormatError:
    """For what is none of the `known`, with the nearest of them, else all."""
    close = difflib.get_close_matches(str(given), known, 1)
    return FormatError(message, f"did you mean {close[0]}?" if close else f"{of_all} {', '.join(known)}")


def _member(key: str, value: Any, name: str) -> Any:
    """A text as the command line reads it, and numbers that are finite."""
    kind, told = split(hints(Recipe)[key])[0], help_of(Recipe, key)
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise _no_such(f"{name}: {key} is {str(value)[:40]!r}", value, get_args(kind), "one of")
    if isinstance(value, str) and told is not None and told.read is not None:
        try:
            return told.read(value)
        except ValueError as e:
            raise FormatError(f"{name}: {key} is {e}", FIX) from None
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and not abs(number) <= 1e300:
            raise FormatError(f"{name}: {key} is {str(number)[:40]}, not a finite number", FIX)
        if told and told.least is not None and isinstance(number, int) and number < told.least:
            raise FormatError(f"{name}: {key} is {number}, and {told.least} is the least", FIX)
    return value


def as_mapping(asked: Recipe) -> dict[str, Any]:
    """A recipe as JSON: its method, and all that is not as usual."""
    said = {"method": asked.method} | {name: v for name, f in KNOWN.items() if (v := getattr(asked, name)) != f.default}
    return {name: _written(v, split(hints(Recipe)[name])[0]) for name, v in said.items()}


def _written(value: Any, kind: Any) -> Any:
    """A whole number that was given for another is written as a file is read."""
    return [float(x) for x in value] if isinstance(value, tuple) else float(value) if kind is float else value


def as_text(asked: Recipe, note: str = "", as_json: bool = False, columns: int = 120) -> str:
    """The text of a recipe's file, YAML, whose lists and texts are broken into so many columns, or JSON. `note`: what it says to people."""
    value = as_mapping(asked) | ({NOTE: note} if note else {})
    if as_json:
        return json.dumps(value, indent=2) + "\n"
    import yaml

    def on_one_line(dumper: Any, items: Any) -> Any:
        return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)

    dumper: Any = type("Dumper", (yaml.SafeDumper,), {})
    dumper.add_representer(list, on_one_line)

    def text(width: int) -> str:
        said: str = yaml.dump(value, Dumper=dumper, sort_keys=False, allow_unicode=True, width=width)
        return said

    # PyYAML breaks a line after the item that goes beyond the width.
    within = (said for width in range(columns, columns // 2, -4) if max(map(len, (said := text(width)).splitlines())) <= columns)
    return next(within, text(columns))


# -- of a model -------------------------------------------------------------------------------------------------------


def recipe_of_model(c: Checkpoint) -> Recipe:
    """As a conversion left it beside or in the file, else as the file itself says. InputError where nobody says what it counts from."""
    manifest = read_manifest(c.source.path)
    if manifest is not None:
        return of_record(manifest.recipe, manifest.context, manifest)
    if record := c.recorded:
        return of_record(record, c.context)
    c = c.certain()
    return of_rope(claimed(c), c.context)


def of_record(record: RopeRecord, context: int, manifest: Manifest | None = None) -> Recipe:
    """What was asked for, of an extension that records it; else what makes the recorded rope over `context` tokens."""
    asked = manifest.asked if manifest else None
    if asked and isinstance(asked.recipe, dict) and asked.method != "none":
        return from_mapping(asked.recipe, "the manifest's recipe")
    rope, beta = record.rope(), in_record(record)
    if record.kept is True or rope.method == "none":
        original = asked.original_context if asked and asked.method == "none" else None
        return Recipe(method="none", original_context=original, position_temperature=beta)
    found = replace(of_rope(rope, context), position_temperature=beta)
    return replace(found, original_context=asked.original_context) if asked and asked.method != "none" else found


def of_rope(rope: Rope, context: int) -> Recipe:
    """The recipe that makes `rope` of the base that has its plain frequencies. Where no conversion goes by its method, explicit, with the
    factors of its table. Unsupported where it has one for each length."""
    row = rope.row
    if rope.method == "none":
        return Recipe(method="none")
    if row.extends and not row.baked_as:
        return Recipe(method=rope.method, context=context, original_context=rope.original_context, **asked_by(rope))
    if row.lists and rope.inner is None:
        usual = {"attention_factor": table(rope).multiplier} if row.switches else {}  # explicit has none, but 1
        asked = {**usual, "theta": rope.theta, **asked_by(rope)}
        return Recipe(method=rope.method, context=context, original_context=rope.original_context, **asked)
    if not rope.static or row.baked_as:
        raise Unsupported(
            f"{rope.method} has a table for each length of a text, which no conversion writes", f"--method {row.baked_as or 'yarn'}"
        )
    inv_freq, multiplier = table(rope)
    return Recipe(
        method="explicit", context=context, original_context=rope.original_context, theta=rope.theta,
        factors=tuple(factors_of(inv_freq, rope.theta).tolist()), attention_factor=None if multiplier == 1 else multiplier,
    )  # fmt: skip


# -- at a command line ------------------------------------------------------------------------------------------------


def chosen(given: Recipe, told: Container[str], file: Path | None, like: str | None) -> Recipe:
    """The recipe of a command that has --recipe and --like: what the file or the model says, but for the options that were given too,
    `told`, which win. --scale and --context are one: how far. UsageError for another method than is said there."""
    if file is not None and like is not None:
        raise UsageError("--recipe and --like both say what is asked for", "give one of them")
    if file is None and like is None:
        return given
    where = file.name if file is not None else str(like)
    found = read_recipe(file.expanduser()) if file is not None else recipe(str(like))
    if like is not None and found.method == "none" and found.original_context is None:
        raise UsageError(f"{like} scales nothing: there is no recipe to take", "--method abf --theta X raises rope_theta alone")
    own = {name: getattr(given, name) for name in KNOWN if name in told}
    if own.get("method", found.method) != found.method:
        raise UsageError(f"--method {own['method']} is given, and {where} says {found.method}", "leave one of them out")
    if {"scale", "context"} & own.keys():
        own = {"scale": None, "context": None} | own
    return replace(found, **own)

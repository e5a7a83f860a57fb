"""The original length L of a model, where its file does not say it: known models, and the readings that are left."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..dialects import positive_int
from ..errors import InputError, UsageError
from ..families.aliases import Trained, scaled_by_its_makers, trained_alike, trained_as, trained_in_series
from ..families.schema import ROPE_OBJECTS
from ..formats.general import read_card
from ..formats.gguf_file import Gguf
from ..readers.rows import OTHER_LENGTHS
from ..rope import MAX_CONTEXT, Rope
from .source import Source

DUAL_CHUNKS = "dual_chunk_attention_config"  # Qwen2.5-1M: SGLang and vLLM take positions from it, and pass over any scaling
LINEAR = "linear"  # no reader asks for its L, and max_position_embeddings is written as L or as L'
CAPS = ("model_max_length", *OTHER_LENGTHS)


@dataclass(frozen=True, slots=True)
class Lengths:
    """L and L' in tokens. `note` says where L comes from if not from the file. `doubt` is for those to raise who need to know L:
    nobody says it, and the two are what readers take."""

    original: int
    context: int
    note: str = ""
    doubt: InputError | None = None


def lengths(rope: Rope, said: int | None, context: int, key: str, known: Trained | None) -> Lengths:
    """Of a recipe as its readers take it, over `context` tokens by the file's `key`. `said`: L, where the file says it."""
    # All readers of a dynamic one take the file's key for L, and a list of factors is the same whatever it counts from.
    if rope.row.baked_as or rope.method == "explicit" or factor(rope) == 1:
        return Lengths(rope.original_context, context)
    if said is not None:
        reached = reach(rope, said) if rope.method == LINEAR else context
        return Lengths(said, max(context, reached), _contradicts(said, known))
    if known is not None:
        note = f"the original context is the {known.tokens:,} tokens that {known.name} was trained on; the file's {key} is {context:,}"
        reached = context if rope.method == "none" else reach(rope, known.tokens)
        return Lengths(known.tokens, reached, note if known.tokens != context else "")
    return Lengths(rope.original_context, context, "", _doubt(rope, context, key) if rope.method != "none" else None)


def factor(rope: Rope) -> float:
    """L'/L as the recipe has it; 0 for a longrope that does not say it."""
    value = rope.params.get("factor", 0.0)
    return value if isinstance(value, float) else 0.0


def reach(rope: Rope, original: int) -> int:
    """L' of a recipe that counts from `original`."""
    return round(original * factor(rope)) or original


def unsaid(rope: Rope, context: int) -> bool:
    """Whether a recipe over `context` tokens is a linear whose L nobody says, which stands for both then: any other reaches further."""
    return rope.method == LINEAR and rope.original_context == context and factor(rope) != 1


def stale(rope: Rope, context: int, key: str) -> str:
    """Why `context`, a file's `key`, is not where its recipe leads from L: as model cards say it, who set a factor left the old
    context there, and who took one out the extended one. "" if it is, or where a recipe does not say how far it leads."""
    if rope.method == "none" and rope.original_context < context:
        return f"{key} is {context:,}, and no scaling leads there from the original {rope.original_context:,}"
    if not rope.row.leads or not factor(rope):
        return ""
    led = rope.original_context * factor(rope)
    same = math.isclose(context, led, rel_tol=1e-6)
    return "" if same else f"{key} is {context:,}, not factor × original = {factor(rope):g} × {rope.original_context:,} = {led:,.0f}"


def checked_length(original: int) -> int:
    """`original` itself; UsageError when it is no length."""
    if not 0 < original < MAX_CONTEXT:
        raise UsageError(f"--original-context must be a number of tokens, not {original}", "the length that the base was trained on")
    return original


def _contradicts(said: int, known: Trained | None) -> str:
    if known is None or said == known.tokens:
        return ""
    return f"{said:,} tokens are the original context by the file; {known.name} was trained on {known.tokens:,} (--original-context)"


def _doubt(rope: Rope, context: int, key: str) -> InputError:
    s = factor(rope)
    ways = [(context, round(context * s)), (round(context / s), context)] if s > 1 else []
    ways = ways if ways and abs(ways[1][0] * s - context) < 1e-6 * context else ways[:1]
    spelled = f"{rope.method} with factor {s:g}" if s else rope.method
    read = " or ".join(f"{a:,} tokens extended to {b:,}" for a, b in ways)
    message = f"{key} is {context:,}, and the file does not say from which length its {spelled} counts" + (f": {read}?" if read else "")
    return InputError(message, f"{', or '.join(f'--original-context {a}' for a, _ in ways) or '--original-context N'}, says it")


# -- what files say ---------------------------------------------------------------------------------------------------


def of_config(config: Mapping[str, Any], source: Source, rope: Rope) -> Lengths:
    """Of a config.json, that of one layer type, whose recipe is `rope`."""
    context, window = config["max_position_embeddings"], config.get("sliding_window")
    window = window if config.get("use_sliding_window") is not False else None
    return _found(rope, _said(config, rope), context, "max_position_embeddings", str(config["model_type"]), window, _names(config, source))


def of_gguf(gguf: Gguf, model_type: str, source: Source, rope: Rope, context: int) -> Lengths:
    """Of a GGUF, by its keys and by what those of `general` name."""
    arch, keys = gguf.arch, ("general.source.repo_url", "general.repo_url", "general.base_model.0.repo_url", "general.name")
    said = rope.original_context if (f := gguf.fields.get(f"{arch}.rope.scaling.original_context_length")) and f.value else None
    names = (source.repo or "", *(str(gguf.get(k)) for k in keys if k in gguf.fields), source.name)
    window = f.value if (f := gguf.fields.get(f"{arch}.attention.sliding_window")) else None
    return _found(rope, said, context, f"{arch}.context_length", model_type, window, iter(names))


def _found(rope: Rope, said: int | None, context: int, key: str, model_type: str, window: int | None, names: Iterator[str]) -> Lengths:
    """A name counts only where the lengths are those of that model, plain or extended: someone may have trained it on longer texts."""
    s = factor(rope) or 1
    if rope.method == LINEAR and said is None and scaled_by_its_makers(model_type, context):
        said = round(context / s)
    known = trained_in_series(model_type, context, window) or trained_as(
        names, lambda row: context in (row.says, row.tokens, round(row.tokens * s), round(row.says * s))
    )
    found = lengths(rope, said, context, key, known)
    if rope.method != "none" or known or not (row := trained_alike(model_type, context, window)):
        return found
    also = f"{row.name}, whose {key} is {context:,} too, was trained on {row.tokens:,} tokens: --original-context counts from there"
    return replace(found, note=also)


def _said(config: Mapping[str, Any], rope: Rope) -> int | None:
    """L by a config.json: `original_max_position_embeddings`, or a second length that is `factor` times shorter or longer than
    max_position_embeddings, as `model_max_length` beside linear."""
    if rope.method == "none" and (trained := _in_chunks(config)):
        return trained
    objects = [x for k in ROPE_OBJECTS if isinstance(x := config.get(k), dict)]
    if any(x.get("original_max_position_embeddings") is not None for x in (*objects, config)):
        return rope.original_context
    longest, s = config["max_position_embeddings"], factor(rope)
    if s <= 1:
        return None
    others = [value for key in CAPS if type(value := config.get(key)) is int]
    found = {min(value, longest) for value in others if max(value, longest) == round(min(value, longest) * s)}
    return found.pop() if len(found) == 1 else None


def _in_chunks(config: Mapping[str, Any]) -> int | None:
    """The tokens that a model with dual chunk attention was trained on, of which no two are ever farther apart in runtimes that
    have it (vllm rotary_embedding/dual_chunk_rope.py). Its max_position_embeddings is what it serves there."""
    value = (config.get(DUAL_CHUNKS) or {}).get("original_max_position_embeddings")
    return None if value is None else positive_int(value, f"{DUAL_CHUNKS}.original_max_position_embeddings")


def _names(config: Mapping[str, Any], source: Source) -> Iterator[str]:
    yield from (source.repo or "", str(config.get("_name_or_path") or ""), source.name)
    with contextlib.suppress(InputError):
        text = read_card(source.path)
        front = text.split("---")[1] if text.startswith("---") else ""
        yield from re.findall(r"^base_model:\s*(?:\n?\s*-\s*)?['\"]?([\w.-]+/[\w.-]+)", front, re.MULTILINE)

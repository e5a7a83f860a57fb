"""What a checkpoint is meant to compute, and whether its file says so: the first of the three questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .. import readers
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.lengths import unsaid
from ..checkpoint.manifest import read_manifest
from ..checkpoint.source import resolve
from ..dialects import ROPE_FREQS, pair_of
from ..errors import InputError, Unsupported
from ..formats.contents import ROPE_FILE
from ..formats.files import exists, regular
from ..formats.tensors import read_safetensors
from ..options import Recipe
from ..readers.gguf import LLAMA_CPP
from ..readers.judge import Verdict, elsewhere, grown, judge, judge_configs, unknown
from ..readers.survey import Surveyed, survey_config, survey_gguf
from ..readers.switching import switches
from ..rope import RTOL, Array, Rope, rounding_of, same_at_all_lengths, table
from ..targets.plan import DECISIVE
from .extension import extend


@dataclass(frozen=True, slots=True)
class Intention:
    """The recipe that is meant, over `context` tokens, and where that was said. `recorded`: the recipe itself, when the file was made.
    `long`: see `Extension.long`."""

    rope: Rope
    context: int
    origin: str
    recorded: bool = False
    long: Rope | None = None


def intention_of(c: Checkpoint, asked: Recipe | None, base: Checkpoint | None, like: str | None, doubtful: bool = False) -> Intention:
    """From `like`, another checkpoint; else from a recipe's options (over `base`, or over `c` itself, whose own YaRN they
    replace); else from the manifest; else from the recipe in the GGUF; else what the file claims, with the keys that its
    reader ignores taken at their word, counted from its original context if they say no more.

    Raises InputError for a claim of which nobody says what it counts from, unless `doubtful`: then as readers take it."""
    if like is not None:
        other = open_checkpoint(resolve(like, weights=False)).certain()
        return Intention(claimed(other), other.context, f"as {like} says", long=other.long)
    if asked == (counted := Recipe(original_context=asked.original_context if asked else None)) and counted != Recipe():
        c = c.counting_from(counted.original_context)
        return Intention(claimed(c), c.context, f"as the file claims, counted from {c.rope.original_context:,} tokens", long=c.long)
    if asked is not None:
        e = extend(base or c, asked)
        return Intention(e.rope, e.context, "as the options say", long=e.long)
    manifest = read_manifest(c.source.path)
    if manifest is not None:
        return Intention(manifest.recipe.rope(), manifest.context, "as the manifest says", True, manifest.recipe.long_rope)
    if record := c.recorded:
        rope = record.rope()
        factor = rope.params.get("factor")
        spans = rope.row.spans and not unsaid(rope, c.context)
        length = round(rope.original_context * factor) if spans and isinstance(factor, float) else c.context
        return Intention(rope, length, "as the recipe in the file says", True, record.long_rope)
    c = c if doubtful else c.certain()
    return Intention(claimed(c), c.context, "as the file itself claims", long=c.long)


def claimed(c: Checkpoint) -> Rope:
    """The recipe of a checkpoint with the GGUF keys honoured that llama.cpp ignores: what its maker meant.

    convert_hf_to_gguf.py writes a config's betas and attention_factor to such keys (conversion/base.py,
    `_set_rope_parameters`), of which only some architectures' loaders know.
    """
    if not c.ignored or c.rope.method != "yarn":
        return c.rope
    arch, params = c.family.gguf_arch, dict(c.rope.params)
    spelled = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "yarn_attn_factor": "attention_factor"}
    for key, name in (*((k, k) for k in ("beta_fast", "beta_slow")), *spelled.items()):  # Ollama's, then llama.cpp's
        value = c.config.get(f"{arch}.rope.scaling.{key}")
        if isinstance(value, float | int):
            params[name] = float(value)
    return replace(c.rope, params=params)


# -- the check --------------------------------------------------------------------------------------------------------


def check_recipe(c: Checkpoint, meant: Intention) -> dict[str, Any]:
    """Decode the file as its reader does and compare with the intention, pair by pair in float64.

    JSON: `verdict` "passed" or "failed", `reader`, `why`, `doubt`, the two tables, the largest relative error, the multiplier and
    context of both, and every known reader's verdict.
    """
    verdicts, why = verdicts_of(c, meant), ""
    if c.rope.method == meant.rope.method == "yarn" and c.rope.original_context != meant.rope.original_context:
        why = f"it counts from {c.rope.original_context:,} tokens instead of {meant.rope.original_context:,}"
    return answered(c, meant, verdicts, why or rope_file_error(c, table(meant.rope, meant.context)))


def answered(c: Checkpoint, meant: Intention, verdicts: Mapping[str, Verdict], more: str = "") -> dict[str, Any]:
    """The answer of `check_recipe`, from what each reader makes of the file or of what it is told; `more`: why not, where the format's
    own reader finds nothing."""
    target, reader = table(meant.rope, meant.context), main_reader(c)
    judged = verdicts[reader]
    why, decoded = judged.why or more, judged.reading
    layer = judged.layer if judged.layer not in ("", "lengths") else "table"  # other lengths have other tables
    result: dict[str, Any] = {
        "verdict": "failed" if why else "passed",
        "reader": reader,
        "why": why,
        "layer": layer if why else "",
        "intended": {"inv_freq": target.inv_freq.tolist(), "multiplier": target.multiplier, "context": meant.context},
        "ignored": list(c.ignored),
        "readers": {name: v.why for name, v in verdicts.items()},
        "unknown": unknown(verdicts),
    }
    if decoded is not None:
        found = {"inv_freq": decoded.inv_freq.tolist(), "multiplier": decoded.multiplier, "context": decoded.context}
        result |= {"decoded": found, "max_error": judged.error}
    return result


def verdicts_of(c: Checkpoint, meant: Intention) -> dict[str, Verdict]:
    """Of each known reader of the file, whether it computes what is meant from it; at every length, if it does at that of the context."""
    beside = c.beside(meant.rope)
    if c.gguf:
        found = {LLAMA_CPP: judge(partial(llama_cpps, c), table(meant.rope, meant.context), meant.context, beside, written(c, meant))}
    else:
        found = judge_configs(c.written, meant.rope, meant.context, beside)
    return found if _at_all_lengths(c, meant) else {name: elsewhere(v) if v.exact else v for name, v in found.items()}


def _at_all_lengths(c: Checkpoint, meant: Intention) -> bool:
    """Whether the file is as meant at other lengths, too, than the one at which readers are asked."""
    return same_at_all_lengths(c.rope, meant.rope, written(c, meant))


def written(c: Checkpoint, meant: Intention) -> float | Array:
    """How far the frequencies of a file may be from what is meant: other tools compute a GGUF's factors in float32."""
    return rounding_of(meant.rope) if c.factors else RTOL


def survey(c: Checkpoint, meant: Intention) -> list[Surveyed]:
    """What each known runtime makes of the file, ours or not, against the intention."""
    target, beside = table(meant.rope, meant.context), c.beside(meant.rope)
    if c.gguf:
        names = {k: c.gguf.get(k) for k in ("general.name", "general.basename") if k in c.gguf.fields}
        keys, pair = {**c.config, **names}, pair_of(c.factors)
        found = survey_gguf(keys, c.factors.get(ROPE_FREQS), target, meant.context, written(c, meant), beside, pair)
    else:
        found = survey_config(c.written, target, meant.context, beside=beside)
        found = [replace(v, verdict=grown(v.runtime, v.verdict, c.written, meant.rope)) for v in found]
    by = {v.runtime: switches(v.runtime, bool(c.gguf), meant.rope, meant.context) for v in found if v.reading}
    found = [replace(v, switches=by.get(v.runtime, "")) for v in found]
    return found if _at_all_lengths(c, meant) else [replace(v, verdict=elsewhere(v.verdict)) if v.exact else v for v in found]


def llama_cpps(c: Checkpoint) -> readers.Reading:
    """What llama.cpp makes of a GGUF; Refuses where it does not load it."""
    return readers.read_gguf(c.config, c.factors.get(ROPE_FREQS), pair_of(c.factors))


def reading_at(c: Checkpoint, reader: str, n: int, served: int) -> readers.Reading | None:
    """What `reader` makes of the file for a text of `n` tokens where it is started for a context of `served`; None where it refuses it, or
    nothing is known."""
    try:
        if c.gguf:
            return readers.read_gguf(c.config, c.factors.get(ROPE_FREQS), pair_of(c.factors), readers.Flags(tokens=served))
        return readers.read_config(reader, c.written, n, served)
    except (readers.Refuses, Unsupported):
        return None


def main_reader(c: Checkpoint) -> str:
    return LLAMA_CPP if c.gguf else DECISIVE


def rope_file_error(c: Checkpoint, target: Any) -> str:
    """Why rope.safetensors beside a config.json does not hold the intended table; "" if it does or is not there."""
    if c.gguf or not exists(c.source.path, ROPE_FILE):
        return ""
    try:
        tensors, metadata = read_safetensors(regular(c.source.path, ROPE_FILE))
        stored = tensors["rotary_emb.inv_freq"].read().view(np.float64)
        sound = np.array_equal(stored, target.inv_freq) and float(metadata["attention_factor"]) == target.multiplier
    except (InputError, KeyError, ValueError) as e:
        return f"{ROPE_FILE} cannot be read: {e}"
    return "" if sound else f"{ROPE_FILE} holds another table or multiplier"

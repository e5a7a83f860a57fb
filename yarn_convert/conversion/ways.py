"""The ways in which each runtime is told a recipe over a model as it is, and which of them is the best.

Each is read as the runtime reads it (`readers.told`), and judged as a file is. Pure.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import numpy as np

from .. import dialects, readers
from ..checkpoint import Checkpoint
from ..checkpoint.config import NESTS
from ..dialects.gguf import BETAS
from ..dialects.shared import plain_theta, spelled_as
from ..errors import Inexpressible, UsageError, YarnConvertError, no_such
from ..families.architectures import below
from ..families.schema import ROPE_OBJECTS
from ..formats.gguf_file import f32, shortest
from ..formats.json_text import REMOVE
from ..readers import Flags
from ..readers.gguf import LLAMA_CPP
from ..readers.judge import Verdict, VerdictLayer, judge
from ..readers.told import TOLD, Told
from ..rope import METHODS, RTOL, Array, Rope, rounding_of, table, temperature
from ..targets.plan import carry_gguf, hf_spellings, keys_with
from .extension import Extension

FLAGS = {  # field of `Flags` -> its option; {tokens} has its own place
    "kind": "--rope-scaling", "factor": "--rope-scale", "original": "--yarn-orig-ctx", "theta": "--rope-freq-base",
    "fast": "--yarn-beta-fast", "slow": "--yarn-beta-slow",
}  # fmt: skip
NEUTRAL = {"attn_factor": 1.0, "factor": 1.0, **readers.UNREAD}  # GGUF keys of a scaling, at which they say nothing
AUTO = "AutoModelForCausalLM"
KINDS = {bool: "bool", int: "int", float: "float", str: "str"}  # as --override-kv names them


@dataclass(frozen=True, slots=True)
class Override:
    """What one runtime is told, and the verdict on what it then computes: members of config.json, or flags and keys; None, where it is
    told nothing. `kind`: the class of transformers that loads the model."""

    row: Told
    verdict: Verdict
    members: Mapping[str, Any] | None = None
    flags: Flags = readers.UNTOLD
    keys: Mapping[str, Any] | None = None
    kind: str = AUTO

    @property
    def told(self) -> dict[str, Any]:
        if self.keys is None:
            return dict(self.members or {})
        flags = {FLAGS[k]: v for k, v in self.flags._asdict().items() if k in FLAGS and v is not None}
        return {"flags": flags, "keys": dict(self.keys)}

    @property
    def options(self) -> dict[str, Any]:
        """The same for a worker of `runtimes`, as its runtime takes it."""
        return {"members": dict(self.members or {})} if self.keys is None else {"arguments": self.arguments()}

    @property
    def takes(self) -> bool:
        """Whether there is anything that its runtime can be told."""
        return self.members is not None or self.keys is not None

    def command(self, model: str) -> str:
        """The line to copy, for the model of this name; "" where there is none."""
        if not self.takes:
            return ""
        if self.row.language == "python":
            named = ", ".join(f"{k}={v!r}" for k, v in (self.members or {}).items())
            return self.row.says.format(kind=self.kind, model=json.dumps(model), named=named, told=repr(self.members))
        words = self.arguments() if self.keys is not None else [json.dumps(self.members, separators=(",", ":"))]
        return self.row.says.format(model=shlex.quote(model), tokens=self.flags.tokens, told=shlex.join(words))

    def arguments(self) -> list[str]:
        """The words of llama.cpp's command line."""
        said = [(FLAGS[k], v) for k, v in self.flags._asdict().items() if k in FLAGS and v is not None]
        words = [word for option, v in said for word in (option, v if isinstance(v, str) else number(v))]
        for key, value in (self.keys or {}).items():
            text = str(value).lower() if isinstance(value, bool) else number(value) if isinstance(value, float) else str(value)
            words += ["--override-kv", f"{key}={KINDS[type(value)]}:{text}"]
        return words


def number(value: float) -> str:
    """The shortest decimal that is the same float32."""
    return np.format_float_positional(np.float32(value), trim="-")


def all_shortest(value: Any) -> Any:
    """`value` with every float the `shortest` that is the same float32, as a file's numbers are held in the end."""
    if isinstance(value, Mapping):
        return {k: all_shortest(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [all_shortest(v) for v in value]
    return shortest(value) if not isinstance(value, float) or abs(value) < 1e30 else value  # which a float32 may not hold


# -- all runtimes -----------------------------------------------------------------------------------------------------


def overrides_of(c: Checkpoint, e: Extension, names: Sequence[str] = ()) -> list[Override]:
    """How each runtime that reads such a model, or those of these names, is told this recipe. UsageError for a name that is none's."""
    form = "gguf" if c.gguf else "safetensors"
    rows = {name: row for name, row in TOLD.items() if row.reads in ("both", form)}
    for name in names:
        if name not in TOLD:
            raise no_such("--runtime", name, TOLD)
        if name not in rows:
            raise UsageError(f"{name} reads {TOLD[name].reads}, and {c.source.name} is {form}", f"one of {', '.join(rows)}")
    return [override(c, e, row) for name, row in rows.items() if not names or name in names]


def override(c: Checkpoint, e: Extension, row: Told) -> Override:
    """How one runtime is told: the first way that is exact, else the one of which least is lost, else the first that it takes at all."""
    if row.refuses:
        return Override(row, Verdict("refuses", text=row.refuses))
    try:
        ways = list(_gguf_ways(c, e, row) if row.name == LLAMA_CPP else _config_ways(c, e, row))
    except YarnConvertError as error:
        before = "there is no GGUF of it as it is: " if row.name == LLAMA_CPP else ""
        return Override(row, Verdict("refuses", text=before + error.message))
    best = min(ways, key=lambda o: _loss(o.verdict), default=Override(row, Verdict("refuses", text=_no_word(e.rope))))
    return best if best.verdict.kind != "refuses" else Override(row, best.verdict)


def _loss(v: Verdict) -> tuple[int, int]:
    """How bad a verdict is: of those that differ, what comes first in a reading is worst."""
    return ("exact", "differs", "unknown", "refuses").index(v.kind), -get_args(VerdictLayer).index(v.layer)


def _no_word(rope: Rope) -> str:
    return f"it has no words for {rope.method}{f' over {rope.inner.method}' if rope.inner else ''}"


# -- members of config.json -------------------------------------------------------------------------------------------


def nest_of(c: Checkpoint, row: Told) -> tuple[str, ...]:
    """The keys that lead to what is told: transformers' classes make an object for a language model that stands at the top."""
    return c.nest or (NESTS[0] if c.around and row.parsed else ())


def _config_ways(c: Checkpoint, e: Extension, row: Told) -> Iterator[Override]:
    """By the words of the method, without what every reader assumes and with it; then by lists of frequencies."""
    nest = nest_of(c, row)
    kind = str(((c.around and c.written.get("architectures")) or [AUTO])[0])
    for _, changes in hf_spellings(c, c.written, e.rope, e.context):
        full = members_of(c, e, row, changes)
        for members in (_without_usual(full, e.rope), full):
            read = partial(row.read, c.written, members, e.context, len(nest))
            verdict = judge(read, table(e.rope, e.context), e.context, c.beside(e.rope))
            for key in reversed(nest):
                members = {key: members}
            yield Override(row, verdict, members, Flags(tokens=e.context), kind=kind)
            if verdict.exact:
                return


def members_of(c: Checkpoint, e: Extension, row: Told, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What of a conversion's changes to config.json this runtime is to be told, its RoPE object first, numbers as short as a float32's."""
    hf, config = c.family.hf, c.written
    rope = changes.get(row.object)
    rope = None if rope is REMOVE else rope
    if isinstance(rope, Mapping):
        rope = _turning(c, config, _without_type(rope))
    found: dict[str, Any] = {row.object: rope} if rope or config.get(row.object) else {}
    at_the_top = {hf.own("rope_theta")} if row.object == "rope_scaling" else set()
    skipped = {*ROPE_OBJECTS, "model_max_length", "rope_theta", hf.own("rope_theta"), *(k for k in hf.renamed)} - at_the_top
    for key, value in changes.items():
        if value is not REMOVE and key not in skipped and config.get(key) != value:
            found[key] = value
    original = "original_max_position_embeddings"
    if rope and original in config and original not in found and rope.get(original, config[original]) != config[original]:
        found[original] = rope[original]
    found |= {"model_max_length": e.context} if config.get("model_max_length") else {}
    return {k: all_shortest(v) for k, v in found.items()}


def _without_type(rope: Mapping[str, Any]) -> dict[str, Any]:
    """A RoPE object, or one for each type of layers, with rope_type alone."""
    return {k: _without_type(v) if isinstance(v, Mapping) else v for k, v in rope.items() if k != "type"}


def _turning(c: Checkpoint, config: Mapping[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    """A RoPE object that says the part of a head that turns, where that is not the whole and config.json says it elsewhere: where the
    object takes the place of one that transformers' classes have read, it is looked for in no other."""
    part = next((v for v in (config.get(c.family.hf.partial_key), c.family.hf.part(config)) if v is not None), 1.0)
    by_layer = any(isinstance(v, Mapping) for v in rope.values())
    return rope if part == 1 or by_layer or "partial_rotary_factor" in rope else {**rope, "partial_rotary_factor": part}


def _without_usual(members: dict[str, Any], rope: Rope) -> dict[str, Any]:
    """`members` without the parameters of YaRN that all readers take where they are absent."""
    if not isinstance(rope.params.get("factor"), float):
        return members
    usual = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": f32(temperature(rope.number("factor")))}

    def shorter(x: Mapping[str, Any]) -> dict[str, Any]:
        left_out = usual if x.get("rope_type") == "yarn" else {}
        return {k: shorter(v) if isinstance(v, Mapping) else v for k, v in x.items() if k not in left_out or f32(v) != usual[k]}

    return {k: shorter(v) if k in ROPE_OBJECTS and isinstance(v, Mapping) else v for k, v in members.items()}


# -- flags and keys of llama.cpp --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loaded:
    """What llama.cpp loads of a model: GGUF keys, and the factors that its tensors have."""

    keys: Mapping[str, Any]
    factors: Mapping[str, Array]

    def judged(self, c: Checkpoint, e: Extension, keys: Mapping[str, Any], flags: Flags) -> Verdict:
        freqs, pair = self.factors.get(dialects.ROPE_FREQS), dialects.pair_of(self.factors)
        read = partial(readers.read_gguf, {**self.keys, **keys}, freqs, pair, flags)
        rtol = rounding_of(e.rope.inner or e.rope) if self.factors else RTOL
        return judge(read, table(e.rope, e.context), e.context, c.beside(e.rope), rtol)


def loaded(c: Checkpoint) -> Loaded:
    """Of a GGUF, or of one that is made of a folder as it is. Inexpressible where llama.cpp does not compute the folder's own RoPE."""
    if c.gguf:
        return Loaded(c.config, c.factors)
    if not c.family.listed:
        raise Inexpressible(f"no GGUF is made here of {c.family.name}", "--converter LLAMA_CPP makes one by llama.cpp's own converter")
    _, keys, factors = carry_gguf(c, c.rope, c.context, "auto")
    return Loaded(keys_with(c, keys), factors)


def _gguf_ways(c: Checkpoint, e: Extension, row: Told) -> Iterator[Override]:
    """By flags, with keys for what no flag says; and by keys, with flags for what no key says."""
    base = loaded(c)
    for flags, keys in (*_by_flags(c, e, base), *_by_keys(c, e, base)):
        yield Override(row, base.judged(c, e, keys, flags), None, flags, keys)


def _betas(c: Checkpoint, rope: Rope, base: Loaded) -> tuple[float | None, float | None]:
    """The two ends of the ramp, each where it is another than this file's."""
    if not rope.row.ramped:
        return None, None
    wanted = (rope.number("beta_fast", 32.0), rope.number("beta_slow", 1.0))
    taken = readers.gguf_betas(c.family.gguf_arch, below(c.family.gguf_arch, base.keys))
    fast, slow = (None if f32(v) == f32(there) else v for v, there in zip(wanted, taken, strict=True))
    return fast, slow


def _by_flags(c: Checkpoint, e: Extension, base: Loaded) -> list[tuple[Flags, dict[str, Any]]]:
    rope, arch = e.rope, c.family.gguf_arch
    meta, kind = below(arch, base.keys), METHODS[spelled_as(rope)].gguf
    if not kind:
        return []
    theta = plain_theta(rope)
    scaled = kind != "none" or f32(meta.get("rope.scaling.factor", 1.0)) != 1
    flags = Flags(
        e.context,
        kind if scaled else None,
        rope.number("factor") if kind != "none" else None,
        rope.original_context if rope.row.says_length else None,
        None if f32(theta) == f32(readers.gguf_theta(arch, meta)) else f32(theta),
        *_betas(c, rope, base),
    )
    keys: dict[str, Any] = {}
    scaling = f"{arch}.rope.scaling."
    reading = base.judged(c, e, keys, flags).reading
    if reading is None:
        return [(flags, keys)]
    written = meta.get("rope.scaling.attn_factor", 1.0)
    attn = table(rope).multiplier / (reading.multiplier / written)
    if not math.isclose(attn, written, rel_tol=RTOL):
        keys[f"{scaling}attn_factor"] = float(number(attn))
    if reading.context is not None and reading.context < e.context:
        keys[f"{arch}.context_length"] = e.context
        keys |= {f"{scaling}original_context_length": rope.original_context} if c.family.gguf.floor else {}
    return [(flags, keys)]


def _by_keys(c: Checkpoint, e: Extension, base: Loaded) -> list[tuple[Flags, dict[str, Any]]]:
    by_flags = () if c.family.gguf.betas else BETAS
    bare = replace(e.rope, params={k: v for k, v in e.rope.params.items() if k not in by_flags})
    try:
        wanted = dialects.gguf_metadata(bare, e.context, c.family)
    except Inexpressible:
        return []
    keys: dict[str, Any] = {}
    for key, value in wanted.items():
        name = key.removeprefix(f"{c.family.gguf_arch}.rope.scaling.")
        said = NEUTRAL.get(name) if value is None else value.data
        if said is not None and (key in base.keys or value is not None) and base.keys.get(key) != said:
            keys[key] = all_shortest(said)
    fast, slow = _betas(c, e.rope, base) if by_flags else (None, None)
    return [(Flags(e.context, fast=fast, slow=slow), keys)]

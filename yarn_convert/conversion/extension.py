"""`extend`: the recipe of a base at a longer context. Pure: it decides what is asked for, and writes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..asking import check_choices, spelled
from ..checkpoint import Checkpoint
from ..checkpoint.lengths import LINEAR
from ..errors import Unsupported, UsageError, YarnConvertError, no_such
from ..options import Recipe
from ..rope import (
    ATTENTION_METHODS,
    MAX_CONTEXT,
    METHODS,
    MSCALES,
    RTOL,
    STILL,
    Array,
    Rope,
    bake,
    effect,
    factors_of,
    no_recipe,
    recipe_of,
    row_of,
    table,
    undivided,
)
from .tempering import beside_recipe, of_another

EXTENDING = ("none", *(name for name, row in METHODS.items() if row.extends or row.needs))  # with none, the base's own stays
OPTIONS = {  # what a method may take, by its field -> its default
    f.name: f.default for f in fields(Recipe) if any(f.name in row.takes for row in METHODS.values())
}
RAMP = ("ramp", "truncate")


@dataclass(frozen=True, slots=True)
class Extension:
    """A recipe and the length it serves, with what a user should know about how they came to be. `long`: where it has the base's own
    table for short texts, the recipe of the other."""

    rope: Rope
    context: int
    scale: float
    notes: tuple[str, ...] = ()
    long: Rope | None = None


def extend(c: Checkpoint, asked: Recipe) -> Extension:
    """The extended recipe of a base. Pure. Raises UsageError for parameters out of range or that the method does not take.

    s = L'/L counts from the original pretraining context. A base that carries YaRN is re-scaled from its own; over any
    other scaling the method is composed: it is applied to the base's effective frequencies over the length they serve.
    Raises InputError for a base whose L nobody says.
    """
    _check(asked)
    if why := of_another(c, asked.position_temperature):
        raise Unsupported(f"--position-temperature is for a conversion's file: {why}", "convert first, and give the output")
    if asked.short:
        return _beyond(c, asked)
    if asked.method == "none":
        return _as_it_is(c, asked)
    c = replace(c, rope=c.long, long=None) if c.long else c  # an extension of ours, which is replaced as any
    c = c.counting_from(asked.original_context).certain()
    composed, original = composes(c), counted_from(c, asked.original_context)
    context, s, notes = _lengths(original, asked)
    _check_family(c, asked, context)
    notes += [c.note] if c.note else []
    if composed and context <= c.context:
        raise UsageError(
            f"{context:,} tokens is no extension: the base already serves {c.context:,} by its own {c.rope.method} scaling", "choose more"
        )
    if composed and (rope := _both_linear(c.rope, asked.method, context, s)):
        return Extension(
            rope, context, s, (*notes, f"linear over the base's own linear scaling: linear with s = {rope.number('factor'):g}")
        )
    row = METHODS[asked.method]
    inner = c.rope if composed else c.rope.inner
    rope = replace(c.rope, method=asked.method, original_context=original, params=_params(c, asked, s), inner=inner)
    if row.lists:
        rope, said = _of_lists(rope)
        notes += said
    if row.baked_as:
        rope = bake(rope, context)
        notes.append(
            f"{asked.method} is baked: it computes {rope.method} at s = {rope.number('factor'):g} for every length, short texts too"
        )
    table(rope)  # raises for parameters out of range
    return Extension(rope, context, s, (*notes, *_becomes_of(c.rope, rope)))


def _becomes_of(own: Rope, rope: Rope) -> Iterator[str]:
    """What becomes of the base's own scaling, to which `rope` is applied or which it replaces."""
    over = f"{rope.original_context:,} tokens"
    if rope.inner is own:
        if own.row.switches:
            yield f"the base's {own.method} switches lists with the length of the text: its long list is used for every length now"
        yield f"the base's own {own.method} scaling stays: {rope.method} is applied to its effective frequencies over {over}"
    elif own.method != "none":
        yield f"the base's own {own.method} is replaced: s counts from its original context of {over}"


def _as_it_is(c: Checkpoint, asked: Recipe) -> Extension:
    """--method none: the base's own recipe and context. UsageError for a file whose keys leave open what is meant."""
    if asked.original_context is not None and not c.doubt:
        raise UsageError("--method none keeps the base's RoPE as it is", "leave out --original-context")
    if c.ignored:
        raise UsageError(
            f"this GGUF has RoPE keys that llama.cpp ignores: {', '.join(c.ignored)}",
            "say what is meant with --method yarn and its options",
        )
    c = c.counting_from(asked.original_context)
    c = c if c.rope.method == "linear" else c.certain()  # as it is, linear is the same whatever it counts from
    open_still = (f"{c.doubt.message} It stays as open in the output ({c.doubt.hint})",) if c.doubt else ()
    return Extension(c.rope, c.context, c.context / c.rope.original_context, open_still + _as_stale(c), c.long)


def _params(c: Checkpoint, asked: Recipe, s: float) -> dict[str, Any]:
    """The parameters of the method that is asked for, with those that the family's attention makes of its temperature."""
    row, said = METHODS[asked.method], given(asked)
    params: dict[str, Any] = {"factor": s} if row.spans or row.switches else {}
    params |= {name: _number(value) for name, value in said.items() if name not in RAMP}
    if c.family.on_logits and row.ramped and "attention_factor" in row.takes:
        params |= {name: c.rope.params.get(name, 1.0) for name in MSCALES}
    return params | {name: value for name, value in said.items() if name in RAMP}


def given(asked: Recipe) -> dict[str, Any]:
    """The options of a recipe that say something else than their defaults, but for the method and the lengths."""
    return {name: value for name, usual in OPTIONS.items() if (value := getattr(asked, name)) != usual}


def asked_by(rope: Rope) -> dict[str, Any]:
    """The options by which `extend` makes this recipe of its base, but for the method and the lengths: the inverse of `given`."""
    turning = np.arange(rope.rotary_dim // 2) < rope.rotary_dim // 2 - rope.still
    found: dict[str, Any] = {name: rope.params[name] for name in OPTIONS if name in rope.row.takes and name in rope.params}
    found |= {name: tuple(np.where(turning, found[name], STILL).tolist()) for name in rope.row.lists}
    return found | ({"clip_pairs": int(found["clip_pairs"])} if "clip_pairs" in found else {})


def _number(value: Any) -> float | tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, tuple) else float(value)


def _of_lists(rope: Rope) -> tuple[Rope, list[str]]:
    """(a recipe of lists as a file that has them is read, what is odd in them). Of two lists the long one is the short one, too, where
    that is not given, and two that are the same are explicit; a pair that is divided by 1e30 or more stands still.

    UsageError for a list that is not one of this model's."""
    pairs, notes, params = rope.rotary_dim // 2, [], dict(rope.params)
    if (theirs := params.pop("theta", rope.theta)) != rope.theta:
        says = f"the lists divide the frequencies of a rope_theta of {theirs:,g}, and the base's is {rope.theta:,g}"
        raise UsageError(says, "they belong to another base")
    divided, resting = dict[str, tuple[float, ...]](), set[int]()
    for name in rope.row.lists:
        given_as = name if name in params else rope.row.lists[-1]
        values: Any = params[given_as]
        if len(values) != pairs:
            more = "; LongRoPE's dim_mono_n and dim_piece_mono put others before them" if 0 < len(values) - pairs < 3 else ""
            raise UsageError(f"{given_as} has {len(values)} numbers, and {pairs} pairs of a head turn in this model", f"one each{more}")
        turning, still = undivided(replace(rope, params={name: values}).numbers(name))
        divided[name], resting = tuple(turning.tolist()), resting | {still}
        notes += _oddities(name, turning[: pairs - still]) if name in params else []
    if len(resting) > 1:
        raise UsageError(f"the lists let {' or '.join(map(str, sorted(resting)))} pairs stand still", "the same pairs do so at all lengths")
    rope = replace(rope, params=divided | {k: v for k, v in params.items() if k not in divided}, still=max(rope.still, *resting))
    if len(set(divided.values())) < len(divided):
        rope = replace(rope, method="explicit", params={"factors": divided["long_factor"], "attention_factor": table(rope).multiplier})
    return rope, notes


def _oddities(name: str, values: Any) -> list[str]:
    falls, fewer = np.flatnonzero(np.diff(values) < 0), int((values < 1).sum())
    notes = [f"{name} does not rise from pair to pair: it falls after {falls[0]}{' and others' * (len(falls) > 1)}"] if len(falls) else []
    return notes + ([f"{name} is below 1 for {fewer} of {len(values)} pairs, which turn faster than in the base"] if fewer else [])


def unbaked(e: Extension, method: str) -> Rope:
    """The dynamic recipe that an extension by `method` has baked: its s follows the length of each pass."""
    return replace(e.rope, method=method, params={k: v for k, v in e.rope.params.items() if k != "factor"})


def _as_stale(c: Checkpoint) -> tuple[str, ...]:
    """A note on a context that a conversion of the format keeps, as it keeps all of the RoPE, though it is not what the recipe leads to."""
    repaired = "; repair sets it" if c.rope.method != "none" else ""
    return (f"{c.stale}: the output says the same{repaired}",) if c.stale else ()


def composes(c: Checkpoint) -> bool:
    """Whether a method is applied over the base's own scaling and does not replace it. An extension is replaced that says from which
    length it counts, or that is yarn-convert's; 0.1.0 did not record of which recipes it changed the format alone, but llama3 and
    longrope are no extension of its. Pairs that a method stops stay so: a model is trained for that."""
    rope = c.long or c.rope
    return rope.method != "none" and not (rope.row.extends and not rope.row.rests and (rope.row.says_length or c.ours))


def beside(c: Checkpoint, o: Recipe, long: Rope | None) -> dict[str, Any]:
    """What is recorded beside a recipe, whose `Extension.long` this is: see `manifest.RopeRecord`."""
    found: dict[str, Any] = {"long": recipe_of(long)} if long else {"kept": True} if o.method == "none" and composes(c) else {}
    return found | beside_recipe(c, o)


def counted_from(c: Checkpoint, given: int | None = None) -> int:
    """L, from which s counts: what a base serves by a scaling that is kept, else its original context. `given`: what a user says."""
    if not composes(c):
        return given or (c.long or c.rope).original_context
    return c.context if given is None or c.rope.method == LINEAR else given


def _both_linear(base: Rope, method: str, context: int, s: float) -> Rope | None:
    """Position Interpolation of Position Interpolation is one with the product of both factors, which every reader has a word
    for; None where that is not what is wished, or gives no whole number of tokens to count from."""
    if method != "linear" or base.method != "linear" or base.inner is not None:
        return None
    factor = base.number("factor") * s
    original = context / factor
    return replace(base, original_context=int(original), params={"factor": factor}) if original == int(original) else None


def _check_family(c: Checkpoint, o: Recipe, context: int) -> None:
    """Raise Unsupported for a model in which nothing is to be extended, UsageError for what means nothing to its attention."""
    if c.farthest is not None and c.farthest < context:
        length = "context_length" if c.gguf else "max_position_embeddings"
        ways = [f"--context {c.farthest} is the most"] if c.farthest > c.rope.original_context else []
        ways += ["--method none converts the format"] if c.family.listed else []
        where = f"only in layers that see a window of {c.farthest:,} tokens" if c.farthest else "in no layer"
        raise Unsupported(
            f"{c.family.name} has RoPE {where}, and no positions in the others: there is nothing to extend",
            "; ".join([*ways, f"for longer texts {length} alone is to be raised, by hand"]),
        )
    if c.family.on_logits and (o.attention_factor is not None or METHODS[o.method].switches):
        raise UsageError(
            f"{c.family.name} turns a part of each head only: its temperature is mscale_all_dim's, on the logits",
            "leave out --attention-factor; lists come by --method explicit" if METHODS[o.method].lists else "leave out --attention-factor",
        )


def _takers(option: str) -> str:
    return ", ".join(name for name, row in METHODS.items() if option in row.takes)


def no_method(name: str, what: str = "--method") -> YarnConvertError:
    """For a name that extends nothing; one of an attention is known, and is no recipe."""
    return no_recipe(name) if name in ATTENTION_METHODS else no_such(what, name, EXTENDING)


def _check(o: Recipe) -> None:
    check_choices(o)
    if o.method not in EXTENDING:
        raise no_method(o.method)
    row = METHODS[o.method]
    for name in given(o):
        if name not in (*row.takes, *RAMP):
            raise UsageError(f"{spelled(Recipe, name)} means nothing to the method {o.method}", f"it belongs to {_takers(name)}")
    if missing := [name for name in row.needs if getattr(o, name) is None]:
        ways = f"{spelled(Recipe, missing[0])} 1000000" if missing[0] not in row.lists else "--recipe FILE gives it"
        raise UsageError(f"the method {o.method} needs {missing[0]}", ways)
    if (o.ramp != "index" or not o.truncate) and not row.ramped:
        raise UsageError(f"the method {o.method} has no ramp", f"--ramp and --no-truncate belong to {_takers('ramp')}")
    if o.ramp == "paper" and not o.truncate:
        raise UsageError("--no-truncate belongs to the ramp by pair index", "the paper's ramp has nothing to truncate")
    if o.short and not (row.extends and row.static):
        ways = "the extended table stands beside the base's, and is to be the same for every longer text"
        raise UsageError(f"--short is for a static method, not {o.method}: {ways}", "--method ntk-by-parts, or yarn")
    if o.method == "none" and (o.scale is not None or o.context is not None):
        raise UsageError("--method none does not extend", "leave out --scale and --context, or choose a method")


def _lengths(original: int, o: Recipe) -> tuple[int, float, list[str]]:
    """(L', s, notes): L' is a whole number of tokens and s exactly L'/L, as exllamav3 and older transformers compute it."""
    if o.scale is None and o.context is None:
        raise UsageError("nothing says how far to extend", "--scale 4, or --context 32768 (--method none converts the format only)")
    if o.scale is not None and not 0 < o.scale < 1e6:
        says = f"--scale must be a number above 1 and below 1,000,000, not {o.scale:g}"
        raise UsageError(says, "--scale 4 makes the context four times as long")
    context = o.context if o.context is not None else round(original * (o.scale or 1))
    if context >= MAX_CONTEXT:
        raise UsageError(f"{context:,} tokens is more than any reader counts to", f"at most {MAX_CONTEXT - 1:,}")
    s = context / original
    if o.scale is not None and o.context is not None and abs(s / o.scale - 1) > 1e-9:
        raise UsageError(
            f"--scale {o.scale:g} and --context {o.context:,} disagree for an original context of {original:,}", "give one of them"
        )
    if s <= 1:
        raise UsageError(
            f"{context:,} tokens is no extension of {original:,}",
            "choose a larger --scale or --context; --original-context sets the base's length",
        )
    rounded = o.scale is not None and s != o.scale
    return context, s, [f"the scale is {s!r}, so that the context is a whole number of tokens"] if rounded else []


# -- the base's own table for short texts -----------------------------------------------------------------------------

SWITCHING = next(name for name, row in METHODS.items() if row.switches)
ONE_TABLE = "leave out --short: the extended table then serves every length"


def _beyond(c: Checkpoint, asked: Recipe) -> Extension:
    """The extension for texts that are longer than what the base serves, and the base's own table for all others: two lists.

    Raises Unsupported where no two lists say that: readers have one multiplier for both, and nothing else that changes with the length.
    """
    e = extend(c, replace(asked, short=None))
    if c.long or not c.rope.static:
        why = f"{c.source.name} switches tables itself, by {c.rope.method}"
        raise Unsupported(f"{why}: of two lists none is left for the extension", ONE_TABLE)
    c = c.counting_from(asked.original_context).certain()
    base, own, long = c.rope, effect(c.rope), effect(e.rope)
    within = base.original_context if base.method == "none" else counted_from(c, asked.original_context) if composes(c) else c.context
    if e.context <= within:
        raise UsageError(f"the base itself serves {within:,} tokens, and no text of {e.context:,} is longer", "choose a longer --context")
    if base.resting != e.rope.resting:
        why = f"of {asked.method}'s pairs {e.rope.resting} stand still, of the base's {base.resting}"
        raise Unsupported(f"{why}, and the same pairs do so in both lists of every reader", ONE_TABLE)
    if (own.logits, long.logits) != (1, 1):
        why = f"the temperature of {c.family.name} is on the logits at every length, where no list of frequencies carries it"
        raise Unsupported(why, f"--method ntk-by-parts, which has none; or {ONE_TABLE}" if own.logits == 1 else ONE_TABLE)
    if base.method != "none" and not math.isclose(own.multiplier, long.multiplier, rel_tol=RTOL):
        why = f"the base multiplies cos and sin by {own.multiplier:.6g}, {asked.method} by {long.multiplier:.6g}"
        ways = [f"--method yarn --attention-factor {own.multiplier!r}", *(["--method ntk-by-parts"] if own.multiplier == 1 else [])]
        raise Unsupported(f"{why}, and both lists have one multiplier in every reader", " or ".join(reversed(ways)))
    if (floor := c.beside(base).floor) not in (0, within):
        why = f"the temperature of the position counts from {floor:,} tokens in {c.family.name}"
        raise Unsupported(f"{why}, and where lists are switched from {within:,}: readers have one key for both", ONE_TABLE)

    def divisors(found: Array) -> tuple[float, ...]:
        return tuple(undivided(factors_of(found, base.theta))[0].tolist())

    lists = dict(zip(row_of(SWITCHING).lists, (divisors(own.inv_freq), divisors(long.inv_freq)), strict=True))
    rope = Rope(SWITCHING, base.theta, base.rotary_dim, within, {**lists, "attention_factor": long.multiplier}, still=base.resting)
    both = f"texts of up to {within:,} tokens have the base's own table, longer ones that of {asked.method}: {SWITCHING}'s two lists"
    return Extension(rope, e.context, e.scale, (*e.notes, both, *_costs(own.multiplier, long.multiplier, within)), e.rope)


def _costs(own: float, both: float, within: int) -> list[str]:
    """What one multiplier for both lists costs where the base has another."""
    if math.isclose(own, both, rel_tol=RTOL):
        return []
    says = f"cos and sin are multiplied by {both:.6g} in both lists, for readers have one number: within {within:,} tokens the frequencies"
    less = f"--method ntk-by-parts, or --attention-factor {own:g}, leaves them as they are"
    return [f"{says} are the base's and its logits are not, which may cost as much there as one table for all lengths ({less})"]

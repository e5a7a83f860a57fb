"""Is what a file claims an extension of its base? θ, L, D and what lies below a composed method are the base's, never the file's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..checkpoint import Checkpoint
from ..checkpoint.manifest import MEANT, Manifest
from ..conversion.extension import asked_by, composes, counted_from, extend
from ..conversion.intention import Intention
from ..errors import UsageError, YarnConvertError
from ..formats.tensors import same_bytes
from ..options import Ramp, Recipe
from ..rope import METHODS, MSCALES, Rope, ntk_theta, same_at_all_lengths

ALIKE = 1e-6  # of two numbers one of which may have been a float32
NOT_ITS_BASE = "--base takes the model that it was extended from; --like compares with another output"
RAMPS: tuple[tuple[Ramp, bool], ...] = (("index", True), ("index", False), ("paper", True))
USUAL = tuple(  # what a table without a name is compared with: each method with its usual parameters and every ramp that it has, yarn first
    Recipe(method=method, ramp=ramp, truncate=truncate)
    for method, row in reversed(tuple(METHODS.items()))
    if row.extends and not row.baked_as and not row.needs
    for ramp, truncate in (RAMPS if row.ramped else RAMPS[:1])
)


@dataclass(frozen=True, slots=True)
class Lineage:
    """What is meant, with the base's word for it; `why` it is no extension of the base, or the `doubt` that it is one."""

    meant: Intention
    why: str = ""
    doubt: str = ""


def lineage(meant: Intention, base: Checkpoint, told: int | None = None) -> Lineage:
    """Whether `convert` makes of `base` what is meant: its own RoPE over its own context, or a method over it at this context.

    `told`: an original context that was given when the file was made; it may be less than what the base's files say, not more.
    """
    if told is not None and told > counted_from(base):
        return Lineage(meant, f"it counts from {told:,} tokens, the base from {counted_from(base):,}")
    if same_at_all_lengths(meant.rope, base.rope):
        return Lineage(replace(meant, rope=base.rope), _other_length(meant, base))
    base = base.counting_from(told).certain()
    made = next(_made(meant, base, told), None)
    if made and (not _counts(meant) or made.original_context == meant.rope.original_context):
        return Lineage(replace(meant, rope=made, origin=f"{meant.origin}, an extension of {base.source.name}"))
    if why := _difference(meant, base, told):
        return Lineage(meant, why)
    what = "frequency factors" if meant.rope.method == "explicit" else f"{meant.rope.method} scaling"
    return Lineage(meant, doubt=f"nothing but the file says what its {what} should be: {MEANT}")


def _other_length(meant: Intention, base: Checkpoint) -> str:
    """Why the base's own RoPE over another context than the base's is no extension; "" if it is the base's."""
    if meant.context == base.context:
        return ""
    nothing = "" if meant.context < base.context else f", and scales nothing{'' if base.rope.method == 'none' else ' more'}"
    return f"it serves {meant.context:,} tokens, the base {base.context:,}{nothing}"


def _made(meant: Intention, base: Checkpoint, told: int | None) -> Iterator[Rope]:
    """The recipes that `extend` makes of the base at this context and that give the very tables that are meant."""
    for asked in _ways(meant):
        try:
            rope = extend(base, replace(asked, context=meant.context, original_context=told)).rope
        except YarnConvertError:  # no extension, or not of this model
            continue
        if same_at_all_lengths(rope, meant.rope):
            yield rope


def _ways(meant: Intention) -> tuple[Recipe, ...]:
    """What may have been asked for that led to what is meant; of two lists also the one of them, beside the base's own."""
    if not meant.rope.row.switches:
        return _ways_of(meant.rope, meant.recorded)
    if meant.long:
        return tuple(replace(way, short="base") for way in _ways_of(meant.long, meant.recorded))
    return (*_ways_of(meant.rope, meant.recorded), *(replace(way, short="base") for way in USUAL))


def _ways_of(rope: Rope, recorded: bool) -> tuple[Recipe, ...]:
    """What may have been asked for that led to a recipe: its own method and parameters, or those of every method where it has no name.
    Lists count as asked for where they are on record: a file has them of whomever."""
    row = rope.row
    named = (row.extends and not row.baked_as) or (row.lists and recorded)
    own = (Recipe(method=rope.method, **asked_by(rope)),) if named else ()
    return (*own, *USUAL) if row.nameless else own


def _difference(meant: Intention, base: Checkpoint, told: int | None) -> str:
    """The first thing in which a recipe is none of the base's; "" where only its own word can be taken for it."""
    rope, own, n = meant.rope, base.rope, meant.context
    original = counted_from(base) if told is None else told
    if rope.rotary_dim != own.rotary_dim:
        return f"it rotates {rope.rotary_dim} dimensions of a head, the base {own.rotary_dim}"
    if rope.method != "explicit" and not math.isclose(rope.theta, own.theta, rel_tol=ALIKE):
        usual = f"; ntk-aware over {n:,} tokens would have {_ntk(base, n, original):,.6g}" if rope.method == "none" and n > original else ""
        usual += "; --method abf says that it is meant" if usual and rope.theta > own.theta else ""
        return f"its rope_theta is {rope.theta:,.6g}, the base's {own.theta:,.6g}{usual}"
    if rope.method == "none" or (composes(base) and rope.method != "explicit" and not _keeps(rope, own)):
        return f"the base's own {own.method} scaling is gone"
    says = rope.original_context if _counts(meant) else original
    if says != original:
        return f"it counts from {says:,} tokens, the base from {original:,} (--scale with --original-context says what else is meant)"
    if rope.row.spans and not math.isclose(rope.number("factor"), n / original, rel_tol=ALIKE):
        return f"its factor is {rope.number('factor'):g}, and its {n:,} tokens are {n / original:g} times the base's {original:,}"
    if rope.method == "dynamic-ntk":
        return "" if n == original or math.isclose(n, original * rope.number("factor"), rel_tol=ALIKE) else _other_length(meant, base)
    if any(rope.params.get(k) != own.params.get(k, rope.params.get(k)) for k in MSCALES):
        return "its mscale and mscale_all_dim are not the base's"
    if n <= original and n != base.context:
        return _other_length(meant, base)
    if rope.row.extends or meant.recorded:
        return f"{rope.method} over the base's RoPE gives other frequencies"
    return ""


def _counts(meant: Intention) -> bool:
    """Whether it is said from which length a recipe counts: not every method's files say so."""
    return meant.recorded or meant.rope.row.says_length


def _keeps(rope: Rope, own: Rope) -> bool:
    """Whether a composed recipe has the base's own below it; linear over linear is one."""
    both_linear = rope.method == own.method == "linear"
    return both_linear or rope.method == own.method or (rope.inner is not None and same_at_all_lengths(rope.inner, own))


def _ntk(base: Checkpoint, n: int, original: int) -> float:
    return ntk_theta(base.rope.theta, n / original, base.rope.rotary_dim) if base.rope.rotary_dim > 2 else base.rope.theta


# -- what is no base --------------------------------------------------------------------------------------------------


def check_base(c: Checkpoint, base: Checkpoint, mine: Manifest | None, theirs: Manifest | None) -> None:
    """Raise UsageError for a base that is the model itself, a copy of it, or an output as it is. `mine` and `theirs`: the manifests."""
    if c.source.path.samefile(base.source.path) or _copies(c, base, mine, theirs):
        raise UsageError(f"{base.source.name} is the model itself, so that nothing is compared", NOT_ITS_BASE)
    if base.ours and (base.long or base.rope).row.extends and not composes(base) and not (theirs and theirs.asked.method == "none"):
        raise UsageError(f"{base.source.name} is an output of yarn-convert itself, extended by {base.rope.method}", NOT_ITS_BASE)


def _copies(a: Checkpoint, b: Checkpoint, mine: Manifest | None, theirs: Manifest | None) -> bool:
    """Whether two models are the same to the byte: what they say of themselves, and every weight. `--method none` may leave a folder
    as it was, beside its manifest."""
    if (a.gguf is None) != (b.gguf is None) or (mine != theirs and (mine is None or mine.asked.method == "none")):
        return False
    if a.gguf and b.gguf:
        said = {k: f.raw for k, f in a.gguf.fields.items()} == {k: f.raw for k, f in b.gguf.fields.items()}
    else:
        said = a.written == b.written
    shapes = [{name: (t.dtype, t.shape) for name, t in x.tensors.items()} for x in (a, b)]
    if not said or (shapes[0] != shapes[1] and all(shapes)):
        return False
    if not all(shapes) or not (a.source.has_weights and b.source.has_weights):
        return True
    return all(same_bytes(t, b.tensors[name]) for name, t in a.tensors.items())

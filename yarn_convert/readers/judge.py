"""The one judge of a reading: does a reader compute what is meant, and if not, what of it is otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from ..errors import Unsupported
from ..rope import RTOL, Array, Rope, Table, largest_error, same, table
from .config import read_config
from .reading import Beside, Reading, Refuses
from .rows import HF_READERS

Kind = Literal["exact", "differs", "refuses", "unknown"]
VerdictLayer = Literal["", "table", "pairs", "multiplier", "logits", "layers", "context", "lengths"]
NOTHING = Beside()
OTHER_PAIRS = {"halves": "neighbours", "neighbours": "halves"}
BEFORE = {"refuses": "refuses the file: ", "unknown": "not known: "}


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """Whether a reader computes what is meant. `kind` "unknown": its reading of such a model was not studied.

    `layer` is of "differs" alone, the first that does: the table, which numbers of a head are `pairs`, the multiplier of cos and sin, what
    multiplies the logits, the other `layers`, the longest context, or the tables for other `lengths`. `text` says it in words, "" for
    "exact".
    """

    kind: Kind
    layer: VerdictLayer = ""
    text: str = ""
    reading: Reading | None = None  # None where there is none: "refuses", "unknown"
    error: float | None = None  # the largest relative error of a frequency; None without a reading, or of other dimensions
    multiplier_error: float | None = None  # relative

    @property
    def exact(self) -> bool:
        return self.kind == "exact"

    @property
    def why(self) -> str:
        """Why not, as a sentence that the reader's name begins; "" for "exact"."""
        return BEFORE.get(self.kind, "") + self.text


def judge(read: Callable[[], Reading], target: Table, context: int, beside: Beside | None = NOTHING, rtol: float | Array = RTOL) -> Verdict:
    """The verdict on what `read` gives, against `target` over `context` tokens, and `beside` besides; None: other layers that turn by a
    theta of their own may, unscaled. `rtol`: of the frequencies, of all or of each."""
    try:
        reading = read()
    except Refuses as e:
        return Verdict("refuses", text=str(e))
    except Unsupported as e:
        return Verdict("unknown", text=e.message)
    except (ArithmeticError, ValueError, TypeError) as e:  # a number in the file that has no logarithm, or is none
        return Verdict("refuses", text=f"cannot compute from this: {e}")
    alike = reading.inv_freq.shape == target.inv_freq.shape
    error = largest_error(reading.inv_freq, target.inv_freq) if alike else None
    layer, text = _difference(reading, target, context, beside, rtol)
    off = abs(reading.multiplier / target.multiplier - 1)
    return Verdict("differs" if layer else "exact", layer, text, reading, error, off)


def _difference(r: Reading, target: Table, context: int, beside: Beside | None, rtol: float | Array) -> tuple[VerdictLayer, str]:
    if text := _of_tables(Table(r.inv_freq, target.multiplier), target, "", rtol):
        return "table", text
    if r.beside.pairs:
        return "pairs", f"turns {r.beside.pairs} of a head, where the model turns {OTHER_PAIRS[r.beside.pairs]}"
    if text := _of_tables(Table(target.inv_freq, r.multiplier), target, ""):
        return "multiplier", text
    logits, others, floor, _ = beside or r.beside._replace(logits=1.0)
    if not math.isclose(r.beside.logits, logits, rel_tol=2 * RTOL):  # a square
        return "logits", f"multiplies the attention's logits by {r.beside.logits:.6g} instead of {logits:.6g}"
    theirs = r.beside.other_layers
    others = unscaled(theirs) if beside is None and theirs is not None else others
    if floor and not r.beside.floor:
        return "logits", f"has no temperature of the position, which is to grow after {floor:,} tokens"
    if r.beside.floor != floor:
        return "logits", f"lets the temperature of the position grow after {r.beside.floor:,} tokens instead of {floor:,}"
    if (theirs is None) != (others is None):
        return "layers", "turns the layers with a sliding window otherwise"
    if theirs is not None and others is not None and (text := _of_tables(theirs, others, " in the sliding-window layers")):
        return "layers", text
    if r.context is not None and r.context != context:
        return "context", f"takes {r.context:,} tokens for the longest context"
    return "", ""


def _of_tables(found: Table, wanted: Table, where: str, rtol: float | Array = RTOL) -> str:
    """What of a table is another than wanted, in words; "" if nothing is."""
    if found.inv_freq.shape != wanted.inv_freq.shape:
        return f"rotates {2 * len(found.inv_freq)} dimensions instead of {2 * len(wanted.inv_freq)}{where}"
    if not same(found._replace(multiplier=wanted.multiplier), wanted, rtol):
        return f"frequencies off by up to {largest_error(found.inv_freq, wanted.inv_freq):.2g}{where}"
    if not same(wanted._replace(multiplier=found.multiplier), wanted):
        return f"multiplier {found.multiplier:.6g} instead of {wanted.multiplier:.6g}{where}"
    return ""


def unscaled(others: Table) -> Table:
    """Plain RoPE of the θ that `others` would have if it were plain: its second frequency is θ^(−2/D)."""
    pairs = len(others.inv_freq)
    return Table(others.inv_freq[1] ** np.arange(pairs), 1.0) if pairs > 1 else Table(np.ones(pairs), 1.0)


def elsewhere(v: Verdict) -> Verdict:
    """`v`, of a reader that computes another table for texts of another length than the one that was asked of."""
    return replace(v, kind="differs", layer="lengths", text="another table for texts of another length")


def grown(name: str, v: Verdict, config: Mapping[str, Any], rope: Rope) -> Verdict:
    """`v`, of what the reader `name` makes of a config.json; of a recipe with other tables for other lengths, there too: of a dynamic one,
    which begins where its context ends, beyond it; of two lists on both sides of L, with a reader that is started for that."""
    original = rope.original_context
    lengths: tuple[tuple[int, int | None], ...] = ()
    if rope.method == "dynamic-ntk":
        lengths = ((4 * original, None),)
    elif rope.row.switches:
        lengths = ((original, original), (original + 2, None))  # two, for SGLang switches one token later
    try:
        read = [(read_config(name, config, n, served), table(rope, n)) for n, served in lengths if v.exact]
    except Refuses:
        return elsewhere(v)
    return v if all(same(Table(*found[:2]), wanted) for found, wanted in read) else elsewhere(v)


def judge_configs(config: Mapping[str, Any], rope: Rope, context: int, beside: Beside = NOTHING) -> dict[str, Verdict]:
    """Of each reader of config.json, whether it computes `rope` from it, for texts of every length."""
    target = table(rope)
    judged = {name: judge(partial(read_config, name, config), target, context, beside) for name in HF_READERS}
    return {name: grown(name, v, config, rope) for name, v in judged.items()}


def unknown(verdicts: Mapping[str, Verdict]) -> list[str]:
    """The readers of which nothing is known."""
    return [name for name, v in verdicts.items() if v.kind == "unknown"]

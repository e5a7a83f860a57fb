"""When two tables, or two recipes, are the same."""

from __future__ import annotations

import math

import numpy as np

from .parts import Array, Table, factor_of, geometric, turns
from .recipe import RTOL, UNIT, Effect, Rope, effect, table


def rounding_of(rope: Rope) -> Array:
    """How far a file's factors may be from `table` and still be its own, relative, float64[D/2]: RTOL, and for llama3 what the steps
    of llama.cpp's converter add, which takes them in float32 (conversion/llama.py, generate_extra_tensors): five from θ to turns,
    whose error the ramp's slope makes larger where a pair is slow, and six after that."""
    found = np.full(rope.rotary_dim // 2, RTOL)
    if rope.method != "llama3" or rope.inner is not None:
        return found
    omega, s = geometric(rope.theta, rope.rotary_dim), factor_of(rope)
    low, high, r = rope.number("low_freq_factor"), rope.number("high_freq_factor"), turns(omega, rope)
    slope = (1 - 1 / s) * omega / table(rope).inv_freq
    steps = (5 * r / (high - low) + 2) * slope + 4
    return found + np.where((r > low * (1 - RTOL)) & (r < high * (1 + RTOL)), steps * UNIT, 0)


def same(a: Table, b: Table, rtol: float | Array = RTOL) -> bool:
    """Whether two tables are made of the same numbers once these are stored as float32. `rtol`, of all frequencies or of each."""
    if a.inv_freq.shape != b.inv_freq.shape or not math.isclose(a.multiplier, b.multiplier, rel_tol=RTOL):
        return False
    with np.errstate(invalid="ignore"):
        return bool((abs(a.inv_freq - b.inv_freq) <= rtol * abs(b.inv_freq)).all())


def largest_error(found: Array, wanted: Array) -> float:
    """The largest relative error of a frequency; of a pair that is to stand still any turning is infinite."""
    with np.errstate(all="ignore"):
        return float(np.where(found == wanted, 0.0, np.abs(found / wanted - 1)).max())


def same_effect(a: Effect, b: Effect, rtol: float | Array = RTOL) -> bool:
    """`same`, and the logits are scaled alike."""
    return same(Table(*a[:2]), Table(*b[:2]), rtol) and math.isclose(a.logits, b.logits, rel_tol=2 * RTOL)


def same_at_all_lengths(a: Rope, b: Rope, rtol: float | Array = RTOL) -> bool:
    """`same_effect` of two recipes for texts of every length: those of longrope and of the dynamic methods are several tables."""
    lengths = {n for rope in (a, b) for n in (1, rope.original_context, rope.original_context + 1, 4 * rope.original_context)}
    return all(same_effect(effect(a, n), effect(b, n), rtol) for n in (None, *lengths))


def numbers(rope: Rope, length: int) -> tuple[float, ...]:
    """All that a text of `length` tokens is computed with, `effect`, to be compared to the bit."""
    e = effect(rope, length)
    return (*e.inv_freq.tolist(), e.multiplier, e.logits)


def steady(rope: Rope, a: int, b: int) -> bool:
    """Whether texts of `a` and of `b` tokens, and so of every length between, are computed with the same `numbers`."""
    return rope.static or a == b or numbers(rope, a) == numbers(rope, b)

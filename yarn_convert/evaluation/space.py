"""The recipes that a search goes through, as vectors. Pure.

A vector is 0 at the recipe that a space begins with, and a step of 1 in any of its numbers changes a perplexity by about a percent:
so an optimizer can begin with steps of 1 in all of them. A space of a method's own numbers holds recipes that files have words for.
The others hold tables: D/2 factors that divide the base's frequencies, which never fall from pair to pair and lie between 1 and the
largest factor that is searched (LongRoPE, arXiv 2402.13753, Section 3.2, without its second list for the first tokens of a text, which
no file can say). They are YaRN's ramp with ends between whole pairs, or any table by the values of a curve at some of the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..conversion.extension import Extension
from ..options import Recipe, SearchPart
from ..rope import METHODS, Array, Rope, table
from ..rope.parts import correction_range

STEPS = {"attention_factor": 0.03, "factor": 0.15, "curve": 0.1}  # those of 1: added; of the logarithm; of the logarithm
PAIRS = 16  # a step of 1 of a ramp's end is one pair of so many
KNOTS = 7
TEMPERATURES = (0.85, 0.15)  # the least multiplier of cos and sin, and how far above YaRN's own the largest is
FARTHEST = 4.0  # the largest factor, in those that just reach the context
DIGITS = 6  # of a factor, significant


@dataclass(frozen=True, slots=True)
class Space:
    """`low` and `high`, float64[n], bound the vectors that `make` makes candidates of; `names` of their numbers."""

    names: tuple[str, ...]
    low: Array
    high: Array
    make: Callable[[Array], Recipe]

    @property
    def start(self) -> Recipe:
        return self.make(np.zeros(len(self.names)))


@dataclass(frozen=True, slots=True)
class Start:
    """Where a space begins: a recipe as it is asked for, and what a conversion makes of it; `reach` is the factor that just reaches the
    context."""

    candidate: Recipe
    extension: Extension
    reach: float

    @property
    def rope(self) -> Rope:
        return self.extension.rope

    @property
    def pairs(self) -> int:
        return self.rope.rotary_dim // 2

    @property
    def base(self) -> Array:
        """The frequencies that a method is applied to, float64[D/2]."""
        return table(replace(self.rope, method="none", params={}, still=0)).inv_freq

    @property
    def multiplier(self) -> float:
        """Of cos and sin, by this recipe alone."""
        return table(self.rope).multiplier / table(replace(self.rope, method="none", params={})).multiplier

    @property
    def factors(self) -> Array:
        """What divides each of the base's frequencies, float64[D/2]."""
        return self.base / table(replace(self.rope, still=0)).inv_freq


def temperature_space(at: Start) -> Space:
    """YaRN by its multiplier of cos and sin."""
    step, (low, high) = STEPS["attention_factor"], _multipliers(at)

    def make(x: Array) -> Recipe:
        return replace(at.candidate, attention_factor=_multiplier(at, x[0]))

    return Space(("attention_factor",), np.array([low / step]), np.array([high / step]), make)


def factor_space(at: Start) -> Space:
    """The same by its multiplier and its factor, which is no less than what just reaches the context: a file says the context too."""
    one = temperature_space(at)
    low, high = _factors(at)

    def make(x: Array) -> Recipe:
        return replace(one.make(x), **_spanning(at, x[1]))

    return Space((*one.names, "factor"), np.append(one.low, low), np.append(one.high, high), make)


def betas_space(at: Start) -> Space:
    """The same, and by the whole pairs where the ramp begins and ends, which betas say."""
    two, ends = factor_space(at), correction_range(at.base, at.rope)

    def make(x: Array) -> Recipe:
        low, high = (round(end) for end in _ends(at, ends, x[2:]))
        recipe = two.make(x)
        if (low, high) == ends:
            return recipe
        return replace(recipe, beta_fast=_turns(at, low + 0.5), beta_slow=_turns(at, max(low + 1, high) - 0.5))

    low, high = _room(at, ends)
    return Space((*two.names, "ramp_begin", "ramp_end"), np.append(two.low, low), np.append(two.high, high), make)


def plain_space(at: Start) -> Space:
    """A method that has its factor only, by that."""
    low, high = _factors(at)
    return Space(("factor",), np.array([low]), np.array([high]), lambda x: replace(at.candidate, **_spanning(at, x[0])))


def ends_space(at: Start) -> Space:
    """YaRN's ramp as a table: by its multiplier, its factor, and ends that need not be whole pairs."""
    two, ends = factor_space(at), correction_range(at.base, at.rope)

    def make(x: Array) -> Recipe:
        low, high = _ends(at, ends, x[2:])
        keep = 1 - np.clip((np.arange(at.pairs) - low) / max(high - low, 0.001), 0.0, 1.0)
        s = at.rope.number("factor") * float(np.exp(STEPS["factor"] * x[1]))
        return _tabled(at, x[0], 1 / (keep + (1 - keep) / s))

    low, high = _room(at, ends)
    return Space((*two.names, "ramp_begin", "ramp_end"), np.append(two.low, low), np.append(two.high, high), make)


def pairs_space(at: Start) -> Space:
    """Any table: by its multiplier, and by how far the factors' logarithms are above those of the start at `KNOTS` of the pairs, with a
    monotone curve between."""
    one, begun = temperature_space(at), np.log(at.factors)
    knots = np.linspace(0, at.pairs - 1, min(KNOTS, at.pairs))
    most = FARTHEST * at.reach

    def make(x: Array) -> Recipe:
        return _tabled(at, x[0], np.exp(begun + STEPS["curve"] * curve(knots, x[1:], np.arange(at.pairs, dtype=np.float64))), most)

    bound = np.full(len(knots), np.log(most) / STEPS["curve"])
    names = (*one.names, *(f"factor_{k:.3g}" for k in knots))
    return Space(names, np.append(one.low, -bound), np.append(one.high, bound), make)


Begins = Literal["ramped", "plain", "any"]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a search: its space, and with which recipe that begins: the best with a ramp, the best of the methods that have neither
    a ramp nor a parameter but their factor, or the best of all. `share`: of trials and time, against the other parts'."""

    space: Callable[[Start], Space]
    share: int
    begins: Begins = "ramped"


PARTS: Mapping[SearchPart, Part] = {  # in the order in which they are searched
    "temperature": Part(temperature_space, 2),
    "factor": Part(factor_space, 3),
    "betas": Part(betas_space, 5),
    "method": Part(plain_space, 2, "plain"),
    "ends": Part(ends_space, 5),
    "pairs": Part(pairs_space, 9, "any"),
}
PLAIN = tuple(name for name, row in METHODS.items() if row.spans and not row.takes)


def _tabled(at: Start, x: float, factors: Array, most: float = np.inf) -> Recipe:
    """A table that serves the context; its factors rise, and lie between 1 and `most`."""
    rising = np.maximum.accumulate(np.clip(factors, 1.0, most))
    return Recipe(
        method="explicit", context=round(at.reach * at.rope.original_context), original_context=at.candidate.original_context,
        attention_factor=_multiplier(at, x), factors=tuple(float(f"{f:.{DIGITS}g}") for f in rising),
    )  # fmt: skip


def _multipliers(at: Start) -> tuple[float, float]:
    """The least and largest multiplier, from that of the start on."""
    least, above = TEMPERATURES
    most = max(1.0, 0.1 * float(np.log(FARTHEST * at.reach)) + 1) + above
    return min(0.0, least - at.multiplier), max(0.0, most - at.multiplier)


def _multiplier(at: Start, x: float) -> float:
    return round(at.multiplier + STEPS["attention_factor"] * float(x), 4)


def _factors(at: Start) -> tuple[float, float]:
    """The least and largest step of the factor's logarithm."""
    s, step = at.rope.number("factor"), STEPS["factor"]
    return min(0.0, float(np.log(at.reach / s)) / step), max(0.0, float(np.log(FARTHEST * at.reach / s)) / step)


def _spanning(at: Start, x: float) -> dict[str, Any]:
    """The context that a factor so many steps above the start's reaches, in whole tokens."""
    original = at.rope.original_context
    s = at.rope.number("factor") * float(np.exp(STEPS["factor"] * x))
    return {"context": max(round(at.reach * original), round(original * s)), "scale": None}


def _ends(at: Start, ends: tuple[float, float], x: Array) -> tuple[float, float]:
    """A ramp's begin and end in pairs, so many steps from those of the start; the end is not before the begin."""
    low, high = (end + step * max(1.0, at.pairs / PAIRS) for end, step in zip(ends, x, strict=True))
    return max(0.0, float(low)), max(0.0, float(low), float(high))


def _room(at: Start, ends: tuple[float, float]) -> tuple[Array, Array]:
    """How many steps a ramp's ends can move: from the first pair to the last, and the end beyond by a step."""
    step = max(1.0, at.pairs / PAIRS)
    low, high = np.zeros(2), np.array([at.pairs - 2.0, at.pairs - 1.0 + step])
    return np.minimum(0.0, (low - ends) / step), np.maximum(0.0, (high - ends) / step)


def _turns(at: Start, pair: float) -> float:
    """How often a (fractional) pair of the base goes round over L, in three digits; beyond the last pair the curve goes on straight."""
    log, i = np.log(at.base), int(np.clip(np.floor(pair), 0, at.pairs - 2))
    omega = np.exp(log[i] + (pair - i) * (log[i + 1] - log[i]))
    return float(f"{at.rope.original_context * omega / (2 * np.pi):.3g}")


def curve(x: Array, y: Array, at: Array) -> Array:
    """A smooth curve through the points (x, y) that rises or falls between two of them as they do: cubic pieces with the slopes of
    Fritsch and Butland (SIAM J. Sci. Stat. Comput. 5, 1984)."""
    width = np.diff(x)
    rise = np.diff(y) / width
    slope = np.concatenate([rise[:1], np.zeros(len(x) - 2), rise[-1:]])
    for k in range(1, len(x) - 1):
        before, after = rise[k - 1], rise[k]
        if before * after > 0:
            weights = np.array([2 * width[k] + width[k - 1], width[k] + 2 * width[k - 1]])
            slope[k] = before * after * weights.sum() / (weights @ (after, before))
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    t, h = (at - x[i]) / width[i], width[i]
    ends = y[i] * (1 + 2 * t) * (1 - t) ** 2 + y[i + 1] * t**2 * (3 - 2 * t)
    found = ends + h * t * (1 - t) * (slope[i] * (1 - t) - slope[i + 1] * t)
    return np.asarray(found, dtype=np.float64)

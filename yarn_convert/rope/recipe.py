"""A recipe, and the table that its methods make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ..errors import UsageError
from .methods import Method, row_of
from .parts import RANGE, Array, Param, Table, dynamic_factor, geometric, temperature

MAX_CONTEXT = 1 << 31  # tokens; positions are 32-bit integers in llama.cpp
MAX_ROTARY_DIM = 1 << 16
UNIT = 2.0**-24  # the most, relative, by which a number changes when it is stored as a float32
RTOL = 2.01 * UNIT  # a frequency is made of two stored numbers: θ and s, or θ and a factor


class Effect(NamedTuple):
    """All that a recipe changes in a forward pass: a Table, and what the attention's logits are multiplied by on top of it."""

    inv_freq: Array
    multiplier: float
    logits: float = 1.0


@dataclass(frozen=True, slots=True)
class Rope:
    """A recipe, not a spelling: the canonical form of every RoPE in this project.

    `params` holds the method's own parameters (see its docstring). `inner` is set when the method is applied to
    frequencies that are already scaled, as when a Llama 3.1 base is extended: the recipe then says both. `still`: how many pairs, the
    slowest, turn in no recipe of the model (p-RoPE, arXiv 2410.06205).
    """

    method: str
    theta: float
    rotary_dim: int
    original_context: int
    params: Mapping[str, Param] = field(default_factory=dict)
    inner: Rope | None = None
    still: int = 0

    @property
    def row(self) -> Method:
        return row_of(self.method)

    @property
    def static(self) -> bool:
        """Whether one table serves every length: of lists that switch, below another method, the long one does."""
        return self.row.static and (self.inner is None or self.inner.row.switches or self.inner.static)

    def number(self, name: str, default: float | None = None) -> float:
        """Parameter `name` as a float; UsageError if it is missing or not a finite number."""
        value = self.params.get(name, default)
        if value is None:
            raise UsageError(f"RoPE method {self.method!r} needs the parameter {name!r}", RANGE)
        if isinstance(value, str | tuple | list) or not math.isfinite(value):
            raise UsageError(f"RoPE parameter {name!r} must be a finite number, not {value!r}", RANGE)
        return float(value)

    def numbers(self, name: str) -> Array:
        """Parameter `name` as float64[D/2], all finite and above zero; UsageError if it is not."""
        value = np.asarray(self.params.get(name, ()), dtype=np.float64)
        if value.shape != (self.rotary_dim // 2,) or not (np.isfinite(value).all() and (value > 0).all()):
            raise UsageError(f"RoPE parameter {name!r} must be {self.rotary_dim // 2} finite numbers above zero", RANGE)
        return value

    @property
    def resting(self) -> int:
        """How many pairs, the slowest, turn in its table by nothing: the model's own, or those that its methods stop."""
        return max(self.still, self.row.rests, self.inner.resting if self.inner else 0)

    def with_params(self, **params: Param) -> Rope:
        return replace(self, params={**self.params, **params})


def table(rope: Rope, length: int | None = None) -> Table:
    """The frequencies and multiplier of `rope`, for a forward pass of `length` tokens.

    `length` serves the dynamic methods and longrope; the static ones ignore it, None means "as long as the recipe goes".
    Raises UsageError for parameters out of range and Unsupported for an unknown method.
    """
    found = _all_turning(rope, length)
    turning = np.arange(len(found.inv_freq)) < len(found.inv_freq) - rope.resting
    return found._replace(inv_freq=np.where(turning, found.inv_freq, 0.0)) if rope.resting else found


def _all_turning(rope: Rope, length: int | None) -> Table:
    """`table`, as though no pair stood still: what a method does to a pair does not hang on that."""
    check_rope(rope)
    whole = rope.inner is not None and rope.inner.row.switches  # what is composed with it takes its long list at every length
    base = _all_turning(rope.inner, None if whole else length) if rope.inner else Table(geometric(rope.theta, rope.rotary_dim), 1.0)
    try:
        with np.errstate(all="ignore"):
            inv_freq, multiplier = rope.row.function(base.inv_freq, rope, length)
            found = Table(inv_freq, multiplier * base.multiplier)
            stored = np.append(found.inv_freq, found.multiplier).astype(np.float32)  # as every runtime holds them
    except (ArithmeticError, ValueError):  # a logarithm or quotient that has no value
        stored = np.zeros(1, np.float32)
    if not ((stored > 0) & np.isfinite(stored)).all():
        raise UsageError(f"the parameters of {rope.method} give frequencies or a multiplier that no runtime can hold", RANGE)
    return found


def effect(rope: Rope, length: int | None = None) -> Effect:
    """`table`, and (0.1·mscale_all_dim·ln s + 1)² for the logits of a yarn recipe that has that parameter; else 1. A dynamic
    one has the s of `length`."""
    logits = rope.number("mscale_all_dim", 0.0)
    inner = effect(rope.inner, length).logits if rope.inner else 1.0
    s = bake(rope, length or rope.original_context).number("factor", 1.0) if logits else 1.0
    return Effect(*table(rope, length), inner * temperature(s, logits) ** 2)


def check_rope(rope: Rope) -> None:
    """Raise unless the method is known and θ, D and L are in range."""
    row_of(rope.method)
    if not (math.isfinite(rope.theta) and rope.theta > 1):
        raise UsageError(f"rope_theta must be a finite number above 1, not {rope.theta!r}", "10000 is usual")
    if rope.rotary_dim < 2 or rope.rotary_dim % 2:
        raise UsageError(f"the rotary dimension must be even and at least 2, not {rope.rotary_dim}", "it is a part of the head dimension")
    if not 0 <= rope.still < rope.rotary_dim // 2:
        raise UsageError(f"{rope.still} of {rope.rotary_dim // 2} pairs cannot stand still", "leave some that turn")
    if rope.original_context < 1:
        raise UsageError(f"the original context must be at least one token, not {rope.original_context}", "--original-context sets it")


def bake(rope: Rope, length: int) -> Rope:
    """The static recipe that a dynamic one equals at `length` tokens; a static recipe is returned as it is."""
    if not rope.row.baked_as:
        return rope
    f = rope.number("factor", 1.0) if rope.method == "dynamic-ntk" else 1.0
    s = f * dynamic_factor(rope, length) - (f - 1)
    return replace(rope, method=rope.row.baked_as, params={**rope.params, "factor": s})

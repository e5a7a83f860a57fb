"""RoPE recipes: every extension method as a pure function in float64.

A rotary embedding turns pair i of a head by the angle m·ω_i at position m, with ω_i = θ^(−2i/D) for i = 0 … D/2−1, and
multiplies cos and sin by one number. So all that a method can change is a *table*: D/2 inverse frequencies and a
multiplier. `table(rope, length)` computes it; nothing else in the project computes frequencies. What else is true of a method is
its row in `METHODS`, and stands nowhere else.

Symbols: θ rotary base, D rotary dimensions per head, L original context, L' extended context, s = L'/L,
λ_i = 2π/ω_i wavelength in tokens, r_i = L/λ_i turns over the original context.
Source, unless a docstring names another: YaRN, arXiv 2309.00071.
"""

from .comparing import largest_error, numbers, rounding_of, same, same_at_all_lengths, same_effect, steady
from .distances import ATTENTION_METHODS, Distances, distances_of, no_recipe
from .factors import STILL, factors_of, undivided
from .methods import METHODS, MSCALES, row_of
from .parts import Array, Param, Table, geometric, ntk_theta, temperature
from .recipe import MAX_CONTEXT, MAX_ROTARY_DIM, RTOL, UNIT, Effect, Rope, bake, effect, table
from .recording import recipe_of

__all__ = [
    "ATTENTION_METHODS",
    "MAX_CONTEXT",
    "MAX_ROTARY_DIM",
    "METHODS",
    "MSCALES",
    "RTOL",
    "STILL",
    "UNIT",
    "Array",
    "Distances",
    "Effect",
    "Param",
    "Rope",
    "Table",
    "bake",
    "distances_of",
    "effect",
    "factors_of",
    "geometric",
    "largest_error",
    "no_recipe",
    "ntk_theta",
    "numbers",
    "recipe_of",
    "rounding_of",
    "row_of",
    "same",
    "same_at_all_lengths",
    "same_effect",
    "steady",
    "table",
    "temperature",
    "undivided",
]

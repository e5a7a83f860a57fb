"""What methods are made of: plain frequencies, factors, turns, the ramp between pairs that are kept and interpolated, the temperature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import Unsupported, UsageError

Array = NDArray[np.float64]
Param = float | bool | str | tuple[float, ...]
RANGE = "choose parameters of a usual size: see 'yarn-convert methods'"


class Table(NamedTuple):
    """What a reader ends up with: `inv_freq`, float64[D/2] in radians per token, and the multiplier of cos and sin."""

    inv_freq: Array
    multiplier: float


class Numbers(Protocol):
    """What is asked here, and by the methods, of a recipe, which is a `recipe.Rope`."""

    @property
    def theta(self) -> float: ...
    @property
    def rotary_dim(self) -> int: ...
    @property
    def original_context(self) -> int: ...
    @property
    def params(self) -> Mapping[str, Param]: ...
    @property
    def inner(self) -> Numbers | None: ...
    @property
    def still(self) -> int: ...
    @property
    def resting(self) -> int: ...
    def number(self, name: str, default: float | None = None) -> float: ...
    def numbers(self, name: str) -> Array: ...
    def with_params(self, **params: Param) -> Numbers: ...


def geometric(theta: float, rotary_dim: int) -> Array:
    """Plain RoPE, ω_i = θ^(−2i/D), float64[D/2] (RoFormer, arXiv 2104.09864, Eq. 15; YaRN Eq. 4)."""
    return np.power(float(theta), -np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)


def temperature(factor: float, weight: float = 1.0) -> float:
    """YaRN's √(1/t) = 0.1·ln s + 1, the multiplier of cos and sin (Eq. 22); 1 for s ≤ 1.

    `weight` scales the logarithm: configs call it mscale (transformers, `modeling_rope_utils.get_mscale`).
    """
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def factor_of(rope: Numbers) -> float:
    s = rope.number("factor")
    if s <= 0:
        raise UsageError(f"the scale must be above 0, not {s:g}", RANGE)
    return s


def dynamic_factor(rope: Numbers, length: int | None) -> float:
    """s = max(1, l'/L)."""
    return max(1.0, (length or rope.original_context) / rope.original_context)


def raised(rope: Numbers) -> float:
    """θ' of abf, which is above the base's own."""
    theta = rope.number("theta")
    if not rope.theta < theta <= np.finfo(np.float32).max:
        raise UsageError(f"rope_theta is raised from the base's {rope.theta:,g}, and {theta:,g} is not above it", "--theta 1000000")
    return theta


def ntk_shrink(s: float, rotary_dim: int) -> Array:
    if rotary_dim <= 2:
        raise UsageError("ntk-aware needs more than 2 rotary dimensions: its exponent is D/(D−2)", "--method linear")
    return np.power(s, -np.arange(0, rotary_dim, 2, dtype=np.float64) / (rotary_dim - 2))


def ntk_theta(theta: float, s: float, rotary_dim: int) -> float:
    """The base of ntk-aware, b' = b·s^(D/(D−2)) (Eq. 16)."""
    return float(theta * s ** (rotary_dim / (rotary_dim - 2)))


def turns(omega: Array, rope: Numbers) -> Array:
    """r_i = L/λ_i: how often each pair turns over the original context (Eq. 17)."""
    return rope.original_context * omega / (2 * math.pi)


def betas(rope: Numbers) -> tuple[float, float]:
    """(beta_fast, beta_slow), checked."""
    fast, slow = rope.number("beta_fast", 32.0), rope.number("beta_slow", 1.0)
    if not fast >= slow > 0:
        raise UsageError(f"the ramp needs beta_fast >= beta_slow > 0, not {fast:g} and {slow:g}", "32 and 1 are usual")
    return fast, slow


def ramp(omega: Array, rope: Numbers) -> Array:
    """γ_i in [0, 1], float64[D/2]: 1 keeps a pair, 0 interpolates it (Eq. 18, or its form by pair index).

    Two betas that are equal, as Kimi K2 has them, still leave a ramp from the pair before their index to the one after; where
    nothing is rounded it is a step (every runtime has the 0.001). Eq. 18 has no value for them.
    """
    kind = rope.params.get("ramp", "index")
    if kind == "paper":
        fast, slow = betas(rope)
        if fast == slow:
            raise UsageError(f"the paper's ramp needs beta_fast > beta_slow, not {fast:g} twice", "--ramp index")
        return np.clip((turns(omega, rope) - slow) / (fast - slow), 0.0, 1.0)
    if kind != "index":
        raise UsageError(f'the ramp must be "index" or "paper", not {kind!r}', "--ramp index")
    low, high = correction_range(omega, rope)
    position = (np.arange(len(omega)) - low) / max(high - low, 0.001)
    return np.asarray(1 - np.clip(position, 0.0, 1.0), dtype=np.float64)


def correction_range(omega: Array, rope: Numbers) -> tuple[float, float]:
    """The ramp's two ends in the pair index, clamped to [0, D−1] (the authors' `find_correction_range`).

    Raises UsageError when the context is so short that even the fastest pair turns less than beta_slow times: there the
    runtimes disagree on what the ramp is.
    """
    fast, slow = betas(rope)
    low, high = (correction_index(omega, rope, beta) for beta in (fast, slow))
    if rope.params.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    if high < low:
        raise UsageError(f"no pair turns {slow:g} times over {rope.original_context} tokens", "lower it with --beta-slow")
    return float(low), float(high)


def correction_index(omega: Array, rope: Numbers, beta: float) -> float:
    """The (fractional) pair that turns `beta` times over L: D·ln(L/(2πβ)) / (2·ln θ) (`find_correction_dim`).

    Over frequencies that are already scaled the same pair is found by interpolating ln ω, of which the formula is the
    special case; that needs strictly falling frequencies, else Unsupported. A pair that stands still has none.
    """
    if rope.inner is None:
        return rope.rotary_dim * math.log(rope.original_context / (beta * 2 * math.pi)) / (2 * math.log(rope.theta))
    omega = omega[: len(omega) - rope.resting]
    if len(omega) < 2 or not (np.diff(omega) < 0).all():
        raise Unsupported("the base's frequencies do not fall from pair to pair: the ramp has no place", "--ramp paper")
    target, log_omega = math.log(2 * math.pi * beta / rope.original_context), np.log(omega)
    i = int(np.clip(np.searchsorted(-log_omega, -target) - 1, 0, len(omega) - 2))
    return float(i + (log_omega[i] - target) / (log_omega[i] - log_omega[i + 1]))

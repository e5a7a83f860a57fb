"""The methods, as the runtimes compute them: (rope, length) -> (frequencies, multiplier)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import Unsupported
from ..rope import Array, geometric, ntk_theta, temperature, undivided
from .reading import NOT_MODELLED
from .rows import MSCALES
from .seen import Seen, context_of, refuse


def default(rope: Seen, length: int) -> tuple[Array, float]:
    return geometric(rope.theta, rope.dim), 1.0


def linear(rope: Seen, length: int) -> tuple[Array, float]:
    factor = rope.number("factor")
    if not rope.row.integer_linear and not isinstance(factor, float):
        refuse(rope.row, f"linear needs a factor written as a float, {factor}.0 and not {factor}")
    return geometric(rope.theta, rope.dim) / factor, 1.0


def proportional(rope: Seen, length: int) -> tuple[Array, float]:
    """The fastest pairs of the whole head's turn, the others stand still (transformers 5.23, `_compute_proportional_rope_parameters`)."""
    turning = int(rope.dict.get("partial_rotary_factor", 1.0) * rope.dim // 2)
    omega = geometric(rope.theta, rope.dim) / rope.dict.get("factor", 1.0)
    return np.where(np.arange(len(omega)) < turning, omega, 0.0), 1.0


def dynamic(rope: Seen, length: int) -> tuple[Array, float]:
    """NTK-aware with s = f·l'/L − (f − 1), L being max_position_embeddings. l' is the text ("length"), L·f whatever
    the text ("static"), or L itself unless `max_trained_positions` says otherwise ("trained": no scaling at all)."""
    f, at = rope.number("factor"), rope.max_position
    if rope.facts.alpha and rope.dict.get("alpha"):
        return geometric(ntk_theta(rope.theta, rope.dict["alpha"], rope.dim), rope.dim), 1.0
    if "alpha" in rope.dict and rope.row.dynamic != "length":
        raise Unsupported("dynamic scaling with alpha is not modelled", NOT_MODELLED)
    trained = rope.dict.get("max_trained_positions", at) if rope.row.dynamic == "trained" else at
    reached: float = {"length": max(length, at), "trained": at, "static": at * f}[rope.row.dynamic]
    s = f * reached / trained - (f - 1)
    return geometric(ntk_theta(rope.theta, s, rope.dim), rope.dim), 1.0


def yarn(rope: Seen, length: int) -> tuple[Array, float]:
    factor, row = yarn_factor(rope), rope.row
    times = row.yarn_times if rope.dict.get("mrope_section") else 1
    low, high = (correction(rope.dim, rope.original * times, turns, rope.theta) for turns in reader_betas(rope))
    if not row.rounds_ramp and not 0 < low < high < rope.dim // 2 - 1:
        refuse(row, f"a ramp from {low:.2f} to {high:.2f} that does not lie within the pairs")
    if rounds_ends(rope):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    high = high + 0.001 if low == high else high
    keep = 1 - np.clip((np.arange(rope.dim // 2) - low) / (high - low), 0.0, 1.0)
    omega = geometric(rope.theta, rope.dim)
    return omega / factor * (1 - keep) + omega * keep, yarn_multiplier(rope, factor)


def yarn_factor(rope: Seen) -> Any:
    rule, given = rope.row.yarn_factor, rope.dict.get("original_max_position_embeddings") is not None
    if (rule == "lengths" and given) or (rule == "null-lengths" and rope.dict.get("factor", 0) is None):
        return rope.max_position / rope.original
    return rope.number("factor")


def rounds_ends(rope: Seen) -> bool:
    """Whether the ramp's ends are rounded outward to whole pairs."""
    honoured = rope.row.truncate and not by_layer(rope)
    return rope.row.rounds_ramp and (rope.dict.get("truncate", True) or not honoured)


def by_layer(rope: Seen) -> bool:
    """Whether the dict is one of several by layer: `_compute_yarn_parameters` looks for truncate beside them, not in them."""
    return bool(rope.facts.layers) and "rope_parameters" in rope.row.dicts and not rope.row.layers_truncate


def reader_betas(rope: Seen) -> tuple[Any, Any]:
    """(beta_fast, beta_slow)."""
    return rope.row.betas or (beta(rope, "beta_fast", 32), beta(rope, "beta_slow", 1))


def beta(rope: Seen, key: str, usual: float) -> Any:
    value = rope.dict.get(key, usual)
    if not value and not rope.row.null_means_default:
        refuse(rope.row, f"{key} {value!r}")
    return value or usual


def correction(dim: int, original: float, turns: float, theta: float) -> float:
    return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))


def yarn_multiplier(rope: Seen, factor: float) -> Any:
    """The first rule that applies, else 0.1·ln s + 1: "attention_factor" if given; the "ratio" of mscale and
    mscale_all_dim if both are given and not 0, or given at all ("-of-any"), or assumed as 1 and 0 ("-1-0"); 1 where a temperature
    of the position is given; "mscale" itself."""
    rules = rope.row.temperature
    given: Any = rope.dict.get("mscale")
    all_dim: Any = rope.dict.get("mscale_all_dim")
    if "attention_factor" in rules and rope.dict.get("attention_factor") is not None:
        return float(rope.dict["attention_factor"])
    if "one-by-position" in rules and rope.dict.get("llama_4_scaling_beta"):
        return 1.0
    null = [key for key in ("mscale", "mscale_all_dim") if key in rope.dict and rope.dict[key] is None]
    if "mscale" in rules and null and (given or "mscale" in null):
        refuse(rope.row, f"compares a null {null[0]} with 0")
    if "ratio-1-0" in rules:
        weights: list[Any] = [rope.dict.get("mscale", 1), rope.dict.get("mscale_all_dim", 0)]
        if rope.row.null_means_default:
            weights = [usual if w is None else w for w, usual in zip(weights, (1, 0), strict=True)]
        if None in weights:
            refuse(rope.row, "multiplies by a null mscale or mscale_all_dim")
        return temperature(factor, weights[0]) / temperature(factor, weights[1])
    both = given is not None and all_dim is not None
    ratio = both and ("ratio-of-any" in rules or ("ratio" in rules and given and all_dim))
    if "mscale" in rules and given and not all_dim:
        return float(given)
    multiplier = temperature(factor, given) / temperature(factor, all_dim) if ratio else temperature(factor)
    return multiplier * (rope.dict.get("attn_factor", 1) if "times-attn_factor" in rules else 1)


def llama3(rope: Seen, length: int) -> tuple[Array, float]:
    s, low, high = (rope.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    omega = geometric(rope.theta, rope.dim)
    turns = rope.original * omega / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return omega * keep + omega / s * (1 - keep), 1.0


def longrope(rope: Seen, length: int) -> tuple[Array, float]:
    """ω_i divided by a list. The long one serves texts above the original context ("length"), or positions above it
    ("position"), or models whose context ("context") or max_position_embeddings is above it, or every text ("always").

    The multiplier is `attention_factor`; or the list's own `short_mscale` or `long_mscale` ("mscale"; "mscales": if
    both are given, else `attention_factor`); else, and for "lengths" in any case, √(1 + ln s/ln L). "stretches" is for
    multiplying the frequencies, not cos and sin, by those two if both are given.
    """
    row, original = rope.row, rope.original
    reached = {"length": length, "position": length - 1, "max_position": rope.max_position, "always": math.inf}
    reached["context"] = rope.served or context_of(rope) or math.inf
    name = "long" if reached[row.longrope_list] > original else "short"
    factors = np.asarray(rope.dict.get(f"{name}_factor") or [], dtype=np.float64)
    if factors.shape != (rope.dim // 2,):
        refuse(row, f"{name}_factor must be {rope.dim // 2} numbers")
    factors = np.where(np.arange(len(factors)) < len(factors) - undivided(factors)[1], factors, np.inf)
    pair = all(rope.dict.get(key) is not None for key in MSCALES)
    if row.longrope_multiplier == "stretches" and rope.dict.keys() >= MSCALES:
        return geometric(rope.theta, rope.dim) / factors * rope.number(f"{name}_mscale"), 1.0
    mscales = f"{name}_mscale" if pair else "attention_factor"
    keys = {"attention_factor": "attention_factor", "mscale": f"{name}_mscale", "mscales": mscales}
    multiplier = rope.dict.get(keys.get(row.longrope_multiplier, ""))
    if multiplier is None:
        s = longrope_factor(rope)
        multiplier = math.sqrt(1 + math.log(s) / math.log(original)) if s > 1 else 1.0
    return geometric(rope.theta, rope.dim) / factors, float(multiplier)


def longrope_factor(rope: Seen) -> Any:
    """s by the first rule that applies: "factor" if given, or max_position/L, or that only if L is at the top level."""
    for rule in rope.row.longrope_factor:
        if rule == "lengths" or (rule == "lengths-of-top" and rope.config.get("original_max_position_embeddings")):
            return rope.max_position / rope.original
        if rule == "factor" and rope.dict.get("factor") is not None:
            return rope.dict["factor"]
    return rope.number("factor")


FUNCTIONS = {"default": default, "linear": linear, "dynamic": dynamic, "yarn": yarn, "llama3": llama3}
FUNCTIONS |= {"longrope": longrope, "proportional": proportional}

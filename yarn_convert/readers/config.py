"""Reads a config.json as the runtimes do: what they share is written once, what sets them apart is in `rows`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ..errors import Unsupported
from ..rope import Array, geometric, temperature
from .reading import NOT_MODELLED, Reading, Refuses
from .rows import HF_LENGTHS, HF_READERS, MSCALES, SCALED, TYPE_LAST, Reader

Config = Mapping[str, Any]


def read_config(reader: str, config: Config, length: int | None = None) -> Reading:
    """What `reader`, a key of HF_READERS, computes for a text of `length` tokens; None: as long as its context.

    Without a context of its own the reader is taken at max_position_embeddings. Raises Refuses if it would fail, and
    Unsupported for what this module does not know.
    """
    row = HF_READERS[reader]
    model_type = config.get("model_type", "llama")
    if model_type not in HF_LENGTHS:
        raise Unsupported(f"what {row.name} makes of model_type {model_type!r} is not known here", NOT_MODELLED)
    rope = Seen.of(row, config, model_type)
    context = context_of(rope)
    inv_freq, multiplier = FUNCTIONS[rope.method](rope, length or context or rope.max_position or 1)
    return Reading(inv_freq, multiplier, context, ignored_by(rope, multiplier))


@dataclass(frozen=True, slots=True)
class Seen:
    """A config as one reader sees it."""

    row: Reader
    config: Config
    followed: str  # the rope dict it follows
    dict: Config
    method: str
    theta: float
    dim: int
    max_position: int  # 0 if unknown; the reader then has no use for it
    original: float  # likewise

    @staticmethod
    def of(row: Reader, config: Config, model_type: str) -> Seen:
        followed = next((name for name in row.dicts if config.get(name)), "")
        chosen = config.get(followed) or {}
        method = method_of(row, chosen, model_type, bool(followed))
        max_position = config.get("max_position_embeddings") or row.max_position.get(model_type, 0)
        if not max_position and method in row.max_position_required:
            refuse(row, f"{method} without max_position_embeddings")

        def find(key: str, places: Sequence[str | float]) -> Any:
            """The value of `key` at the first of these places that has one."""
            v5 = config.get("rope_parameters") or {}
            homes: dict[Any, Config] = {"dict": chosen, "top": config, "rope_parameters": v5}
            for place in places:
                assumed = max_position if place == "max_position" else place
                found = homes[place].get(key) if place in homes else assumed
                if found is not None:
                    return found
            return None

        theta = float(find("rope_theta", row.theta))
        original = find("original_max_position_embeddings", row.original.get(method, ()))
        if method in SCALED and original is None:
            refuse(row, f"{method} without original_max_position_embeddings")
        dim = rotary_dim(row, config, method, find("partial_rotary_factor", row.partial[1]), model_type)
        return Seen(row, config, followed, chosen, method, theta, dim, max_position, original or 0.0)

    def number(self, key: str) -> Any:
        """A number that the reader cannot do without, as it is written: an integer stays one."""
        value = self.dict.get(key, self.row.defaults.get(self.method, {}).get(key))
        if value is None or isinstance(value, str | list | dict):
            refuse(self.row, f"{self.method} needs a number for {key}, not {value!r}")
        return value


def refuse(row: Reader, reason: str) -> NoReturn:
    raise Refuses(f"{row.name} {row.version}: {reason}")


def method_of(row: Reader, rope: Config, model_type: str, given: bool) -> str:
    first, second = row.type_keys.get(model_type, TYPE_LAST)
    spelled = rope.get(first) or rope.get(second)
    if row.type_required and given and not spelled:
        refuse(row, "a rope_scaling without a type")
    if row.types_must_agree and rope.get(second) not in (None, spelled) and rope.get(second) != "su":
        refuse(row, f"rope_type {rope[first]!r} and type {rope[second]!r} conflict")
    spelled = spelled or "default"
    if spelled not in row.types:
        refuse(row, f"unknown rope type {spelled!r}")
    return row.types[spelled]


def rotary_dim(row: Reader, config: Config, method: str, partial: float | None, model_type: str) -> int:
    head_dim = config.get("head_dim")
    if head_dim is None:
        if model_type == "mistral" and method in row.head_dim_required:
            refuse(row, f"{method} for Mistral needs head_dim in config.json: the config class leaves it None")
        head_dim = config["hidden_size"] // config["num_attention_heads"]
    dim, attitude = int(head_dim * (1.0 if partial is None else partial)), row.partial[0]
    if attitude == "ignores" or (attitude == "refuses-scaled" and method == "default"):
        return int(head_dim)
    if attitude != "rotates" and dim != head_dim:
        refuse(row, f"partial_rotary_factor {partial}: the attention of this model rotates whole heads")
    return dim


def context_of(rope: Seen) -> int | None:
    """The longest text that the reader takes when the user asks for no length."""
    row, config = rope.row, rope.config
    found = (key if isinstance(key, int) else config.get(key) for key in row.context_keys)
    given = [value for value in found if value is not None] or [rope.max_position]
    factor = rope.dict.get("factor") or 1.0
    if row.context_rule == "none":
        return None
    if row.context_rule == "vllm":
        if rope.method == "longrope" and config.get("original_max_position_embeddings"):
            return int(config["original_max_position_embeddings"])
        longest = config.get("model_max_length") or min(given)
        return int(longest * (1.0 if rope.method in SCALED else factor))
    if row.context_rule == "sglang":
        scaled = rope.method in SCALED or "original_max_position_embeddings" in rope.dict
        return int(given[0] * (1.0 if scaled else factor))
    return int(given[0])


# -- the methods, as the runtimes compute them: (rope, length) -> (frequencies, multiplier) ---------------------------


def default(rope: Seen, length: int) -> tuple[Array, float]:
    return geometric(rope.theta, rope.dim), 1.0


def linear(rope: Seen, length: int) -> tuple[Array, float]:
    factor = rope.number("factor")
    if not rope.row.integer_linear and not isinstance(factor, float):
        refuse(rope.row, f"linear needs a factor written as a float, {factor}.0 and not {factor}")
    return geometric(rope.theta, rope.dim) / factor, 1.0


def dynamic(rope: Seen, length: int) -> tuple[Array, float]:
    """NTK-aware with s = f·l'/L − (f − 1), L being max_position_embeddings. l' is the text ("length"), L·f whatever
    the text ("static"), or L itself unless `max_trained_positions` says otherwise ("trained": no scaling at all)."""
    f, at = rope.number("factor"), rope.max_position
    if "alpha" in rope.dict and rope.row.dynamic != "length":
        raise Unsupported("dynamic scaling with alpha is not modelled", NOT_MODELLED)
    trained = rope.dict.get("max_trained_positions", at) if rope.row.dynamic == "trained" else at
    reached: float = {"length": max(length, at), "trained": at, "static": at * f}[rope.row.dynamic]
    s = f * reached / trained - (f - 1)
    return geometric(rope.theta * s ** (rope.dim / (rope.dim - 2)), rope.dim), 1.0


def yarn(rope: Seen, length: int) -> tuple[Array, float]:
    factor, row = yarn_factor(rope), rope.row
    beta_fast, beta_slow = (beta(rope, key, usual) for key, usual in (("beta_fast", 32), ("beta_slow", 1)))
    low, high = (correction(rope.dim, rope.original, turns, rope.theta) for turns in (beta_fast, beta_slow))
    if rope.dict.get("truncate", True) or not row.truncate:
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


def beta(rope: Seen, key: str, usual: float) -> Any:
    value = rope.dict.get(key, usual)
    if not value and not rope.row.null_means_default:
        refuse(rope.row, f"{key} {value!r}")
    return value or usual


def correction(dim: int, original: float, turns: float, theta: float) -> float:
    return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))


def yarn_multiplier(rope: Seen, factor: float) -> Any:
    """The first rule that applies, else 0.1·ln s + 1: "attention_factor" if given; the "ratio" of mscale and
    mscale_all_dim if both are given and not 0, or given at all ("-of-any"), or assumed as 1 and 0 ("-1-0")."""
    rules = rope.row.temperature
    given: Any = rope.dict.get("mscale")
    all_dim: Any = rope.dict.get("mscale_all_dim")
    if "attention_factor" in rules and rope.dict.get("attention_factor") is not None:
        return float(rope.dict["attention_factor"])
    if "ratio-1-0" in rules:
        weights: list[Any] = [rope.dict.get("mscale", 1), rope.dict.get("mscale_all_dim", 0)]
        if None in weights:
            refuse(rope.row, "multiplies by a null mscale or mscale_all_dim")
        return temperature(factor, weights[0]) / temperature(factor, weights[1])
    both = given is not None and all_dim is not None
    ratio = both and ("ratio-of-any" in rules or ("ratio" in rules and given and all_dim))
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

    The multiplier is `attention_factor`; or the list's own `short_mscale` or `long_mscale`; else, and for "lengths" in
    any case, √(1 + ln s/ln L).
    """
    row, original = rope.row, rope.original
    reached = {"length": length, "position": length - 1, "max_position": rope.max_position, "always": math.inf}
    reached["context"] = context_of(rope) or math.inf
    name = "long" if reached[row.longrope_list] > original else "short"
    factors = np.asarray(rope.dict.get(f"{name}_factor") or [], dtype=np.float64)
    if factors.shape != (rope.dim // 2,):
        refuse(row, f"{name}_factor must be {rope.dim // 2} numbers")
    key = {"attention_factor": "attention_factor", "mscale": f"{name}_mscale"}.get(row.longrope_multiplier, "")
    multiplier = rope.dict.get(key)
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
FUNCTIONS |= {"longrope": longrope}


def ignored_by(rope: Seen, multiplier: float) -> tuple[str, ...]:
    """What the reader overlooks: keys of the dict it follows, a theta that it does not take, a dict that differs."""
    values, method = rope.dict, rope.method
    same: dict[str, Any] = {
        "truncate": True,
        "short_factor": values.get("long_factor"),
        "factor": yarn_factor(rope) if method == "yarn" else None,
        "original_max_position_embeddings": rope.original,
        **dict.fromkeys(MSCALES | {"attention_factor"}, multiplier),
    }
    if method == "yarn" and values.get("mscale") and values.get("mscale_all_dim"):
        ratio = temperature(same["factor"], values["mscale"]) / temperature(same["factor"], values["mscale_all_dim"])
        same |= {key: values[key] for key in ("mscale", "mscale_all_dim") if close(ratio, multiplier)}
    if values.get("attention_factor") is not None and same["short_factor"] == values.get("short_factor"):
        same["original_max_position_embeddings"] = values.get("original_max_position_embeddings")
    keys = sorted(rope.row.ignores.get(method, frozenset()) & values.keys())
    found = [f"{rope.followed}.{k}" for k in keys if values[k] is not None and not close(values[k], same.get(k))]
    if "rope_theta" in values and not close(values["rope_theta"], rope.theta):
        found.append(f"{rope.followed}.rope_theta")
    others = [name for name in ("rope_scaling", "rope_parameters") if name != rope.followed]
    mine = {k: v for k, v in values.items() if k != "type"} | {"rope_theta": rope.theta, "rope_type": method}
    for name in others:
        other = {k: v for k, v in (rope.config.get(name) or {}).items() if k != "type"}
        if any(mine.get(k) != v for k, v in other.items()):
            found.append(name)
    return tuple(found)


def close(a: Any, b: Any) -> bool:
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return math.isclose(a, b, rel_tol=1e-6) if numbers else a == b

"""Reads a config.json as the runtimes do: what they share is written once, what sets them apart is in `rows`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ..errors import Unsupported
from ..families import MODEL_TYPES, ModelType
from ..families.schema import ROPE_OBJECTS
from ..rope import Array, Table, geometric, temperature
from .others import OTHER_READERS
from .reading import NOT_MODELLED, Beside, Reading, Refuses
from .rows import HF_READERS, MSCALES, SCALED, TYPE_LAST, Reader

Config = Mapping[str, Any]
READERS: Mapping[str, Reader] = {**HF_READERS, **OTHER_READERS}


def read_config(reader: str, config: Config, length: int | None = None) -> Reading:
    """What `reader`, a key of READERS, computes for a text of `length` tokens; None: as long as its context.

    Without a context of its own the reader is taken at max_position_embeddings. Raises Refuses if it would fail, and
    Unsupported for what this module does not know.
    """
    try:
        with np.errstate(all="ignore"):
            return _read(reader, config, length)
    except (ArithmeticError, ValueError, TypeError) as e:  # a number in the file that has no logarithm, or is none
        refuse(READERS[reader], f"cannot compute from this: {e}")


def _read(reader: str, config: Config, length: int | None) -> Reading:
    rope = seen(reader, config)
    context = context_of(rope)
    length = length or context or rope.max_position or 1
    inv_freq, multiplier = FUNCTIONS[rope.method](rope, length)
    second = seen(reader, config, 1) if has_second(rope) else None
    others = Table(*FUNCTIONS[second.method](second, length)) if second else None
    return Reading(inv_freq, multiplier, context, ignored_by(rope, multiplier), Beside(logits(rope), others))


def seen(reader: str, config: Config, layer: int = 0) -> Seen:
    """`config` as `reader` sees it, for the layers of that number in `ModelType.layers`. Raises as `read_config` does."""
    row = READERS[reader]
    model_type = config.get("model_type", "llama")
    if model_type not in row.models:
        raise Unsupported(f"what {row.name} makes of model_type {model_type!r} is not known here", NOT_MODELLED)
    facts = MODEL_TYPES[model_type]
    if facts.without and config.get(facts.without):
        raise Unsupported(f"{model_type} with {facts.without} has no RoPE", "there is nothing to extend")
    row = row.variants.get(model_type, row)
    if row.refuses:
        refuse(row, row.refuses)
    return Seen.of(row, config, model_type, layer)


def has_second(rope: Seen) -> bool:
    return bool(rope.facts.layers) and "sliding_attention" in (rope.config.get("layer_types") or rope.facts.layers)


def logits(rope: Seen) -> float:
    """What mscale_all_dim of a model with multi-head latent attention multiplies the logits by (`yarn_apply_mscale`)."""
    scales = rope.config.get("model_type") in rope.row.scales_softmax and rope.method != "default"
    all_dim = rope.dict.get("mscale_all_dim") if scales else None
    return temperature(rope.number("factor"), all_dim) ** 2 if all_dim else 1.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A config as one reader sees it."""

    row: Reader
    facts: ModelType
    config: Config
    followed: str  # the rope dict it follows
    dict: Config
    method: str
    theta: float
    dim: int
    max_position: int  # 0 if unknown; the reader then has no use for it
    original: float  # likewise

    @staticmethod
    def of(row: Reader, config: Config, model_type: str, layer: int = 0) -> Seen:
        facts = MODEL_TYPES[model_type]
        followed, chosen = rope_dict(row, config, facts, layer)
        theta_key, usual_theta = list(facts.layers.values())[layer] if facts.layers else (facts.theta_key, facts.theta)
        usual_theta = row.thetas.get(model_type, usual_theta)
        method = method_of(row, chosen, model_type, bool(followed))
        spelled = spelling(row, chosen, model_type) or "default"
        require(row, config, chosen if followed else None, spelled, facts.required.get(spelled, ()))
        max_position = config.get("max_position_embeddings") or ((facts.length or 0) if row.assumes_length else 0)
        if not max_position and method in row.max_position_required:
            refuse(row, f"{method} without max_position_embeddings")

        def find(key: str, places: Sequence[str | float], top_key: str = "") -> Any:
            """The value of `key` at the first of these places that has one."""
            v5 = config.get("rope_parameters") or {}
            homes: dict[Any, Config] = {"dict": chosen, "top": config, "rope_parameters": v5}
            assumed: dict[Any, Any] = {"max_position": max_position, "model": usual_theta}
            for place in places:
                name = top_key if top_key and place == "top" else key
                found = homes[place].get(name) if place in homes else assumed.get(place, place)
                if found is not None:
                    return found
            return None

        theta = find("rope_theta", row.theta, theta_key)
        if theta is None:
            refuse(row, "without rope_theta")
        original = find("original_max_position_embeddings", original_places(row, facts, method))
        if method in SCALED and original is None:
            refuse(row, f"{method} without original_max_position_embeddings")
        if row.whole_lengths and isinstance(original, float):
            refuse(row, f"original_max_position_embeddings {original!r} is not written as an integer")
        partial = find("partial_rotary_factor", row.partial[1], facts.partial_key)
        dim = rotary_dim(row, config, method, facts.partial if partial is None else partial, model_type)
        return Seen(row, facts, config, followed, chosen, method, float(theta), dim, max_position, original or 0.0)

    def number(self, key: str) -> Any:
        """A number that the reader cannot do without, as it is written: an integer stays one."""
        value = self.dict.get(key, self.row.defaults.get(self.method, {}).get(key))
        if value is None:
            refuse(self.row, f"{self.method} needs a number for {key}")
        return value


def refuse(row: Reader, reason: str) -> NoReturn:
    raise Refuses(f"{row.name} {row.version}: {reason}")


def rope_dict(row: Reader, config: Config, facts: ModelType, layer: int) -> tuple[str, Config]:
    """The name of the rope dict that is followed, "" for none, and the dict."""
    if facts.layers:
        return layer_dict(row, config, list(facts.layers)[layer], layer)
    followed = next((name for name in row.dicts if config.get(name)), "")
    silent = config.get("rope_parameters") is None if "rope_parameters" in row.dicts else "rope_scaling" not in config
    if not followed and silent and row.assumes_length:  # it reads config.json through a config class of transformers
        return "", facts.rope
    chosen = config.get(followed) or {}
    if chosen.get("full_attention") is not None:
        raise Unsupported(f"a rope dict per layer type in a {config.get('model_type')} is not modelled", NOT_MODELLED)
    return followed, chosen


def layer_dict(row: Reader, config: Config, name: str, layer: int) -> tuple[str, Config]:
    """The dict of one layer type: `rope_parameters` by layer, `rope_scaling` flat and over the first of them.

    Source: transformers 5.23 models/gemma3/configuration_gemma3.py convert_rope_params_to_dict. A flat `rope_parameters`
    is passed over, and an error together with `rope_scaling`; an absent dict is one of rope_type default.
    """
    nested, flat = config.get("rope_parameters"), config.get("rope_scaling") if layer == 0 else None
    if "rope_parameters" not in row.dicts:  # transformers 4 knows one dict, for the first
        return ("rope_scaling", flat) if flat else ("", {})
    mine = (nested or {}).get(name)
    if flat is None:
        return (f"rope_parameters.{name}", mine) if mine else ("", {})
    if nested is not None and mine is None:
        refuse(row, f"rope_scaling beside a rope_parameters without {name}")
    return "rope_scaling", {**(mine or {"rope_type": "default"}), **flat}


def original_places(row: Reader, facts: ModelType, method: str) -> tuple[str | float, ...]:
    places = row.original.get(method, ())
    if facts.layers:
        return tuple(place for place in places if place != "top")
    return ("top", facts.original) if facts.original and places else places


def require(row: Reader, config: Config, rope: Config | None, spelled: str, more: tuple[str, ...] = ()) -> None:
    """Refuse unless config.json, and the rope dict if there is one, have every key that the reader insists on."""
    missing = [key for key in row.top_required if config.get(key) is None]
    missing += [] if rope is None else [key for key in (*row.required.get(spelled, ()), *more) if rope.get(key) is None]
    if missing:
        refuse(row, f"{spelled} without {missing[0]}")


def spelling(row: Reader, rope: Config, model_type: str) -> Any:
    """The type as it is written where the reader looks for it; None or empty: nowhere."""
    first, second = row.type_keys.get(model_type, TYPE_LAST)
    return rope.get(first) or rope.get(second)


def method_of(row: Reader, rope: Config, model_type: str, given: bool) -> str:
    first, second = row.type_keys.get(model_type, TYPE_LAST)
    spelled = spelling(row, rope, model_type)
    if row.type_required and given and not spelled:
        refuse(row, "a rope_scaling without a type")
    if row.types_must_agree and rope.get(second) not in (None, spelled) and rope.get(second) != "su":
        refuse(row, f"rope_type {rope[first]!r} and type {rope[second]!r} conflict")
    where = row.spelled_in.get(spelled or "")
    if not spelled or (where and rope.get(where) != spelled):
        return "default"
    types = MODEL_TYPES[model_type].types or row.types
    if spelled not in types and not row.other_types:
        refuse(row, f"unknown rope type {spelled!r}")
    return types.get(spelled, row.other_types)


def rotary_dim(row: Reader, config: Config, method: str, partial: float | None, model_type: str) -> int:
    facts = MODEL_TYPES[model_type]
    head_dim = config.get(facts.head_key)
    if row.derives_head_dim and head_dim not in (None, derived := quotient(config)):
        refuse(row, f"head_dim {head_dim}: it takes heads for hidden_size / num_attention_heads = {derived} dimensions")
    if head_dim is None:
        if model_type in row.head_dim_unfilled and method in row.head_dim_required:
            refuse(row, f"{method} for {model_type} needs head_dim in config.json: the config class leaves it None")
        usual = facts.head_dim if row.assumes_head_dim else None
        if usual and facts.head_key in config:
            raise Unsupported(f"{facts.head_key} null in a {model_type} is not modelled", NOT_MODELLED)
        head_dim = usual or quotient(config)
    if not facts.other_head_dim and "head_dim" in config and (not facts.head_key or config["head_dim"] != head_dim):
        refuse(row, f"head_dim {config['head_dim']}: the attention of {model_type} has {head_dim}")
    dim, attitude = int(head_dim * (1.0 if partial is None else partial)), row.partial[0]
    if facts.partial is not None:
        return dim
    if attitude == "ignores" or (attitude == "refuses-scaled" and method == "default"):
        return int(head_dim)
    if attitude != "rotates" and dim != head_dim:
        refuse(row, f"partial_rotary_factor {partial}: the attention of this model rotates whole heads")
    return dim


def quotient(config: Config) -> int:
    """The dimensions of a head, where config.json does not say it."""
    return int(config["hidden_size"] // config["num_attention_heads"])


def context_of(rope: Seen) -> int | None:
    """The longest text that the reader takes when the user asks for no length."""
    row, config = rope.row, rope.config
    found = (key if isinstance(key, int) else config.get(key) for key in row.context_keys)
    given = [value for value in found if value is not None] or [rope.max_position]
    factor = rope.dict.get("factor") or 1.0
    if row.context_rule == "none" or (row.context_rule == "no-window" and config.get("sliding_window")):
        return None
    if row.context_rule == "vllm":
        if rope.method == "longrope" and config.get("original_max_position_embeddings"):
            return int(config["original_max_position_embeddings"])
        longest = config.get("model_max_length") or min(given)
        return int(longest * (1.0 if rope.method in SCALED else factor))
    if row.context_rule == "tensorrt":
        return math.ceil(given[0] * (1.0 if rope.method in SCALED else factor))
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
    low, high = (correction(rope.dim, rope.original, turns, rope.theta) for turns in betas(rope))
    if not row.rounds_ramp and not 0 < low < high < rope.dim // 2 - 1:
        refuse(row, f"a ramp from {low:.2f} to {high:.2f} that does not lie within the pairs")
    if rounds(rope):
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


def rounds(rope: Seen) -> bool:
    """Whether the ramp's ends are rounded outward to whole pairs."""
    honoured = rope.row.truncate and not by_layer(rope)
    return rope.row.rounds_ramp and (rope.dict.get("truncate", True) or not honoured)


def by_layer(rope: Seen) -> bool:
    """Whether the dict is one of several by layer: `_compute_yarn_parameters` looks for truncate beside them, not in them."""
    return bool(rope.facts.layers) and "rope_parameters" in rope.row.dicts


def oldest(reader: str, config: Config) -> str:
    """The oldest version of `reader` that was run on such a config.json of yarn-convert's and takes it as `read_config` says."""
    rope = seen(reader, config)
    newer = rope.row.yarn_by_layer if by_layer(rope) and rope.method == "yarn" else ""
    return newer or rope.row.oldest or rope.row.version


def betas(rope: Seen) -> tuple[Any, Any]:
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
    mscale_all_dim if both are given and not 0, or given at all ("-of-any"), or assumed as 1 and 0 ("-1-0"); "mscale"
    itself."""
    rules = rope.row.temperature
    given: Any = rope.dict.get("mscale")
    all_dim: Any = rope.dict.get("mscale_all_dim")
    if "attention_factor" in rules and rope.dict.get("attention_factor") is not None:
        return float(rope.dict["attention_factor"])
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
    reached["context"] = context_of(rope) or math.inf
    name = "long" if reached[row.longrope_list] > original else "short"
    factors = np.asarray(rope.dict.get(f"{name}_factor") or [], dtype=np.float64)
    if factors.shape != (rope.dim // 2,):
        refuse(row, f"{name}_factor must be {rope.dim // 2} numbers")
    pair = all(rope.dict.get(key) is not None for key in MSCALES)
    if row.longrope_multiplier == "stretches" and pair:
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
FUNCTIONS |= {"longrope": longrope}


def ignored_by(rope: Seen, multiplier: float) -> tuple[str, ...]:
    """What the reader overlooks: keys of the dict it follows, a theta that it does not take, a dict that differs."""
    values, method = rope.dict, rope.method
    same: dict[str, Any] = {
        "truncate": rope.row.rounds_ramp,
        **dict(zip(("beta_fast", "beta_slow"), rope.row.betas or (), strict=False)),
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
    unread = {"truncate"} if by_layer(rope) and method == "yarn" else set()
    keys = sorted((rope.row.ignores.get(method, frozenset()) | unread) & values.keys())
    found = [f"{rope.followed}.{k}" for k in keys if values[k] is not None and not close(values[k], same.get(k))]
    found += [f"{rope.followed}.{key}" for key in unheard_types(rope)]
    if "rope_theta" in values and not close(values["rope_theta"], rope.theta):
        found.append(f"{rope.followed}.rope_theta")
    others = [name for name in ROPE_OBJECTS if name != rope.followed.split(".")[0]]
    method = values.get("rope_type", method) if unheard_types(rope) else method  # said already
    mine = {k: v for k, v in values.items() if k != "type"} | {"rope_theta": rope.theta, "rope_type": method}
    for name in others:
        other = rope.config.get(name) or {}
        other = other.get(next(iter(rope.facts.layers)), other) if rope.facts.layers else other
        other = {k: v for k, v in (other or {}).items() if k != "type"}
        if any(mine.get(k) != v for k, v in other.items()):
            found.append(name)
    return tuple(found)


def unheard_types(rope: Seen) -> list[str]:
    """The keys that name a scaling which the reader passes over: it takes the model for an unscaled one."""
    if rope.method != "default" or spelling(rope.row, rope.dict, rope.config.get("model_type", "llama")) == "default":
        return []
    return [key for key in ("rope_type", "type") if rope.dict.get(key) not in (None, "default")]


def close(a: Any, b: Any) -> bool:
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return math.isclose(a, b, rel_tol=1e-6) if numbers else a == b

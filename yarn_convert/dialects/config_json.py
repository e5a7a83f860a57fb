"""A recipe in config.json, as transformers 4 and 5 spell it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import Disagreement, FormatError, Inexpressible, Unsupported
from ..families.schema import ROPE_OBJECTS
from ..formats.json_text import REMOVE
from ..rope import METHODS, MSCALES, STILL, Rope, effect, factors_of, same_effect, table, temperature, undivided
from .shared import DEFAULT_THETA, no_word, number, plain_theta, positive_int, spelled_as, static_table, usable

PROPORTIONAL = "proportional"  # p-RoPE: a part of the pairs turns, by the whole head's frequencies; with a factor it is linear
HF_METHODS = {word: name for name, row in METHODS.items() for word in row.hf}
LISTS = {name for row in METHODS.values() for name in row.lists}
# What a RoPE object says beside the recipe and keeps: how positions of pictures are dealt to the pairs, of which a text has one for all;
# and by how much positions beyond L sharpen the attention (Llama 4, Ministral 3)
BETA = "llama_4_scaling_beta"
BESIDE = ("mrope_section", "mrope_interleaved", BETA)
LEFT = "max_position_embeddings"  # which transformers saves there, and nobody reads
_COMMON = {LEFT, "rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings", *BESIDE}


def hf_context(config: Mapping[str, Any]) -> int:
    """`max_position_embeddings` in tokens; FormatError when it is not a positive integer."""
    return positive_int(config.get("max_position_embeddings"), "max_position_embeddings")


def hf_head_dim(config: Mapping[str, Any]) -> int:
    if config.get("head_dim") is not None:
        return positive_int(config["head_dim"], "head_dim")
    hidden, heads = (positive_int(config.get(k), k) for k in ("hidden_size", "num_attention_heads"))
    return hidden // heads


def hf_read(config: Mapping[str, Any], latent: bool = False) -> Rope:
    """The recipe of a config.json whose members have the types of its schema, from `rope_scaling` (transformers 4) and
    `rope_parameters` (5). `latent`: of a model with multi-head latent attention, where mscale_all_dim scales the logits.

    Raises Disagreement when the two are there and mean different tables, Unsupported for a type or key that is unknown,
    FormatError for values that give no table.
    """
    spellings = {k: config[k] for k in ROPE_OBJECTS if config.get(k)}
    if not spellings:
        return usable(_hf_rope({}, config, latent), "config.json")
    ropes = {name: usable(_hf_rope(value, config, latent), f"{name} in config.json") for name, value in spellings.items()}
    first, *others = ropes.values()
    if any(not same_effect(effect(first), effect(other)) for other in others):
        raise Disagreement(
            "rope_scaling and rope_parameters in config.json mean different frequencies: readers disagree about this model",
            "inspect shows who follows which; repair --keep rope_scaling, or --keep rope_parameters, makes them one",
        )
    return first


def _hf_method(spelling: Mapping[str, Any]) -> tuple[Any, str]:
    """(the word for a method in a RoPE object, the method that it names). Disagreement for two words of different ones, Unsupported for an
    unknown one."""
    kinds = [spelling[k] for k in ("rope_type", "type") if spelling.get(k) is not None]
    if len({HF_METHODS.get(k) for k in kinds}) > 1:
        raise Disagreement(
            f"rope_type {kinds[0]!r} and type {kinds[1]!r} disagree in config.json, and readers take one or the other",
            "repair --keep rope_type, or --keep type",
        )
    kind = kinds[0] if kinds else spelling.get("rope_type", spelling.get("type", "default"))
    method = HF_METHODS.get(kind)
    if kind == PROPORTIONAL:
        method = "linear" if spelling.get("factor") not in (None, 1) else "none"
    if method is None:
        raise Unsupported(f"unknown rope_type {kind!r} in config.json", f"known: {', '.join(HF_METHODS)}")
    return kind, method


def _hf_rope(spelling: Mapping[str, Any], config: Mapping[str, Any], latent: bool) -> Rope:
    kind, method = _hf_method(spelling)
    row = METHODS[method]
    own = {*row.hf_keys, *row.lists, *(("factor",) if kind == PROPORTIONAL else ())}
    unknown = {k for k, v in spelling.items() if v is not None} - own - _COMMON
    if unknown:
        keys = ", ".join(sorted(unknown))
        raise Unsupported(f"unknown keys for rope_type {kind!r}: {keys}", "they may change RoPE: remove them if they do not")
    given = {k: _typed(k, v) for k, v in spelling.items() if k not in ("rope_type", "type", *BESIDE) and v is not None}
    for key in ("rope_theta", "original_max_position_embeddings"):
        top = config.get(key)
        if key in given and top is not None and given[key] != top:
            raise Disagreement(
                f"{key} is {given[key]!r} in the RoPE object and {top!r} at the top of config.json, or by default: readers disagree",
                "repair --keep object, or --keep top",
            )
    theta = number(_first("rope_theta", given, config, DEFAULT_THETA), "rope_theta")
    partial = number(_first("partial_rotary_factor", given, config, 1.0), "partial_rotary_factor")
    if not 0 < partial <= 1:
        raise FormatError(f"partial_rotary_factor is {partial!r}, not a part of the head", "fix config.json")
    context = hf_context(config)
    original = positive_int(_first("original_max_position_embeddings", spelling, config, context), "original_max_position_embeddings")
    original = context if row.baked_as else original  # which is L to all of its readers, whatever stands beside it
    given = {k: v for k, v in given.items() if k in (*row.hf_keys, *row.lists)}
    if kind == PROPORTIONAL:
        head = hf_head_dim(config)
        return Rope(method, theta, head, original, given, still=head // 2 - int(partial * head // 2))
    rope = Rope(method, theta, int(hf_head_dim(config) * partial), original)
    if method == "longrope":
        return _hf_longrope(rope, given, context)
    params = {k: v for k, v in given.items() if k not in (*MSCALES, "finetuned")}
    if method == "yarn" and latent:
        return replace(rope, params=params | _hf_mscales(given))
    if method == "yarn" and "attention_factor" not in params and given.get("mscale") and given.get("mscale_all_dim"):
        s = params.get("factor", 1.0)
        below = temperature(s, given["mscale_all_dim"])
        if below == 0:
            raise FormatError(f"mscale_all_dim {given['mscale_all_dim']!r} makes a multiplier of 1/0", "fix config.json")
        params["attention_factor"] = temperature(s, given["mscale"]) / below
    return replace(rope, params=params)


def _hf_mscales(given: Mapping[str, Any]) -> dict[str, float]:
    """DeepSeek's two parameters, or none. Unsupported for a spelling of which its readers make different things."""
    found = {k: given[k] for k in MSCALES if given.get(k)}
    if len(found) == 1:
        raise Unsupported(f"{next(iter(found))} alone: DeepSeek's own code and transformers take another default for the other", BOTH)
    if found and "attention_factor" in given:
        raise Unsupported("attention_factor beside mscale and mscale_all_dim: only some readers take it", "leave out one or the other")
    return found


MULTIPLIERS = "attention_factor, short_mscale and long_mscale of longrope differ in config.json: readers take one or the other"
BOTH = "write both into config.json: 1.0 and 1.0 is YaRN's temperature on all logits"


def _first(key: str, spelling: Mapping[str, Any], config: Mapping[str, Any], default: float) -> Any:
    """The value in the spelling, else at the top of config.json, else the default; null counts as absent."""
    return next((v for v in (spelling.get(key), config.get(key)) if v is not None), default)


def _typed(key: str, value: Any) -> Any:
    """A member of a spelling, of its schema's type: a flag, or numbers; FormatError unless these are finite."""
    if key in ("truncate", "finetuned"):
        return value
    if key in LISTS:
        return tuple(number(x, key) for x in value)
    if number(value, key) <= 0 and key == "factor":
        raise FormatError(f"factor is {value!r}, not above 0", "fix the model's config.json")
    return number(value, key)


def _hf_longrope(rope: Rope, given: Mapping[str, Any], context: int) -> Rope:
    divided = {k: undivided(np.asarray(given.get(k, ()))) for k in rope.row.lists}
    resting = {still for _, still in divided.values()}
    if len(resting) > 1:
        raise Unsupported("longrope with lists in which other pairs stand still", "write the same of them with 1e30 in both")
    params: dict[str, Any] = {k: tuple(turning.tolist()) for k, (turning, _) in divided.items()}
    rope = replace(rope, still=resting.pop())
    params["factor"] = given.get("factor", context / rope.original_context)
    multipliers = {given[k] for k in ("attention_factor", "short_mscale", "long_mscale") if k in given}
    if len(multipliers) > 1:
        raise Disagreement(MULTIPLIERS, "repair --keep attention_factor takes what transformers does; else write one number for all three")
    if multipliers:
        params["attention_factor"] = multipliers.pop()
    rope = usable(replace(rope, params=params), "config.json")
    if params["short_factor"] != params["long_factor"]:
        return rope
    return replace(rope, method="explicit", params={"factors": params["long_factor"], "attention_factor": table(rope).multiplier})


def hf_metadata(rope: Rope, context: int) -> dict[str, Any]:
    """Changes to config.json that spell `rope` with its own type; Inexpressible when config.json has no word for it."""
    name = spelled_as(rope)
    if rope.still and METHODS[name].proportional and rope.inner is None:
        part = 2 * (rope.rotary_dim // 2 - rope.still) / rope.rotary_dim
        own = {"rope_type": PROPORTIONAL, "partial_rotary_factor": part, **HF_WRITERS[name](rope)}
        return _hf_members(own, plain_theta(rope), context) | _length_of_linear(rope, context)
    if (
        name not in HF_WRITERS
        or rope.still
        or rope.inner is not None
        or rope.params.get("ramp", "index") != "index"
        or (rope.row.baked_as and rope.original_context != context)  # which its readers take for L
    ):
        raise no_word(rope, "config.json", "--carry tensors")
    spelling = {"rope_type": METHODS[name].hf[0], **HF_WRITERS[name](rope)}
    return _hf_members(spelling, plain_theta(rope), context) | _length_of_linear(rope, context)


def _length_of_linear(rope: Rope, context: int) -> dict[str, Any]:
    """For linear vLLM and SGLang multiply the context by the factor once more, unless this key names L."""
    return {"model_max_length": rope.original_context} if rope.method == "linear" and rope.original_context < context else {}


def _hf_default(rope: Rope) -> dict[str, Any]:
    return {}


def _hf_linear(rope: Rope) -> dict[str, Any]:
    return {k: rope.number(k) for k in rope.params}


def _hf_dynamic(rope: Rope) -> dict[str, Any]:
    return {"factor": rope.number("factor", 1.0)}


def _hf_llama3(rope: Rope) -> dict[str, Any]:
    return {**{k: rope.number(k) for k in rope.params}, "original_max_position_embeddings": rope.original_context}


def _hf_yarn(rope: Rope) -> dict[str, Any]:
    s, m = rope.number("factor"), table(rope).multiplier
    spelling = {
        "factor": s,
        "original_max_position_embeddings": rope.original_context,
        "beta_fast": rope.number("beta_fast", 32.0),
        "beta_slow": rope.number("beta_slow", 1.0),
    }
    if not rope.params.get("truncate", True):
        spelling["truncate"] = False
    if "mscale_all_dim" in rope.params:
        return spelling | {k: rope.number(k) for k in MSCALES}
    spelling["attention_factor"] = m
    if s > 1 and not math.isclose(m, temperature(s), rel_tol=1e-9):
        # SGLang and mlx-lm ignore attention_factor and take the ratio of these two instead.
        spelling |= {"mscale": (m * temperature(s) - 1) / (temperature(s) - 1), "mscale_all_dim": 1.0}
    return spelling


# What a RoPE object holds beside its type. longrope's are `hf_tensors`.
HF_WRITERS: Mapping[str, Callable[[Rope], dict[str, Any]]] = {
    "none": _hf_default,
    "linear": _hf_linear,
    "dynamic-ntk": _hf_dynamic,
    "yarn": _hf_yarn,
    "llama3": _hf_llama3,
}


def hf_tensors(rope: Rope, context: int) -> dict[str, Any]:
    """Changes to config.json that carry the whole table of `rope`, as longrope lists that are the same short and long; or its own two."""
    if "mscale_all_dim" in rope.params:
        raise Inexpressible("lists of frequencies in config.json carry no temperature of the logits", "--carry metadata")
    if rope.method == "linear" and rope.original_context == context and rope.number("factor") != 1:
        raise Inexpressible("lists of frequencies stand beside an original context, which nobody says here", "--original-context N")
    if rope.method == "longrope" and rope.inner is None:
        turning = rope.rotary_dim // 2 - rope.still
        short, long = ([*map(float, rope.numbers(name)[:turning]), *[STILL] * rope.still] for name in ("short_factor", "long_factor"))
        m = table(rope).multiplier
    else:
        target = static_table(rope, "config.json")
        short = long = [float(x) for x in factors_of(target.inv_freq, rope.theta)]
        m = target.multiplier
    spelling = {
        "rope_type": "longrope",
        "factor": context / rope.original_context,
        "original_max_position_embeddings": rope.original_context,
        "short_factor": short,
        "long_factor": long,
        "attention_factor": m,
        "short_mscale": m,
        "long_mscale": m,
    }
    return _hf_members(spelling, rope.theta, context)


def _hf_members(spelling: dict[str, Any], theta: float, context: int) -> dict[str, Any]:
    both = {**spelling, "type": spelling["rope_type"], "rope_theta": theta}
    scaling = None if spelling["rope_type"] == "default" else both
    return {
        "max_position_embeddings": context,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_parameters": both,
        # At the top level both would override what is said above (transformers 5, vLLM, SGLang).
        "original_max_position_embeddings": REMOVE,
        "model_max_length": REMOVE,
    }

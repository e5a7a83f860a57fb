"""The spellings of a `Rope`: config.json (transformers 4 and 5) and GGUF, both directions.

A dialect says exactly what the canonical recipe says, or raises `Inexpressible` with the reader and the way out; what it
does not understand it refuses. `rope.same` decides what "exactly" means: the same formula, of numbers that are equal once stored as
float32, as every GGUF field is. What a runtime's own float32 arithmetic then loses is no difference between files.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from . import readers
from .errors import Disagreement, FormatError, Inexpressible, Unsupported, UsageError
from .families import Family, architectures
from .families.aliases import scaled_by_its_makers
from .families.schema import ROPE_OBJECTS
from .gguf_file import Value, f32
from .json_text import REMOVE
from .rope import METHODS, MSCALES, RTOL, Array, Rope, Table, effect, geometric, ntk_theta, same_effect, table, temperature

# -- config.json ------------------------------------------------------------------------------------------------------

HF_METHODS = {word: name for name, row in METHODS.items() for word in row.hf}
LISTS = {name for row in METHODS.values() for name in row.lists}
_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
DEFAULT_THETA = 10000.0


def hf_context(config: Mapping[str, Any]) -> int:
    """`max_position_embeddings` in tokens; FormatError when it is not a positive integer."""
    return positive_int(config.get("max_position_embeddings"), "max_position_embeddings")


def positive_int(value: Any, key: str) -> int:
    """A count or length from a header; FormatError for anything else, or above what 32 bits hold, which no reader takes."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise FormatError(f"{key} is {value!r}, not a positive integer below 2^31", "fix the model's config.json or GGUF key")
    return value


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
        return _usable(_hf_rope({}, config, latent), "config.json")
    ropes = {name: _usable(_hf_rope(value, config, latent), f"{name} in config.json") for name, value in spellings.items()}
    first, *others = ropes.values()
    if any(not same_effect(effect(first), effect(other)) for other in others):
        raise Disagreement(
            "rope_scaling and rope_parameters in config.json mean different frequencies: readers disagree about this model",
            "inspect shows who follows which; repair --keep rope_scaling, or --keep rope_parameters, makes them one",
        )
    return first


def _usable(rope: Rope, where: str) -> Rope:
    """`rope` itself; FormatError when the values that `where` gave it make no table."""
    try:
        table(rope, 1)  # longrope has another list for short texts
        table(rope)
        table(rope, 4 * rope.original_context)  # dynamic grows
    except UsageError as e:
        raise FormatError(f"{where} gives no usable RoPE: {e.message}", "fix it there, or start from a sound model") from None
    return rope


def _hf_rope(spelling: Mapping[str, Any], config: Mapping[str, Any], latent: bool) -> Rope:
    kinds = [spelling[k] for k in ("rope_type", "type") if spelling.get(k) is not None]
    if len({HF_METHODS.get(k) for k in kinds}) > 1:
        raise Disagreement(
            f"rope_type {kinds[0]!r} and type {kinds[1]!r} disagree in config.json, and readers take one or the other",
            "repair --keep rope_type, or --keep type",
        )
    kind = kinds[0] if kinds else spelling.get("rope_type", spelling.get("type", "default"))
    method = HF_METHODS.get(kind)
    if method is None:
        raise Unsupported(f"unknown rope_type {kind!r} in config.json", f"known: {', '.join(HF_METHODS)}")
    row = METHODS[method]
    own = {*row.hf_keys, *row.lists}
    unknown = {k for k, v in spelling.items() if v is not None} - own - _COMMON
    if unknown:
        keys = ", ".join(sorted(unknown))
        raise Unsupported(f"unknown keys for rope_type {kind!r}: {keys}", "they may change RoPE: remove them if they do not")
    given = {k: _typed(k, v) for k, v in spelling.items() if k not in ("rope_type", "type") and v is not None}
    for key in ("rope_theta", "original_max_position_embeddings"):
        top = config.get(key)
        if key in given and top is not None and given[key] != top:
            raise Disagreement(
                f"{key} is {given[key]!r} in the RoPE object and {top!r} at the top of config.json: readers disagree",
                "repair --keep object, or --keep top",
            )
    theta = number(_first("rope_theta", given, config, DEFAULT_THETA), "rope_theta")
    partial = number(_first("partial_rotary_factor", given, config, 1.0), "partial_rotary_factor")
    if not 0 < partial <= 1:
        raise FormatError(f"partial_rotary_factor is {partial!r}, not a part of the head", "fix config.json")
    context = hf_context(config)
    original = positive_int(_first("original_max_position_embeddings", spelling, config, context), "original_max_position_embeddings")
    original = context if row.baked_as else original  # which is L to all of its readers, whatever stands beside it
    rope = Rope(method, theta, int(hf_head_dim(config) * partial), original)
    given = {k: v for k, v in given.items() if k in own}
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
    params: dict[str, Any] = {k: given.get(k, ()) for k in rope.row.lists}
    params["factor"] = given.get("factor", context / rope.original_context)
    multipliers = {given[k] for k in ("attention_factor", "short_mscale", "long_mscale") if k in given}
    if len(multipliers) > 1:
        raise Unsupported("longrope with different attention_factor, short_mscale and long_mscale", "readers compute it differently")
    if multipliers:
        params["attention_factor"] = multipliers.pop()
    rope = _usable(replace(rope, params=params), "config.json")
    if params["short_factor"] != params["long_factor"]:
        return rope
    return replace(rope, method="explicit", params={"factors": params["long_factor"], "attention_factor": table(rope).multiplier})


def number(value: Any, key: str) -> float:
    """A finite number from a header; FormatError if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise FormatError(f"{key} is {value!r}, not a finite number", "fix the model's config.json or GGUF key")
    return float(value)


def hf_metadata(rope: Rope, context: int) -> dict[str, Any]:
    """Changes to config.json that spell `rope` with its own type; Inexpressible when config.json has no word for it."""
    name = spelled(rope)
    if (
        name not in HF_WRITERS
        or rope.inner is not None
        or rope.params.get("ramp", "index") != "index"
        or (rope.row.baked_as and rope.original_context != context)  # which its readers take for L
    ):
        raise _no_word(rope, "config.json", "--carry tensors")
    spelling = {"rope_type": METHODS[name].hf[0], **HF_WRITERS[name](rope)}
    # For linear vLLM and SGLang multiply the context by the factor once more, unless this key names L.
    said = {"model_max_length": rope.original_context} if rope.method == "linear" and rope.original_context < context else {}
    return _hf_members(spelling, _plain_theta(rope), context) | said


def spelled(rope: Rope) -> str:
    """The method in whose words a file has this one."""
    return rope.row.spelled_as or rope.method


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
        short, long = ([float(x) for x in rope.numbers(name)] for name in ("short_factor", "long_factor"))
        m = table(rope).multiplier
    else:
        target = static_table(rope, "config.json")
        short = long = [float(x) for x in geometric(rope.theta, rope.rotary_dim) / target.inv_freq]
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


def _plain_theta(rope: Rope) -> float:
    """The θ of a file that has `rope` as metadata; ntk-aware's, which alone spells it, is rounded to float32, as GGUF holds it."""
    if rope.method != "ntk-aware":
        return rope.theta
    return f32(ntk_theta(rope.theta, rope.number("factor"), rope.rotary_dim))


def static_table(rope: Rope, target: str) -> Table:
    """The table of a static recipe; Inexpressible for one that changes with the length."""
    if not rope.row.static:
        raise Inexpressible(
            f"{target} cannot carry {rope.method}: its frequencies change with the length of the text",
            "extend it with a static method, for example --method yarn",
        )
    return table(rope)


def _no_word(rope: Rope, target: str, way_out: str) -> Inexpressible:
    what = f"{rope.method} over {rope.inner.method}" if rope.inner else rope.method
    return Inexpressible(f"{target} has no word for {what} with {dict(rope.params)}", way_out)


# -- GGUF -------------------------------------------------------------------------------------------------------------

ROPE_FREQS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
FACTORS = (ROPE_FREQS, SHORT, LONG)  # tensors of a GGUF by which llama.cpp divides the angles, F32[D/2]
_SCALING = ("type", "factor", "attn_factor", "original_context_length", "finetuned", *readers.UNREAD)


def gguf_read(
    keys: Mapping[str, Any], arch: str, rotary_dim: int, factors: Mapping[str, Array], latent: bool = False
) -> tuple[Rope, list[str]]:
    """(the recipe as llama.cpp reads it, the keys that say something else and that it ignores) from GGUF keys and those of the
    tensors `FACTORS` that are there.

    Source: llama.cpp, src/llama-model.cpp `load_hparams` and src/llama-context.cpp. Raises Unsupported for a RoPE key
    that is unknown, or for factors together with YaRN, which no writer produces; FormatError for values that give no table.
    `latent`: of an architecture with multi-head latent attention.
    """
    rope = _gguf_rope(keys, arch, rotary_dim, factors)
    if latent:
        rope = _gguf_mscales(rope, keys.get(f"{arch}.rope.scaling.yarn_log_multiplier"))
    rope = _usable(rope, "the GGUF")
    said = {name: number(keys[key], name) for name in readers.UNREAD if (key := f"{arch}.rope.scaling.{name}") in keys}
    return rope, [f"{arch}.rope.scaling.{name}" for name in readers.unread(arch, said, table(rope).multiplier)]


def _gguf_rope(keys: Mapping[str, Any], arch: str, rotary_dim: int, factors: Mapping[str, Array]) -> Rope:
    rope_keys = {k.removeprefix(f"{arch}.rope."): v for k, v in keys.items() if k.startswith(f"{arch}.rope.")}
    known = {"freq_base", "scale_linear", "dimension_count", *(f"scaling.{k}" for k in _SCALING)}
    known |= {key.removeprefix("rope.") for key in readers.OLLAMAS}
    if unknown := sorted(set(rope_keys) - known):
        raise Unsupported(f"unknown RoPE keys in the GGUF: {', '.join(unknown)}", "they may change RoPE")
    context = positive_int(keys.get(f"{arch}.context_length"), f"{arch}.context_length")
    original = rope_keys.get("scaling.original_context_length")
    original = context if original is None or original == 0 else positive_int(original, "original_context_length")
    rope = Rope("none", number(rope_keys.get("freq_base", DEFAULT_THETA), "freq_base"), rotary_dim, original)
    kind = rope_keys.get("scaling.type", "linear")
    # llama.cpp looks for the older key only where the newer is not there, and takes a factor of 0 for none.
    factor = number(rope_keys.get("scaling.factor", rope_keys.get("scale_linear", 0)), "scaling.factor") or 1.0
    attn = number(rope_keys.get("scaling.attn_factor", 1.0), "scaling.attn_factor")
    if factor < 0 or attn <= 0:
        raise FormatError(f"the GGUF's rope.scaling has factor {factor:g} and attn_factor {attn:g}, not above 0", "write the GGUF again")
    *others, last = (row.gguf for row in METHODS.values() if row.gguf)
    if kind not in (*others, last):
        raise Unsupported(f"rope.scaling.type {kind!r} is not read for architecture {arch!r}", f"{', '.join(others)} and {last} are")
    if factors:
        if kind == "yarn" or (kind == "linear" and factor != 1):
            raise Unsupported(f"{next(iter(factors))} together with a scaling type", "a plain, Llama 3 or Phi-3 GGUF has one of them only")
        return _of_factors(rope, {name: tuple(map(float, values)) for name, values in factors.items()}, attn)
    if kind == "yarn":
        params = {"factor": factor} if attn == 1 else {"factor": factor, "attention_factor": attn * temperature(factor)}
        return replace(rope, method="yarn", params=params)
    if attn != 1:
        ones = (factor if kind == "linear" else 1.0,) * (rotary_dim // 2)
        return replace(rope, method="explicit", params={"factors": ones, "attention_factor": attn})
    if kind == "linear" and factor != 1:
        return replace(rope, method="linear", params={"factor": factor})
    return rope


def _of_factors(rope: Rope, factors: Mapping[str, tuple[float, ...]], attn: float) -> Rope:
    if factors.keys() not in ({ROPE_FREQS}, {SHORT, LONG}):
        raise Unsupported(f"a GGUF with {' and '.join(factors)}", f"it has {ROPE_FREQS}, or {SHORT} and {LONG}")
    if ROPE_FREQS in factors or factors[SHORT] == factors[LONG]:
        return replace(rope, method="explicit", params={"factors": next(iter(factors.values())), "attention_factor": attn})
    return replace(rope, method="longrope", params={"short_factor": factors[SHORT], "long_factor": factors[LONG], "attention_factor": attn})


def pair_of(factors: Mapping[str, Array]) -> tuple[Array, Array] | None:
    """The short and the long factors, if they are there."""
    return (factors[SHORT], factors[LONG]) if SHORT in factors and LONG in factors else None


def _gguf_mscales(rope: Rope, log_multiplier: Any) -> Rope:
    """`rope` as multi-head latent attention has it: cos and sin times M, all logits times T². With a key k, which is DeepSeek's
    mscale_all_dim times 0.1, M is attn_factor; without, YaRN's temperature besides; T = M·(1 + k·ln s) in any case
    (src/llama-context.cpp; src/models/deepseek2.cpp, graph). DeepSeek's own words for them are mscale and mscale_all_dim.

    Unsupported for what these have no value for.
    """
    value, s = number(log_multiplier or 0, "yarn_log_multiplier"), rope.number("factor", 1.0)
    m = table(rope).multiplier
    if rope.method == "none" or (rope.method == "yarn" and not value and math.isclose(m, 1, rel_tol=RTOL)):
        return rope
    m = m / temperature(s) if value else m
    t = m * (1 + value * math.log(s)) if s > 0 else 0.0
    if rope.method != "yarn" or s <= 1 or t <= 0 or m * t == 1:
        raise Unsupported(
            "llama.cpp scales this GGUF's logits as no config.json can say", "extend the model in HF layout, and convert it from there"
        )
    rope = replace(rope, params={"factor": s})
    if math.isclose(t, 1, rel_tol=RTOL):
        return rope if math.isclose(m, temperature(s), rel_tol=RTOL) else rope.with_params(attention_factor=m)
    if math.isclose(m, 1, rel_tol=RTOL):
        shortest = next(x for digits in range(1, 18) if f32(0.1 * (x := float(f"{10 * value:.{digits}g}"))) == f32(value) or digits == 17)
        return rope.with_params(**dict.fromkeys(MSCALES, shortest))
    return rope.with_params(mscale=(m * t - 1) / temperature_slope(s), mscale_all_dim=(t - 1) / temperature_slope(s))


def temperature_slope(s: float) -> float:
    """0.1·ln s, which a weight multiplies in `temperature`."""
    return temperature(s) - 1


def gguf_metadata(rope: Rope, context: int, family: Family) -> dict[str, Value | None]:
    """GGUF keys (None removes one) that spell `rope` with a scaling type; Inexpressible when llama.cpp has no key for it."""
    if not rope.row.static and not (rope.method == "longrope" and family.gguf.pair == "always"):
        static_table(rope, "a GGUF of this architecture")  # says why
    name = spelled(rope)
    if rope.inner is not None or name not in GGUF_WRITERS:
        raise _no_word(rope, f"llama.cpp's metadata for {family.gguf_arch}", _ways_out(family, False))
    scaling = GGUF_WRITERS[name](rope, context, family)
    return _gguf_keys(family, context, _plain_theta(rope), type=Value("str", METHODS[name].gguf), **scaling)


def _gguf_none(rope: Rope, context: int, family: Family) -> dict[str, Value]:
    return {}


def _gguf_linear(rope: Rope, context: int, family: Family) -> dict[str, Value]:
    """llama.cpp has no use for L; without it the file does not say which of its lengths is L."""
    needs = rope.original_context < context and not scaled_by_its_makers(family.model_type, context)
    said = {"original_context_length": Value("u32", rope.original_context)} if needs else {}
    return {"factor": Value("f32", rope.number("factor")), **said}


def _gguf_yarn(rope: Rope, context: int, family: Family) -> dict[str, Value]:
    factor = Value("f32", rope.number("factor"))
    odd = [
        k
        for k, usual in {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True, "ramp": "index"}.items()
        if rope.params.get(k, usual) != usual
    ]
    if odd:
        raise Inexpressible(f"llama.cpp reads no {', '.join(odd)} for architecture {family.gguf_arch!r}", _ways_out(family, True))
    m, m0, log = table(rope).multiplier, temperature(rope.number("factor")), {}
    if family.latent and (log := _log_multiplier(rope)):
        m0 = 1.0
    attn = {} if math.isclose(m, m0, rel_tol=1e-9) else {"attn_factor": Value("f32", m / m0)}
    return {"factor": factor, "original_context_length": Value("u32", rope.original_context), **attn, **log}


# What stands beside rope.scaling.type.
GGUF_WRITERS: Mapping[str, Callable[[Rope, int, Family], dict[str, Value]]] = {
    "none": _gguf_none,
    "linear": _gguf_linear,
    "yarn": _gguf_yarn,
}


def _ways_out(family: Family, anew: bool) -> str:
    """What a user can do where llama.cpp's metadata does not carry a recipe. `anew`: the plain form of the same method would be carried."""
    if family.gguf.freqs == "applied" or family.gguf.pair == "always":
        return "--carry tensors"
    others = [arch for arch in architectures(family) if arch != family.gguf_arch]
    if family.listed and others:
        return f"--gguf-arch {others[0]}, which takes any frequencies as a tensor; or --out safetensors"
    plain = "--method yarn --context N extends anew from the original context, in the form that llama.cpp knows"
    return (
        "; ".join([plain] * anew + ["--out safetensors keeps all as it is"] * family.listed)
        or "another --method: yarn, linear or ntk-aware"
    )


def _log_multiplier(rope: Rope) -> dict[str, Value]:
    """The key by which llama.cpp multiplies logits as `rope` has it (see `_gguf_mscales`); none where its multiplier of cos and sin
    does so. Inexpressible where there is nothing to multiply the key by."""
    s, all_dim = rope.number("factor"), rope.number("mscale_all_dim", 0.0)
    _, m, logits = effect(rope)
    if math.isclose(math.sqrt(logits), m, rel_tol=RTOL):
        return {}
    if s <= 1:
        raise Inexpressible("llama.cpp multiplies the logits by what cos and sin are multiplied by", "--out safetensors")
    key = 0.1 * all_dim if m == 1 else (math.sqrt(logits) / m - 1) / math.log(s)
    return {"yarn_log_multiplier": Value("f32", key)}


def gguf_tensors(rope: Rope, context: int, family: Family) -> tuple[dict[str, Value | None], dict[str, Array]]:
    """(GGUF keys, some of the tensors `FACTORS`, float32-valued[D/2]) that carry the whole table of `rope`: llama.cpp divides
    each angle by them. Where it takes a pair, of which it chooses by the allocated context, both are the same, or longrope's.

    Inexpressible when the architecture's loader reads no such tensor.
    """
    pair = family.gguf.pair == "always"
    if not pair and family.gguf.freqs != "applied":
        raise Inexpressible(f"llama.cpp does not load {ROPE_FREQS} for architecture {family.gguf_arch!r}", _ways_out(family, False))
    switching = pair and rope.method == "longrope"
    target = table(rope) if switching else static_table(rope, "GGUF")
    if switching:
        factors = {SHORT: np.asarray(rope.numbers("short_factor")), LONG: np.asarray(rope.numbers("long_factor"))}
    else:
        factors = dict.fromkeys((SHORT, LONG) if pair else (ROPE_FREQS,), geometric(f32(rope.theta), rope.rotary_dim) / target.inv_freq)
    attn = {} if target.multiplier == 1 else {"attn_factor": Value("f32", target.multiplier)}
    original = Value("u32", rope.original_context)
    keys = _gguf_keys(family, context, rope.theta, type=Value("str", "none"), original_context_length=original, **attn)
    return keys, {name: values.astype(np.float32).astype(np.float64) for name, values in factors.items()}


def _gguf_keys(family: Family, context: int, theta: float, **scaling: Value) -> dict[str, Value | None]:
    arch = family.gguf_arch
    keys: dict[str, Value | None] = {
        f"{arch}.context_length": Value("u32", context),
        f"{arch}.rope.freq_base": Value("f32", theta),
        f"{arch}.rope.scale_linear": None,
    }
    return keys | {f"{arch}.rope.scaling.{k}": scaling.get(k) for k in _SCALING}

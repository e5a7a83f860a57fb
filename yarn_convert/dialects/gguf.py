"""A recipe in the keys and tensors of a GGUF, as llama.cpp reads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .. import readers
from ..errors import FormatError, Inexpressible, Unsupported
from ..families import Family, architectures
from ..families.aliases import scaled_by_its_makers
from ..formats.gguf_file import Value, f32
from ..rope import METHODS, MSCALES, RTOL, Array, Rope, effect, geometric, table, temperature
from .shared import DEFAULT_THETA, no_word, number, plain_theta, positive_int, spelled_as, static_table, usable

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
    rope = usable(rope, "the GGUF")
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
    name = spelled_as(rope)
    if rope.inner is not None or name not in GGUF_WRITERS:
        raise no_word(rope, f"llama.cpp's metadata for {family.gguf_arch}", _ways_out(family, False))
    scaling = GGUF_WRITERS[name](rope, context, family)
    return _gguf_keys(family, context, plain_theta(rope), type=Value("str", METHODS[name].gguf), **scaling)


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

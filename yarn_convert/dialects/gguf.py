"""A recipe in the keys and tensors of a GGUF, as llama.cpp reads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .. import readers
from ..errors import FormatError, Inexpressible, Unsupported
from ..families import ARCHS, Arch, Family, architectures
from ..families.aliases import scaled_by_its_makers
from ..families.architectures import below
from ..formats.gguf_file import Value, f32
from ..rope import METHODS, MSCALES, RTOL, STILL, Array, Rope, Table, effect, factors_of, geometric, table, temperature, undivided
from .shared import DEFAULT_THETA, no_word, number, plain_theta, positive_int, spelled_as, static_table, usable

ROPE_FREQS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
FACTORS = (ROPE_FREQS, SHORT, LONG)  # tensors of a GGUF by which llama.cpp divides the angles, F32[D/2]
LISTS = "longrope"  # the method of two lists, and the type with which most architectures look for them
BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}  # where a YaRN ramp ends, in turns over the original context; these are usual
_SCALING = ("type", "factor", "attn_factor", "original_context_length", "finetuned", *readers.UNREAD)


def gguf_read(keys: Mapping[str, Any], arch: str, rotary_dim: int, factors: Mapping[str, Array]) -> tuple[Rope, list[str]]:
    """(the recipe as llama.cpp reads it, the keys that say something else and that it ignores) from GGUF keys and those of the
    tensors `FACTORS` that are there.

    Source: llama.cpp, src/llama-model.cpp `load_hparams` and src/llama-context.cpp. Raises Unsupported for a RoPE key
    that is unknown, or for factors together with YaRN, which no writer produces; FormatError for values that give no table.
    """
    rope, facts = _gguf_rope(keys, arch, rotary_dim, factors), ARCHS[arch]
    log_multiplier = number(keys.get(f"{arch}.rope.scaling.yarn_log_multiplier") or 0, "yarn_log_multiplier")
    if facts.mla:
        rope = _gguf_mscales(rope, log_multiplier, facts.ratio)
    elif facts.ratio and log_multiplier and rope.method == "yarn":
        s = rope.number("factor")
        rope = rope.with_params(attention_factor=rope.number("attention_factor", temperature(s)) / temperature(s, log_multiplier))
    rope = usable(rope, "the GGUF")
    said = {name: number(keys[key], name) for name in readers.UNREAD if (key := f"{arch}.rope.scaling.{name}") in keys}
    return rope, [f"{arch}.rope.scaling.{name}" for name in readers.unread(arch, said, table(rope).multiplier)]


def _known(facts: Arch) -> set[str]:
    """The RoPE keys, below `{a}.rope.`, whose meaning is known for an architecture."""
    known = {"freq_base", "scale_linear", "dimension_count", "dimension_count_swa", *(f"scaling.{k}" for k in _SCALING)}
    known |= {key.removeprefix("rope.") for key in readers.OLLAMAS}
    known |= {"freq_base_swa"} if facts.other_layers else set()
    known |= {"scaling.alpha"} if facts.alpha else set()
    return known | ({"dimension_sections"} if facts.sections else set())


def _check_windows(facts: Arch, meta: Mapping[str, Any], rotary_dim: int) -> None:
    """Raise FormatError for numbers of the layers with a sliding window that make no RoPE."""
    if not facts.other_layers:
        return
    theta = number(meta.get("rope.freq_base_swa", DEFAULT_THETA), "rope.freq_base_swa")
    if not 1 < theta <= np.finfo(np.float32).max:
        raise FormatError(f"rope.freq_base_swa is {theta:g}, not a float32 above 1", "write the GGUF again")
    if window := meta.get("attention.sliding_window"):
        positive_int(window, "attention.sliding_window")
    dim = positive_int(meta.get("rope.dimension_count_swa", rotary_dim), "rope.dimension_count_swa")
    head = positive_int(meta.get("attention.key_length_swa", meta.get("attention.key_length", dim)), "attention.key_length_swa")
    if dim % 2 or dim > head:
        raise FormatError(f"rope.dimension_count_swa is {dim:,}, not an even part of the {head:,} of a head", "write the GGUF again")


def _gguf_rope(keys: Mapping[str, Any], arch: str, rotary_dim: int, factors: Mapping[str, Array]) -> Rope:
    facts, meta = ARCHS[arch], below(arch, keys)
    rope_keys = {k.removeprefix(f"{arch}.rope."): v for k, v in keys.items() if k.startswith(f"{arch}.rope.")}
    if unknown := sorted(set(rope_keys) - _known(facts)):
        raise Unsupported(f"unknown RoPE keys in the GGUF: {', '.join(unknown)}", "they may change RoPE")
    _check_windows(facts, meta, rotary_dim)
    context = positive_int(keys.get(f"{arch}.context_length"), f"{arch}.context_length")
    original = rope_keys.get("scaling.original_context_length")
    original = context if original is None or original == 0 else positive_int(original, "original_context_length")
    theta = number(rope_keys.get("freq_base", DEFAULT_THETA), "freq_base")
    if facts.alpha and number(rope_keys.get("scaling.alpha", 0.0), "scaling.alpha") > 0:
        theta = readers.gguf_theta(arch, meta)
    rope = Rope("none", theta, rotary_dim, original)
    if facts.freqs == "required" and ROPE_FREQS in factors:
        turning, still = undivided(factors[ROPE_FREQS])
        rope = replace(rope, still=still)
        factors = {} if (turning == 1).all() else {**factors, ROPE_FREQS: turning}
    kind = rope_keys.get("scaling.type", "linear")
    # llama.cpp looks for the older key only where the newer is not there, and takes a factor of 0 for none.
    factor = number(rope_keys.get("scaling.factor", rope_keys.get("scale_linear", 0)), "scaling.factor") or 1.0
    attn = number(rope_keys.get("scaling.attn_factor", 1.0), "scaling.attn_factor")
    if factor < 0 or attn <= 0:
        raise FormatError(f"the GGUF's rope.scaling has factor {factor:g} and attn_factor {attn:g}, not above 0", "write the GGUF again")
    *others, last = (row.gguf for row in METHODS.values() if row.gguf)
    if kind == LISTS == facts.pair and SHORT in factors and factor == 1:
        kind = "none"  # but that it has the pair loaded
    if kind not in (*others, last):
        raise Unsupported(f"rope.scaling.type {kind!r} is not read for architecture {arch!r}", f"{', '.join(others)} and {last} are")
    if factors:
        if kind == "yarn" or (kind == "linear" and factor != 1):
            raise Unsupported(f"{next(iter(factors))} together with a scaling type", "a plain, Llama 3 or Phi-3 GGUF has one of them only")
        return _of_factors(rope, factors, attn)
    if kind == "yarn":
        params = {"factor": factor} if attn == 1 else {"factor": factor, "attention_factor": attn * temperature(factor)}
        betas = {k: number(v, k) for k, v in zip(BETAS, readers.gguf_betas(arch, meta), strict=True)}
        return replace(rope, method="yarn", params=params | {k: v for k, v in betas.items() if v != BETAS[k]})
    if attn != 1:
        ones = (factor if kind == "linear" else 1.0,) * (rotary_dim // 2)
        return replace(rope, method="explicit", params={"factors": ones, "attention_factor": attn})
    if kind == "linear" and factor != 1:
        return replace(rope, method="linear", params={"factor": factor})
    return rope


def _of_factors(rope: Rope, factors: Mapping[str, Array], attn: float) -> Rope:
    if factors.keys() not in ({ROPE_FREQS}, {SHORT, LONG}):
        raise Unsupported(f"a GGUF with {' and '.join(factors)}", f"it has {ROPE_FREQS}, or {SHORT} and {LONG}")
    divided = {name: undivided(values) for name, values in factors.items()}
    if len(resting := {still for _, still in divided.values()}) > 1:
        raise Unsupported(f"{SHORT} and {LONG} in which other pairs stand still", "write the same of them with 1e30 in both")
    rope = replace(rope, still=max(rope.still, *resting))
    lists = {name: tuple(map(float, turning)) for name, (turning, _) in divided.items()}
    if ROPE_FREQS in lists or lists[SHORT] == lists[LONG]:
        return replace(rope, method="explicit", params={"factors": next(iter(lists.values())), "attention_factor": attn})
    return replace(rope, method="longrope", params={"short_factor": lists[SHORT], "long_factor": lists[LONG], "attention_factor": attn})


def pair_of(factors: Mapping[str, Array]) -> tuple[Array, Array] | None:
    """The short and the long factors, if they are there."""
    return (factors[SHORT], factors[LONG]) if SHORT in factors and LONG in factors else None


def _gguf_mscales(rope: Rope, value: float, ratio: bool) -> Rope:
    """`rope` as multi-head latent attention has it: cos and sin times M, all logits times T². With a key k, which is DeepSeek's
    mscale_all_dim times 0.1, M is attn_factor; without, YaRN's temperature besides; T = M·(1 + k·ln s) in any case
    (src/llama-context.cpp; src/models/deepseek2.cpp, graph). DeepSeek's own words for them are mscale and mscale_all_dim. `ratio`: see
    `Arch.ratio`; then that is so for mscale_all_dim 1 alone.

    Unsupported for what these have no value for.
    """
    s = rope.number("factor", 1.0)
    m = table(rope).multiplier
    if rope.method == "none" or (rope.method == "yarn" and not value and math.isclose(m, 1, rel_tol=RTOL)):
        return rope
    m = m / temperature(s) if value else m
    t = m * (1 + value * math.log(s)) if s > 0 else 0.0
    if rope.method != "yarn" or s <= 1 or t <= 0 or m * t == 1 or (ratio and f32(value) not in (0, f32(0.1))):
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
    _check_lengths(rope, family)
    name = spelled_as(rope)
    if rope.inner is not None or name not in GGUF_WRITERS or (rope.still and family.gguf.freqs != "required"):
        raise no_word(rope, f"llama.cpp's metadata for {family.gguf_arch}", _ways_out(family, False))
    scaling = GGUF_WRITERS[name](rope, context, family)
    if family.gguf.floor:
        scaling["original_context_length"] = Value("u32", rope.original_context)
    return _gguf_keys(family, context, plain_theta(rope), type=Value("str", METHODS[name].gguf), **scaling)


def _check_lengths(rope: Rope, family: Family) -> None:
    """Raise Inexpressible for a recipe of several tables, but for two lists where the architecture loads two."""
    if rope.row.switches and family.gguf.pair == "never":
        others = [arch for arch in architectures(family) if ARCHS[arch].pair != "never"] if family.listed else []
        ways = [f"--gguf-arch {others[0]}, which does"] if others else []
        ways += ["--out safetensors"] if family.listed else []
        what = f"llama.cpp's architecture {family.gguf_arch!r} loads no two lists of factors, of which it would take one by the context"
        raise Inexpressible(what, "; or ".join([*ways, "one table for all lengths (a static method, without --short)"]))
    if not rope.row.static and not rope.row.switches:
        static_table(rope, "a GGUF of this architecture")  # says why


def _gguf_none(rope: Rope, context: int, family: Family) -> dict[str, Value]:
    return {}


def _gguf_linear(rope: Rope, context: int, family: Family) -> dict[str, Value]:
    """llama.cpp has no use for L; without it the file does not say which of its lengths is L."""
    needs = rope.original_context < context and not scaled_by_its_makers(family.model_type, context)
    said = {"original_context_length": Value("u32", rope.original_context)} if needs else {}
    return {"factor": Value("f32", rope.number("factor")), **said}


def _gguf_yarn(rope: Rope, context: int, family: Family) -> dict[str, Value]:
    factor = Value("f32", rope.number("factor"))
    facts = family.gguf
    usual = {"truncate": True, "ramp": "index"} | ({} if facts.betas else BETAS)
    if odd := [k for k, value in usual.items() if rope.params.get(k, value) != value]:
        raise Inexpressible(f"llama.cpp reads no {', '.join(odd)} for architecture {family.gguf_arch!r}", _ways_out(family, True))
    m, m0, log = table(rope).multiplier, temperature(rope.number("factor")), {}
    if facts.mla and (log := _log_multiplier(rope)):
        m0 = 1.0
    elif facts.ratio and not facts.mla and m0 > m:
        log, m0 = {"yarn_log_multiplier": Value("f32", (m0 / m - 1) / temperature_slope(rope.number("factor")))}, m
    attn = {} if math.isclose(m, m0, rel_tol=1e-9) else {"attn_factor": Value("f32", m / m0)}
    betas = {f"yarn_{k}": Value("f32", rope.number(k, value)) for k, value in BETAS.items()} if facts.betas else {}
    return {"factor": factor, "original_context_length": Value("u32", rope.original_context), **attn, **log, **betas}


# What stands beside rope.scaling.type.
GGUF_WRITERS: Mapping[str, Callable[[Rope, int, Family], dict[str, Value]]] = {
    "none": _gguf_none,
    "linear": _gguf_linear,
    "yarn": _gguf_yarn,
}


def _ways_out(family: Family, anew: bool) -> str:
    """What a user can do where llama.cpp's metadata does not carry a recipe. `anew`: the plain form of the same method would be carried."""
    if family.gguf.freqs in ("applied", "required") or family.gguf.pair == "always":
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


def gguf_still(rope: Rope, family: Family) -> dict[str, Array]:
    """The tensor that metadata stands beside, where the architecture asks for one: which pairs stand still."""
    pairs = rope.rotary_dim // 2
    return {ROPE_FREQS: np.where(np.arange(pairs) < pairs - rope.still, 1.0, STILL)} if family.gguf.freqs == "required" else {}


def gguf_tensors(rope: Rope, context: int, family: Family) -> tuple[dict[str, Value | None], dict[str, Array]]:
    """(GGUF keys, some of the tensors `FACTORS`, float32-valued[D/2]) that carry the whole table of `rope`: llama.cpp divides
    each angle by them. Where it takes a pair, of which it chooses by the allocated context, both are the same, or longrope's.

    Inexpressible when the architecture's loader reads no such tensor.
    """
    _check_lengths(rope, family)
    asked = rope.method == LISTS == family.gguf.pair  # which is loaded with that type alone
    pair = family.gguf.pair == "always" or asked
    if not pair and family.gguf.freqs not in ("applied", "required"):
        raise Inexpressible(f"llama.cpp does not load {ROPE_FREQS} for architecture {family.gguf_arch!r}", _ways_out(family, False))
    switching = pair and rope.method == "longrope"
    target = table(rope) if switching else static_table(rope, "GGUF")
    if switching:
        factors = {SHORT: np.asarray(rope.numbers("short_factor")), LONG: np.asarray(rope.numbers("long_factor"))}
    else:
        factors = dict.fromkeys((SHORT, LONG) if pair else (ROPE_FREQS,), factors_of(target.inv_freq, f32(rope.theta)))
    attn = {} if target.multiplier == 1 else {"attn_factor": Value("f32", target.multiplier)}
    original = Value("u32", rope.original_context)
    keys = _gguf_keys(family, context, rope.theta, type=Value("str", LISTS if asked else "none"), original_context_length=original, **attn)
    unused = np.ones(readers.factor_pairs(family.gguf, rope.rotary_dim) - rope.rotary_dim // 2)
    return keys, {name: np.append(values, unused).astype(np.float32).astype(np.float64) for name, values in factors.items()}


def _gguf_keys(family: Family, context: int, theta: float, **scaling: Value) -> dict[str, Value | None]:
    arch = family.gguf_arch
    keys: dict[str, Value | None] = {
        f"{arch}.context_length": Value("u32", context),
        f"{arch}.rope.freq_base": Value("f32", theta),
        f"{arch}.rope.scale_linear": None,
    }
    baked = ("alpha",) if family.gguf.alpha else ()  # into θ
    named = {family.gguf_key(k)[0] for k in family.hparams}  # whether anything turns at all is no recipe's
    return keys | {name: scaling.get(k) for k in (*_SCALING, *baked) if (name := f"{arch}.rope.scaling.{k}") not in named}


def gguf_window_layers(keys: Mapping[str, Any], arch: str, rope: Rope) -> Table | None:
    """The RoPE that layers with a sliding window are to have in a GGUF with these keys, where `rope` is that of the others; None where
    they have none of their own. Only `Arch.other_layers` "shared" extends them alike."""
    meta = below(arch, keys)
    if not readers.has_other_layers(arch, meta):
        return None
    theta, dim = readers.gguf_other_layers(arch, meta, readers.gguf_theta(arch, meta), rope.rotary_dim)
    if ARCHS[arch].other_layers != "shared":
        return Table(geometric(theta, dim), 1.0)
    if (theta, dim) == (readers.gguf_theta(arch, meta), rope.rotary_dim) and "rope.freq_base_swa" not in meta:
        return None
    if plain_theta(rope) != rope.theta:  # extended by θ, which is not theirs
        return Table(geometric(theta, dim), 1.0)
    theirs, ours = table(replace(rope, theta=theta, rotary_dim=dim)), table(rope)
    return None if np.array_equal(theirs.inv_freq, ours.inv_freq) and theirs.multiplier == ours.multiplier else theirs

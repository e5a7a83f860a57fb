"""Reads GGUF keys as llama.cpp does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import Unsupported
from ..rope import Array, geometric
from .reading import NOT_MODELLED, Reading, Refuses

LLAMA_CPP = "llama.cpp 0c1e570"
# Architectures by what they make of rope_freqs.weight (src/models/*.cpp, load_arch_tensors and the graph)
LLAMAS = frozenset({"llama", "llama-embed", "deci"})
ROPE_FREQS_APPLIED = LLAMAS | {"llama4", "mistral3", "arcee", "apertus", "exaone", "exaone4", "exaone-moe", "granite"}
ROPE_FREQS_APPLIED |= {"granitemoe", "granitehybrid", "granite_swa", "minicpm", "nanbeige", "step35"}
ROPE_FREQS_UNUSED = frozenset({"falcon-h1", "llada", "pangu-embedded", "refact", "cogvlm"})  # loaded, then forgotten
ROPE_FREQS_REFUSED = frozenset({"qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "gptneox"})
ROPE_FREQS_REFUSED |= {"stablelm", "olmo", "olmo2", "glm4", "gpt-oss", "smollm3", "starcoder2", "command-r", "falcon"}
ROPE_FREQS_REFUSED |= {"phi2", "phi3", "phimoe", "minicpm3"}
LONGROPE_PAIR = LLAMAS | {"granite", "granitemoe", "granite_swa", "minicpm", "mistral3", "apertus"}
LONGROPE_PAIR |= {"step35"}  # these load the pair of factors if the type says longrope
ALWAYS_PAIR = frozenset({"phi3", "phimoe", "minicpm3"})  # whatever the type
WHOLE_HEAD = LLAMAS | {"falcon"}  # src/llama-model.cpp: load_hparams, "invalid n_rot"
BETAS_READ = frozenset({"mistral3"})  # src/models/mistral3.cpp; grok reads more and is not modelled
GGUF_TYPES = ("none", "linear", "yarn", "longrope")
f32 = np.float32


def read_gguf(
    keys: Mapping[str, Any],
    rope_freqs: ArrayLike | None = None,
    rope_factors: tuple[ArrayLike, ArrayLike] | None = None,
) -> Reading:
    """What llama.cpp computes at its full context. `rope_freqs` is rope_freqs.weight, `rope_factors` the pair
    rope_factors_short.weight, rope_factors_long.weight.

    Source: src/llama-model.cpp load_hparams, src/llama-context.cpp llama_context::llama_context, ggml/src/ggml.c
    ggml_rope_yarn_corr_dims, ggml/src/ggml-cpu/ops.cpp rope_yarn. Correction dimensions and multiplier in float32, as
    there; frequencies in float64, where ggml's CPU loop multiplies up θ^(−2/D) in float32.
    """
    arch = keys["general.architecture"]
    if arch not in ROPE_FREQS_APPLIED | ROPE_FREQS_UNUSED | ROPE_FREQS_REFUSED:
        raise Unsupported(f"what llama.cpp makes of the architecture {arch!r} is not known here", NOT_MODELLED)
    meta = {k.removeprefix(f"{arch}."): v for k, v in keys.items() if k.startswith(f"{arch}.")}
    kind = meta.get("rope.scaling.type", "linear")
    if kind not in GGUF_TYPES:
        gguf_refuses(f"aborts on rope.scaling.type {kind!r}")
    dim = gguf_dim(arch, meta)
    context = int(meta["context_length"])
    original = int(meta.get("rope.scaling.original_context_length") or context)
    theta = f32(meta.get("rope.freq_base", 10000.0))
    factor = f32(meta.get("rope.scaling.factor", meta.get("rope.scale_linear", 0.0)))
    scale = f32(1) if factor == 0 or kind == "none" else f32(1) / factor
    omega = geometric(float(theta), dim) / divisors(arch, kind, dim, context > original, rope_freqs, rope_factors)
    multiplier = f32(meta.get("rope.scaling.attn_factor", 1.0))
    inv_freq = omega * float(scale)
    if kind == "yarn":
        if "rope.scaling.yarn_log_multiplier" in meta and arch in BETAS_READ:
            raise Unsupported(f"rope.scaling.yarn_log_multiplier of {arch} is not modelled", NOT_MODELLED)
        betas = gguf_betas(arch, meta)
        low, high = gguf_corrections(dim, original, theta, *betas)
        keep = gguf_ramp(dim, low, high).astype(np.float64)
        inv_freq = inv_freq * (1 - keep) + omega * keep
        multiplier = gguf_multiplier(scale, multiplier)
    return Reading(inv_freq, float(multiplier), context, gguf_ignored(arch, meta, kind))


def gguf_refuses(reason: str) -> NoReturn:
    raise Refuses(f"{LLAMA_CPP}: {reason}")


def gguf_dim(arch: str, meta: Mapping[str, Any]) -> int:
    head = meta.get("attention.key_length") or meta["embedding_length"] // meta["attention.head_count"]
    dim = int(meta.get("rope.dimension_count", head))
    if arch in WHOLE_HEAD and dim != head:
        gguf_refuses(f"invalid n_rot: {dim}, expected {head}")
    return dim


def divisors(
    arch: str,
    kind: str,
    dim: int,
    beyond: bool,
    rope_freqs: ArrayLike | None,
    rope_factors: tuple[ArrayLike, ArrayLike] | None,
) -> Array | float:
    """What llama.cpp divides the angles by (llama_model::get_rope_factors), 1.0 without a tensor."""
    found = rope_freqs if rope_freqs is not None else rope_factors and rope_factors[beyond]
    if found is None:
        return 1.0
    pair = arch in ALWAYS_PAIR or (kind == "longrope" and arch in LONGROPE_PAIR)
    unwanted = arch in ROPE_FREQS_REFUSED or pair if rope_freqs is not None else not pair
    if unwanted:
        name = "rope_freqs.weight" if rope_freqs is not None else "rope_factors_short/long.weight"
        gguf_refuses(f"wrong number of tensors: {arch} does not load {name} with rope.scaling.type {kind}")
    if np.shape(found) != (dim // 2,):
        gguf_refuses(f"a factor tensor of shape {np.shape(found)}, expected {dim // 2}")
    return 1.0 if arch in ROPE_FREQS_UNUSED else np.asarray(found, dtype=np.float64)


def gguf_betas(arch: str, meta: Mapping[str, Any]) -> tuple[float, float]:
    if arch not in BETAS_READ:
        return 32.0, 1.0
    return meta.get("rope.scaling.yarn_beta_fast", 32.0), meta.get("rope.scaling.yarn_beta_slow", 1.0)


def logf(x: np.float32) -> np.float32:
    """C's logf, which rounds correctly where NumPy's float32 log may be one unit off."""
    return f32(math.log(float(x)))


def gguf_corrections(dim: int, original: int, theta: Any, fast: float, slow: float) -> tuple[np.float32, np.float32]:
    """The ramp's ends, every step in float32: floor and ceil then land where ggml's do."""

    def at(turns: float) -> np.float32:
        whole = logf(f32(original) / (f32(turns) * f32(2) * f32(math.pi)))
        return f32(dim) * whole / (f32(2) * logf(f32(theta)))

    return max(f32(0), np.floor(at(fast))), min(f32(dim - 1), np.ceil(at(slow)))


def gguf_ramp(dim: int, low: np.float32, high: np.float32) -> NDArray[np.float32]:
    """1 keeps a pair, 0 interpolates it; float32[D/2]."""
    mix = (np.arange(dim // 2, dtype=f32) - low) / max(f32(0.001), high - low)
    return np.asarray(f32(1) - np.clip(mix, f32(0), f32(1)), dtype=f32)


def gguf_multiplier(scale: np.float32, attn_factor: np.float32) -> np.float32:
    """attn_factor times 0.1·ln s + 1: llama-context.cpp divides by it what ops.cpp multiplies by again."""
    factor = f32(1) / scale
    m0 = f32(0.1) * logf(factor) + f32(1)
    attn = (m0 if factor > 1 else f32(1)) * (f32(1) / m0) * attn_factor
    return attn * (f32(1) + f32(0.1) * logf(f32(1) / scale))


def gguf_ignored(arch: str, meta: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """Keys that would change the reading, were they read."""
    usual = {"yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_attn_factor": 1.0, "yarn_ext_factor": 1.0}
    usual |= {"yarn_log_multiplier": 0.0}
    read = {"yarn_beta_fast", "yarn_beta_slow"} if arch in BETAS_READ else set()
    names = [n for n in usual if n not in read and meta.get(f"rope.scaling.{n}", usual[n]) != usual[n]]
    names += ["factor"] if kind == "none" and meta.get("rope.scaling.factor", 1.0) not in (0.0, 1.0) else []
    return tuple(f"{arch}.rope.scaling.{name}" for name in names)

"""How the runtimes with GGUF code of their own read GGUF keys. Ollama is none of them: its server is llama.cpp's.

candle computes plain RoPE from two keys. mistral.rs turns the keys into a config.json of its own and follows that, unless
it is given the original one (`--tok-model-id`); both do so without a word on the keys that they pass over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from ..errors import Unsupported
from ..rope import geometric
from .config import read_config
from .gguf import LLAMA_CPP, READ_AT, read_gguf
from .others import OTHER_READERS
from .reading import NOT_MODELLED, Beside, Reading, Refuses

Keys = Mapping[str, Any]
Pair = tuple[ArrayLike, ArrayLike] | None
LENGTH = "original_max_position_embeddings"
PAIR = "rope_factors_long.weight"
MENDED = frozenset(  # llama-ollama-compat.cpp: handle_*
    {"gemma3", "gemma3n", "gemma4", "laguna", "lfm2", "llama4", "mistral3", "qwen35", "qwen35moe", "qwen3next", "qwen3vl", "qwen3vlmoe"}
)
TABLE = 4096  # candle: quantized_llama.rs, MAX_SEQ_LEN


class GgufReader(NamedTuple):
    """One runtime's reading of a GGUF file: `read(keys, rope_freqs, rope_factors)` as `read_gguf`, with its version and evidence, and by
    what it takes one of two lists, as `rows.Reader` says it."""

    version: str
    evidence: tuple[str, ...]
    read: Callable[[Keys, ArrayLike | None, Pair], Reading]
    longrope_list: str = ""
    chosen: str = ""
    switching_note: str = ""


def refuses(runtime: str, reason: str) -> NoReturn:
    raise Refuses(f"{runtime} {GGUF_READERS[runtime].version}: {reason}")


def read_ollama(keys: Keys, rope_freqs: ArrayLike | None = None, rope_factors: Pair = None) -> Reading:
    """What Ollama computes: what llama.cpp does, but for architectures whose keys it mends before llama.cpp sees them.

    Raises Unsupported for these. Of gemma3 it only fills gaps: it takes a missing scaling at 131,072 tokens for linear, ×8.
    """
    arch = keys["general.architecture"]
    scaled = all(f"gemma3.rope.{key}" in keys for key in ("scaling.type", "scaling.factor", "freq_base", "freq_base_swa"))
    if arch in MENDED and not (arch == "gemma3" and scaled):
        raise Unsupported(f"what Ollama makes of the architecture {arch!r} is not known here: it mends its keys", NOT_MODELLED)
    return read_gguf(keys, rope_freqs, rope_factors)


def read_candle(keys: Keys, rope_freqs: ArrayLike | None = None, rope_factors: Pair = None) -> Reading:
    """What candle's quantized Llama computes: rope.freq_base and rope.dimension_count, for its fixed 4,096 positions.

    Raises Refuses without rope.dimension_count, and Unsupported for an architecture that other code of candle reads.
    """
    if keys["general.architecture"] != "llama":
        raise Unsupported(f"what candle makes of the architecture {keys['general.architecture']!r} is not known here", NOT_MODELLED)
    if keys.get("llama.rope.dimension_count") is None:
        refuses("candle", "cannot find llama.rope.dimension_count in metadata")
    dim, theta = int(keys["llama.rope.dimension_count"]), float(keys.get("llama.rope.freq_base", 10000.0))
    return Reading(geometric(theta, dim), 1.0, TABLE, passed_over(keys, rope_freqs, rope_factors))


def read_mistral_rs(keys: Keys, rope_freqs: ArrayLike | None = None, rope_factors: Pair = None) -> Reading:
    """What mistral.rs computes without the original config.json.

    A sliding window makes it take architecture llama for a Mistral, and so does a name that starts with that word; that
    last case it refuses. Of a Llama it knows type linear, or rope_freqs whatever the type; of a Mistral, yarn with every
    key given, and then the temperature of the position. Raises Refuses, and Unsupported for other architectures and for one with
    experts, which is a Mixtral to it.
    """
    arch = keys["general.architecture"]
    if arch not in ("llama", "mistral3") or "llama.expert_count" in keys:
        raise Unsupported(f"what mistral.rs makes of the architecture {arch!r} is not known here", NOT_MODELLED)
    mistral = arch == "mistral3" or "llama.attention.sliding_window" in keys
    words = re.findall("[0-9A-Za-z]+", str(keys.get("general.basename", keys.get("general.name", ""))))
    if not mistral and words and words[0].lower() == "mistral":
        refuses("mistral.rs", "a Mistral, by its name, without a sliding window: it wants the original config.json")
    config, freqs = synthesized(keys, arch, mistral, rope_freqs is not None), None if mistral else rope_freqs
    inv_freq, multiplier, context = read_config("mistral.rs", config)[:3]
    if freqs is not None:
        inv_freq = inv_freq / np.asarray(freqs, dtype=np.float64)
    scaled = mistral and keys.get(f"{arch}.rope.scaling.type") == "yarn"
    followed = {"type", "factor"} if config.get("rope_scaling") or scaled else set()
    ignored = passed_over(keys, rope_freqs if freqs is None else None, rope_factors, followed)
    grows = scaled and keys.get(f"{arch}.attention.temperature_scale") is not None
    return Reading(inv_freq, multiplier, context, ignored, Beside(floor=config["rope_parameters"][LENGTH] if grows else 0))


def synthesized(keys: Keys, arch: str, mistral: bool, baked: bool) -> dict[str, Any]:
    """The config.json that mistral.rs makes of GGUF keys; `baked` says that there is a rope_freqs.weight."""

    def required(key: str) -> Any:
        if keys.get(f"{arch}.{key}") is None:
            refuses("mistral.rs", f"requires GGUF metadata {arch}.{key}")
        return keys[f"{arch}.{key}"]

    heads, hidden, theta = required("attention.head_count"), required("embedding_length"), keys.get(f"{arch}.rope.freq_base", 10000.0)
    config = {"num_attention_heads": heads, "hidden_size": hidden, "rope_theta": float(theta)}
    config |= {"model_type": "mistral" if mistral else "llama", "max_position_embeddings": required("context_length")}
    config |= {"head_dim": keys.get(f"{arch}.attention.key_length", hidden // heads)}
    kind = keys.get(f"{arch}.rope.scaling.type", "none")
    if kind == "none" or (baked and not mistral):
        return config
    if kind != ("yarn" if mistral else "linear"):
        refuses("mistral.rs", f"cannot represent rope.scaling.type {kind!r} without the original config.json")
    rope: dict[str, Any] = {"rope_type": kind, "factor": float(required("rope.scaling.factor"))}
    if not mistral:
        return config | {"rope_scaling": rope}
    rope |= {"rope_theta": float(theta), LENGTH: required("rope.scaling.original_context_length")}
    rope |= {name: float(required(f"rope.scaling.yarn_{name}")) for name in ("beta_fast", "beta_slow")}
    rope |= {"mscale": 1.0, "mscale_all_dim": float(required("rope.scaling.yarn_log_multiplier"))}
    return config | {"rope_parameters": rope}


def passed_over(keys: Keys, rope_freqs: ArrayLike | None, rope_factors: Pair, followed: set[str] | None = None) -> tuple[str, ...]:
    """The keys of the scaling that a reader does not look at although they say something, and the tensors."""
    arch = keys["general.architecture"]
    silent = {"type": "none", "factor": 1.0, "attn_factor": 1.0}
    kind = keys.get(f"{arch}.rope.scaling.type", "linear")
    unread = [name for name in silent if name not in (followed or set())]
    if kind == "none":
        unread = [name for name in unread if name != "factor"]
    said = [f"{arch}.rope.scaling.{n}" for n in unread if keys.get(f"{arch}.rope.scaling.{n}", silent[n]) != silent[n]]
    return tuple(said + ["rope_freqs.weight"] * (rope_freqs is not None) + [PAIR] * (rope_factors is not None))


GGUF_READERS: Mapping[str, GgufReader] = {
    LLAMA_CPP: GgufReader(
        READ_AT,
        (
            "src/llama-model.cpp: load_hparams, get_rope_factors; src/llama-context.cpp: llama_context",
            "ggml/src/ggml.c: ggml_rope_yarn_corr_dims; ggml/src/ggml-cpu/ops.cpp: rope_yarn",
        ),
        read_gguf,
        longrope_list="allocated",
        chosen="-c {n}",
        switching_note="llama-server with -np N allocates an N-th of -c for each of its texts, unless their cache is one (-kvu)",
    ),
    "Ollama": GgufReader(
        OTHER_READERS["Ollama"].version,
        (
            "llm/llama_server.go: it starts llama.cpp's server; LLAMA_CPP_VERSION: b10488",
            "llama/compat/llama-ollama-compat.cpp: the keys that it mends, none of a Llama's RoPE (others: fb30760)",
            "server/routes.go: Serve (num_ctx by VRAM); llm/server.go: num_ctx is capped to context_length",
        ),
        read_ollama,
        longrope_list="allocated",
        chosen="num_ctx {n}",
    ),
    "candle": GgufReader(
        OTHER_READERS["candle"].version,
        ("candle-transformers/src/models/quantized_llama.rs: ModelWeights::from_gguf, precomput_freqs_cis",),
        read_candle,
    ),
    "mistral.rs": GgufReader(
        OTHER_READERS["mistral.rs"].version,
        (
            "mistralrs-core/src/gguf/normal_registry.rs: resolve_native_adapter, llama_mistral_identity_hint",
            "mistralrs-core/src/gguf/normal_config.rs: build_llama, build_mistral, rope_scaling_for_llama_family",
            "mistralrs-core/src/layers.rs: Llama3RotaryEmbedding::new_llama3_with_factors (rope_freqs)",
        ),
        read_mistral_rs,
    ),
}

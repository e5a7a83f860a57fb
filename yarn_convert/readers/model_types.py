"""What each model_type is to its readers: what transformers assumes where config.json is silent, and how its RoPE is odd.

The values are the class defaults of transformers 5.23 (models/*/configuration_*.py). A row with a length alone is a model
with one rotary class of the usual kind: whole heads, every layer, every method of modeling_rope_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..families.derived import GPT_OSS_ROPE


@dataclass(frozen=True, slots=True)
class ModelType:
    """One model_type. `layers`, for rope dicts per layer type: the layers that the Reading is of come first, each with
    the key of config.json that has its theta, and the default."""

    length: int  # max_position_embeddings
    theta: float = 10000.0
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    partial: float | None = None  # partial_rotary_factor of a model that rotates a part of each head; None: whole heads
    head_key: str = "head_dim"  # where config.json has it; "": nowhere, and head_dim there is an error
    other_head_dim: bool = True  # False: a head_dim in config.json that differs breaks it
    theta_key: str = "rope_theta"
    partial_key: str = "partial_rotary_factor"
    original: int | None = None  # original_max_position_embeddings of config.json, which hides the dict's
    rope: Mapping[str, Any] = field(default_factory=dict)  # the rope dict it has when none is given
    types: Mapping[str, str] | None = None  # spelling -> method, where it takes others than its reader
    required: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # spelling -> keys that a dict must have
    layers: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    without: str = ""  # a key that, when true, means that there is no RoPE


QWEN = 32768
LLAMAS = frozenset({"llama", "mistral"})
PHI3_TYPES = {"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"}
GEMMA3_LAYERS = {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 1e4)}
LLAMA3_ROPE = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

# Those that conversion knows, and odd ones
FAMILIES: Mapping[str, ModelType] = {
    "llama": ModelType(2048),
    "mistral": ModelType(131072),
    "mixtral": ModelType(131072, 1e6),
    "qwen2": ModelType(QWEN),
    "qwen2_moe": ModelType(QWEN),
    "qwen3": ModelType(QWEN, head_dim=128),
    "qwen3_moe": ModelType(QWEN),
    "phi3": ModelType(4096, partial=1.0, original=4096, types=PHI3_TYPES, required={"su": ("original_max_position_embeddings",)}),
    "gemma2": ModelType(8192, head_dim=256),
    "gemma3_text": ModelType(131072, head_dim=256, layers=GEMMA3_LAYERS),
    "gpt_neox": ModelType(2048, partial=0.25, theta_key="rotary_emb_base", partial_key="rotary_pct"),
    "falcon": ModelType(2048, head_key="", other_head_dim=False, without="alibi"),
    "stablelm": ModelType(4096, partial=0.25),
    "olmo2": ModelType(2048),
    "starcoder2": ModelType(4096),
    "granite": ModelType(2048),
    "smollm3": ModelType(32768, 2e6),
    "glm4": ModelType(131072, head_dim=128, partial=0.5),
    "deepseek_v2": ModelType(2048, head_dim=64, head_key="qk_rope_head_dim"),
    "deepseek_v3": ModelType(4096, head_dim=64, head_key="qk_rope_head_dim", other_head_dim=False),
    "gpt_oss": ModelType(131072, 150000.0, head_dim=64, rope=GPT_OSS_ROPE),
    "apertus": ModelType(65536, 12e6, rope=LLAMA3_ROPE | {"factor": 8.0, "rope_theta": 12e6}),
    "cwm": ModelType(131072, 1e6, head_dim=128, rope=LLAMA3_ROPE | {"factor": 16.0, "rope_theta": 1e6}),
    "cohere": ModelType(8192, 500000.0),
    "cohere2": ModelType(8192),
}

# Others whose rotary class, attention and config class were found to be the usual ones: (length, theta, head_dim, partial)
USUAL: Mapping[str, tuple[int, float, int | None, float | None]] = {
    "afmoe": (16384, 1e4, 128, None),
    "arcee": (4096, 1e4, None, None),
    "bitnet": (2048, 500000.0, None, None),
    "diffllama": (2048, 1e4, None, None),
    "doge": (2048, 1e4, None, None),
    "dots1": (2048, 1e4, None, None),
    "ernie4_5": (131072, 500000.0, 128, None),
    "ernie4_5_moe": (131072, 500000.0, None, None),
    "exaone4": (2048, 1e4, None, None),
    "exaone_moe": (2048, 1e4, None, None),
    "falcon_h1": (8192, 1e4, None, None),
    "flex_olmo": (4096, 500000.0, None, None),
    "flint": (262144, 1e4, 128, None),
    "gemma": (8192, 1e4, 256, None),
    "glm": (131072, 1e4, 128, 0.5),
    "glm4_moe": (131072, 1e4, None, 0.5),
    "granitemoe": (2048, 1e4, None, None),
    "granitemoeshared": (2048, 1e4, None, None),
    "helium": (4096, 100000.0, 128, None),
    "hy_v3": (131072, 11158840.0, 128, None),
    "hyperclovax": (2048, 1e4, None, None),
    "jais2": (8192, 1e4, None, None),
    "kolibri1": (262144, 1e4, 128, None),
    "lfm2": (128000, 1e6, None, None),
    "lfm2_moe": (128000, 1e6, None, None),
    "llama4_text": (131072, 500000.0, 128, None),
    "minimax": (131072, 1e6, None, None),
    "ministral": (131072, 1e4, None, None),
    "nanochat": (2048, 1e4, None, None),
    "nemotron": (4096, 1e4, None, 0.5),
    "olmo": (2048, 1e4, None, None),
    "olmoe": (4096, 1e4, None, None),
    "persimmon": (16384, 1e4, None, 0.5),
    "phi": (2048, 1e4, None, 0.5),
    "qwen3_next": (32768, 1e4, 256, 0.25),
    "seed_oss": (524288, 1e4, 128, None),
    "solar_open": (131072, 1e6, 128, 1.0),
    "vaultgemma": (8192, 1e4, 256, None),
}

MODEL_TYPES: Mapping[str, ModelType] = {**FAMILIES, **{name: ModelType(*row) for name, row in USUAL.items()}}

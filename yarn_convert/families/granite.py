"""Granite 4: the models without Mamba layers, which llama.cpp's converter writes as Granite 3's architecture."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

from ..errors import Unsupported
from .layers import FULL, MOST, Values
from .llama import GRANITE, NOT_DENSE
from .model_types import NEW, ModelType

_SHARED = "model.layers.{i}.shared_mlp."
WORDS = {"attention": FULL}  # of older config.json (transformers, configuration_utils.py)


def _reads(c: Values) -> dict[str, Any]:
    """Sizes of the Mamba layers that it has none of, which a GGUF says all the same.

    Raises Unsupported for a model without RoPE: any other position_embedding_type than "rope" is none to transformers.
    """
    if (kind := c.get("position_embedding_type")) != "rope":
        raise Unsupported(f"granitemoehybrid with position_embedding_type {kind!r} has no RoPE", "there is nothing to extend")
    kinds = [WORDS.get(kind, kind) for kind in c.get("layer_types") or ["mamba"]]
    heads = c.get("num_key_value_heads") or c.get("num_attention_heads") or 0
    return {
        "kv_heads_by_layer": [heads] * len(kinds),
        "layer_types": kinds,
        "usual_windows": set(kinds) <= {FULL},
        "time_step_limit": None,
        "shared_ff": c.get("shared_intermediate_size"),
        "mamba_inner": (c.get("mamba_expand") or 2) * (c.get("hidden_size") or 0),
    }


def _writes(c: Values, names: Container[str]) -> dict[str, Any]:
    return {
        "position_embedding_type": "rope",
        "layer_types": [FULL] * min(c["num_hidden_layers"], MOST),
        "intermediate_size": c["intermediate_size"],
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "mamba_expand": 2,
        "mamba_d_head": 2 * c["hidden_size"] // c["mamba_n_heads"],
    }


GRANITE_HYBRID = replace(
    GRANITE,
    hf=ModelType(
        "granitemoehybrid",
        2048,
        architectures=("GraniteMoeHybridForCausalLM",),
        defaults={
            **GRANITE.hf.defaults,
            "num_local_experts": 8,
            "shared_intermediate_size": 1024,
            "mamba_d_conv": 4,
            "mamba_d_state": 256,
            "mamba_n_groups": 1,
            "mamba_n_heads": 128,
        },
        renamed={"intermediate_size": "shared_intermediate_size"},
        unsaid=frozenset({"kv_heads_by_layer", "shared_ff", "mamba_inner"}),
        since=NEW,
        reads=_reads,
        writes=_writes,
    ),
    tensors={
        **NOT_DENSE,
        f"{_SHARED}input_linear.weight": ("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight"),
        f"{_SHARED}output_linear.weight": "blk.{i}.ffn_down.weight",
    },
    transforms={**GRANITE.transforms, **{f"blk.{{i}}.ffn_{x}.weight": "gate_above_up" for x in ("gate", "up")}},
    hparams={
        **{k: v for k, v in GRANITE.hparams.items() if k != "num_key_value_heads"},
        "kv_heads_by_layer": "attention.head_count_kv:i32[]",
        "shared_ff": "expert_shared_feed_forward_length",
        "mamba_d_conv": "ssm.conv_kernel",
        "mamba_d_state": "ssm.state_size",
        "mamba_n_groups": "ssm.group_count",
        "mamba_n_heads": "ssm.time_step_rank",
        "mamba_inner": "ssm.inner_size",
    },
    fixed={**GRANITE.fixed, "attention_bias": (False,), "num_local_experts": (0,), "usual_windows": (True,)},
    constants={"expert_count": ("u32", 0), "expert_used_count": ("u32", 0)},
    marks=frozenset({"ssm.inner_size"}),
    twin={"mamba_n_heads": 2},
    evidence="llama.cpp 0c1e570: src/models/granite.cpp (as granite; keys of Mamba layers are not read); conversion/granite.py "
    "GraniteHybridModel, which writes a model with Mamba layers without RoPE; transformers 5.23: models/granitemoehybrid",
)

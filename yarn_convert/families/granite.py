"""Granite 4: a model with Mamba layers, dense or of experts, and one without, which llama.cpp's converter writes as Granite 3's
architecture. One model type; a row each."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import replace
from typing import Any

from ..errors import Unsupported
from .architectures import Arch
from .falcon_h1 import FALCON_H1, MAMBA, mamba_sizes
from .layers import FULL, LINEAR, MOST, Values, gguf_granite_hybrid, hf_granite_hybrid
from .lfm2 import attends, convolves, linear
from .llama import EXPERT_HPARAMS, GRANITE, GRANITE_MOE_SHARED, NOT_DENSE
from .model_types import NEW, NO_LIMIT, ModelType

_SHARED = "model.layers.{i}.shared_mlp."
WORDS = {"attention": FULL, "mamba": LINEAR}  # of older config.json (transformers, configuration_utils.py)


def _kinds(c: Values) -> list[str]:
    return [WORDS.get(kind, kind) for kind in c.get("layer_types") or ["mamba"]]


def _has_mamba(c: Values) -> bool:
    return set(_kinds(c)) != {FULL}


def _has_experts(c: Values) -> bool:
    return bool(c.get("num_local_experts", 8))


def _attentive(c: Values) -> bool:
    return not _has_mamba(c)


def _dense(c: Values) -> bool:
    return _has_mamba(c) and not _has_experts(c)


def _sparse(c: Values) -> bool:
    return _has_mamba(c) and _has_experts(c)


def _reads(c: Values) -> dict[str, Any]:
    """Sizes of the Mamba layers, which a GGUF says of a model without them, too; and which layers attend.

    Raises Unsupported for a model that only attends, without RoPE: any other position_embedding_type than "rope" is none to transformers.
    """
    kinds, turns = _kinds(c), c.get("position_embedding_type") == "rope"
    if not turns and not _has_mamba(c):
        kind = c.get("position_embedding_type")
        raise Unsupported(f"granitemoehybrid with position_embedding_type {kind!r} has no RoPE", "there is nothing to extend")
    heads = c.get("num_key_value_heads") or c.get("num_attention_heads") or 0
    unlimited = c.get("time_step_limit") in NO_LIMIT
    return {
        "kv_heads_by_layer": [heads if kind == FULL else 0 for kind in kinds],
        "layer_types": kinds,
        "turns": turns,
        "usual_windows": set(kinds) <= {FULL, LINEAR},
        "usual_steps": unlimited or not _has_mamba(c),
        **({"time_step_limit": [0.0, math.inf]} if unlimited else {}),
        **({} if _has_experts(c) else {"intermediate_size": c.get("shared_intermediate_size")}),
        "mamba_inner": (c.get("mamba_expand") or 2) * (c.get("hidden_size") or 0),
    }


def _writes(c: Values, names: Container[str]) -> dict[str, Any]:
    experts = {} if c.get("num_experts") else {"num_local_experts": 0, "num_experts_per_tok": 0}
    return experts | {
        "position_embedding_type": "rope" if c["turns"] else "nope",
        "layer_types": [FULL if n else LINEAR for n in c["kv_heads_by_layer"][:MOST]],
        "mamba_expand": 2,
        "mamba_d_head": 2 * c["hidden_size"] // c["mamba_n_heads"],
    }


def _fills(h: Values) -> dict[str, Any]:
    return {"turns": True}


GRANITE_ATTENTIVE = replace(
    GRANITE,
    hf=ModelType(
        "granitemoehybrid",
        2048,
        architectures=("GraniteMoeHybridForCausalLM",),
        defaults={
            **GRANITE.hf.defaults,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 1024,
            "mamba_d_conv": 4,
            "mamba_d_state": 256,
            "mamba_n_groups": 1,
            "mamba_n_heads": 128,
        },
        renamed={"num_experts": "num_local_experts", "shared_expert_intermediate_size": "shared_intermediate_size"},
        unsaid=frozenset({"kv_heads_by_layer", "mamba_inner", "turns"}),
        turning=hf_granite_hybrid,
        since=NEW,
        reads=_reads,
        writes=_writes,
    ),
    where=_attentive,
    tensors={
        **NOT_DENSE,
        f"{_SHARED}input_linear.weight": ("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight"),
        f"{_SHARED}output_linear.weight": "blk.{i}.ffn_down.weight",
    },
    transforms={**GRANITE.transforms, **{f"blk.{{i}}.ffn_{x}.weight": "gate_above_up" for x in ("gate", "up")}},
    hparams={
        **{k: v for k, v in GRANITE.hparams.items() if k != "num_key_value_heads"},
        "kv_heads_by_layer": "attention.head_count_kv:i32[]",
        "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
        "mamba_d_conv": "ssm.conv_kernel",
        "mamba_d_state": "ssm.state_size",
        "mamba_n_groups": "ssm.group_count",
        "mamba_n_heads": "ssm.time_step_rank",
        "mamba_inner": "ssm.inner_size",
        "turns": "rope.scaling.finetuned:bool",
    },
    fills=_fills,
    fixed={**GRANITE.fixed, "attention_bias": (False,), "num_local_experts": (0,), "usual_windows": (True,)},
    constants={"expert_count": ("u32", 0), "expert_used_count": ("u32", 0)},
    marks=frozenset({"ssm.inner_size"}),
    twin={"mamba_n_heads": 2},
    evidence="llama.cpp 0c1e570: src/models/granite.cpp (as granite; keys of Mamba layers are not read); conversion/granite.py "
    "GraniteHybridModel, which writes a model with Mamba layers without RoPE; transformers 5.23: models/granitemoehybrid",
)

_OWN = frozenset({"ssm.inner_size", "expert_shared_feed_forward_length"})  # Bamba's GGUF has no shared network
_ONLY_THERE = {
    **{gguf: attends for hf, gguf in NOT_DENSE.items() if ".self_attn." in hf},
    **dict.fromkeys(MAMBA.values(), convolves),
}
GRANITE_HYBRID = replace(
    GRANITE_ATTENTIVE,
    gguf=Arch("granitehybrid", freqs="applied", turning=gguf_granite_hybrid),
    where=_dense,
    tensors={**GRANITE_ATTENTIVE.tensors, **MAMBA},
    transforms={**GRANITE_ATTENTIVE.transforms, **FALCON_H1.transforms},
    shapes={part: shape for part, shape in FALCON_H1.shapes.items() if part.startswith("ssm_")},
    only_where=_ONLY_THERE,
    fixed={
        **GRANITE_ATTENTIVE.fixed,
        "mamba_expand": (2,),
        "mamba_conv_bias": (True,),
        "mamba_proj_bias": (False,),
        "usual_steps": (True,),
    },
    marks=_OWN | {"!blk.0.ffn_gate_inp.weight"},
    twin={"mamba_n_heads": 2, "mamba_n_groups": 1, "mamba_d_state": 16},
    sizes=mamba_sizes,
    linear=linear,
    evidence="llama.cpp 0c1e570: src/models/granite-hybrid.cpp (loads rope_freqs.weight; a layer without K/V heads is Mamba's), "
    "mamba-base.cpp (the gate before the norm); conversion/granite.py GraniteHybridModel, which writes every model with Mamba layers "
    "without RoPE, and a context of 2^20; transformers 5.23: models/granitemoehybrid",
)
_ROUTED = {hf: gguf for hf, gguf in GRANITE_MOE_SHARED.tensors.items() if "block_sparse_moe" in hf or "shared_mlp" in hf}
GRANITE_HYBRID_MOE = replace(
    GRANITE_HYBRID,
    where=_sparse,
    tensors={**NOT_DENSE, **_ROUTED, **MAMBA},
    transforms={**GRANITE_MOE_SHARED.transforms, **FALCON_H1.transforms},
    hparams={**GRANITE_HYBRID.hparams, **EXPERT_HPARAMS},
    fixed={k: v for k, v in GRANITE_HYBRID.fixed.items() if k != "num_local_experts"},
    constants={},
    marks=_OWN | {"blk.0.ffn_gate_inp.weight"},
)

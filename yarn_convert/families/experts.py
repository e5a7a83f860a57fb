"""Experts that are chosen and weighed as DeepSeek V3's, above attention of the usual kind: dots1, GLM-4.5, Kimi K2, ERNIE 4.5."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

from ..errors import Unsupported
from .architectures import Arch
from .layers import FULL, SLIDES, Values
from .llama import EXPERT_HPARAMS, NOT_DENSE, SILU
from .mla import DEEPSEEK_V3, DENSE, LEADING_DENSE, MAY_LACK, ROUTED_HPARAMS, SCORE_BIAS, SHARED, not_leading, routed
from .model_types import NEW, ModelType
from .qwen import BIASES, EXPERTS, QK_NORM_NAMES, QK_NORMS, QKV_BIASES
from .schema import HPARAMS, Family

_BIAS = "blk.{i}.exp_probs_b.bias"
SIGMOID = {"expert_gating_func": ("u32", 2)}
ROUTED: dict[str, Any] = {  # of a row whose first layers are dense
    "hparams": {**HPARAMS, **EXPERT_HPARAMS, **ROUTED_HPARAMS},
    "may_lack": MAY_LACK,
    "only_where": {**LEADING_DENSE, _BIAS: not_leading},
}


def _dots1(c: Values) -> dict[str, Any]:
    """Layers behind the first max_window_layers see a window, where there is one."""
    layers, full = c.get("num_hidden_layers") or 0, c["max_window_layers"] if c.get("sliding_window") else None
    return {"layer_types": c.get("layer_types") or [SLIDES if full is not None and i >= full else FULL for i in range(min(layers, 1000))]}


def _dots1_writes(c: Values, names: Container[str]) -> dict[str, Any]:
    return routed(c) | {"sliding_window": None}


DOTS1 = Family(
    hf=ModelType(
        "dots1",
        2048,
        architectures=("Dots1ForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-6,
            "num_key_value_heads": 32,
            "first_k_dense_replace": 0,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "sliding_window": 4096,
            "max_window_layers": 62,
        },
        renamed={"num_experts": "n_routed_experts"},
        reads=_dots1,
        writes=_dots1_writes,
    ),
    gguf=Arch("dots1", head="required", ungrouped=True),
    tensors={**NOT_DENSE, **QK_NORMS, **DENSE, **EXPERTS, **SCORE_BIAS, **SHARED},
    fixed={**SILU, "attention_bias": (False,), "scoring_func": ("noaux_tc", "sigmoid")},
    constants=SIGMOID,
    evidence="llama.cpp 0c1e570: src/models/dots1.cpp (as many keys as queries; rope_freqs.weight is not loaded); conversion/dots1.py "
    "Dots1Model",
    **ROUTED,
)


def _glm4_moe_writes(c: Values, names: Container[str]) -> dict[str, Any]:
    return routed(c) | {"num_nextn_predict_layers": 0}


GLM4_MOE = Family(
    hf=ModelType(
        "glm4_moe",
        131072,
        partial=0.5,
        architectures=("Glm4MoeForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "num_experts_per_tok": 8,
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "moe_intermediate_size": 1408,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
        },
        renamed={"num_experts": "n_routed_experts"},
        switches={"attention_bias": QKV_BIASES, "use_qk_norm": QK_NORM_NAMES},
        writes=_glm4_moe_writes,
    ),
    gguf=Arch("glm4moe", sections="blocks"),  # glm4-moe.cpp
    tensors={
        **NOT_DENSE,
        **BIASES,
        **QK_NORMS,
        "model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.post_attention_norm.weight",
        **DENSE,
        **EXPERTS,
        **SCORE_BIAS,
        **SHARED,
    },
    fixed=SILU,
    constants={**SIGMOID, "nextn_predict_layers": ("u32", 0)},
    evidence="llama.cpp 0c1e570: src/models/glm4-moe.cpp (halves turn; rope_freqs.weight is not loaded; layers that predict a token "
    "further on are behind the others, counted in block_count); conversion/glm.py Glm4MoeModel",
    **ROUTED,
)

KIMI_K2 = replace(
    DEEPSEEK_V3,
    hf=replace(DEEPSEEK_V3.hf, name="kimi_k2", run_as="deepseek_v3", since=NEW),
    evidence=f"{DEEPSEEK_V3.evidence}; its repository has DeepSeek's code for V3",
)


def _ernie(c: Values) -> dict[str, Any]:
    """The experts that every token sees are one, that much larger. Unsupported for dense layers behind those with experts."""
    last = c.get("moe_layer_end_index")
    if last not in (None, -1) and last < (c.get("num_hidden_layers") or 0) - 1:
        raise Unsupported(
            f"moe_layer_end_index = {last}: dense layers behind those with experts have no names here", "no published model has"
        )
    return {"shared_expert_intermediate_size": (c.get("moe_num_shared_experts") or 0) * (c.get("moe_intermediate_size") or 0) or None}


def _ernie_writes(c: Values, names: Container[str]) -> dict[str, Any]:
    shared = c["shared_expert_intermediate_size"] or 0
    return {"moe_layer_start_index": c["first_k_dense_replace"] or 0, "moe_num_shared_experts": shared // c["moe_intermediate_size"]}


def _shared(h: Values, layer: int) -> bool:
    return bool(h.get("shared_expert_intermediate_size")) and not_leading(h, layer)


ERNIE4_5_MOE = Family(
    hf=ModelType(
        "ernie4_5_moe",
        131072,
        500000.0,
        architectures=("Ernie4_5_MoeForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "moe_num_experts": 64,
            "moe_k": 6,
            "moe_intermediate_size": 1536,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
        },
        renamed={
            "num_experts": "moe_num_experts",
            "num_experts_per_tok": "moe_k",
            "n_shared_experts": "moe_num_shared_experts",
            "first_k_dense_replace": "moe_layer_start_index",
        },
        unsaid=frozenset({"shared_expert_intermediate_size"}),
        reads=_ernie,
        writes=_ernie_writes,
    ),
    gguf=Arch("ernie4_5-moe"),
    tensors={
        **NOT_DENSE,
        **DENSE,
        **EXPERTS,
        "model.layers.{i}.mlp.moe_statics.e_score_correction_bias": _BIAS,
        **SHARED,
    },
    shapes={"exp_probs_b.bias": ("one", "experts")},
    only_where={**LEADING_DENSE, **dict.fromkeys(SHARED.values(), _shared), _BIAS: not_leading},
    hparams={
        **HPARAMS,
        **EXPERT_HPARAMS,
        "first_k_dense_replace": "leading_dense_block_count",
        "moe_intermediate_size": "expert_feed_forward_length",
        "n_shared_experts": "expert_shared_count",
        "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    },
    may_lack=frozenset({"first_k_dense_replace", "n_shared_experts", "shared_expert_intermediate_size"}),
    fixed={**SILU, "use_bias": (False,), "moe_layer_interval": (1,)},
    constants={"interleave_moe_layer_step": ("u32", 1)},
    next_tokens=("model.mtp_",),
    evidence="llama.cpp 0c1e570: src/models/ernie4-5-moe.cpp, ernie4-5.cpp (neighbours turn, as in HF; rope_freqs.weight is not loaded; "
    "from a layer on all have experts); conversion/ernie.py Ernie4_5MoeModel",
)

"""Qwen2 to Qwen3, dense and with experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .architectures import LLAMA as LLAMA_ARCH
from .architectures import Arch
from .layers import Values
from .llama import EXPERT_HPARAMS, INTERLEAVED, LLAMA, NOT_DENSE, PLAIN_TENSORS, SILU
from .model_types import ModelType
from .schema import HPARAMS, Family

BIASES = {f"model.layers.{{i}}.self_attn.{x}_proj.bias": f"blk.{{i}}.attn_{x}.bias" for x in "qkv"}
QKV_BIASES = tuple(f"attn_{x}.bias" for x in "qkv")
QK_NORMS = {f"model.layers.{{i}}.self_attn.{x}_norm.weight": f"blk.{{i}}.attn_{x}_norm.weight" for x in "qk"}
QK_NORM_NAMES = tuple(f"attn_{x}_norm.weight" for x in "qk")
PARTS = ("gate", "up", "down")
EXPERTS = {
    "model.layers.{i}.mlp.gate.weight": "blk.{i}.ffn_gate_inp.weight",
    **{f"model.layers.{{i}}.mlp.experts.{{e}}.{x}_proj.weight": f"blk.{{i}}.ffn_{x}_exps.weight" for x in PARTS},
}
FULL_ATTENTION = {**SILU, "use_sliding_window": (False,)}
ALL_SPARSE = {"decoder_sparse_step": (1,), "mlp_only_layers": ([],)}
SPARSE_DEFAULTS = {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": False}

QWEN2 = Family(
    hf=ModelType(
        "qwen2",
        32768,
        shape=(151936, 4096, 22016, 32, 32),
        architectures=("Qwen2ForCausalLM",),
        defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 32, "use_sliding_window": False},
    ),
    gguf=Arch("qwen2", square=True),
    tensors={**PLAIN_TENSORS, **BIASES},
    fixed=FULL_ATTENTION,
    evidence="llama.cpp 0c1e570: src/models/qwen2.cpp (rope_freqs.weight is not loaded); conversion/qwen.py Qwen2Model",
)

QWEN2_AS_LLAMA = replace(
    QWEN2,
    gguf=LLAMA_ARCH,
    transforms=INTERLEAVED,
    marks=frozenset({"blk.0.attn_q.bias", "!blk.0.attn_output.bias"}),
    evidence=LLAMA.evidence + "; its biases of Q, K and V are optional",
)

QWEN3 = Family(
    hf=ModelType(
        "qwen3",
        32768,
        head_dim=128,
        shape=(151936, 4096, 22016, 32, 32),
        architectures=("Qwen3ForCausalLM",),
        defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 32, "use_sliding_window": False},
    ),
    gguf=Arch("qwen3"),
    tensors={**PLAIN_TENSORS, **QK_NORMS},
    fixed={**FULL_ATTENTION, "attention_bias": (False,)},
    evidence="llama.cpp 0c1e570: src/models/qwen3.cpp (rope_freqs.weight is not loaded); conversion/qwen.py Qwen3Model",
)

QWEN2_MOE = Family(
    hf=ModelType(
        "qwen2_moe",
        32768,
        architectures=("Qwen2MoeForCausalLM",),
        defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 16, "use_sliding_window": False, "qkv_bias": True, **SPARSE_DEFAULTS},
    ),
    gguf=Arch("qwen2moe", head="required", square=True),
    tensors={
        **NOT_DENSE,
        **BIASES,
        **EXPERTS,
        "model.layers.{i}.mlp.shared_expert_gate.weight": "blk.{i}.ffn_gate_inp_shexp.weight",
        **{f"model.layers.{{i}}.mlp.shared_expert.{x}_proj.weight": f"blk.{{i}}.ffn_{x}_shexp.weight" for x in PARTS},
    },
    hparams={
        **HPARAMS,
        **EXPERT_HPARAMS,
        "moe_intermediate_size": "expert_feed_forward_length",
        "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    },
    fixed={**FULL_ATTENTION, **ALL_SPARSE, "norm_topk_prob": (False,), "qkv_bias": (True,)},
    evidence="llama.cpp 0c1e570: src/models/qwen2moe.cpp (rope_freqs.weight is not loaded; experts in every layer, their weights not "
    "normalized); conversion/qwen.py Qwen2MoeModel",
)


def _number_of_experts(c: Values) -> dict[str, Any]:
    """transformers 4 knows it by the one name alone, and transformers 5 saves it by the other."""
    return {"num_experts": c.get("num_local_experts") if c.get("num_experts") is None else c["num_experts"]}


QWEN3_MOE = Family(
    hf=ModelType(
        "qwen3_moe",
        32768,
        architectures=("Qwen3MoeForCausalLM",),
        defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 4, "use_sliding_window": False, **SPARSE_DEFAULTS},
        reads=_number_of_experts,
    ),
    gguf=Arch("qwen3moe"),
    tensors={**NOT_DENSE, **QK_NORMS, **EXPERTS},
    hparams={**HPARAMS, **EXPERT_HPARAMS, "moe_intermediate_size": "expert_feed_forward_length"},
    fixed={**FULL_ATTENTION, **ALL_SPARSE, "attention_bias": (False,), "norm_topk_prob": (True,)},
    evidence="llama.cpp 0c1e570: src/models/qwen3moe.cpp (rope_freqs.weight is not loaded; experts in every layer, their weights "
    "normalized); conversion/qwen.py Qwen3MoeModel",
)

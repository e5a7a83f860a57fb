"""Qwen2 to Qwen3, dense and with experts."""

from __future__ import annotations

from dataclasses import replace

from .llama import (
    EXPERT_HPARAMS,
    EXPERT_SHAPES,
    EXPERT_TWIN,
    HPARAMS,
    INTERLEAVED,
    KNOWN,
    LLAMA,
    NOT_DENSE,
    PLAIN_TENSORS,
    SHAPES,
    SILU,
)
from .schema import Family

BIASES = {f"model.layers.{{i}}.self_attn.{x}_proj.bias": f"blk.{{i}}.attn_{x}.bias" for x in "qkv"}
QKV_BIASES = tuple(f"attn_{x}.bias" for x in "qkv")
QK_NORMS = {f"model.layers.{{i}}.self_attn.{x}_norm.weight": f"blk.{{i}}.attn_{x}_norm.weight" for x in "qk"}
QK_NORM_NAMES = tuple(f"attn_{x}_norm.weight" for x in "qk")
QK_NORM_SHAPES = {f"attn_{x}_norm.weight": ("head",) for x in "qk"}
PARTS = ("gate", "up", "down")
EXPERTS = {
    "model.layers.{i}.mlp.gate.weight": "blk.{i}.ffn_gate_inp.weight",
    **{f"model.layers.{{i}}.mlp.experts.{{e}}.{x}_proj.weight": f"blk.{{i}}.ffn_{x}_exps.weight" for x in PARTS},
}
SHARED_SHAPES = {
    "ffn_gate_shexp.weight": ("shared_ff", "hidden"),
    "ffn_up_shexp.weight": ("shared_ff", "hidden"),
    "ffn_down_shexp.weight": ("hidden", "shared_ff"),
}
OUTPUT = frozenset({"output.weight"})
FULL_ATTENTION = {**SILU, "use_sliding_window": (False,)}
ALL_SPARSE = {"decoder_sparse_step": (1,), "mlp_only_layers": ([],)}
SPARSE_DEFAULTS = {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": False}

QWEN2 = Family(
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    gguf_arch="qwen2",
    tensors={**PLAIN_TENSORS, **BIASES},
    optional=OUTPUT,
    hparams=HPARAMS,
    fixed=FULL_ATTENTION,
    gguf_known=KNOWN,
    square=True,
    evidence="llama.cpp 0c1e570: src/models/qwen2.cpp (rope_freqs.weight is not loaded); conversion/qwen.py Qwen2Model",
    shapes=SHAPES,
    defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 32, "use_sliding_window": False},
)

QWEN2_AS_LLAMA = replace(
    QWEN2,
    gguf_arch="llama",
    square=False,
    transforms=INTERLEAVED,
    gguf_reads=LLAMA.gguf_reads,
    marks=frozenset({"blk.0.attn_q.bias", "!blk.0.attn_output.bias"}),
    evidence=LLAMA.evidence + "; its biases of Q, K and V are optional",
)

QWEN3 = Family(
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM",),
    gguf_arch="qwen3",
    tensors={**PLAIN_TENSORS, **QK_NORMS},
    optional=OUTPUT,
    hparams=HPARAMS,
    fixed={**FULL_ATTENTION, "attention_bias": (False,)},
    gguf_known=KNOWN,
    evidence="llama.cpp 0c1e570: src/models/qwen3.cpp (rope_freqs.weight is not loaded); conversion/qwen.py Qwen3Model",
    shapes={**SHAPES, **QK_NORM_SHAPES},
    defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 32, "head_dim": 128, "use_sliding_window": False},
)

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    architectures=("Qwen2MoeForCausalLM",),
    gguf_arch="qwen2moe",
    tensors={
        **NOT_DENSE,
        **BIASES,
        **EXPERTS,
        "model.layers.{i}.mlp.shared_expert_gate.weight": "blk.{i}.ffn_gate_inp_shexp.weight",
        **{f"model.layers.{{i}}.mlp.shared_expert.{x}_proj.weight": f"blk.{{i}}.ffn_{x}_shexp.weight" for x in PARTS},
    },
    optional=OUTPUT,
    hparams={
        **HPARAMS,
        **EXPERT_HPARAMS,
        "moe_intermediate_size": "expert_feed_forward_length",
        "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    },
    fixed={**FULL_ATTENTION, **ALL_SPARSE, "norm_topk_prob": (False,), "qkv_bias": (True,)},
    gguf_known=KNOWN,
    head="required",
    square=True,
    evidence="llama.cpp 0c1e570: src/models/qwen2moe.cpp (rope_freqs.weight is not loaded; experts in every layer, their weights not "
    "normalized); conversion/qwen.py Qwen2MoeModel",
    shapes={**SHAPES, **EXPERT_SHAPES, **SHARED_SHAPES, "ffn_gate_inp_shexp.weight": ("one", "hidden")},
    defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 16, "use_sliding_window": False, "qkv_bias": True, **SPARSE_DEFAULTS},
    twin={**EXPERT_TWIN, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
)

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    gguf_arch="qwen3moe",
    tensors={**NOT_DENSE, **QK_NORMS, **EXPERTS},
    optional=OUTPUT,
    hparams={**HPARAMS, **EXPERT_HPARAMS, "moe_intermediate_size": "expert_feed_forward_length"},
    derived="experts_of_either_name",
    fixed={**FULL_ATTENTION, **ALL_SPARSE, "attention_bias": (False,), "norm_topk_prob": (True,)},
    gguf_known=KNOWN,
    evidence="llama.cpp 0c1e570: src/models/qwen3moe.cpp (rope_freqs.weight is not loaded; experts in every layer, their weights "
    "normalized); conversion/qwen.py Qwen3MoeModel",
    shapes={**SHAPES, **QK_NORM_SHAPES, **EXPERT_SHAPES},
    defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 4, "use_sliding_window": False, **SPARSE_DEFAULTS},
    twin={**EXPERT_TWIN, "moe_intermediate_size": 32},
)

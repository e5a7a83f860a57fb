"""gpt-oss: experts with biases, in bf16 or in 4 bits; attention with sinks, sliding in every second layer."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from .architectures import Arch
from .layers import Values, alternating
from .llama import EXPERT_HPARAMS, PLAIN_TENSORS, SILU, TENSORS
from .model_types import ModelType
from .schema import HPARAMS, Family

_EXPERTS = "model.layers.{i}.mlp.experts."
_GATE_UP, _DOWN = ("blk.{i}.ffn_gate_exps", "blk.{i}.ffn_up_exps"), "blk.{i}.ffn_down_exps"
_WEIGHTS = tuple(f"{x}.weight" for x in _GATE_UP)
GPT_OSS_ROPE = {  # transformers, configuration_gpt_oss.py: what it takes where config.json has neither object
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096,
}  # fmt: skip


def _reads(c: Values) -> dict[str, Any]:
    """Its experts have the size that config.json calls the layer's."""
    windows = c.get("layer_types")
    return {
        "moe_intermediate_size": c.get("intermediate_size"),
        "usual_windows": windows is None or windows == alternating(len(windows), 2),
    }


def _writes(c: Values, names: Container[str]) -> dict[str, Any]:
    return {"layer_types": alternating(c["num_hidden_layers"], 2)}


GPT_OSS = Family(
    hf=ModelType(
        "gpt_oss",
        131072,
        150000.0,
        head_dim=64,
        rope=GPT_OSS_ROPE,
        architectures=("GptOssForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-5,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "sliding_window": 128,
            "num_experts_per_tok": 4,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
        renamed={"num_experts": "num_local_experts"},
        unsaid=frozenset({"moe_intermediate_size"}),
        reads=_reads,
        writes=_writes,
    ),
    gguf=Arch("gpt-oss", other_layers="shared", window=128, head="required"),
    tensors={
        **{hf: gguf for hf, gguf in PLAIN_TENSORS.items() if ".mlp." not in hf and "post_attention" not in hf},
        **{hf: gguf for hf, gguf in TENSORS.items() if ".self_attn." in hf},
        "model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.post_attention_norm.weight",
        "model.layers.{i}.self_attn.sinks": "blk.{i}.attn_sinks.weight",
        "model.layers.{i}.mlp.router.weight": "blk.{i}.ffn_gate_inp.weight",
        "model.layers.{i}.mlp.router.bias": "blk.{i}.ffn_gate_inp.bias",
        f"{_EXPERTS}gate_up_proj": _WEIGHTS,
        f"{_EXPERTS}gate_up_proj_bias": tuple(f"{x}.bias" for x in _GATE_UP),
        f"{_EXPERTS}down_proj": f"{_DOWN}.weight",
        f"{_EXPERTS}down_proj_bias": f"{_DOWN}.bias",
        f"{_EXPERTS}gate_up_proj_blocks": _WEIGHTS,
        f"{_EXPERTS}gate_up_proj_scales": _WEIGHTS,
        f"{_EXPERTS}down_proj_blocks": f"{_DOWN}.weight",
        f"{_EXPERTS}down_proj_scales": f"{_DOWN}.weight",
    },
    transforms={
        **dict.fromkeys(_WEIGHTS, "columns_in_turn"),
        **{f"{x}.bias": "in_turn" for x in _GATE_UP},
        f"{_DOWN}.weight": "transposed",
    },
    hparams={
        **HPARAMS,
        **EXPERT_HPARAMS,
        "moe_intermediate_size": "expert_feed_forward_length",
        "sliding_window": "attention.sliding_window",
    },
    fixed={
        **SILU,
        "attention_bias": (True,),
        "swiglu_limit": (7.0,),
        "swiglu_alpha": (1.702,),
        "usual_windows": (True,),
    },
    evidence="llama.cpp 0c1e570: src/models/openai-moe.cpp (layers 0, 2, … slide; rope_freqs.weight is not loaded; swiglu's limit and "
    "alpha are written there); conversion/gpt_oss.py GptOssModel",
    twin={"num_hidden_layers": 2},
)

"""LFM2: short convolutions in most layers, attention in the others."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

from .architectures import Arch
from .layers import FULL, MOST, Values, gguf_lfm2
from .llama import EXPERT_HPARAMS
from .model_types import ModelType
from .schema import HPARAMS, Family

CONVOLUTION = "conv"
_FROM, _TO = "model.layers.{i}.", "blk.{i}."
ATTENTION = {
    **{f"{_FROM}self_attn.{x}_proj.weight": f"{_TO}attn_{x}.weight" for x in "qkv"},
    f"{_FROM}self_attn.out_proj.weight": f"{_TO}attn_output.weight",
    **{f"{_FROM}self_attn.{x}_layernorm.weight": f"{_TO}attn_{x}_norm.weight" for x in "qk"},
}
SHORT = {
    f"{_FROM}conv.conv.weight": f"{_TO}shortconv.conv.weight",
    f"{_FROM}conv.in_proj.weight": f"{_TO}shortconv.in_proj.weight",
    f"{_FROM}conv.out_proj.weight": f"{_TO}shortconv.out_proj.weight",
}
PARTS = {"w1": "gate", "w2": "down", "w3": "up"}
DENSE = {f"{_FROM}feed_forward.{hf}.weight": f"{_TO}ffn_{gguf}.weight" for hf, gguf in PARTS.items()}
EXPERTS = {
    f"{_FROM}feed_forward.gate.weight": f"{_TO}ffn_gate_inp.weight",
    f"{_FROM}feed_forward.expert_bias": f"{_TO}exp_probs_b.bias",
    **{f"{_FROM}feed_forward.experts.{{e}}.{hf}.weight": f"{_TO}ffn_{gguf}_exps.weight" for hf, gguf in PARTS.items()},
}
TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.embedding_norm.weight": "token_embd_norm.weight",  # of the output, by this name
    f"{_FROM}operator_norm.weight": f"{_TO}attn_norm.weight",
    f"{_FROM}ffn_norm.weight": f"{_TO}ffn_norm.weight",
    **ATTENTION,
    **SHORT,
    **DENSE,
    "lm_head.weight": "output.weight",
}
HPARAMS_LFM2 = {
    **{k: v for k, v in HPARAMS.items() if k != "num_key_value_heads"},
    "kv_heads_by_layer": "attention.head_count_kv:i32[]",
    "conv_L_cache": "shortconv.l_cache",
}


def linear(h: Values) -> list[bool]:
    """The layers that are no attention: those without K/V heads."""
    return [not n for n in h["kv_heads_by_layer"] or []]


def convolves(h: Values, layer: int) -> bool:
    return linear(h)[layer]


def attends(h: Values, layer: int) -> bool:
    return not linear(h)[layer]


def _dense(h: Values, layer: int) -> bool:
    return layer < (h.get("num_dense_layers") or 0)


def _sparse(h: Values, layer: int) -> bool:
    return not _dense(h, layer)


def _sizes(h: Values) -> dict[str, int]:
    hidden = h.get("hidden_size") or 0
    return {"kernel": h.get("conv_L_cache") or 0, "three_hidden": 3 * hidden}


def _layers(c: Values) -> dict[str, Any]:
    """Which layers attend, with how many K/V heads: layer_types, or full_attn_idxs, or all."""
    n, given, full = min(c.get("num_hidden_layers") or 0, MOST), c.get("layer_types"), c.get("full_attn_idxs")
    kinds = given or [FULL if full is None or i in full else CONVOLUTION for i in range(n)]
    heads = c.get("num_key_value_heads") or c.get("num_attention_heads") or 0
    found = {"kv_heads_by_layer": [heads if kind == FULL else 0 for kind in kinds], "usual_windows": set(kinds) <= {FULL, CONVOLUTION}}
    return found | {"layer_types": kinds, "full_attn_idxs": None}


def _reads(c: Values) -> dict[str, Any]:
    """Besides, the size of a layer, which is said under two names, and as it is or before it is adjusted
    (models/lfm2/modeling_lfm2.py, Lfm2MLP)."""
    size, each = c.get("block_ff_dim") or c.get("intermediate_size") or 0, c.get("block_multiple_of", 256) or 1
    if c.get("block_auto_adjust_ff_dim", True):
        size = int(2 * size / 3)
        if (times := c.get("block_ffn_dim_multiplier", 1.0)) is not None:
            size = each * -(-int(times * size) // each)
    plain = {"block_auto_adjust_ff_dim": False, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256}
    return _layers(c) | plain | {"intermediate_size": size, "block_ff_dim": size}


def _kinds(c: Values) -> dict[str, Any]:
    return {"layer_types": [FULL if n else CONVOLUTION for n in c["kv_heads_by_layer"]]}


def _writes(c: Values, names: Container[str]) -> dict[str, Any]:
    return _kinds(c) | {"block_ff_dim": c["intermediate_size"], "block_auto_adjust_ff_dim": False}


def _writes_moe(c: Values, names: Container[str]) -> dict[str, Any]:
    return _kinds(c) | {"norm_topk_prob": True, "use_expert_bias": True, "routed_scaling_factor": 1.0}


LFM2 = Family(
    hf=ModelType(
        "lfm2",
        128000,
        1e6,
        architectures=("Lfm2ForCausalLM", "LFM2ForCausalLM"),
        defaults={"norm_eps": 1e-5, "num_key_value_heads": 8, "tie_word_embeddings": True, "conv_L_cache": 3},
        renamed={"rms_norm_eps": "norm_eps", "tie_word_embeddings": "tie_embedding"},
        unsaid=frozenset({"kv_heads_by_layer"}),
        reads=_reads,
        writes=_writes,
    ),
    gguf=Arch("lfm2", turning=gguf_lfm2, square=True),
    tensors=TENSORS,
    transforms={f"{_TO}shortconv.conv.weight": "short_convolution"},
    shapes={
        "token_embd_norm.weight": ("hidden",),
        "shortconv.conv.weight": ("hidden", "kernel"),
        "shortconv.in_proj.weight": ("three_hidden", "hidden"),
        "shortconv.out_proj.weight": ("hidden", "hidden"),
        "exp_probs_b.bias": ("experts",),
    },
    hparams=HPARAMS_LFM2,
    only_where={**dict.fromkeys(ATTENTION.values(), attends), **dict.fromkeys(SHORT.values(), convolves)},
    fixed={"conv_bias": (False,), "usual_windows": (True,)},
    marks=frozenset({"!attention.sliding_window"}),
    twin={"conv_L_cache": 3},
    sizes=_sizes,
    linear=linear,
    evidence="llama.cpp 0c1e570: src/models/lfm2.cpp (a layer without K/V heads is a convolution; rope_freqs.weight is not loaded); "
    "conversion/lfm2.py LFM2Model; transformers 5.23: models/lfm2",
)

LFM2_MOE = replace(
    LFM2,
    hf=replace(
        LFM2.hf,
        name="lfm2_moe",
        architectures=("Lfm2MoeForCausalLM",),
        defaults={
            **LFM2.hf.defaults,
            "num_dense_layers": 2,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1792,
            "norm_topk_prob": True,
            "use_expert_bias": True,
        },
        reads=_layers,
        writes=_writes_moe,
    ),
    gguf=Arch("lfm2moe", square=True),
    tensors={**TENSORS, **EXPERTS},
    hparams={
        **HPARAMS_LFM2,
        **EXPERT_HPARAMS,
        "moe_intermediate_size": "expert_feed_forward_length",
        "num_dense_layers": "leading_dense_block_count",
    },
    may_lack=frozenset({"num_dense_layers"}),
    optional=frozenset({f"{_TO}exp_probs_b.bias"}),
    only_where={**LFM2.only_where, **dict.fromkeys(DENSE.values(), _dense), **dict.fromkeys(EXPERTS.values(), _sparse)},
    fixed={**LFM2.fixed, "norm_topk_prob": (True,), "use_expert_bias": (True,), "routed_scaling_factor": (1, 1.0)},
    constants={"expert_gating_func": ("u32", 2)},
    twin={**LFM2.twin, "num_dense_layers": 1},
    evidence="llama.cpp 0c1e570: src/models/lfm2moe.cpp (experts' weights sum to 1), lfm2.cpp; conversion/lfm2.py LFM2MoeModel; "
    "transformers 5.23: models/lfm2_moe",
)

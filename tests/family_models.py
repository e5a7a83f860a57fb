"""Tiny seeded models of many families, as published checkpoints lie on disk: old spellings in config.json, per-expert tensors, tied heads left out.

Shapes and names come from transformers' own module on the meta device (internlm2, whose code is remote, from its published names);
values are NumPy's, seeded by the family's name. The original context is 64 tokens. Q and K are large enough that positions matter.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from conftest import CONTEXT, VOCAB, save_weights, tokenizer_files

Shape = tuple[int, ...]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Tiny:
    """config and variants are keys of config.json over COMMON; wide makes every row a multiple of 256."""

    model_type: str
    architecture: str
    config: Config
    variants: Mapping[str, Config] = field(default_factory=dict)
    wide: Config = field(default_factory=dict)
    norm: float = 1.0  # what norm weights lie around on disk
    drop: tuple[str, ...] = ()  # keys of COMMON that this family's files lack


COMMON: Config = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": CONTEXT,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": VOCAB,
}
WIDE: Config = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}
# Two heads of 32, so that a quarter of one still holds several frequencies.
HEADS_32: Config = {"num_attention_heads": 2, "num_key_value_heads": 2}
RMS: Config = {"rms_norm_eps": 1e-06}
LONGROPE: Config = {
    "type": "longrope",
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [1.0 + 0.5 * i for i in range(8)],
}

MIXTURE: Config = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "output_router_logits": False,
}
MLA: Config = RMS | {
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "moe_intermediate_size": 32,
    "moe_layer_freq": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}
WIDE_MLA: Config = {
    "kv_lora_rank": 256, "moe_intermediate_size": 256, "num_key_value_heads": 8, "q_lora_rank": 256, "qk_nope_head_dim": 32, "v_head_dim": 32,
}  # fmt: skip
YARN_MSCALE: Config = {
    "beta_fast": 32, "beta_slow": 1, "factor": 4.0, "mscale": 0.707, "mscale_all_dim": 0.707, "original_max_position_embeddings": CONTEXT, "type": "yarn",
}  # fmt: skip
GPT_OSS_YARN: Config = {
    "beta_fast": 32.0, "beta_slow": 1.0, "factor": 4.0, "original_max_position_embeddings": CONTEXT, "rope_type": "yarn", "truncate": False,
}  # fmt: skip
MINISTRAL3_YARN: Config = {
    "beta_fast": 32.0, "beta_slow": 1.0, "factor": 4.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": CONTEXT, "rope_theta": 1000000.0, "rope_type": "yarn", "type": "yarn",
    "max_position_embeddings": 4 * CONTEXT,
}  # fmt: skip
HUNYUAN_ALPHA: Config = {
    "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "type": "dynamic",
}  # fmt: skip
LLAMA3_SCALING: Config = {
    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": CONTEXT // 4, "rope_type": "llama3",
    "type": "llama3",
}  # fmt: skip
HYBRID: Config = {"layer_types": ["mamba", "attention"], "vocab_size": VOCAB + 1}  # which the converter makes a multiple of 8
FALCON: Config = {
    "alibi": False, "attention_dropout": 0.0, "bias": False, "hidden_dropout": 0.0, "layer_norm_epsilon": 1e-05, "multi_query": True,
    "new_decoder_architecture": False, "parallel_attn": True, "tie_word_embeddings": True,
}  # fmt: skip

LINEAR_ATTENTION: Config = RMS | {
    "attention_bias": False,
    "full_attention_interval": 4,
    "head_dim": 64,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 32,
    "num_hidden_layers": 4,
}
QWEN3_5: Config = LINEAR_ATTENTION | {
    "attn_output_gate": True,
    "mamba_ssm_dtype": "float32",
    "rope_parameters": {
        "mrope_interleaved": True, "mrope_section": [3, 3, 2], "partial_rotary_factor": 0.25, "rope_theta": 10000000, "rope_type": "default",
    },
}  # fmt: skip
SHARED_EXPERT: Config = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
SHORT_CONVOLUTION: Config = {
    "conv_L_cache": 3,
    "conv_bias": False,
    "norm_eps": 1e-05,
    "pad_token_id": 0,
    "rope_theta": 1e6,
    "tie_embedding": True,
}
FLAT_ROPE = ("rope_theta", "rope_scaling")

TINY: Mapping[str, Tiny] = {
    "qwen2": Tiny(
        "qwen2",
        "Qwen2ForCausalLM",
        RMS | {"max_window_layers": 2, "rope_theta": 1e6, "sliding_window": CONTEXT, "use_sliding_window": False},
        {"tied": {"tie_word_embeddings": True}},
        drop=("rope_scaling",),
    ),
    "qwen3": Tiny(
        "qwen3",
        "Qwen3ForCausalLM",
        RMS
        | {
            "attention_bias": False,
            "head_dim": 32,
            "max_window_layers": 2,
            "rope_theta": 1e6,
            "sliding_window": None,
            "use_sliding_window": False,
        },
        {"tied": {"tie_word_embeddings": True}},
    ),
    "mixtral": Tiny(
        "mixtral",
        "MixtralForCausalLM",
        {
            "num_experts_per_tok": 2,
            "num_local_experts": 4,
            "output_router_logits": False,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1e6,
            "sliding_window": None,
        },
    ),
    "qwen2_moe": Tiny(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        RMS | MIXTURE | {"norm_topk_prob": False, "shared_expert_intermediate_size": 64, "rope_theta": 1e6, "use_sliding_window": False},
        {"normed": {"norm_topk_prob": True}},
        {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 512},
        drop=("rope_scaling",),
    ),
    "qwen3_moe": Tiny(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        RMS
        | MIXTURE
        | {
            "attention_bias": False,
            "head_dim": 32,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "rope_theta": 1e6,
            "sliding_window": None,
        },
        {"dense first": {"mlp_only_layers": [0]}},
        {"moe_intermediate_size": 256},
    ),
    "phi3": Tiny(
        "phi3",
        "Phi3ForCausalLM",
        {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "embd_pdrop": 0.0,
            "original_max_position_embeddings": CONTEXT,
            "pad_token_id": 0,
            "resid_pdrop": 0.0,
            "rms_norm_eps": 1e-05,
            "sliding_window": 2047,
        },
        {
            "longrope": {"max_position_embeddings": 4 * CONTEXT, "rope_scaling": LONGROPE, "sliding_window": 4 * CONTEXT},
            "partial": HEADS_32 | {"partial_rotary_factor": 0.75, "tie_word_embeddings": True, "sliding_window": 4 * CONTEXT},
            "window": {"sliding_window": 24},
        },
    ),
    "gemma2": Tiny(
        "gemma2",
        "Gemma2ForCausalLM",
        RMS
        | {
            "attention_bias": False,
            "attn_logit_softcapping": 50.0,
            "cache_implementation": "hybrid",
            "final_logit_softcapping": 30.0,
            "head_dim": 32,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "pad_token_id": 0,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
        },
        norm=0.0,
        drop=("rope_scaling", "tie_word_embeddings"),
    ),
    "gemma3_text": Tiny(
        "gemma3_text",
        "Gemma3ForCausalLM",
        RMS
        | {
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "cache_implementation": "hybrid",
            "final_logit_softcapping": None,
            "head_dim": 32,
            "hidden_activation": "gelu_pytorch_tanh",
            "num_hidden_layers": 7,
            "num_key_value_heads": 1,
            "pad_token_id": 0,
            "query_pre_attn_scalar": 32,
            "rope_local_base_freq": 10000,
            "rope_theta": 1000000,
            "sliding_window": 16,
            "sliding_window_pattern": 6,
        },
        {"linear": {"max_position_embeddings": 4 * CONTEXT, "rope_scaling": {"factor": 4.0, "rope_type": "linear"}}},
        norm=0.0,
        drop=("hidden_act", "tie_word_embeddings"),
    ),
    "gemma4_text": Tiny(
        "gemma4_text",
        "Gemma4ForCausalLM",
        RMS
        | {
            "attention_bias": False,
            "attention_k_eq_v": False,
            "enable_moe_block": False,
            "final_logit_softcapping": 30.0,
            "global_head_dim": 32,
            "head_dim": 16,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size_per_layer_input": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_experts": None,
            "num_global_key_value_heads": None,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "pad_token_id": 0,
            "rope_parameters": {
                "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            },
            "sliding_window": 16,
            "use_bidirectional_attention": None,
            "use_double_wide_mlp": True,
            "vocab_size_per_layer_input": VOCAB,
        },
        {
            "experts": {
                "attention_k_eq_v": True,
                "enable_moe_block": True,
                "hidden_size_per_layer_input": 0,
                "moe_intermediate_size": 32,
                "num_experts": 4,
                "num_global_key_value_heads": 1,
                "num_hidden_layers": 2,
                "layer_types": ["sliding_attention", "full_attention"],
                "num_kv_shared_layers": 0,
                "top_k_experts": 2,
                "use_bidirectional_attention": "vision",
                "use_double_wide_mlp": False,
            },
        },
        drop=("hidden_act", "rope_scaling", "rope_theta", "tie_word_embeddings"),
    ),
    "gemma3n_text": Tiny(
        "gemma3n_text",
        "Gemma3nForCausalLM",
        RMS
        | {
            "activation_sparsity_pattern": [0.95] * 5,
            "altup_active_idx": 0,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_num_inputs": 4,
            "attention_bias": False,
            "final_logit_softcapping": 30.0,
            "head_dim": 16,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size_per_layer_input": 256,
            "intermediate_size": [2048] * 5,
            "laurel_rank": 64,
            "layer_types": ["sliding_attention"] * 4 + ["full_attention"],
            "num_hidden_layers": 5,
            "num_key_value_heads": 1,
            "num_kv_shared_layers": 0,
            "pad_token_id": 0,
            "rope_local_base_freq": 10000,
            "rope_theta": 1000000,
            "sliding_window": 16,
            "vocab_size_per_layer_input": VOCAB,
        },
        {
            "sharing": {
                "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 12,
                "intermediate_size": [64] * 22,
                "layer_types": ((["sliding_attention"] * 4 + ["full_attention"]) * 5)[:22],
                "num_hidden_layers": 22,
                "num_kv_shared_layers": 2,
                "vocab_size_per_layer_input": VOCAB - 3,
            },
        },
        drop=("hidden_act", "tie_word_embeddings"),
    ),
    "gpt_neox": Tiny(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        {
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-05,
            "num_attention_heads": 2,
            "rotary_emb_base": 10000,
            "rotary_pct": 0.25,
            "use_parallel_residual": True,
        },
        {"sequential": {"use_parallel_residual": False}, "whole": {"rotary_pct": 1.0}, "base": {"rotary_emb_base": 40000}},
        drop=("rope_theta", "rope_scaling", "num_key_value_heads"),
    ),
    "olmo2": Tiny(
        "olmo2", "Olmo2ForCausalLM", RMS | {"attention_bias": False, "attention_dropout": 0.0, "pad_token_id": 0, "rope_theta": 5e5}
    ),
    "granite": Tiny(
        "granite",
        "GraniteForCausalLM",
        {
            "attention_bias": False,
            "attention_multiplier": 0.0625,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "mlp_bias": False,
            "residual_multiplier": 0.5,
            "rms_norm_eps": 1e-05,
            "tie_word_embeddings": True,
        },
    ),
    "granitemoe": Tiny(
        "granitemoe",
        "GraniteMoeForCausalLM",
        {
            "attention_bias": False,
            "attention_multiplier": 0.0625,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "num_experts_per_tok": 2,
            "num_local_experts": 4,
            "output_router_logits": False,
            "residual_multiplier": 0.5,
            "rms_norm_eps": 1e-06,
            "tie_word_embeddings": True,
        },
    ),
    "starcoder2": Tiny(
        "starcoder2",
        "Starcoder2ForCausalLM",
        {
            "activation_function": "gelu_pytorch_tanh",
            "hidden_act": "gelu_pytorch_tanh",
            "mlp_type": "default",
            "norm_epsilon": 1e-05,
            "norm_type": "layer_norm",
            "sliding_window": 4096,
            "use_bias": True,
        },
        drop=("rope_scaling", "tie_word_embeddings"),
    ),
    "stablelm": Tiny(
        "stablelm",
        "StableLmForCausalLM",
        HEADS_32
        | {
            "layer_norm_eps": 1e-05,
            "partial_rotary_factor": 0.25,
            "qk_layernorm": False,
            "use_parallel_residual": False,
            "use_qkv_bias": False,
        },
        {
            "biased": {"use_qkv_bias": True},
            "12b": {"hidden_size": 128, "num_attention_heads": 4, "qk_layernorm": True, "use_parallel_residual": True},
            "parallel": {"use_parallel_residual": True},
            "theta": {"rope_theta": 40000.0},
        },
        drop=("rope_scaling",),
    ),
    "falcon": Tiny(
        "falcon",
        "FalconForCausalLM",
        FALCON | {"num_attention_heads": 4},
        {
            "40b": {"new_decoder_architecture": True, "num_kv_heads": 2},
            "11b": {
                "activation": "gelu",
                "ff_factor": 4,
                "ffn_hidden_size": 256,
                "new_decoder_architecture": True,
                "num_kv_heads": 2,
                "num_ln_in_parallel_attn": 1,
                "rope_scaling": None,
                "rope_theta": 500042.0,
                "tie_word_embeddings": False,
            },
            "multi head": {"multi_query": False, "num_kv_heads": 4},
        },
        drop=("rope_theta", "rope_scaling", "num_key_value_heads", "intermediate_size", "hidden_act"),
    ),
    "smollm3": Tiny(
        "smollm3",
        "SmolLM3ForCausalLM",
        RMS
        | {
            "attention_bias": False,
            "layer_types": ["full_attention"] * 4,
            "max_window_layers": 28,
            "mlp_bias": False,
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0],
            "num_hidden_layers": 4,
            "pad_token_id": 2,
            "rope_theta": 5e6,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
    ),
    "glm4": Tiny(
        "glm4",
        "Glm4ForCausalLM",
        {"attention_bias": False, "head_dim": 32, "pad_token_id": 0, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05},
        {"biased": {"attention_bias": True}},
    ),
    "glm": Tiny(
        "glm",
        "GlmForCausalLM",
        {"attention_bias": True, "head_dim": 16, "pad_token_id": 0, "partial_rotary_factor": 0.5, "rms_norm_eps": 1.5625e-07},
    ),
    "cohere": Tiny(
        "cohere",
        "CohereForCausalLM",
        {
            "attention_bias": False,
            "layer_norm_eps": 1e-05,
            "logit_scale": 0.0625,
            "model_max_length": CONTEXT,
            "pad_token_id": 0,
            "use_qk_norm": False,
        },
        {"plus": {"num_hidden_layers": 64, "use_qk_norm": True}},  # llama.cpp looks for these norms from 64 layers on
        drop=("rope_scaling", "tie_word_embeddings"),
    ),
    "internlm2": Tiny(
        "internlm2",
        "InternLM2ForCausalLM",
        {"attn_implementation": "eager", "bias": False, "pad_token_id": 2, "rms_norm_eps": 1e-05, "rope_theta": 1e6},
    ),
    "gpt_oss": Tiny(
        "gpt_oss",
        "GptOssForCausalLM",
        {
            "attention_bias": True,
            "experts_per_token": 2,
            "head_dim": 32,
            "initial_context_length": CONTEXT,
            "layer_types": ["sliding_attention", "full_attention"],
            "max_position_embeddings": 4 * CONTEXT,
            "num_experts_per_tok": 2,
            "num_local_experts": 4,
            "output_router_logits": False,
            "rms_norm_eps": 1e-05,
            "rope_scaling": GPT_OSS_YARN,
            "rope_theta": 150000,
            "sliding_window": 16,
            "swiglu_limit": 7.0,
        },
        {"plain": {"max_position_embeddings": CONTEXT, "rope_scaling": {"rope_type": "default"}}},
    ),
    "deepseek_v2": Tiny(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        MLA
        | {
            "aux_loss_alpha": 0.001,
            "ep_size": 1,
            "n_group": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": 4.0,
            "scoring_func": "softmax",
            "seq_aux": True,
            "topk_group": 1,
            "topk_method": "greedy",
        },
        {
            "grouped": {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"},
            "lite": {"n_routed_experts": 4, "num_hidden_layers": 27, "q_lora_rank": None},  # llama.cpp knows it by its 27 layers
            "yarn": {"max_position_embeddings": 4 * CONTEXT, "rope_scaling": YARN_MSCALE},
        },
        WIDE_MLA,
    ),
    "deepseek_v3": Tiny(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        MLA
        | {
            "ep_size": 1,
            "n_group": 4,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_nextn_predict_layers": 0,
            "routed_scaling_factor": 2.5,
            "scoring_func": "sigmoid",
            "topk_group": 2,
            "topk_method": "noaux_tc",
        },
        {"yarn": {"max_position_embeddings": 4 * CONTEXT, "rope_scaling": YARN_MSCALE | {"mscale": 1.0, "mscale_all_dim": 1.0}}},
        WIDE_MLA,
    ),
    "cohere2": Tiny(
        "cohere2",
        "Cohere2ForCausalLM",
        {
            "attention_bias": False,
            "cache_implementation": "hybrid",
            "head_dim": 16,
            "layer_norm_eps": 1e-05,
            "layer_switch": 4,
            "logit_scale": 0.25,
            "num_hidden_layers": 4,
            "order_of_interleaved_layers": "local_attn_first",
            "pad_token_id": 0,
            "position_embedding_type": "rope_gptj",
            "rope_theta": 50000.0,
            "rotary_pct": 1.0,
            "sliding_window": 16,
            "sliding_window_pattern": 4,
            "use_embedding_sharing": True,
            "use_gated_activation": True,
            "use_parallel_block": True,
            "use_parallel_embedding": True,
            "use_qk_norm": False,
        },
        {"six": {"num_hidden_layers": 6}},
        drop=("tie_word_embeddings",),
    ),
    "seed_oss": Tiny(
        "seed_oss",
        "SeedOssForCausalLM",
        RMS
        | {
            "attention_bias": True,
            "attention_dropout": 0.1,
            "attention_out_bias": False,
            "head_dim": 32,
            "mlp_bias": False,
            "pad_token_id": 1,
            "residual_dropout": 0.1,
            "rope_scaling": {"rope_type": "default"},
            "rope_theta": 1e7,
        },
        {"out biased": {"attention_out_bias": True}},
    ),
    "arcee": Tiny(
        "arcee",
        "ArceeForCausalLM",
        {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "head_dim": 16,
            "hidden_act": "relu2",
            "mlp_bias": False,
            "rms_norm_eps": 1e-05,
        },
    ),
    "ernie4_5": Tiny(
        "ernie4_5",
        "Ernie4_5ForCausalLM",
        {"head_dim": 32, "pad_token_id": 0, "rms_norm_eps": 1e-05, "rope_theta": 5e5, "tie_word_embeddings": True, "use_bias": False},
        {"biased": {"use_bias": True}},
    ),
    "olmo": Tiny(
        "olmo",
        "OlmoForCausalLM",
        {"attention_bias": False, "attention_dropout": 0.0, "clip_qkv": 1.0, "pad_token_id": 1},
        {"tied": {"clip_qkv": None, "tie_word_embeddings": True}},
    ),
    "gemma": Tiny(
        "gemma",
        "GemmaForCausalLM",
        RMS
        | {
            "attention_bias": False,
            "head_dim": 32,
            "hidden_act": "gelu",
            "hidden_activation": None,
            "num_key_value_heads": 1,
            "pad_token_id": 0,
        },
        norm=0.0,
        drop=("tie_word_embeddings",),
    ),
    "phi": Tiny(
        "phi",
        "PhiForCausalLM",
        HEADS_32
        | {
            "attention_dropout": 0.0,
            "embd_pdrop": 0.0,
            "hidden_act": "gelu_new",
            "intermediate_size": 256,
            "layer_norm_eps": 1e-05,
            "num_key_value_heads": None,
            "partial_rotary_factor": 0.5,
            "qk_layernorm": False,
            "resid_pdrop": 0.1,
        },
    ),
    "nemotron": Tiny(
        "nemotron",
        "NemotronForCausalLM",
        {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "head_dim": 16,
            "hidden_act": "relu2",
            "mlp_bias": False,
            "norm_eps": 1e-05,
            "partial_rotary_factor": 0.5,
        },
        {"biased": {"attention_bias": True, "mlp_bias": True}},
        norm=0.0,
        drop=("rope_scaling",),
    ),
    "exaone4": Tiny(
        "exaone4",
        "Exaone4ForCausalLM",
        {
            "attention_dropout": 0.0,
            "head_dim": 16,
            "layer_types": ["full_attention"] * 2,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1e6,
            "sliding_window": None,
            "sliding_window_pattern": None,
            "tie_word_embeddings": True,
        },
        {
            "32b": {
                "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 16,
                "num_hidden_layers": 64,
                "sliding_window": 16,
                "sliding_window_pattern": "LLLG",
                "tie_word_embeddings": False,
            }
        },
    ),
    "olmo3": Tiny(
        "olmo3",
        "Olmo3ForCausalLM",
        RMS
        | {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "layer_types": [*["sliding_attention"] * 3, "full_attention"],
            "num_hidden_layers": 4,
            "pad_token_id": 0,
            "rope_theta": 500000,
            "sliding_window": 16,
        },
    ),
    "olmoe": Tiny(
        "olmoe",
        "OlmoeForCausalLM",
        {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "clip_qkv": None,
            "norm_topk_prob": False,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 4,
            "output_router_logits": False,
            "pad_token_id": 1,
            "rms_norm_eps": 1e-05,
            "router_aux_loss_coef": 0.01,
        },
        {"clipped": {"clip_qkv": 8.0}, "grouped": {"num_key_value_heads": 2}},
    ),
    "ernie4_5_moe": Tiny(
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        {
            "moe_capacity": [64, 64, 64],
            "moe_gate": "top2_fused",
            "moe_intermediate_size": 24,
            "moe_k": 2,
            "moe_layer_end_index": 1,
            "moe_layer_interval": 1,
            "moe_layer_start_index": 1,
            "moe_num_experts": 4,
            "moe_num_shared_experts": 2,
            "moe_use_aux_free": True,
            "num_nextn_predict_layers": 1,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "use_bias": False,
        },
        {"none shared": {"moe_num_shared_experts": 0, "tie_word_embeddings": False}},
        {"moe_intermediate_size": 256},
    ),
    "dots1": Tiny(
        "dots1",
        "Dots1ForCausalLM",
        {
            "attention_bias": False,
            "first_k_dense_replace": 1,
            "max_window_layers": 62,
            "moe_intermediate_size": 32,
            "moe_layer_freq": 1,
            "n_group": 1,
            "n_routed_experts": 4,
            "n_shared_experts": 2,
            "norm_topk_prob": True,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1e7,
            "routed_scaling_factor": 2.5,
            "scoring_func": "noaux_tc",
            "sliding_window": None,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "use_sliding_window": False,
        },
        {"window": {"max_window_layers": 1, "sliding_window": 16}},
        {"moe_intermediate_size": 256},
    ),
    "glm4_moe": Tiny(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        {
            "attention_bias": True,
            "attention_dropout": 0.0,
            "first_k_dense_replace": 1,
            "head_dim": 32,
            "moe_intermediate_size": 32,
            "n_group": 1,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_experts_per_tok": 2,
            "num_nextn_predict_layers": 0,
            "pad_token_id": 0,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1e6,
            "routed_scaling_factor": 2.5,
            "topk_group": 1,
            "use_qk_norm": True,
        },
        {"air": {"routed_scaling_factor": 1.0, "use_qk_norm": False}},
        {"moe_intermediate_size": 256},
    ),
    "minimax_m2": Tiny(
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        RMS
        | {
            "attention_dropout": 0.0,
            "attn_type_list": [1, 1],
            "head_dim": 32,
            "mtp_transformer_layers": 1,
            "num_experts_per_tok": 2,
            "num_local_experts": 4,
            "num_mtp_modules": 3,
            "output_router_logits": False,
            "qk_norm_type": "per_layer",
            "rope_theta": 5000000,
            "rotary_dim": 16,
            "scoring_func": "sigmoid",
            "shared_intermediate_size": 0,
            "sliding_window": None,
            "use_mtp": True,
            "use_qk_norm": True,
            "use_routing_bias": True,
        },
        drop=("rope_scaling",),
    ),
    "granitemoeshared": Tiny(
        "granitemoeshared",
        "GraniteMoeSharedForCausalLM",
        {
            "attention_bias": False,
            "attention_multiplier": 0.0625,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "num_experts_per_tok": 2,
            "num_local_experts": 4,
            "output_router_logits": False,
            "residual_multiplier": 0.5,
            "rms_norm_eps": 1e-06,
            "shared_intermediate_size": 64,
            "tie_word_embeddings": True,
        },
        wide={"shared_intermediate_size": 512},
    ),
    "exaone_moe": Tiny(
        "exaone_moe",
        "ExaoneMoEForCausalLM",
        {
            "first_k_dense_replace": 1,
            "head_dim": 32,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "moe_intermediate_size": 32,
            "n_group": 1,
            "norm_topk_prob": True,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 4,
            "num_nextn_predict_layers": 0,
            "num_shared_experts": 1,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000,
            "routed_scaling_factor": 2.5,
            "scoring_func": "sigmoid",
            "sliding_window": 16,
            "sliding_window_pattern": "LLLG",
            "topk_group": 1,
            "topk_method": "noaux_tc",
        },
        drop=("rope_scaling",),
    ),
    "afmoe": Tiny(
        "afmoe",
        "AfmoeForCausalLM",
        {
            "attention_dropout": 0.0,
            "global_attn_every_n_layers": 4,
            "head_dim": 32,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "load_balance_coeff": 0.001,
            "moe_intermediate_size": 32,
            "mup_enabled": True,
            "n_group": 1,
            "num_dense_layers": 2,
            "num_expert_groups": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 4,
            "num_limited_groups": 1,
            "num_shared_experts": 1,
            "rms_norm_eps": 1e-05,
            "route_norm": True,
            "route_scale": 2.826,
            "score_func": "sigmoid",
            "sliding_window": 16,
            "topk_group": 1,
            "use_grouped_mm": True,
        },
    ),
    "solar_open": Tiny(
        "solar_open",
        "SolarOpenForCausalLM",
        {
            "eos_token_id": [2, 0],
            "first_k_dense_replace": 0,
            "head_dim": 32,
            "moe_intermediate_size": 32,
            "n_group": 1,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_experts_per_tok": 2,
            "num_nextn_predict_layers": 0,
            "partial_rotary_factor": 1.0,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1e6,
            "routed_scaling_factor": 1.0,
            "topk_group": 1,
            "use_qk_norm": False,
        },
    ),
    "llama4_text": Tiny(
        "llama4_text",
        "Llama4ForCausalLM",
        {
            "attention_bias": False,
            "attention_chunk_size": 8192,
            "attention_dropout": 0.0,
            "attn_scale": 0.1,
            "attn_temperature_tuning": True,
            "floor_scale": 8192,
            "head_dim": 32,
            "interleave_moe_layer_step": 2,
            "intermediate_size": 32,
            "intermediate_size_mlp": 64,
            "moe_layers": [1, 3],
            "no_rope_layers": [1, 1, 1, 0],
            "num_experts_per_tok": 1,
            "num_hidden_layers": 4,
            "num_local_experts": 4,
            "output_router_logits": False,
            "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0,
            "router_jitter_noise": 0.0,
            "use_qk_norm": True,
        },
        {"unnormed": {"use_qk_norm": False}, "chunks": {"attention_chunk_size": 16}},
    ),
    "hy_v3": Tiny(
        "hy_v3",
        "HYV3ForCausalLM",
        {
            "attention_bias": False,
            "enable_moe_fp32_combine": False,
            "first_k_dense_replace": 1,
            "head_dim": 32,
            "mlp_bias": False,
            "moe_intermediate_size": 32,
            "moe_router_enable_expert_bias": True,
            "moe_router_use_sigmoid": True,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_nextn_predict_layers": 0,
            "num_shared_experts": 1,
            "qk_norm": True,
            "rms_norm_eps": 1e-05,
            "rope_theta": 11158840.0,
            "route_norm": True,
            "router_scaling_factor": 2.826,
        },
    ),
    "kimi_k2": Tiny(
        "kimi_k2",
        "DeepseekV3ForCausalLM",
        MLA
        | {
            "auto_map": {
                "AutoConfig": "configuration_deepseek.DeepseekV3Config",
                "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
            },
            "n_group": 1,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_nextn_predict_layers": 0,
            "routed_scaling_factor": 2.827,
            "scoring_func": "sigmoid",
            "seq_aux": True,
            "topk_group": 1,
            "topk_method": "noaux_tc",
        },
        {
            "released": {
                "max_position_embeddings": 4 * CONTEXT,
                "rope_scaling": YARN_MSCALE | {"beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
            }
        },
        WIDE_MLA,
    ),
    "qwen3_next": Tiny(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        LINEAR_ATTENTION
        | SHARED_EXPERT
        | {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "output_router_logits": False,
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
        },
        {"unsaid": {"layer_types": None}},
        {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 256},
        norm=0.0,
    ),
    "qwen3_5_text": Tiny(
        "qwen3_5_text",
        "Qwen3_5ForCausalLM",
        QWEN3_5,
        {"tied": {"tie_word_embeddings": True, "linear_num_value_heads": 2}, "narrow": {"linear_value_head_dim": 16}},
        norm=0.0,
        drop=FLAT_ROPE,
    ),
    "qwen3_5_moe_text": Tiny(
        "qwen3_5_moe_text",
        "Qwen3_5MoeForCausalLM",
        QWEN3_5 | SHARED_EXPERT | {"output_router_logits": False},
        {},
        {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 256},
        norm=0.0,
        drop=(*FLAT_ROPE, "intermediate_size"),
    ),
    "lfm2": Tiny(
        "lfm2",
        "Lfm2ForCausalLM",
        SHORT_CONVOLUTION
        | {
            "block_auto_adjust_ff_dim": True,
            "block_dim": 64,
            "block_ff_dim": 144,
            "block_ffn_dim_multiplier": 1.0,
            "block_multiple_of": 32,
            "block_norm_eps": 1e-05,
            "block_use_swiglu": True,
            "conv_dim": 64,
            "full_attn_idxs": [1],
            "use_pos_enc": True,
        },
        {
            "types": {
                "block_auto_adjust_ff_dim": False,
                "block_ff_dim": 96,
                "full_attn_idxs": None,
                "layer_types": ["conv", "conv", "full_attention"],
                "num_hidden_layers": 3,
                "tie_embedding": False,
            },
        },
        drop=("intermediate_size", "rope_scaling", "tie_word_embeddings", "hidden_act"),
    ),
    "lfm2_moe": Tiny(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        SHORT_CONVOLUTION
        | {
            "layer_types": ["conv", "full_attention"],
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "num_dense_layers": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "routed_scaling_factor": 1.0,
            "use_expert_bias": True,
        },
        {"unbiased": {"use_expert_bias": False}},
        {"moe_intermediate_size": 256},
        drop=("rope_scaling", "tie_word_embeddings", "hidden_act"),
    ),
    "granitemoehybrid": Tiny(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        {
            "attention_bias": False,
            "attention_multiplier": 0.0625,
            "embedding_multiplier": 3.0,
            "init_method": "mup",
            "layer_types": ["attention", "attention"],
            "logits_scaling": 2.0,
            "mamba_chunk_size": 256,
            "mamba_conv_bias": True,
            "mamba_d_conv": 4,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_expand": 2,
            "mamba_n_groups": 1,
            "mamba_n_heads": 4,
            "mamba_proj_bias": False,
            "normalization_function": "rmsnorm",
            "num_experts_per_tok": 0,
            "num_local_experts": 0,
            "output_router_logits": False,
            "position_embedding_type": "rope",
            "residual_multiplier": 0.5,
            "rms_norm_eps": 1e-05,
            "router_aux_loss_coef": 0.01,
            "shared_intermediate_size": 96,
            "tie_word_embeddings": True,
        },
        {
            "released": HYBRID | {"num_experts_per_tok": 2, "num_local_experts": 4, "position_embedding_type": "nope"},
            "turning": HYBRID,
        },
        wide={"mamba_d_head": 128, "shared_intermediate_size": 512},
    ),
    "falcon_h1": Tiny(
        "falcon_h1",
        "FalconH1ForCausalLM",
        {
            "attention_bias": False,
            "attention_in_multiplier": 0.9,
            "attention_out_multiplier": 1.1,
            "embedding_multiplier": 1.5,
            "head_dim": 32,
            "key_multiplier": 0.8,
            "lm_head_multiplier": 0.7,
            "mamba_chunk_size": 32,
            "mamba_conv_bias": True,
            "mamba_d_conv": 4,
            "mamba_d_head": 16,
            "mamba_d_ssm": 64,
            "mamba_d_state": 16,
            "mamba_expand": 2,
            "mamba_n_groups": 1,
            "mamba_n_heads": 4,
            "mamba_norm_before_gate": False,
            "mamba_proj_bias": False,
            "mamba_rms_norm": False,
            "mamba_use_mlp": True,
            "mlp_bias": False,
            "mlp_expansion_factor": 8,
            "mlp_multipliers": [0.6, 1.2],
            "num_logits_to_keep": 1,
            "pad_token_id": 0,
            "projectors_bias": False,
            "rms_norm_eps": 1e-05,
            "ssm_in_multiplier": 1.3,
            "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7],
            "ssm_out_multiplier": 0.9,
            "time_step_floor": 0.0001,
        },
        {
            "normed": {"mamba_n_groups": 2, "mamba_rms_norm": True, "ssm_multipliers": [1.0] * 5},
            "gated after": {"mamba_norm_before_gate": True, "mamba_rms_norm": True},
            "tied": {"tie_word_embeddings": True},
        },
    ),
    "ministral3": Tiny(
        "ministral3",
        "Ministral3ForCausalLM",
        {
            "attention_dropout": 0.0,
            "head_dim": 32,
            "max_position_embeddings": 4 * CONTEXT,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-05,
            "rope_parameters": MINISTRAL3_YARN,
            "sliding_window": None,
            "tie_word_embeddings": True,
        },
        drop=("rope_scaling", "rope_theta"),
    ),
    "jais2": Tiny(
        "jais2",
        "Jais2ForCausalLM",
        {
            "attention_bias": True,
            "attention_dropout": 0.0,
            "head_dim": 16,
            "hidden_act": "relu2",
            "layer_norm_eps": 1e-05,
            "mlp_bias": True,
            "rope_theta": 500000.0,
        },
    ),
    "hunyuan_v1_dense": Tiny(
        "hunyuan_v1_dense",
        "HunYuanDenseV1ForCausalLM",
        {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "eod_token_id": 2,
            "head_dim": 32,
            "mlp_bias": False,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-05,
            "tie_word_embeddings": True,
            "use_qk_norm": True,
        },
        {"alpha": {"max_position_embeddings": 262144, "rope_scaling": HUNYUAN_ALPHA}},
    ),
    "minicpm": Tiny(
        "minicpm",
        "MiniCPMForCausalLM",
        {"attention_bias": False, "dim_model_base": 32, "rms_norm_eps": 1e-05, "scale_depth": 1.4, "scale_emb": 12},
        {
            "longrope": {
                "max_position_embeddings": 4 * CONTEXT,
                "rope_scaling": LONGROPE | {"original_max_position_embeddings": CONTEXT},
                "tie_word_embeddings": True,
            },
            "sparse": {"sparse_config": {"kernel_size": 32, "dense_len": 8192}},
        },
    ),
    "minicpm3": Tiny(
        "minicpm3",
        "MiniCPM3ForCausalLM",
        {
            "attention_bias": False,
            "dim_model_base": 256,
            "kv_lora_rank": 32,
            "num_key_value_heads": 4,
            "q_lora_rank": 48,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16,
            "rms_norm_eps": 1e-05,
            "scale_depth": 1.4,
            "scale_emb": 12,
            "tie_word_embeddings": True,
            "v_head_dim": 24,
        },
        {
            "longrope": {
                "max_position_embeddings": 4 * CONTEXT,
                "rope_scaling": LONGROPE | {"original_max_position_embeddings": CONTEXT},
                "v_head_dim": None,
            },
            "scaled": {"scale_emb": 10},
        },
        {"kv_lora_rank": 256, "num_key_value_heads": 8, "q_lora_rank": 256, "qk_nope_head_dim": 32},
    ),
    "glm4_moe_lite": Tiny(
        "glm4_moe_lite",
        "Glm4MoeLiteForCausalLM",
        {k: v for k, v in MLA.items() if k != "moe_layer_freq"}
        | {
            "n_group": 1,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_nextn_predict_layers": 0,
            "routed_scaling_factor": 1.8,
            "topk_group": 1,
            "topk_method": "noaux_tc",
        },
        {"yarn": {"max_position_embeddings": 4 * CONTEXT, "rope_scaling": YARN_MSCALE | {"mscale": 1.0, "mscale_all_dim": 1.0}}},
        WIDE_MLA,
    ),
    "youtu": Tiny(
        "youtu",
        "YoutuForCausalLM",
        RMS
        | {
            "attention_bias": False,
            "kv_lora_rank": 32,
            "mlp_bias": False,
            "num_key_value_heads": 4,
            "q_lora_rank": 48,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 16,
            "rope_interleave": True,
            "tie_word_embeddings": True,
            "v_head_dim": 16,
        },
        {"own head": {"tie_word_embeddings": False}},
        {k: v for k, v in WIDE_MLA.items() if k != "moe_intermediate_size"},
    ),
    "iquestcoder": Tiny(
        "iquestcoder",
        "IQuestCoderForCausalLM",
        {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "clip_qkv": None,
            "head_dim": 16,
            "mlp_bias": False,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-05,
            "rope_theta": 5e5,
            "use_sliding_window": False,
        },
    ),
    "hunyuan_v1_moe": Tiny(
        "hunyuan_v1_moe",
        "HunYuanMoEV1ForCausalLM",
        {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "eod_token_id": 2,
            "head_dim": 16,
            "intermediate_size": 32,
            "mlp_bias": False,
            "moe_intermediate_size": [32, 32],
            "moe_topk": [2, 2],
            "num_experts": 4,
            "num_shared_expert": [1, 1],
            "pad_token_id": 0,
            "rms_norm_eps": 1e-05,
            "sep_token_id": 0,
            "use_qk_norm": True,
        },
        {
            "alpha": {
                "head_dim": 128,
                "hidden_size": 256,
                "num_attention_heads": 2,
                "max_position_embeddings": 262144,
                "rope_scaling": HUNYUAN_ALPHA,
            },
            "uneven": {"moe_topk": [2, 1]},
        },
        {"intermediate_size": 256, "moe_intermediate_size": [256, 256]},
    ),
    "apertus": Tiny(
        "apertus",
        "ApertusForCausalLM",
        {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": "xielu",
            "mlp_bias": False,
            "pad_token_id": 0,
            "post_norm": False,
            "qk_norm": True,
            "rms_norm_eps": 1e-05,
            "rope_scaling": LLAMA3_SCALING,
            "rope_theta": 12000000,
        },
        {"biased": {"attention_bias": True}},
    ),
    "internlm3": Tiny(
        "internlm3",
        "InternLM3ForCausalLM",
        {
            "attention_dropout": 0.0,
            "bias": False,
            "head_dim": 32,
            "pad_token_id": 2,
            "qkv_bias": False,
            "rms_norm_eps": 1e-05,
            "rope_theta": 5e7,
        },
    ),
}


def names() -> list[str]:
    """Every family, and every variant as family/variant."""
    return [n for family, t in TINY.items() for n in (family, *(f"{family}/{v}" for v in t.variants))]


def described(name: str, dtype: str = "F32", wide: bool = False, config: Config | None = None) -> dict[str, Any]:
    """The config.json of a family or of family/variant."""
    family, _, variant = name.partition("/")
    tiny = TINY[family]
    made = {k: v for k, v in COMMON.items() if k not in tiny.drop} | tiny.config | (tiny.variants[variant] if variant else {})
    if wide:
        sizes = WIDE | ({"num_kv_heads": 4, "ffn_hidden_size": 512} if family == "falcon" else {}) | tiny.wide
        sizes |= {"num_key_value_heads": 8} if made.get("num_key_value_heads") == made["num_attention_heads"] else {}
        made |= {k: v for k, v in sizes.items() if k in made and made[k] is not None} | ({"head_dim": 32} if "head_dim" in made else {})
    described = {"architectures": [tiny.architecture], "model_type": tiny.model_type} | made
    described["torch_dtype"] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    return dict(sorted((described | dict(config or {})).items()))


def shapes(folder: Path) -> dict[str, Shape]:
    """Names and shapes on disk of the model that this folder's config.json describes."""
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "internlm2":
        return dict(internlm2(config))
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    read = AutoConfig.for_model(**config | {"model_type": RUN_AS.get(config["model_type"], config["model_type"])})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read)
    inner = {k: tuple(t.shape) for k, t in model.state_dict().items() if not (read.tie_word_embeddings and k == "lm_head.weight")}
    if config["model_type"] == "gemma3n_text":  # files have keys in layers that do not read them, which transformers leaves out
        keys = {k: s for k, s in inner.items() if re.search(r"layers\.0\.self_attn\.[kv]_", k)}
        inner |= {k.replace(".0.", f".{i}.", 1): s for i in range(config["num_hidden_layers"]) for k, s in keys.items()}
    return {n: s for k, shape in inner.items() for n, s in on_disk(config["model_type"], k, shape)}


def internlm2(config: Config) -> Iterator[tuple[str, Shape]]:
    """modeling_internlm2.py of internlm/internlm2-7b: Q, K and V in one matrix, grouped by K/V head."""
    hidden, ff, heads, kv = (config[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"))
    yield "model.tok_embeddings.weight", (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}."
        yield block + "attention.wqkv.weight", ((heads + 2 * kv) * (hidden // heads), hidden)
        yield block + "attention.wo.weight", (hidden, hidden)
        yield block + "feed_forward.w1.weight", (ff, hidden)
        yield block + "feed_forward.w3.weight", (ff, hidden)
        yield block + "feed_forward.w2.weight", (hidden, ff)
        yield block + "attention_norm.weight", (hidden,)
        yield block + "ffn_norm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "output.weight", (config["vocab_size"], hidden)


RUN_AS = {"kimi_k2": "deepseek_v3", "minicpm": "granite"}  # its own code is remote
EXPERT_NAMES: Mapping[str, tuple[str, str, str]] = dict.fromkeys(("mixtral", "minimax_m2", "lfm2_moe"), ("w1", "w3", "w2"))
GRANITEMOE: Mapping[str, str] = {
    "experts.gate_up_proj": "input_linear.weight", "experts.down_proj": "output_linear.weight", "router.weight": "router.layer.weight",
}  # fmt: skip


def on_disk(model_type: str, name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    """transformers 5 fuses experts in memory (conversion_mapping.py); files hold one matrix an expert, except granitemoe's, gpt_oss's and llama4's."""
    if model_type in EXPERT_NAMES:
        name = name.replace(".mlp.", ".block_sparse_moe.")
    elif model_type == "gpt_neox":
        name = name.replace("lm_head.", "embed_out.")
    elif model_type == "ernie4_5_moe":
        name = name.replace(".gate.moe_statics.", ".moe_statics.")
    elif model_type == "hy_v3":
        for memory, disk in (
            (".gate.weight", ".router.gate.weight"),
            (".e_score_correction_bias", ".expert_bias"),
            (".shared_experts.", ".shared_mlp."),
        ):
            name = name.replace(memory, disk)
    elif model_type == "exaone_moe":
        name = name.replace(".gate.e_score", ".e_score")
    fused = re.fullmatch(r"(.*\.experts\.)(gate_up|down)_proj", name)
    if ".block_sparse_moe." in name and model_type in ("granitemoe", "granitemoeshared", "granitemoehybrid"):
        yield re.sub(r"(?<=block_sparse_moe\.).*", lambda m: GRANITEMOE[m[0]], name), shape
    elif fused is None or model_type in ("gpt_oss", "llama4_text", "qwen3_5_moe_text", "gemma4_text"):
        yield name, shape
    else:
        gate, up, down = EXPERT_NAMES.get(model_type, ("gate_proj", "up_proj", "down_proj"))
        for i in range(shape[0]):
            if fused[2] == "down":
                yield f"{fused[1]}{i}.{down}.weight", shape[1:]
            else:
                for one in (gate, up):
                    yield f"{fused[1]}{i}.{one}.weight", (shape[1] // 2, shape[2])


def position_rows(name: str, rows: int, config: Config) -> np.ndarray:
    """Which rows of a projection make Q or K: bool (rows,)."""
    heads = config["num_attention_heads"]
    row = np.arange(rows)
    if re.search(r"\.(q|k|q_b)_proj\.", name):
        return row >= 0
    if ".kv_a_proj_with_mqa." in name:  # the part of K that rotates; the latent part is normed
        return row >= config["kv_lora_rank"]
    if ".qkv_proj." in name:
        return row < rows * (heads + config["num_key_value_heads"]) // (heads + 2 * config["num_key_value_heads"])
    if ".query_key_value." in name or ".wqkv." in name:  # groups of query heads, a K head and a V head
        head_dim = config["hidden_size"] // heads
        kv = rows // head_dim - heads
        group = 3 * head_dim if kv == 2 * heads else (heads // (kv // 2) + 2) * head_dim
        return row % group < group - head_dim
    return row < 0


def values(name: str, shape: Shape, rng: np.random.Generator, norm: float, config: Config) -> np.ndarray:
    """float32; matrices keep the size of what they multiply, Q and K are four times that (normed Q and K: twice)."""
    w = np.asarray(rng.standard_normal(shape), np.float32)
    if ".act_fn." in name:
        return np.asarray(-1e-6 * np.exp(w) if name.endswith("eps") else 0.5 + 0.2 * w, np.float32)
    if re.search(r"(bias|sinks)$", name):
        return 0.1 * w
    if name.endswith(("A_log", "mamba.D", "linear_attn.norm.weight", "layer_scalar", "scale")):
        return (1 + 0.1 * w).astype(np.float32)
    if re.search(r"norm|\.ln_", name):
        middle = norm if not re.search(r"\.[qk]_(layer)?norm", name) else norm + 1
        if ".q_norm." in name and config["model_type"] == "gemma3n_text":  # whose scores are not divided by anything
            middle /= 4
        return (middle + 0.1 * w).astype(np.float32)
    inputs = shape[1] if config["model_type"] in ("gpt_oss", "llama4_text") and ".experts." in name else shape[-1]
    w /= np.float32(np.sqrt(inputs))
    if len(shape) == 2:
        w[position_rows(name, shape[0], config)] *= 4
    return w


def make(name: str, folder: Path, dtype: str = "F32", seed: int = 0, wide: bool = False, config: Config | None = None) -> Path:
    """An HF folder of a family or of family/variant (names()); wide: hidden 256 and rows of multiples of 256, which quantization needs (not phi3/longrope)."""
    folder.mkdir(parents=True)
    made = described(name, dtype, wide, config)
    (folder / "config.json").write_text(json.dumps(made, indent=2) + "\n")
    for file, data in tokenizer_files().items():
        (folder / file).write_bytes(data)
    rng, tiny = np.random.default_rng([seed, zlib.crc32(name.encode())]), TINY[name.partition("/")[0]]
    save_weights(folder, {n: values(n, s, rng, tiny.norm, made) for n, s in shapes(folder).items()}, dtype, 1)
    return folder

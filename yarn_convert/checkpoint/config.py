"""config.json, decoded once: every member that is read anywhere has the type that stands here, or the file is refused by its name.

What a value may be besides its type is for those who read it. Null is allowed everywhere: for some members it is not the same as absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..families import MODEL_TYPES
from ..formats.decoding import decoded
from ..formats.tensors import load_json

FIX = "fix the model's config.json"
WHOLE = """
    vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim max_position_embeddings
    original_max_position_embeddings sliding_window n_head n_layer n_head_kv num_kv_heads ffn_hidden_size num_ln_in_parallel_attn
    q_lora_rank kv_lora_rank qk_head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim num_local_experts num_experts_per_tok
    n_routed_experts shared_expert_intermediate_size first_k_dense_replace decoder_sparse_step n_group topk_group
    num_nextn_predict_layers rotary_dim moe_k moe_num_experts moe_num_shared_experts moe_layer_start_index moe_layer_end_index
    moe_layer_interval num_shared_experts num_dense_layers shared_intermediate_size intermediate_size_mlp interleave_moe_layer_step
    floor_scale max_window_layers no_rope_layer_interval attention_chunk_size global_attn_every_n_layers full_attention_interval
    linear_conv_kernel_dim linear_key_head_dim linear_value_head_dim linear_num_key_heads linear_num_value_heads conv_L_cache block_ff_dim
    block_multiple_of mamba_d_conv mamba_d_state mamba_n_groups mamba_n_heads mamba_expand mamba_d_ssm dim_model_base kv_channels num_layers
    global_head_dim num_global_key_value_heads num_kv_shared_layers vocab_size_per_layer_input hidden_size_per_layer_input top_k_experts
    laurel_rank altup_num_inputs altup_active_idx
"""
NUMBERS = """
    rope_theta rotary_emb_base rope_local_base_freq partial_rotary_factor rotary_pct model_max_length rms_norm_eps layer_norm_eps
    layer_norm_epsilon norm_epsilon query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping embedding_multiplier
    residual_multiplier attention_multiplier logits_scaling logit_scale routed_scaling_factor swiglu_alpha swiglu_limit norm_eps
    block_ffn_dim_multiplier lm_head_multiplier key_multiplier attention_in_multiplier attention_out_multiplier ssm_in_multiplier
    ssm_out_multiplier clip_qkv route_scale router_scaling_factor attn_scale scale_emb scale_depth
"""
FLAGS = """
    tie_word_embeddings use_sliding_window is_causal alibi bias use_bias attention_bias mlp_bias qkv_bias
    use_qkv_bias qk_layernorm use_qk_norm use_parallel_residual parallel_attn multi_query new_decoder_architecture norm_topk_prob
    rope_interleave tie_embedding conv_bias block_auto_adjust_ff_dim use_expert_bias projectors_bias mamba_proj_bias
    mamba_conv_bias mamba_rms_norm mamba_norm_before_gate route_norm mup_enabled attention_out_bias
    attention_k_eq_v use_double_wide_mlp enable_moe_block allow_global_per_layer_attribute_access
    altup_correct_scale
"""
TEXTS = "model_type position_embedding_type hidden_act hidden_activation activation topk_method scoring_func"
OBJECTS = """
    quantization_config quantization compression_config text_config llm_config language_config thinker_config auto_map per_layer_config
"""


class RopeObject(msgspec.Struct):
    """rope_scaling and rope_parameters, or what stands in them for one type of layers. Other members are judged by `dialects`."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None
    factor: float | None = None
    original_max_position_embeddings: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    finetuned: bool | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    short_factor: list[float] | None = None
    long_factor: list[float] | None = None
    short_mscale: float | None = None
    long_mscale: float | None = None
    full_attention: RopeObject | None = None
    sliding_attention: RopeObject | None = None
    mrope_section: list[int] | None = None


class DualChunks(msgspec.Struct):
    original_max_position_embeddings: int | None = None


OTHERS: dict[str, Any] = {
    "dual_chunk_attention_config": DualChunks,
    "architectures": list[str],
    "layer_types": list[str],
    "mlp_layer_types": list[str],
    "no_rope_layers": list[int],
    "use_bidirectional_attention": bool | str,
    "mlp_only_layers": list[int],
    "moe_layers": list[int],
    "attn_temperature_tuning": bool | int,
    "full_attn_idxs": list[int],
    "mlp_multipliers": list[float],
    "activation_sparsity_pattern": list[float],
    "ssm_multipliers": list[float],
    "time_step_limit": list[Any],
    "rope_scaling": RopeObject,
    "rope_parameters": RopeObject,
    # Lists in models that have more of them; a number where ours read one.
    **dict.fromkeys(("intermediate_size", "num_experts", "n_shared_experts", "moe_intermediate_size", "moe_layer_freq"), int | list[int]),
    **dict.fromkeys(("moe_topk", "num_shared_expert"), int | list[int]),
    "sliding_window_pattern": int | str,  # exaone4's is "LLLG"
    **dict.fromkeys((f"{name}_token_id" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")), int | list[int]),
}
TYPES: dict[str, Any] = {
    **dict.fromkeys(WHOLE.split(), int),
    **dict.fromkeys(NUMBERS.split(), float),
    **dict.fromkeys(FLAGS.split(), bool),
    **dict.fromkeys(TEXTS.split(), str),
    **dict.fromkeys(OBJECTS.split(), dict),
    **OTHERS,
}
ConfigSchema = msgspec.defstruct("ConfigSchema", [(name, type_ | None, None) for name, type_ in TYPES.items()])


def config_of_folder(folder: Path) -> dict[str, Any]:
    """The members of a folder's config.json as they stand there. FormatError for one that has another type than its readers take."""
    return checked_config(load_json(folder / "config.json"))


def checked_config(config: dict[str, Any]) -> dict[str, Any]:
    """`config` itself, after its types were looked at. What all readers take though it is spelled otherwise is to be changed here."""
    decoded(config, ConfigSchema, "config.json", FIX)
    for path in NESTS:
        if nested := within(config, path):
            decoded(nested, ConfigSchema, f"{'.'.join(path)} of config.json", FIX)
    return config


# Where the language model's part of a model with eyes or ears stands: the keys that lead to it
NESTS = (("text_config",), ("llm_config",), ("language_config",), ("thinker_config", "text_config"))


# A model that says of its language model at the top of config.json, beside what sees -> the language model's own model_type
SPREAD: Mapping[Any, str] = {row.spread_in: name for name, row in MODEL_TYPES.items() if row.spread_in}
AROUND = ("architectures", "vision_config")  # of the model around, that rows ask for


def nest_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The one of `NESTS` where config.json describes a language model; () where it does so at its top, as most do."""
    return next((path for path in NESTS if within(config, path).get("model_type")), ())


def around(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What config.json says of the model that the language model is a part of, with an empty object where transformers has that; {} where
    it stands alone."""
    nest = nest_of(config)
    if nest:
        return put(config, nest, {})
    others = {k: v for k, v in config.items() if k in ("model_type", *AROUND)}
    return put({**others, **dict.fromkeys(NESTS[0])}, NESTS[0], {}) if config.get("model_type") in SPREAD else {}


def language_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What config.json says of the language model, wherever that stands; and of a model around it the architecture and what sees."""
    nest = nest_of(config)
    if nest:
        return {**within(config, nest), **{k: config[k] for k in AROUND if k in config}}
    name = config.get("model_type")
    return {**config, "model_type": SPREAD[name]} if name in SPREAD else config


def put(config: Mapping[str, Any], path: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with `values` for the object that `path` leads to."""
    return {**config, path[0]: put(config[path[0]], path[1:], values)} if path else dict(values)


def within(config: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    """The object that `path` leads to, key by key; {} where there is none."""
    for key in path:
        found = config.get(key)
        config = found if isinstance(found, dict) else {}
    return config

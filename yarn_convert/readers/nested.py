"""How readers take a language model that is a part of another, as of one that sees: rows that are claimed for that alone.

Where its part of config.json stands, a reader follows the same keys as of a model by itself, but for what stands here. What was read
and run are the classes of these architectures (`tests/data/readers_nested.json`); within any other a reader makes no claim, but for
transformers 5, whose config classes are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .rows import DUAL_CHUNKS, HF_READERS, METHODS, TYPE_FIRST, VLLM_UNKNOWN, Reader

Part = tuple[str, str]  # architecture of the model around, model_type of the language model
GEMMA3: Part = ("Gemma3ForConditionalGeneration", "gemma3_text")
LLAVAS: tuple[Part, ...] = (("LlavaForConditionalGeneration", "llama"), ("Mistral3ForConditionalGeneration", "mistral"))
MINISTRAL: Part = ("Mistral3ForConditionalGeneration", "ministral3")
QWEN2S: tuple[Part, ...] = (("Qwen2VLForConditionalGeneration", "qwen2_vl_text"), ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl_text"))
QWEN3: Part = ("Qwen3VLForConditionalGeneration", "qwen3_vl_text")
QWEN3_MOE: Part = ("Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe_text")
QWEN35S: tuple[Part, ...] = (
    ("Qwen3_5ForConditionalGeneration", "qwen3_5_text"),
    ("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe_text"),
)
PICTURES = (*QWEN2S, QWEN3, QWEN3_MOE, *QWEN35S)  # three positions a token
# What `ModelArgs` of mlx-lm have no default for
SHAPE = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "rms_norm_eps", "vocab_size")
SHAPE_QWEN3 = (*SHAPE, "num_key_value_heads", "head_dim", "max_position_embeddings", "tie_word_embeddings")
EXPERTS = ("num_experts", "num_experts_per_tok", "decoder_sparse_step", "mlp_only_layers", "moe_intermediate_size", "norm_topk_prob")


def _row(name: str, *evidence: str, **fields: Any) -> Reader:
    row = HF_READERS[name]
    return replace(row, evidence=(*evidence, *row.evidence[-1:]), variants={}, **fields)


_LOADED = "vllm/transformers_utils/config.py: get_config, get_hf_text_config (rope of text_config, and its length)"
_VLLM = _row("vllm", _LOADED, "vllm/model_executor/models/llava.py, mistral3.py: hf_config=config.text_config")
_VLLM_MROPE = replace(
    _VLLM,
    evidence=(_LOADED, "vllm/model_executor/layers/rotary_embedding/mrope.py: MRotaryEmbedding; vllm/model_executor/models/qwen*.py"),
    types={**_VLLM.types, "mrope": "default"},
    partial=("rotates", ("dict", "top")),
    three_axes=frozenset({"default", "yarn"}),
    unknown={"dict": {k: v for k, v in VLLM_UNKNOWN["dict"].items() if k != "mrope_section"}, "top": VLLM_UNKNOWN["top"]},
    yarn_times=1,
)
_COMMON = "sglang/srt/utils/hf_transformers/common.py: get_hf_text_config, get_context_length"
_SGLANG = _row("sglang", _COMMON, "sglang/srt/models/llava.py, mistral.py: text_config goes to the class of the language model")
_SGLANG_MROPE = replace(
    _SGLANG,
    evidence=(_COMMON, "sglang/srt/layers/rotary_embedding/mrope.py: YaRNScalingMRotaryEmbedding; sglang/srt/models/qwen*.py"),
    temperature=("times-attn_factor",),
    unknown={"dict": {"use_fope": False, "video_rope": False, "extrapolation_factor": 1.0}, "top": DUAL_CHUNKS},
    three_axes=frozenset({"default", "yarn"}),
    forbidden={"yarn": ("mscale", "mscale_all_dim")},
)
_MLX = HF_READERS["mlx-lm"]
_EXL = _row(
    "exllamav3",
    "exllamav3/architecture/*.py: *Config.__init__ (rope of text_config); exllamav3/model/config.py: Config.__init__ (context)",
    context_keys=(8192,),
)


def _mlx(model_type: str, file: str, **fields: Any) -> Reader:
    row = _MLX.variants.get(model_type, _MLX)
    files = f"mlx_lm/models/{file}.py: ModelArgs, Model; mlx_lm/models/rope_utils.py: initialize_rope"
    names = {name for _, name in (*LLAVAS, GEMMA3, MINISTRAL, *PICTURES)}
    return replace(row, evidence=(files,), type_keys=dict.fromkeys(names, TYPE_FIRST), variants={}, **fields)


_MROPE: dict[str, Any] = {"types": {**_MLX.types, "mrope": "default"}}
_MLX_35 = _mlx("llama", "qwen3_5, qwen3_next", dicts=("rope_parameters",), theta=("dict", 1e5), partial=("rotates", ("dict",)), **_MROPE)
WITHIN: Mapping[str, Mapping[Part, Reader]] = {
    "vllm": {
        **dict.fromkeys(LLAVAS, _VLLM),
        MINISTRAL: replace(_VLLM, evidence=(_LOADED, "vllm/model_executor/models/mistral.py: MistralAttention"), floor=()),
        GEMMA3: replace(
            _VLLM,
            evidence=(_LOADED, "vllm/model_executor/models/gemma3.py: Gemma3Attention"),
            layers_truncate=True,
            context_rule="given",
        ),
        **dict.fromkeys(PICTURES, _VLLM_MROPE),
        **dict.fromkeys(QWEN2S, replace(_VLLM_MROPE, yarn_times=4)),  # get_rope: mrope_positions_factor; models/qwen2.py leaves it at 4
    },
    "sglang": {
        **dict.fromkeys(LLAVAS, _SGLANG),
        MINISTRAL: replace(_SGLANG, evidence=(_COMMON, "sglang/srt/models/ministral3.py: Ministral3DecoderLayer"), floor=("top", 16384)),
        GEMMA3: replace(
            _SGLANG,
            evidence=(_COMMON, "sglang/srt/models/gemma3_causal.py: Gemma3Attention (rope_type default, whatever is written)"),
            types={},
            other_types="default",
            context_rule="given",
        ),
        **dict.fromkeys(PICTURES, _SGLANG_MROPE),
        **dict.fromkeys(
            QWEN35S,
            replace(
                _SGLANG_MROPE,
                evidence=(*_SGLANG_MROPE.evidence, "sglang/srt/configs/qwen3_5.py: Qwen3_5TextConfig, in place of transformers' class"),
                partial=("rotates", ("top",)),
            ),
        ),
    },
    "mlx-lm": {
        **dict.fromkeys(LLAVAS, _mlx("llama", "mistral3, llama", top_required=SHAPE)),
        MINISTRAL: _mlx(
            "llama",
            "mistral3, ministral3",
            dicts=("rope_parameters",),
            theta=("dict",),
            top_required=("rope_parameters",),
            required=dict.fromkeys(METHODS, ("original_max_position_embeddings", "llama_4_scaling_beta")),
        ),
        GEMMA3: _mlx("gemma3_text", "gemma3, gemma3_text"),
        **dict.fromkeys(QWEN2S, _mlx("qwen2", "qwen2_vl, qwen2", top_required=(*SHAPE, "num_key_value_heads"))),
        QWEN3: replace(
            _mlx("qwen3", "qwen3_vl, qwen3", **_MROPE),
            top_required=SHAPE_QWEN3,
        ),
        QWEN3_MOE: replace(_mlx("qwen3_moe", "qwen3_vl_moe, qwen3_moe"), top_required=(*SHAPE_QWEN3, *EXPERTS, "rope_theta")),
        **dict.fromkeys(QWEN35S, _MLX_35),
    },
    "exllamav3": {
        LLAVAS[1]: _EXL,
        MINISTRAL: replace(_EXL, temperature=("attention_factor", "one-by-position"), floor=("yarn",), unknown={}),
        GEMMA3: replace(_EXL, dicts=("rope_scaling",), theta=("top", 1e6), others_theta=1e4, context_keys=(131072,), assumes_head_dim=True),
        **dict.fromkeys((QWEN3, QWEN3_MOE), replace(_EXL, theta=("top", "rope_parameters", 5e6))),
        **dict.fromkeys(
            QWEN35S,
            replace(_EXL, theta=("top", "rope_parameters", 1e7), assumes_partial=False),
        ),
    },
}

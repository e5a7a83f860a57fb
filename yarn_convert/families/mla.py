"""DeepSeek V2 and V3: keys and values are made of one small latent vector, and a part of each head turns."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

from ..errors import FormatError, Unsupported
from .architectures import Arch
from .layers import MOST, Values
from .llama import EXPERT_HPARAMS, NOT_DENSE, PLAIN_TENSORS, SILU
from .model_types import NEW, ModelType
from .qwen import EXPERTS, PARTS
from .schema import HPARAMS, Family

DRAFTS = "nextn_predict_layers"  # of a GGUF with layers that predict a token further on, for whose tensors no row has names
BIASED = "blk.1.exp_probs_b.bias"  # of one whose second layer chooses experts by a bias, as V3 does

_ATTENTION, _LAYER = "model.layers.{i}.self_attn.", "blk.{i}."
DENSE = {hf: gguf for hf, gguf in PLAIN_TENSORS.items() if ".mlp." in hf}
SHARED = {f"model.layers.{{i}}.mlp.shared_experts.{x}_proj.weight": f"{_LAYER}ffn_{x}_shexp.weight" for x in PARTS}
LATENT = {f"{_LAYER}attn_k_b.weight": "latent", f"{_LAYER}attn_v_b.weight": "latent"}
Q_LORA = {
    f"{_ATTENTION}q_a_proj.weight": f"{_LAYER}attn_q_a.weight",
    f"{_ATTENTION}q_a_layernorm.weight": f"{_LAYER}attn_q_a_norm.weight",
    f"{_ATTENTION}q_b_proj.weight": f"{_LAYER}attn_q_b.weight",
}
TENSORS: dict[str, str | tuple[str, ...]] = {
    **{hf: gguf for hf, gguf in NOT_DENSE.items() if ".self_attn." not in hf},
    f"{_ATTENTION}q_proj.weight": f"{_LAYER}attn_q.weight",
    **Q_LORA,
    f"{_ATTENTION}kv_a_proj_with_mqa.weight": f"{_LAYER}attn_kv_a_mqa.weight",
    f"{_ATTENTION}kv_a_layernorm.weight": f"{_LAYER}attn_kv_a_norm.weight",
    f"{_ATTENTION}kv_b_proj.weight": tuple(LATENT),
    f"{_ATTENTION}o_proj.weight": f"{_LAYER}attn_output.weight",
    **DENSE,
    **EXPERTS,
    **SHARED,
}

ROUTED_HPARAMS = {
    "first_k_dense_replace": "leading_dense_block_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "n_shared_experts": "expert_shared_count",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
    "routed_scaling_factor": "expert_weights_scale:f32",
    "norm_topk_prob": "expert_weights_norm:bool",
}
MAY_LACK = frozenset({"first_k_dense_replace", "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor"})
HPARAMS_MLA = {
    **{k: v for k, v in HPARAMS.items() if k not in ("num_key_value_heads", "head_dim")},
    **EXPERT_HPARAMS,
    "head_dim": "rope.dimension_count",  # of the part that turns
    "qk_head_dim": "attention.key_length_mla",
    "v_head_dim": "attention.value_length_mla",
    "q_lora_rank": "attention.q_lora_rank",
    "kv_lora_rank": "attention.kv_lora_rank",
    "latent_key": "attention.key_length",
    "latent_value": "attention.value_length",
    **ROUTED_HPARAMS,
}
SHAPES_MLA = {
    "attn_q.weight": ("q_mla", "hidden"),
    "attn_q_a.weight": ("q_lora", "hidden"),
    "attn_q_a_norm.weight": ("q_lora",),
    "attn_q_b.weight": ("q_mla", "q_lora"),
    "attn_kv_a_mqa.weight": ("kv_a", "hidden"),
    "attn_kv_a_norm.weight": ("kv_lora",),
    "attn_k_b.weight": ("heads", "kv_lora", "nope"),
    "attn_v_b.weight": ("heads", "value", "kv_lora"),
    "attn_output.weight": ("hidden", "o_mla"),
}


def latent_sizes(h: Values) -> dict[str, int]:
    """Sizes of tensors where a part of each head turns."""
    heads, head, value = h["num_attention_heads"], h["qk_head_dim"], h["v_head_dim"]
    nope = head - h["head_dim"]
    return {
        "nope": nope,
        "q_mla": heads * head,
        "o_mla": heads * value,
        "kv_a": h["kv_lora_rank"] + h["head_dim"],
        "kv_b": heads * (nope + value),
    }


def _leading(h: Values, layer: int) -> bool:
    return layer < (h.get("first_k_dense_replace") or 0)


def not_leading(h: Values, layer: int) -> bool:
    return not _leading(h, layer)


def _q_lora(h: Values, layer: int) -> bool:
    return h.get("q_lora_rank") is not None


def _not_q_lora(h: Values, layer: int) -> bool:
    return not _q_lora(h, layer)


SCORE_BIAS = {"model.layers.{i}.mlp.gate.e_score_correction_bias": f"{_LAYER}exp_probs_b.bias"}  # by which V3 chooses experts
LEADING_DENSE = {
    **dict.fromkeys(DENSE.values(), _leading),
    **dict.fromkeys([*EXPERTS.values(), *SHARED.values()], not_leading),
}
ONLY_WHERE = {
    **LEADING_DENSE,
    **dict.fromkeys(Q_LORA.values(), _q_lora),
    f"{_LAYER}attn_q.weight": _not_q_lora,
}
FIXED = {**SILU, "attention_bias": (False,), "mlp_bias": (False,), "moe_layer_freq": (1,), "usual_q_lora": (True,)}
EVIDENCE = (
    "llama.cpp 0c1e570: src/models/deepseek2.cpp (neighbours turn, as in HF; kq_scale; rope_freqs.weight is not loaded; q_lora_rank is "
    "read unless there are 26, 27 or some 48 layers), src/llama-context.cpp (yarn_log_multiplier); conversion/deepseek.py DeepseekV2Model; "
    "transformers 5.23: models/deepseek_v{2,3}/modeling_*.py (yarn_apply_mscale)"
)


def _reads(c: Values) -> dict[str, Any]:
    """Sizes of the multi-query form, which is what a GGUF describes. llama.cpp takes the queries' rank for absent where its
    layers are those of a lite model, and needs it elsewhere (src/models/deepseek2.cpp, load_arch_hparams)."""
    nope, rope, latent, layers = (c.get(k) or 0 for k in ("qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank", "num_hidden_layers"))
    if min(nope, rope, latent) < 0:
        raise FormatError(f"qk_nope_head_dim, qk_rope_head_dim and kv_lora_rank are {nope!r}, {rope!r} and {latent!r}", "fix config.json")
    lite = layers in (26, 27) or (layers == 48 and c.get("vocab_size") == 128256)
    sizes = {"head_dim": rope, "qk_head_dim": nope + rope, "latent_key": latent + rope, "latent_value": latent}
    return {**sizes, "num_key_value_heads": c.get("num_attention_heads"), "usual_q_lora": (c.get("q_lora_rank") is None) == lite}


def _writes(c: Values) -> dict[str, Any]:
    said = {"q_lora_rank": c["q_lora_rank"], "first_k_dense_replace": c["first_k_dense_replace"] or 0, "moe_layer_freq": 1}
    return said | {"qk_nope_head_dim": c["qk_head_dim"] - c["head_dim"], "attention_bias": False}


def _writes_v2(c: Values, names: Container[str]) -> dict[str, Any]:
    """Raises Unsupported for experts that transformers' DeepSeek V2 would choose or weigh otherwise."""
    if (c["n_group"] or 1) > 1 or c["norm_topk_prob"]:
        raise Unsupported("transformers' deepseek_v2 does not route tokens to experts as this GGUF has it", "--out gguf")
    return _writes(c) | {"topk_method": "greedy", "scoring_func": "softmax"}


def routed(c: Values) -> dict[str, Any]:
    """What llama.cpp takes where a GGUF does not say how experts are chosen and weighed."""
    groups = {key: c[key] or 1 for key in ("n_group", "topk_group")}
    said = {"first_k_dense_replace": c["first_k_dense_replace"] or 0, "norm_topk_prob": bool(c["norm_topk_prob"])}
    return said | groups | {"routed_scaling_factor": c["routed_scaling_factor"] or 1.0}


def _writes_v3(c: Values, names: Container[str]) -> dict[str, Any]:
    return _writes(c) | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"} | routed(c)


DEEPSEEK_V2 = Family(
    hf=ModelType(
        "deepseek_v2",
        2048,
        head_dim=64,
        architectures=("DeepseekV2ForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-6,
            "first_k_dense_replace": 0,
            "kv_lora_rank": 512,
            "q_lora_rank": 1536,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "moe_intermediate_size": 1407,
            "routed_scaling_factor": 1.0,
            "norm_topk_prob": False,
        },
        renamed={"num_experts": "n_routed_experts", "head_dim": "qk_rope_head_dim"},
        unsaid=frozenset({"qk_head_dim", "latent_key", "latent_value"}),
        reads=_reads,
        writes=_writes_v2,
        latent=True,
    ),
    gguf=Arch("deepseek2", mla=True),
    tensors=TENSORS,
    only_where=ONLY_WHERE,
    transforms=LATENT,
    shapes=SHAPES_MLA,
    sizes=latent_sizes,
    hparams=HPARAMS_MLA,
    may_lack=MAY_LACK | {"q_lora_rank"},
    fixed={**FIXED, "n_group": (1,), "scoring_func": ("softmax",), "norm_topk_prob": (False,)},
    constants={"attention.head_count_kv": ("u32", 1), "expert_gating_func": ("u32", 1)},
    marks=frozenset({f"!{DRAFTS}"}),
    evidence=EVIDENCE + "; groups of experts are scored by their best in transformers, by their best two in llama.cpp "
    "(src/llama-graph.cpp, build_moe_ffn), and transformers never normalizes the weights of experts",
    twin={"qk_nope_head_dim": 16},
)

DEEPSEEK_V3 = replace(
    DEEPSEEK_V2,
    hf=replace(
        DEEPSEEK_V2.hf,
        name="deepseek_v3",
        length=4096,
        other_head_dim=False,
        architectures=("DeepseekV3ForCausalLM",),
        defaults={
            **DEEPSEEK_V2.hf.defaults,
            "first_k_dense_replace": 3,
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "n_shared_experts": 1,
            "n_group": 8,
            "topk_group": 4,
            "moe_intermediate_size": 2048,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
        },
        writes=_writes_v3,
    ),
    tensors={**TENSORS, **SCORE_BIAS},
    only_where={**ONLY_WHERE, f"{_LAYER}exp_probs_b.bias": not_leading},
    fixed={**FIXED, "scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",), "rope_interleave": (True,)},
    marks=frozenset({"expert_gating_func", f"!{DRAFTS}"}),
    constants={"attention.head_count_kv": ("u32", 1), "expert_gating_func": ("u32", 2)},
    evidence=EVIDENCE + ", which skips the layers that predict a token further on",
)


def _layer_types(c: Values) -> dict[str, Any]:
    """How many of the first layers are dense, which mlp_layer_types says, else one is; a first_k_dense_replace is passed over."""
    kinds = c.get("mlp_layer_types")
    dense = 1 if kinds is None else next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))
    return _reads(c) | {"first_k_dense_replace": dense, "usual_experts": kinds is None or "dense" not in kinds[dense:]}


def _writes_layer_types(c: Values, names: Container[str]) -> dict[str, Any]:
    said = {k: v for k, v in _writes_v3(c, names).items() if k != "first_k_dense_replace"}
    dense, layers = c["first_k_dense_replace"] or 0, min(c["num_hidden_layers"], MOST)
    return said | {"mlp_layer_types": ["dense"] * min(dense, layers) + ["sparse"] * (layers - dense)}


GLM4_MOE_LITE = replace(
    DEEPSEEK_V3,
    hf=replace(
        DEEPSEEK_V3.hf,
        name="glm4_moe_lite",
        length=202752,
        since=NEW,
        architectures=("Glm4MoeLiteForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-5,
            "kv_lora_rank": 512,
            "q_lora_rank": 768,
            "n_routed_experts": 64,
            "num_experts_per_tok": 4,
            "n_shared_experts": 1,
            "qk_nope_head_dim": 192,
            "v_head_dim": 256,
            "moe_intermediate_size": 1536,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.8,
            "norm_topk_prob": True,
        },
        unsaid=DEEPSEEK_V3.hf.unsaid | {"first_k_dense_replace"},
        reads=_layer_types,
        writes=_writes_layer_types,
    ),
    fixed={**DEEPSEEK_V3.fixed, "usual_experts": (True,)},
    marks=frozenset({BIASED, "!expert_gating_func", f"!{DRAFTS}"}),  # as llama.cpp's converter writes it
    evidence=f"{EVIDENCE}; conversion/glm.py Glm4MoeLiteModel with --no-mtp; transformers 5.23: models/glm4_moe_lite, whose code is V3's",
)


def _dense(c: Values) -> dict[str, Any]:
    """No layer has experts; llama.cpp asks for the size of one all the same (conversion/deepseek.py)."""
    said = {"first_k_dense_replace": c.get("num_hidden_layers"), "moe_intermediate_size": c.get("intermediate_size")}
    return _reads(c) | said


def _writes_dense(c: Values, names: Container[str]) -> dict[str, Any]:
    return {k: v for k, v in _writes(c).items() if k not in ("first_k_dense_replace", "moe_layer_freq")}


ALL_DENSE = ("first_k_dense_replace", "moe_intermediate_size")
YOUTU = replace(
    DEEPSEEK_V2,
    hf=ModelType(
        "youtu",
        131072,
        head_dim=64,
        latent=True,
        other_head_dim=False,
        since=NEW,
        architectures=("YoutuForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-6,
            "kv_lora_rank": 512,
            "q_lora_rank": 1536,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "tie_word_embeddings": True,
        },
        renamed={"head_dim": "qk_rope_head_dim"},
        unsaid=DEEPSEEK_V2.hf.unsaid | set(ALL_DENSE),
        reads=_dense,
        writes=_writes_dense,
    ),
    tensors={hf: gguf for hf, gguf in TENSORS.items() if ".mlp." not in hf} | DENSE,
    only_where={name: where for name, where in ONLY_WHERE.items() if where in (_q_lora, _not_q_lora)},
    hparams={
        key: name for key, name in HPARAMS_MLA.items() if key in ALL_DENSE or (key not in ROUTED_HPARAMS and key not in EXPERT_HPARAMS)
    },
    may_lack=frozenset({"q_lora_rank"}),
    fixed={**SILU, "attention_bias": (False,), "usual_q_lora": (True,), "rope_interleave": (True,)},
    constants={"attention.head_count_kv": ("u32", 1), "expert_shared_count": ("u32", 0)},
    marks=frozenset({"!expert_count", f"!{DRAFTS}"}),
    evidence=f"{EVIDENCE}; transformers 5.23: models/youtu; no layer has experts",
)

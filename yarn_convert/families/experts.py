"""Experts that are chosen and weighed as DeepSeek V3's, above attention of the usual kind: dots1, GLM-4.5 and Solar Open,
Kimi K2, ERNIE 4.5, K-EXAONE, Trinity."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

from ..errors import Unsupported
from .architectures import Arch
from .layers import FULL, MOST, SLIDES, Values, alternating, gguf_afmoe, gguf_within, hf_afmoe, hf_exaone4
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
    return {"layer_types": c.get("layer_types") or [SLIDES if full is not None and i >= full else FULL for i in range(min(layers, MOST))]}


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


def _solar_open_writes(c: Values, names: Container[str]) -> dict[str, Any]:
    return {k: v for k, v in routed({"first_k_dense_replace": 0, **c}).items() if k != "first_k_dense_replace"}


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

SOLAR_OPEN = replace(
    GLM4_MOE,
    hf=ModelType(
        "solar_open",
        131072,
        1e6,
        head_dim=128,
        partial=1.0,
        architectures=("SolarOpenForCausalLM",),
        defaults={k: v for k, v in GLM4_MOE.hf.defaults.items() if k != "first_k_dense_replace"} | {"moe_intermediate_size": 1280},
        renamed=GLM4_MOE.hf.renamed,
        switches={"attention_bias": QKV_BIASES},
        writes=_solar_open_writes,
    ),
    tensors={hf: gguf for hf, gguf in GLM4_MOE.tensors.items() if hf not in DENSE and hf not in QK_NORMS},
    only_where={},
    hparams={k: v for k, v in GLM4_MOE.hparams.items() if k != "first_k_dense_replace"},
    may_lack=MAY_LACK - {"first_k_dense_replace"} | {"intermediate_size"},
    fixed={**SILU, "first_k_dense_replace": (0,), "use_qk_norm": (False,)},
    constants={**GLM4_MOE.constants, "leading_dense_block_count": ("u32", 0)},
    marks=frozenset({"!blk.0.ffn_gate.weight", "!blk.0.attn_q_norm.weight"}),
    evidence=f"{GLM4_MOE.evidence}, SolarOpenModel, which takes an absent partial_rotary_factor for a half",
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


def _number_shared(c: Values) -> int:
    return int(c["shared_expert_intermediate_size"] or 0) // int(c["moe_intermediate_size"])


def _ernie_writes(c: Values, names: Container[str]) -> dict[str, Any]:
    return {"moe_layer_start_index": c["first_k_dense_replace"] or 0, "moe_num_shared_experts": _number_shared(c)}


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


def _exaone(c: Values) -> dict[str, Any]:
    """As `_ernie`. Every fourth layer sees all, by a list, by a number or by letters."""
    size, windows, every = c.get("moe_intermediate_size") or 0, c.get("layer_types"), c.get("sliding_window_pattern", 4)
    usual = windows == alternating(len(windows), 4) if windows else every in (4, "LLLG")
    return {
        "shared_expert_intermediate_size": (c.get("num_shared_experts") or 0) * size,
        "usual_windows": usual and c.get("sliding_window") is not None,
    }


def _exaone_writes(c: Values, names: Container[str]) -> dict[str, Any]:
    return routed(c) | {"num_shared_experts": _number_shared(c), "layer_types": alternating(c["num_hidden_layers"], 4)}


EXAONE_MOE = Family(
    hf=ModelType(
        "exaone_moe",
        2048,
        turning=hf_exaone4,
        architectures=("ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"),
        defaults={
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 32,
            "sliding_window": 4096,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "moe_intermediate_size": 1024,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
        },
        renamed={"n_shared_experts": "num_shared_experts"},
        unsaid=frozenset({"shared_expert_intermediate_size"}),
        reads=_exaone,
        writes=_exaone_writes,
    ),
    gguf=Arch("exaone-moe", freqs="applied", turning=gguf_within, head="required"),
    tensors={
        **NOT_DENSE,
        **QK_NORMS,
        **DENSE,
        **EXPERTS,
        "model.layers.{i}.mlp.e_score_correction_bias": _BIAS,
        **SHARED,
    },
    only_where=ROUTED["only_where"],
    hparams={
        **ROUTED["hparams"],
        "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
        "sliding_window": "attention.sliding_window",
    },
    may_lack=MAY_LACK | {"sliding_window"},
    fixed={**SILU, "scoring_func": ("sigmoid",), "usual_windows": (True,)},
    constants={**SIGMOID, "nextn_predict_layers": ("u32", 0)},
    next_tokens=("mtp.",),
    evidence="llama.cpp 0c1e570: src/models/exaone-moe.cpp (halves turn in the three of four layers that slide; loads rope_freqs.weight); "
    "conversion/exaone.py ExaoneMoEModel",
    twin={"num_hidden_layers": 4},
)


def _afmoe(c: Values) -> dict[str, Any]:
    windows = c.get("layer_types")
    return {"usual_windows": windows == alternating(len(windows), 4) if windows else c.get("global_attn_every_n_layers", 4) == 4}


def _afmoe_writes(c: Values, names: Container[str]) -> dict[str, Any]:
    said = {"num_dense_layers": c["first_k_dense_replace"] or 0, "route_scale": c["routed_scaling_factor"] or 1.0}
    return said | {"layer_types": alternating(c["num_hidden_layers"], 4)}


AFMOE = Family(
    hf=ModelType(
        "afmoe",
        16384,
        head_dim=128,
        turning=hf_afmoe,
        architectures=("AfmoeForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-5,
            "sliding_window": 1024,
            "num_experts": 64,
            "num_experts_per_tok": 6,
            "num_shared_experts": 2,
            "moe_intermediate_size": 1408,
            "num_dense_layers": 1,
            "route_scale": 1.0,
            "route_norm": True,
            "mup_enabled": False,
        },
        renamed={
            "n_shared_experts": "num_shared_experts",
            "first_k_dense_replace": "num_dense_layers",
            "routed_scaling_factor": "route_scale",
        },
        reads=_afmoe,
        writes=_afmoe_writes,
    ),
    gguf=Arch("afmoe", other_layers="shared", turning=gguf_afmoe),
    tensors={
        **{hf: gguf for hf, gguf in NOT_DENSE.items() if "post_attention" not in hf},
        **QK_NORMS,
        "model.layers.{i}.self_attn.gate_proj.weight": "blk.{i}.attn_gate.weight",
        "model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.post_attention_norm.weight",
        "model.layers.{i}.pre_mlp_layernorm.weight": "blk.{i}.ffn_norm.weight",
        "model.layers.{i}.post_mlp_layernorm.weight": "blk.{i}.post_ffw_norm.weight",
        **DENSE,
        **{hf.replace(".gate.", ".router.gate."): gguf for hf, gguf in EXPERTS.items()},
        "model.layers.{i}.mlp.expert_bias": _BIAS,
        **SHARED,
    },
    shapes={"attn_gate.weight": ("q", "hidden")},
    only_where=ROUTED["only_where"],
    hparams={k: v for k, v in ROUTED["hparams"].items() if "group" not in k and k != "norm_topk_prob"}
    | {"sliding_window": "attention.sliding_window"},
    may_lack=frozenset({"first_k_dense_replace", "routed_scaling_factor"}),
    fixed={
        **SILU,
        "attention_bias": (False,),
        "mup_enabled": (True,),
        "n_group": (1,),
        "route_norm": (True,),
        "score_func": ("sigmoid",),
        "usual_windows": (True,),
    },
    constants={
        **SIGMOID,
        "expert_weights_norm": ("bool", True),
        "expert_group_count": ("u32", 1),
        "expert_group_used_count": ("u32", 1),
    },
    marks=frozenset({"expert_weights_norm"}),  # without it llama.cpp does not normalize
    evidence="llama.cpp 0c1e570: src/models/afmoe.cpp (halves turn, in the three of four layers that slide; embeddings are multiplied by "
    "the root of their size; a gate on what attention gives); conversion/afmoe.py AfmoeModel",
    twin={"num_hidden_layers": 4},
)

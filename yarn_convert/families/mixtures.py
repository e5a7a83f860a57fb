"""Other mixtures of experts: OLMoE, MiniMax M2, Hy3, Hunyuan."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

from .architectures import Arch
from .dense import HUNYUAN_DENSE, hunyuan
from .layers import MOST, Values
from .llama import EXPERT_HPARAMS, MIXTRAL, NOT_DENSE, SILU
from .mla import DENSE
from .model_types import NEW, ModelType
from .qwen import EXPERTS, PARTS, QK_NORMS
from .schema import HPARAMS, Family

QK_NORMS_OVER_ALL = {"attn_q_norm.weight": ("q",), "attn_k_norm.weight": ("kv",)}

OLMOE = Family(
    hf=ModelType(
        "olmoe",
        4096,
        architectures=("OlmoeForCausalLM",),
        defaults={"rms_norm_eps": 1e-5, "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False},
    ),
    gguf=Arch("olmoe", head="required", square=True, ungrouped=True),
    tensors={**NOT_DENSE, **QK_NORMS, **EXPERTS},
    hparams={**HPARAMS, **EXPERT_HPARAMS},
    fixed={**SILU, "attention_bias": (False,), "clip_qkv": (), "norm_topk_prob": (False,)},
    shapes=QK_NORMS_OVER_ALL,
    evidence="llama.cpp 0c1e570: src/models/olmoe.cpp (as many keys as queries; rope_freqs.weight is not loaded; experts' weights not "
    "normalized); conversion/olmo.py OlmoeModel",
)


def _size_of_experts(c: Values) -> dict[str, Any]:
    """Experts have the size that config.json calls the layer's."""
    return {"moe_intermediate_size": c.get("intermediate_size")}


MINIMAX_M2 = Family(
    hf=ModelType(
        "minimax_m2",
        196608,
        5e6,
        head_dim=128,
        partial=1.0,
        dims="rotary_dim",
        architectures=("MiniMaxM2ForCausalLM",),
        defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 8, "num_local_experts": 256, "num_experts_per_tok": 8},
        renamed={"num_experts": "num_local_experts"},
        unsaid=frozenset({"moe_intermediate_size"}),
        reads=_size_of_experts,
        since=NEW,
    ),
    gguf=Arch("minimax-m2", head="required"),
    tensors={
        **NOT_DENSE,
        **QK_NORMS,
        **{hf: gguf for hf, gguf in MIXTRAL.tensors.items() if "block_sparse_moe" in hf},
        "model.layers.{i}.block_sparse_moe.e_score_correction_bias": "blk.{i}.exp_probs_b.bias",
    },
    hparams={**HPARAMS, **EXPERT_HPARAMS, "moe_intermediate_size": "expert_feed_forward_length"},
    fixed={**SILU, "scoring_func": ("sigmoid",)},
    constants={"expert_gating_func": ("u32", 2)},
    shapes=QK_NORMS_OVER_ALL,
    evidence="llama.cpp 0c1e570: src/models/minimax-m2.cpp (turns the first rope.dimension_count of each head; rope_freqs.weight is not "
    "loaded); conversion/minimax.py MiniMaxM2Model",
)


def _hy_v3(c: Values) -> dict[str, Any]:
    """The experts that every token sees are one, that much larger."""
    return {"shared_expert_intermediate_size": (c.get("num_shared_experts") or 0) * (c.get("moe_intermediate_size") or 0)}


def _hy_v3_writes(c: Values, names: Container[str]) -> dict[str, Any]:
    return {"num_shared_experts": c["shared_expert_intermediate_size"] // c["moe_intermediate_size"]}


def _first(h: Values, layer: int) -> bool:
    return layer == 0


def _not_first(h: Values, layer: int) -> bool:
    return layer > 0


SHARED_MLP = {f"model.layers.{{i}}.mlp.shared_mlp.{x}_proj.weight": f"blk.{{i}}.ffn_{x}_shexp.weight" for x in PARTS}
_SPARSE = {
    **{hf.replace(".gate.", ".router.gate."): gguf for hf, gguf in EXPERTS.items()},
    "model.layers.{i}.mlp.expert_bias": "blk.{i}.exp_probs_b",
    **SHARED_MLP,
}
HY_V3 = Family(
    hf=ModelType(
        "hy_v3",
        131072,
        11158840.0,
        head_dim=128,
        architectures=("HYV3ForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "num_experts": 192,
            "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "moe_intermediate_size": 1536,
            "router_scaling_factor": 2.826,
        },
        renamed={"routed_scaling_factor": "router_scaling_factor"},
        unsaid=frozenset({"shared_expert_intermediate_size"}),
        reads=_hy_v3,
        writes=_hy_v3_writes,
    ),
    gguf=Arch("hy_v3"),  # hy-v3.cpp
    tensors={**NOT_DENSE, **QK_NORMS, **DENSE, **_SPARSE},
    shapes={"exp_probs_b": ("experts",)},
    only_where={**dict.fromkeys(DENSE.values(), _first), **dict.fromkeys(_SPARSE.values(), _not_first)},
    hparams={
        **HPARAMS,
        **EXPERT_HPARAMS,
        "moe_intermediate_size": "expert_feed_forward_length",
        "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
        "routed_scaling_factor": "expert_weights_scale:f32",
    },
    fixed={**SILU, "attention_bias": (False,), "mlp_bias": (False,), "route_norm": (True,), "first_k_dense_replace": (1,)},
    constants={"expert_gating_func": ("u32", 2), "expert_weights_norm": ("bool", True)},
    marks=frozenset({"expert_weights_norm", "!nextn_predict_layers"}),
    evidence="llama.cpp 0c1e570: src/models/hy-v3.cpp (halves turn; rope_freqs.weight is not loaded; which layers have experts is told by "
    "their tensors); conversion/hunyuan.py HYV3Model",
    twin={"num_hidden_layers": 2},
)

_BY_LAYER = {"chosen_experts": "moe_topk", "moe_intermediate_size": "moe_intermediate_size", "n_shared_experts": "num_shared_expert"}


def _hunyuan(c: Values) -> dict[str, Any]:
    """Of lists with a number for each layer the first. transformers' experts have the size of the layer, and so has the shared one."""
    size, own = c.get("intermediate_size"), {"moe_topk": c.get("num_experts_per_tok", 1), **c}  # as transformers' attribute_map has it
    said = {key: [n] if isinstance(n := own.get(name), int) else n or [] for key, name in _BY_LAYER.items()}
    sizes = {*said["moe_intermediate_size"]} | {size}
    return hunyuan(c) | {
        **{key: next(iter(numbers), None) for key, numbers in said.items()},
        "num_experts": c.get("num_experts", c.get("num_local_experts", 1)),
        "moe_intermediate_size": size,
        "shared_expert_intermediate_size": size,
        "usual_layers": len(sizes) == 1 and all(len({*numbers}) < 2 for numbers in said.values()),
    }


def _hunyuan_writes(c: Values, names: Container[str]) -> dict[str, Any]:
    return {own: [c[key]] * min(c["num_hidden_layers"], MOST) for key, own in _BY_LAYER.items() if c[key] is not None}


HUNYUAN_MOE = replace(
    HUNYUAN_DENSE,
    hf=replace(
        HUNYUAN_DENSE.hf,
        name="hunyuan_v1_moe",
        architectures=("HunYuanMoEV1ForCausalLM",),
        unsaid=frozenset({*_BY_LAYER, "shared_expert_intermediate_size"}),
        reads=_hunyuan,
        writes=_hunyuan_writes,
    ),
    gguf=Arch("hunyuan-moe", whole_head=True),
    tensors={
        **{hf: gguf for hf, gguf in HUNYUAN_DENSE.tensors.items() if ".mlp." not in hf},
        **{hf.replace(".gate.", ".gate.wg."): gguf for hf, gguf in EXPERTS.items()},
        **SHARED_MLP,
    },
    hparams={
        **HPARAMS,
        "num_experts": "expert_count",
        "chosen_experts": "expert_used_count",  # not by its usual name, which transformers would take for moe_topk
        "moe_intermediate_size": "expert_feed_forward_length",
        "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
        "n_shared_experts": "expert_shared_count",
    },
    may_lack=frozenset({"n_shared_experts"}),
    fixed={**HUNYUAN_DENSE.fixed, "usual_layers": (True,)},
    twin={"chosen_experts": 1},
    evidence="llama.cpp 0c1e570: src/models/hunyuan-moe.cpp (rope_freqs.weight is not loaded; Q and K are normed after they turn; whole "
    "heads by an assertion); conversion/hunyuan.py HunYuanMoEModel; transformers 5.23: models/hunyuan_v1_moe/modeling_hunyuan_v1_moe.py "
    "(experts are of intermediate_size)",
)

"""Other mixtures of experts: OLMoE, MiniMax M2."""

from __future__ import annotations

from typing import Any

from .architectures import Arch
from .layers import Values
from .llama import EXPERT_HPARAMS, MIXTRAL, NOT_DENSE, SILU
from .model_types import NEW, ModelType
from .qwen import EXPERTS, QK_NORMS
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

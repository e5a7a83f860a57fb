"""MiniCPM: Llama's layers, or latent attention, between three scales: of the embedding, of what each layer adds, and of the head."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import replace
from typing import Any

from ..errors import FormatError
from .architectures import Arch
from .layers import Values
from .llama import ATTENTION, GRANITE, MLP, PLAIN_TENSORS, SILU
from .mla import Q_LORA, SHAPES_MLA, latent_sizes
from .model_types import NEW, ModelType
from .schema import HPARAMS, Family

_ATTENTION, _LAYER = "model.layers.{i}.self_attn.", "blk.{i}."
_SCALES = ("embedding_multiplier", "residual_multiplier", "logits_scaling")


def _reads(c: Values) -> dict[str, Any]:
    """The scales by Granite's names (conversion/minicpm.py, set_gguf_parameters)."""
    base, layers = c.get("dim_model_base") or 0, c.get("num_hidden_layers") or 0
    if base < 1 or layers < 1:
        raise FormatError(f"dim_model_base and num_hidden_layers are {base!r} and {layers!r}, not above 0", "fix config.json")
    scales = (c.get("scale_emb"), (c.get("scale_depth") or 0) / math.sqrt(layers), (c.get("hidden_size") or 0) / base)
    return dict(zip(_SCALES, scales, strict=True))


MINICPM = replace(
    GRANITE,
    hf=ModelType(
        "minicpm",
        architectures=("MiniCPMForCausalLM",),
        defaults={
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "scale_emb": 1,
            "scale_depth": 1,
            "dim_model_base": 1,
            "tie_word_embeddings": True,
        },
        switches={"": (*ATTENTION, *MLP)},
        unsaid=frozenset(_SCALES),
        reads=_reads,
        run_as="granite",
    ),
    gguf=Arch("minicpm", freqs="applied", pair="longrope"),
    hparams={k: v for k, v in GRANITE.hparams.items() if k != "attention_multiplier"},
    fixed={**SILU, "attention_bias": (False,), "sparse_config": ({},)},
    marks=frozenset({"logit_scale", "residual_scale", "embedding_scale"}),
    evidence="llama.cpp 0c1e570: src/models/minicpm.cpp (Granite's graph; loads rope_freqs.weight, or with type longrope the pair; three "
    "multipliers); conversion/minicpm.py MiniCPMModel; openbmb/MiniCPM4-8B modeling_minicpm.py, which reads linear, dynamic and longrope "
    "alone. transformers runs it with remote code only; its GGUF computes what Granite's code does with the same tensors",
)


def _latent(c: Values) -> dict[str, Any]:
    """Sizes of the heads, of which a part turns; llama.cpp has one key a query, and asks for a rank of the queries."""
    nope, rope, heads = (c.get(k) or 0 for k in ("qk_nope_head_dim", "qk_rope_head_dim", "num_attention_heads"))
    if min(nope, rope) < 0 or heads < 1:
        raise FormatError(
            f"qk_nope_head_dim, qk_rope_head_dim and num_attention_heads are {nope!r}, {rope!r} and {heads!r}", "fix config.json"
        )
    value = c.get("v_head_dim") or (c.get("hidden_size") or 0) // heads
    return {"head_dim": rope, "qk_head_dim": nope + rope, "v_head_dim": value, "num_key_value_heads": heads}


def _fills(h: Values) -> dict[str, Any]:
    """What llama.cpp takes for the size of a value, which its converter leaves out."""
    return {"v_head_dim": h["hidden_size"] // h["num_attention_heads"]}


def _writes(c: Values, names: Container[str]) -> dict[str, Any]:
    """The three scales are what llama.cpp's graph has written in."""
    scales = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}
    return scales | {"qk_nope_head_dim": c["qk_head_dim"] - c["head_dim"], "attention_bias": False}


MINICPM3 = Family(
    hf=ModelType(
        "minicpm3",
        32768,
        head_dim=32,
        latent=True,
        since=NEW,
        architectures=("MiniCPM3ForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-5,
            "kv_lora_rank": 256,
            "q_lora_rank": 768,
            "qk_nope_head_dim": 64,
            "scale_emb": 12,
            "scale_depth": 1.4,
            "dim_model_base": 256,
            "tie_word_embeddings": True,
        },
        renamed={"head_dim": "qk_rope_head_dim"},
        unsaid=frozenset({"qk_head_dim"}),
        reads=_latent,
        writes=_writes,
    ),
    gguf=Arch("minicpm3", pair="always"),
    tensors={
        **{hf: gguf for hf, gguf in PLAIN_TENSORS.items() if ".self_attn." not in hf},
        **Q_LORA,
        f"{_ATTENTION}kv_a_proj_with_mqa.weight": f"{_LAYER}attn_kv_a_mqa.weight",
        f"{_ATTENTION}kv_a_layernorm.weight": f"{_LAYER}attn_kv_a_norm.weight",
        f"{_ATTENTION}kv_b_proj.weight": f"{_LAYER}attn_kv_b.weight",
        f"{_ATTENTION}o_proj.weight": f"{_LAYER}attn_output.weight",
    },
    shapes={**SHAPES_MLA, "attn_kv_b.weight": ("kv_b", "kv_lora")},
    sizes=latent_sizes,
    fills=_fills,
    hparams={
        **{k: v for k, v in HPARAMS.items() if k != "head_dim"},
        "head_dim": "rope.dimension_count",  # of the part that turns
        "qk_head_dim": "attention.key_length",
        "v_head_dim": "attention.value_length",
        "q_lora_rank": "attention.q_lora_rank",
        "kv_lora_rank": "attention.kv_lora_rank",
    },
    fixed={
        **SILU,
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "scale_emb": (12,),
        "scale_depth": (1.4,),
        "dim_model_base": (256,),
    },
    evidence="llama.cpp 0c1e570: src/models/minicpm3.cpp (halves turn, as in HF; the three scales are written in; no temperature of the "
    "logits; loads the pair whatever the type); conversion/minicpm.py MiniCPM3Model; transformers 5.23: "
    "models/minicpm3/modeling_minicpm3.py (yarn_apply_mscale)",
    twin={"qk_nope_head_dim": 16},
)

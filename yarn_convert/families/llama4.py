"""Llama 4: chunks of tokens in the layers that turn, and experts in every so-manieth layer."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from .architectures import Arch
from .layers import MOST, Layer, Values, gguf_llama4, hf_llama4
from .llama import EXPERT_HPARAMS, NOT_DENSE, SILU
from .model_types import ModelType
from .qwen import PARTS
from .schema import HPARAMS, Family

_FEED_FORWARD, _LAYER = "model.layers.{i}.feed_forward.", "blk.{i}."
_GATE_UP = tuple(f"{_LAYER}ffn_{x}_exps.weight" for x in ("gate", "up"))
_DOWN = f"{_LAYER}ffn_down_exps.weight"
_DENSE = {f"{_FEED_FORWARD}{x}_proj.weight": f"{_LAYER}ffn_{x}.weight" for x in PARTS}
_EXPERTS: dict[str, str | tuple[str, ...]] = {
    f"{_FEED_FORWARD}router.weight": f"{_LAYER}ffn_gate_inp.weight",
    f"{_FEED_FORWARD}experts.gate_up_proj": _GATE_UP,
    f"{_FEED_FORWARD}experts.down_proj": _DOWN,
    **{f"{_FEED_FORWARD}shared_expert.{x}_proj.weight": f"{_LAYER}ffn_{x}_shexp.weight" for x in PARTS},
}
_SPARSE = ["ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", *(f"ffn_{x}_shexp" for x in PARTS)]
CHUNK, WITHOUT_NORMS = 8192, 128  # tokens of a chunk; experts of the model that has no norms of Q and K (src/models/llama4.cpp)


def _sparse(h: Values, layer: int) -> bool:
    every = h.get("interleave_moe_layer_step") or 0
    return every > 0 and (layer + 1) % every == 0


def _dense(h: Values, layer: int) -> bool:
    return not _sparse(h, layer)


def _reads(c: Values) -> dict[str, Any]:
    """Which layers have experts is said by their numbers or by a step, and which turn, and what they see, by `hf_llama4`."""
    n, every, experts = (c.get(k) or 0 for k in ("num_hidden_layers", "interleave_moe_layer_step", "num_experts"))
    given, n = c.get("moe_layers"), min(n, MOST)
    usual = [Layer((i + 1) % 4 != 0, None if (i + 1) % 4 == 0 else CHUNK) for i in range(n)]
    return {
        "interleave_moe_layer_step": 0 if given == [] else every,
        "usual_windows": hf_llama4(c, n) == usual,
        "usual_qk_norm": bool(c.get("use_qk_norm")) == (experts != WITHOUT_NORMS),
        "usual_experts": experts > 0 and every > 0 and given in (None, list(range(every - 1, n, every))),
    }


def _writes(c: Values, names: Container[str]) -> dict[str, Any]:
    return {"use_qk_norm": c["num_experts"] != WITHOUT_NORMS}


def _normed(c: Values) -> bool:
    return bool(c.get("use_qk_norm", c["num_experts"] != WITHOUT_NORMS))


LLAMA4 = Family(
    hf=ModelType(
        "llama4_text",
        131072,
        500000.0,
        head_dim=128,
        turning=hf_llama4,
        architectures=("Llama4ForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "intermediate_size": 8192,
            "intermediate_size_mlp": 16384,
            "num_local_experts": 16,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1,
            "use_qk_norm": True,
        },
        renamed={"num_experts": "num_local_experts"},
        reads=_reads,
        writes=_writes,
    ),
    gguf=Arch("llama4", freqs="applied", other_layers="shared", window=CHUNK, turning=gguf_llama4),
    tensors={**NOT_DENSE, **_DENSE, **_EXPERTS},
    transforms={**dict.fromkeys(_GATE_UP, "column_halves"), _DOWN: "transposed"},
    shapes={
        **{f"ffn_{x}.weight": ("dense_ff", "hidden") for x in ("gate", "up")},
        "ffn_down.weight": ("hidden", "dense_ff"),
        **{f"ffn_{x}_shexp.weight": ("ff", "hidden") for x in ("gate", "up")},
        "ffn_down_shexp.weight": ("hidden", "ff"),
    },
    only_where={**dict.fromkeys(_DENSE.values(), _dense), **{f"{_LAYER}{x}.weight": _sparse for x in _SPARSE}},
    hparams={
        **HPARAMS,
        **EXPERT_HPARAMS,
        "intermediate_size": "expert_feed_forward_length",
        "intermediate_size_mlp": "feed_forward_length",
        "interleave_moe_layer_step": "interleave_moe_layer_step",
    },
    may_lack=frozenset({"num_experts", "num_experts_per_tok", "interleave_moe_layer_step"}),
    fixed={
        **SILU,
        "attention_bias": (False,),
        "attn_temperature_tuning": (True, 4),
        "floor_scale": (CHUNK,),
        "attn_scale": (0.1,),
        "usual_windows": (True,),
        "usual_qk_norm": (True,),
        "usual_experts": (True,),
    },
    marks=frozenset({"!attention.sliding_window_pattern"}),
    evidence="llama.cpp 0c1e570: src/models/llama4.cpp (neighbours turn, as in HF, in three of four layers, which see chunks of 8,192 "
    "tokens; loads rope_freqs.weight; temperature of the others; norms of Q and K unless there are 128 experts); "
    "conversion/llama.py Llama4Model",
    cancels=_normed,
    twin={"num_hidden_layers": 4},
)

"""Falcon-H1: each layer has attention and Mamba-2 side by side, and multipliers that llama.cpp has in the weights."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Any

from .architectures import Arch
from .layers import Values
from .llama import PLAIN_TENSORS, SILU
from .model_types import NEW, NO_LIMIT, ModelType
from .schema import HPARAMS, Family, Times

_MAMBA, _BEFORE, _LAYER = "model.layers.{i}.mamba.", "model.layers.{i}.pre_ff_layernorm", "blk.{i}."
MAMBA = {
    f"{_MAMBA}in_proj.weight": f"{_LAYER}ssm_in.weight",
    f"{_MAMBA}conv1d.weight": f"{_LAYER}ssm_conv1d.weight",
    f"{_MAMBA}conv1d.bias": f"{_LAYER}ssm_conv1d.bias",
    f"{_MAMBA}dt_bias": f"{_LAYER}ssm_dt.bias",
    f"{_MAMBA}A_log": f"{_LAYER}ssm_a",
    f"{_MAMBA}D": f"{_LAYER}ssm_d",
    f"{_MAMBA}norm.weight": f"{_LAYER}ssm_norm.weight",
    f"{_MAMBA}out_proj.weight": f"{_LAYER}ssm_out.weight",
}
RENAMED = {".mlp.": ".feed_forward.", "model.norm.": "model.final_layernorm.", "post_attention_layernorm": "pre_ff_layernorm"}
ONE: dict[str, Any] = {  # what config.json multiplies by, where it says it
    **dict.fromkeys(("embedding_multiplier", "lm_head_multiplier", "key_multiplier"), 1.0),
    **{f"{x}_multiplier": 1.0 for x in ("attention_in", "attention_out", "ssm_in", "ssm_out")},
    "mlp_multipliers": [1.0, 1.0],
    "ssm_multipliers": [1.0] * 5,
}


def _named(hf: str) -> str:
    for old, new in RENAMED.items():
        hf = hf.replace(old, new)
    return hf


def _inner(c: Values) -> int:
    given = c.get("mamba_d_ssm")
    return (c.get("mamba_expand") or 2) * (c.get("hidden_size") or 0) if given is None else given


def _parts(h: Values) -> tuple[int, int, int, int, int]:
    """The rows of Mamba's projection: gates, inputs, B, C and time steps."""
    state = (h.get("mamba_n_groups") or 0) * (h.get("mamba_d_state") or 0)
    return _inner(h), _inner(h), state, state, h.get("mamba_n_heads") or 0


def _said(c: Values) -> dict[str, Any]:
    return {key: c.get(key) or usual for key, usual in ONE.items()}


def _times(c: Values) -> Mapping[str, Times]:
    """What the weights of a GGUF are multiplied by, as transformers multiplies what goes in or comes out."""
    one = _said(c)
    of, into = one["attention_out_multiplier"], one["attention_in_multiplier"]
    gate, down = one["mlp_multipliers"]
    parts = tuple(zip(_parts(c), one["ssm_multipliers"], strict=True))
    return {
        "token_embd.weight": (one["embedding_multiplier"],),
        "output.weight": (one["lm_head_multiplier"],),
        f"{_LAYER}attn_q.weight": (into,),
        f"{_LAYER}attn_k.weight": (one["key_multiplier"], into),
        f"{_LAYER}attn_v.weight": (into,),
        f"{_LAYER}attn_output.weight": (of,),
        f"{_LAYER}ffn_gate.weight": (gate,),
        f"{_LAYER}ffn_down.weight": (down,),
        f"{_LAYER}ssm_in.weight": (one["ssm_in_multiplier"], parts),
        f"{_LAYER}ssm_out.weight": (one["ssm_out_multiplier"],),
    }


def mamba_sizes(h: Values) -> dict[str, int]:
    inner, groups = _inner(h), h.get("mamba_n_groups") or 1
    parts = _parts(h)
    return {
        "linear_qkv": inner + parts[2] + parts[3], "kernel": h.get("mamba_d_conv") or 0, "v_heads": parts[4], "inner": inner,
        "groups": groups, "group": inner // groups, "all_parts": sum(parts),
    }  # fmt: skip


def _reads(c: Values) -> dict[str, Any]:
    """Whether the norm and the head are as llama.cpp has them: it multiplies by the gate before the norm, and takes a tied head with the
    embedding's multiplier."""
    one, normed = _said(c), bool(c.get("mamba_rms_norm"))
    before = normed and c.get("mamba_norm_before_gate", True)
    unlimited = c.get("time_step_limit") in NO_LIMIT
    return (
        one
        | ({"time_step_limit": [0.0, math.inf]} if unlimited else {})
        | {
            "mamba_d_ssm": _inner(c),
            "mamba_norm_before_gate": before,
            "usual_norms": not before,
            "usual_head": not c.get("tie_word_embeddings") or one["lm_head_multiplier"] == one["embedding_multiplier"],
            "usual_steps": unlimited,
        }
    )


def _writes(c: Values, names: Container[str]) -> dict[str, Any]:
    """Multipliers of one, as they are in the weights."""
    normed = "blk.0.ssm_norm.weight" in names
    return ONE | {"mamba_d_head": c["mamba_d_ssm"] // c["mamba_n_heads"], "mamba_rms_norm": normed, "mamba_norm_before_gate": False}


FALCON_H1 = Family(
    hf=ModelType(
        "falcon_h1",
        8192,
        architectures=("FalconH1ForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 8,
            "mamba_d_ssm": 1024,
            "mamba_d_conv": 4,
            "mamba_d_state": 256,
            "mamba_n_groups": 1,
            "mamba_n_heads": 128,
        },
        switches={"mamba_rms_norm": ("ssm_norm.weight",)},
        since=NEW,
        reads=_reads,
        writes=_writes,
    ),
    gguf=Arch("falcon-h1", freqs="forgotten"),
    tensors={**{_named(hf): gguf for hf, gguf in PLAIN_TENSORS.items()}, f"{_BEFORE}.weight": f"{_LAYER}ffn_norm", **MAMBA},
    transforms={
        f"{_LAYER}ssm_conv1d.weight": "convolution",
        f"{_LAYER}ssm_a": "decay_column",
        f"{_LAYER}ssm_d": "column",
        f"{_LAYER}ssm_norm.weight": "by_group",
    },
    times=_times,
    multipliers=ONE,
    shapes={
        "ffn_norm": ("hidden",),
        "ssm_in.weight": ("all_parts", "hidden"),
        "ssm_conv1d.weight": ("linear_qkv", "kernel"),
        "ssm_conv1d.bias": ("linear_qkv",),
        "ssm_dt.bias": ("v_heads",),
        "ssm_a": ("v_heads", "one"),
        "ssm_d": ("v_heads", "one"),
        "ssm_norm.weight": ("groups", "group"),
        "ssm_out.weight": ("hidden", "inner"),
    },
    hparams={
        **HPARAMS,
        "mamba_d_conv": "ssm.conv_kernel",
        "mamba_d_ssm": "ssm.inner_size",
        "mamba_d_state": "ssm.state_size",
        "mamba_n_heads": "ssm.time_step_rank",
        "mamba_n_groups": "ssm.group_count",
    },
    fixed={
        **SILU,
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "projectors_bias": (False,),
        "mamba_proj_bias": (False,),
        "mamba_conv_bias": (True,),
        "usual_norms": (True,),
        "usual_head": (True,),
        "usual_steps": (True,),
    },
    twin={"mamba_d_conv": 4, "mamba_d_ssm": 64, "mamba_d_state": 16, "mamba_n_heads": 4, "mamba_n_groups": 1},
    sizes=mamba_sizes,
    evidence="llama.cpp 0c1e570: src/models/falcon-h1.cpp, mamba-base.cpp (the gate before the norm; rope_freqs.weight is loaded and not "
    "used); conversion/falcon_h1.py, which multiplies the weights; transformers 5.23: models/falcon_h1",
)

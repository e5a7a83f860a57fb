"""Qwen3-Next and Qwen3.5: linear attention (gated delta net) in most layers, gated attention with RoPE in the others."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

from .architectures import Arch
from .layers import FULL, LINEAR, MOST, Values
from .llama import NOT_DENSE, PLAIN_TENSORS, SILU
from .model_types import NEW, ModelType
from .qwen import ALL_SPARSE, EXPERTS, PARTS, QK_NORMS, QWEN2_MOE, SPARSE_DEFAULTS
from .schema import HPARAMS, Family, rope_says

_LINEAR, _LAYER = "model.layers.{i}.linear_attn.", "blk.{i}."
_ATTENTION = {hf: gguf for hf, gguf in {**PLAIN_TENSORS, **QK_NORMS}.items() if ".self_attn." in hf}
_AFTER = {"model.layers.{i}.post_attention_layernorm.weight": f"{_LAYER}post_attention_norm.weight"}
NET = {  # what linear attention has in both families
    f"{_LINEAR}conv1d.weight": f"{_LAYER}ssm_conv1d.weight",
    f"{_LINEAR}dt_bias": f"{_LAYER}ssm_dt.bias",
    f"{_LINEAR}A_log": f"{_LAYER}ssm_a",
    f"{_LINEAR}norm.weight": f"{_LAYER}ssm_norm.weight",
    f"{_LINEAR}out_proj.weight": f"{_LAYER}ssm_out.weight",
}
NET_35 = {
    f"{_LINEAR}in_proj_qkv.weight": f"{_LAYER}attn_qkv.weight",
    f"{_LINEAR}in_proj_z.weight": f"{_LAYER}attn_gate.weight",
    f"{_LINEAR}in_proj_b.weight": f"{_LAYER}ssm_beta.weight",
    f"{_LINEAR}in_proj_a.weight": f"{_LAYER}ssm_alpha.weight",
    **NET,
}
NET_NEXT: dict[str, str | tuple[str, ...]] = {
    f"{_LINEAR}in_proj_qkvz.weight": (f"{_LAYER}attn_qkv.weight", f"{_LAYER}attn_gate.weight"),
    f"{_LINEAR}in_proj_ba.weight": f"{_LAYER}ssm_ba.weight",
    **NET,
}
FUSED: dict[str, str | tuple[str, ...]] = {  # all experts of a layer in two tensors, as Qwen3.5 was published
    "model.layers.{i}.mlp.experts.gate_up_proj": (f"{_LAYER}ffn_gate_exps.weight", f"{_LAYER}ffn_up_exps.weight"),
    "model.layers.{i}.mlp.experts.down_proj": f"{_LAYER}ffn_down_exps.weight",
}
ONE_MORE = dict.fromkeys(("output_norm.weight", f"{_LAYER}attn_norm.weight", *_AFTER.values(), *QK_NORMS.values()), "add_one")
HPARAMS_LINEAR = {
    **HPARAMS,
    "linear_conv_kernel_dim": "ssm.conv_kernel",
    "linear_key_head_dim": "ssm.state_size",
    "linear_num_key_heads": "ssm.group_count",
    "linear_num_value_heads": "ssm.time_step_rank",
    "linear_inner": "ssm.inner_size",
    "full_attention_interval": "full_attention_interval",
    "recurrent_layers": "attention.recurrent_layers:bool[]",
}
HPARAMS_MOE = {k: v for k, v in QWEN2_MOE.hparams.items() if k not in HPARAMS}
SHAPES = {
    "attn_q.weight": ("q_gate", "hidden"),
    "attn_qkv.weight": ("linear_qkv", "hidden"),
    "attn_gate.weight": ("linear_v", "hidden"),
    "ssm_conv1d.weight": ("linear_qkv", "kernel"),
    "ssm_dt.bias": ("v_heads",),
    "ssm_a": ("v_heads",),
    "ssm_beta.weight": ("v_heads", "hidden"),
    "ssm_alpha.weight": ("v_heads", "hidden"),
    "ssm_ba.weight": ("beta_alpha", "hidden"),
    "ssm_norm.weight": ("head_v",),
    "ssm_out.weight": ("hidden", "linear_v"),
}
TWIN = {
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_inner": 64,
}  # fmt: skip


def _linear(h: Values) -> list[bool]:
    return h["recurrent_layers"] or []


def _recurrent(h: Values, layer: int) -> bool:
    return bool(_linear(h)[layer])


def _full(h: Values, layer: int) -> bool:
    return not _recurrent(h, layer)


def _by_interval(h: Values) -> list[bool]:
    """Which layers are linear where no list says it."""
    every = h.get("full_attention_interval") or 4
    return [(i + 1) % every != 0 for i in range(min(h.get("num_hidden_layers") or 0, MOST))]


def _fills(h: Values) -> dict[str, Any]:
    return {"recurrent_layers": _by_interval(h), "full_attention_interval": 4}


def _sizes(h: Values) -> dict[str, int]:
    keys, values, head = (h.get(f"linear_{x}") or 0 for x in ("num_key_heads", "num_value_heads", "key_head_dim"))
    inner, heads, kernel = (h.get(k) or 0 for k in ("linear_inner", "num_attention_heads", "linear_conv_kernel_dim"))
    return {
        "k_heads": keys, "v_heads": values, "head_k": head, "head_v": inner // (values or 1), "kernel": kernel,
        "linear_v": inner, "linear_qkv": 2 * keys * head + inner, "beta_alpha": 2 * values, "q_gate": 2 * heads * (h.get("head_dim") or 0),
    }  # fmt: skip


def _reads(c: Values) -> dict[str, Any]:
    """Which layers are linear, and the sizes of theirs. llama.cpp has one size for heads of keys and of values."""
    given, values, head = c.get("layer_types"), c.get("linear_num_value_heads") or 0, c.get("linear_value_head_dim") or 0
    return {
        "recurrent_layers": [kind == LINEAR for kind in given] if given else _by_interval(c),
        "usual_windows": set(given or ()) <= {LINEAR, FULL},
        "linear_inner": values * head,
        "usual_heads": head == c.get("linear_key_head_dim") and values % (c.get("linear_num_key_heads") or 1) == 0,
    }


def _writes(c: Values, names: Container[str]) -> dict[str, Any]:
    kinds = [LINEAR if linear else FULL for linear in c["recurrent_layers"][: c["num_hidden_layers"]]]
    return {"layer_types": kinds, "linear_value_head_dim": c["linear_inner"] // (c["linear_num_value_heads"] or 1)}


def _reads_sections(c: Values) -> dict[str, Any]:
    """The RoPE object says how pairs are dealt out to the positions of a picture: transformers, modeling_qwen3_5.py."""
    found = next(filter(None, rope_says(c, "mrope_section")), [11, 11, 10])
    return _reads(c) | {"mrope_section": [*found, 0][:4]}


def _writes_sections(c: Values, names: Container[str]) -> dict[str, Any]:
    *three, fourth = c["mrope_section"]
    return _writes(c, names) | {"mrope_section": [*three, fourth] if fourth else three, "mrope_interleaved": True}


QWEN3_NEXT = Family(
    hf=ModelType(
        "qwen3_next",
        32768,
        head_dim=256,
        partial=0.25,
        architectures=("Qwen3NextForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-6,
            "num_key_value_heads": 2,
            "full_attention_interval": 4,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            **SPARSE_DEFAULTS,
            "norm_topk_prob": True,
        },
        unsaid=frozenset({"recurrent_layers", "linear_inner"}),
        reads=_reads,
        writes=_writes,
    ),
    gguf=Arch("qwen3next"),
    tensors={
        **{hf: gguf for hf, gguf in NOT_DENSE.items() if "post_attention" not in hf},
        **_AFTER,
        **QK_NORMS,
        **NET_NEXT,
        **EXPERTS,
        **{hf: gguf for hf, gguf in QWEN2_MOE.tensors.items() if "shared_expert" in hf},
    },
    transforms={
        **ONE_MORE,
        **dict.fromkeys((f"{_LAYER}attn_qkv.weight", f"{_LAYER}attn_gate.weight"), "split_key_heads"),
        f"{_LAYER}ssm_conv1d.weight": "convolution",
        f"{_LAYER}ssm_a": "decay",
    },
    shapes=SHAPES,
    hparams={**HPARAMS_LINEAR, **HPARAMS_MOE},
    may_lack=frozenset({"intermediate_size"}),
    only_where={
        **{gguf: _recurrent for of in NET_NEXT.values() for gguf in ([of] if isinstance(of, str) else of)},
        **dict.fromkeys(_ATTENTION.values(), _full),
    },
    fixed={
        **SILU,
        **ALL_SPARSE,
        "attention_bias": (False,),
        "norm_topk_prob": (True,),
        "usual_windows": (True,),
        "usual_heads": (True,),
    },
    marks=frozenset({"!nextn_predict_layers", "!blk.0.ssm_in.weight"}),
    twin=TWIN,
    fills=_fills,
    sizes=_sizes,
    linear=_linear,
    next_tokens=("mtp.", "model.mtp."),
    evidence="llama.cpp 0c1e570: src/models/qwen3next.cpp (rope_freqs.weight is not loaded; one size for heads of keys and of values); "
    "conversion/qwen.py Qwen3NextModel with --no-mtp; transformers 5.23: models/qwen3_next, which passes over mtp.*",
)

QWEN3_5 = replace(
    QWEN3_NEXT,
    hf=replace(
        QWEN3_NEXT.hf,
        name="qwen3_5_text",
        architectures=("Qwen3_5ForCausalLM",),
        defaults={k: v for k, v in QWEN3_NEXT.hf.defaults.items() if k not in SPARSE_DEFAULTS} | {"num_key_value_heads": 4},
        unsaid=QWEN3_NEXT.hf.unsaid | {"mrope_section"},
        since=NEW,
        reads=_reads_sections,
        writes=_writes_sections,
    ),
    gguf=Arch("qwen35", sections="interleaved"),
    tensors={
        **{hf: gguf for hf, gguf in PLAIN_TENSORS.items() if "post_attention" not in hf},
        **_AFTER,
        **QK_NORMS,
        **NET_35,
    },
    transforms={
        **ONE_MORE,
        f"{_LAYER}attn_qkv.weight": "after_keys",
        f"{_LAYER}attn_gate.weight": "value_heads",
        **dict.fromkeys((f"{_LAYER}ssm_beta.weight", f"{_LAYER}ssm_alpha.weight", f"{_LAYER}ssm_dt.bias"), "by_value_head"),
        f"{_LAYER}ssm_conv1d.weight": "convolution_after_keys",
        f"{_LAYER}ssm_a": "decay_by_value_head",
        f"{_LAYER}ssm_out.weight": "value_columns",
    },
    hparams={**HPARAMS_LINEAR, "mrope_section": "rope.dimension_sections:i32[]"},
    may_lack=frozenset(),
    only_where={**dict.fromkeys(NET_35.values(), _recurrent), **dict.fromkeys(_ATTENTION.values(), _full)},
    fixed={k: v for k, v in QWEN3_NEXT.fixed.items() if k not in SPARSE_DEFAULTS},
    marks=frozenset({"!nextn_predict_layers"}),
    evidence="llama.cpp 0c1e570: src/models/qwen35.cpp (rope_freqs.weight is not loaded; key heads are repeated in turn); "
    "conversion/qwen.py Qwen3_5TextModel with --no-mtp; transformers 5.23: models/qwen3_5, which passes over mtp.*",
)

QWEN3_5_MOE = replace(
    QWEN3_5,
    hf=replace(
        QWEN3_5.hf,
        name="qwen3_5_moe_text",
        architectures=("Qwen3_5MoeForCausalLM",),
        defaults={**QWEN3_5.hf.defaults, "num_key_value_heads": 2},
    ),
    gguf=Arch("qwen35moe", sections="interleaved"),
    tensors={
        **{hf: gguf for hf, gguf in QWEN3_5.tensors.items() if ".mlp." not in hf},
        **FUSED,
        **{hf: gguf for hf, gguf in QWEN3_NEXT.tensors.items() if ".mlp." in hf},
    },
    transforms={**QWEN3_5.transforms, **{f"{_LAYER}ffn_{x}_exps.weight": "halves" for x in PARTS[:2]}},
    hparams={**QWEN3_5.hparams, **HPARAMS_MOE},
    may_lack=frozenset({"intermediate_size"}),
    evidence=QWEN3_5.evidence.replace("qwen35.cpp", "qwen35moe.cpp").replace("Qwen3_5TextModel", "Qwen3_5MoeTextModel")
    + "; its experts lie in two tensors a layer, or one by one",
)

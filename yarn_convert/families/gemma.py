"""Gemma: norms that are stored without their one; in Gemma 2 and 3 sliding and full attention in turn."""

from __future__ import annotations

from collections.abc import Container
from functools import partial
from typing import Any

from .architectures import Arch
from .layers import Values, alternating
from .llama import ATTENTION, ATTENTION_BIASES, PLAIN_TENSORS
from .model_types import GEMMA3_LAYERS, ModelType
from .qwen import QK_NORMS
from .schema import HPARAMS, Family

TENSORS = {
    **PLAIN_TENSORS,
    "model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.post_attention_norm.weight",
    "model.layers.{i}.pre_feedforward_layernorm.weight": "blk.{i}.ffn_norm.weight",
    "model.layers.{i}.post_feedforward_layernorm.weight": "blk.{i}.post_ffw_norm.weight",
}
ADD_ONE = {t: "add_one" for t in TENSORS.values() if t.endswith("_norm.weight")}
USUAL = {
    "hidden_activation": ("gelu_pytorch_tanh",), "attention_bias": (False,), "use_bidirectional_attention": (False,),
    "usual_scores": (True,), "usual_windows": (True,),
}  # fmt: skip
DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
}


def _scores(c: Values, largest: int) -> Any:
    """What llama.cpp divides scores by, whatever query_pre_attn_scalar says: the size of a head, or in the largest model, known by its
    number of layers, hidden_size / heads (src/models/gemma2.cpp and gemma3.cpp, load_arch_hparams)."""
    whole = (c.get("hidden_size") or 0) // (c.get("num_attention_heads") or 1)
    return whole if c.get("num_hidden_layers") == largest else c.get("head_dim")


def _reads(c: Values, largest: int, every: int) -> dict[str, Any]:
    """Whether scores, layers and caps are as llama.cpp has them. Caps that are off cannot be said to it."""
    windows = c.get("layer_types")
    return {
        "usual_scores": c.get("query_pre_attn_scalar") == _scores(c, largest),
        "usual_windows": windows is None or windows == alternating(len(windows), every),
        "usual_caps": None not in [c.get(f"{x}_logit_softcapping") for x in ("attn", "final")],
    }


def _writes(c: Values, names: Container[str], largest: int) -> dict[str, Any]:
    return {"query_pre_attn_scalar": _scores(c, largest)}


GEMMA = Family(
    hf=ModelType(
        "gemma",
        8192,
        head_dim=256,
        architectures=("GemmaForCausalLM",),
        defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 16, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
        switches={"attention_bias": ATTENTION},
    ),
    gguf=Arch("gemma", head="never"),
    tensors={**PLAIN_TENSORS, **ATTENTION_BIASES},
    transforms={t: "add_one" for t in PLAIN_TENSORS.values() if t.endswith("_norm.weight")},
    fixed={"hidden_act": ("gelu_pytorch_tanh", "gelu"), "attention_bias": (False,), "use_bidirectional_attention": (False,)},
    evidence="llama.cpp 0c1e570: src/models/gemma.cpp (rope_freqs.weight is not loaded); conversion/gemma.py GemmaModel; "
    "transformers 5.23: models/gemma/configuration_gemma.py takes gelu for gelu_pytorch_tanh",
)

GEMMA2 = Family(
    hf=ModelType(
        "gemma2",
        8192,
        head_dim=256,
        architectures=("Gemma2ForCausalLM",),
        defaults={**DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        reads=partial(_reads, largest=46, every=2),
        writes=partial(_writes, largest=46),
    ),
    gguf=Arch("gemma2", other_layers="shared", window=4096, head="never"),
    tensors=TENSORS,
    transforms=ADD_ONE,
    hparams={
        **HPARAMS,
        "sliding_window": "attention.sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping:f32",
        "final_logit_softcapping": "final_logit_softcapping:f32",
    },
    fixed={**USUAL, "usual_caps": (True,)},
    twin={"num_hidden_layers": 2},
    evidence="llama.cpp 0c1e570: src/models/gemma2.cpp (every second layer slides; rope_freqs.weight is not loaded); "
    "conversion/gemma.py Gemma2Model",
)

GEMMA3 = Family(
    hf=ModelType(
        "gemma3_text",
        131072,
        head_dim=256,
        layers=GEMMA3_LAYERS,
        shape=(262208, 2304, 9216, 26, 8),
        architectures=("Gemma3ForCausalLM",),
        defaults={
            **DEFAULTS,
            "num_attention_heads": 8,
            "sliding_window_pattern": 6,
        },
        reads=partial(_reads, largest=62, every=6),
        writes=partial(_writes, largest=62),
    ),
    gguf=Arch("gemma3", other_layers="own"),
    tensors={**TENSORS, **QK_NORMS},
    transforms={**ADD_ONE, **dict.fromkeys(QK_NORMS.values(), "add_one")},
    hparams={
        **HPARAMS,
        "sliding_window": "attention.sliding_window",
        "final_logit_softcapping": "final_logit_softcapping:f32",
        "rope_local_base_freq": "rope.freq_base_swa:f32",
    },
    may_lack=frozenset({"final_logit_softcapping"}),
    fixed={**USUAL, "attn_logit_softcapping": (None,), "sliding_window_pattern": (6,)},
    twin={"num_hidden_layers": 6},
    evidence="llama.cpp 0c1e570: src/models/gemma3.cpp (five of six layers slide and turn by freq_base_swa; rope_freqs.weight "
    "is not loaded); conversion/gemma.py Gemma3Model",
)

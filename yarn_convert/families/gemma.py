"""Gemma 2 and 3: sliding and full attention in turn, norms that are stored without their one."""

from __future__ import annotations

from .llama import HPARAMS, KNOWN, PLAIN_TENSORS, SHAPES
from .qwen import OUTPUT, QK_NORM_SHAPES, QK_NORMS
from .schema import Family

TENSORS = {
    **PLAIN_TENSORS,
    "model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.post_attention_norm.weight",
    "model.layers.{i}.pre_feedforward_layernorm.weight": "blk.{i}.ffn_norm.weight",
    "model.layers.{i}.post_feedforward_layernorm.weight": "blk.{i}.post_ffw_norm.weight",
}
POST_NORM_SHAPES = {"post_attention_norm.weight": ("hidden",), "post_ffw_norm.weight": ("hidden",)}
ADD_ONE = {t: "add_one" for t in TENSORS.values() if t.endswith("_norm.weight")}
USUAL = {
    "hidden_activation": ("gelu_pytorch_tanh",), "attention_bias": (False,), "use_bidirectional_attention": (False,),
    "usual_scores": (True,), "usual_windows": (True,),
}  # fmt: skip
DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
}

GEMMA2 = Family(
    model_type="gemma2",
    architectures=("Gemma2ForCausalLM",),
    gguf_arch="gemma2",
    tensors=TENSORS,
    optional=OUTPUT,
    transforms=ADD_ONE,
    hparams={
        **HPARAMS,
        "sliding_window": "attention.sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping:f32",
        "final_logit_softcapping": "final_logit_softcapping:f32",
    },
    derived="gemma",
    attention="other",
    fixed={**USUAL, "usual_caps": (True,)},
    gguf_known=KNOWN,
    head="never",
    twin={"num_hidden_layers": 2},
    evidence="llama.cpp 0c1e570: src/models/gemma2.cpp (every second layer slides; rope_freqs.weight is not loaded); "
    "conversion/gemma.py Gemma2Model",
    shapes={**SHAPES, **POST_NORM_SHAPES},
    defaults={**DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
)

GEMMA3 = Family(
    model_type="gemma3_text",
    architectures=("Gemma3ForCausalLM",),
    gguf_arch="gemma3",
    tensors={**TENSORS, **QK_NORMS},
    optional=OUTPUT,
    transforms={**ADD_ONE, **dict.fromkeys(QK_NORMS.values(), "add_one")},
    hparams={
        **HPARAMS,
        "sliding_window": "attention.sliding_window",
        "final_logit_softcapping": "final_logit_softcapping:f32",
        "rope_local_base_freq": "rope.freq_base_swa:f32",
    },
    may_lack=frozenset({"final_logit_softcapping"}),
    derived="gemma",
    attention="other",
    fixed={**USUAL, "attn_logit_softcapping": (None,), "sliding_window_pattern": (6,)},
    gguf_known=KNOWN,
    twin={"num_hidden_layers": 6},
    evidence="llama.cpp 0c1e570: src/models/gemma3.cpp (five of six layers slide and turn by freq_base_swa; rope_freqs.weight "
    "is not loaded); conversion/gemma.py Gemma3Model",
    shapes={**SHAPES, **POST_NORM_SHAPES, **QK_NORM_SHAPES},
    defaults={**DEFAULTS, "max_position_embeddings": 131072, "rope_local_base_freq": 10000.0, "num_attention_heads": 8,
              "sliding_window_pattern": 6},
    layer_type="full_attention",
)  # fmt: skip

"""OLMo 2, GLM-4, Command R: Llama's projections with other norms around them."""

from __future__ import annotations

from .gemma import POST_NORM_SHAPES
from .llama import HPARAMS, KNOWN, PLAIN_TENSORS, SHAPES, SILU
from .neox import LAYER_NORM_HPARAMS
from .qwen import BIASES, OUTPUT, QK_NORM_NAMES, QK_NORMS, QKV_BIASES
from .schema import PARTIAL_READS, Family

OLMO2 = Family(
    model_type="olmo2",
    architectures=("Olmo2ForCausalLM",),
    gguf_arch="olmo2",
    tensors={
        **{hf: gguf for hf, gguf in PLAIN_TENSORS.items() if "layernorm" not in hf},
        **QK_NORMS,
        "model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.post_attention_norm.weight",
        "model.layers.{i}.post_feedforward_layernorm.weight": "blk.{i}.post_ffw_norm.weight",
    },
    hparams=HPARAMS,
    fixed={**SILU, "attention_bias": (False,)},
    gguf_known=KNOWN,
    head="required",
    square=True,
    evidence="llama.cpp 0c1e570: src/models/olmo2.cpp (rope_freqs.weight is not loaded); conversion/olmo.py Olmo2Model",
    shapes={**SHAPES, **POST_NORM_SHAPES, "attn_q_norm.weight": ("q",), "attn_k_norm.weight": ("kv",)},
    defaults={"rms_norm_eps": 1e-5},
)

GLM4 = Family(
    model_type="glm4",
    architectures=("Glm4ForCausalLM",),
    gguf_arch="glm4",
    tensors={
        **{hf: gguf for hf, gguf in PLAIN_TENSORS.items() if "gate_proj" not in hf and "up_proj" not in hf},
        **BIASES,
        "model.layers.{i}.post_self_attn_layernorm.weight": "blk.{i}.post_attention_norm.weight",
        "model.layers.{i}.mlp.gate_up_proj.weight": "blk.{i}.ffn_up.weight",
        "model.layers.{i}.post_mlp_layernorm.weight": "blk.{i}.post_ffw_norm.weight",
    },
    optional=OUTPUT | frozenset(BIASES.values()),
    hparams=HPARAMS,
    fixed=SILU,
    gguf_known=KNOWN,
    gguf_reads=PARTIAL_READS,
    evidence="llama.cpp 0c1e570: src/models/glm4.cpp (neighbours turn, as in HF; rope_freqs.weight is not loaded); "
    "conversion/glm.py Glm4Model",
    shapes={**SHAPES, **POST_NORM_SHAPES, "ffn_up.weight": ("gate_up", "hidden")},
    defaults={"rms_norm_eps": 1.5625e-7, "partial_rotary_factor": 0.5, "num_key_value_heads": 2, "head_dim": 128, "attention_bias": True},
    switches={"attention_bias": QKV_BIASES},
)

COHERE = Family(
    model_type="cohere",
    architectures=("CohereForCausalLM",),
    gguf_arch="command-r",
    tensors={**{hf: gguf for hf, gguf in PLAIN_TENSORS.items() if "post_attention" not in hf}, **QK_NORMS},
    optional=OUTPUT | frozenset(QK_NORMS.values()),
    hparams={**LAYER_NORM_HPARAMS, "logit_scale": "logit_scale:f32"},
    derived="cohere",
    lengths=("model_max_length",),
    fixed={**SILU, "attention_bias": (False,), "usual_norms": (True,)},
    gguf_known=KNOWN,
    head="never",
    twin={"use_qk_norm": False},  # a twin of one layer has none
    square=True,
    evidence="llama.cpp 0c1e570: src/models/command-r.cpp (neighbours turn, as in HF; rope_freqs.weight is not loaded; "
    "norms of Q and K in models of 64 layers and more); conversion/command_r.py",
    shapes={**SHAPES, "attn_q_norm.weight": ("heads", "head"), "attn_k_norm.weight": ("kv_heads", "head")},
    switches={"use_qk_norm": QK_NORM_NAMES},
    defaults={"layer_norm_eps": 1e-5, "logit_scale": 0.0625, "tie_word_embeddings": True, "max_position_embeddings": 8192},
)

COHERE2 = Family(
    model_type="cohere2",
    architectures=("Cohere2ForCausalLM",),
    gguf_arch="cohere2",
    tensors={hf: gguf for hf, gguf in PLAIN_TENSORS.items() if "post_attention" not in hf},
    optional=OUTPUT,
    hparams={**LAYER_NORM_HPARAMS, "logit_scale": "logit_scale:f32", "sliding_window": "attention.sliding_window"},
    derived="cohere2",
    fixed={**SILU, "attention_bias": (False,), "use_qk_norm": (False,), "usual_windows": (True,)},
    gguf_known=KNOWN,
    evidence="llama.cpp 0c1e570: src/models/cohere2.cpp (neighbours turn, as in HF, in the three of four layers that slide; never reads "
    "output.weight); conversion/command_r.py Cohere2Model",
    shapes=SHAPES,
    defaults={
        "layer_norm_eps": 1e-5, "logit_scale": 0.0625, "tie_word_embeddings": True, "sliding_window": 4096, "max_position_embeddings": 8192,
    },
    attention="other",
    head="never",
    twin={"num_hidden_layers": 4},
)  # fmt: skip

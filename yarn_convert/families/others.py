"""OLMo, GLM, Command R: Llama's projections with other norms around them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

from .architectures import Arch
from .layers import Values, alternating, gguf_within, hf_cohere2
from .llama import ATTENTION, ATTENTION_BIASES, INTERLEAVED, PLAIN_TENSORS, SILU
from .model_types import NEW, ModelType
from .neox import LAYER_NORM_HPARAMS, QK_NORMS_BY_HEAD
from .qwen import BIASES, QK_NORM_NAMES, QK_NORMS, QKV_BIASES
from .schema import HPARAMS, ROPE_OBJECTS, Family, rope_type

OLMO2 = Family(
    hf=ModelType(
        "olmo2",
        2048,
        architectures=("Olmo2ForCausalLM",),
        defaults={"rms_norm_eps": 1e-5},
    ),
    gguf=Arch("olmo2", other_layers="plain", head="required", square=True),
    tensors={
        **{hf: gguf for hf, gguf in PLAIN_TENSORS.items() if "layernorm" not in hf},
        **QK_NORMS,
        "model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.post_attention_norm.weight",
        "model.layers.{i}.post_feedforward_layernorm.weight": "blk.{i}.post_ffw_norm.weight",
    },
    fixed={**SILU, "attention_bias": (False,)},
    evidence="llama.cpp 0c1e570: src/models/olmo2.cpp (rope_freqs.weight is not loaded); conversion/olmo.py Olmo2Model",
    shapes={"attn_q_norm.weight": ("q",), "attn_k_norm.weight": ("kv",)},
)


def _every_fourth(c: Values) -> dict[str, Any]:
    windows = c.get("layer_types")
    return {"usual_windows": windows is None or windows == alternating(len(windows), 4)}


def _every_fourth_writes(c: Values, names: Container[str]) -> dict[str, Any]:
    return {"layer_types": alternating(c["num_hidden_layers"], 4)}


OLMO3 = replace(
    OLMO2,
    hf=ModelType(
        "olmo3",
        2048,
        # A rope_theta of the file is not that of the layers that slide: rope_parameters alone says it (convert_rope_params_to_dict)
        layers={"full_attention": ("rope_theta", 500000.0), "sliding_attention": ("sliding_attention.rope_theta", 500000.0)},
        since=NEW,
        architectures=("Olmo3ForCausalLM",),
        defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096},
        reads=_every_fourth,
        writes=_every_fourth_writes,
    ),
    hparams={**HPARAMS, "sliding_window": "attention.sliding_window"},
    fixed={**OLMO2.fixed, "usual_windows": (True,)},
    marks=frozenset({"attention.sliding_window"}),
    twin={"num_hidden_layers": 4},
    evidence=OLMO2.evidence + "; with a window three of four layers slide, and turn by the same θ without any scaling",
)

EPS = 9.999999747378752e-06  # 1e-5 as a float32, written in transformers' code of OLMo 1
OLMO = Family(
    hf=ModelType("olmo", 2048, architectures=("OlmoForCausalLM",), switches={"attention_bias": ATTENTION}),
    gguf=Arch("olmo", square=True),
    tensors={hf: gguf for hf, gguf in PLAIN_TENSORS.items() if "norm" not in hf} | ATTENTION_BIASES,
    transforms=INTERLEAVED,
    hparams={k: v for k, v in HPARAMS.items() if k != "rms_norm_eps"} | {"clip_qkv": "attention.clamp_kqv:f32"},
    may_lack=frozenset({"clip_qkv"}),
    fixed={**SILU, "attention_bias": (False,)},
    constants={"attention.layer_norm_epsilon": ("f32", EPS)},
    evidence="llama.cpp 0c1e570: src/models/olmo.cpp (norms without weights; rope_freqs.weight is not loaded); "
    "conversion/olmo.py OlmoModel",
)

GLM4 = Family(
    hf=ModelType(
        "glm4",
        131072,
        head_dim=128,
        partial=0.5,
        architectures=("Glm4ForCausalLM",),
        defaults={
            "rms_norm_eps": 1.5625e-7,
            "num_key_value_heads": 2,
            "attention_bias": True,
        },
        switches={"attention_bias": QKV_BIASES},
    ),
    gguf=Arch("glm4", sections="blocks"),
    tensors={
        **{hf: gguf for hf, gguf in PLAIN_TENSORS.items() if "gate_proj" not in hf and "up_proj" not in hf},
        **BIASES,
        "model.layers.{i}.post_self_attn_layernorm.weight": "blk.{i}.post_attention_norm.weight",
        "model.layers.{i}.mlp.gate_up_proj.weight": "blk.{i}.ffn_up.weight",
        "model.layers.{i}.post_mlp_layernorm.weight": "blk.{i}.post_ffw_norm.weight",
    },
    fixed=SILU,
    evidence="llama.cpp 0c1e570: src/models/glm4.cpp (neighbours turn, as in HF; rope_freqs.weight is not loaded); "
    "conversion/glm.py Glm4Model",
    shapes={"ffn_up.weight": ("gate_up", "hidden")},
)


GLM = Family(
    hf=ModelType(
        "glm",
        131072,
        head_dim=128,
        partial=0.5,
        architectures=("GlmForCausalLM",),
        defaults=GLM4.hf.defaults,
        switches=GLM4.hf.switches,
    ),
    gguf=Arch("chatglm", square=True),
    tensors={hf: gguf for hf, gguf in GLM4.tensors.items() if "post" not in hf}
    | {"model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.ffn_norm.weight"},
    fixed=SILU,
    shapes=GLM4.shapes,
    evidence="llama.cpp 0c1e570: src/models/chatglm.cpp (neighbours turn, as in HF; rope_freqs.weight is not loaded); "
    "conversion/chatglm.py ChatGLMModel, which takes hidden_size for the context, 10,000 for θ and 1e-5 for epsilon",
)


def _cohere(c: Values) -> dict[str, Any]:
    """max_position_embeddings is what transformers allocated, model_max_length what it was trained on; but a YaRN without a length of
    its own counts from the former there. llama.cpp loads norms of Q and K in models of 64 layers and more, and in no others
    (src/models/command-r.cpp)."""
    deep = (c.get("num_hidden_layers") or 0) >= 64
    objects = [x for k in ROPE_OBJECTS if (x := c.get(k)) is not None]
    unsaid = "yarn" in map(rope_type, objects) and all(x.get("original_max_position_embeddings") is None for x in (c, *objects))
    return ({"original_max_position_embeddings": c.get("max_position_embeddings")} if unsaid else {}) | {
        "max_position_embeddings": c.get("model_max_length") or c.get("max_position_embeddings"),
        "usual_norms": bool(c.get("use_qk_norm")) == deep,
    }


COHERE = Family(
    hf=ModelType(
        "cohere",
        8192,
        500000.0,
        architectures=("CohereForCausalLM",),
        defaults={"layer_norm_eps": 1e-5, "logit_scale": 0.0625, "tie_word_embeddings": True},
        switches={"use_qk_norm": QK_NORM_NAMES},
        lengths=("model_max_length",),
        reads=_cohere,
    ),
    gguf=Arch("command-r", head="never", square=True),
    tensors={**{hf: gguf for hf, gguf in PLAIN_TENSORS.items() if "post_attention" not in hf}, **QK_NORMS},
    hparams={**LAYER_NORM_HPARAMS, "logit_scale": "logit_scale:f32"},
    fixed={**SILU, "attention_bias": (False,), "usual_norms": (True,)},
    twin={"use_qk_norm": False},  # a twin of one layer has none
    evidence="llama.cpp 0c1e570: src/models/command-r.cpp (neighbours turn, as in HF; rope_freqs.weight is not loaded; "
    "norms of Q and K in models of 64 layers and more); conversion/command_r.py",
    shapes=QK_NORMS_BY_HEAD,
)


def _cohere2(c: Values) -> dict[str, Any]:
    """Every fourth layer has full attention, by a list or by a number."""
    windows = c.get("layer_types")
    return {"usual_windows": windows == alternating(len(windows), 4) if windows else c.get("sliding_window_pattern", 4) == 4}


COHERE2 = Family(
    hf=ModelType(
        "cohere2",
        8192,
        turning=hf_cohere2,
        architectures=("Cohere2ForCausalLM",),
        defaults={"layer_norm_eps": 1e-5, "logit_scale": 0.0625, "tie_word_embeddings": True, "sliding_window": 4096},
        reads=_cohere2,
        writes=_every_fourth_writes,
    ),
    gguf=Arch("cohere2", turning=gguf_within, head="never"),
    tensors={hf: gguf for hf, gguf in PLAIN_TENSORS.items() if "post_attention" not in hf},
    hparams={**LAYER_NORM_HPARAMS, "logit_scale": "logit_scale:f32", "sliding_window": "attention.sliding_window"},
    fixed={**SILU, "attention_bias": (False,), "use_qk_norm": (False,), "usual_windows": (True,)},
    evidence="llama.cpp 0c1e570: src/models/cohere2.cpp (neighbours turn, as in HF, in the three of four layers that slide; never reads "
    "output.weight); conversion/command_r.py Cohere2Model",
    twin={"num_hidden_layers": 4},
)

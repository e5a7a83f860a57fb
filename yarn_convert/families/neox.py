"""Families with layer norms, fused projections or a partial rotation: GPT-NeoX, Falcon, StableLM, StarCoder2, Phi-2 and 3."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from .architectures import Arch
from .layers import Values
from .llama import PLAIN_TENSORS, SILU
from .model_types import ModelType
from .qwen import BIASES, QK_NORM_NAMES, QKV_BIASES
from .schema import HPARAMS, KNOWN, Family

LAYER_NORM_HPARAMS = {k: v for k, v in HPARAMS.items() if k != "rms_norm_eps"} | {"layer_norm_eps": "attention.layer_norm_epsilon:f32"}
NORM_BIASES = {
    "model.layers.{i}.input_layernorm.bias": "blk.{i}.attn_norm.bias",
    "model.layers.{i}.post_attention_layernorm.bias": "blk.{i}.ffn_norm.bias",
    "model.norm.bias": "output_norm.bias",
}
QK_NORMS_BY_HEAD = {"attn_q_norm.weight": ("heads", "head"), "attn_k_norm.weight": ("kv_heads", "head")}
PHI3_TYPES = {"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"}
BOTH = ("weight", "bias")


def _both(hf: str, gguf: str) -> dict[str, str]:
    return {f"{hf}.{x}": f"{gguf}.{x}" for x in BOTH}


_NEOX = "gpt_neox.layers.{i}."
GPT_NEOX = Family(
    hf=ModelType(
        "gpt_neox",
        2048,
        partial=0.25,
        architectures=("GPTNeoXForCausalLM",),
        defaults={"layer_norm_eps": 1e-5, "use_parallel_residual": True, "attention_bias": True},
        renamed={"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    ),
    gguf=Arch("gptneox", head="required", square=True),
    tensors={
        "gpt_neox.embed_in.weight": "token_embd.weight",
        **_both(_NEOX + "input_layernorm", "blk.{i}.attn_norm"),
        **_both(_NEOX + "attention.query_key_value", "blk.{i}.attn_qkv"),
        **_both(_NEOX + "attention.dense", "blk.{i}.attn_output"),
        **_both(_NEOX + "post_attention_layernorm", "blk.{i}.ffn_norm"),
        **_both(_NEOX + "mlp.dense_h_to_4h", "blk.{i}.ffn_up"),
        **_both(_NEOX + "mlp.dense_4h_to_h", "blk.{i}.ffn_down"),
        **_both("gpt_neox.final_layer_norm", "output_norm"),
        "embed_out.weight": "output.weight",
        "lm_head.weight": "output.weight",  # as transformers 5 saves it
        _NEOX + "attention.bias": (),
        _NEOX + "attention.masked_bias": (),
    },
    transforms={"blk.{i}.attn_qkv.weight": "heads_of_three", "blk.{i}.attn_qkv.bias": "heads_of_three"},
    hparams={**LAYER_NORM_HPARAMS, "use_parallel_residual": "use_parallel_residual:bool"},
    fixed={"hidden_act": ("gelu", "gelu_fast", "gelu_new"), "attention_bias": (True,)},
    evidence="llama.cpp 0c1e570: src/models/gptneox.cpp (rotates the first rope.dimension_count of each head; rope_freqs.weight is not "
    "loaded); conversion/gptneox.py, which drops rotary_emb_base",
)


def _falcon(c: Values) -> dict[str, Any]:
    """Heads of keys: one, one a group, or one a query (transformers, modeling_falcon.py FalconAttention); sizes and old names."""
    heads = c.get("num_attention_heads", c.get("n_head"))
    grouped = c.get("num_kv_heads") or c.get("n_head_kv") or heads
    kv_heads = grouped if c["new_decoder_architecture"] else 1 if c["multi_query"] else heads
    old = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    named = {k: c.get(k, c.get(v)) for k, v in old.items()}
    return {**named, "num_key_value_heads": kv_heads, "intermediate_size": c.get("ffn_hidden_size") or 4 * (c.get("hidden_size") or 0)}


def _falcon_writes(c: Values, names: Container[str]) -> dict[str, Any]:
    """The decoder that has these heads of keys and norms; the newer one where both would do."""
    kv_heads, two_norms = c["num_key_value_heads"], "blk.0.attn_norm_2.weight" in names
    old = kv_heads == 1 and not two_norms
    said = {"alibi": False, "bias": False, "parallel_attn": True, "multi_query": True, "new_decoder_architecture": not old}
    ours = {"num_kv_heads": kv_heads, "num_ln_in_parallel_attn": 2 if two_norms else 1}
    return said | {"ffn_hidden_size": c["intermediate_size"]} | ({} if old else ours)


_FALCON = "transformer.h.{i}."
FALCON = Family(
    hf=ModelType(
        "falcon",
        2048,
        other_head_dim=False,
        without="alibi",
        architectures=("FalconForCausalLM", "RWForCausalLM"),
        defaults={  # transformers, configuration_falcon.py
            "layer_norm_epsilon": 1e-5,
            "alibi": False,
            "bias": False,
            "parallel_attn": True,
            "multi_query": True,
            "new_decoder_architecture": False,
            "activation": "gelu",
            "tie_word_embeddings": True,
        },
        renamed={"layer_norm_eps": "layer_norm_epsilon"},
        unsaid=frozenset({"head_dim", "num_key_value_heads", "intermediate_size"}),
        reads=_falcon,
        writes=_falcon_writes,
    ),
    gguf=Arch("falcon", whole_head=True, square=True),
    tensors={
        "transformer.word_embeddings.weight": "token_embd.weight",
        **_both(_FALCON + "input_layernorm", "blk.{i}.attn_norm"),
        **_both(_FALCON + "ln_mlp", "blk.{i}.attn_norm"),
        **_both(_FALCON + "ln_attn", "blk.{i}.attn_norm_2"),
        _FALCON + "self_attention.query_key_value.weight": "blk.{i}.attn_qkv.weight",
        _FALCON + "self_attention.dense.weight": "blk.{i}.attn_output.weight",
        _FALCON + "mlp.dense_h_to_4h.weight": "blk.{i}.ffn_up.weight",
        _FALCON + "mlp.dense_4h_to_h.weight": "blk.{i}.ffn_down.weight",
        **_both("transformer.ln_f", "output_norm"),
        "lm_head.weight": "output.weight",
    },
    transforms={"blk.{i}.attn_qkv.weight": "groups_of_heads"},
    hparams=LAYER_NORM_HPARAMS,
    instead={f"blk.{{i}}.attn_norm.{x}": (f"{_FALCON}ln_mlp.{x}", f"blk.{{i}}.attn_norm_2.{x}") for x in BOTH},
    fixed={"alibi": (False,), "bias": (False,), "parallel_attn": (True,), "activation": ("gelu",)},
    constants={"tensor_data_layout": ("str", "jploski")},
    evidence="llama.cpp 0c1e570: src/models/falcon.cpp (whole heads; rope_freqs.weight is not loaded); conversion/falcon.py, "
    "which writes a context of 2048 and no rope_theta whatever config.json says",
    optional=frozenset(f"blk.{{i}}.attn_norm_2.{x}" for x in BOTH),
)


def _stablelm_writes(c: Values, names: Container[str]) -> dict[str, Any]:
    return {"use_parallel_residual": "blk.0.ffn_norm.weight" not in names}


STABLELM = Family(
    hf=ModelType(
        "stablelm",
        4096,
        partial=0.25,
        architectures=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
        defaults={  # transformers, configuration_stablelm.py
            "layer_norm_eps": 1e-5,
            "num_key_value_heads": 32,
            "use_qkv_bias": False,
            "qk_layernorm": False,
            "use_parallel_residual": False,
        },
        switches={
            "use_qkv_bias": QKV_BIASES,
            "qk_layernorm": QK_NORM_NAMES,
            "!use_parallel_residual": ("ffn_norm.weight", "ffn_norm.bias"),
        },
        writes=_stablelm_writes,
    ),
    gguf=Arch("stablelm", head="required", square=True),
    tensors={
        **PLAIN_TENSORS,
        **NORM_BIASES,
        **BIASES,
        **{f"model.layers.{{i}}.self_attn.{x}_layernorm.norms.{{e}}.weight": f"blk.{{i}}.attn_{x}_norm.weight" for x in "qk"},
    },
    hparams={**LAYER_NORM_HPARAMS, "use_parallel_residual": "use_parallel_residual:bool"},
    fixed=SILU,
    evidence="llama.cpp 0c1e570: src/models/stablelm.cpp (rotates the first rope.dimension_count of each head; rope_freqs.weight is not "
    "loaded); conversion/stablelm.py, which drops rope_theta",
    shapes=QK_NORMS_BY_HEAD,
)

STARCODER2 = Family(
    hf=ModelType(
        "starcoder2",
        4096,
        architectures=("Starcoder2ForCausalLM",),
        defaults={
            "norm_epsilon": 1e-5,
            "num_key_value_heads": 2,
            "hidden_act": "gelu_pytorch_tanh",
            "use_bias": True,
            "tie_word_embeddings": True,
        },
        renamed={"layer_norm_eps": "norm_epsilon"},
        windowed=True,
    ),
    gguf=Arch("starcoder2", square=True),
    tensors={
        **{hf: gguf for hf, gguf in PLAIN_TENSORS.items() if ".mlp." not in hf},
        **NORM_BIASES,
        **BIASES,
        "model.layers.{i}.self_attn.o_proj.bias": "blk.{i}.attn_output.bias",
        **_both("model.layers.{i}.mlp.c_fc", "blk.{i}.ffn_up"),
        **_both("model.layers.{i}.mlp.c_proj", "blk.{i}.ffn_down"),
    },
    hparams=LAYER_NORM_HPARAMS,
    fixed={"hidden_act": ("gelu_pytorch_tanh",), "use_bias": (True,)},
    evidence="llama.cpp 0c1e570: src/models/starcoder2.cpp (rope_freqs.weight is not loaded; no sliding window); conversion/starcoder.py",
)

_PHI = "model.layers.{i}."
PHI = Family(
    hf=ModelType(
        "phi",
        2048,
        partial=0.5,
        architectures=("PhiForCausalLM",),
        defaults={"layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "qk_layernorm": False},
        switches={"qk_layernorm": tuple(f"{name}.{x}" for name in ("attn_q_norm", "attn_k_norm") for x in BOTH)},
    ),
    gguf=Arch("phi2", head="required", square=True),
    tensors={
        "model.embed_tokens.weight": "token_embd.weight",
        **_both(_PHI + "input_layernorm", "blk.{i}.attn_norm"),
        **{k: v for x in "qkv" for k, v in _both(f"{_PHI}self_attn.{x}_proj", f"blk.{{i}}.attn_{x}").items()},
        **{k: v for x in "qk" for k, v in _both(f"{_PHI}self_attn.{x}_layernorm", f"blk.{{i}}.attn_{x}_norm").items()},
        **_both(_PHI + "self_attn.dense", "blk.{i}.attn_output"),
        **_both(_PHI + "mlp.fc1", "blk.{i}.ffn_up"),
        **_both(_PHI + "mlp.fc2", "blk.{i}.ffn_down"),
        **_both("model.final_layernorm", "output_norm"),
        **_both("lm_head", "output"),
    },
    hparams=LAYER_NORM_HPARAMS,
    fixed={"hidden_act": ("gelu_new",), "qk_layernorm": (False,)},
    evidence="llama.cpp 0c1e570: src/models/phi2.cpp (rotates the first rope.dimension_count of each head; rope_freqs.weight is not "
    "loaded); conversion/phi.py Phi2Model, which drops rope_theta and takes 4 times hidden_size for the feed-forward layer's",
    shapes={"output.bias": ("vocab",), "attn_q_norm.bias": ("head",), "attn_k_norm.bias": ("head",)},
)

PHI3 = Family(
    hf=ModelType(
        "phi3",
        4096,
        partial=1.0,
        original=4096,
        types=PHI3_TYPES,
        required={"su": ("original_max_position_embeddings",)},
        architectures=("Phi3ForCausalLM",),
        defaults={"rms_norm_eps": 1e-5},
        windowed=True,
    ),
    gguf=Arch("phi3", pair="always", square=True),
    tensors={
        **{
            hf: gguf
            for hf, gguf in PLAIN_TENSORS.items()
            if not any(x in hf for x in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
        },
        "model.layers.{i}.self_attn.qkv_proj.weight": "blk.{i}.attn_qkv.weight",
        "model.layers.{i}.mlp.gate_up_proj.weight": "blk.{i}.ffn_up.weight",
    },
    fixed={**SILU, "attention_bias": (False,)},
    constants={"attention.sliding_window": ("u32", 0)},  # and not nothing, which older versions of llama.cpp took for 2,047
    evidence="llama.cpp 0c1e570: src/models/phi3.cpp (rope_factors_long and rope_factors_short whatever the type; its sliding "
    "window is switched off there); conversion/phi.py Phi3MiniModel",
    gguf_known=KNOWN | {"attention.sliding_window"},
    shapes={"ffn_up.weight": ("gate_up", "hidden")},
)

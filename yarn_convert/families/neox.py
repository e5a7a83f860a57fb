"""Families with layer norms, fused projections or a partial rotation: GPT-NeoX, Falcon, StableLM, StarCoder2, Phi-3."""

from __future__ import annotations

from .llama import HPARAMS, KNOWN, PLAIN_TENSORS, SHAPES, SILU
from .qwen import BIASES, OUTPUT, QK_NORM_NAMES, QKV_BIASES
from .schema import PARTIAL_READS, Family

LAYER_NORM_HPARAMS = {k: v for k, v in HPARAMS.items() if k != "rms_norm_eps"} | {"layer_norm_eps": "attention.layer_norm_epsilon:f32"}
NORM_BIASES = {
    "model.layers.{i}.input_layernorm.bias": "blk.{i}.attn_norm.bias",
    "model.layers.{i}.post_attention_layernorm.bias": "blk.{i}.ffn_norm.bias",
    "model.norm.bias": "output_norm.bias",
}
NORM_SHAPES = {f"{x}_norm.bias": ("hidden",) for x in ("attn", "ffn", "output")}
FUSED_SHAPES = {"attn_qkv.weight": ("qkv", "hidden"), "attn_qkv.bias": ("qkv",)}
BOTH = ("weight", "bias")


def _both(hf: str, gguf: str) -> dict[str, str]:
    return {f"{hf}.{x}": f"{gguf}.{x}" for x in BOTH}


_NEOX = "gpt_neox.layers.{i}."
GPT_NEOX = Family(
    model_type="gpt_neox",
    architectures=("GPTNeoXForCausalLM",),
    gguf_arch="gptneox",
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
    },
    dropped=(_NEOX + "attention.bias", _NEOX + "attention.masked_bias"),
    transforms={"blk.{i}.attn_qkv.weight": "heads_of_three", "blk.{i}.attn_qkv.bias": "heads_of_three"},
    hparams={**LAYER_NORM_HPARAMS, "use_parallel_residual": "use_parallel_residual:bool"},
    renamed={"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    fixed={"hidden_act": ("gelu", "gelu_fast", "gelu_new"), "attention_bias": (True,)},
    gguf_known=KNOWN,
    head="required",
    square=True,
    gguf_reads=PARTIAL_READS,
    evidence="llama.cpp 0c1e570: src/models/gptneox.cpp (rotates the first rope.dimension_count of each head; rope_freqs.weight is not "
    "loaded); conversion/gptneox.py, which drops rotary_emb_base",
    shapes={**SHAPES, **NORM_SHAPES, **FUSED_SHAPES},
    defaults={"layer_norm_eps": 1e-5, "rotary_pct": 0.25, "use_parallel_residual": True, "attention_bias": True},
)

_FALCON = "transformer.h.{i}."
FALCON = Family(
    model_type="falcon",
    architectures=("FalconForCausalLM", "RWForCausalLM"),
    gguf_arch="falcon",
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
    optional=frozenset({"output.weight", *(f"blk.{{i}}.attn_norm_2.{x}" for x in BOTH)}),
    transforms={"blk.{i}.attn_qkv.weight": "groups_of_heads"},
    hparams=LAYER_NORM_HPARAMS,
    renamed={"layer_norm_eps": "layer_norm_epsilon"},
    instead={f"blk.{{i}}.attn_norm.{x}": (f"{_FALCON}ln_mlp.{x}", f"blk.{{i}}.attn_norm_2.{x}") for x in BOTH},
    unsaid=frozenset({"head_dim", "num_key_value_heads", "intermediate_size"}),
    derived="falcon",
    fixed={"alibi": (False,), "bias": (False,), "parallel_attn": (True,), "activation": ("gelu",)},
    constants={"tensor_data_layout": ("str", "jploski")},
    gguf_known=KNOWN,
    square=True,
    evidence="llama.cpp 0c1e570: src/models/falcon.cpp (whole heads; rope_freqs.weight is not loaded); conversion/falcon.py, "
    "which writes a context of 2048 and no rope_theta whatever config.json says",
    shapes={**SHAPES, **NORM_SHAPES, **FUSED_SHAPES, "attn_norm_2.weight": ("hidden",), "attn_norm_2.bias": ("hidden",)},
    defaults={  # transformers, configuration_falcon.py
        "layer_norm_epsilon": 1e-5, "max_position_embeddings": 2048, "alibi": False, "bias": False, "parallel_attn": True,
        "multi_query": True, "new_decoder_architecture": False, "activation": "gelu", "tie_word_embeddings": True,
    },
)  # fmt: skip

STABLELM = Family(
    model_type="stablelm",
    architectures=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    gguf_arch="stablelm",
    tensors={
        **PLAIN_TENSORS,
        **NORM_BIASES,
        **BIASES,
        **{f"model.layers.{{i}}.self_attn.{x}_layernorm.norms.{{e}}.weight": f"blk.{{i}}.attn_{x}_norm.weight" for x in "qk"},
    },
    optional=frozenset({"output.weight", *BIASES.values(), *(f"blk.{{i}}.{x}.weight" for x in ("attn_q_norm", "attn_k_norm", "ffn_norm")),
                        "blk.{i}.ffn_norm.bias"}),
    hparams={**LAYER_NORM_HPARAMS, "use_parallel_residual": "use_parallel_residual:bool"},
    fixed=SILU,
    gguf_known=KNOWN,
    head="required",
    square=True,
    gguf_reads=PARTIAL_READS,
    evidence="llama.cpp 0c1e570: src/models/stablelm.cpp (rotates the first rope.dimension_count of each head; rope_freqs.weight is not "
    "loaded); conversion/stablelm.py, which drops rope_theta",
    shapes={**SHAPES, **NORM_SHAPES, "attn_q_norm.weight": ("heads", "head"), "attn_k_norm.weight": ("kv_heads", "head")},
    defaults={  # transformers, configuration_stablelm.py
        "layer_norm_eps": 1e-5, "num_key_value_heads": 32, "partial_rotary_factor": 0.25, "use_qkv_bias": False, "qk_layernorm": False,
        "use_parallel_residual": False,
    },
    switches={
        "use_qkv_bias": QKV_BIASES, "qk_layernorm": QK_NORM_NAMES, "!use_parallel_residual": ("ffn_norm.weight", "ffn_norm.bias"),
    },
)  # fmt: skip

STARCODER2 = Family(
    model_type="starcoder2",
    architectures=("Starcoder2ForCausalLM",),
    gguf_arch="starcoder2",
    tensors={
        **{hf: gguf for hf, gguf in PLAIN_TENSORS.items() if ".mlp." not in hf},
        **NORM_BIASES,
        **BIASES,
        "model.layers.{i}.self_attn.o_proj.bias": "blk.{i}.attn_output.bias",
        **_both("model.layers.{i}.mlp.c_fc", "blk.{i}.ffn_up"),
        **_both("model.layers.{i}.mlp.c_proj", "blk.{i}.ffn_down"),
    },
    optional=OUTPUT,
    hparams=LAYER_NORM_HPARAMS,
    renamed={"layer_norm_eps": "norm_epsilon"},
    fixed={"hidden_act": ("gelu_pytorch_tanh",), "use_bias": (True,)},
    gguf_known=KNOWN,
    square=True,
    evidence="llama.cpp 0c1e570: src/models/starcoder2.cpp (rope_freqs.weight is not loaded; no sliding window); conversion/starcoder.py",
    shapes={**SHAPES, **NORM_SHAPES},
    defaults={
        "norm_epsilon": 1e-5,
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": True,
        "tie_word_embeddings": True,
    },
    windowed=True,
)

PHI3 = Family(
    model_type="phi3",
    architectures=("Phi3ForCausalLM",),
    gguf_arch="phi3",
    tensors={
        **{
            hf: gguf
            for hf, gguf in PLAIN_TENSORS.items()
            if not any(x in hf for x in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
        },
        "model.layers.{i}.self_attn.qkv_proj.weight": "blk.{i}.attn_qkv.weight",
        "model.layers.{i}.mlp.gate_up_proj.weight": "blk.{i}.ffn_up.weight",
    },
    optional=OUTPUT,
    hparams=HPARAMS,
    fixed={**SILU, "attention_bias": (False,)},
    constants={"attention.sliding_window": ("u32", 0)},  # and not nothing, which older versions of llama.cpp took for 2,047
    gguf_known=KNOWN | {"attention.sliding_window"},
    square=True,
    gguf_reads=PARTIAL_READS | {"rope_factors"},
    evidence="llama.cpp 0c1e570: src/models/phi3.cpp (rope_factors_long and rope_factors_short whatever the type; its sliding "
    "window is switched off there); conversion/phi.py Phi3MiniModel",
    shapes={**SHAPES, **FUSED_SHAPES, "ffn_up.weight": ("gate_up", "hidden")},
    defaults={"rms_norm_eps": 1e-5},
    windowed=True,
)

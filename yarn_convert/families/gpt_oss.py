"""gpt-oss: experts with biases, in bf16 or in 4 bits; attention with sinks, sliding in every second layer."""

from __future__ import annotations

from .llama import EXPERT_HPARAMS, EXPERT_SHAPES, EXPERT_TWIN, HPARAMS, KNOWN, PLAIN_TENSORS, SHAPES, SILU, TENSORS
from .schema import Family

_EXPERTS = "model.layers.{i}.mlp.experts."
_GATE_UP, _DOWN = ("blk.{i}.ffn_gate_exps", "blk.{i}.ffn_up_exps"), "blk.{i}.ffn_down_exps"
_WEIGHTS = tuple(f"{x}.weight" for x in _GATE_UP)
SCALES = {f"{_EXPERTS}{x}_proj_blocks": f"{_EXPERTS}{x}_proj_scales" for x in ("gate_up", "down")}
GPT_OSS = Family(
    model_type="gpt_oss",
    architectures=("GptOssForCausalLM",),
    gguf_arch="gpt-oss",
    tensors={
        **{hf: gguf for hf, gguf in PLAIN_TENSORS.items() if ".mlp." not in hf and "post_attention" not in hf},
        **{hf: gguf for hf, gguf in TENSORS.items() if ".self_attn." in hf},
        "model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.post_attention_norm.weight",
        "model.layers.{i}.self_attn.sinks": "blk.{i}.attn_sinks.weight",
        "model.layers.{i}.mlp.router.weight": "blk.{i}.ffn_gate_inp.weight",
        "model.layers.{i}.mlp.router.bias": "blk.{i}.ffn_gate_inp.bias",
        f"{_EXPERTS}gate_up_proj": _WEIGHTS,
        f"{_EXPERTS}gate_up_proj_bias": tuple(f"{x}.bias" for x in _GATE_UP),
        f"{_EXPERTS}down_proj": f"{_DOWN}.weight",
        f"{_EXPERTS}down_proj_bias": f"{_DOWN}.bias",
        f"{_EXPERTS}gate_up_proj_blocks": _WEIGHTS,
        f"{_EXPERTS}gate_up_proj_scales": _WEIGHTS,
        f"{_EXPERTS}down_proj_blocks": f"{_DOWN}.weight",
        f"{_EXPERTS}down_proj_scales": f"{_DOWN}.weight",
    },
    scales=SCALES,
    transforms={
        **dict.fromkeys(_WEIGHTS, "columns_in_turn"),
        **{f"{x}.bias": "in_turn" for x in _GATE_UP},
        f"{_DOWN}.weight": "transposed",
    },
    hparams={
        **HPARAMS,
        **EXPERT_HPARAMS,
        "moe_intermediate_size": "expert_feed_forward_length",
        "sliding_window": "attention.sliding_window",
    },
    renamed={"num_experts": "num_local_experts"},
    unsaid=frozenset({"moe_intermediate_size"}),
    derived="gpt_oss",
    fixed={
        **SILU, "attention_bias": (True,), "swiglu_limit": (7.0,), "swiglu_alpha": (1.702,),
        "usual_windows": (True,),
    },
    gguf_known=KNOWN,
    evidence="llama.cpp 0c1e570: src/models/openai-moe.cpp (layers 0, 2, … slide; rope_freqs.weight is not loaded; swiglu's limit and "
    "alpha are written there); conversion/gpt_oss.py GptOssModel",
    shapes={
        **{k: v for k, v in SHAPES.items() if k != "ffn_norm.weight"},
        **EXPERT_SHAPES,
        "post_attention_norm.weight": ("hidden",),
        "attn_sinks.weight": ("heads",),
        "ffn_gate_inp.bias": ("experts",),
        "ffn_gate_exps.bias": ("experts", "expert_ff"),
        "ffn_up_exps.bias": ("experts", "expert_ff"),
        "ffn_down_exps.bias": ("experts", "hidden"),
    },
    defaults={
        "rms_norm_eps": 1e-5, "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8, "sliding_window": 128,
        "num_experts_per_tok": 4, "attention_bias": True, "tie_word_embeddings": False,
    },
    attention="other",
    head="required",
    twin={**EXPERT_TWIN, "moe_intermediate_size": 32, "num_hidden_layers": 2},
)  # fmt: skip

"""Llama and the families that share its tensors."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any

from .architectures import FINETUNED, Arch
from .architectures import LLAMA as LLAMA_ARCH
from .layers import Values, hf_smollm3
from .model_types import NEW, ModelType
from .schema import HPARAMS, Family, rope_says

TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.layers.{i}.input_layernorm.weight": "blk.{i}.attn_norm.weight",
    "model.layers.{i}.self_attn.q_proj.weight": "blk.{i}.attn_q.weight",
    "model.layers.{i}.self_attn.q_proj.bias": "blk.{i}.attn_q.bias",
    "model.layers.{i}.self_attn.k_proj.weight": "blk.{i}.attn_k.weight",
    "model.layers.{i}.self_attn.k_proj.bias": "blk.{i}.attn_k.bias",
    "model.layers.{i}.self_attn.v_proj.weight": "blk.{i}.attn_v.weight",
    "model.layers.{i}.self_attn.v_proj.bias": "blk.{i}.attn_v.bias",
    "model.layers.{i}.self_attn.o_proj.weight": "blk.{i}.attn_output.weight",
    "model.layers.{i}.self_attn.o_proj.bias": "blk.{i}.attn_output.bias",
    "model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.ffn_norm.weight",
    "model.layers.{i}.mlp.gate_proj.weight": "blk.{i}.ffn_gate.weight",
    "model.layers.{i}.mlp.gate_proj.bias": "blk.{i}.ffn_gate.bias",
    "model.layers.{i}.mlp.up_proj.weight": "blk.{i}.ffn_up.weight",
    "model.layers.{i}.mlp.up_proj.bias": "blk.{i}.ffn_up.bias",
    "model.layers.{i}.mlp.down_proj.weight": "blk.{i}.ffn_down.weight",
    "model.layers.{i}.mlp.down_proj.bias": "blk.{i}.ffn_down.bias",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
PLAIN_TENSORS = {hf: gguf for hf, gguf in TENSORS.items() if not hf.endswith(".bias")}
ATTENTION_BIASES = {hf: gguf for hf, gguf in TENSORS.items() if ".self_attn." in hf and hf.endswith(".bias")}

INTERLEAVED = {  # ggml's "norm" RoPE turns neighbours (2i, 2i+1), HF turns halves (i, i+D/2)
    "blk.{i}.attn_q.weight": "interleave",
    "blk.{i}.attn_q.bias": "interleave",
    "blk.{i}.attn_k.weight": "interleave",
    "blk.{i}.attn_k.bias": "interleave",
}
ATTENTION, MLP = (
    tuple(f"{x}.bias" for x in parts) for parts in (("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down"))
)
SILU = {"hidden_act": ("silu",)}

LLAMA = Family(
    hf=ModelType(
        "llama",
        2048,
        shape=(32000, 4096, 11008, 32, 32),
        architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
        defaults={"rms_norm_eps": 1e-6},  # transformers, configuration_llama.py
        switches={"attention_bias": ATTENTION, "mlp_bias": MLP},
    ),
    gguf=LLAMA_ARCH,
    tensors=TENSORS,
    transforms=INTERLEAVED,
    fixed={**SILU, "partial_rotary_factor": (1, 1.0), "is_causal": (True,)},
    evidence="llama.cpp 0c1e570: src/models/llama.cpp load_arch_tensors (rope_freqs, one for all layers) and graph; "
    "src/llama-model.cpp load_hparams; src/llama-context.cpp constructor (yarn_attn_factor overwritten)",
)

MISTRAL = replace(
    LLAMA,
    hf=ModelType(
        "mistral",
        131072,
        shape=(32000, 4096, 14336, 32, 32),
        architectures=("MistralForCausalLM",),
        defaults={"rms_norm_eps": 1e-6, "sliding_window": 4096, "num_key_value_heads": 8},  # transformers, configuration_mistral.py
        switches={"": (*ATTENTION, *MLP)},
        windowed=True,
    ),
    evidence=LLAMA.evidence + "; its graph has no sliding window, so an active one cannot be carried; "
    "transformers 4.57.6: models/mistral/configuration_mistral.py leaves an absent head_dim None, and yarn then fails",
)

MINISTRAL3_ROPE = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip


def _ministral3(c: Values) -> dict[str, Any]:
    """By how much positions sharpen the attention, which stands in a RoPE object."""
    return {"llama_4_scaling_beta": next(iter(rope_says(c, "llama_4_scaling_beta")), None)}


def _ministral3_writes(c: Values, names: Container[str]) -> dict[str, Any]:
    return {"llama_4_scaling_beta": c["llama_4_scaling_beta"]}


MINISTRAL3 = Family(
    hf=ModelType(
        "ministral3",
        262144,
        head_dim=128,
        rope=MINISTRAL3_ROPE,
        since=NEW,
        shape=(131072, 4096, 14336, 34, 32),
        architectures=("Ministral3ForCausalLM",),
        defaults={"rms_norm_eps": 1e-5, "num_key_value_heads": 8},
        unsaid=frozenset({"llama_4_scaling_beta"}),
        reads=_ministral3,
        writes=_ministral3_writes,
        switches=MISTRAL.hf.switches,
        windowed=True,
        floor=True,
    ),
    gguf=Arch("mistral3", freqs="applied", pair="longrope", betas=(32.0, 1.0), ratio=True, floor=True),
    tensors=TENSORS,
    transforms=INTERLEAVED,
    hparams={**HPARAMS, "llama_4_scaling_beta": "attention.temperature_scale:f32"},
    fixed=SILU,
    marks=frozenset({"attention.temperature_scale"}),
    evidence="llama.cpp 0c1e570: src/models/mistral3.cpp (loads rope_freqs.weight; betas are read; the temperature of the position "
    "counts from n_ctx_orig_yarn), src/llama-graph.cpp llm_graph_input_attn_temp; conversion/mistral3.py Ministral3Model; "
    "transformers 5.23: models/ministral3/modeling_ministral3.py get_llama_4_attn_scale",
)

NOT_DENSE = {hf: gguf for hf, gguf in PLAIN_TENSORS.items() if ".mlp." not in hf}
EXPERT_HPARAMS = {"num_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}

MIXTRAL = Family(
    hf=ModelType(
        "mixtral",
        131072,
        1e6,
        architectures=("MixtralForCausalLM",),
        defaults={"rms_norm_eps": 1e-5, "num_key_value_heads": 8},  # transformers, configuration_mixtral.py
        renamed={"num_experts": "num_local_experts"},
        windowed=True,
    ),
    gguf=LLAMA_ARCH,
    tensors={
        **NOT_DENSE,
        "model.layers.{i}.block_sparse_moe.gate.weight": "blk.{i}.ffn_gate_inp.weight",
        "model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight": "blk.{i}.ffn_gate_exps.weight",
        "model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight": "blk.{i}.ffn_down_exps.weight",
        "model.layers.{i}.block_sparse_moe.experts.{e}.w3.weight": "blk.{i}.ffn_up_exps.weight",
    },
    transforms=INTERLEAVED,
    hparams={**HPARAMS, **EXPERT_HPARAMS},
    fixed=SILU,
    marks=frozenset({"expert_count"}),
    evidence=LLAMA.evidence + "; conversion/llama.py stacks experts",
)

GRANITE = Family(
    hf=ModelType(
        "granite",
        2048,
        architectures=("GraniteForCausalLM",),
        defaults={  # transformers, configuration_granite.py
            "rms_norm_eps": 1e-6,
            "embedding_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
        },
        switches=LLAMA.hf.switches,
    ),
    gguf=Arch("granite", freqs="applied", pair="longrope", switch=FINETUNED),
    tensors=TENSORS,
    transforms=INTERLEAVED,
    hparams={
        **HPARAMS,
        "embedding_multiplier": "embedding_scale:f32",
        "attention_multiplier": "attention.scale:f32",
        "residual_multiplier": "residual_scale:f32",
        "logits_scaling": "logit_scale:f32",
    },
    fixed=SILU,
    evidence="llama.cpp 0c1e570: src/models/granite.cpp (loads rope_freqs.weight; four multipliers); conversion/granite.py GraniteModel",
)

_MOE = "model.layers.{i}.block_sparse_moe."
GRANITE_MOE = Family(
    hf=ModelType(
        "granitemoe",
        2048,
        architectures=("GraniteMoeForCausalLM",),
        defaults=GRANITE.hf.defaults,
        renamed={"num_experts": "num_local_experts"},
    ),
    gguf=Arch("granitemoe", freqs="applied", pair="longrope"),
    tensors={
        **NOT_DENSE,
        f"{_MOE}router.layer.weight": "blk.{i}.ffn_gate_inp.weight",
        f"{_MOE}input_linear.weight": ("blk.{i}.ffn_gate_exps.weight", "blk.{i}.ffn_up_exps.weight"),
        f"{_MOE}output_linear.weight": "blk.{i}.ffn_down_exps.weight",
    },
    transforms={**INTERLEAVED, **{f"blk.{{i}}.ffn_{x}_exps.weight": "halves" for x in ("gate", "up")}},
    hparams={**GRANITE.hparams, **EXPERT_HPARAMS},
    fixed={**SILU, "attention_bias": (False,)},
    evidence="llama.cpp 0c1e570: src/models/granite-moe.cpp (loads rope_freqs.weight); conversion/granite.py GraniteMoeModel",
)


def _shared(c: Values) -> dict[str, Any]:
    """0 is what a GGUF leaves out."""
    return {"shared_expert_intermediate_size": c.get("shared_intermediate_size") or None}


def _has_shared(h: Values, layer: int) -> bool:
    return bool(h.get("shared_expert_intermediate_size"))


_SHARED_PARTS = tuple(f"blk.{{i}}.ffn_{x}_shexp.weight" for x in ("gate", "up"))
_SHARED: dict[str, str | tuple[str, ...]] = {
    "model.layers.{i}.shared_mlp.input_linear.weight": _SHARED_PARTS,
    "model.layers.{i}.shared_mlp.output_linear.weight": "blk.{i}.ffn_down_shexp.weight",
}
GRANITE_MOE_SHARED = replace(
    GRANITE_MOE,
    hf=replace(
        GRANITE_MOE.hf,
        name="granitemoeshared",
        architectures=("GraniteMoeSharedForCausalLM",),
        renamed={**GRANITE_MOE.hf.renamed, "shared_expert_intermediate_size": "shared_intermediate_size"},
        reads=_shared,
    ),
    tensors={**GRANITE_MOE.tensors, **_SHARED},
    transforms={**GRANITE_MOE.transforms, **dict.fromkeys(_SHARED_PARTS, "two_halves")},
    only_where=dict.fromkeys((*_SHARED_PARTS, "blk.{i}.ffn_down_shexp.weight"), _has_shared),
    hparams={**GRANITE_MOE.hparams, "shared_expert_intermediate_size": "expert_shared_feed_forward_length"},
    may_lack=frozenset({"shared_expert_intermediate_size"}),
    marks=frozenset({"expert_shared_feed_forward_length"}),
)


def _smollm3(c: Values) -> dict[str, Any]:
    """`no_rope_layers`, 0 for a layer without RoPE, wins over the interval from which it is made."""
    layers = c.get("no_rope_layers")
    if layers is None:
        return {}
    return {"no_rope_layer_interval": 4 if layers == [int((i + 1) % 4 != 0) for i in range(len(layers))] else layers}


SMOLLM3 = Family(
    hf=ModelType(
        "smollm3",
        32768,
        2e6,
        turning=hf_smollm3,
        architectures=("SmolLM3ForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-6,
            "num_key_value_heads": 4,
            "no_rope_layer_interval": 4,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
        },
        reads=_smollm3,
    ),
    gguf=Arch("smollm3"),
    tensors=PLAIN_TENSORS,
    transforms=INTERLEAVED,
    fixed={**SILU, "use_sliding_window": (False,), "attention_bias": (False,), "mlp_bias": (False,), "no_rope_layer_interval": (4,)},
    evidence="llama.cpp 0c1e570: src/models/smollm3.cpp (n_no_rope_layer_step = 4, as written there; rope_freqs.weight is not loaded)",
)

INTERNLM2 = Family(
    hf=ModelType(
        "internlm2",
        architectures=("InternLM2ForCausalLM",),
        defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 32},
        run_as="llama",
    ),
    gguf=Arch("internlm2", head="required", square=True),
    tensors={
        "model.tok_embeddings.weight": "token_embd.weight",
        "model.layers.{i}.attention_norm.weight": "blk.{i}.attn_norm.weight",
        "model.layers.{i}.attention.wqkv.weight": tuple(f"blk.{{i}}.attn_{x}.weight" for x in "qkv"),
        "model.layers.{i}.attention.wo.weight": "blk.{i}.attn_output.weight",
        "model.layers.{i}.ffn_norm.weight": "blk.{i}.ffn_norm.weight",
        "model.layers.{i}.feed_forward.w1.weight": "blk.{i}.ffn_gate.weight",
        "model.layers.{i}.feed_forward.w2.weight": "blk.{i}.ffn_down.weight",
        "model.layers.{i}.feed_forward.w3.weight": "blk.{i}.ffn_up.weight",
        "model.norm.weight": "output_norm.weight",
        "output.weight": "output.weight",
    },
    transforms={f"blk.{{i}}.attn_{x}.weight": "split_groups" for x in "qkv"},
    fixed={**SILU, "bias": (False,)},
    evidence="llama.cpp 0c1e570: src/models/internlm2.cpp (rope_freqs.weight is not loaded); conversion/internlm.py InternLM2Model. "
    "transformers runs it with remote code only; its GGUF computes what Llama's code does with the same tensors",
)

INTERNLM3 = replace(
    LLAMA,
    hf=ModelType(
        "internlm3",
        32768,
        head_dim=128,
        since=NEW,
        architectures=("InternLM3ForCausalLM", "LlamaForCausalLM"),
        defaults={"rms_norm_eps": 1e-5, "num_key_value_heads": 2},
    ),
    tensors=PLAIN_TENSORS,
    fixed={**SILU, **dict.fromkeys(("qkv_bias", "bias", "attention_bias", "mlp_bias"), (False,))},
    evidence=LLAMA.evidence + "; conversion/internlm.py InternLM3Model; transformers 5.23: models/auto/modeling_auto.py takes Llama's code",
)

IQUEST_CODER = replace(
    INTERNLM3,
    hf=ModelType(
        "iquestcoder",
        131072,
        head_dim=128,
        since=NEW,
        architectures=("IQuestCoderForCausalLM", "LlamaForCausalLM"),
        defaults={"rms_norm_eps": 1e-5, "num_key_value_heads": 8},
    ),
    fixed={**SILU, **dict.fromkeys(("attention_bias", "mlp_bias", "use_sliding_window"), (False,))},
    evidence=LLAMA.evidence + "; conversion/llama.py LlamaModel; transformers 5.23: models/auto/modeling_auto.py takes Llama's code",
)

"""Llama and the families that share its tensors."""

from __future__ import annotations

from .schema import PLAIN_READS, Family

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

SHAPES = {
    "token_embd.weight": ("vocab", "hidden"),
    "output.weight": ("vocab", "hidden"),
    "output_norm.weight": ("hidden",),
    "attn_norm.weight": ("hidden",),
    "ffn_norm.weight": ("hidden",),
    "attn_q.weight": ("q", "hidden"),
    "attn_k.weight": ("kv", "hidden"),
    "attn_v.weight": ("kv", "hidden"),
    "attn_output.weight": ("hidden", "q"),
    "ffn_gate.weight": ("ff", "hidden"),
    "ffn_up.weight": ("ff", "hidden"),
    "ffn_down.weight": ("hidden", "ff"),
}
SHAPES |= {k.replace("weight", "bias"): v[:1] for k, v in SHAPES.items() if k.startswith(("attn_", "ffn_")) and len(v) == 2}

HPARAMS = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon:f32",
    "vocab_size": "vocab_size",
    "head_dim": "attention.key_length",
}
INTERLEAVED = {  # ggml's "norm" RoPE turns neighbours (2i, 2i+1), HF turns halves (i, i+D/2)
    "blk.{i}.attn_q.weight": "interleave",
    "blk.{i}.attn_q.bias": "interleave",
    "blk.{i}.attn_k.weight": "interleave",
    "blk.{i}.attn_k.bias": "interleave",
}
KNOWN = frozenset({"attention.value_length", "rope.dimension_count", "tensor_data_layout"})
ATTENTION, MLP = (
    tuple(f"{x}.bias" for x in parts) for parts in (("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down"))
)
SILU = {"hidden_act": ("silu",)}

LLAMA = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    gguf_arch="llama",
    tensors=TENSORS,
    optional=frozenset({"output.weight", *(t for t in TENSORS.values() if t.endswith(".bias"))}),
    transforms=INTERLEAVED,
    hparams=HPARAMS,
    fixed={**SILU, "partial_rotary_factor": (1, 1.0), "is_causal": (True,)},
    gguf_known=KNOWN,
    gguf_reads=PLAIN_READS | {"rope_freqs"},
    evidence="llama.cpp 0c1e570: src/models/llama.cpp load_arch_tensors (rope_freqs, one for all layers) and graph; "
    "src/llama-model.cpp load_hparams; src/llama-context.cpp constructor (yarn_attn_factor overwritten)",
    shapes=SHAPES,
    defaults={"rms_norm_eps": 1e-6},  # transformers, configuration_llama.py
    switches={"attention_bias": ATTENTION, "mlp_bias": MLP},
)

MISTRAL = Family(
    model_type="mistral",
    architectures=("MistralForCausalLM",),
    gguf_arch="llama",
    tensors=TENSORS,
    optional=LLAMA.optional,
    transforms=INTERLEAVED,
    hparams=HPARAMS,
    fixed=LLAMA.fixed,
    gguf_known=KNOWN,
    gguf_reads=LLAMA.gguf_reads,
    evidence=LLAMA.evidence + "; its graph has no sliding window, so an active one cannot be carried; "
    "transformers 4.57.6: models/mistral/configuration_mistral.py leaves an absent head_dim None, and yarn then fails",
    shapes=SHAPES,
    defaults={"rms_norm_eps": 1e-6, "sliding_window": 4096, "num_key_value_heads": 8},  # transformers, configuration_mistral.py
    switches={"": (*ATTENTION, *MLP)},
    windowed=True,
    spelled_out=("head_dim",),
)

NOT_DENSE = {hf: gguf for hf, gguf in PLAIN_TENSORS.items() if ".mlp." not in hf}
EXPERT_SHAPES = {
    "ffn_gate_inp.weight": ("experts", "hidden"),
    "ffn_gate_exps.weight": ("experts", "expert_ff", "hidden"),
    "ffn_up_exps.weight": ("experts", "expert_ff", "hidden"),
    "ffn_down_exps.weight": ("experts", "hidden", "expert_ff"),
}
EXPERT_HPARAMS = {"num_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}
EXPERT_TWIN = {"num_experts": 2, "num_experts_per_tok": 1}

MIXTRAL = Family(
    model_type="mixtral",
    architectures=("MixtralForCausalLM",),
    gguf_arch="llama",
    tensors={
        **NOT_DENSE,
        "model.layers.{i}.block_sparse_moe.gate.weight": "blk.{i}.ffn_gate_inp.weight",
        "model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight": "blk.{i}.ffn_gate_exps.weight",
        "model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight": "blk.{i}.ffn_down_exps.weight",
        "model.layers.{i}.block_sparse_moe.experts.{e}.w3.weight": "blk.{i}.ffn_up_exps.weight",
    },
    optional=frozenset({"output.weight"}),
    transforms=INTERLEAVED,
    hparams={**HPARAMS, **EXPERT_HPARAMS},
    renamed={"num_experts": "num_local_experts"},
    derived="experts_of_full_size",
    fixed=SILU,
    marks=frozenset({"expert_count"}),
    gguf_known=KNOWN,
    gguf_reads=LLAMA.gguf_reads,
    evidence=LLAMA.evidence + "; conversion/llama.py stacks experts",
    shapes={**SHAPES, **EXPERT_SHAPES},
    defaults={"rms_norm_eps": 1e-5, "num_key_value_heads": 8},  # transformers, configuration_mixtral.py
    windowed=True,
    spelled_out=("head_dim",),  # transformers 5.23 leaves an absent one None, and yarn then fails
    twin=EXPERT_TWIN,
)

GRANITE = Family(
    model_type="granite",
    architectures=("GraniteForCausalLM",),
    gguf_arch="granite",
    tensors=TENSORS,
    optional=LLAMA.optional,
    transforms=INTERLEAVED,
    hparams={
        **HPARAMS,
        "embedding_multiplier": "embedding_scale:f32",
        "attention_multiplier": "attention.scale:f32",
        "residual_multiplier": "residual_scale:f32",
        "logits_scaling": "logit_scale:f32",
    },
    fixed=SILU,
    gguf_known=KNOWN,
    gguf_reads=LLAMA.gguf_reads,
    evidence="llama.cpp 0c1e570: src/models/granite.cpp (loads rope_freqs.weight; four multipliers); conversion/granite.py GraniteModel",
    shapes=SHAPES,
    defaults={  # transformers, configuration_granite.py
        "rms_norm_eps": 1e-6, "embedding_multiplier": 1.0, "attention_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
    },
    switches=LLAMA.switches,
)  # fmt: skip

_MOE = "model.layers.{i}.block_sparse_moe."
GRANITE_MOE = Family(
    model_type="granitemoe",
    architectures=("GraniteMoeForCausalLM",),
    gguf_arch="granitemoe",
    tensors={
        **NOT_DENSE,
        f"{_MOE}router.layer.weight": "blk.{i}.ffn_gate_inp.weight",
        f"{_MOE}input_linear.weight": ("blk.{i}.ffn_gate_exps.weight", "blk.{i}.ffn_up_exps.weight"),
        f"{_MOE}output_linear.weight": "blk.{i}.ffn_down_exps.weight",
    },
    optional=frozenset({"output.weight"}),
    transforms={**INTERLEAVED, **{f"blk.{{i}}.ffn_{x}_exps.weight": "halves" for x in ("gate", "up")}},
    hparams={**GRANITE.hparams, **EXPERT_HPARAMS},
    renamed={"num_experts": "num_local_experts"},
    derived="experts_of_full_size",
    fixed={**SILU, "attention_bias": (False,)},
    gguf_known=KNOWN,
    gguf_reads=LLAMA.gguf_reads,
    evidence="llama.cpp 0c1e570: src/models/granite-moe.cpp (loads rope_freqs.weight); conversion/granite.py GraniteMoeModel",
    shapes={**SHAPES, **EXPERT_SHAPES},
    defaults=GRANITE.defaults,
    twin=EXPERT_TWIN,
)

SMOLLM3 = Family(
    model_type="smollm3",
    architectures=("SmolLM3ForCausalLM",),
    gguf_arch="smollm3",
    tensors=PLAIN_TENSORS,
    optional=frozenset({"output.weight"}),
    transforms=INTERLEAVED,
    hparams=HPARAMS,
    derived="every_fourth_without_rope",
    fixed={**SILU, "use_sliding_window": (False,), "attention_bias": (False,), "mlp_bias": (False,), "no_rope_layer_interval": (4,)},
    gguf_known=KNOWN,
    evidence="llama.cpp 0c1e570: src/models/smollm3.cpp (n_no_rope_layer_step = 4, as written there; rope_freqs.weight is not loaded)",
    shapes=SHAPES,
    defaults={
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 4,
        "no_rope_layer_interval": 4,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
)

INTERNLM2 = Family(
    model_type="internlm2",
    architectures=("InternLM2ForCausalLM",),
    gguf_arch="internlm2",
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
    hparams=HPARAMS,
    fixed={**SILU, "bias": (False,)},
    gguf_known=KNOWN,
    head="required",
    run_as="llama",
    square=True,
    evidence="llama.cpp 0c1e570: src/models/internlm2.cpp (rope_freqs.weight is not loaded); conversion/internlm.py InternLM2Model. "
    "transformers runs it with remote code only; its GGUF computes what Llama's code does with the same tensors",
    shapes=SHAPES,
    defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 32},
)

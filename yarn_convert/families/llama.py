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
KNOWN = frozenset({"attention.value_length", "rope.dimension_count"})
ATTENTION, MLP = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")
BUFFERS = ("model.layers.{i}.self_attn.rotary_emb.inv_freq",)  # recomputed by every reader since transformers 4.32
SILU = {"hidden_act": ("silu",)}

LLAMA = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    gguf_arch="llama",
    tensors=TENSORS,
    optional=frozenset({"output.weight", *(t for t in TENSORS.values() if t.endswith(".bias"))}),
    dropped=BUFFERS,
    transforms=INTERLEAVED,
    hparams=HPARAMS,
    fixed={**SILU, "partial_rotary_factor": (1, 1.0), "is_causal": (True,)},
    gguf_known=KNOWN,
    gguf_reads=PLAIN_READS | {"rope_freqs"},
    evidence="llama.cpp 0c1e570: src/models/llama.cpp load_arch_tensors (rope_freqs, one for all layers) and graph; "
    "src/llama-model.cpp load_hparams; src/llama-context.cpp constructor (yarn_attn_factor overwritten)",
    shapes=SHAPES,
    defaults={"rms_norm_eps": 1e-6},  # transformers, configuration_llama.py
    biases={"attention_bias": ATTENTION, "mlp_bias": MLP},
)

MISTRAL = Family(
    model_type="mistral",
    architectures=("MistralForCausalLM",),
    gguf_arch="llama",
    tensors=TENSORS,
    optional=LLAMA.optional,
    dropped=BUFFERS,
    transforms=INTERLEAVED,
    hparams=HPARAMS,
    fixed=LLAMA.fixed,
    gguf_known=KNOWN,
    gguf_reads=LLAMA.gguf_reads,
    evidence=LLAMA.evidence + "; its graph has no sliding window, so an active one cannot be carried; "
    "transformers 4.57.6: models/mistral/configuration_mistral.py leaves an absent head_dim None, and yarn then fails",
    shapes=SHAPES,
    defaults={"rms_norm_eps": 1e-6, "sliding_window": 4096, "num_key_value_heads": 8},  # transformers, configuration_mistral.py
    windowed=True,
    spelled_out=("head_dim",),
)

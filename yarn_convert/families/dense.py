"""Dense models that differ little from Llama: Seed-OSS, Arcee, ERNIE 4.5."""

from __future__ import annotations

from .architectures import Arch
from .llama import ATTENTION, INTERLEAVED, LLAMA, MLP, SILU, TENSORS
from .model_types import ModelType
from .qwen import QKV_BIASES
from .schema import Family

NO_BIASES = {"attention_bias": (False,), "mlp_bias": (False,)}

SEED_OSS = Family(
    hf=ModelType(
        "seed_oss",
        524288,
        head_dim=128,
        architectures=("SeedOssForCausalLM",),
        defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 8, "attention_bias": True},
        switches={"attention_bias": QKV_BIASES, "attention_out_bias": ("attn_output.bias",), "mlp_bias": MLP},
    ),
    gguf=Arch("seed_oss"),
    tensors=TENSORS | {"model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.post_attention_norm.weight"},
    fixed={**SILU, "attention_out_bias": (False,), "mlp_bias": (False,)},
    evidence="llama.cpp 0c1e570: src/models/seed-oss.cpp (rope_freqs.weight is not loaded; of biases only those of Q, K and V); "
    "conversion/olmo.py SeedOssModel",
)

ARCEE = Family(
    hf=ModelType(
        "arcee",
        4096,
        architectures=("ArceeForCausalLM",),
        defaults={"rms_norm_eps": 1e-5},
        switches={**LLAMA.hf.switches, "mlp_bias": MLP[1:]},
    ),
    gguf=Arch("arcee", freqs="applied"),
    tensors={hf: gguf for hf, gguf in TENSORS.items() if "gate_proj" not in hf},
    transforms=INTERLEAVED,
    fixed={"hidden_act": ("relu2",), **NO_BIASES},
    evidence="llama.cpp 0c1e570: src/models/arcee.cpp (loads rope_freqs.weight; ReLU² without a gate); conversion/llama.py ArceeModel",
)

ERNIE4_5 = Family(
    hf=ModelType(
        "ernie4_5",
        131072,
        500000.0,
        head_dim=128,
        architectures=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
        defaults={"rms_norm_eps": 1e-5, "num_key_value_heads": 2, "use_bias": False, "tie_word_embeddings": True},
        switches={"use_bias": (*ATTENTION, *MLP)},
    ),
    gguf=Arch("ernie4_5"),
    tensors=TENSORS,
    fixed={**SILU, "use_bias": (False,)},
    evidence="llama.cpp 0c1e570: src/models/ernie4-5.cpp (neighbours turn, as in HF; rope_freqs.weight is not loaded; a bias of the output "
    "is loaded and not added); conversion/ernie.py Ernie4_5Model",
)

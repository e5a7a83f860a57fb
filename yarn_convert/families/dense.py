"""Dense models that differ little from Llama: Seed-OSS, Arcee, ERNIE 4.5, Nemotron, Apertus, Hunyuan, Jais 2, EXAONE 4."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from ..rope import ntk_theta
from .architectures import Arch
from .layers import FULL, MOST, Values, alternating, gguf_exaone4, hf_exaone4
from .llama import ATTENTION, ATTENTION_BIASES, INTERLEAVED, LLAMA, MLP, PLAIN_TENSORS, SILU, TENSORS
from .model_types import LLAMA3_ROPE, NEW, ModelType
from .neox import LAYER_NORM_HPARAMS, NORM_BIASES
from .qwen import QK_NORMS, QKV_BIASES
from .schema import HPARAMS, ROPE_OBJECTS, Family, InKey, rope_type

NO_BIASES = {"attention_bias": (False,), "mlp_bias": (False,)}
UNGATED = {hf: gguf for hf, gguf in TENSORS.items() if "gate_proj" not in hf}

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
    tensors=UNGATED,
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

NEMOTRON = Family(
    hf=ModelType(
        "nemotron",
        4096,
        partial=0.5,
        architectures=("NemotronForCausalLM",),
        defaults={"norm_eps": 1e-5, "hidden_act": "relu2"},
        renamed={"layer_norm_eps": "norm_eps"},
        switches=ARCEE.hf.switches,
    ),
    gguf=Arch("nemotron", head="required", square=True),
    tensors={**UNGATED, **NORM_BIASES},
    transforms={t: "add_one" for t in UNGATED.values() if t.endswith("_norm.weight")},
    hparams=LAYER_NORM_HPARAMS,
    fixed={"hidden_act": ("relu2",)},
    evidence="llama.cpp 0c1e570: src/models/nemotron.cpp (rotates the first rope.dimension_count of each head; rope_freqs.weight is not "
    "loaded; ReLU² without a gate); conversion/nemotron.py NemotronModel",
)

_LAYER = "model.layers.{i}."
APERTUS = Family(
    hf=ModelType(
        "apertus",
        65536,
        12e6,
        rope=LLAMA3_ROPE | {"factor": 8.0, "rope_theta": 12e6},
        architectures=("ApertusForCausalLM",),
        defaults={"rms_norm_eps": 1e-5, "hidden_act": "xielu"},
        unsaid=frozenset({"xielu_alpha_n", "xielu_alpha_p", "xielu_beta", "xielu_eps"}),
        switches={"attention_bias": ATTENTION},
    ),
    gguf=Arch("apertus", freqs="applied", pair="longrope", whole_head=True, head="required"),
    tensors={
        **{hf: gguf for hf, gguf in UNGATED.items() if "layernorm" not in hf and not hf.endswith("_proj.bias")},
        **ATTENTION_BIASES,
        **QK_NORMS,
        f"{_LAYER}attention_layernorm.weight": "blk.{i}.attn_norm.weight",
        f"{_LAYER}feedforward_layernorm.weight": "blk.{i}.ffn_norm.weight",
    },
    in_keys={  # alphas before the softplus that both runtimes take of them; a twin's are those of a new model
        f"{_LAYER}mlp.act_fn.alpha_n": InKey("xielu_alpha_n", (1,), -1.05),
        f"{_LAYER}mlp.act_fn.alpha_p": InKey("xielu_alpha_p", (1,), 0.2),
        f"{_LAYER}mlp.act_fn.beta": InKey("xielu_beta", (), 0.5),
        f"{_LAYER}mlp.act_fn.eps": InKey("xielu_eps", (), -1e-6),
    },
    hparams={**HPARAMS, **{f"xielu_{x}": f"/xielu.{x}:f32[]" for x in ("alpha_n", "alpha_p", "beta", "eps")}},
    fixed={"hidden_act": ("xielu",)},
    evidence="llama.cpp 0c1e570: src/models/apertus.cpp (halves turn, whole heads by an assertion; loads rope_freqs.weight), "
    "ggml/src/ggml.c ggml_xielu; conversion/llama.py ApertusModel, which writes the tensors' own numbers; transformers 5.23: "
    "models/apertus, activations.py XIELUActivation",
)


def hunyuan(c: Values) -> dict[str, Any]:
    """A dynamic scaling with alpha as what it is: another θ."""
    size = c.get("head_dim") or (c.get("hidden_size") or 0) // (c.get("num_attention_heads") or 1)
    for name in ROPE_OBJECTS:
        said = c.get(name) or {}
        if rope_type(said) == "dynamic" and said.get("alpha") and size > 2:
            theta = ntk_theta(said.get("rope_theta") or c.get("rope_theta") or 10000.0, said["alpha"], size)
            return dict.fromkeys(ROPE_OBJECTS) | {name: {"rope_type": "default", "rope_theta": theta}, "rope_theta": theta}
    return {}


HUNYUAN_DENSE = Family(
    hf=ModelType(
        "hunyuan_v1_dense",
        2048,
        since=NEW,
        architectures=("HunYuanDenseV1ForCausalLM",),
        defaults={"rms_norm_eps": 1e-5},
        switches={"attention_bias": ATTENTION},
        reads=hunyuan,
        alpha=True,
    ),
    gguf=Arch("hunyuan-dense", sections="blocks", alpha=True),
    tensors={
        **PLAIN_TENSORS,
        **ATTENTION_BIASES,
        **{f"model.layers.{{i}}.self_attn.{x}_layernorm.weight": f"blk.{{i}}.attn_{x[0]}_norm.weight" for x in ("query", "key")},
    },
    fixed={**SILU, "attention_bias": (False,), "mlp_bias": (False,)},
    cancels=lambda said: True,
    evidence="llama.cpp 0c1e570: src/models/hunyuan-vl.cpp (rope_freqs.weight is not loaded; Q and K are normed after they turn); "
    "conversion/hunyuan.py HunYuanModel; transformers 5.23: models/hunyuan_v1_dense/modeling_hunyuan_v1_dense.py "
    "compute_ntk_alpha_rope_parameters",
)

JAIS2 = Family(
    hf=ModelType(
        "jais2",
        8192,
        architectures=("Jais2ForCausalLM",),
        defaults={"layer_norm_eps": 1e-5, "hidden_act": "relu2", "attention_bias": True, "mlp_bias": True},
        switches=ARCEE.hf.switches,
    ),
    gguf=Arch("jais2"),
    tensors=NEMOTRON.tensors,
    hparams=LAYER_NORM_HPARAMS,
    fixed={"hidden_act": ("relu2",), "attention_bias": (True,), "mlp_bias": (True,)},
    evidence="llama.cpp 0c1e570: src/models/jais2.cpp (rope_freqs.weight is not loaded; ReLU² without a gate; all biases are required); "
    "conversion/jais.py Jais2Model",
)


def _exaone4(c: Values) -> dict[str, Any]:
    """llama.cpp has windows in a model of 64 layers and in no other (src/models/exaone4.cpp, load_arch_hparams)."""
    windows, layers = c.get("sliding_window") is not None, c.get("num_hidden_layers") or 0
    order = c.get("layer_types") or alternating(layers, 4)
    usual = c.get("layer_types") is not None or c.get("sliding_window_pattern", 4) in (4, "LLLG")
    return {"usual_windows": windows == (layers == 64) and (not windows or (usual and order == alternating(layers, 4)))}


def _exaone4_writes(c: Values, names: Container[str]) -> dict[str, Any]:
    layers = c["num_hidden_layers"]
    if layers != 64:
        return {"sliding_window": None, "layer_types": [FULL] * min(layers, MOST)}
    return {"sliding_window": c["sliding_window"] or 4096, "sliding_window_pattern": "LLLG", "layer_types": alternating(layers, 4)}


EXAONE4 = Family(
    hf=ModelType(
        "exaone4",
        2048,
        turning=hf_exaone4,
        architectures=("Exaone4ForCausalLM",),
        defaults={"rms_norm_eps": 1e-5, "num_key_value_heads": 32, "sliding_window": 4096},
        reads=_exaone4,
        writes=_exaone4_writes,
    ),
    gguf=Arch("exaone4", freqs="applied", turning=gguf_exaone4, square=True),
    tensors={
        **{hf: gguf for hf, gguf in PLAIN_TENSORS.items() if "layernorm" not in hf},
        **QK_NORMS,
        "model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.post_attention_norm.weight",
        "model.layers.{i}.post_feedforward_layernorm.weight": "blk.{i}.post_ffw_norm.weight",
    },
    hparams={**HPARAMS, "sliding_window": "attention.sliding_window"},
    may_lack=frozenset({"sliding_window"}),
    fixed={**SILU, "usual_windows": (True,)},
    evidence="llama.cpp 0c1e570: src/models/exaone4.cpp (loads rope_freqs.weight; windows in a model of 64 layers alone, and there RoPE in "
    "these layers alone); conversion/exaone.py Exaone4Model",
)

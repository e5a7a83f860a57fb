"""Gemma 4: heads, keys and layers of other sizes by the type of attention, p-RoPE in those that see all, embeddings for each layer."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from ..errors import Unsupported
from .architectures import Arch
from .gemma import TENSORS as GEMMA_TENSORS
from .layers import FULL, MOST, SLIDES, Values, alternating
from .llama import EXPERT_HPARAMS
from .model_types import GEMMA3_LAYERS, NEW, ModelType
from .qwen import QK_NORMS
from .schema import HPARAMS, Family

PUBLISHED = "published checkpoints say it by global_head_dim and num_global_key_value_heads"
_FROM, _TO = "model.layers.{i}.", "blk.{i}."
EVERY, HEAD = 6, 512  # of so many layers the last sees all; and the size of its heads
BY_LAYER = {  # whole model, then each layer
    "model.embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
    "model.per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "model.per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
    f"{_FROM}per_layer_input_gate.weight": f"{_TO}inp_gate.weight",
    f"{_FROM}per_layer_projection.weight": f"{_TO}proj.weight",
    f"{_FROM}post_per_layer_input_norm.weight": f"{_TO}post_norm.weight",
}
EXPERTS = {
    f"{_FROM}router.proj.weight": f"{_TO}ffn_gate_inp.weight",
    f"{_FROM}router.scale": f"{_TO}ffn_gate_inp.scale",
    f"{_FROM}router.per_expert_scale": f"{_TO}ffn_down_exps.scale",
    f"{_FROM}experts.gate_up_proj": f"{_TO}ffn_gate_up_exps.weight",
    f"{_FROM}experts.down_proj": f"{_TO}ffn_down_exps.weight",
    f"{_FROM}pre_feedforward_layernorm_2.weight": f"{_TO}pre_ffw_norm_2.weight",
    f"{_FROM}post_feedforward_layernorm_1.weight": f"{_TO}post_ffw_norm_1.weight",
    f"{_FROM}post_feedforward_layernorm_2.weight": f"{_TO}post_ffw_norm_2.weight",
}
SHAPES = {  # of `BY_LAYER`
    "per_layer_token_embd.weight": ("vocab", "ple_all"),
    "per_layer_model_proj.weight": ("ple_all", "hidden"),
    "per_layer_proj_norm.weight": ("ple",),
    "inp_gate.weight": ("ple", "hidden"),
    "proj.weight": ("hidden", "ple"),
    "post_norm.weight": ("hidden",),
}
SHARED = tuple(f"{_TO}attn_{x}.weight" for x in ("k", "v", "k_norm"))
SWA = {
    "head_dim_swa": "attention.key_length_swa",
    "value_dim_swa": "attention.value_length_swa",
    "rotary_dim_swa": "rope.dimension_count_swa",
}
LISTS = {
    "ff_by_layer": "feed_forward_length:i32[]",
    "kv_heads_by_layer": "attention.head_count_kv:i32[]",
    "slides_by_layer": "attention.sliding_window_pattern:bool[]",
}


def full_layers(c: Values) -> dict[str, Any]:
    """What layers that see all have otherwise: transformers 5.23 saves it by layer, checkpoints are published with keys of their own
    (models/gemma4/configuration_gemma4.py, Gemma4TextConfig.__post_init__)."""
    by_layer, heads = c.get("per_layer_config"), c.get("num_global_key_value_heads") if c.get("attention_k_eq_v") else None
    found = {"head_dim": c.get("global_head_dim", HEAD)} | ({} if heads is None else {"num_key_value_heads": heads})
    if by_layer is None:
        return found
    seeing = [str(i) for i, kind in enumerate(_kinds(c)) if kind == FULL]
    others: list[dict[str, Any]] = [by_layer.get(i) or {} for i in seeing] or [{}]
    if any(x != others[0] for x in others) or set(by_layer) - set(seeing) or set(others[0]) - {"head_dim", "num_key_value_heads"}:
        raise Unsupported("per_layer_config does more than to say the size and number of heads in layers of full attention", PUBLISHED)
    return others[0]


def _kinds(c: Values) -> list[str]:
    """The last layer sees all, whatever is said."""
    n = min(c.get("num_hidden_layers") or 0, MOST)
    given = (c.get("layer_types") or alternating(n, EVERY))[:n]
    return [*given[:-1], FULL] if given else []


def _first_shared(h: Values) -> int:
    """The first of the layers that take their keys and values from others: all behind it do."""
    return int(max((h["num_hidden_layers"] or 0) - (h.get("num_kv_shared_layers") or 0), 0))


def _reads(c: Values) -> dict[str, Any]:
    kinds, swa, more = _kinds(c), c.get("head_dim"), full_layers(c)
    n, ff, kv = len(kinds), c.get("intermediate_size") or 0, c.get("num_key_value_heads") or 0
    first = _first_shared({**c, "num_hidden_layers": n})
    wide = 2 if c.get("use_double_wide_mlp") else 1
    full = {**c, **more}
    experts, sees = bool(c.get("enable_moe_block")), c.get("use_bidirectional_attention")
    return {
        "head_dim": full.get("head_dim") or swa,
        **dict.fromkeys(SWA, swa),
        "ff_by_layer": [ff if i < first else ff * wide for i in range(n)],
        "kv_heads_by_layer": [full.get("num_key_value_heads") or 0 if kind == FULL else kv for kind in kinds],
        "slides_by_layer": [kind == SLIDES for kind in kinds],
        "layer_types": kinds,
        "use_bidirectional_attention": None if sees == "vision" and "vision_config" not in c else sees,
        "usual_windows": set(kinds) <= {FULL, SLIDES},
        "usual_sharing": first == n or kinds[max(first - 2, 0) : first] == [SLIDES, FULL],
        "usual_vocabulary": not c.get("hidden_size_per_layer_input") or c.get("vocab_size_per_layer_input") == c.get("vocab_size"),
        **{key: c.get(key) if experts else None for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size")},
    }


def _writes(h: Values, names: Container[str]) -> dict[str, Any]:
    slides, kv, n = h["slides_by_layer"], h["kv_heads_by_layer"], h["num_hidden_layers"]
    first = _first_shared(h)
    seeing = [i for i in range(n) if not slides[i]]
    same = any(f"blk.{i}.attn_v.weight" not in names for i in seeing if i < first)
    heads = {True: {kv[i] for i in seeing}, False: {kv[i] for i in range(n) if slides[i]}}
    mine, others = max(heads[True], default=0), max(heads[False] or heads[True], default=0)
    ff = set(h["ff_by_layer"][:first]), set(h["ff_by_layer"][first:])
    size = max(ff[0], default=0)
    if max(map(len, (*heads.values(), *ff))) > 1 or (mine != others and not same) or (ff[1] and ff[1] not in (ff[0], {2 * size})):
        raise Unsupported("this gemma4 has layers of more sizes than config.json can say", "--out gguf keeps them")
    return {
        "layer_types": [SLIDES if x else FULL for x in slides],
        "head_dim": h["head_dim_swa"],
        "global_head_dim": h["head_dim"],
        "num_key_value_heads": others,
        "num_global_key_value_heads": mine if same and mine != others else None,
        "attention_k_eq_v": same,
        "intermediate_size": size,
        "use_double_wide_mlp": ff[1] == {2 * size},
        "enable_moe_block": bool(h["num_experts"]),
        "vocab_size_per_layer_input": h["vocab_size"],
        "num_kv_shared_layers": h["num_kv_shared_layers"] or 0,
        "hidden_size_per_layer_input": h["hidden_size_per_layer_input"] or 0,
    }


def own_keys(h: Values, layer: int) -> bool:
    return layer < _first_shared(h)


def _own_values(h: Values, layer: int) -> bool:
    """config.json says whether they are the keys; a GGUF by having them or not."""
    return own_keys(h, layer) and bool(h["slides_by_layer"][layer] or h.get("attention_k_eq_v") is False)


def _values(h: Values, layer: int) -> bool:
    return bool(h["slides_by_layer"][layer] or not h.get("attention_k_eq_v"))


def _experts(h: Values, layer: int) -> bool:
    return bool(h.get("num_experts"))


def _by_layer(h: Values, layer: int) -> bool:
    return bool(h.get("hidden_size_per_layer_input"))


def _sizes(h: Values) -> dict[str, int]:
    each, ff = h.get("hidden_size_per_layer_input") or 0, h.get("moe_intermediate_size") or 0
    return {"scalar": 1, "ple": each, "ple_all": each * (h.get("num_hidden_layers") or 0), "expert_gate_up": 2 * ff}


def _layer_sizes(h: Values, layer: int) -> Mapping[str, int]:
    head = h["head_dim_swa"] if h["slides_by_layer"][layer] else h["head_dim"]
    kv = h["kv_heads_by_layer"][layer]
    return {"head": head, "q": h["num_attention_heads"] * head, "kv_heads": kv, "kv": kv * head, "ff": h["ff_by_layer"][layer]}


P_ROPE = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
GEMMA4 = Family(
    hf=ModelType(
        "gemma4_text",
        131072,
        head_dim=256,
        layers=GEMMA3_LAYERS,
        nested_alone=True,
        first_layers=full_layers,
        permits={"longrope": "allow_global_per_layer_attribute_access"},  # its size of heads is read where there are two of them
        more_types={"proportional": "proportional"},
        rope=P_ROPE,
        shape=(262144, 2304, 9216, 30, 8),
        architectures=("Gemma4ForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-6,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": 512,
            "tie_word_embeddings": True,
            "vocab_size_per_layer_input": 262144,
            "hidden_size_per_layer_input": 256,
            "attention_k_eq_v": False,
            "num_kv_shared_layers": 0,
        },
        renamed={"num_experts_per_tok": "top_k_experts"},
        unsaid=frozenset({*LISTS, *SWA, "rope_local_base_freq"}),
        reads=_reads,
        writes=_writes,
        since=NEW,
    ),
    gguf=Arch("gemma4", freqs="required", other_layers="own", window=1, dims=True),
    tensors={**GEMMA_TENSORS, **QK_NORMS, f"{_FROM}layer_scalar": f"{_TO}layer_output_scale.weight", **BY_LAYER, **EXPERTS},
    shapes={
        **SHAPES,
        "layer_output_scale.weight": ("scalar",),
        "ffn_gate_inp.scale": ("hidden",),
        "ffn_down_exps.scale": ("experts",),
        "ffn_gate_up_exps.weight": ("experts", "expert_gate_up", "hidden"),
        **{f"{x}.weight": ("hidden",) for x in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2")},
    },
    hparams={
        **HPARAMS,
        **LISTS,
        **SWA,
        "sliding_window": "attention.sliding_window",
        "final_logit_softcapping": "final_logit_softcapping:f32",
        "rope_local_base_freq": "rope.freq_base_swa:f32",
        "num_kv_shared_layers": "attention.shared_kv_layers",
        "hidden_size_per_layer_input": "embedding_length_per_layer_input",
        **EXPERT_HPARAMS,
        "moe_intermediate_size": "expert_feed_forward_length",
    },
    may_lack=frozenset(
        {"num_kv_shared_layers", "hidden_size_per_layer_input", *EXPERT_HPARAMS, "moe_intermediate_size", "final_logit_softcapping"}
    ),
    only_where={
        **dict.fromkeys(EXPERTS.values(), _experts),
        **dict.fromkeys(BY_LAYER.values(), _by_layer),
        f"{_TO}attn_v.weight": _values,
    },
    needed_where={**dict.fromkeys(SHARED, own_keys), f"{_TO}attn_v.weight": _own_values},
    fixed={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "use_bidirectional_attention": ("vision",),  # of pictures, which no text has
        "usual_windows": (True,),
        "usual_sharing": (True,),
        "usual_vocabulary": (True,),
    },
    twin={"num_kv_shared_layers": 0},
    fills=lambda h: {"value_dim_swa": h["head_dim_swa"], "rotary_dim_swa": h["head_dim"]},
    sizes=_sizes,
    layer_sizes=_layer_sizes,
    evidence="llama.cpp 0c1e570: src/models/gemma4.cpp (asks for rope_freqs.weight, of layers with full attention alone; V is K where it "
    "is not there), src/llama-model.cpp (layers that share keys take those of the last two that have some), conversion/gemma.py "
    "Gemma4Model; transformers 5.23: models/gemma4, integrations/heterogeneity",
)

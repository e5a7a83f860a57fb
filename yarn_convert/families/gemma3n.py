"""Gemma 3n: four predictions side by side (AltUp), embeddings for each layer, and late layers that take their keys from two others."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Any

from .architectures import Arch
from .gemma import TENSORS as GEMMA_TENSORS
from .gemma4 import BY_LAYER, LISTS, SHARED, own_keys
from .gemma4 import SHAPES as SHAPES_BY_LAYER
from .layers import FULL, MOST, SLIDES, Values, alternating, slides
from .model_types import GEMMA3_LAYERS, NEW, ModelType
from .qwen import QK_NORMS
from .schema import HPARAMS, Family

_FROM, _TO = "model.layers.{i}.", "blk.{i}."
EVERY, OWN, SPARSE = 5, 20, 10  # of so many layers the last sees all; so many have keys of their own, so many are sparse
SPARSITY = {0.95: 1.6448535919189453, 0.0: -math.inf}  # the part of a layer that is 0 -> the deviations above the mean from where it is not
PUBLISHED = (262400, 262144)  # tokens of the model, and of its embeddings for each layer: no image or sound has those
TENSORS = {
    "model.altup_projections.{e}.weight": "altup_proj.weight",
    "model.altup_unembed_projections.{e}.weight": "altup_unembd_proj.weight",
    f"{_FROM}altup.correction_coefs.weight": f"{_TO}altup_correct_coef.weight",
    f"{_FROM}altup.correct_output_scale": f"{_TO}altup_correct_scale.weight",
    f"{_FROM}altup.prediction_coefs.weight": f"{_TO}altup_predict_coef.weight",
    f"{_FROM}altup.modality_router.weight": f"{_TO}altup_router.weight",
    f"{_FROM}altup.router_norm.weight": f"{_TO}altup_router_norm.weight",
    f"{_FROM}laurel.linear_left.weight": f"{_TO}laurel_l.weight",
    f"{_FROM}laurel.linear_right.weight": f"{_TO}laurel_r.weight",
    f"{_FROM}laurel.post_laurel_norm.weight": f"{_TO}laurel_post_norm.weight",
}
# What the graph has written in: the key of config.json, and of a GGUF, which llama.cpp does not read
WRITTEN_IN: Mapping[str, tuple[str, str, Any]] = {
    "hidden_size_per_layer_input": ("embedding_length_per_layer_input", "u32", 256),
    "altup_num_inputs": ("altup.num_inputs", "u32", 4),
    "altup_active_idx": ("altup.active_idx", "u32", 0),
    "final_logit_softcapping": ("final_logit_softcapping", "f32", 30.0),
}
LAUREL = 64


def _pattern(n: int) -> list[float]:
    return [0.95 if i < SPARSE else 0.0 for i in range(min(n, MOST))]


def _reads(c: Values) -> dict[str, Any]:
    n, ff = min(c.get("num_hidden_layers") or 0, MOST), c.get("intermediate_size") or 0
    kinds = (c.get("layer_types") or alternating(n, EVERY))[:n]
    sparse = c.get("activation_sparsity_pattern") or (_pattern(n) if n > SPARSE else [0.0] * n)
    by_layer = ff if isinstance(ff, list) else [ff] * n
    return {
        "layer_types": kinds,
        "ff_by_layer": by_layer,
        "slides_by_layer": [kind == SLIDES for kind in kinds],
        "sparsity_by_layer": [SPARSITY.get(part, 0.0) for part in sparse],
        "usual_windows": set(kinds) <= {FULL, SLIDES},
        "usual_sharing": c.get("num_kv_shared_layers") == max(n - OWN, 0) and (n <= OWN or kinds[OWN - 2 : OWN] == [SLIDES, FULL]),
        "usual_sparsity": sparse == _pattern(n),
        "usual_widths": len(set(by_layer)) == 1,
        "usual_vocabulary": (c.get("vocab_size_per_layer_input") or 0) <= (c.get("vocab_size") or 0),
    }


def _writes(h: Values, names: Container[str]) -> dict[str, Any]:
    n = h["num_hidden_layers"]
    return {
        "layer_types": [SLIDES if x else FULL for x in h["slides_by_layer"]],
        "intermediate_size": h["ff_by_layer"],
        "activation_sparsity_pattern": _pattern(n),
        "num_kv_shared_layers": max(n - OWN, 0),
        "laurel_rank": LAUREL,
        "altup_correct_scale": True,
        **{key: value for key, (_, _, value) in WRITTEN_IN.items()},
    }


def _fills(h: Values) -> dict[str, Any]:
    """How many tokens have embeddings for each layer no GGUF says but ours."""
    n = min(h["num_hidden_layers"] or 0, MOST)
    return {
        "slides_by_layer": slides(EVERY, n),
        "sparsity_by_layer": [SPARSITY[part] for part in _pattern(n)],
        "num_kv_shared_layers": max(n - OWN, 0),
        "vocab_size_per_layer_input": dict([PUBLISHED]).get(h["vocab_size"], h["vocab_size"]),
    }


def _sizes(h: Values) -> dict[str, int]:
    """A folder may say of all what a GGUF has written in."""
    each, altup = h.get("hidden_size_per_layer_input") or 256, h.get("altup_num_inputs") or 4
    rows, vocab = h.get("vocab_size_per_layer_input") or 0, h.get("vocab_size") or 0
    return {
        "ple": each,
        "ple_all": each * (h.get("num_hidden_layers") or 0),
        "vocab_ple": rows,
        "ple_rows": max(rows, vocab),
        "altup": altup,
        "altup_others": altup - 1,
        "altup_square": altup**2,
        "laurel": h.get("laurel_rank") or LAUREL,
        "ff": max(h.get("ff_by_layer") or [0]),
    }


def _unlike(c: Values, names: Container[str]) -> str:
    """llama.cpp asks for keys in layers that do not read them, too."""
    bare = next((i for i in range(min(c.get("num_hidden_layers") or 0, MOST)) if f"blk.{i}.attn_k.weight" not in names), None)
    return "" if bare is None else f"layer {bare} without keys, which transformers 5 leaves out where published files have them"


GEMMA3N = Family(
    hf=ModelType(
        "gemma3n_text",
        32768,
        head_dim=256,
        layers=GEMMA3_LAYERS,
        shape=(262400, 2048, 16384, 35, 8),
        architectures=("Gemma3nForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-6,
            "num_hidden_layers": 35,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": 512,
            "tie_word_embeddings": True,
            "vocab_size_per_layer_input": PUBLISHED[1],
            "num_kv_shared_layers": 15,
        },
        unsaid=frozenset({*LISTS, "sparsity_by_layer"} - {"kv_heads_by_layer"}),
        reads=_reads,
        writes=_writes,
        since=NEW,
        unlike=_unlike,
    ),
    gguf=Arch("gemma3n", other_layers="own", window=1),
    tensors={**GEMMA_TENSORS, **QK_NORMS, **BY_LAYER, **TENSORS},
    transforms={"per_layer_token_embd.weight": "padded"},
    shapes={
        **SHAPES_BY_LAYER,
        "per_layer_token_embd.weight": ("ple_rows", "ple_all"),
        **{f"altup_{x}.weight": ("altup_others", "hidden", "hidden") for x in ("proj", "unembd_proj")},
        "altup_correct_coef.weight": ("altup", "altup"),
        "altup_predict_coef.weight": ("altup_square", "altup"),
        "altup_router.weight": ("altup", "hidden"),
        "laurel_l.weight": ("laurel", "hidden"),
        "laurel_r.weight": ("hidden", "laurel"),
        **{f"{x}.weight": ("hidden",) for x in ("altup_correct_scale", "altup_router_norm", "laurel_post_norm")},
    },
    hparams={
        **{k: v for k, v in HPARAMS.items() if k != "intermediate_size"},
        **{k: v for k, v in LISTS.items() if k != "kv_heads_by_layer"},
        "sparsity_by_layer": "activation_sparsity_scale:f32[]",
        "sliding_window": "attention.sliding_window",
        "rope_local_base_freq": "rope.freq_base_swa:f32",
        "num_kv_shared_layers": "attention.shared_kv_layers",
        "vocab_size_per_layer_input": "/yarn_convert.vocab_size_per_layer_input",
    },
    may_lack=frozenset({"num_kv_shared_layers", "vocab_size_per_layer_input"}),
    needed_where=dict.fromkeys(SHARED, own_keys),
    constants={key: (kind, value) for key, kind, value in WRITTEN_IN.values()},
    fixed={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "laurel_rank": (LAUREL,),
        "altup_correct_scale": (True,),
        **{key: (value,) for key, (_, _, value) in WRITTEN_IN.items()},
        **dict.fromkeys(("usual_windows", "usual_sharing", "usual_sparsity", "usual_widths", "usual_vocabulary"), (True,)),
    },
    # wide: llama.cpp takes the deviation of a layer over all of its numbers but one, transformers over all
    twin={"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 64, "intermediate_size": 2048},
    fills=_fills,
    sizes=_sizes,
    layer_sizes=lambda h, layer: {"ff": h["ff_by_layer"][layer]},
    evidence="llama.cpp 0c1e570: src/models/gemma3n.cpp (rope_freqs.weight is not loaded), src/llama-hparams.h (laurel_rank), "
    "src/llama-model.cpp (layer 20 and later take keys of the last two before), conversion/gemma.py Gemma3NModel; "
    "transformers 5.23: models/gemma3n",
)

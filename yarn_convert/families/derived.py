"""config.json as every family means it: absent keys filled in, own names beside the standard ones, sizes derived."""

from __future__ import annotations

import math
from typing import Any

from ..errors import Unsupported
from .layers import Values
from .schema import ROPE_OBJECTS, Family, rope_type


def normalized(family: Family, config: Values) -> dict[str, Any]:
    """`config` with what transformers takes for keys that are absent, with the standard name of each key that the family calls
    otherwise, and with what it says in another form. Of two names for one key transformers reads the family's own. Other keys of the
    file stay as they are."""
    hf = family.hf
    objects = [x for k in ROPE_OBJECTS if (x := config.get(k))]
    full = {**hf.defaults, **_assumed(family, config, objects), **config}
    if hf.rope and not objects and config.get("rope_parameters") is None:
        full["rope_parameters"] = dict(hf.rope)
    full |= {standard: full[own] for standard, own in hf.renamed.items() if full.get(own) is not None}
    by_layer = _by_layer(family, full)
    for layers, (key, usual) in hf.layers.items():  # null is none
        said = ((by_layer.get(layers) or {}).get("rope_theta"), full.get(key), None if layers == family.layer_type else usual)
        full[key] = next((theta for theta in said if theta is not None), None)
    return full | hf.reads(full)


def _assumed(family: Family, config: Values, objects: list[Any]) -> dict[str, Any]:
    """What transformers takes for absent keys of the table. A θ that every RoPE object says itself, as transformers 5 saves it, is not
    absent."""
    hf = family.hf
    theta_key, theta = next(iter(hf.layers.values()), (hf.theta_key, hf.theta))
    said = bool(objects) and all(x.get("rope_theta") is not None for x in objects)
    assumed = {
        "max_position_embeddings": hf.length,
        hf.head_key: hf.head_dim,
        hf.partial_key: hf.part(config),
        theta_key: None if said else theta,
    }
    return {k: v for k, v in assumed.items() if v is not None}


def of_one_layer(family: Family, config: Values) -> Values:
    """`config` with the rope_parameters of the layers that a recipe is of, where transformers 5 keeps one for each type, and
    without what it does not read there (convert_rope_params_to_dict in models/gemma3/configuration_gemma3.py).

    Unsupported for an object that it passes over, or a scaling of the other layers, for which there is no recipe.
    """
    if not family.layer_type:
        return config
    if family.hf.nested_alone and config.get("rope_scaling"):
        raise Unsupported(f"rope_scaling of a {family.model_type}: transformers takes it for one of all layers, and fails", BY_LAYER)
    by_layer, config = _by_layer(family, config), {k: v for k, v in config.items() if k != "original_max_position_embeddings"}
    if config.get("rope_parameters") and not by_layer:
        raise Unsupported(f"rope_parameters of a {family.model_type} without {family.layer_type}: transformers passes it over", BY_LAYER)
    others = [kind for name, x in by_layer.items() if name != family.layer_type and (kind := rope_type(x)) not in (None, "default")]
    if others:
        raise Unsupported(f"rope_parameters of a {family.model_type} with {others[0]!r} for its other layers", BY_LAYER)
    return {**config, "rope_parameters": by_layer[family.layer_type]} if by_layer else config


BY_LAYER = "one object for each type of layers, a scaling in full_attention alone"


def _by_layer(family: Family, config: Values) -> dict[str, Any]:
    found = config.get("rope_parameters")
    return found if isinstance(found, dict) and family.layer_type and isinstance(found.get(family.layer_type), dict) else {}


ODD = {  # a key that `ModelType.reads` derives -> what llama.cpp cannot compute where it is false
    "usual_scores": "attention scores scaled by this query_pre_attn_scalar",
    "usual_norms": "norms where this model has them",
    "usual_head": "a tied head with a multiplier of its own",
    "usual_steps": "time steps within such limits",
    "usual_q_lora": "this q_lora_rank in a model of so many layers",
    "usual_heads": "heads of keys and of values of such sizes in linear attention",
    "usual_windows": "sliding and full attention in this order of layers",
    "usual_caps": "logits without a cap",
    "usual_qk_norm": "norms of Q and K in a model of so many experts",
    "usual_layers": "layers whose experts differ in number or size",
    "usual_experts": "experts in these layers alone",
    "usual_sharing": "keys that these layers share",
    "usual_vocabulary": "embeddings of each layer for another number of tokens than the model's own",
    "usual_sparsity": "this activation_sparsity_pattern",
    "usual_widths": "feed-forward layers of more than one size",
}
MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logit_scale", "routed_scaling_factor")
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def absent(family: Family, c: Values) -> dict[str, Any]:
    """What llama.cpp takes where a GGUF's number is not there or, of a multiplier, 0: config.json has to say it, as transformers may take
    others (load_arch_hparams and graph of src/models/granite.cpp, granite-moe.cpp, command-r.cpp, gemma2.cpp, gemma3.cpp)."""
    taken = dict.fromkeys(MULTIPLIERS, 1.0) | {"attention_multiplier": 1 / math.sqrt(c["head_dim"])}
    same = dict(family.hf.layers.values()) | {key: family.hf.defaults[key] for key in CAPS if key in family.hf.defaults}
    found = {key: value for key, value in taken.items() if key in family.hparams and not c[key]}
    return found | {key: value for key, value in same.items() if key in family.hparams and c[key] is None}

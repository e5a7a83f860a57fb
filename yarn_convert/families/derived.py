"""config.json as every family means it: absent keys filled in, own names beside the standard ones, sizes derived."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from typing import Any

from ..errors import FormatError, Unsupported
from .schema import ROPE_OBJECTS, Family

Config = Mapping[str, Any]


def normalized(family: Family, config: Config) -> dict[str, Any]:
    """`config` with the family's defaults, with the standard name of each key that the family calls otherwise, and with
    what its rule derives. Of two names for one key transformers reads the family's own. Other keys of the file stay as they are."""
    full = {**family.defaults, **config}
    full |= {standard: full[own] for standard, own in family.renamed.items() if full.get(own) is not None}
    by_layer = _by_layer(family, full)
    thetas = {"rope_theta": family.layer_type, "rope_local_base_freq": "sliding_attention"} if family.layer_type else {}
    for key, layers in thetas.items():  # null is none
        said = ((by_layer.get(layers) or {}).get("rope_theta"), full.get(key), family.defaults.get(key))
        full.update([(key, theta) for theta in reversed(said) if theta is not None])
    return full | RULES[family.derived](full) if family.derived else full


def of_one_layer(family: Family, config: Config) -> Config:
    """`config` with the rope_parameters of the layers that a recipe is of, where transformers 5 keeps one for each type, and
    without what it does not read there (convert_rope_params_to_dict in models/gemma3/configuration_gemma3.py).

    Unsupported for an object that it passes over, or a scaling of the other layers, for which there is no recipe.
    """
    if not family.layer_type:
        return config
    by_layer, config = _by_layer(family, config), {k: v for k, v in config.items() if k != "original_max_position_embeddings"}
    if config.get("rope_parameters") and not by_layer:
        raise Unsupported(f"rope_parameters of a {family.model_type} without {family.layer_type}: transformers passes it over", BY_LAYER)
    others = [kind for name, x in by_layer.items() if name != family.layer_type and (kind := _kind(x)) not in (None, "default")]
    if others:
        raise Unsupported(f"rope_parameters of a {family.model_type} with {others[0]!r} for its other layers", BY_LAYER)
    return {**config, "rope_parameters": by_layer[family.layer_type]} if by_layer else config


BY_LAYER = "one object for each type of layers, a scaling in full_attention alone"


def _kind(spelling: Any) -> Any:
    return (spelling.get("rope_type") or spelling.get("type")) if isinstance(spelling, dict) else None


def _by_layer(family: Family, config: Config) -> dict[str, Any]:
    found = config.get("rope_parameters")
    return found if isinstance(found, dict) and family.layer_type and isinstance(found.get(family.layer_type), dict) else {}


def _alternate(windows: Any, every: int) -> bool:
    """Whether layer_types has full attention in every second, fourth or sixth layer, and a window in the others."""
    usual = ("sliding_attention", "full_attention")
    return bool(windows == [usual[(i + 1) % every == 0] for i in range(len(windows))])


def _falcon(c: Config) -> dict[str, Any]:
    """Heads of keys: one, one a group, or one a query (transformers, modeling_falcon.py FalconAttention); sizes and old names."""
    heads = c.get("num_attention_heads", c.get("n_head"))
    grouped = c.get("num_kv_heads") or c.get("n_head_kv") or heads
    kv_heads = grouped if c["new_decoder_architecture"] else 1 if c["multi_query"] else heads
    old = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    named = {k: c.get(k, c.get(v)) for k, v in old.items()}
    return {**named, "num_key_value_heads": kv_heads, "intermediate_size": c.get("ffn_hidden_size") or 4 * (c.get("hidden_size") or 0)}


def _gemma(c: Config) -> dict[str, Any]:
    """Whether query_pre_attn_scalar is what llama.cpp divides scores by, whatever it says: the size of a head, or in the
    models of 46 and 62 layers hidden_size / heads (src/models/gemma2.cpp and gemma3.cpp, load_arch_hparams). Every second or
    sixth layer has full attention. gemma2 caps logits at 50 and 30 where no key says at what."""
    second = c.get("model_type") == "gemma2"
    largest, every, windows = c.get("num_hidden_layers") == (46 if second else 62), 2 if second else 6, c.get("layer_types")
    hidden, heads = c.get("hidden_size") or 0, c.get("num_attention_heads") or 1
    caps = [c.get(f"{x}_logit_softcapping") for x in ("attn", "final")]
    return {
        "usual_scores": c.get("query_pre_attn_scalar") == (hidden // heads if largest else c.get("head_dim")),
        "usual_windows": windows is None or _alternate(windows, every),
        "usual_caps": None not in caps,
    }


def _cohere(c: Config) -> dict[str, Any]:
    """Command R's max_position_embeddings is what transformers allocated, model_max_length what it was trained on; but a YaRN
    without a length of its own counts from the former there. llama.cpp loads norms of Q and K in models of 64 layers and more,
    and in no others (src/models/command-r.cpp)."""
    deep = (c.get("num_hidden_layers") or 0) >= 64
    objects = [x for k in ROPE_OBJECTS if (x := c.get(k)) is not None]
    unsaid = "yarn" in map(_kind, objects) and all(x.get("original_max_position_embeddings") is None for x in (c, *objects))
    return ({"original_max_position_embeddings": c.get("max_position_embeddings")} if unsaid else {}) | {
        "max_position_embeddings": c.get("model_max_length") or c.get("max_position_embeddings"),
        "usual_norms": bool(c.get("use_qk_norm")) == deep,
    }


def _every_fourth_without_rope(c: Config) -> dict[str, Any]:
    """SmolLM3: `no_rope_layers`, 0 for a layer without RoPE, wins over the interval from which it is made."""
    layers = c.get("no_rope_layers")
    if layers is None:
        return {}
    return {"no_rope_layer_interval": 4 if layers == [int((i + 1) % 4 != 0) for i in range(len(layers))] else layers}


def _experts_of_full_size(c: Config) -> dict[str, Any]:
    """Mixtral's experts have the size that config.json calls the layer's."""
    return {"moe_intermediate_size": c.get("intermediate_size")}


def _experts_of_either_name(c: Config) -> dict[str, Any]:
    """Qwen3's number of experts, which transformers 4 knows by the one name alone and transformers 5 saves by the other."""
    return {"num_experts": c.get("num_local_experts") if c.get("num_experts") is None else c["num_experts"]}


def _mla(c: Config) -> dict[str, Any]:
    """Sizes of the multi-query form, which is what a GGUF describes. llama.cpp takes the queries' rank for absent where its
    layers are those of a lite model, and needs it elsewhere (src/models/deepseek2.cpp, load_arch_hparams)."""
    nope, rope, latent, layers = (c.get(k) or 0 for k in ("qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank", "num_hidden_layers"))
    if min(nope, rope, latent) < 0:
        raise FormatError(f"qk_nope_head_dim, qk_rope_head_dim and kv_lora_rank are {nope!r}, {rope!r} and {latent!r}", "fix config.json")
    lite = layers in (26, 27) or (layers == 48 and c.get("vocab_size") == 128256)
    sizes = {"head_dim": rope, "qk_head_dim": nope + rope, "latent_key": latent + rope, "latent_value": latent}
    return {**sizes, "num_key_value_heads": c.get("num_attention_heads"), "usual_q_lora": (c.get("q_lora_rank") is None) == lite}


GPT_OSS_ROPE = {  # transformers, configuration_gpt_oss.py: what it takes where config.json has neither object
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096,
}  # fmt: skip


def _gpt_oss(c: Config) -> dict[str, Any]:
    """Its YaRN is there where nothing is said; its experts have the size that config.json calls the layer's."""
    windows, unsaid = c.get("layer_types"), c.get("rope_scaling") is None and c.get("rope_parameters") is None
    return {
        "moe_intermediate_size": c.get("intermediate_size"),
        "usual_windows": windows is None or _alternate(windows, 2),
        **({"rope_parameters": GPT_OSS_ROPE} if unsaid else {}),
    }


def _cohere2(c: Config) -> dict[str, Any]:
    """Every fourth layer has full attention, by a list or by a number; heads have the size that transformers computes."""
    windows = c.get("layer_types")
    return {"usual_windows": _alternate(windows, 4) if windows else c.get("sliding_window_pattern", 4) == 4}


ODD = {  # a key that a rule derives -> what llama.cpp cannot compute where it is false
    "usual_scores": "attention scores scaled by this query_pre_attn_scalar",
    "usual_norms": "norms of Q and K in a model of so many layers",
    "usual_q_lora": "this q_lora_rank in a model of so many layers",
    "usual_windows": "sliding and full attention in this order of layers",
    "usual_caps": "logits without a cap",
}
RULES: Mapping[str, Callable[[Config], dict[str, Any]]] = {
    "falcon": _falcon,
    "gemma": _gemma,
    "cohere": _cohere,
    "every_fourth_without_rope": _every_fourth_without_rope,
    "experts_of_full_size": _experts_of_full_size,
    "experts_of_either_name": _experts_of_either_name,
    "mla": _mla,
    "gpt_oss": _gpt_oss,
    "cohere2": _cohere2,
}


MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logit_scale", "routed_scaling_factor")
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


def absent(family: Family, c: Config) -> dict[str, Any]:
    """What llama.cpp takes where a GGUF's number is not there or, of a multiplier, 0: config.json has to say it, as transformers
    takes others (load_arch_hparams and graph of src/models/granite.cpp, granite-moe.cpp, command-r.cpp, gemma2.cpp, gemma3.cpp)."""
    taken = dict.fromkeys(MULTIPLIERS, 1.0) | {"attention_multiplier": 1 / math.sqrt(c["head_dim"])}
    numbers = {"rope_local_base_freq": 1e4} | (CAPS if family.model_type == "gemma2" else {})
    found = {key: value for key, value in taken.items() if key in family.hparams and not c[key]}
    return found | {key: value for key, value in numbers.items() if key in family.hparams and c[key] is None}


def _falcon_said(c: Config, names: Container[str]) -> dict[str, Any]:
    """The decoder that has these heads of keys and norms; the newer one where both would do."""
    kv_heads, two_norms = c["num_key_value_heads"], "blk.0.attn_norm_2.weight" in names
    old = kv_heads == 1 and not two_norms
    said = {"alibi": False, "bias": False, "parallel_attn": True, "multi_query": True, "new_decoder_architecture": not old}
    ours = {"num_kv_heads": kv_heads, "num_ln_in_parallel_attn": 2 if two_norms else 1}
    return said | {"ffn_hidden_size": c["intermediate_size"]} | ({} if old else ours)


def _gemma2_said(c: Config, names: Container[str]) -> dict[str, Any]:
    return {"query_pre_attn_scalar": c["hidden_size"] // c["num_attention_heads"] if c["num_hidden_layers"] == 46 else c["head_dim"]}


def _gemma3_said(c: Config, names: Container[str]) -> dict[str, Any]:
    return {"query_pre_attn_scalar": c["hidden_size"] // c["num_attention_heads"] if c["num_hidden_layers"] == 62 else c["head_dim"]}


def _stablelm_said(c: Config, names: Container[str]) -> dict[str, Any]:
    return {"use_parallel_residual": "blk.0.ffn_norm.weight" not in names}


def _deepseek_said(c: Config, names: Container[str]) -> dict[str, Any]:
    said = {"q_lora_rank": c["q_lora_rank"], "first_k_dense_replace": c["first_k_dense_replace"] or 0, "moe_layer_freq": 1}
    return said | {"qk_nope_head_dim": c["qk_head_dim"] - c["head_dim"], "attention_bias": False}


def _deepseek_v2_said(c: Config, names: Container[str]) -> dict[str, Any]:
    """Raises Unsupported for experts that transformers' DeepSeek V2 would choose or weigh otherwise."""
    if (c["n_group"] or 1) > 1 or c["norm_topk_prob"]:
        raise Unsupported("transformers' deepseek_v2 does not route tokens to experts as this GGUF has it", "--out gguf")
    return _deepseek_said(c, names) | {"topk_method": "greedy", "scoring_func": "softmax"}


def _deepseek_v3_said(c: Config, names: Container[str]) -> dict[str, Any]:
    groups = {key: c[key] or 1 for key in ("n_group", "topk_group")}
    said = {"norm_topk_prob": bool(c["norm_topk_prob"]), "topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    return _deepseek_said(c, names) | said | groups | {"routed_scaling_factor": c["routed_scaling_factor"] or 1.0}


def _gpt_oss_said(c: Config, names: Container[str]) -> dict[str, Any]:
    return {"layer_types": [("full_attention", "sliding_attention")[i % 2 == 0] for i in range(c["num_hidden_layers"])]}


def _cohere2_said(c: Config, names: Container[str]) -> dict[str, Any]:
    return {"layer_types": [("sliding_attention", "full_attention")[(i + 1) % 4 == 0] for i in range(c["num_hidden_layers"])]}


# family's model_type -> (hparams, GGUF names) -> what its config.json says that no single key of the GGUF does; None for null
SAID: Mapping[str, Callable[[Config, Container[str]], dict[str, Any]]] = {
    "falcon": _falcon_said,
    "gemma2": _gemma2_said,
    "gemma3_text": _gemma3_said,
    "stablelm": _stablelm_said,
    "deepseek_v2": _deepseek_v2_said,
    "deepseek_v3": _deepseek_v3_said,
    "gpt_oss": _gpt_oss_said,
    "cohere2": _cohere2_said,
}

"""The configs that the runtimes are asked about, by name: of one Llama, of the model types whose code differs, and of models that see.

`make_readers.py` runs the runtimes on them; tests/data/readers.json and readers_nested.json hold them beside what they gave.
"""

import math

YARN = {"rope_type": "yarn", "type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096}
SHAPE = [round(1.0 + i / 9, 3) for i in range(64)]
PAIR = {"short_factor": SHAPE, "long_factor": SHAPE}
LONG = {"rope_type": "longrope", "type": "longrope", "factor": 8.0, "original_max_position_embeddings": 4096} | PAIR
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
RATIO = {"mscale": 1.5, "mscale_all_dim": 1.0}
OF_RATIO = (0.15 * math.log(8) + 1) / (0.1 * math.log(8) + 1)  # the multiplier that these make of a factor of 8
LINEAR = {"rope_type": "linear", "type": "linear", "factor": 8.0}
ORIGINAL = round(32768 ** (1 / 1.2**2))  # L, at which longrope's own multiplier for 32,768 tokens is 1.2


# -- one Llama --------------------------------------------------------------------------------------------------------


def llama(scaling=None, both=False, dim=128, **top):
    """A Llama of two heads of `dim` dimensions; `both`: transformers 5 finds the RoPE object under its name, too."""
    base = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2 * dim}
    base |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1, "head_dim": dim}
    base |= {"intermediate_size": 32, "vocab_size": 64, "rms_norm_eps": 1e-5}
    base |= {"max_position_embeddings": 32768, "rope_theta": 10000.0} | top
    base |= {"rope_scaling": scaling} if scaling else {}
    return base | ({"rope_parameters": {"rope_theta": base["rope_theta"], **scaling}} if both else {})


def configs():
    """name -> config.json, for a Llama of 128, 64 or 80 dimensions a head."""
    return {**plain_configs(), **yarn_configs(), **other_configs(), **longrope_configs(), **stray_configs()} | {
        "mistral-no-head-dim": {k: v for k, v in llama(YARN, both=True).items() if k != "head_dim"}
        | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]},
    }  # fmt: skip


def plain_configs():
    """No scaling, by one number, and by the length of the text."""
    return {
        "plain": llama(),
        "theta-in-dict-only": {k: v for k, v in llama().items() if k != "rope_theta"}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        "default-dict": llama({"rope_type": "default", "rope_theta": 10000.0}, both=True),
        "theta-differs": llama({"rope_type": "default", "rope_theta": 500000.0}, both=True),
        "ntk-theta": llama(rope_theta=83094.1015625, dim=80),
        "linear": llama(LINEAR, both=True),
        "linear-integer": llama(LINEAR | {"factor": 8}, both=True),
        "linear-original": llama(LINEAR | {"original_max_position_embeddings": 4096}, both=True),
        "linear-model-max-length": llama(LINEAR, both=True, model_max_length=4096),
        "dynamic": llama({"rope_type": "dynamic", "type": "dynamic", "factor": 4.0}, both=True),
    }  # fmt: skip


def yarn_configs():
    """YaRN, with and without each of its keys; and lengths that are left out."""
    return {
        "yarn": llama(YARN, both=True),
        "yarn-v4-dict": llama(YARN),
        "yarn-v5-dict": llama() | {"rope_parameters": {"rope_theta": 10000.0, **YARN}},
        "yarn-old-type": llama({k: v for k, v in YARN.items() if k != "rope_type"}),
        "yarn-type-conflict": llama(YARN | {"type": "linear"}),
        "yarn-both-differ": llama(YARN) | {"rope_parameters": {"rope_theta": 10000.0, **YARN, "factor": 4.0}},
        "yarn-max-position-stale": llama(YARN, both=True, max_position_embeddings=4096),
        "yarn-no-max-position": {k: v for k, v in llama(YARN).items() if k != "max_position_embeddings"},
        "longrope-no-max-position": {k: v for k, v in llama(LONG).items() if k != "max_position_embeddings"},
        "plain-no-max-position": {k: v for k, v in llama().items() if k != "max_position_embeddings"},
        "yarn-no-original": llama({k: YARN[k] for k in ("rope_type", "type", "factor")}, both=True),
        "yarn-top-level-original": llama(YARN, both=True, original_max_position_embeddings=8192),
        "yarn-attention-factor": llama(YARN | {"attention_factor": 1.0}, both=True),
        "yarn-ratio": llama(YARN | RATIO, both=True),
        "yarn-attention-factor-and-ratio": llama(YARN | RATIO | {"attention_factor": OF_RATIO}, both=True),
        "yarn-betas": llama(YARN | {"beta_fast": 16.0, "beta_slow": 2.0}, both=True),
        "yarn-not-truncated": llama(YARN | {"truncate": False}, both=True),
        "yarn-theta-5e5": llama(YARN | {"original_max_position_embeddings": 4096}, both=True, dim=64, rope_theta=5e5),
        "yarn-stray-attn-factor": llama(YARN | {"attn_factor": 0.5}, both=True),
        "yarn-partial": llama(YARN, both=True, partial_rotary_factor=0.5),
        "yarn-null-factor": llama(YARN | {"factor": None}, both=True),
        "yarn-null-betas": llama(YARN | {"beta_fast": None, "beta_slow": None}, both=True),
        "yarn-ratio-zero": llama(YARN | {"mscale": 0.0, "mscale_all_dim": 1.0}, both=True),
        "yarn-no-factor": llama({k: v for k, v in YARN.items() if k != "factor"}, both=True),
        "yarn-short-context": llama(YARN | {"original_max_position_embeddings": 64}, max_position_embeddings=512),
    }  # fmt: skip


def other_configs():
    """A part of the head, no word for a method, and Llama 3's."""
    return {
        "plain-partial": llama(partial_rotary_factor=0.5),
        "no-type": llama({"factor": 8.0}),
        "llama3-no-original": llama({k: v for k, v in LLAMA3.items() if not k.startswith("orig")}, both=True),
        "llama3": llama(LLAMA3, both=True, max_position_embeddings=131072, rope_theta=5e5),
    }  # fmt: skip


def longrope_configs():
    return {
        "longrope": llama(LONG | {"long_factor": [2 * x for x in SHAPE]}, both=True),
        "longrope-explicit": llama(
            LONG | {"attention_factor": 1.2, "short_mscale": 1.2, "long_mscale": 1.2}, both=True
        ),
        "longrope-explicit-solved": llama(
            LONG | {"attention_factor": 1.2, "short_mscale": 1.2, "long_mscale": 1.2}
            | {"original_max_position_embeddings": ORIGINAL, "factor": 32768 / ORIGINAL}, both=True
        ),
        "longrope-explicit-one": llama(
            LONG | {"attention_factor": 1.0, "short_mscale": 1.0, "long_mscale": 1.0}
            | {"original_max_position_embeddings": 32768, "factor": 1.0}, both=True
        ),
        "longrope-no-factor": llama({k: v for k, v in LONG.items() if k != "factor"}, both=True),
        "longrope-short-list": llama(LONG | {"long_factor": SHAPE[:32], "short_factor": SHAPE[:32]}, both=True),
        "longrope-no-original": llama({k: v for k, v in LONG.items() if not k.startswith("orig")}, both=True),
        "longrope-top-level-original": llama(LONG, both=True, original_max_position_embeddings=4096),
        "su": llama(LONG | {"rope_type": "su", "type": "su"}),
    }  # fmt: skip


def stray_configs():
    """What older tools and other runtimes' files leave behind: nulls, two spellings that differ, and keys that one runtime alone reads."""
    null_first, null_last = ({"rope_type": t, "type": u} for t, u in ((None, "yarn"), ("yarn", None)))
    layers = {"sliding_attention": {"rope_theta": 10000.0, **YARN}}
    silent = {k: v for k, v in llama(LINEAR, both=True).items() if k != "max_position_embeddings"}
    return {
        "stray-empty": llama() | {"rope_scaling": {}, "rope_parameters": {"rope_theta": 10000.0, **YARN}},
        "stray-null-rope-type": llama(YARN | null_first, both=True),
        "stray-null-type": llama(YARN | null_last, both=True),
        "stray-types-differ": llama(YARN | {"type": "default"}, both=True),
        "stray-null-theta": llama(YARN | {"rope_theta": None}),
        "stray-null-original": llama(YARN | {"original_max_position_embeddings": None}, both=True),
        "stray-null-partial": llama(YARN | {"partial_rotary_factor": None}, both=True),
        "stray-float-original": llama(LONG | {"original_max_position_embeddings": 4096.0}, both=True),
        "stray-extrapolation-factor": llama(YARN | {"extrapolation_factor": 0.5}, both=True),
        "stray-mrope-section": llama(YARN | {"mrope_section": [16, 24, 24]}, both=True),
        "stray-temperature": llama(YARN | {"llama_4_scaling_beta": 0.1}, both=True),
        "stray-rope-dim": llama(YARN | {"rope_dim": 64}, both=True),
        "stray-rotary-dim": llama(YARN, both=True, rotary_dim=64),
        "stray-rotary-pct": llama(YARN, both=True, rotary_pct=0.5),
        "stray-layers": llama() | {"rope_parameters": layers},
        "stray-ntk": llama({"rope_type": "ntk", "factor": 8.0}, both=True),
        "stray-deepseek-yarn": llama(YARN | {"rope_type": "deepseek_yarn", "type": "deepseek_yarn"}, both=True),
        "stray-mrope": llama({"rope_type": "mrope", "mrope_section": [16, 24, 24]}, both=True),
        "stray-length": silent | {"max_sequence_length": 16384},
    }  # fmt: skip


# -- the model types whose code differs -------------------------------------------------------------------------------


FAMILIES = {  # model type -> pairs of a head of 32 dimensions, or of the head that its config class assumes
    **dict.fromkeys(("mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "falcon", "olmo2"), 16),
    **dict.fromkeys(("starcoder2", "granite", "smollm3", "gpt_oss", "cohere", "cohere2", "phi3"), 16),
    "gpt_neox": 4,
    "stablelm": 4,
    "glm4": 8,
    "deepseek_v2": 8,
    "deepseek_v3": 8,
    **dict.fromkeys(("ernie4_5", "ernie4_5_moe", "olmo3", "seed_oss", "exaone4"), 16),
    "qwen3_next": 4,
}
# Those that turn neighbours: their files in models/ of vLLM and SGLang hand is_neox_style False to get_rope, but for ernie45.py of vLLM, which
# sets it in what was made
NEIGHBOURS = {"cohere", "cohere2", "glm4", "ernie4_5_moe", "ernie4_5"}
AFTERWARDS = {"ernie4_5"}
ASKED = {  # what published ones say, and a reader has no default for
    "ernie4_5": {"use_bias": False, "tie_word_embeddings": True},
    "olmo3": {"sliding_window": 16},
    "exaone4": {"sliding_window": None, "sliding_window_pattern": None, "tie_word_embeddings": False},
    "qwen3_next": {"partial_rotary_factor": 0.25},
}
NEW_IN_5 = {"ernie4_5", "ernie4_5_moe", "olmo3", "seed_oss", "exaone4", "qwen3_next"}  # of transformers 4 nothing is claimed of these


def family_configs():
    """name -> config.json, for each of FAMILIES: what it assumes, and every method in the spelling of transformers 4 and 5."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    found = {}
    for model_type, pairs in FAMILIES.items():
        base = {"model_type": model_type, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 8}
        base |= {"intermediate_size": 32, "vocab_size": 64, "pad_token_id": 0}
        base |= {"qk_rope_head_dim": 16} if model_type.startswith("deepseek") else {}
        found[f"{model_type}-silent"] = dict(base)
        base |= {"max_position_embeddings": 8192}
        base |= ASKED.get(model_type, {})
        base |= {} if model_type in ("falcon", "gpt_neox", "deepseek_v2", "deepseek_v3") else {"head_dim": 32}
        found[f"{model_type}-theta"] = base | {"rope_theta": 50000.0, "rope_local_base_freq": 20000.0, "rotary_emb_base": 30000}
        if model_type in ("gpt_neox", "stablelm", "glm4", "phi3", "qwen3_next"):
            found[f"{model_type}-partial"] = base | {"partial_rotary_factor": 0.75, "rotary_pct": 0.5}
        lists = {"short_factor": [1 + i / 8 for i in range(pairs)], "long_factor": [2.0 + i for i in range(pairs)]}
        long = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 2048, **lists}
        dicts = {
            "linear": {"rope_type": "linear", "factor": 4.0},
            "dynamic": {"rope_type": "dynamic", "factor": 4.0},
            "yarn": yarn,
            "yarn-type": {"type": "yarn", **{k: v for k, v in yarn.items() if k != "rope_type"}},
            "yarn-m": yarn | {"attention_factor": 0.9},
            "yarn-mscales": yarn | {"mscale": 0.707, "mscale_all_dim": 0.707},
            "yarn-all-dim": yarn | {"mscale_all_dim": 1.0},
            "yarn-not-truncated": yarn | {"truncate": False, "beta_fast": 16.0},
            "llama3": llama3 | {"original_max_position_embeddings": 2048},
            "longrope": long,
            "longrope-m": long | {"attention_factor": 1.1},
            "su": long | {"rope_type": "su"},
        }
        for name, rope in dicts.items():
            rope = {"rope_theta": 10000.0, **rope}
            layers = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0}}
            nested = layers if model_type in ("gemma3_text", "olmo3") else rope
            found[f"{model_type}-{name}"] = base | {"rope_theta": 10000.0, "rope_scaling": rope, "rope_parameters": nested}
            if name in ("linear", "yarn", "yarn-type"):
                found[f"{model_type}-{name}-v4"] = base | {"rope_theta": 10000.0, "rope_scaling": rope}
                found[f"{model_type}-{name}-v5"] = base | {"rope_parameters": nested}
                found[f"{model_type}-{name}-flat-v5"] = base | {"rope_parameters": rope}
        v5 = {"rope_theta": 10000.0, **yarn}
        v5 = {"full_attention": v5, "sliding_attention": {**v5, "rope_type": "default"}} if model_type in ("gemma3_text", "olmo3") else v5
        found[f"{model_type}-stray-empty"] = base | {"rope_theta": 10000.0, "rope_scaling": {}, "rope_parameters": v5}
        found[f"{model_type}-stray-type"] = base | {"rope_theta": 10000.0, "rope_scaling": yarn | {"type": "linear"}}
        turned = {"rope_traditional": model_type not in NEIGHBOURS, "rope_is_neox_style": model_type in NEIGHBOURS}  # the other pairs
        found[f"{model_type}-stray-pairs"] = base | {"rope_theta": 10000.0, "rope_scaling": yarn} | turned
        found[f"{model_type}-top-original"] = base | {"rope_scaling": dicts["yarn"], "original_max_position_embeddings": 1024}
    return {k: v for k, v in found.items() if not k.endswith("flat-v5") or k.startswith("gemma3")}


# -- models that see --------------------------------------------------------------------------------------------------


# (model type around, the language model's) -> what its text_config has besides, and its RoPE object
_QWEN2VL = {"hidden_size": 256, "head_dim": 128, "mrope_section": [16, 24, 24]}
_QWEN3VL = {"head_dim": 128, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
_QWEN35 = {"head_dim": 256, "mrope_section": [11, 11, 10], "mrope_interleaved": True, "partial_rotary_factor": 0.25}
NESTED = {
    ("gemma3", "gemma3_text"): {"num_hidden_layers": 6, "sliding_window": 16, "query_pre_attn_scalar": 16},
    ("llava", "llama"): {},
    ("mistral3", "mistral"): {},
    ("mistral3", "ministral3"): {"llama_4_scaling_beta": 0.1},
    **{(name, f"{name}_text"): _QWEN2VL for name in ("qwen2_vl", "qwen2_5_vl")},
    **{(name, f"{name}_text"): _QWEN3VL for name in ("qwen3_vl", "qwen3_vl_moe")},
    **{(name, f"{name}_text"): _QWEN35 for name in ("qwen3_5", "qwen3_5_moe")},
}
IN_ROPE = ("llama_4_scaling_beta", "mrope_section", "mrope_interleaved", "partial_rotary_factor")
AROUND = {
    "gemma3": "Gemma3", "llava": "Llava", "mistral3": "Mistral3", "qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL",
    "qwen3_vl_moe": "Qwen3VLMoe", "qwen3_5": "Qwen3_5", "qwen3_5_moe": "Qwen3_5Moe",
}  # fmt: skip


def nested_configs():
    """name -> config.json of a model that sees, for each of NESTED: every method in the spelling of transformers 4 and 5."""
    found = {}
    for (outer, inner), more in NESTED.items():
        pairs = sum(more.get("mrope_section", [16]))
        text = {"model_type": inner, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 4}
        text |= {"intermediate_size": 32, "vocab_size": 64, "head_dim": 32, "rms_norm_eps": 1e-6, "max_position_embeddings": 8192}
        text |= {k: v for k, v in more.items() if k not in IN_ROPE}
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16} if "moe" in inner else {}
        text |= {f"linear_{x}": 16 for x in ("key_head_dim", "value_head_dim")} if "3_5" in inner else {}
        text |= {f"linear_num_{x}_heads": 2 for x in ("key", "value")} if "3_5" in inner else {}
        text |= {"shared_expert_intermediate_size": 16, "decoder_sparse_step": 1, "mlp_only_layers": []} if "moe" in inner else {}
        text |= {"norm_topk_prob": True} if "moe" in inner else {}
        text |= {"tie_word_embeddings": False} if inner.startswith("qwen3") else {}
        whole = {"model_type": outer, "architectures": [f"{AROUND[outer]}ForConditionalGeneration"], "text_config": text}
        whole |= {"vision_config": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}}
        yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
        lists = {f"{x}_factor": [1 + i / 8 for i in range(pairs)] for x in ("short", "long")}
        long = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 2048, **lists}
        dicts = {
            "default": {"rope_type": "default"},
            "yarn": yarn,
            "yarn-m": yarn | {"attention_factor": 0.9, "mscale": 0.18, "mscale_all_dim": 1.0},
            "yarn-attention-factor": yarn | {"attention_factor": 0.9},
            "yarn-betas": yarn | {"beta_fast": 16.0, "truncate": False},
            "linear": {"rope_type": "linear", "factor": 4.0},
            "dynamic": {"rope_type": "dynamic", "factor": 4.0},
            "llama3": yarn | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "longrope": long | {"attention_factor": 1.1, "short_mscale": 1.1, "long_mscale": 1.1},
        }
        found[f"{outer}-{inner}-silent"] = whole
        if outer == "llava":  # as LLaVA 1.5 is published
            found[f"{outer}-{inner}-shapeless"] = whole | {
                "text_config": {"model_type": inner, "max_position_embeddings": 4096, "vocab_size": 64}
            }
        if "partial_rotary_factor" in more:
            dicts["partial"] = {"rope_type": "default", "mrope_section": [22, 22, 20], "partial_rotary_factor": 0.5}
        if "mrope_section" in more:
            dicts["mrope"] = {"rope_type": "mrope"}
        for name, rope in dicts.items():
            rope = {k: v for k, v in more.items() if k in IN_ROPE} | {"type": rope["rope_type"], "rope_theta": 50000.0, **rope}
            layers = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
            v5 = {"rope_parameters": layers if inner == "gemma3_text" else rope}
            v4 = {"rope_theta": 50000.0, "rope_scaling": rope}
            for spelled, both in (("", v4 | v5), ("-v4", v4), ("-v5", v5)):
                if not spelled or name in ("yarn", "linear"):
                    found[f"{outer}-{inner}-{name}{spelled}"] = whole | {"text_config": text | both}
    return found

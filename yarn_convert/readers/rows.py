"""How each runtime reads config.json, as data: one row a runtime, with the version and the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..families import MODEL_TYPES

LLAMAS = frozenset({"llama", "mistral"})


@dataclass(frozen=True, slots=True)
class Reader:
    """How one runtime reads config.json. A place is "dict" (the rope dict it follows), "top" (config.json itself),
    "rope_parameters", "max_position" (max_position_embeddings), "model" (`families.MODEL_TYPES`), or a number that it assumes."""

    name: str
    version: str
    evidence: tuple[str, ...]  # file: function, in that version
    dicts: tuple[str, ...]  # the rope dicts it knows; the first that is not empty is followed, alone
    theta: tuple[str | float, ...]  # places of rope_theta, first found wins
    types: Mapping[str, str]  # spelling -> method; any other spelling is refused, or `other_types`
    original: Mapping[str, tuple[str | float, ...]]  # method -> places of original_max_position_embeddings
    temperature: tuple[str, ...]  # yarn: rules in order, see `yarn_multiplier`
    longrope_multiplier: str  # "attention_factor", "mscale", "mscales", "stretches" or "lengths", see `longrope`
    longrope_list: str  # which list serves a long text: see `longrope`; in words `switching.BY`
    longrope_factor: tuple[str, ...] = ("lengths",)  # s of its default multiplier: rules in order
    type_keys: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # model_type -> order of the two spellings
    types_must_agree: bool = False
    null_type: str = "absent"  # what a null is where the first spelling of the type is looked for; or "default", or it "fails"
    unknown_types: frozenset[str] = frozenset()  # spellings that it takes, and that are not modelled
    # Keys of the dict or of "top" by which it computes another than is modelled -> the value, besides null, with which nothing of it shows
    unknown: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    nulls: frozenset[str] = frozenset()  # place and key of a null that it takes for a value, and fails
    typed: frozenset[str] = frozenset()  # keys at the top that must be of a type, whether or not it looks at them: a null fails
    empty_counts: bool = False  # an empty rope dict is followed, too
    type_required: bool = False  # a rope dict without a type is an error, not "default"
    defaults: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # method -> key -> assumed when absent
    yarn_factor: str = "factor"  # "lengths": max_position/original wherever that is given; "null-lengths": for null
    null_means_default: bool = False  # beta_fast, beta_slow
    truncate: bool = True  # honours truncate: false
    dynamic: str = "length"  # or "trained", "static": see `dynamic`
    integer_linear: bool = True  # takes an integer factor for linear
    head_dim_required: frozenset[str] = frozenset()  # methods that fail for these model types when head_dim is absent
    head_dim_unfilled: frozenset[str] = frozenset()
    partial: tuple[str, tuple[str, ...]] = ("ignores", ())  # what it does with partial_rotary_factor, and its places
    partial_names: tuple[str, ...] = ()  # further names of it at the top, where its config class assumes none
    context_keys: tuple[str | int, ...] = ("max_position_embeddings",)  # of config.json, or a number that it assumes
    context_rule: str = "given"  # "vllm", "sglang", "tensorrt", "none", "no-window": none with a sliding window
    models: frozenset[str] = LLAMAS  # the model types that this row is modelled for
    nested: bool = False  # and also within any other model, as one that sees pictures; else see `nested.WITHIN`
    thetas: Mapping[str, float] = field(default_factory=dict)  # where it assumes others than `families.MODEL_TYPES`
    scales_softmax: frozenset[str] = frozenset()  # model types whose attention logits mscale_all_dim scales, whatever m is
    assumes_head_dim: bool = True  # takes an absent head_dim from `families.MODEL_TYPES`; else hidden_size / num_attention_heads
    assumes_length: bool = False  # takes an absent max_position_embeddings from `families.MODEL_TYPES`
    max_position_required: frozenset[str] = frozenset()  # methods that fail without it
    ignores: Mapping[str, frozenset[str]] = field(default_factory=dict)  # method -> keys of the dict
    variants: Mapping[str, Reader] = field(default_factory=dict)  # model_type -> the row that it has instead
    loads_by: str = ""  # the reader that makes the model, whose weights it then takes; a forward pass is not run
    refuses: str = ""  # why it reads no such model at all
    other_types: str = ""  # method of every other spelling
    spelled_in: Mapping[str, str] = field(default_factory=dict)  # spelling -> the one key in which it counts
    counts_with: Mapping[str, str] = field(default_factory=dict)  # method -> the key at the top without which it passes it over
    required: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # spelling -> keys that a dict must have
    top_required: tuple[str, ...] = ()  # keys that config.json must have
    top_present: tuple[str, ...] = ()  # and those that may be null there
    whole_lengths: frozenset[str] = frozenset()  # methods with which an original context written as a float is an error
    derives_head_dim: bool = False  # takes hidden_size / heads: another head_dim does not fit its tensors
    oldest: str = ""  # the oldest version that was run on what yarn-convert writes; "": none but `version`
    yarn_by_layer: str = ""  # the oldest that takes yarn in the object of one layer type; earlier ones refuse the file
    betas: tuple[float, float] | None = None  # assumed whatever is written
    rounds_ramp: bool = True  # False: never, and the ramp must end within the pairs
    layers_truncate: bool = False  # honours a truncate that stands in the object of one layer type
    others_theta: float | None = None  # of the other layers, whatever is written
    one_theta: bool = False  # of all layers, that of those that a recipe extends
    floor: tuple[str | float, ...] = ("dict",)  # places of the L that llama_4_scaling_beta counts from; "yarn": the dict of that type
    three_axes: frozenset[str] = frozenset()  # methods that turn by a picture's three positions; empty: all, or it knows one position
    # Of a model that turns neighbours: method -> "refuses", or "turns" halves of a head all the same, for that its class knows alone
    halves: Mapping[str, str] = field(default_factory=dict)
    # Model type -> a key of config.json that tells which pairs turn, and its value for neighbours
    neighbours: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    yarn_times: int = 1  # by which it takes L for longer where a ramp ends, in a model of pictures
    assumes_partial: bool = True  # takes an absent partial_rotary_factor from `families.MODEL_TYPES`; else whole heads
    forbidden: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # method -> keys at which its table fails
    chosen: str = ""  # how it is told the context that it serves, {n} tokens, by which it takes a list
    switching_note: str = ""  # what else there is to say of that


METHODS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
SPELLED = {name: name for name in METHODS}
SCALED = ("yarn", "llama3", "longrope")
TYPE_FIRST, TYPE_LAST, ROPE_TYPE_ALONE = ("type", "rope_type"), ("rope_type", "type"), ("rope_type", "rope_type")
V4_MODELS = LLAMAS | {  # olmo2 and phi3 want other dicts there
    "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma2", "gemma3_text", "gpt_neox", "falcon", "stablelm", "starcoder2",
    "granite", "smollm3", "glm4", "cohere", "cohere2", "gpt_oss", "deepseek_v2", "deepseek_v3",
}  # fmt: skip
V4_TYPE_FIRST = (  # their configuration_*.py: rope_scaling["rope_type"] = rope_scaling["type"]
    "llama", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gpt_neox", "stablelm", "starcoder2", "smollm3", "gpt_oss",
    "deepseek_v2", "deepseek_v3",
)  # fmt: skip
# Model types that turn neighbours and reach `Phi3LongRoPEScaledRotaryEmbedding` with is_neox_style False, which raises; or with True, which
# is set to False in the object that was made, and not looked at there: then halves of a head turn, silently
VLLM_NEIGHBOURS = {**dict.fromkeys(("glm4", "cohere", "cohere2", "ernie4_5_moe"), "refuses"), "ernie4_5": "turns"}
NEIGHBOURS = frozenset(VLLM_NEIGHBOURS)
SGLANG_NEIGHBOURS = dict.fromkeys(("cohere", "ernie4_5", "ernie4_5_moe"), "refuses")
VLLM_MODELS = {"mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma2", "stablelm", "falcon", *VLLM_NEIGHBOURS}
NEED_HEAD_DIM = frozenset({"dynamic", "yarn", "longrope"})  # of transformers: getattr(config, "head_dim", ...), which is None
MSCALES = frozenset({"short_mscale", "long_mscale"})
V5 = "transformers 5.23 modeling_rope_utils.py: RotaryEmbeddingConfigMixin.convert_rope_params_to_dict"
V5_READS: dict[str, Any] = {  # vLLM and SGLang load config.json through transformers 5: the three see one dict
    "dicts": ("rope_scaling", "rope_parameters"),
    "theta": ("dict", "top", "model"),
    "original": dict.fromkeys(SCALED, ("top", "dict", "max_position")),
    "assumes_length": True,
    "null_type": "fails",
    "nulls": frozenset(
        {
            "dict.rope_theta",
            "top.rope_theta",
            "dict.partial_rotary_factor",
            *(f"{place}.original_max_position_embeddings" for place in ("dict", "top")),
        }
    ),
}
OTHER_LENGTHS = ("max_sequence_length", "seq_length", "max_seq_len")  # top-level keys by which vLLM and SGLang cap the context
SGLANG_LENGTHS = (*OTHER_LENGTHS, "model_max_length", "max_position_embeddings")
SGLANG_UNSCALED = ("mixtral", "gemma2", "starcoder2")
UNSCALED: dict[str, Any] = {"dicts": (), "partial": ("ignores", ("top",))}  # nn.RoPE: no dict is looked at
# What `get_rope` of both asks for before the type; vLLM refuses a model of texts that has an mrope_section (gpu_model_runner.py)
DUAL_CHUNKS: Mapping[str, Any] = {"dual_chunk_attention_config": None}
VLLM_UNKNOWN: Mapping[str, Mapping[str, Any]] = {
    "dict": {"rope_dim": 0, "use_fope": False, "mrope_section": None, "xdrope_section": None},
    "top": {**DUAL_CHUNKS, "llama_4_scaling": None, "mrope_section": None},
}
SGLANG_UNKNOWN: Mapping[str, Mapping[str, Any]] = {
    "dict": {"use_fope": False, "mrope_section": None, "extrapolation_factor": 1.0},
    "top": DUAL_CHUNKS,
}
DERIVED: dict[str, Any] = {"derives_head_dim": True}
MLX_VARIANTS: Mapping[str, dict[str, Any]] = {  # model type -> how its file in mlx_lm/models differs from llama.py
    **{name: {} for name in ("gemma3_text", "olmo2", "smollm3")},
    "qwen2": DERIVED,
    "granite": DERIVED | {"top_required": ("max_position_embeddings", "rope_theta")},
    "seed_oss": {"top_required": ("head_dim",)},
    "olmo3": {"top_required": ("max_position_embeddings", "rope_theta", "sliding_window"), "one_theta": True},
    "qwen3_next": {
        "partial": ("rotates", ("top",)),
        "top_required": ("max_position_embeddings", "rope_theta", "head_dim", "partial_rotary_factor"),
    },
    "exaone4": {
        "top_required": ("max_position_embeddings", "rope_theta", "head_dim"),
        "top_present": ("rope_scaling", "sliding_window", "sliding_window_pattern", "tie_word_embeddings"),
    },
    "qwen3": {
        "dicts": ("rope_scaling", "rope_parameters"),
        "theta": ("top", "rope_parameters"),
        "empty_counts": True,
        "top_required": ("max_position_embeddings", "head_dim"),
    },
    "gpt_oss": {"types": {name: name for name in METHODS if name not in ("dynamic", "longrope")}},  # it passes no length on
    **dict.fromkeys(("mixtral", "starcoder2", "cohere"), UNSCALED | DERIVED),
    "ernie4_5": UNSCALED
    | {
        "top_required": ("max_position_embeddings", "rope_theta", "use_bias", "tie_word_embeddings"),
        "top_present": ("head_dim",),
    },
    "gemma2": UNSCALED | {"top_required": ("head_dim",)},
    "qwen3_moe": UNSCALED | {"top_required": ("head_dim", "rope_theta", "max_position_embeddings")},
    "gpt_neox": UNSCALED | DERIVED | {"top_required": ("rotary_emb_base", "rotary_pct", "max_position_embeddings")},
    "stablelm": UNSCALED | DERIVED | {"top_required": ("rope_theta", "partial_rotary_factor")},
    "glm4": UNSCALED | {"top_required": ("head_dim", "rope_theta", "partial_rotary_factor")},
}
# Those whose ModelArgs have rope_traditional, which says that neighbours turn; of glm4 it is true where nothing says it
MLX_TRADITIONAL = LLAMAS | {
    "smollm3", "qwen2", "qwen2_vl_text", "qwen2_5_vl_text", "seed_oss", "olmo2", "mixtral", "gemma2", "glm4"
}  # fmt: skip
_ROWS = {
    row.name: row
    for row in (
        # Earlier ones differ in yarn: 4.45 to 4.50 take L from max_position_embeddings, 4.51 to 4.55 s from the lengths
        Reader(
            name="transformers-4",
            version="4.57.6",
            oldest="4.56.0",
            evidence=(
                "modeling_rope_utils.py: _compute_*_parameters, longrope_frequency_update",
                "models/llama/configuration_llama.py: LlamaConfig.__init__ (type overwrites rope_type)",
                "models/llama/modeling_llama.py: LlamaRotaryEmbedding; so for the other models",
            ),
            models=V4_MODELS,
            thetas={"cohere": 10000.0},
            scales_softmax=frozenset({"deepseek_v3"}),
            dicts=("rope_scaling",),
            theta=("top", "model"),
            types=SPELLED,
            type_keys={
                **dict.fromkeys(V4_TYPE_FIRST, TYPE_FIRST),
                **dict.fromkeys(("cohere", "cohere2", "granite", "gemma3_text"), ROPE_TYPE_ALONE),
            },
            type_required=True,
            null_type="fails",
            empty_counts=True,
            nulls=frozenset({"top.rope_theta", "top.original_max_position_embeddings"}),
            original={"yarn": ("dict", "max_position"), "llama3": ("dict",), "longrope": ("top", "max_position")},
            temperature=("attention_factor", "ratio"),
            longrope_multiplier="attention_factor",
            longrope_factor=("lengths-of-top", "factor"),
            longrope_list="length",
            null_means_default=True,
            head_dim_required=NEED_HEAD_DIM,
            head_dim_unfilled=frozenset({"mistral"}),
            partial=("refuses", ("top",)),
            assumes_length=True,
            ignores={"longrope": MSCALES | {"original_max_position_embeddings"}},
        ),
        Reader(
            **V5_READS,
            name="transformers-5",
            nested=True,
            version="5.23.0",
            oldest="5.0.0",
            yarn_by_layer="5.9.0",  # huggingface/transformers#45887: _validate_yarn_rope_parameters
            evidence=(
                V5,
                "modeling_rope_utils.py: _compute_*_parameters, longrope_frequency_update",
                "models/*/configuration_*.py: convert_rope_params_to_dict; models/*/modeling_*.py: *RotaryEmbedding, yarn_apply_mscale",
            ),
            models=frozenset(MODEL_TYPES),
            unknown_types=frozenset({"proportional"}),
            scales_softmax=frozenset(name for name, row in MODEL_TYPES.items() if row.latent),
            types=SPELLED,
            temperature=("attention_factor", "ratio"),
            longrope_multiplier="attention_factor",
            longrope_factor=("factor", "lengths"),
            longrope_list="length",
            yarn_factor="null-lengths",
            null_means_default=True,
            head_dim_required=NEED_HEAD_DIM,
            head_dim_unfilled=frozenset({"mixtral", "minimax", "ministral", "hunyuan_v1_dense", "hunyuan_v1_moe"}),
            partial=("refuses-scaled", ("dict", "top")),
            ignores={"longrope": MSCALES},
        ),
        Reader(
            **V5_READS,
            name="vllm",
            version="0.33.0",
            evidence=(
                V5,
                "vllm/transformers_utils/config.py: patch_rope_parameters, patch_legacy_rope_type",
                "vllm/model_executor/layers/rotary_embedding/__init__.py: get_rope, and the classes it makes",
                "vllm/config/model.py: _get_and_verify_max_len",
                "vllm/model_executor/models/commandr.py, glm4.py, ernie45_moe.py: is_neox_style False; ernie45.py: set so afterwards",
                "vllm/model_executor/models/*.py: config.rope_parameters goes to get_rope as it is",
            ),
            models=LLAMAS | VLLM_MODELS,
            types={**SPELLED, "su": "longrope"},
            types_must_agree=True,
            unknown_types=frozenset(
                {"proportional", "ntk", "mrope", "deepseek_yarn", "deepseek_llama_scaling", "telechat3-yarn", "bailing_mrope", "openpangu"}
            ),
            unknown=VLLM_UNKNOWN,
            whole_lengths=frozenset({"longrope"}),
            yarn_times=4,  # get_rope: mrope_positions_factor
            temperature=("attention_factor", "ratio"),
            longrope_multiplier="mscale",
            longrope_list="context",
            chosen="--max-model-len {n}",
            dynamic="trained",
            integer_linear=False,
            partial=("rotates", ("dict", "top")),
            partial_names=("rotary_pct", "rotary_emb_fraction"),
            context_keys=("max_position_embeddings", "max_seq_len", "seq_length", "max_sequence_length"),
            context_rule="vllm",
            ignores={"longrope": frozenset({"attention_factor"}), "dynamic": frozenset({"factor"})},
        ),
        Reader(
            **V5_READS,
            name="sglang",
            version="0.5.23",
            evidence=(
                V5,
                "sglang/srt/models/llama.py: LlamaDecoderLayer, LlamaAttention",
                "sglang/srt/layers/rotary_embedding/factory.py: get_rope; yarn.py, rope_variant.py, base.py",
                "sglang/srt/utils/hf_transformers/common.py: get_context_length, get_rope_config",
                "sglang/srt/models/qwen2.py, qwen3.py, qwen2_moe.py, granite.py, commandr.py: get_rope(rope_scaling=)",
                "sglang/srt/models/commandr.py, ernie4.py: is_neox_style False, at which rope_variant.py raises for longrope",
                "sglang/srt/models/mixtral.py, gemma2.py, starcoder2.py: get_rope without rope_scaling, so with theta alone",
            ),
            models=LLAMAS | {"qwen2", "qwen3", "qwen2_moe", "granite", *SGLANG_NEIGHBOURS, *SGLANG_UNSCALED},
            types=SPELLED,
            unknown_types=frozenset({"proportional", "deepseek_yarn"}),
            unknown=SGLANG_UNKNOWN,
            whole_lengths=frozenset({"longrope"}),
            neighbours=dict.fromkeys(LLAMAS | {"granite", "ernie4_5", "ernie4_5_moe"}, ("rope_is_neox_style", False)),
            temperature=("ratio-of-any", "times-attn_factor"),
            longrope_multiplier="mscale",
            longrope_list="position",
            switching_note="Requests of one batch have one list; of a prompt that is read in chunks the first ones have the short list",
            dynamic="static",
            integer_linear=False,
            context_keys=SGLANG_LENGTHS,
            context_rule="sglang",
            ignores={"yarn": frozenset({"attention_factor"}), "longrope": frozenset({"attention_factor"})},
        ),
        Reader(
            name="mlx-lm",
            version="0.32.2",
            evidence=(
                "mlx_lm/models/llama.py: ModelArgs, Attention (mistral is remapped to llama in mlx_lm/utils.py)",
                "mlx_lm/models/rope_utils.py: initialize_rope, YarnRoPE, SuScaledRoPE, Llama3RoPE",
                "mlx_lm/models/*.py: ModelArgs, Attention, of each model: initialize_rope, or nn.RoPE, which scales nothing",
            ),
            models=LLAMAS | MLX_VARIANTS.keys(),
            dicts=("rope_scaling",),
            theta=("top", "model"),
            thetas={"qwen2": 1e6, "smollm3": 10000.0, "starcoder2": 100000.0, "cohere": 8e6},
            types={**SPELLED, "deepseek_yarn": "yarn", "telechat3-yarn": "yarn"},
            type_keys=dict.fromkeys(LLAMAS | MLX_VARIANTS.keys(), TYPE_FIRST),
            unknown_types=frozenset({"proportional", "mrope"}),
            nulls=frozenset({"top.rope_theta", "dict.original_max_position_embeddings"}),
            neighbours=dict.fromkeys(MLX_TRADITIONAL, ("rope_traditional", True)),
            original={"yarn": ("dict", 4096), "llama3": ("dict", 8192), "longrope": ("dict",)},
            defaults={"llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0}},
            temperature=("ratio-1-0",),
            longrope_multiplier="lengths",
            longrope_list="always",
            truncate=False,
            max_position_required=frozenset({"dynamic", "longrope"}),
            context_rule="none",
            ignores={
                "yarn": frozenset({"attention_factor", "truncate"}),
                "longrope": MSCALES | {"attention_factor", "short_factor"},
            },
        ),
        Reader(
            name="exllamav3",
            version="1.4.1",
            evidence=(
                "exllamav3/model/config.py: Config.read_rope_settings_default",
                "exllamav3/util/rope.py: RoPE.__init__, _rope_params_*, yarn_inv_freq",
                "exllamav3/architecture/llama.py: LlamaConfig; so for the other models: read_rope_settings_default(style), no more",
            ),
            models=LLAMAS | {"mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "cohere", "smollm3"},
            assumes_head_dim=False,
            dicts=("rope_scaling", "rope_parameters"),
            theta=("top", "rope_parameters", 10000.0),
            types={**{k: v for k, v in SPELLED.items() if k != "dynamic"}, "su": "longrope", "mrope": "default"},
            unknown_types=frozenset({"proportional"}),
            unknown={"dict": {"llama_4_scaling_beta": 0.0}, "top": {"rotary_dim": 0}},
            null_type="default",
            empty_counts=True,
            original={"yarn": ("dict", "max_position"), "llama3": ("dict", 8192), "longrope": ("dict", "top")},
            defaults={
                "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
                "linear": {"factor": 1.0},
            },
            temperature=("attention_factor",),
            longrope_multiplier="lengths",
            longrope_list="max_position",
            yarn_factor="lengths",
            partial=("rotates", ("top", "rope_parameters")),
            max_position_required=frozenset({"yarn", "longrope"}),
            context_keys=("max_position_embeddings", 8192),
            ignores={
                "yarn": frozenset({"factor", "mscale", "mscale_all_dim"}),
                "longrope": MSCALES | {"attention_factor"},
            },
        ),
    )
}
_VLLM, _MLX, _SGLANG = _ROWS["vllm"], _ROWS["mlx-lm"], _ROWS["sglang"]
_THETA_ALONE = replace(_SGLANG, types={}, other_types="default", unknown={})
HF_READERS: Mapping[str, Reader] = {
    **_ROWS,
    "vllm": replace(
        _VLLM,
        variants={
            **{name: replace(_VLLM, halves={"longrope": how}) for name, how in VLLM_NEIGHBOURS.items()},
            **dict.fromkeys(("qwen2", "qwen2_moe", "stablelm"), replace(_VLLM, derives_head_dim=True)),
        },
    ),
    "sglang": replace(
        _SGLANG,
        variants={
            **dict.fromkeys(SGLANG_UNSCALED, _THETA_ALONE),
            **dict.fromkeys(("mixtral", "starcoder2"), replace(_THETA_ALONE, derives_head_dim=True)),
            "qwen2_moe": replace(_SGLANG, derives_head_dim=True),
            **{name: replace(_SGLANG, halves={"longrope": how}) for name, how in SGLANG_NEIGHBOURS.items()},
        },
    ),
    "mlx-lm": replace(_MLX, variants={name: replace(_MLX, **fields) for name, fields in MLX_VARIANTS.items()}),
}
HEAD_DIM_UNFILLED = frozenset().union(*(row.head_dim_unfilled for row in HF_READERS.values()))  # model types of some reader

"""How the runtimes that follow less of config.json read it: rows as in `rows`. Nothing is written to suit them.

CTranslate2, ONNX Runtime GenAI and OpenVINO convert the model first; their rows are what the converter makes of it.
TensorRT-LLM's row is its PyTorch backend in the 1.2 series, which loads config.json through transformers 4; 1.3 knows
`rope_parameters` and type "default" as well. Ollama's row is `ollama create` on a folder of safetensors, which writes
the GGUF keys that its llama.cpp then reads. For a GGUF file see `others_gguf`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .rows import HF_READERS, LLAMAS, MSCALES, ROPE_TYPE_ALONE, SPELLED, TYPE_FIRST, V5, V5_READS, Reader

ROPE_TYPE_ONLY = dict.fromkeys(LLAMAS, ROPE_TYPE_ALONE)
TYPES_FIRST = dict.fromkeys(LLAMAS, TYPE_FIRST)
LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
TOP = ("top", 10000.0)
ROUNDS = frozenset({"truncate"})
M = frozenset({"attention_factor"})
THETA = frozenset({"rope_theta"})

OPENVINO = replace(
    HF_READERS["transformers-5"],
    name="OpenVINO",
    version="optimum-intel 2.2.0",
    oldest="",
    nested=False,
    evidence=(
        "optimum/exporters/openvino/model_patcher.py: OVDecoderModelPatcher, _longrope_forward",
        "optimum/exporters/openvino/model_configs.py: LlamaOpenVINOConfig, MistralOpenVINOConfig",
        "transformers 5.5.4, the newest that it takes, traced: modeling_rope_utils.py",
    ),
    models=LLAMAS,
    scales_softmax=frozenset(),
    longrope_multiplier="mscales",
    dynamic="trained",  # the trace keeps the branch of a short text
    ignores={"longrope": MSCALES | M, "dynamic": frozenset({"factor"})},
)

CTRANSLATE2 = Reader(
    **V5_READS | {"null_type": "absent"},
    name="CTranslate2",
    version="4.8.5",
    evidence=(
        "ctranslate2/converters/transformers.py: ModelLoader.get_rotary_params, LlamaLoader, MistralLoader",
        "ctranslate2/specs/attention_spec.py: MultiHeadAttentionSpec.__init__ (no factor is stored for llama3)",
        "4.8.1 src/layers/attention_layer.cc: make_rotary_embeddings, RotaryEmbeddings::initialize",
        V5,
    ),
    types={"default": "default", "linear": "linear", "llama3": "default"},
    type_keys=TYPES_FIRST,
    temperature=(),
    longrope_multiplier="lengths",
    longrope_list="length",
    derives_head_dim=True,
    context_rule="none",
    loads_by="transformers-5",
)

ONNX = Reader(
    **V5_READS,
    name="onnxruntime-genai",
    version="0.18.0",
    evidence=(
        "models/builders/base.py: Model.__init__, make_config_init, make_rope_init, make_mscale",
        "models/builders/base.py: make_inv_freq_rescaled_with_ntk, make_inv_freq_rescaled_with_freq_factors",
        "models/builders/llama.py: LlamaModel.make_rope_init (llama3 alone)",
        V5,
    ),
    types={"default": "default", "llama3": "llama3"},
    other_types="default",
    unknown={home: {"rope_position_scale": 1} for home in ("dict", "top")},
    temperature=("ratio", "mscale"),
    longrope_multiplier="lengths",
    longrope_list="length",
    rounds_ramp=False,
    partial=("rotates", ("dict", "top")),
    context_keys=("seq_length", "max_position_embeddings"),
    loads_by="transformers-5",
    ignores={"yarn": M | ROUNDS},
)

TENSORRT = Reader(
    name="TensorRT-LLM",
    version="1.2 (51ea5c9)",
    evidence=(
        "tensorrt_llm/_torch/attention_backend/interface.py: RopeParams.from_config, create_rope_const_params",
        "tensorrt_llm/functional.py: RotaryScalingType.from_string, RopeEmbeddingUtils",
        "tensorrt_llm/_torch/models/modeling_llama.py: LlamaAttention; modeling_mistral.py: MistralAttention",
        "tensorrt_llm/_torch/models/modeling_utils.py: DecoderModelForCausalLM.infer_max_seq_len",
    ),
    dicts=("rope_scaling",),
    theta=TOP,
    types={name: method for name, method in SPELLED.items() if name != "default"},
    type_keys=TYPES_FIRST,
    type_required=True,
    null_type="fails",
    empty_counts=True,
    typed=THETA,
    unknown={"top": {"rotary_pct": 1.0, "rotary_dim": 0, "rotary_emb_base": 0, "qk_rope_head_dim": 0}},
    original=dict.fromkeys(("yarn", "llama3", "longrope"), ("top", "dict", 1024)),
    defaults={
        **{method: {"factor": 1.0} for method in ("linear", "yarn", "dynamic")},
        "llama3": {"factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    },
    temperature=("ratio-1-0",),
    longrope_multiplier="lengths",
    longrope_list="always",
    truncate=False,
    dynamic="trained",
    partial=("rotates", ("top",)),
    context_rule="tensorrt",
    assumes_length=True,
    ignores={"yarn": M | ROUNDS, "longrope": MSCALES | M, "dynamic": frozenset({"factor"})},
)

TGI = Reader(
    name="TGI",
    version="3.3.7",
    evidence=(
        "server/text_generation_server/layers/rotary.py: PositionRotaryEmbedding.static, and the classes it makes",
        "server/text_generation_server/models/custom_modeling/flash_llama_modeling.py: FlashLlamaAttention",
        "server/text_generation_server/models/custom_modeling/flash_mistral_modeling.py: MistralAttention",
        "server/text_generation_server/models/flash_causal_lm.py: FlashCausalLM.warmup; transformers 4.51.3 loads config.json",
    ),
    dicts=("rope_scaling",),
    theta=TOP,
    types={**SPELLED, "linear": "default", "su": "longrope"},
    type_keys={"llama": TYPE_FIRST},
    type_required=True,
    null_type="fails",
    empty_counts=True,
    typed=THETA,
    original={"yarn": ("dict",), "llama3": ("dict",), "longrope": ("top",)},
    temperature=("ratio-1-0",),
    longrope_multiplier="stretches",
    longrope_list="length",
    switching_note="Positions below the original context keep the short list in a long text, too",
    truncate=False,
    betas=(32.0, 1.0),
    whole_lengths=frozenset({"longrope"}),
    derives_head_dim=True,
    assumes_length=True,
    ignores={"yarn": M | ROUNDS | {"beta_fast", "beta_slow"}, "longrope": M | {"original_max_position_embeddings"}},
)

CANDLE = Reader(
    name="candle",
    version="0.11.0 (2a13b0f)",
    evidence=("candle-transformers/src/models/llama.rs: LlamaConfig, Llama3RopeConfig, Cache::new",),
    dicts=("rope_scaling",),
    theta=TOP,
    types={"default": "default", "llama3": "llama3"},
    type_keys=ROPE_TYPE_ONLY,
    type_required=True,
    empty_counts=True,
    typed=THETA,
    original={"llama3": ("dict",)},
    temperature=(),
    longrope_multiplier="lengths",
    longrope_list="length",
    top_required=("max_position_embeddings",),
    required=dict.fromkeys(("default", "llama3"), LLAMA3_KEYS),
    whole_lengths=frozenset({"default", "llama3"}),
    derives_head_dim=True,
)

MISTRAL_RS = replace(
    CANDLE,
    name="mistral.rs",
    version="0.9.2 (9e92262)",
    evidence=(
        "mistralrs-core/src/models/llama.rs: Config",
        "mistralrs-core/src/layers.rs: Llama3RopeConfig, Llama3RotaryEmbedding::new_llama3_with_factors",
    ),
    types={"default": "default", "linear": "linear", "llama3": "llama3"},
    top_required=("max_position_embeddings", "rope_theta"),
    required={"default": ("factor",), "linear": ("factor",), "llama3": LLAMA3_KEYS},
)

MLC = Reader(
    name="MLC-LLM",
    version="0.26.dev0 (79d603f)",
    evidence=(
        "python/mlc_llm/model/llama/llama_model.py: LlamaConfig.__post_init__, LlamaForCausalLM.create_paged_kv_cache",
        "apache/tvm 5d4dc87 python/tvm/relax/frontend/nn/llm/position_embedding.py: switch_rope_freq_func, rope_freq_llama3",
    ),
    dicts=("rope_scaling",),
    theta=TOP,
    types={"llama3": "llama3"},
    type_keys=ROPE_TYPE_ONLY,
    null_type="fails",
    typed=THETA | {"head_dim"},
    unknown={"top": {"position_embedding_base": 0}},
    original={"llama3": ("dict",)},
    temperature=(),
    longrope_multiplier="lengths",
    longrope_list="length",
    required={"llama3": LLAMA3_KEYS},
    context_keys=("context_window_size", "max_position_embeddings", "max_sequence_length"),
)

OLLAMA = Reader(
    name="Ollama",
    version="0.33.0-rc2",
    evidence=(
        "convert/convert_llama.go: llamaModel.KV, llamaModel.ropeFactors; convert/convert.go: LoadModelMetadata",
        "LLAMA_CPP_VERSION: b10488, whose server runs the GGUF file that `ollama create` writes",
    ),
    dicts=("rope_scaling",),
    theta=TOP,
    types={"default": "default", "linear": "linear", "llama3": "llama3"},
    other_types="default",
    spelled_in={"linear": "type", "llama3": "rope_type"},
    counts_with={"llama3": "rope_theta"},
    whole_lengths=frozenset({"llama3"}),
    original={"llama3": ("dict", 8192)},
    defaults={"llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    temperature=(),
    longrope_multiplier="lengths",
    longrope_list="length",
    derives_head_dim=True,
)

MISTRAL_RS_YARN = ("rope_theta", "factor", "beta_fast", "beta_slow", "original_max_position_embeddings")
MISTRALS: Mapping[str, Reader] = {  # where model type mistral has code of its own
    "CTranslate2": replace(CTRANSLATE2, types={"default": "default", "linear": "linear"}, derives_head_dim=False),
    "onnxruntime-genai": replace(
        ONNX,
        evidence=(*ONNX.evidence[:2], "models/builders/mistral.py: MistralModel", V5),
        types={"default": "default", "linear": "linear", "yarn": "yarn"},
        other_types="",
        unknown={"dict": {"rope_position_scale": 1, "mrope_section": None}, "top": ONNX.unknown["top"]},
        required={"yarn": ("beta_fast", "beta_slow")},
    ),
    "TensorRT-LLM": replace(TENSORRT, null_type="absent"),  # of a Llama, transformers 4 writes `type` over `rope_type`
    # FlashCausalLM.cuda_graph_warmup looks for rope_type, which transformers 4 makes of `type` in a Llama alone
    "TGI": replace(TGI, derives_head_dim=False, required=dict.fromkeys(TGI.types, ("rope_type",))),
    "candle": replace(
        CANDLE,
        evidence=("candle-transformers/src/models/mistral.rs: Config, RotaryEmbedding::new",),
        dicts=(),
        top_required=("max_position_embeddings", "rope_theta"),
        derives_head_dim=False,
    ),
    "mistral.rs": replace(
        MISTRAL_RS,
        evidence=(
            "mistralrs-core/src/models/mistral.rs: Config, MistralRopeParameters, Model::new_inner",
            "mistralrs-core/src/layers.rs: RotaryEmbedding::new_yarn, DeepSeekV2RotaryEmbedding::yarn_get_mscale",
        ),
        dicts=("rope_parameters",),
        theta=("dict", "top", 10000.0),
        types={"default": "default", "yarn": "yarn"},
        type_required=False,
        null_type="fails",
        unknown={"dict": {"llama_4_scaling_beta": 0.0}},  # attention_temperature, where transformers computes none
        original={"yarn": ("dict",)},
        temperature=("ratio-1-0",),
        truncate=False,
        null_means_default=True,
        top_required=("max_position_embeddings",),
        required={"default": ("rope_theta",), "yarn": MISTRAL_RS_YARN},
        whole_lengths=frozenset({"yarn"}),
        derives_head_dim=False,
        ignores={"yarn": M | ROUNDS},
    ),
    "MLC-LLM": replace(
        MLC,
        evidence=("python/mlc_llm/model/mistral/mistral_model.py: MistralConfig.__post_init__, MistralForCausalLM",),
        dicts=(),
        context_rule="no-window",
    ),
    "Ollama": replace(OLLAMA, refuses="unsupported architecture MistralForCausalLM: convert with --out gguf"),
}
OTHER_READERS: Mapping[str, Reader] = {
    row.name: replace(row, variants={"mistral": MISTRALS[row.name]} if row.name in MISTRALS else {})
    for row in (OLLAMA, CTRANSLATE2, ONNX, OPENVINO, TENSORRT, TGI, CANDLE, MISTRAL_RS, MLC)
}

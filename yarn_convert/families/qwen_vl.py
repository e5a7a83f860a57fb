"""The language models of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: Qwen2 and Qwen3, with three positions a token, which in a text are one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .architectures import Arch
from .layers import Values
from .llama import EXPERT_HPARAMS, NOT_DENSE
from .model_types import NEW, ModelType
from .qwen import QK_NORMS, QWEN2, QWEN3, QWEN3_MOE
from .schema import rope_says

MROPE = {"mrope": "default"}
SECTIONS = {"mrope_section": "rope.dimension_sections:i32[]"}
DEEPSTACK = {"deepstack": "n_deepstack_layers"}
GATE_UP, DOWN = tuple(f"blk.{{i}}.ffn_{x}_exps.weight" for x in ("gate", "up")), "blk.{i}.ffn_down_exps.weight"


def _sections(c: Values, usual: Sequence[int] = (16, 24, 24)) -> dict[str, Any]:
    """How many pairs turn by each position: three in transformers, four in llama.cpp."""
    said = next(filter(None, rope_says(c, "mrope_section")), usual)
    return {"mrope_section": [*said, 0, 0, 0, 0][:4]}


def _deepstack(c: Values) -> dict[str, Any]:
    """To how many of the first layers the model that sees adds its own."""
    return _sections(c, (24, 20, 20)) | {"deepstack": len((c.get("vision_config") or {}).get("deepstack_visual_indexes") or ())}


def _moe(c: Values) -> dict[str, Any]:
    return _deepstack(c) | QWEN3_MOE.hf.reads(c)


QWEN2_VL = replace(
    QWEN2,
    hf=replace(
        QWEN2.hf,
        name="qwen2_vl_text",
        theta=1e6,
        shape=(152064, 8192, 29568, 80, 64),
        architectures=("Qwen2VLForConditionalGeneration",),
        defaults={"rms_norm_eps": 1e-5, "num_key_value_heads": 8, "use_sliding_window": False},
        more_types=MROPE,
        since=NEW,
        reads=_sections,
        unsaid=frozenset(SECTIONS),
        spread_in="qwen2_vl",
        run_as="qwen2",
    ),
    gguf=Arch("qwen2vl", sections="blocks", square=True),
    hparams={**QWEN2.hparams, **SECTIONS},
    evidence="llama.cpp 0c1e570: src/models/qwen2vl.cpp (asks for rope.dimension_sections; rope_freqs.weight is not loaded); "
    "conversion/qwenvl.py Qwen2VLModel; transformers 5.23: models/qwen2_vl/modeling_qwen2_vl.py",
)

QWEN2_5_VL = replace(
    QWEN2_VL,
    hf=replace(
        QWEN2_VL.hf, name="qwen2_5_vl_text", architectures=("Qwen2_5_VLForConditionalGeneration",), spread_in="qwen2_5_vl"
    ),
)  # fmt: skip

QWEN3_VL = replace(
    QWEN3,
    hf=ModelType(
        "qwen3_vl_text",
        128000,
        500000.0,
        head_dim=128,
        since=NEW,
        shape=(151936, 4096, 22016, 32, 32),
        architectures=("Qwen3VLForConditionalGeneration",),
        defaults={"rms_norm_eps": 1e-6, "num_key_value_heads": 32},
        reads=_deepstack,
        unsaid=frozenset(SECTIONS | DEEPSTACK),
        run_as="qwen3",
    ),
    gguf=Arch("qwen3vl", sections="interleaved"),
    hparams={**QWEN3.hparams, **SECTIONS, **DEEPSTACK},
    may_lack=frozenset(DEEPSTACK),
    evidence="llama.cpp 0c1e570: src/models/qwen3vl.cpp (asks for rope.dimension_sections; rope_freqs.weight is not loaded); "
    "conversion/qwen3vl.py Qwen3VLTextModel; transformers 5.23: models/qwen3_vl/modeling_qwen3_vl.py",
)

QWEN3_VL_MOE = replace(
    QWEN3_MOE,
    hf=ModelType(
        "qwen3_vl_moe_text",
        128000,
        500000.0,
        since=NEW,
        architectures=("Qwen3VLMoeForConditionalGeneration",),
        defaults={**QWEN3_MOE.hf.defaults, "num_key_value_heads": 16, "norm_topk_prob": True, "tie_word_embeddings": True},
        reads=_moe,
        unsaid=QWEN3_VL.hf.unsaid,
        run_as="qwen3_moe",
    ),
    gguf=Arch("qwen3vlmoe", sections="interleaved"),
    tensors={
        **NOT_DENSE,
        **QK_NORMS,
        "model.layers.{i}.mlp.gate.weight": "blk.{i}.ffn_gate_inp.weight",
        "model.layers.{i}.mlp.experts.gate_up_proj": GATE_UP,
        "model.layers.{i}.mlp.experts.down_proj": DOWN,
    },
    transforms={**dict.fromkeys(GATE_UP, "column_halves_or_saved"), DOWN: "transposed_or_saved"},
    hparams={**QWEN3.hparams, **EXPERT_HPARAMS, "moe_intermediate_size": "expert_feed_forward_length", **SECTIONS, **DEEPSTACK},
    may_lack=QWEN3_VL.may_lack,
    twin={"moe_intermediate_size": 48},  # of which no shape fits both ways round
    evidence="llama.cpp 0c1e570: src/models/qwen3vlmoe.cpp (as qwen3vl.cpp); conversion/qwen3vl.py Qwen3VLMoeTextModel; "
    "transformers 5.23: models/qwen3_vl_moe/modeling_qwen3_vl_moe.py (weights of experts are always normalized)",
)

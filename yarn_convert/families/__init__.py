"""The table of model families, as data. To support a family is to add one row; nothing else has to change.

`schema` says what a row is; the rows lie in one module a kin. A model whose family has no row gets a stand-in: its RoPE
can still be read and its tensors copied, but none of them can be named.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

from ..errors import FormatError, UnknownModel, Unsupported
from .aliases import ALIASES
from .architectures import OTHER_ARCHS, Arch
from .dense import APERTUS, ARCEE, ERNIE4_5, EXAONE4, HUNYUAN_DENSE, JAIS2, NEMOTRON, SEED_OSS
from .derived import normalized
from .experts import AFMOE, DOTS1, ERNIE4_5_MOE, EXAONE_MOE, GLM4_MOE, KIMI_K2, SOLAR_OPEN
from .falcon_h1 import FALCON_H1
from .gemma import GEMMA, GEMMA2, GEMMA3
from .gemma3n import GEMMA3N
from .gemma4 import GEMMA4
from .gpt_oss import GPT_OSS
from .granite import GRANITE_ATTENTIVE, GRANITE_HYBRID, GRANITE_HYBRID_MOE
from .layers import whole_number
from .lfm2 import LFM2, LFM2_MOE
from .llama import (
    GRANITE,
    GRANITE_MOE,
    GRANITE_MOE_SHARED,
    INTERNLM2,
    INTERNLM3,
    IQUEST_CODER,
    LLAMA,
    MINISTRAL3,
    MISTRAL,
    MIXTRAL,
    SMOLLM3,
)
from .llama4 import LLAMA4
from .minicpm import MINICPM, MINICPM3
from .mixtures import HUNYUAN_MOE, HY_V3, MINIMAX_M2, OLMOE
from .mla import DEEPSEEK_V2, DEEPSEEK_V3, GLM4_MOE_LITE, YOUTU
from .model_types import OTHER_TYPES, ModelType
from .neox import FALCON, GPT_NEOX, PHI, PHI3, STABLELM, STARCODER2
from .others import COHERE, COHERE2, GLM, GLM4, OLMO, OLMO2, OLMO3
from .qwen import QWEN2, QWEN2_AS_LLAMA, QWEN2_MOE, QWEN3, QWEN3_MOE
from .qwen_linear import QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT
from .qwen_vl import QWEN2_5_VL, QWEN2_VL, QWEN3_VL, QWEN3_VL_MOE
from .schema import HPARAMS, Family

__all__ = [
    "ALIASES",
    "ARCHS",
    "FAMILIES",
    "LLAMA",
    "MODEL_TYPES",
    "NO_ROPE",
    "REFUSED",
    "Arch",
    "Family",
    "ModelType",
    "architectures",
    "as_architecture",
    "for_config",
    "for_gguf",
    "normalized",
    "sections",
]

FAMILIES: tuple[Family, ...] = (
    LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN2_MOE, QWEN3_MOE, PHI3, GEMMA2, GEMMA3, GPT_NEOX, FALCON, STABLELM, OLMO2, INTERNLM2,
    STARCODER2, GRANITE, SMOLLM3, GLM4, COHERE, QWEN2_AS_LLAMA,
    GPT_OSS, DEEPSEEK_V2, DEEPSEEK_V3, COHERE2, GRANITE_MOE,
    QWEN2_5_VL, QWEN2_VL, QWEN3_VL, QWEN3_VL_MOE,
    OLMOE, ERNIE4_5_MOE, DOTS1, GLM4_MOE, KIMI_K2, MINIMAX_M2, GRANITE_MOE_SHARED, EXAONE_MOE, AFMOE, SOLAR_OPEN, LLAMA4, HY_V3,
    SEED_OSS, ARCEE, ERNIE4_5, OLMO, GEMMA, PHI, GLM, NEMOTRON, EXAONE4, OLMO3,
    QWEN3_NEXT, QWEN3_5, QWEN3_5_MOE, LFM2, LFM2_MOE, GRANITE_ATTENTIVE, GRANITE_HYBRID, GRANITE_HYBRID_MOE, FALCON_H1,
    MINISTRAL3, JAIS2, HUNYUAN_DENSE, INTERNLM3, MINICPM, MINICPM3,
    GLM4_MOE_LITE, YOUTU, IQUEST_CODER, APERTUS, HUNYUAN_MOE, GEMMA4, GEMMA3N,
)  # fmt: skip
# What is known of each model_type that readers are modelled for, and of each GGUF architecture, converted or not
MODEL_TYPES: Mapping[str, ModelType] = {row.name: row for row in (*(f.hf for f in FAMILIES if f.hf.length), *OTHER_TYPES)}
ARCHS: Mapping[str, Arch] = {row.name: row for row in (*(f.gguf for f in FAMILIES), *OTHER_ARCHS)}

# What has no RoPE, by its model_type or architecture -> what it has instead
NO_ROPE = {
    "gpt2": "learned positions", "bert": "learned positions", "roberta": "learned positions", "opt": "learned positions",
    "gpt_bigcode": "learned positions", "starcoder": "learned positions", "t5": "relative position buckets",
    "t5encoder": "relative position buckets", "bloom": "ALiBi", "mpt": "ALiBi", "refact": "ALiBi", "jais": "ALiBi",
    "jina-bert-v2": "ALiBi", "wavtokenizer-dec": "convolutions", "mamba": "no positions", "mamba2": "no positions",
    "rwkv": "no positions", "rwkv6": "no positions", "rwkv6qwen2": "no positions", "rwkv7": "no positions", "arwkv7": "no positions",
    "jamba": "no positions", "nemotron_h": "no positions", "nemotron_h_moe": "no positions", "kimi-linear": "no positions",
    "kimi-k3": "no positions", "glm5-next": "no positions",
}  # fmt: skip
_ENCODER = "is an encoder, no language model"
_SPEECH = "is a speech model, no language model"
_DRAFT = "drafts tokens for another model, and does not run alone"
_INDEXER = "has an indexer that turns too: what an extension does to its choice of tokens is not known"
_WINDOWS = "has RoPE only in layers that see a window of tokens"
_PLAIN = "is computed by llama.cpp with plain RoPE, whatever the file says of it"
_NO_CODE = "is a name without code in llama.cpp"
# A GGUF architecture of llama.cpp that has no row in `ARCHS` -> why
REFUSED: Mapping[str, str] = {name: f"has {what}, not RoPE: there is nothing to extend" for name, what in NO_ROPE.items()} | {
    "jina-bert-v3": _ENCODER, "nomic-bert": _ENCODER, "nomic-bert-moe": _ENCODER, "neo-bert": _ENCODER, "eurobert": _ENCODER,
    "modern-bert": _ENCODER, "gemma-embedding": _ENCODER,
    "clip": "encodes images, and is no language model",
    "pockettts": _SPEECH, "qwen3tts": _SPEECH,
    "eagle3": _DRAFT, "dflash": _DRAFT, "gemma4-assistant": _DRAFT,
    "deepseek32": _INDEXER, "glm-dsa": _INDEXER, "dots3note": _INDEXER, "hy_v4": _INDEXER, "minimax-m3": _INDEXER, "qwen4exp": _INDEXER,
    "deepseek4": "turns what it compresses by a RoPE of its own: that is not worked out",
    "maple": _WINDOWS, "muse-glimmer": _WINDOWS,
    "cogvlm": _PLAIN,  # cogvlm.cpp graph: ggml_rope
    "deepseek2-ocr": _PLAIN,  # deepseek2.cpp graph, is_ocr: a factor of 1, and an assertion that θ is 10,000
    "gptj": _NO_CODE,
}  # fmt: skip
SECTIONS = "mrope_section"
ONLY_ROPE = "only language models with rotary embeddings can be extended"
STANDARD = {k: v for k, v in HPARAMS.items() if k != "rms_norm_eps"}  # GGUF's docs/gguf.md, "[llm]"


def for_config(config: Mapping[str, Any]) -> Family:
    """The row of a config.json, or a stand-in. Unsupported for a model without RoPE or that is no language model."""
    model_type = config.get("model_type")
    if model_type is None:
        raise Unsupported("config.json has no model_type", known())
    _check_refused(model_type, NO_ROPE)
    architectures = config.get("architectures")  # absent or null in some old checkpoints
    first = architectures[0] if architectures else None
    for family in FAMILIES:
        if family.model_type == model_type and family.where(config):
            if architectures is not None and first not in family.hf.architectures:
                raise Unsupported(f"architectures {architectures!r} is not a {model_type} language model", known())
            return family
    if first is not None and first.endswith("ForCausalLM"):
        return stand_in(model_type, first, "")
    raise UnknownModel(f"unknown model_type {model_type!r}", known())


def for_nested(config: Mapping[str, Any]) -> Family:
    """The row of a language model within another model, whose architecture config.json says, or a stand-in. Unsupported as `for_config`."""
    model_type, first = str(config.get("model_type")), next(iter(config.get("architectures") or ()), "")
    _check_refused(model_type, REFUSED)
    row = next((f for f in FAMILIES if f.model_type == model_type and f.where(config)), None)
    return replace(row, hf=replace(row.hf, architectures=(first,))) if row else stand_in(model_type, first, "")


def for_gguf(arch: str, keys: Mapping[str, Any], tensors: Container[str]) -> Family:
    """The row of a GGUF architecture, or a stand-in; Unsupported for one of `REFUSED`. Of rows that share it, and whose `constants` it
    has, the first with the most `marks`. A row without lists describes layers that are all alike, and one position a token: else it is
    the stand-in."""
    _check_refused(arch, REFUSED)

    def marked(mark: str) -> bool:
        name = mark.removeprefix("!")
        return (f"{arch}.{name}" in keys or name in tensors) != mark.startswith("!")

    def contradicted(family: Family) -> bool:
        found = {hf: keys.get(family.gguf_key(hf)[0]) for hf in family.hparams}
        listed = {family.gguf_key(hf)[0] for hf in family.hparams if family.by_layer(hf)}
        fixed = {key: value for key, (_, value) in family.constants.items() if key not in family.gguf_known}
        return (
            any(isinstance(n, list) and family.gguf_key(hf)[0] not in listed for hf, n in found.items())
            or (any(sections(arch, keys)) and SECTIONS not in family.hparams)
            or any(keys.get(f"{arch}.{key}", value) != value for key, value in fixed.items())
        )

    rows = [f for f in FAMILIES if f.gguf_arch == arch and all(map(marked, f.marks)) and not contradicted(f)]
    return max(rows, key=lambda f: len(f.marks), default=stand_in("", "", arch))


def _check_refused(name: str, names: Container[str]) -> None:
    """Raise Unsupported, with the reason, for one of these `names`, which are some of `REFUSED`."""
    if name in names:
        raise Unsupported(f"{name} {REFUSED[name]}", ONLY_ROPE)


def sections(arch: str, keys: Mapping[str, Any]) -> list[int]:
    """rope.dimension_sections of M-RoPE; empty where there is none, or its architecture's code makes nothing of them
    (llama_hparams::use_mrope). FormatError for what are no numbers."""
    given = keys.get(f"{arch}.rope.dimension_sections", []) if arch in ARCHS and ARCHS[arch].sections else []
    found = [whole_number(n, "rope.dimension_sections") for n in (given if isinstance(given, list) else [given] * 4)]
    if len(found) not in (0, 4):
        raise FormatError(f"{arch}.rope.dimension_sections has {len(found):,} numbers, not 4", "write the GGUF again")
    return found if any(found) else []


def architectures(family: Family) -> tuple[str, ...]:
    """The GGUF architectures that a family can be written as, its own first."""
    return tuple(f.gguf_arch for f in FAMILIES if (f.model_type, f.where) == (family.model_type, family.where))


def as_architecture(family: Family, arch: str) -> Family:
    """The row of the same family for another GGUF architecture. Unsupported if it cannot be written as that."""
    for row in FAMILIES:
        if (row.model_type, row.where, row.gguf_arch) == (family.model_type, family.where, arch):
            return row
    raise Unsupported(
        f"{family.model_type} cannot be written as the GGUF architecture {arch!r}", f"one of {', '.join(architectures(family))}"
    )


def stand_in(model_type: str, architecture: str, arch: str) -> Family:
    """A row without names: a checkpoint of an unlisted family can be extended in its own format only."""
    hf, gguf = MODEL_TYPES.get(model_type, ModelType(model_type)), ARCHS.get(arch, Arch(arch))
    may_lack = frozenset(STANDARD) - {"max_position_embeddings"}
    return Family(replace(hf, architectures=(architecture,)), gguf, {}, "", hparams=STANDARD, may_lack=may_lack, gguf_known=frozenset())


def known() -> str:
    return f"known model types: {', '.join(dict.fromkeys(f.model_type for f in FAMILIES))}"

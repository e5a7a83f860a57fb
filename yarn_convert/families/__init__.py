"""The table of model families, as data. To support a family is to add one row; nothing else has to change.

`schema` says what a row is; the rows lie in one module a kin. A model whose family has no row gets a stand-in: its RoPE
can still be read and its tensors copied, but none of them can be named.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

from ..errors import Unsupported
from .aliases import ALIASES, Alias
from .architectures import OTHER_ARCHS, Arch
from .derived import normalized
from .gemma import GEMMA2, GEMMA3
from .gpt_oss import GPT_OSS
from .llama import GRANITE, GRANITE_MOE, INTERNLM2, LLAMA, MISTRAL, MIXTRAL, SMOLLM3
from .mla import DEEPSEEK_V2, DEEPSEEK_V3
from .model_types import OTHER_TYPES, ModelType
from .neox import FALCON, GPT_NEOX, PHI3, STABLELM, STARCODER2
from .others import COHERE, COHERE2, GLM4, OLMO2
from .qwen import QWEN2, QWEN2_AS_LLAMA, QWEN2_MOE, QWEN3, QWEN3_MOE
from .schema import HPARAMS, Family

__all__ = [
    "ALIASES",
    "ARCHS",
    "FAMILIES",
    "LLAMA",
    "MISTRAL",
    "MODEL_TYPES",
    "Alias",
    "Arch",
    "Family",
    "ModelType",
    "architectures",
    "as_architecture",
    "for_config",
    "for_gguf",
    "normalized",
]

FAMILIES: tuple[Family, ...] = (
    LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN2_MOE, QWEN3_MOE, PHI3, GEMMA2, GEMMA3, GPT_NEOX, FALCON, STABLELM, OLMO2, INTERNLM2,
    STARCODER2, GRANITE, SMOLLM3, GLM4, COHERE, QWEN2_AS_LLAMA,
    GPT_OSS, DEEPSEEK_V2, DEEPSEEK_V3, COHERE2, GRANITE_MOE,
)  # fmt: skip
# What is known of each model_type that readers are modelled for, and of each GGUF architecture, converted or not
MODEL_TYPES: Mapping[str, ModelType] = {row.name: row for row in (*(f.hf for f in FAMILIES if not f.hf.run_as), *OTHER_TYPES)}
ARCHS: Mapping[str, Arch] = {row.name: row for row in (*(f.gguf for f in FAMILIES), *OTHER_ARCHS)}

NO_ROPE = {
    "gpt2": "learned positions", "bert": "learned positions", "roberta": "learned positions", "opt": "learned positions",
    "gpt_bigcode": "learned positions", "t5": "relative position buckets", "bloom": "ALiBi", "mpt": "ALiBi", "mamba": "no positions",
    "rwkv": "no positions",
}  # fmt: skip
ONLY_ROPE = "only models with rotary embeddings can be extended"
STANDARD = {k: v for k, v in HPARAMS.items() if k != "rms_norm_eps"}  # GGUF's docs/gguf.md, "[llm]"


def for_config(config: Mapping[str, Any]) -> Family:
    """The row of a config.json, or a stand-in. Unsupported for a model without RoPE or that is no language model."""
    model_type = config.get("model_type")
    if model_type is None:
        raise Unsupported("config.json has no model_type", known())
    _check_rope(model_type)
    architectures = config.get("architectures")  # absent or null in some old checkpoints
    first = architectures[0] if architectures else None
    for family in FAMILIES:
        if family.model_type == model_type:
            if architectures is not None and first not in family.hf.architectures:
                raise Unsupported(f"architectures {architectures!r} is not a {model_type} language model", known())
            return family
    if first is not None and first.endswith("ForCausalLM"):
        return stand_in(model_type, first, "")
    raise Unsupported(f"unknown model_type {model_type!r}", known())


def for_gguf(arch: str, keys: Mapping[str, Any], tensors: Container[str]) -> Family:
    """The row of a GGUF architecture, or a stand-in. Of rows that share it, and whose `constants` it has, the first
    with the most `marks`. A row describes layers that are all alike: for others it is the stand-in."""
    _check_rope(arch)

    def marked(mark: str) -> bool:
        name = mark.removeprefix("!")
        return (f"{arch}.{name}" in keys or name in tensors) != mark.startswith("!")

    def contradicted(family: Family) -> bool:
        found = [keys.get(family.gguf_key(hf)[0]) for hf in family.hparams]
        fixed = {key: value for key, (_, value) in family.constants.items() if key not in family.gguf_known}
        return any(isinstance(n, list) for n in found) or any(keys.get(f"{arch}.{key}", value) != value for key, value in fixed.items())

    rows = [f for f in FAMILIES if f.gguf_arch == arch and all(map(marked, f.marks)) and not contradicted(f)]
    return max(rows, key=lambda f: len(f.marks), default=stand_in("", "", arch))


def architectures(family: Family) -> tuple[str, ...]:
    """The GGUF architectures that a family can be written as, its own first."""
    return tuple(f.gguf_arch for f in FAMILIES if f.model_type == family.model_type)


def as_architecture(family: Family, arch: str) -> Family:
    """The row of the same family for another GGUF architecture. Unsupported if it cannot be written as that."""
    for row in FAMILIES:
        if row.model_type == family.model_type and row.gguf_arch == arch:
            return row
    raise Unsupported(
        f"{family.model_type} cannot be written as the GGUF architecture {arch!r}", f"one of {', '.join(architectures(family))}"
    )


def stand_in(model_type: str, architecture: str, arch: str) -> Family:
    """A row without names: a checkpoint of an unlisted family can be extended in its own format only."""
    hf, gguf = MODEL_TYPES.get(model_type, ModelType(model_type)), ARCHS.get(arch, Arch(arch))
    may_lack = frozenset(STANDARD) - {"max_position_embeddings"}
    return Family(replace(hf, architectures=(architecture,)), gguf, {}, "", hparams=STANDARD, may_lack=may_lack, gguf_known=frozenset())


def _check_rope(name: str) -> None:
    if name in NO_ROPE:
        raise Unsupported(f"{name} has {NO_ROPE[name]}, not RoPE: there is nothing to extend", ONLY_ROPE)


def known() -> str:
    return f"known model types: {', '.join(dict.fromkeys(f.model_type for f in FAMILIES))}"

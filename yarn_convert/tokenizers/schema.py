"""Owns the types of the tokenizer files' members: each file is decoded once, when it is read, and is refused by the name of the
member that has another. Values beside their types are judged where they are used. Sources: the `tokenizers` library's serialization,
transformers' tokenization_utils_base.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET, Struct, UnsetType


class Added(Struct):
    """A token beside the model's vocabulary, with what is done with the text around it."""

    id: int | None = None
    content: str | None = None
    special: bool | None = None
    normalized: bool | None = None
    lstrip: bool | None = None
    rstrip: bool | None = None
    single_word: bool | None = None


class Identified(Struct):
    id: str | UnsetType = UNSET


class TemplatePiece(Struct):
    """A place in a template."""

    SpecialToken: Identified | UnsetType = UNSET
    Sequence: Identified | UnsetType = UNSET


class Step(Struct):
    """A normalizer, pre-tokenizer, post-processor or decoder, or a sequence of them."""

    type: str | None = None
    normalizers: list[Step] | None = None
    pretokenizers: list[Step] | None = None
    processors: list[Step] | UnsetType = UNSET
    decoders: list[Step] | None = None
    pattern: dict[str, str] | None = None
    single: list[TemplatePiece] | None = None
    pair: list[TemplatePiece] | None = None
    prepend_scheme: str | None = None


class TokenizerModel(Struct):
    type: str | UnsetType = UNSET
    vocab: dict[str, int] | list[Any] | None = None
    merges: list[str | list[str]] | None = None
    byte_fallback: bool | None = None


class Tokenizer(Struct):
    """tokenizer.json"""

    model: TokenizerModel | None = None
    added_tokens: list[Added] | None = None
    normalizer: Step | None = None
    pre_tokenizer: Step | None = None
    post_processor: Step | None = None
    decoder: Step | None = None


class Template(Struct):
    name: str = ""
    template: str | None = None


class TokenizerConfig(Struct):
    """tokenizer_config.json"""

    added_tokens_decoder: dict[str, Added] | UnsetType = UNSET
    additional_special_tokens: list[str | Added] | None = None
    extra_special_tokens: list[str | Added] | dict[str, str | Added] | None = None
    chat_template: str | list[Template] | None = None
    model_max_length: float | None = None
    bos_token: str | Added | None = None
    eos_token: str | Added | None = None
    unk_token: str | Added | None = None
    sep_token: str | Added | None = None
    pad_token: str | Added | None = None
    cls_token: str | Added | None = None
    mask_token: str | Added | None = None


class Templates(Struct):
    """chat_template.json"""

    chat_template: str | list[Template] | None = None


FILES: Mapping[str, Any] = {
    "tokenizer.json": Tokenizer,
    "tokenizer_config.json": TokenizerConfig,
    "special_tokens_map.json": TokenizerConfig,
    "added_tokens.json": dict[str, int],
    "chat_template.json": Templates,
}

"""Owns what both directions share: a vocabulary, the names of its GGUF keys and token types, and the checks that a value
read from a tokenizer file or a GGUF passes before it is believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..formats.decoding import decoded as decoded_as
from ..formats.decoding import parse
from ..formats.files import exists, read
from .schema import FILES

AGAIN = "fetch the tokenizer files again"
GgufValue = tuple[str, object]  # (type, data): "str" "u32" "bool" "str[]" "f32[]" "i32[]"
Json = dict[str, Any]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.h, enum llama_token_type
TYPES = {1: "normal", 2: "unknown", 3: "control", 4: "user defined", 5: "unused", 6: "byte"}
ADDED_SCORE, PAD_SCORE = -1000.0, -10000.0  # conversion/base.py, _create_vocab_sentencepiece
SPECIAL_KEYS = {  # HF name -> GGUF key; the misspelling is the format's
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
}
SPECIAL_TYPES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
ADD_KEYS = {name: f"tokenizer.ggml.add_{name}_token" for name in ("bos", "eos", "sep")}
TEMPLATE = "tokenizer.chat_template"


class Vocabulary(NamedTuple):
    """tokens str[V], types int[V], and scores float32[V] for the `llama` kind only."""

    tokens: list[str]
    types: list[int]
    scores: Sequence[float] = ()

    def is_pad(self, index: int) -> bool:
        """Whether a token only fills the vocabulary up; converters have given such tokens several types."""
        return self.types[index] != NORMAL and self.tokens[index] == f"[PAD{index}]"


class Files(NamedTuple):
    """The parsed tokenizer files; an empty dict where a file is missing."""

    folder: Path
    tokenizer: Json
    settings: Json  # tokenizer_config.json


def bad(message: str, hint: str = "the tokenizer files do not belong together; fetch them again") -> InputError:
    return InputError(message, hint)


def as_object(value: Any, what: str) -> Json:
    if not isinstance(value, dict):
        raise bad(f"{what} is {type(value).__name__}, not an object")
    return value


def as_list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise bad(f"{what} is {type(value).__name__}, not a list")
    return value


def as_id(value: Any, size: int, what: str) -> int:
    """`value` as a token id in 0 … size-1; InputError if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad(f"{what} has the id {value!r}, which is not an integer")
    if not 0 <= value < size:
        raise bad(f"{what} has the id {value}, but the model has {size} tokens", "remove it or resize the embeddings")
    return value


def as_flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise bad(f"{what} is {value!r}, not true or false")
    return value


def load(path: Path) -> Json:
    """A JSON object from a file of `schema.FILES`, {} if there is no file; InputError if it is not UTF-8, not JSON, or of another form."""
    if not exists(path.parent, path.name):
        return {}
    try:
        value = parse(read(path.parent, path.name), strict=False)
    except ValueError as error:
        raise bad(f"{path.name} cannot be read: {error}", AGAIN) from None
    decoded_as(value, FILES[path.name], path.name, AGAIN)
    return dict(value)


def files_of(folder: Path) -> Files:
    """The tokenizer files of an HF folder, read; InputError as `load`."""
    return Files(folder, load(folder / "tokenizer.json"), load(folder / "tokenizer_config.json"))


def check_text(tokens: Sequence[str]) -> None:
    """InputError unless the tokens are distinct, not empty and can be written as UTF-8."""
    seen: set[str] = set()
    for token in tokens:
        if token in seen:
            raise bad(f"token {token!r} is in the vocabulary twice", "llama.cpp refuses such a vocabulary")
        seen.add(token)
    if "" in tokens:
        raise bad(f"token {tokens.index('')} is empty")
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError as error:
        raise bad(f"a token is not valid Unicode: {error.reason}") from None


def merge_pairs(merges: Sequence[Any], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Merges of either spelling ("a b" or ["a", "b"]) as pairs; InputError if one names a token that is not there."""
    pairs = []
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise bad(f"merge {merge!r} is not a pair of tokens")
        for token in (*parts, "".join(parts)):
            if token not in vocab:
                raise bad(f"merge {merge!r} names {token!r}, which is not in the vocabulary")
        pairs.append((parts[0], parts[1]))
    return pairs


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of GPT-2's byte level: printable Latin-1 stands for itself, the rest begins at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


BYTE_ALPHABET = _byte_alphabet()


def byte_decoded(token: str) -> str:
    """What the byte-level decoder makes of a token; text outside its alphabet stays as it is."""
    if any(character not in BYTE_ALPHABET for character in token):
        return token
    return bytes(BYTE_ALPHABET[character] for character in token).decode("utf-8", errors="replace")


def looks_special(token: str) -> bool:
    """Tokens that models forget to mark as special; conversion/base.py, does_token_look_special."""
    pairs = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    known = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
    return token in known or any(token.startswith(left) and token.endswith(right) for left, right in pairs)

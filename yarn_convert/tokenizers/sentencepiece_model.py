"""Owns tokenizer.model: SentencePiece's protobuf messages, as far as a BPE vocabulary needs them, read and written.

sentencepiece_model.proto: ModelProto { 1 pieces, 2 trainer_spec, 3 normalizer_spec } and
SentencePiece { 1 piece, 2 score, 3 type }, with the same type numbers as GGUF's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import Unsupported
from .vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, Vocabulary, bad


def unknown_id(vocabulary: Vocabulary, ids: Mapping[str, int]) -> int:
    """The token for what cannot be spelled: by type, else by key, else by its usual text, else 0."""
    for index, of in enumerate(vocabulary.types):
        if of == UNKNOWN and not vocabulary.is_pad(index):
            return index
    return ids.get("unk", vocabulary.tokens.index("<unk>") if "<unk>" in vocabulary.tokens else 0)


def has_bytes(vocabulary: Vocabulary) -> bool:
    """Whether all 256 byte tokens are there; InputError if only some are."""
    found = {text for text, of in zip(vocabulary.tokens, vocabulary.types, strict=True) if of == BYTE}
    if found and found != {f"<0x{byte:02X}>" for byte in range(256)}:
        raise bad(f"the vocabulary has {len(found)} byte tokens that are not <0x00> to <0xFF>", "the GGUF is damaged")
    return bool(found)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: int, float32 or bytes; ValueError if it is not one."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise ValueError("cut short")
            value |= (data[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 0x80:
                return value

    while at < len(data):
        tag = varint()
        wire = tag & 7
        if wire == 0:
            yield tag >> 3, varint()
            continue
        length = {1: 8, 5: 4}.get(wire) if wire != 2 else varint()
        if length is None or tag >> 3 == 0 or length > len(data) - at:
            raise ValueError("not a protobuf message")
        value = data[at : at + length]
        at += length
        yield tag >> 3, struct.unpack("<f", value)[0] if wire == 5 else value


class SentencePieceModel(NamedTuple):
    """(text, score, type) of every piece, and whether a space goes before the text (NormalizerSpec.add_dummy_prefix)."""

    pieces: list[tuple[str, float, int]]
    prefix: bool


def read_sentencepiece(data: bytes) -> SentencePieceModel:
    """A tokenizer.model; InputError if it is not a SentencePiece model, Unsupported if it is not a BPE."""
    pieces: list[tuple[str, float, int]] = []
    algorithm = 1  # TrainerSpec.model_type: 1 unigram (the default), 2 BPE
    prefix = True
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(value))
                pieces.append((piece[1].decode(), float(piece.get(2, 0.0)), int(piece.get(3, NORMAL))))
            elif number == 2:
                algorithm = dict(_fields(value)).get(3, 1)
            elif number == 3:
                prefix = bool(dict(_fields(value)).get(3, 1))
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError):
        pieces = []
    if not pieces:
        raise bad(
            "tokenizer.model is not a SentencePiece model",
            "fetch it again; where tokenizer.json describes the tokenizer, as in Llama 3, remove tokenizer.model",
        )
    if algorithm != 2:
        raise Unsupported("tokenizer.model is not a BPE model", "llama.cpp reads it as BPE and would split text otherwise")
    if not all(abs(score) < 3e38 for _, score, _ in pieces):
        raise bad("tokenizer.model has a score that is not a finite number")
    return SentencePieceModel(pieces, prefix)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: float | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def write_model(vocabulary: Vocabulary, ids: Mapping[str, int], prefix: bool) -> bytes:
    """tokenizer.model: the pieces up to the padding, with exactly one UNKNOWN, which SentencePiece insists on."""
    size = len(vocabulary.tokens)
    while size > 1 and vocabulary.is_pad(size - 1):
        size -= 1
    unknown = unknown_id(vocabulary, ids)
    out = bytearray()
    for index in range(size):
        of = vocabulary.types[index]
        if index == unknown or of == UNKNOWN:
            of = UNKNOWN if index == unknown else UNUSED if vocabulary.is_pad(index) else CONTROL
        score = float(vocabulary.scores[index])
        out += field(1, field(1, vocabulary.tokens[index].encode()) + field(2, score) + field(3, of))
    trainer = field(3, 2) + field(4, size) + field(35, int(has_bytes(vocabulary))) + field(40, unknown)
    trainer += field(45, vocabulary.tokens[unknown].encode())
    for name, number in (("bos", 41), ("eos", 42), ("pad", 43)):
        if name in ids:  # 46 … 48: the text, by which SentencePiece looks the id up
            trainer += field(number, ids[name]) + field(number + 5, vocabulary.tokens[ids[name]].encode())
    normalizer = field(1, b"identity") + field(3, int(prefix)) + field(4, 0) + field(5, 1)
    return bytes(out) + field(2, trainer) + field(3, normalizer)

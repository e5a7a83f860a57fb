"""GGUF files: a header read lazily and written exactly.

A field keeps the bytes it came with, so a header that is read and written again is the same but for what was changed,
and a vocabulary of 150,000 strings costs a walk over lengths, not a decode.
Format: ggml's docs/gguf.md and `gguf.cpp`: magic, version, two counts, fields, tensor infos, then the data at
`general.alignment`. Tensors are written without gaps, as `gguf_init_from_file` demands.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import FormatError, Unsupported
from .files import open_regular
from .tensors import Tensor

SCALARS = {  # GGUF value type -> (our name, struct code); docs/gguf.md, gguf_metadata_value_type
    0: ("u8", "B"), 1: ("i8", "b"), 2: ("u16", "H"), 3: ("i16", "h"), 4: ("u32", "I"), 5: ("i32", "i"), 6: ("f32", "f"),
    7: ("bool", "?"), 10: ("u64", "Q"), 11: ("i64", "q"), 12: ("f64", "d"),
}  # fmt: skip
STRING, ARRAY = 8, 9
MAGIC = b"GGUF"
CODES = {name: (number, code) for number, (name, code) in SCALARS.items()} | {"str": (STRING, "")}
DEFAULT_ALIGNMENT = 32
# What a header may ask for: each far above any model's, and together less than 1 GB of memory.
MAX_TENSORS = 1 << 18  # the largest mixture of experts has 1,100 in its GGUF, and 140,000 in safetensors
MAX_FIELDS = 1 << 16  # models have 30 to 60
MAX_NAME = 1 << 16  # bytes of a field's or tensor's name; docs/gguf.md allows 65,535 and 64
MAX_ITEMS = 1 << 23  # of all arrays, 20 to 60 bytes each once they are decoded; a vocabulary of 262,144 with its merges has 1.3 million
MAX_HEADER = 1 << 28  # bytes; a vocabulary of 262,144 tokens takes 15 MB
HINT = "download or write it again"


class Value(NamedTuple):
    """A typed value to write: `type` is a scalar's name, "str", or either with "[]" for an array."""

    type: str
    data: Any


@dataclass(frozen=True, slots=True)
class Field:
    """A field as it stands in a file: `raw` is its type and value, byte for byte."""

    raw: bytes

    @property
    def type(self) -> str:
        number = struct.unpack_from("<I", self.raw)[0]
        if number == ARRAY:
            return _name(struct.unpack_from("<I", self.raw, 4)[0]) + "[]"
        return _name(number)

    @property
    def value(self) -> Any:
        """A Python scalar, string, or list of them. Bytes that are not UTF-8 survive as surrogate escapes."""
        number, start = struct.unpack_from("<I", self.raw)[0], 4
        if number != ARRAY:
            return _decode(self.raw, start, number)[0]
        inner, count = struct.unpack_from("<IQ", self.raw, 4)
        if inner in SCALARS:
            return list(struct.unpack_from(f"<{count}{SCALARS[inner][1]}", self.raw, 16))
        strings, offset = [], 16
        for _ in range(count):
            text, offset = _decode(self.raw, offset, STRING)
            strings.append(text)
        return strings


@dataclass(frozen=True, slots=True)
class Gguf:
    """A parsed header. `tensors` are in file order; `data_start` is the byte where their data begins.

    `parts` are the headers of a split model's files (`split.read_model`), whose joined header this is; none for one file.
    """

    path: Path
    version: int
    alignment: int
    fields: Mapping[str, Field]
    tensors: Mapping[str, Tensor]
    data_start: int
    size: int
    parts: tuple[Gguf, ...] = ()

    def get(self, key: str, default: Any = None) -> Any:
        return self.fields[key].value if key in self.fields else default

    @property
    def vocabulary(self) -> dict[str, Any]:
        """The tokenizer's keys, and the name by which llama.cpp knows the habits of one tokenizer (`tokenizers.caveats`)."""
        return {k: f.value for k, f in self.fields.items() if k.startswith("tokenizer.") or k == "general.name"}

    @property
    def arch(self) -> str:
        return str(self.get("general.architecture", ""))


@cache
def block_sizes() -> dict[int, tuple[str, int, int]]:
    """ggml type number -> (name, elements a block, bytes a block), from the gguf package."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(t): (t.name, *size) for t, size in GGML_QUANT_SIZES.items()}


@cache
def type_numbers() -> dict[str, int]:
    return {name: number for number, (name, _, _) in block_sizes().items()}


def nbytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of ggml type `dtype`; Unsupported when a row is not a whole number of blocks."""
    _, per_block, block_bytes = block_sizes()[type_numbers()[dtype]]
    row = shape[-1] if shape else 1
    if row % per_block:
        raise Unsupported(f"a row of {row} elements is not a whole number of {dtype} blocks of {per_block}", "--outtype f16")
    n = 1
    for d in shape:
        n *= d
    return n // per_block * block_bytes


# -- reading ----------------------------------------------------------------------------------------------------------


class _Cursor:
    """Reads forward through a header; any step past the end of the file is a FormatError."""

    def __init__(self, path: Path, buffer: Any, size: int) -> None:
        self.path, self.buffer, self.size, self.at = path, buffer, size, 0
        self.items = 0  # of the arrays so far

    def take(self, fmt: str, what: str) -> tuple[Any, ...]:
        size = struct.calcsize(fmt)
        if self.at + size > self.size:
            raise self.bad(f"it ends inside {what}")
        values = struct.unpack_from(fmt, self.buffer, self.at)
        self.at += size
        return values

    def skip(self, size: int, what: str) -> None:
        if size > self.size - self.at:
            raise self.bad(f"{what} claims {size:,} bytes, {self.size - self.at:,} are left")
        if self.at + size > MAX_HEADER:
            raise self.bad(f"with {what} its header has more than {MAX_HEADER:,} bytes")
        self.at += size

    def count(self, items: int, what: str) -> None:
        """Arrays cost many times their bytes once they are decoded."""
        self.items += items
        if self.items > MAX_ITEMS:
            raise self.bad(f"{what} claims {items:,} items: of all arrays together at most {MAX_ITEMS:,} are read")

    def name(self, what: str) -> str:
        (length,) = self.take("<Q", what)
        if length > MAX_NAME:
            raise self.bad(f"{what} claims {length:,} bytes, at most {MAX_NAME:,} are read")
        self.at -= 8
        return self.string(what)

    def string(self, what: str) -> str:
        (length,) = self.take("<Q", what)
        start = self.at
        self.skip(length, what)
        return bytes(self.buffer[start : self.at]).decode("utf-8", "surrogateescape")

    def skip_strings(self, count: int, what: str) -> None:
        unpack, buffer, at, limit = struct.Struct("<Q").unpack_from, self.buffer, self.at, self.size - 8
        for _ in range(count):
            if at > limit:
                raise self.bad(f"it ends inside {what}")
            at += 8 + unpack(buffer, at)[0]
        self.at = at
        self.skip(0, what)
        if at > self.size:
            raise self.bad(f"a string of {what} runs past the end of the file")

    def bad(self, what: str) -> FormatError:
        return FormatError(f"{self.path.name} is not a sound GGUF file: {what}", HINT)


def journal_path(path: Path) -> Path:
    """Where an edit of `path` in place keeps what it is about to write (`targets.in_place`)."""
    return path.with_name(f".{path.name}.in-place")


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file: by its name, or by its first bytes, as Ollama's blobs have no suffix."""
    if path.suffix == ".gguf":
        return True
    try:
        if not path.is_file():
            return False
        with open_regular(path) as f:
            return f.read(len(MAGIC)) == MAGIC
    except (OSError, FormatError):
        return False


def open_gguf(path: Path) -> Gguf:
    """Parse a GGUF header (version 2 or 3, little-endian). Raises FormatError for anything that does not add up."""
    with open_regular(path) as f:
        size = os.fstat(f.fileno()).st_size
        if size < 24:
            raise FormatError(f"{path.name} is not a sound GGUF file: it has only {size} bytes", HINT)
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            return _parse(_Cursor(path, buffer, size))


def _parse(c: _Cursor) -> Gguf:
    if c.take("<4s", "the magic")[0] != MAGIC:
        if journal_path(c.path).exists():
            raise FormatError(f"an --in-place edit of {c.path.name} was interrupted", "run it again: it finishes first what was begun")
        raise c.bad("it does not start with the magic GGUF")
    (version,) = c.take("<I", "the version")
    if version not in (2, 3):
        kind = "big-endian" if version in (2 << 24, 3 << 24) else f"version {version}"
        raise Unsupported(f"{c.path.name} is a {kind} GGUF; versions 2 and 3, little-endian, are read", HINT)
    n_tensors, n_fields = c.take("<QQ", "the counts")
    if n_fields > c.size // 13 or n_tensors > c.size // 24:
        raise c.bad(f"it claims {n_fields:,} fields and {n_tensors:,} tensors in {c.size:,} bytes")
    if n_fields > MAX_FIELDS or n_tensors > MAX_TENSORS:
        raise c.bad(f"it has {n_fields:,} fields and {n_tensors:,} tensors, at most {MAX_FIELDS:,} and {MAX_TENSORS:,} are read")
    fields: dict[str, Field] = {}
    for _ in range(n_fields):
        key = c.name("a field's name")
        if key in fields:
            raise c.bad(f"the field {key!r} is there twice")
        fields[key] = _field(c, key)
    infos = [_info(c) for _ in range(n_tensors)]
    alignment = fields["general.alignment"].value if "general.alignment" in fields else DEFAULT_ALIGNMENT
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise c.bad(f"general.alignment is {alignment!r}, not a power of two from 8 to 1 MiB")
    data_start = c.at + -c.at % alignment
    tensors = _tensors(c, infos, data_start, alignment)
    return Gguf(c.path, version, alignment, fields, tensors, data_start, c.size)


def _field(c: _Cursor, key: str) -> Field:
    start, what = c.at, f"the field {key!r}"
    (number,) = c.take("<I", what)
    if number in SCALARS:
        c.skip(struct.calcsize(SCALARS[number][1]), what)
    elif number == STRING:
        c.skip(c.take("<Q", what)[0], what)
    elif number == ARRAY:
        inner, count = c.take("<IQ", what)
        c.count(count, what)
        if inner in SCALARS:
            c.skip(struct.calcsize(SCALARS[inner][1]) * count, what)
        elif inner == STRING:
            c.skip_strings(count, what)
        else:
            raise c.bad(f"{what} is an array of the unknown type {inner}")
    else:
        raise c.bad(f"{what} has the unknown type {number}")
    return Field(bytes(c.buffer[start : c.at]))


def _info(c: _Cursor) -> tuple[str, int, tuple[int, ...], int]:
    name = c.name("a tensor's name")
    (n_dims,) = c.take("<I", f"tensor {name!r}")
    if n_dims > 4:
        raise c.bad(f"tensor {name!r} claims {n_dims} dimensions")
    dims = c.take(f"<{n_dims}Q", f"tensor {name!r}")
    number, offset = c.take("<IQ", f"tensor {name!r}")
    if number not in block_sizes():
        raise Unsupported(f"{c.path.name}: tensor {name!r} has the unknown ggml type {number}", "a newer gguf package may know it")
    return name, number, tuple(reversed(dims)), offset


def _tensors(c: _Cursor, infos: list[Any], data_start: int, alignment: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, number, shape, offset in infos:
        dtype, per_block, _ = block_sizes()[number]
        if any(d == 0 or d >= 2**62 for d in shape) or (shape and shape[-1] % per_block):
            raise c.bad(f"tensor {name!r} has the impossible shape {list(shape)} for {dtype}")
        if name in tensors:
            raise c.bad(f"the tensor {name!r} is there twice")
        nbytes = nbytes_of(dtype, shape)
        if offset % alignment or data_start + offset + nbytes > c.size:
            raise c.bad(f"tensor {name!r} at {offset:,} with {nbytes:,} bytes does not fit the file")
        tensors[name] = Tensor(name, dtype, shape, nbytes, c.path, data_start + offset)
    end = data_start
    for t in sorted(tensors.values(), key=lambda t: t.offset):
        if t.offset < end:
            raise c.bad(f"tensor {t.name!r} overlaps the one before it")
        end = t.offset + t.nbytes
    return tensors


def _name(number: int) -> str:
    return "str" if number == STRING else SCALARS[number][0]


def _decode(raw: bytes, at: int, number: int) -> tuple[Any, int]:
    if number == STRING:
        (length,) = struct.unpack_from("<Q", raw, at)
        return raw[at + 8 : at + 8 + length].decode("utf-8", "surrogateescape"), at + 8 + length
    code = "<" + SCALARS[number][1]
    return struct.unpack_from(code, raw, at)[0], at + struct.calcsize(code)


# -- writing ----------------------------------------------------------------------------------------------------------


def encode(value: Value | Field) -> bytes:
    """Type and value as they stand in a file. Raises Unsupported for a value that its type cannot hold."""
    if isinstance(value, Field):
        return value.raw
    base, is_array = value.type.removesuffix("[]"), value.type.endswith("[]")
    number, code = CODES[base]
    try:
        if not is_array:
            body = _string(value.data) if number == STRING else struct.pack("<" + code, value.data)
            return struct.pack("<I", number) + body
        items = b"".join(map(_string, value.data)) if number == STRING else struct.pack(f"<{len(value.data)}{code}", *value.data)
        return struct.pack("<IIQ", ARRAY, number, len(value.data)) + items
    except (struct.error, OverflowError):
        raise Unsupported(f"{value.data!r} does not fit the GGUF type {value.type}", "choose a value of a usual size") from None


def _string(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def encode_header(fields: Mapping[str, Value | Field], tensors: Iterable[Tensor], alignment: int) -> tuple[bytes, dict[str, int]]:
    """(header bytes padded to the data, offset of each tensor in the file), version 3.

    Tensors get their offsets in the order given, each padded to `alignment`; their own path and offset do not matter.
    """
    tensors = list(tensors)
    parts = [struct.pack("<4sIQQ", MAGIC, 3, len(tensors), len(fields))]
    parts += [_string(key) + encode(value) for key, value in fields.items()]
    offsets, position = {}, 0
    for t in tensors:
        dims = tuple(reversed(t.shape))
        parts.append(_string(t.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_numbers()[t.dtype], position))
        offsets[t.name] = position
        position += t.nbytes + -t.nbytes % alignment
    header = b"".join(parts)
    header += b"\0" * (-len(header) % alignment)
    return header, {name: len(header) + offset for name, offset in offsets.items()}


def shortest(value: Any) -> Any:
    """The shortest decimal of the float32 that a GGUF holds: 1e-05, not 9.999999747378752e-06; anything else as it is."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def f32(x: float) -> float:
    """The float64 value of `x` once it is stored as a float32."""
    return float(np.float32(x))

"""Split GGUFs: `NAME-00001-of-0000N.gguf` and its siblings, read as one checkpoint.

The first part holds the fields; each holds some of the tensors, and `split.no`. Names: llama.cpp's src/llama.cpp,
`llama_split_path`. Which keys are read: src/llama-model-loader.cpp, `llama_model_loader`: of the first part `split.count` and
`split.tensors.count`, of the others `split.no` alone, as gguf-split's --merge does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from ..errors import FormatError, InputError, many
from .gguf_file import HINT, Gguf, Value, open_gguf
from .tensors import Tensor

NO, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
PREFIX = "split."
SUFFIX = re.compile(r"-(\d{5})-of-(\d{5})$")  # of a part's stem
MAX_PARTS = 65535  # split.count is a u16
BELONG = "the parts do not belong together: get them all again"


def part_name(stem: str, no: int, count: int) -> str:
    """The file name of part `no`, counted from 0."""
    return f"{stem}-{no + 1:05d}-of-{count:05d}.gguf"


def stem_of(path: PurePath) -> str:
    """The name that all parts share, or the stem of any other file."""
    return SUFFIX.sub("", path.stem) or path.stem


def split_fields(no: int, count: int, tensors: int) -> dict[str, Value]:
    """The keys of one part; llama.cpp refuses other types (tools/gguf-split/gguf-split.cpp, `split_strategy`)."""
    return {NO: Value("u16", no), COUNT: Value("u16", count), TENSORS: Value("i32", tensors)}


def read_model(path: Path) -> Gguf:
    """The header of a GGUF, whole or split; of a split one `path` is the first part.

    A split one has the first part's fields without `split.*` and the tensors of all, each with its own path and offset; `parts`
    are the headers as they stand. Raises InputError for a part that is missing or not the first, FormatError for parts that
    contradict each other.
    """
    first = open_gguf(path)
    count = _number(first, COUNT, 0)
    if count < 2:
        return first
    no, stem = _number(first, NO), stem_of(path)
    if no:
        raise InputError(f"{path.name} is part {no + 1} of {count} of a split GGUF", f"give the first: {part_name(stem, 0, count)}")
    if path.name != part_name(stem, 0, count):
        raise InputError(
            f"{path.name} is the first of {count} parts and is not named so: the others cannot be found",
            f"readers want {part_name(stem, 0, count)}, and the others beside it",
        )
    parts = [first, *_others(path, stem, count)]
    tensors: dict[str, Tensor] = {}
    for part in parts:
        if twice := tensors.keys() & part.tensors.keys():
            raise FormatError(f"the tensor {min(twice)!r} is in two parts, one of them {part.path.name}", BELONG)
        tensors |= part.tensors
    if (claimed := _number(first, TENSORS)) != len(tensors):
        raise FormatError(f"{path.name} says that all parts hold {many(claimed, 'tensor')}, they hold {len(tensors):,}", BELONG)
    fields = {k: f for k, f in first.fields.items() if not k.startswith(PREFIX)}
    return replace(first, fields=fields, tensors=tensors, parts=tuple(parts))


def _others(path: Path, stem: str, count: int) -> list[Gguf]:
    paths = [path.with_name(part_name(stem, i, count)) for i in range(1, count)]
    if missing := [p.name for p in paths if not p.is_file()]:
        more = f", first {missing[0]}" if len(missing) > 1 else f": {missing[0]}"
        raise InputError(f"{len(missing)} of the {count} parts of {stem} {'are' if len(missing) > 1 else 'is'} missing{more}", HINT)
    parts = [open_gguf(p) for p in paths]
    for no, part in enumerate(parts, 1):
        if (found := _number(part, NO)) != no:
            raise FormatError(f"{part.path.name} says that it is part {found + 1}", BELONG)
        if (found := _number(part, COUNT, count)) != count:
            raise FormatError(f"{part.path.name} says that there are {found} parts, the first says {count}", BELONG)
    return parts


def _number(part: Gguf, key: str, default: Any = None) -> int:
    value = part.get(key, default)
    if type(value) is not int or value < 0:
        what = "is missing" if value is None else f"is {value!r}"
        raise FormatError(f"{part.path.name} is not a sound part of a split GGUF: {key} {what}", HINT)
    return value


def first_part(gguf: Gguf) -> Gguf:
    """The file that an edit in place changes: the first part as it stands, or the whole."""
    return gguf.parts[0] if gguf.parts else gguf


def with_split(fields: Mapping[str, Any], count: int, tensors: int) -> dict[str, Any]:
    """The fields of the first part: the model's own, then the keys of the split."""
    return {k: v for k, v in fields.items() if not k.startswith(PREFIX)} | split_fields(0, count, tensors)

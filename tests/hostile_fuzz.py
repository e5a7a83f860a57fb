"""What the fuzzer of tests/test_hostile.py mutates and what it demands of a parse; `python tests/hostile_fuzz.py N` runs longer."""

from __future__ import annotations

import copy
import json
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from yarn_convert.errors import YarnConvertError
from yarn_convert.formats.gguf_file import Gguf, encode_header, open_gguf
from yarn_convert.formats.tensors import read_safetensors

LIES = (0, 1, 7, 2**16, 2**31, 2**32, 2**32 + 1, 2**60, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)


# -- sound files, from the formats' own libraries ---------------------------------------------------------------------


def safetensors_file() -> bytes:
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(5, np.float16), "c": np.zeros((2, 0), np.int8)}
    return save(tensors, metadata={"format": "pt", "x": "é"})


def gguf_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(2)
        writer.add_rope_freq_base(10000.0)
        writer.add_array("tokenizer.ggml.tokens", ["a", "bé", ""])
        writer.add_array("tokenizer.ggml.token_type", [1, 2, 3])
        writer.add_array("a.floats", [0.5, 1.5])
        writer.add_bool("a.bool", True)
        writer.add_uint64("a.u64", 2**64 - 1)
        writer.add_tensor("x", np.arange(6, dtype=np.float32).reshape(2, 3))
        writer.add_tensor("y", np.ones(32, np.float16))
        writer.add_tensor("q", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


# -- mutations --------------------------------------------------------------------------------------------------------


@st.composite
def mutated(draw: st.DrawFn, sound: bytes) -> bytes:
    """`sound` with up to four bytes flipped, cut out, put in, or overwritten by an integer that lies."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(("flip", "u64", "u32", "insert", "drop", "cut", "digit")))
        if kind == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif kind == "u64":
            lie = draw(st.sampled_from(LIES) | st.integers(0, len(data)))
            data[at : at + draw(st.sampled_from((0, 8)))] = struct.pack("<Q", lie)
        elif kind == "u32":
            data[at : at + 4] = struct.pack("<I", draw(st.sampled_from((0, 1, 8, 9, 13, 2**31, 2**32 - 1)) | st.integers(0, 64)))
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=9) | st.sampled_from((b'"', b"{", b"[", b"\\u0000", b"1e9", b"-", b"NaN", b",", b"true")))
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 16))]
        elif kind == "cut":
            del data[at:]
        elif digits := [i for i, b in enumerate(data) if 48 <= b <= 57]:
            data[digits[at % len(digits)]] = draw(st.integers(48, 57))
    return bytes(data)


@st.composite
def lying_safetensors(draw: st.DrawFn) -> bytes:
    """A header that is good JSON, with up to three of its values or keys replaced by something else."""
    number = st.sampled_from((*LIES, -1, 10**30, 0.0, 1.5, True))
    anything = st.one_of(number, st.none(), st.text(max_size=3), st.sampled_from(("F32", "BF16", [], {}, [[]], [1], {"a": "b"})))
    root: dict[str, Any] = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]},
    }
    for _ in range(draw(st.integers(1, 3))):
        node: Any = root
        key: Any = draw(st.sampled_from(sorted(node)))
        while isinstance(node[key], dict | list) and node[key] and draw(st.booleans()):
            node = node[key]
            key = draw(st.sampled_from(range(len(node)) if isinstance(node, list) else sorted(node)))
        node[key] = copy.deepcopy(draw(anything))
    text = json.dumps(root).encode()
    return struct.pack("<Q", len(text)) + text + bytes(draw(st.sampled_from((32, 32, 31, 33, 0))))


# -- the laws ---------------------------------------------------------------------------------------------------------

# What the safetensors library takes and we refuse, on purpose: a part of our message -> the reason.
STRICTER = {
    "duplicate key": "the library takes the last of two, other readers the first",
    "dimensions": "more than any tensor has",
    "unknown dtype": "types below a byte and complex ones: no model that we know has them",
}


def attempt(read: Callable[[Path], Any], path: Path) -> Any:
    """What `read` returns, or its error: one of ours, of one line and with a hint."""
    try:
        return read(path)
    except YarnConvertError as e:
        error = e
    assert error.hint
    assert error.message.isprintable()
    return error


def check_safetensors(data: bytes, path: Path) -> None:
    """A file is refused with our own error, or read to the same bytes as the safetensors library reads."""
    path.write_bytes(data)
    try:
        theirs = {name: (tuple(t["shape"]), bytes(t["data"])) for name, t in safetensors.deserialize(data)}
    except safetensors.SafetensorError:
        theirs = None
    read = attempt(read_safetensors, path)
    if isinstance(read, YarnConvertError):
        assert theirs is None or any(part in read.message for part in STRICTER), f"the library reads it: {read.message}"
        return
    ours, _ = read
    assert theirs is not None, "the library refuses it"
    assert {name: (t.shape, t.read().tobytes()) for name, t in ours.items()} == theirs


def check_gguf(data: bytes, path: Path) -> None:
    """A file is refused with our own error, or its values decode, its tensors lie inside it, and it is written back as it was."""
    path.write_bytes(data)
    read = attempt(open_gguf, path)
    if not isinstance(read, YarnConvertError):
        check_parsed(read, len(data))


def check_parsed(read: Gguf, size: int) -> None:
    for f in read.fields.values():
        assert f.type
        f.value  # noqa: B018 - decoding must not raise
    for t in read.tensors.values():
        assert read.data_start <= t.offset
        assert t.offset + t.nbytes <= size
        assert len(t.read()) == t.nbytes
    header, _ = encode_header(read.fields, read.tensors.values(), read.alignment)
    again = read.path.with_name("again.gguf")
    end = max((t.nbytes + -t.nbytes % read.alignment for t in read.tensors.values()), default=0)
    again.write_bytes(header)
    with again.open("r+b") as f:
        f.truncate(len(header) + sum(t.nbytes + -t.nbytes % read.alignment for t in read.tensors.values()) + end)
    back = open_gguf(again)
    assert dict(back.fields) == dict(read.fields)
    assert {n: (t.dtype, t.shape) for n, t in back.tensors.items()} == {n: (t.dtype, t.shape) for n, t in read.tensors.items()}


CASES = {"safetensors": (safetensors_file, check_safetensors), "gguf": (gguf_file, check_gguf)}


def fuzz(kind: str, examples: int, folder: Path) -> None:
    """Run `examples` mutations, and a quarter as many arbitrary files that start as the format does."""
    make, law = CASES[kind]
    sound = make()
    path = folder / f"fuzzed.{kind}"
    law(sound, path)
    quick = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))

    @quick
    @given(mutated(sound))
    def mutations(data: bytes) -> None:
        law(data, path)

    @settings(quick, max_examples=max(10, examples // 4))
    @given(st.sampled_from((b"", b"GGUF", b"GGUF\3\0\0\0", b"\x20\0\0\0\0\0\0\0{")), st.binary(max_size=200))
    def anything(start: bytes, rest: bytes) -> None:
        law(start + rest, path)

    @settings(quick, max_examples=max(10, examples // 2))
    @given(lying_safetensors())
    def lies(data: bytes) -> None:
        law(data, path)

    mutations()
    anything()
    if kind == "safetensors":
        lies()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for kind in CASES:
            fuzz(kind, int(sys.argv[1]), Path(name))
            print(kind, "ok")

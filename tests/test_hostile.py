"""Bad input: one line `error: …` and one `hint: …`, exit code 1, nothing written, at once and in little memory.

`tests/data/hostile/` holds what the fuzzer found; each file there must keep the law of its parser.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fuzz_parsers
import hostile_fuzz
import numpy as np
import pytest
from hostile_models import (
    ARCH,
    BOOL,
    F32,
    F64,
    HEAD_DIM,
    I32,
    I64,
    REMOVED,
    STR,
    U32,
    U64,
    array,
    field,
    gguf_bytes,
    gguf_model,
    hf_folder,
    hf_shards,
    info,
    string,
)  # fmt: skip

from yarn_convert.checkpoint.manifest import manifest_path
from yarn_convert.cli import entry as cli
from yarn_convert.conversion import prepare
from yarn_convert.errors import OutputError, YarnConvertError
from yarn_convert.formats import room
from yarn_convert.formats.gguf_file import encode_header, open_gguf
from yarn_convert.formats.tensors import read_safetensors
from yarn_convert.options import ConvertOptions, Recipe
from yarn_convert.targets import in_place

FOUND = Path(__file__).parent / "data" / "hostile"
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with a file's bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() and not p.is_symlink() else None for p in folder.rglob("*")}


def refused(args: list[Any], part: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command line in the current folder and hold it to the law of this file; its error and hint."""
    before, start = tree(Path()), time.monotonic()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in args])
    out, err = capsys.readouterr()
    lines = err.splitlines()
    if lines and lines[0].startswith("base "):  # what cannot be written is known after the plan is shown
        lines = lines[-2:]
    assert stop.value.code == 1, err
    assert out == ""
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"], err
    assert part in lines[0]
    assert len(lines[0]) < 1000
    assert tree(Path()) == before, "something was written"
    assert time.monotonic() - start < 5
    return "\n".join(lines)


def refused_everywhere(model: Path, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Both when a model is shown and when it is converted, the error is the same."""
    refused(["inspect", model], part, capsys)
    refused([model, "--scale", 4, "-o", "out.gguf" if model.suffix == ".gguf" else "out"], part, capsys)


# -- the two header parsers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", hostile_fuzz.CASES)
def test_a_mutated_header_is_refused_or_read_as_it_stands(kind: str, tmp_path: Path) -> None:
    hostile_fuzz.fuzz(kind, 500, tmp_path)


def test_no_mutated_file_of_a_model_is_a_traceback(tmp_path: Path) -> None:
    """A few of each kind; `python tests/fuzz_parsers.py 20000` runs longer."""
    pytest.importorskip("torch")
    for kind, (ends, _) in fuzz_parsers.fuzz(60, tmp_path, seed=1).items():
        assert set(ends) <= {"read", "refused"}, (kind, ends)


@pytest.mark.parametrize("path", sorted(p for p in FOUND.glob("*") if p.suffix[1:] in hostile_fuzz.CASES), ids=lambda p: p.name)
def test_what_the_fuzzer_found_keeps_the_law(path: Path, tmp_path: Path) -> None:
    kind = path.suffix[1:]
    hostile_fuzz.CASES[kind][1](path.read_bytes(), tmp_path / f"found.{kind}")


def header(entries: Any, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ONE = entry([1], 0, 4)
BAD_SAFETENSORS = [
    ("empty", b"", "too few"),
    ("length of 2^64-1", struct.pack("<Q", 2**64 - 1) + b"{}", "claims"),
    ("length of 2^63", struct.pack("<Q", 2**63) + b"{}", "claims"),
    ("length past the end", struct.pack("<Q", 3) + b"{}", "claims"),
    ("not JSON", header(b"{"), "not valid JSON"),
    ("nested deeply", header(b"[" * 200_000), "not valid JSON"),
    ("an endless number", header(b"1" * 5000), "not valid JSON"),
    ("not UTF-8", header(b'{"\xff":1}'), "not valid JSON"),
    ("a list", header([]), "not a JSON object"),
    ("a name twice", header(b'{"a":1,"a":1}'), "duplicate key"),
    ("metadata of numbers", header({"__metadata__": {"a": 1}}), "__metadata__"),
    ("metadata is empty text", header({"__metadata__": ""}), "__metadata__"),
    ("an entry is a number", header({"a": 1}), "malformed"),
    ("an unhashable dtype", header({"a": entry([1], 0, 4, [])}, b"\0" * 4), "malformed"),
    ("a shape that is text", header({"a": {**ONE, "shape": ""}}, b"\0" * 4), "malformed"),
    ("a float in the shape", header({"a": entry([1.0], 0, 4)}, b"\0" * 4), "malformed"),
    ("true in the shape", header({"a": entry([True], 0, 4)}, b"\0" * 4), "malformed"),
    ("a negative offset", header({"a": entry([1], -4, 0)}, b"\0" * 4), "malformed"),
    ("a shape of 2^62 · 2^62", header({"a": entry([2**62, 2**62], 0, 4)}, b"\0" * 4), "needs"),
    ("100,000 dimensions", header({"a": entry([2**62] * 100_000, 0, 0)}), "dimensions"),
    ("30,000 names and one twice", header(b"{" + b",".join(b'"t%d":0' % i for i in range(30_000)) + b',"t7":0}'), "duplicate key 't7'"),
    ("3,000,000 lists", header(b'{"a":[' + b"[]," * 3_000_000 + b"[]]}"), "objects and lists"),
    ("unknown dtype", header({"a": entry([1], 0, 4, "F4")}, b"\0" * 4), "dtype"),
    ("a gap", header({"a": entry([1], 4, 8)}, b"\0" * 8), "gap"),
    ("an overlap", header({"a": ONE, "b": ONE}, b"\0" * 4), "overlap"),
    ("bytes after the end", header({"a": ONE}, b"\0" * 5), "end at"),
    ("cut data", header({"a": ONE}, b"\0" * 3), "end at"),
]


@pytest.mark.parametrize(("data", "part"), [case[1:] for case in BAD_SAFETENSORS], ids=[case[0] for case in BAD_SAFETENSORS])
def test_a_lying_safetensors_header_is_refused(data: bytes, part: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(YarnConvertError, match=part) as e:
        read_safetensors(tmp_path / "m.safetensors")
    assert e.value.hint


A = string("a")
DATA = b"\0" * 64
ARCHITECTURE = string("general.architecture") + field(STR, ARCH)


def one_tensor(*dims: int, kind: int = 0, offset: int = 0) -> bytes:
    return gguf_bytes([], [info("t", dims, kind, offset)], DATA)


def aligned(value: bytes) -> bytes:
    return gguf_bytes([string("general.alignment") + value], [info("t", (4,), 0, 0)], DATA)


BAD_GGUF = [
    ("empty", b"", "0 bytes"),
    ("another magic", gguf_bytes([], [], DATA, magic=b"GGML"), "magic"),
    ("version 1", gguf_bytes([], [], DATA, version=1), "version 1"),
    ("version 4", gguf_bytes([], [], DATA, version=4), "version 4"),
    ("big-endian", gguf_bytes([], [], DATA, start=">4sIQQ"), "big-endian"),
    ("2^60 fields", gguf_bytes([], [], DATA, n_fields=2**60), "claims"),
    ("2^60 tensors", gguf_bytes([], [], DATA, n_tensors=2**60), "claims"),
    ("2^60 strings", gguf_bytes([A + struct.pack("<IIQ", 9, 8, 2**60)], [], DATA), "claims"),
    ("2^61 numbers", gguf_bytes([A + struct.pack("<IIQ", 9, 10, 2**61)], [], DATA), "claims"),
    ("a string of 2^63 bytes", gguf_bytes([A + struct.pack("<IQ", 8, 2**63)], [], DATA), "claims"),
    ("strings that run out", gguf_bytes([A + struct.pack("<IIQQ", 9, 8, 2, 2**64 - 1)], [], DATA), "a string|ends inside"),
    ("a name of 2^64-1 bytes", gguf_bytes([struct.pack("<Q", 2**64 - 1)], [], DATA), "claims"),
    ("a type that is unknown", gguf_bytes([A + struct.pack("<I", 13)], [], DATA), "unknown type 13"),
    ("10,000,000 bytes", gguf_bytes([A + struct.pack("<IIQ", 9, 0, 10**7) + bytes(10**7)], [], DATA), "of all arrays"),
    ("bytes in many arrays", gguf_bytes([string(f"{i}") + struct.pack("<IIQ", 9, 0, 10**6) + bytes(10**6) for i in range(9)], [], DATA), "of all arrays"),
    ("a name of 100,000 bytes", gguf_bytes([string("a" * 100_000) + field(U32, 1)], [], DATA), "claims 100,000 bytes"),
    ("100,000 fields", gguf_bytes([string(f"{i}") + field(U32, 1) for i in range(100_000)], [], DATA), "at most 65,536"),
    ("1,000,000 tensors", gguf_bytes([], [info("t", (4,), 0, 0)], bytes(24 * 10**6), n_tensors=10**6), "1,000,000 tensors"),
    ("an array of arrays", gguf_bytes([A + struct.pack("<IIQ", 9, 9, 1)], [], DATA), "unknown type 9"),
    ("a field twice", gguf_bytes([ARCHITECTURE] * 2, [], DATA), "twice"),
    ("a tensor twice", gguf_bytes([], [info("t", (4,), 0, 0), info("t", (4,), 0, 32)], DATA), "twice"),
    ("an overlap", gguf_bytes([], [info("t", (16,), 0, 0), info("u", (4,), 0, 32)], DATA), "overlaps"),
    ("an offset off the alignment", one_tensor(4, offset=8), "does not fit"),
    ("an offset of 2^64-32", one_tensor(4, offset=2**64 - 32), "does not fit"),
    ("a ggml type that is unknown", one_tensor(4, kind=4242), "unknown ggml type"),
    ("5 dimensions", one_tensor(1, 1, 1, 1, 1), "5 dimensions"),
    ("a dimension of 0", one_tensor(0), "impossible shape"),
    ("dimensions whose product is 2^248", one_tensor(2**61, 2**62 - 1, 2**62 - 1, 2**62 - 1), "does not fit"),
    ("half a Q8_0 block", one_tensor(16, kind=8), "impossible shape"),
    ("cut data", one_tensor(4)[:-60], "does not fit"),
    *((f"alignment {what}", aligned(value), "general.alignment") for what, value in {
        "0": field(U32, 0), "3": field(U32, 3), "2^31": field(U32, 2**31), "2^63": field(U64, 2**63), "negative": field(I32, -32),
        "text": field(STR, "32"), "list": array(U32, 32), "true": field(BOOL, True), "a float": field(F32, 32.0),
    }.items()),
]  # fmt: skip


@pytest.mark.parametrize(("data", "part"), [case[1:] for case in BAD_GGUF], ids=[case[0] for case in BAD_GGUF])
def test_a_lying_gguf_header_is_refused(data: bytes, part: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(YarnConvertError, match=part) as e:
        open_gguf(tmp_path / "m.gguf")
    assert e.value.hint


def test_a_header_that_claims_everything_costs_neither_time_nor_memory(tmp_path: Path) -> None:
    lies = [data for what, data, _ in BAD_GGUF + BAD_SAFETENSORS if "2^" in what]
    assert len(lies) > 10
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for data in lies:
        (tmp_path / "m").write_bytes(data)
        for read in (open_gguf, read_safetensors):
            with pytest.raises(YarnConvertError):
                read(tmp_path / "m")
    assert time.process_time() - start < 10  # what believed one of them would take minutes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 << 10  # KiB


def test_text_that_is_not_utf8_survives_a_gguf_round_trip(tmp_path: Path) -> None:
    raw = b"\xff\xfe\x80 caf\xc3"
    fields = [string(raw) + field(STR, raw), string("list") + array(STR, raw, b"", "é")]
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(fields, [info(raw, (4,), 0, 0)], b"\0" * 32))
    read = open_gguf(tmp_path / "m.gguf")
    data, _ = encode_header(read.fields, read.tensors.values(), 32)
    assert data + b"\0" * 32 == (tmp_path / "m.gguf").read_bytes()
    decoded = read.fields["list"].value
    assert decoded[0].encode("utf-8", "surrogateescape") == raw


# -- GGUF models ------------------------------------------------------------------------------------------------------

WRONG_NUMBERS = {
    "text": field(STR, "x"), "a list": array(U32, 1, 2), "an empty list": array(U32), "zero": field(U32, 0), "negative": field(I32, -1),
    "-2^63": field(I64, -(2**63)), "2^64-1": field(U64, 2**64 - 1), "nan": field(F32, NAN), "inf": field(F64, INF),
    "a float": field(F32, 1.5), "true": field(BOOL, True), "bytes": field(STR, b"\xff"),
}  # fmt: skip
COUNTS = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "rope.dimension_count", "vocab_size",
)  # fmt: skip
YARN = {"rope.scaling.type": field(STR, "yarn"), "rope.scaling.factor": field(F32, 4.0)}
BAD_KEYS: list[tuple[str, dict[str, Any], str]] = [
    *((f"{key} is {what}", {key: value}, "not") for key in COUNTS for what, value in WRONG_NUMBERS.items()),
    ("10^9 layers", {"block_count": field(U32, 10**9)}, "layers"),
    ("architecture is missing", {"general.architecture": REMOVED}, "architecture"),
    ("architecture is a number", {"general.architecture": field(U32, 1)}, "architecture"),
    ("architecture is a list", {"general.architecture": array(STR, ARCH)}, "architecture"),
    ("architecture is unknown", {"general.architecture": field(STR, "\x1b[31mx\ny")}, "architecture"),
    ("BERT", {"general.architecture": field(STR, "bert")}, "learned positions"),
    ("a part of a split file", {"split.count": field(U32, 2)}, "split"),
    ("split.count is text", {"split.count": field(STR, "x")}, "split.count"),
    ("no context", {"context_length": REMOVED}, "context_length"),
    ("an odd head", {"attention.key_length": field(U32, 15), "rope.dimension_count": REMOVED}, "even"),
    ("a rotary part larger than the head", {"rope.dimension_count": field(U32, 10**9)}, "more than"),
    ("eps is nan", {"attention.layer_norm_rms_epsilon": field(F32, NAN)}, "rms_norm_eps"),
    ("eps is text", {"attention.layer_norm_rms_epsilon": field(STR, "x")}, "rms_norm_eps"),
    *((f"freq_base is {what}", {"rope.freq_base": WRONG_NUMBERS[what]}, "freq_base|rope_theta")
      for what in ("text", "a list", "zero", "negative", "nan", "inf", "true")),
    ("scaling.type 42", {"rope.scaling.type": field(U32, 42)}, "rope.scaling.type"),
    ("scaling.type unknown", {"rope.scaling.type": field(STR, "longrope")}, "rope.scaling.type"),
    ("an unknown rope key", {"rope.scaling.bend": field(F32, 1.0)}, "unknown RoPE keys"),
    *((f"attn_factor {what}", YARN | {"rope.scaling.attn_factor": WRONG_NUMBERS[what]}, "attn_factor|attention_factor")
      for what in ("text", "zero", "negative", "nan", "inf", "a list")),
    *((f"factor {what}", YARN | {"rope.scaling.factor": WRONG_NUMBERS[what]}, "factor")
      for what in ("text", "negative", "nan", "inf", "an empty list")),
    *((f"original_context_length {what}", YARN | {"rope.scaling.original_context_length": WRONG_NUMBERS[what]}, "original_context_length")
      for what in ("text", "negative", "2^64-1", "nan", "a list", "an empty list")),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "part"), [case[1:] for case in BAD_KEYS], ids=[case[0] for case in BAD_KEYS])
def test_a_gguf_key_that_makes_no_sense_is_refused(changes: dict[str, Any], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = gguf_model(Path("m.gguf"), changes)
    for args in (["inspect", model], [model, "--scale", 4, "-o", "out.gguf"], [model, "--scale", 4, "--in-place"]):
        err = refused(args, "", capsys)
        assert any(p in err for p in part.split("|")), err


HALF = HEAD_DIM // 2
BAD_FREQS = [
    ("zeros", np.zeros(HALF, np.float32), "above zero"),
    ("nan", np.full(HALF, NAN, np.float32), "above zero"),
    ("inf", np.full(HALF, INF, np.float32), "above zero"),
    ("negative", np.full(HALF, -1, np.float32), "above zero"),
    ("so small that the frequencies overflow", np.full(HALF, 1e-45, np.float32), "no runtime can hold"),
    ("one too few", np.ones(HALF - 1, np.float32), "not F32"),
    ("two axes", np.ones((HALF, 1), np.float32), "not F32"),
    ("in half precision", np.ones(HALF, np.float16), "not F32"),
]


@pytest.mark.parametrize(("freqs", "part"), [case[1:] for case in BAD_FREQS], ids=[case[0] for case in BAD_FREQS])
def test_rope_freqs_that_give_no_frequencies_are_refused(freqs: np.ndarray, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused_everywhere(gguf_model(Path("m.gguf"), {}, {"rope_freqs.weight": freqs}), part, capsys)


def test_a_tensor_that_no_table_knows_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    refused_everywhere(gguf_model(Path("m.gguf"), {}, {"blk.0.more.weight": np.ones(8, np.float32)}), "blk.0.more.weight", capsys)


# -- HF folders -------------------------------------------------------------------------------------------------------

BAD_CONFIGS = [
    ("empty", "", "not valid JSON"),
    ("cut", '{"model_type":', "not valid JSON"),
    ("a list", "[]", "not a JSON object"),
    ("a number", "NaN", "not a JSON object"),
    ("a key twice", '{"a": 1, "a": 1}', "duplicate key"),
    ("nested deeply", '{"a":' * 100_000, "not valid JSON"),
    ("an endless number", '{"a": ' + "9" * 5000 + "}", "not valid JSON"),
    ("a byte order mark", "\ufeff{}", "not valid JSON"),
    ("nothing in it", "{}", "model_type"),
]


@pytest.mark.parametrize(("text", "part"), [case[1:] for case in BAD_CONFIGS], ids=[case[0] for case in BAD_CONFIGS])
def test_a_config_that_is_no_json_object_is_refused(text: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused_everywhere(hf_folder(Path("m"), text), part, capsys)


@pytest.mark.parametrize("kind", ["missing", "a folder", "a pipe"])
def test_a_config_that_is_no_file_is_refused(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = hf_folder(Path("m")) / "config.json"
    config.unlink()
    if kind != "missing":
        config.mkdir() if kind == "a folder" else os.mkfifo(config)
    refused_everywhere(Path("m"), "no config.json" if kind == "missing" else f"is {kind}", capsys)


WRONG: list[Any] = ["x", 1.5, -1, 0, True, 10**30, 10**400, [], [1], {}, NAN, INF]
SIZES = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size", "vocab_size", "head_dim",
         "max_position_embeddings", "original_max_position_embeddings", "sliding_window")  # fmt: skip
BAD_VALUES: list[tuple[str, Any, str]] = [
    *((key, value, key) for key in SIZES for value in WRONG if not (key == "num_key_value_heads" and not value)),
    *((key, value, key) for key in ("tie_word_embeddings", "use_sliding_window") for value in WRONG if value is not True),
    *(("rms_norm_eps", value, "rms_norm_eps") for value in WRONG if value != 0),
    *(("rope_theta", value, "rope_theta") for value in WRONG if value not in (1.5, 10**30)),
    *(("partial_rotary_factor", value, "partial_rotary_factor") for value in WRONG),
    *(("model_type", value, "model_type") for value in [*WRONG, None, "LLAMA", "\x1b[2J"]),
    *(("architectures", value, "architectures") for value in [*WRONG, ["BertModel"], ["LlamaForSequenceClassification"], [["x"]]]),
    *(("model_type", family, "not RoPE") for family in ("gpt2", "bert", "bloom", "mpt", "mamba")),
    ("num_hidden_layers", 10**9, "layers"),
    ("num_hidden_layers", 3, "missing"),
    ("head_dim", 15, "even"),
    ("hidden_size", None, "hidden_size"),
    ("max_position_embeddings", None, "max_position_embeddings"),
]


@pytest.mark.parametrize(("key", "value", "part"), BAD_VALUES, ids=lambda v: repr(v)[:24])
def test_a_config_value_that_makes_no_sense_is_refused(key: str, value: Any, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused_everywhere(hf_folder(Path("m"), **{key: value}), part, capsys)


YARN_HF = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * HALF, "long_factor": [2.0] * HALF,
        "original_max_position_embeddings": 64}  # fmt: skip
NO_NUMBERS: list[Any] = ["x", True, 10**400, [], [1], {}, NAN, INF]
BAD_SPELLINGS: list[tuple[Any, str]] = [
    *((value, "not an object") for value in ["yarn", [1], [], 0, True, 1.5]),
    ({"rope_type": "bend"}, "unknown rope_type"),
    ({"rope_type": []}, "rope_scaling.rope_type is a list, not a text"),
    ({"type": None}, "unknown rope_type"),
    ({"rope_type": "yarn"}, "factor"),
    ({"rope_type": "linear"}, "factor"),
    ({**YARN_HF, "bend": 1}, "unknown keys"),
    ({"full_attention": YARN_HF, "sliding_attention": {"rope_type": "default"}}, "unknown keys"),
    *(({**YARN_HF, key: value}, key) for key in ("factor", "beta_fast", "beta_slow", "attention_factor") for value in [*NO_NUMBERS, -1, 0]),
    *(({**YARN_HF, "mscale": 1.0, "mscale_all_dim": 1.0, key: value}, key) for key in ("mscale", "mscale_all_dim")
      for value in ("x", [1], NAN)),
    *(({**YARN_HF, "truncate": value}, "truncate") for value in ("x", 1, [])),
    *(({**YARN_HF, key: value}, "yarn")
      for key, value in [("beta_slow", 1e-320), ("beta_fast", 1e308), ("factor", 1e-320), ("attention_factor", 1e308)]),
    *(({"rope_type": "linear", "factor": value}, "factor") for value in [*NO_NUMBERS, -1, 0]),
    *(({"rope_type": "dynamic", "factor": value}, "factor") for value in [*NO_NUMBERS, -1, 0]),
    *(({**LLAMA3, key: value}, key) for key in ("factor", "low_freq_factor", "high_freq_factor") for value in [*NO_NUMBERS, -1, 0]),
    *(({**LONG, key: value}, key) for key in ("short_factor", "long_factor")
      for value in ["x", 1, None, [], [1.0], [0.0] * HALF, [-1.0] * HALF, [NAN] * HALF, ["a"] * HALF, [10**400] * HALF, [[1.0]] * HALF]),
    *(({**LONG, key: value}, key) for key in ("attention_factor", "short_mscale") for value in NO_NUMBERS),
    ({**LONG, "original_max_position_embeddings": 1}, "no runtime can hold"),
]  # fmt: skip


SPELLED = [("rope_scaling", *case) for case in BAD_SPELLINGS] + [("rope_parameters", *case) for case in BAD_SPELLINGS[::5]]


@pytest.mark.parametrize(("name", "spelling", "part"), SPELLED, ids=lambda v: repr(v)[:60])
def test_a_rope_spelling_that_gives_no_table_is_refused(name: str, spelling: Any, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused_everywhere(hf_folder(Path("m"), max_position_embeddings=256, **{name: spelling}), part, capsys)


def test_two_spellings_that_disagree_are_shown_and_not_converted(capsys: pytest.CaptureFixture[str]) -> None:
    linear = {"rope_type": "linear", "factor": 2.0}
    model = hf_folder(Path("m"), rope_scaling=linear, rope_parameters={**linear, "factor": 4.0})
    refused([model, "--scale", 4, "-o", "out"], "mean different", capsys)
    with pytest.raises(SystemExit) as stop:
        cli.main(["inspect", str(model)])
    assert stop.value.code == 0 and "rope_parameters" in capsys.readouterr().out


SHARD = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "", ".", "..", "x\0y", "x\ny", "\ud800", "x" * 300])
def test_a_shard_name_that_leads_out_of_the_folder_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused_everywhere(hf_shards(Path("m"), **{"*": name}), "leads out of the model's folder", capsys)


def _cut(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-7])


def _link_to_itself(shard: Path) -> None:
    shard.unlink()
    shard.symlink_to(shard.name)


def _folder(shard: Path) -> None:
    shard.unlink()
    shard.mkdir()


def _pipe(shard: Path) -> None:
    shard.unlink()
    os.mkfifo(shard)


BAD_SHARDS: list[tuple[Callable[[Path], Any], str]] = [
    (Path.unlink, "missing"), (_cut, "not a sound"), (_link_to_itself, "symbolic links"), (_folder, "is a folder"), (_pipe, "is a pipe"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "part"), BAD_SHARDS, ids=["missing", "cut", "link to itself", "folder", "pipe"])
def test_a_shard_that_is_no_sound_file_is_refused(spoil: Callable[[Path], Any], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(hf_shards(Path("m")) / SHARD)
    refused_everywhere(Path("m"), part, capsys)


BAD_INDEXES = [
    ({"ghost.weight": SHARD}, "no shard holds"),
    ({"model.norm.weight": SHARD, "model.embed_tokens.weight": SHARD.replace("1-", "2-")}, "places in"),
    ({"model.norm.weight": "model.safetensors.index.json"}, "index"),
]


@pytest.mark.parametrize(("weight_map", "part"), BAD_INDEXES, ids=["absent tensor", "wrong shard", "itself"])
def test_an_index_that_contradicts_shards_is_refused(weight_map: dict[str, str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused_everywhere(hf_shards(Path("m"), **weight_map), part, capsys)


def test_a_shard_with_a_tensor_that_the_index_lacks_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    index = hf_shards(Path("m")) / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    del value["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(value))
    refused_everywhere(Path("m"), "model.norm.weight", capsys)


@pytest.mark.parametrize("weight_map", [None, [], "x", {"model.norm.weight": 1}])
def test_an_index_without_a_map_of_names_is_refused(weight_map: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (hf_shards(Path("m")) / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused_everywhere(Path("m"), "weight_map", capsys)


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed").absolute(),)


def _bins() -> Iterator[tuple[str, Callable[[Path], Any], str]]:
    torch = pytest.importorskip("torch")
    yield "a pickle that runs code", lambda p: p.write_bytes(pickle.dumps({"a": Evil()})), "holds more than tensors"
    yield "a torch file that runs code", lambda p: torch.save({"a": Evil()}, p), "holds more than tensors"
    yield "garbage", lambda p: p.write_bytes(b"garbage" * 9), "cannot be read"
    yield "empty", lambda p: p.write_bytes(b""), "cannot be read"
    yield "a list", lambda p: torch.save([1], p), "no tensors"
    yield "a number for a name", lambda p: torch.save({1: torch.zeros(2)}, p), "not a plain tensor"
    yield "integers", lambda p: torch.save({"a": torch.zeros(2, dtype=torch.int8)}, p), "not a plain tensor"
    yield "sparse", lambda p: torch.save({"a": torch.zeros(2).to_sparse()}, p), "holds more than tensors"
    yield "no data", lambda p: torch.save({"a": torch.zeros(2, device="meta")}, p), "holds more than tensors"
    yield "one number as 4 TiB", lambda p: torch.save({"a": torch.zeros(1).expand(2**40)}, p), "claims more"


def test_a_torch_file_runs_no_code_and_claims_no_memory(capsys: pytest.CaptureFixture[str]) -> None:
    (hf_folder(Path("m")) / "model.safetensors").unlink()
    for what, write, part in _bins():
        write(Path("m/pytorch_model.bin"))
        refused_everywhere(Path("m"), part, capsys)
        assert not Path("executed").exists(), what


def test_a_file_beside_the_weights_that_links_out_of_the_folder_is_not_copied(capsys: pytest.CaptureFixture[str]) -> None:
    Path("secret").write_text("{}")
    (hf_folder(Path("m")) / "tokenizer.json").symlink_to(Path("secret").resolve())
    refused(["m", "--scale", 4, "-o", "out"], "leads out", capsys)


TOKENIZERS = [
    ("{", "cannot be read"), ("[]", "not an object"), ("[" * 100_000, "cannot be read"), ("{}", "neither"),
    ('{"model": null}', "not an object"),
    ('{"model": {"type": "BPE", "vocab": [], "merges": []}}', "not an object"),
    ('{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "id -1"),
    ('{"model": {"type": "BPE", "vocab": {"a": 1000000000000}, "merges": []}}', "id 1000000000000"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "part"), TOKENIZERS, ids=lambda v: v[:20])
def test_a_malformed_tokenizer_is_refused(text: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    (hf_folder(Path("m")) / "tokenizer.json").write_text(text)
    refused(["m", "--scale", 4, "--out", "gguf", "-o", "out.gguf"], part, capsys)


@pytest.mark.parametrize("data", [b"\xff" * 50, b"\x0a" + b"\xff" * 9 + b"\x7f", b"\x0a\x7f"])
def test_a_malformed_sentencepiece_model_is_refused(data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (hf_folder(Path("m")) / "tokenizer.model").write_bytes(data)
    refused(["m", "--scale", 4, "--out", "gguf", "-o", "out.gguf"], "tokenizer.model", capsys)


# -- the command line -------------------------------------------------------------------------------------------------

OPTIONS = [  # what follows "m"; the output is out unless there is a -o
    *((f"--scale {s}", "--scale") for s in ("nan", "inf", "-inf", "0", "-1", "1e400", "1e7")),
    *((f"--scale {s}", "no extension") for s in ("1", "0.5", "1e-9")),
    *((f"--context {n}", "no extension") for n in ("32", "64", "0", "-5")),
    ("", "how far"),
    ("--scale 4 --context 300", "disagree"),
    ("--method none --scale 2", "does not extend"),
    ("--method bend --scale 4", "unknown --method"),
    ("--carry bend --scale 4", "unknown --carry"),
    ("--outtype f8 --scale 4", "unknown --outtype"),
    ("--out onnx --scale 4", "unknown --out"),
    ("--ramp bend --scale 4", "unknown --ramp"),
    ("--sliding-window bend --scale 4", "unknown --sliding-window"),
    *((f"--scale 4 --beta-{end} {v}", "") for end in ("fast", "slow") for v in ("nan", "inf", "0", "-1", "1e308", "1e-320")),
    *((f"--scale 4 --attention-factor {v}", "") for v in ("nan", "inf", "0", "-1", "1e308", "1e-320")),
    ("--scale 4 --original-context -1", "--original-context must be"),
    ("--scale 4 --method linear --beta-fast 3", "means nothing"),
    ("--scale 4 --method linear --no-truncate", "no ramp"),
    ("--scale 4 --ramp paper --no-truncate", "belongs to"),
    ("--scale 4 --in-place", "--in-place"),
    ("--scale 4 --cos-sin --carry metadata", "--cos-sin"),
    ("--scale 4 --revision main", "--revision"),
    ("--scale 4 --outtype q8_0", "q8_0"),
    ("--scale 4 --out safetensors -o x.gguf", "named like a GGUF"),
    ("--scale 4 --out gguf -o x", "not named .gguf"),
    ("--scale 4 -o m --force", "inside one another"),
    ("--scale 4 -o m/in", "inside one another"),
    ("--scale 4 -o . --force", "inside one another"),
    ("--scale 4 -o /proc/x", "could not write"),
    ("--scale 4 -o /dev/null", "exists"),
    ("--scale 4 -o foreign --force", "not written by yarn-convert"),
    ("--scale 4 -o foreign/f/x", "could not write"),
]


@pytest.mark.parametrize(("options", "part"), OPTIONS, ids=[case[0] or "nothing" for case in OPTIONS])
def test_options_that_contradict_or_leave_their_range_are_refused(options: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    hf_folder(Path("m"))
    Path("foreign").mkdir()
    Path("foreign/f").write_text("mine")
    refused(["m", *options.split(), *([] if "-o" in options.split() else ["-o", "out"])], part, capsys)


GGUF_OPTIONS = [
    ("--scale 4 -o m.gguf", "inside one another"),
    ("--scale 4 -o m.gguf --force", "inside one another"),
    ("--scale 4 -o x", "not named .gguf"),
    ("--scale 4 --in-place -o x.gguf", "--in-place"),
    ("--scale 4 --in-place --outtype f16", "--in-place"),
    ("--scale 4 --in-place --link", "--in-place"),
    ("--scale 4 --in-place --out safetensors", "--in-place"),
    ("--scale 4 -o full.gguf --force", "is a folder"),
]


@pytest.mark.parametrize(("options", "part"), GGUF_OPTIONS, ids=[case[0] for case in GGUF_OPTIONS])
def test_options_for_a_gguf_that_cannot_be_are_refused(options: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    gguf_model(Path("m.gguf"))
    Path("full.gguf").mkdir()
    Path("full.gguf/f").write_text("mine")
    refused(["m.gguf", *options.split()], part, capsys)


NOWHERE = ["", " ", "nowhere", "no.gguf", "a\0b", "z" * 5000, "~nobody-has-this-name/x", "loop", "/dev/zero", "a/b/c", "\udcff"]


@pytest.mark.parametrize("model", NOWHERE)
def test_a_model_that_is_nowhere_is_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("loop").symlink_to("loop")
    refused(["inspect", model], "", capsys)


def test_in_place_leaves_a_file_alone_that_others_see(capsys: pytest.CaptureFixture[str]) -> None:
    Path("link.gguf").symlink_to(gguf_model(Path("m.gguf")))
    refused(["link.gguf", "--scale", 4, "--in-place"], "shared", capsys)
    os.link("m.gguf", "hard.gguf")
    refused(["hard.gguf", "--scale", 4, "--in-place"], "shared", capsys)


def test_a_token_in_the_environment_is_never_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_THESECRET")
    hf_folder(Path("m"))
    for args in (["org/name", "--scale", "4"], ["inspect", "m"], ["m", "--scale", "4", "-o", "out"], ["m", "--scale", "x"], ["nowhere"]):
        with pytest.raises(SystemExit):
            cli.main(args)
        shown = capsys.readouterr()
        assert "THESECRET" not in shown.out + shown.err
    assert not any(b"THESECRET" in (data or b"") for data in tree(Path()).values())


# -- interrupted conversions ------------------------------------------------------------------------------------------

SLOW = """
import os, sys, time
from yarn_convert.cli import entry as cli
from yarn_convert.targets import moving
copy, pause = moving.copy_range, float(sys.argv.pop(1))
def slowly(*args):
    os.write(1, b"moving\\n")  # one write: two threads move, and their lines must not mix
    time.sleep(pause)
    return copy(*args)
moving.copy_range = slowly
cli.main()
"""


def started(args: list[str], pause: float = 0.2) -> subprocess.Popen[str]:
    """A conversion in a process of its own, in the middle of moving its weights."""
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(pause), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "moving\n"
    return process


@pytest.mark.parametrize(("make", "model", "out"), [(hf_folder, "m", "out"), (gguf_model, "m.gguf", "out.gguf")], ids=["folder", "gguf"])
def test_after_ctrl_c_nothing_is_left(make: Callable[[Path], Path], model: str, out: str) -> None:
    make(Path(model))
    process = started([model, "--scale", "4", "-o", out])
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert [p.name for p in Path().iterdir()] == [model]


@pytest.mark.parametrize(("make", "model", "out"), [(hf_folder, "m", "out"), (gguf_model, "m.gguf", "out.gguf")], ids=["folder", "gguf"])
def test_after_kill_nothing_has_the_final_name_and_a_second_run_works(make: Callable[[Path], Path], model: str, out: str) -> None:
    make(Path(model))
    process = started([model, "--scale", "4", "-o", out], pause=5)
    process.kill()
    process.communicate(timeout=20)
    assert not Path(out).exists()
    for left in Path().rglob("*.gguf"):
        if left.name != model:
            with pytest.raises(YarnConvertError):
                open_gguf(left)
    assert prepare(model, ConvertOptions(Recipe(scale=4), output=Path(out))).run().to_dict()
    assert Path(out).exists()


def test_on_a_full_disk_nothing_is_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Path("disk")
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        gguf_model(Path("m.gguf"))
        hf_folder(Path("m"))
        refused(["m", "--scale", 4, "-o", disk / "out"], "will not fit", capsys)
        refused(["m.gguf", "--scale", 4, "-o", disk / "out.gguf"], "will not fit", capsys)
        monkeypatch.setattr(room, "kind_of", lambda folder: "zfs")  # where nobody knows before
        refused(["m", "--scale", 4, "-o", disk / "out", "-q"], "the disk is full", capsys)
        for model, place, said in (("m", disk / "new" / "out", True), ("m.gguf", disk / "out.gguf", True), ("m", Path("out"), False)):
            with pytest.raises(SystemExit):
                cli.main([model, "--scale", "4", "--dry-run", "-o", str(place)])
            assert ("64.0 KiB free in" in capsys.readouterr().err) == said, "before anything is written"
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


# -- interrupted edits in place ---------------------------------------------------------------------------------------


class Crash(BaseException):
    """The power goes."""


class Steps:
    """Counts everything that an edit does to the disk; at step `at` the power goes, in the middle of a write at half of it."""

    def __init__(self, at: int | None) -> None:
        self.at, self.done = at, 0

    def step(self) -> bool:
        self.done += 1
        return self.done == self.at

    def install(self, patch: pytest.MonkeyPatch) -> None:
        insert, write_all, unlink, fsync = in_place._insert, in_place.write_all, Path.unlink, os.fsync

        def half(write: Callable[..., Any], target: Any, data: Any, **options: Any) -> Any:
            if self.step():
                write(target, data[: len(data) // 2], **options)
                raise Crash
            result = write(target, data, **options)
            if self.step():
                raise Crash
            return result

        def whole(call: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **options: Any) -> Any:
                if self.step():
                    raise Crash
                result = call(*args, **options)
                if self.step():
                    raise Crash
                return result

            return run

        patch.setattr(in_place, "write_all", lambda f, data: half(write_all, f, data))
        patch.setattr(in_place, "_insert", whole(insert))
        patch.setattr(Path, "unlink", whole(unlink))
        patch.setattr(os, "fsync", whole(fsync))


def crashing(at: int | None, run: Callable[[], Any]) -> int:
    """Run with a crash at step `at`; the number of steps done."""
    steps = Steps(at)
    with pytest.MonkeyPatch.context() as patch:
        steps.install(patch)
        try:
            run()
        except Crash:
            assert at is not None
    return steps.done


@pytest.fixture(params=["header grows", "header fits"])
def edit(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, in_place.Edit, bytes, bytes]:
    """(file, journal, the file before, the file after) of an edit that has to insert blocks, and of one that need not."""
    path = gguf_model(tmp_path / "m.gguf", {"general.description": field(STR, "x" * 900)})
    options = ConvertOptions(Recipe(scale=4), in_place=True)
    if request.param == "header fits":
        _insertable(path)
        in_place.run_in_place(path, _journal(path, options))
        options = ConvertOptions(Recipe(scale=8), in_place=True)
    journal = _journal(path, options)
    assert bool(journal.inserted) == (request.param == "header grows")
    before = path.read_bytes()
    _insertable(path)
    in_place.run_in_place(path, journal)
    after = path.read_bytes()
    assert not in_place.journal_path(path).exists()
    return path, journal, before, after


def _journal(path: Path, options: ConvertOptions) -> in_place.Edit:
    conversion = prepare(str(path), options)
    assert conversion.checkpoint.gguf is not None
    (job,) = conversion.plan.jobs
    return in_place.plan_in_place(conversion.checkpoint.gguf, job.fields, [p for p, _ in job.pieces])  # type: ignore[union-attr]


def _insertable(path: Path) -> None:
    probe = path.with_name("probe")
    probe.write_bytes(b"x" * 8192)
    try:
        in_place._insert(probe, 4096)
    except OSError:
        pytest.skip("this file system cannot insert into a file")
    finally:
        probe.unlink()


def test_an_edit_keeps_the_tensor_data(edit: tuple[Path, in_place.Edit, bytes, bytes]) -> None:
    path, _, before, after = edit
    path.write_bytes(before)
    old = {n: t.read().tobytes() for n, t in open_gguf(path).tensors.items()}
    path.write_bytes(after)
    assert {n: t.read().tobytes() for n, t in open_gguf(path).tensors.items()} == old


def test_a_crash_at_any_step_of_an_edit_leaves_the_old_file_or_the_new(edit: tuple[Path, in_place.Edit, bytes, bytes]) -> None:
    path, journal, before, after = edit
    side = in_place.journal_path(path)

    def reset() -> None:
        path.write_bytes(before)
        side.unlink(missing_ok=True)

    reset()
    steps = crashing(None, lambda: in_place.run_in_place(path, journal))
    assert steps > 10
    results = set()
    for at in range(1, steps + 1):
        reset()
        crashing(at, lambda: in_place.run_in_place(path, journal))
        torn, torn_side = path.read_bytes(), side.read_bytes() if side.exists() else None
        if torn not in (before, after):
            with pytest.raises(YarnConvertError):  # no reader takes it for a model
                open_gguf(path)
        again = crashing(None, lambda: in_place.recover(path))
        results.add(path.read_bytes())
        assert path.read_bytes() in (before, after), f"step {at}"
        assert not side.exists()
        for second in range(1, again + 1):  # the power goes while it recovers
            path.write_bytes(torn)
            if torn_side is not None:
                side.write_bytes(torn_side)
            crashing(second, lambda: in_place.recover(path))
            in_place.recover(path)
            assert path.read_bytes() in (before, after), f"step {at}, then {second}"
            assert not side.exists()
    assert results == {before, after}


def test_a_process_that_dies_in_an_edit_is_recovered_by_the_next_run(edit: tuple[Path, in_place.Edit, bytes, bytes]) -> None:
    path, journal, before, after = edit
    path.write_bytes(before)
    Path("edit").write_bytes(pickle.dumps(journal))
    code = (
        "import os, pickle, sys; from pathlib import Path; from yarn_convert.targets import in_place\n"
        "in_place._put = lambda f, at, data: (f.seek(at), f.write(data[:9]), os._exit(7))\n"
        "in_place.run_in_place(Path(sys.argv[1]), pickle.load(open('edit', 'rb')))"
    )
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == 7
    assert path.read_bytes() not in (before, after)
    with pytest.raises(OutputError, match="finished now"):  # and not a second edit on top of it
        prepare(str(path), ConvertOptions(Recipe(scale=4), in_place=True))
    assert path.read_bytes() == after


def test_a_journal_is_not_applied_to_another_file(edit: tuple[Path, in_place.Edit, bytes, bytes]) -> None:
    path, journal, before, _ = edit
    path.write_bytes(before)
    crashing(2, lambda: in_place.run_in_place(path, journal))
    assert in_place.journal_path(path).exists()
    other = bytearray(before + bytes(journal.inserted))
    other[100] ^= 1
    path.write_bytes(other)
    with pytest.raises(OutputError, match="not the file"):
        in_place.recover(path)
    assert path.read_bytes() == other


def test_two_edits_planned_for_one_file_never_move_its_data_twice(edit: tuple[Path, in_place.Edit, bytes, bytes]) -> None:
    path, journal, before, after = edit
    with pytest.raises(OutputError, match="changed since"):  # planned before the other one was carried out
        in_place.run_in_place(path, journal)
    assert path.read_bytes() == after
    assert not in_place.journal_path(path).exists()
    path.write_bytes(before)
    fcntl = pytest.importorskip("fcntl")
    crashing(2, lambda: in_place.run_in_place(path, journal))  # it has written its journal
    with open(path, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for run in (lambda: in_place.run_in_place(path, journal), lambda: in_place.recover(path)):
            with pytest.raises(OutputError, match="another process"):
                run()
    assert path.read_bytes() == before
    assert in_place.journal_path(path).exists()


def test_a_file_that_cannot_be_written_loses_nothing(
    edit: tuple[Path, in_place.Edit, bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest stays, and no journal waits for an edit that never began."""
    path, journal, before, _ = edit
    path.write_bytes(before)
    manifest_path(path).write_text("{}")

    def read_only(name: Any, mode: str = "r", **options: Any) -> Any:
        if "+" in mode:
            raise PermissionError(13, "Permission denied")
        return open(name, mode, **options)

    monkeypatch.setattr(in_place, "open", read_only, raising=False)  # the mode of a file means nothing to root
    with pytest.raises(OutputError, match="Permission denied"):
        in_place.run_in_place(path, journal)
    assert path.read_bytes() == before
    assert manifest_path(path).exists() and not in_place.journal_path(path).exists()


@pytest.mark.parametrize("text", [b"", b"{}", b"[]\nx", b"\xff\n\xff", b'{"sha256": "0"}\n{}'])
def test_a_journal_that_was_cut_is_dropped(text: bytes, tmp_path: Path) -> None:
    path = gguf_model(tmp_path / "m.gguf")
    before = path.read_bytes()
    in_place.journal_path(path).write_bytes(text)
    assert in_place.recover(path) is False
    assert path.read_bytes() == before
    assert not in_place.journal_path(path).exists()


def test_where_the_disk_fails_in_an_edit_the_error_says_how_to_go_on(
    edit: tuple[Path, in_place.Edit, bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, journal, before, after = edit
    path.write_bytes(before)

    def full(f: Any, at: int, data: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(in_place, "_put", full)
        with pytest.raises(OutputError, match="in the middle") as e:
            in_place.run_in_place(path, journal)
    assert "again" in e.value.hint
    assert in_place.recover(path)
    assert path.read_bytes() == after

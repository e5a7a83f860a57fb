"""Quantization: every byte against llama.cpp's own `llama_model_quantize` and ggml's functions, run in this process."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import MakeModel

from yarn_convert.conversion import convert
from yarn_convert.errors import FormatError, InputError, OutputError, Unsupported, UsageError
from yarn_convert.formats import dtypes, quantizer
from yarn_convert.formats.gguf_file import Value, encode_header, nbytes_of, open_gguf, type_numbers
from yarn_convert.formats.imatrix import Imatrix, read_imatrix
from yarn_convert.formats.quantizer import MIXES
from yarn_convert.formats.tensors import Tensor, in_memory
from yarn_convert.options import Recipe

llama_cpp = pytest.importorskip("llama_cpp")
QUIET = llama_cpp.llama_log_callback(lambda level, text, data: None)
rng = np.random.default_rng(0)
NEED_IMATRIX = {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "q2_k_s"}  # for some tensors


# -- ggml's blocks of 32, with and without ggml ------------------------------------------------------------------------


@pytest.fixture
def without_ggml(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where llama-cpp-python is not installed; this file keeps its own import of it."""
    quantizer._by_ggml.cache_clear()
    with monkeypatch.context() as m:
        m.setattr(quantizer, "_ggml", lambda: (_ for _ in ()).throw(UsageError("not installed", "")))
        yield
    quantizer._by_ggml.cache_clear()


def ggml_chunk(x: np.ndarray, dtype: str) -> np.ndarray:
    """ggml's bytes for a flat float32 array of blocks of 32."""
    out = np.empty(nbytes_of(dtype, x.shape), np.uint8)
    quantizer._ggml().ggml_quantize_chunk(type_numbers()[dtype], x.ctypes.data, out.ctypes.data, 0, len(x) // 32, 32, None)
    return out


N = 1 << 14
signs = np.where(rng.random(N) < 0.5, -1, 1)
normal = rng.standard_normal(N)
BLOCKS: dict[str, Any] = {
    "normal": normal,
    "few bits, so that magnitudes tie": (normal.astype(np.float32).view(np.uint32) & np.uint32(0xFFF00000)).view(np.float32),
    "integers, whose scaled values lie halfway": rng.integers(-31, 32, N) / 2,
    "plus and minus one": signs,
    "zeros of both signs": signs * 0.0,
    "negative zeros": -np.zeros(N),
    "positive, or a zero of either sign": np.where(normal > 0, normal, signs * 0.0),
    "negative, or a zero of either sign": np.where(normal < 0, normal, signs * 0.0),
    "float16 scales overflow": normal * 1e30,
    "the largest": np.clip(normal * 1e38, -1.7e38, 1.7e38),
    "float16 scales underflow": normal * 1e-12,
    "1/d overflows": normal * 1e-37,
    "denormal": normal * 1e-40,
    "the smallest": signs * 1e-45,
    "of all sizes": normal * np.exp(10 * rng.standard_normal(N)),
    "a large one among the smallest": np.where(np.arange(N) % 32, 1e-45, 3e38),
    "the largest of either sign among zeros of either sign": np.where(rng.random(N) < 0.03, 3.4e38, 0) * signs,
    "any finite bits": np.nan_to_num(rng.integers(0, 1 << 32, N, dtype=np.uint32).view(np.float32), nan=0, posinf=0, neginf=0),
}
UNDEFINED_IN_C = {"1/d overflows", "denormal", "the smallest", "of all sizes", "any finite bits"}


def chunk_or_none(x: np.ndarray, dtype: str) -> np.ndarray | None:
    """What a conversion writes of a flat array, None where it refuses it."""
    try:
        return quantizer.chunk(x.reshape(-1, 256), dtype)
    except InputError:
        return None


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("dtype", quantizer.BLOCKS_OF_32)
def test_blocks_of_32_are_ggmls_byte_for_byte_without_it_too(dtype: str, kind: str, request: pytest.FixtureRequest) -> None:
    if kind in UNDEFINED_IN_C and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("an infinity is cast to an integer, which each processor does its own way")
    x = BLOCKS[kind].astype(np.float32)
    given = x.copy()
    expected, written = ggml_chunk(x, dtype), chunk_or_none(x, dtype)
    np.testing.assert_array_equal(quantizer.with_package(x.reshape(-1, 256), dtype)[0], expected)
    assert written is None or np.array_equal(written, expected)
    request.getfixturevalue("without_ggml")
    assert np.array_equal(chunk_or_none(x, dtype), written) if written is not None else chunk_or_none(x, dtype) is None
    np.testing.assert_array_equal(x.view(np.uint32), given.view(np.uint32), "the weights are not touched")


@pytest.mark.parametrize("dtype", quantizer.BLOCKS_OF_32)
def test_blocks_of_32_are_what_the_gguf_package_writes(dtype: str) -> None:
    x = normal.astype(np.float32)
    expected = gguf.quants.quantize(x.reshape(1, -1), gguf.GGMLQuantizationType[dtype]).reshape(-1)
    np.testing.assert_array_equal(quantizer.chunk(x.reshape(1, -1), dtype), expected)


@pytest.mark.parametrize("outtype", [d.lower() for d in quantizer.BLOCKS_OF_32])
def test_a_conversion_without_llama_cpp_python_writes_the_same_file(
    make_model: MakeModel, tmp_path: Path, outtype: str, request: pytest.FixtureRequest
) -> None:
    source = as_gguf(make_model(dtype="F16", layers=1), "f16")
    convert(str(source), Recipe(method="none"), outtype=outtype, output=tmp_path / "with.gguf")
    request.getfixturevalue("without_ggml")
    convert(str(source), Recipe(method="none"), outtype=outtype, output=tmp_path / "without.gguf")
    assert (tmp_path / "with.gguf").read_bytes() == (tmp_path / "without.gguf").read_bytes()


def test_a_library_that_does_not_load_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libggml-base.so").write_bytes(b"no library")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    x = normal.astype(np.float32).reshape(-1, 256)
    expected = quantizer.chunk(x, "Q8_0")
    for f in (quantizer._ggml, quantizer._by_ggml, quantizer._writable):
        f.cache_clear()
    try:
        np.testing.assert_array_equal(quantizer.chunk(x, "Q8_0"), expected)
        with pytest.raises(UsageError, match="cannot be used"):
            quantizer.chunk(x, "Q4_K")
    finally:
        quantizer._by_ggml.cache_clear()


# -- whole files ------------------------------------------------------------------------------------------------------


def llama_quantize(source: Path, out: Path, mix: str, imatrix: Imatrix | None = None, threads: int = 2, pure: bool = False) -> bytes | None:
    """The file that llama-quantize writes, None when it refuses. With an imatrix it sets four fields, as its `main` does."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.pure = MIXES[mix].ftype, threads, pure
    if imatrix:
        entries = (llama_cpp.llama_model_imatrix_data * (len(imatrix.weights) + 1))()
        for entry, (name, values) in zip(entries, imatrix.weights.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        said = {"file": imatrix.file, "dataset": imatrix.dataset, "entries_count": len(imatrix.weights), "chunks_count": imatrix.chunks}
        overrides = (llama_cpp.llama_model_kv_override * (len(said) + 1))()
        for override, (key, value) in zip(overrides, said.items(), strict=False):
            override.key = f"quantize.imatrix.{key}".encode()
            if isinstance(value, int):
                override.tag, override.value.val_i64 = 0, value
            else:
                override.tag, override.value.val_str = 3, str(value).encode()[:127]
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
        params.kv_overrides = ctypes.cast(overrides, type(params.kv_overrides))
    llama_cpp.llama_log_set(QUIET, ctypes.c_void_p(0))
    failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    return None if failed else out.read_bytes()


@pytest.mark.parametrize("name", ["qwen2_moe", "ernie4_5_moe"])
def test_a_matrix_of_one_row_that_llama_quantize_wrote_is_read(name: str, tmp_path: Path) -> None:
    """It leaves that dimension out (ggml_n_dims), and llama.cpp reads both."""
    pytest.importorskip("transformers")
    from family_models import make

    convert(str(make(name, tmp_path / "base", wide=True)), Recipe(method="none"), out="gguf", output=tmp_path / "a.gguf")
    assert llama_quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", "q8_0")
    tensors = [open_gguf(tmp_path / f"{n}.gguf").tensors for n in "ab"]
    assert {n for n in tensors[0] if len(tensors[0][n].shape) != len(tensors[1][n].shape)}
    for out in ("gguf", "safetensors"):
        convert(str(tmp_path / "b.gguf"), Recipe(scale=4), out=out, output=tmp_path / ("out.gguf" if out == "gguf" else "out"))


def file_order(names: Iterable[str]) -> list[str]:
    """Tensor names as llama-quantize writes them: by layer, then by bytes (llama-model-loader.h, weight_name_comparer)."""

    def key(name: str) -> tuple[int, bytes]:
        layer = re.match(r"blk\.(\d+)", name)
        return int(layer[1]) if layer else -1, name.encode("utf-8", "surrogateescape")

    return sorted(names, key=key)


def quantized(source: Path, mix: str, imatrix: Imatrix | None = None, step: int = 40) -> bytes:
    """The file as this package makes it: `types_of`, then some rows at a time on two threads."""
    g = open_gguf(source)
    types = quantizer.types_of(g.fields, g.tensors.values(), mix, imatrix)
    targets = [Tensor(n, types[n], g.tensors[n].shape, nbytes_of(types[n], g.tensors[n].shape)) for n in file_order(g.tensors)]
    header, offsets = encode_header(quantizer.quantized_fields(g.fields, mix, imatrix), targets, 32)
    out = bytearray(max(offsets[t.name] + t.nbytes + -t.nbytes % 32 for t in targets))
    out[: len(header)] = header

    def write(target: Tensor) -> None:
        t = g.tensors[target.name]
        data, at = t.read(), offsets[t.name]
        if target.dtype != t.dtype:
            x = dtypes.to_f32(data, t.dtype).reshape(-1, t.shape[-1])
            weights = imatrix.of(t) if imatrix else None
            data = np.concatenate([quantizer.rows(x[i : i + step], target.dtype, weights, i, t.shape[-2]) for i in range(0, len(x), step)])
        out[at : at + len(data)] = data.tobytes()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, targets))
    return bytes(out)


def made_imatrix(source: Path) -> Imatrix:
    """Weights for every matrix; those of the embedding are of a wrong size, which llama.cpp passes over for it alone."""
    weights = {"token_embd.weight": np.ones((1, 7), np.float32)}
    for t in open_gguf(source).tensors.values():
        if len(t.shape) > 1 and t.name != "token_embd.weight":
            shape = (t.shape[0] if len(t.shape) == 3 else 1, t.shape[-1])
            weights[t.name] = np.exp(2 * rng.standard_normal(shape)).astype(np.float32)
    return Imatrix("some.imatrix", weights, "wiki.train.raw", 123)


def as_gguf(model: Path, dtype: str) -> Path:
    out = model.with_suffix(".gguf")
    convert(str(model), Recipe(scale=4.0), out="gguf", outtype=dtype, output=out)
    return out


def with_experts(source: Path, out: Path, experts: int = 4) -> Path:
    """The same model with its feed-forward matrices as experts."""
    g = open_gguf(source)
    tensors = []
    for t in g.tensors.values():
        if ".ffn_" in t.name and "norm" not in t.name:
            x = rng.standard_normal((experts, *t.shape)).astype(np.float16)
            tensors.append(in_memory(t.name.replace(".weight", "_exps.weight"), x, "F16"))
        else:
            tensors.append(replace(t, data=t.read()))
    for i in range(g.get("llama.block_count")):
        x = rng.standard_normal((experts, g.get("llama.embedding_length"))).astype(np.float32)
        tensors.append(in_memory(f"blk.{i}.ffn_gate_inp.weight", x, "F32"))
    fields = dict(g.fields) | {"llama.expert_count": Value("u32", experts), "llama.expert_used_count": Value("u32", 2)}
    return write_gguf(out, fields, tensors)


def write_gguf(out: Path, fields: Any, tensors: list[Tensor]) -> Path:
    header, offsets = encode_header(fields, tensors, 32)
    data = bytearray(header)
    for t in tensors:
        data += bytes(offsets[t.name] - len(data)) + t.read().tobytes()
    out.write_bytes(data + bytes(-len(data) % 32))
    return out


SHAPES: dict[str, dict[str, Any]] = {
    "eight layers": {"heads": 4, "head_dim": 64, "kv_heads": 1, "ff": 256, "layers": 8},
    "tied, grouped by two": {"heads": 4, "head_dim": 64, "kv_heads": 2, "ff": 512, "layers": 1, "tied": True, "biases": True},
    "rows of 96 and 160": {"heads": 6, "head_dim": 16, "ff": 160, "layers": 1},
    "rows of 64 and 100": {"heads": 4, "head_dim": 16, "ff": 100, "layers": 1, "tied": True},
}
TYPICAL = ("q4_k_m", "q5_k_s", "q6_k", "iq4_xs", "q3_k_l", "q2_k", "q4_0", "q8_0")


def same_as_llama_cpp(source: Path, mix: str, imatrix: Imatrix | None = None) -> None:
    theirs = llama_quantize(source, source.with_name("theirs.gguf"), mix, imatrix)
    if theirs is None:
        assert mix in NEED_IMATRIX and imatrix is None
        with pytest.raises(UsageError, match="importance matrix"):
            quantized(source, mix, imatrix)
        return
    assert imatrix or mix not in NEED_IMATRIX
    assert quantized(source, mix, imatrix) == theirs, mix  # no diff of megabytes


@pytest.mark.parametrize(
    ("shape", "dtype", "mixes"),
    [
        ("eight layers", "F16", ("q4_k_m", "q5_k_s", "q3_k_l", "q2_k", "iq4_xs")),
        ("tied, grouped by two", "F16", ("q4_k_m", "q6_k", "q2_k", "iq4_xs", "q4_0")),
        ("rows of 96 and 160", "F16", TYPICAL),
        ("rows of 96 and 160", "BF16", ("q4_k_m",)),
        ("rows of 96 and 160", "F32", ("q4_k_m",)),
        ("rows of 64 and 100", "F16", ("q4_k_m", "q8_0", "q2_k", "iq4_xs")),
    ],
)
def test_a_quantized_file_is_llama_quantizes_byte_for_byte(make_model: MakeModel, shape: str, dtype: str, mixes: tuple[str, ...]) -> None:
    source = as_gguf(make_model(dtype=dtype, **SHAPES[shape]), dtype.lower())
    for mix in mixes:
        same_as_llama_cpp(source, mix)


@pytest.mark.parametrize("mix", [mix for mix in MIXES if mix not in ("q3_k", "q4_k", "q5_k")])
def test_every_mix_with_and_without_an_imatrix(make_model: MakeModel, mix: str) -> None:
    """Those of `NEED_IMATRIX`, and only those, are refused without one, by llama.cpp and here."""
    source = as_gguf(make_model(dtype="F16", heads=4, head_dim=64, kv_heads=1, ff=256, layers=1), "f16")
    same_as_llama_cpp(source, mix)
    if mix not in SLOW_TABLES:
        same_as_llama_cpp(source, mix, made_imatrix(source))


SLOW_TABLES = {"iq1_s", "iq1_m", "iq2_xxs", "iq2_m", "iq3_xxs"}  # ggml needs seconds, once a process, to build what these search


def test_a_name_without_its_size_means_the_middle_one() -> None:
    """As llama-quantize's help says: Q4_K is an alias for Q4_K_M."""
    assert all(MIXES[f"q{n}_k"] == MIXES[f"q{n}_k_m"] for n in (3, 4, 5))


def test_an_imatrix_changes_the_types_of_the_first_layers(make_model: MakeModel) -> None:
    source = as_gguf(make_model(dtype="F16", **SHAPES["eight layers"]), "f16")
    same_as_llama_cpp(source, "q4_0", made_imatrix(source))


@pytest.mark.parametrize("mix", ["q4_k_m", "iq2_xs", "mxfp4_moe"])
def test_experts_have_weights_of_their_own(make_model: MakeModel, tmp_path: Path, mix: str) -> None:
    dense = as_gguf(make_model(dtype="F16", heads=4, head_dim=64, ff=256, layers=1), "f16")
    source = with_experts(dense, tmp_path / "experts.gguf")
    same_as_llama_cpp(source, mix, made_imatrix(source))


@pytest.mark.parametrize("mix", ["q4_k_m", "q3_k_l", "q2_k", "iq4_xs", "q4_0", "iq2_xs"])
def test_real_weights(smollm2: Path, tmp_path: Path, mix: str) -> None:
    """The first rows of SmolLM2's matrices, 576 and 1,536 long: those of 576 fall back to other types."""
    g = open_gguf(smollm2)
    tensors = []
    for t in g.tensors.values():
        if t.name.startswith(("blk.0.", "blk.1.", "output_norm.", "token_embd.")):
            rows = min(t.shape[0], 64)
            x = dtypes.to_f32(t.read(0, t.nbytes // t.shape[0] * rows), t.dtype)
            x, kind = (x, "F32") if t.dtype == "F32" else (x.astype(np.float16).reshape(rows, -1), "F16")
            tensors.append(in_memory(t.name, x, kind))
    fields = dict(g.fields) | {"llama.block_count": Value("u32", 2)}
    source = write_gguf(tmp_path / "two.gguf", fields, tensors)
    same_as_llama_cpp(source, mix, made_imatrix(source) if mix in NEED_IMATRIX else None)


def test_llama_cpps_file_does_not_depend_on_its_threads(make_model: MakeModel, tmp_path: Path) -> None:
    source = as_gguf(make_model(dtype="F16", **SHAPES["eight layers"]), "f16")
    one, two = (llama_quantize(source, tmp_path / f"{n}.gguf", "q4_k_m", threads=n) for n in (1, 2))
    assert one == two


def test_a_split_or_aligned_source_is_planned_as_one_file(make_model: MakeModel) -> None:
    g = open_gguf(as_gguf(make_model(dtype="F16", **SHAPES["eight layers"]), "f16"))
    split = dict(g.fields) | {"split.count": Value("u16", 3), "split.no": Value("u16", 0), "general.alignment": Value("u32", 64)}
    plan = [quantizer.types_of(fields, g.tensors.values(), "q4_k_m") for fields in (g.fields, split)]
    assert plan[0] == plan[1]
    assert not [k for k in quantizer.quantized_fields(split, "q4_k_m") if k.startswith("split.")]


def test_70b_gets_its_own_types_without_its_weights(tmp_path: Path) -> None:
    """llama.cpp gives the values of an 80-layer Llama more bits; no vocabulary is needed, and nothing stays behind."""
    numbers = {
        "block_count": 80, "context_length": 8192, "embedding_length": 8192, "feed_forward_length": 28672, "vocab_size": 32000,
        "attention.head_count": 64, "attention.head_count_kv": 8, "rope.dimension_count": 128,
    }  # fmt: skip
    fields = {"general.architecture": Value("str", "llama"), "tokenizer.ggml.model": Value("str", "none")}
    fields |= {f"llama.{k}": Value("u32", n) for k, n in numbers.items()}
    fields["llama.attention.layer_norm_rms_epsilon"] = Value("f32", 1e-5)
    shapes = {"token_embd.weight": (32000, 8192), "output.weight": (32000, 8192)}
    for i in range(80):
        shapes |= {f"blk.{i}.attn_{k}.weight": (n, 8192) for k, n in {"q": 8192, "k": 1024, "v": 1024, "output": 8192}.items()}
        shapes |= {f"blk.{i}.ffn_{k}.weight": (28672, 8192) for k in ("gate", "up")} | {f"blk.{i}.ffn_down.weight": (8192, 28672)}
    tensors = [Tensor(n, "BF16", s, nbytes_of("BF16", s)) for n, s in shapes.items()]
    types = quantizer.types_of(fields, tensors, "q3_k_m")
    assert types["blk.40.attn_v.weight"] == "Q5_K"
    assert types["blk.40.attn_q.weight"] == "Q3_K"
    assert types["output.weight"] == "Q6_K"
    assert not list(tmp_path.iterdir())


def test_what_llama_cpp_refuses_is_one_error(make_model: MakeModel) -> None:
    g = open_gguf(as_gguf(make_model(dtype="F16", **SHAPES["eight layers"]), "f16"))
    tensors = g.tensors.values()
    with pytest.raises(UsageError, match="unknown quantization"):
        quantizer.types_of(g.fields, tensors, "q4_k_xl")
    with pytest.raises(Unsupported, match="unknown model architecture"):
        quantizer.types_of({**g.fields, "general.architecture": Value("str", "nonesuch")}, tensors, "q4_k_m")
    with pytest.raises(Unsupported, match="GGML_ASSERT"):  # which ends llama.cpp's process
        quantizer.types_of({**g.fields, "llama.block_count": Value("u32", 100_000)}, tensors, "q4_k_m")


def test_without_llama_cpp_python_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer._ggml.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install -U 'yarn-convert\[llama-cpp\]'"):
        quantizer.types_of({}, [], "q4_k_m")


def test_an_imatrix_must_have_what_the_mix_needs(make_model: MakeModel) -> None:
    source = as_gguf(make_model(dtype="F16", **SHAPES["eight layers"]), "f16")
    g, whole = open_gguf(source), made_imatrix(source)
    name = "blk.3.ffn_up.weight"
    less = replace(whole, weights={k: v for k, v in whole.weights.items() if k != name})
    with pytest.raises(UsageError, match=f"nothing for {name}"):
        quantizer.types_of(g.fields, g.tensors.values(), "iq2_xs", less)
    wrong = replace(whole, weights={**whole.weights, name: np.ones((1, 255), np.float32)})
    with pytest.raises(UsageError, match=f"255 values for {name}"):
        quantizer.types_of(g.fields, g.tensors.values(), "q4_k_m", wrong)


def test_chunk_refuses_what_would_end_the_process() -> None:
    x = rng.standard_normal((2, 256)).astype(np.float32)
    with pytest.raises(UsageError, match="importance matrix"):
        quantizer.chunk(x, "IQ2_XS")
    with pytest.raises(UsageError, match="for a row of 256"):
        quantizer.chunk(x, "Q4_K", np.ones(255, np.float32))
    with pytest.raises(Unsupported, match="whole number"):
        quantizer.chunk(np.ascontiguousarray(x[:, :100]), "Q4_K")
    with pytest.raises(Unsupported, match="does not quantize to I8"):
        quantizer.chunk(x, "I8")
    x[1, 7] = np.nan
    with pytest.raises(InputError, match="NaN"):
        quantizer.chunk(x, "IQ1_M")
    with pytest.raises(InputError, match="too large for the float16 scales"):
        quantizer.chunk(np.full((1, 256), 1e30, np.float32), "Q4_K")


LARGE = {"f16": 1e5, "bf16": 3.4e38}  # finite numbers that become infinite; those of blocks of 32 have float16 scales
NAN = np.uint32([0x7FC00000, 0xFFC00000]).view(np.float32)


@pytest.mark.parametrize("ggml", [True, False], ids=["ggml", "the gguf package"])
@pytest.mark.parametrize(
    ("outtype", "value"),
    [
        *LARGE.items(),
        *((d.lower(), v) for d in quantizer.BLOCKS_OF_32 for v in (*NAN, np.inf, -np.inf, -1e30)),
        ("q8_0", 1e5),
        ("f16", 6e4),
    ],
)
def test_weights_that_a_type_cannot_hold_are_refused_where_llama_quantize_refuses_them(
    make_model: MakeModel, tmp_path: Path, outtype: str, value: float, ggml: bool, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """Never written as a NaN, an infinity or, as a negative NaN would be in Q4_0, as an innocent number."""
    monkeypatch.setitem(quantizer.MIXES, "f16", quantizer.Mix(1, "F16"))
    monkeypatch.setitem(quantizer.MIXES, "bf16", quantizer.Mix(32, "BF16"))
    g = open_gguf(as_gguf(make_model(ff=96, layers=1), "f32"))
    name = "blk.0.ffn_up.weight"
    x = g.tensors[name].read().view(np.float32).copy()
    x[500] = value
    source = write_gguf(
        tmp_path / "bad.gguf", g.fields, [replace(t, data=x.view(np.uint8) if t.name == name else t.read()) for t in g.tensors.values()]
    )
    refused = llama_quantize(source, tmp_path / "theirs.gguf", outtype) is None
    assert refused == (value not in (1e5, 6e4) or (outtype == "f16" and value == 1e5))
    if not ggml:
        request.getfixturevalue("without_ggml")
    try:
        convert(str(source), Recipe(method="none"), outtype=outtype, output=tmp_path / "ours.gguf")
    except InputError as e:
        assert refused and e.hint
        assert not (tmp_path / "ours.gguf").exists()
    else:
        assert not refused


def test_a_plain_type_keeps_a_nan_and_an_infinity_and_an_empty_piece_is_no_error() -> None:
    x = np.float32([np.nan, np.inf, -np.inf, 65519])
    for dtype in ("F32", "F16", "BF16"):
        dtypes.refuse_lost(x, dtypes.from_f32(x, dtype), dtype)
        dtypes.refuse_lost(x[:0], dtypes.from_f32(x[:0], dtype), dtype)


# -- the importance matrix --------------------------------------------------------------------------------------------


def gguf_imatrix(path: Path, change: Callable[[gguf.GGUFWriter], None] = lambda w: None, size: bool = True) -> Path:
    """As llama-imatrix writes it (tools/imatrix/imatrix.cpp, save_imatrix), by the gguf package."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.train.raw"])
    writer.add_uint32("imatrix.chunk_count", 7)
    if size:
        writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("a.weight.in_sum2", np.float32([[2, 4, 9], [5, 5, 5]]))
    writer.add_tensor("a.weight.counts", np.float32([[4], [0]]))
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy(*entries: tuple[bytes, int, list[float]], tail: bytes = b"", count: int | None = None) -> bytes:
    body = b"".join(
        struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values)) + struct.pack(f"<{len(values)}f", *values)
        for name, calls, values in entries
    )
    return struct.pack("<i", len(entries) if count is None else count) + body + tail


def test_an_imatrix_of_experts_in_gguf(tmp_path: Path) -> None:
    found = read_imatrix(gguf_imatrix(tmp_path / "i.gguf"))
    np.testing.assert_array_equal(found.weights["a.weight"], np.float32([[0.5, 1, 2.25], [1, 1, 1]]))  # an unused expert: ones
    assert (found.file, found.dataset, found.chunks) == ("i.gguf", "wiki.train.raw", 7)


def test_an_imatrix_in_dat(tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    tail = struct.pack("<ii", 9, 4) + b"text"
    path.write_bytes(legacy((b"a.weight", 4, [2, 4, 9]), (b"b.weight", 0, [3]), tail=tail))
    found = read_imatrix(path)
    np.testing.assert_array_equal(found.weights["a.weight"], np.float32([[0.5, 1, 2.25]]))
    np.testing.assert_array_equal(found.weights["b.weight"], np.float32([[3]]))
    assert (found.dataset, found.chunks) == ("text", 9)
    path.write_bytes(legacy((b"a.weight", 4, [2, 4, 9])))
    assert (read_imatrix(path).dataset, read_imatrix(path).chunks) == (None, 0)


def bad_imatrices(folder: Path) -> Iterator[tuple[str, Path]]:
    whole = legacy((b"a.weight", 4, [2.0, 4.0]), (b"b.weight", 4, [2.0, 4.0]))
    for name, data in {
        "empty": b"",
        "no entries": legacy(),
        "fewer than none": legacy(count=-1),
        "cut": whole[:-3],
        "more claimed": legacy((b"a", 1, [1.0]), count=2),
        "text": b"Once upon a time there was a file that was no imatrix at all",
        "a NaN": legacy((b"a", 1, [float("nan")])),
        "a negative length": struct.pack("<ii", 1, -5) + whole,
        "no values": legacy((b"a", 1, [])),
    }.items():
        (folder / f"{name}.dat").write_bytes(data)
        yield name, folder / f"{name}.dat"
    (folder / "negative.dat").write_bytes(legacy((b"a", 1, [1.0, -1.0])))
    yield "negative", folder / "negative.dat"  # some of ggml's searches would never end
    yield "no metadata", gguf_imatrix(folder / "1.gguf", size=False)
    yield "no counts", gguf_imatrix(folder / "2.gguf", lambda w: w.add_tensor("b.in_sum2", np.float32([1])))
    half = np.float16([1])
    yield "halves", gguf_imatrix(folder / "3.gguf", lambda w: [w.add_tensor(f"b.{k}", half) for k in ("in_sum2", "counts")] and None)
    three = {"b.in_sum2": np.ones(4, np.float32), "b.counts": np.ones(3, np.float32)}
    yield "unequal", gguf_imatrix(folder / "4.gguf", lambda w: [w.add_tensor(k, v) for k, v in three.items()] and None)


def test_a_bad_imatrix_is_a_format_error(tmp_path: Path) -> None:
    for name, path in bad_imatrices(tmp_path):
        try:
            read_imatrix(path)
        except FormatError:
            continue
        pytest.fail(f"{name} was read")
    with pytest.raises(InputError, match="cannot read"):
        read_imatrix(tmp_path / "none.dat")


def test_a_model_is_no_imatrix(make_model: MakeModel) -> None:
    with pytest.raises(FormatError, match="importance matrix"):
        read_imatrix(as_gguf(make_model(dtype="F16"), "f16"))


def dat_of(imatrix: Imatrix, path: Path) -> Path:
    path.write_bytes(legacy(*((name.encode(), 1, values.reshape(-1).tolist()) for name, values in imatrix.weights.items())))
    return path


@pytest.mark.parametrize("outtype", [d.lower() for d in quantizer.BLOCKS_OF_32])
def test_a_pure_type_with_an_imatrix_has_the_bytes_of_llama_quantize_pure(make_model: MakeModel, tmp_path: Path, outtype: str) -> None:
    """The keys that name an imatrix never stand over weights that were rounded without it."""
    source = as_gguf(make_model(dtype="F16", layers=1), "f16")
    imatrix = made_imatrix(source)
    file = dat_of(imatrix, tmp_path / "some.dat")
    out = tmp_path / "ours.gguf"
    convert(str(source), Recipe(method="none"), outtype=outtype, imatrix=file, output=out)
    assert llama_quantize(source, tmp_path / "theirs.gguf", outtype, read_imatrix(file), pure=True)
    ours, theirs = ({n: (t.dtype, t.read().tobytes()) for n, t in open_gguf(p).tensors.items()} for p in (out, tmp_path / "theirs.gguf"))
    assert ours == theirs
    assert open_gguf(out).get("quantize.imatrix.file") == "some.dat"


def test_an_imatrix_that_would_not_be_used_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    source = as_gguf(make_model(dtype="F16", layers=1), "f16")
    file = dat_of(made_imatrix(source), tmp_path / "some.dat")
    with pytest.raises(UsageError, match="quantized --outtype"):
        convert(str(source), Recipe(scale=4), out="safetensors", outtype="bf16", imatrix=file, output=tmp_path / "out")
    file.write_bytes(legacy((b"model.blk.0.ffn_up.weight", 1, [1.0] * 64)))
    for outtype in ("q4_k_m", "q4_0"):
        with pytest.raises(UsageError, match="nothing for any tensor"):
            convert(str(source), Recipe(scale=4), outtype=outtype, imatrix=file, output=tmp_path / "out.gguf")


def test_force_never_writes_over_the_imatrix(make_model: MakeModel, tmp_path: Path) -> None:
    source = as_gguf(make_model(dtype="F16", layers=1), "f16")
    file = dat_of(made_imatrix(source), tmp_path / "some.gguf")
    before = file.read_bytes()
    with pytest.raises(OutputError, match="inside one another"):
        convert(str(source), Recipe(scale=4), outtype="q4_k_m", imatrix=file, output=file, force=True)
    assert file.read_bytes() == before


def test_without_a_temporary_folder_there_is_one_clear_error(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    g = open_gguf(as_gguf(make_model(dtype="F16", layers=1), "f16"))
    with pytest.raises(OutputError, match="temporary") as e:
        quantizer.types_of(g.fields, g.tensors.values(), "q4_k_m")
    assert e.value.hint

"""What is written: byte for byte against llama.cpp's converter, there and back, and never half."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import forks
import gguf
import numpy as np
import pytest
from conftest import CONTEXT, MakeModel, split_options, tiny_weights
from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file

from yarn_convert.checkpoint.manifest import manifest_path, recipe_in
from yarn_convert.conversion import convert, prepare
from yarn_convert.errors import Inexpressible, InputError, OutputError, Unsupported, UsageError
from yarn_convert.formats import dtypes, quantizer
from yarn_convert.formats.gguf_file import Value, encode_header, open_gguf
from yarn_convert.formats.json_text import REMOVE, edit
from yarn_convert.formats.tensors import Tensor, in_memory, read_safetensors, safetensors_header
from yarn_convert.hearing import hearing
from yarn_convert.options import ConvertOptions, Recipe
from yarn_convert.rope import recipe_of, same, table
from yarn_convert.targets import places
from yarn_convert.targets.moving import bytes_of, unchanged
from yarn_convert.targets.safetensors import safetensors_job


def run(model: Path, out: Path, **options: Any) -> dict[str, Any]:
    fmt = "gguf" if out.suffix == ".gguf" else "safetensors"
    return convert(str(model), **split_options(output=out, out=fmt, **options)).to_dict()


@lru_cache(maxsize=3)
def reader(path: Path, state: tuple[int, ...]) -> gguf.GGUFReader:
    """Of a file in this state: a real vocabulary takes gguf-py seconds."""
    return gguf.GGUFReader(path)


def read(path: Path) -> gguf.GGUFReader:
    s = path.stat()
    return reader(path, (s.st_ino, s.st_size, s.st_mtime_ns))


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in read(path).tensors}


def fields_of(path: Path) -> dict[str, Any]:
    return {k: f.contents() for k, f in read(path).fields.items() if not k.startswith("GGUF.")}


# -- formats, as literals ---------------------------------------------------------------------------------------------


def test_a_gguf_header_byte_for_byte() -> None:
    header, offsets = encode_header(
        {"general.architecture": Value("str", "llama"), "a": Value("u32", 7), "b": Value("f32[]", [1.0, -2.0]), "c": Value("bool", True)},
        [Tensor("x", "F32", (2, 3), 24), Tensor("y", "Q8_0", (1, 32), 34)],
        32,
    )
    expected = (
        b"GGUF\x03\0\0\0" + struct.pack("<QQ", 2, 4)
        + b"\x14\0\0\0\0\0\0\0general.architecture" + b"\x08\0\0\0" + b"\x05\0\0\0\0\0\0\0llama"
        + b"\x01\0\0\0\0\0\0\0a" + b"\x04\0\0\0" + b"\x07\0\0\0"
        + b"\x01\0\0\0\0\0\0\0b" + b"\x09\0\0\0" + b"\x06\0\0\0" + b"\x02\0\0\0\0\0\0\0" + b"\0\0\x80?" + b"\0\0\0\xc0"
        + b"\x01\0\0\0\0\0\0\0c" + b"\x07\0\0\0" + b"\x01"
        + b"\x01\0\0\0\0\0\0\0x" + b"\x02\0\0\0" + struct.pack("<QQ", 3, 2) + b"\0\0\0\0" + struct.pack("<Q", 0)
        + b"\x01\0\0\0\0\0\0\0y" + b"\x02\0\0\0" + struct.pack("<QQ", 32, 1) + b"\x08\0\0\0" + struct.pack("<Q", 32)
    )  # fmt: skip
    assert header == expected + b"\0" * (-len(expected) % 32)
    assert offsets == {"x": len(header), "y": len(header) + 32}


def test_a_safetensors_file_is_the_librarys_byte_for_byte() -> None:
    """But for several entries of metadata, whose order the library leaves to chance."""
    arrays = {
        "a": np.arange(3.0),
        "b": np.ones((2, 1), np.float32),
        "é": np.zeros((0, 4), np.float32),
        "h": np.float16([1]),
        "i": np.int8([[-1]]),
    }
    names = {"<f8": "F64", "<f4": "F32", "<f2": "F16", "|i1": "I8"}
    pieces = [unchanged(in_memory(name, a, names[a.dtype.str])) for name, a in arrays.items()]
    assert bytes_of(safetensors_job("x", pieces)) == save(arrays, {"format": "pt"})


def test_a_safetensors_header_byte_for_byte() -> None:
    header, offsets = safetensors_header([Tensor("h", "BF16", (3,), 6), Tensor("w", "F32", (1, 2), 8)], {"format": "pt"})
    text = b'{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"h":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}}'
    text += b" " * (-len(text) % 8)
    assert header == struct.pack("<Q", len(text)) + text
    assert offsets == {"w": len(header), "h": len(header) + 8}


@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0"])
def test_rounding_equals_ggmls(dtype: str) -> None:
    """Against the gguf package, whose rounding is bit-exact to ggml's reference: normal, huge, tiny, and exact ties."""
    rng = np.random.default_rng(1)
    ties = (rng.integers(-127, 127, (64, 32)) + 0.5).astype(np.float32)
    ties[:, 0] = 127
    near = np.nextafter(ties, np.float32(0))
    near[:, 0] = 127  # then the scale is 1, and a value just below a half must not round up
    scales = np.float32([1e-42, 1e-8, 1e-3, 1, 1e4, 1e9])[:, None, None]
    x = np.concatenate([ties, near, (rng.standard_normal((6, 64, 32)) * scales).reshape(-1, 32), np.zeros((2, 32))]).astype(np.float32)
    with np.errstate(all="ignore"):
        expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType[dtype]).reshape(-1).view(np.uint8)
        found = quantizer.with_package(x, dtype)[0] if dtype == "Q8_0" else dtypes.from_f32(x.reshape(-1), dtype)
        np.testing.assert_array_equal(found, expected)


def test_infinity_and_nan_survive_bf16() -> None:
    x = np.float32([np.inf, -np.inf, np.nan, 3.4e38])
    back = dtypes.to_f32(dtypes.from_f32(x, "BF16"), "BF16")
    assert np.isposinf(back[0])
    assert np.isneginf(back[1])
    assert np.isnan(back[2])
    assert np.isposinf(back[3])


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        (
            '{\n  "a": 1e-5,\n  "b": {"x": [1,\n 2]},\n  "c": null\n}\n',
            {"b": 2, "d": [1.0]},
            '{\n  "a": 1e-5,\n  "b": 2,\n  "c": null,\n  "d": [\n    1.0\n  ]\n}\n',
        ),
        ('{"a":1,  "b":2}', {"a": REMOVE, "c": "é"}, '{"b":2,  "c": "é"}'),
        ("{}", {"a": 1}, '{\n  "a": 1\n}'),
        ('{\n\t"a": {"k": 1.0}\n}', {"a": {"k": 2}}, '{\n\t"a": {\n\t\t"k": 2\n\t}\n}'),
        ('{"a": 1}', {}, '{"a": 1}'),
    ],
)
def test_json_is_edited_in_its_text(text: str, changes: dict[str, Any], expected: str) -> None:
    assert edit(text, changes) == expected
    assert json.loads(expected) == {k: v for k, v in {**json.loads(text), **changes}.items() if v is not REMOVE}


# -- HF to GGUF, against llama.cpp's converter ------------------------------------------------------------------------

ORACLE = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"  # it knows pre-tokenizers by a hash of the real vocabulary
sys.argv = ["convert_hf_to_gguf.py", sys.argv[2], "--outfile", sys.argv[3], "--outtype", sys.argv[4]]
import runpy
runpy.run_path(base.__file__.replace("conversion/base.py", "convert_hf_to_gguf.py"), run_name="__main__")
"""


def oracle(converter: Path, model: Path, out: Path, outtype: str) -> Path:
    forks.run([sys.executable, "-c", ORACLE, str(converter.parent), str(model), str(out), outtype])
    return out


SHAPES: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "tied": {"tied": True},
    "biases": {"biases": True, "kv_heads": 4},
    "wide heads": {"heads": 2, "kv_heads": 1, "head_dim": 48, "config": {"head_dim": 48}},
    "odd rows": {"ff": 80},
}


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize(
    ("shape", "dtype"), [("grouped heads", "BF16"), ("tied", "F16"), ("biases", "F32"), ("wide heads", "BF16"), ("odd rows", "F32")]
)
def test_tensors_equal_llama_cpps_converter_byte_for_byte(
    converter: Path, make_model: MakeModel, tmp_path: Path, shape: str, dtype: str, outtype: str
) -> None:
    model = make_model(dtype=dtype, **SHAPES[shape])
    run(model, tmp_path / "ours.gguf", method="none", outtype=outtype)
    theirs = oracle(converter, model, tmp_path / "theirs.gguf", outtype)
    assert tensors_of(tmp_path / "ours.gguf") == tensors_of(theirs)
    ours, expected = fields_of(tmp_path / "ours.gguf"), fields_of(theirs)
    extra = {"yarn_convert.recipe", "llama.rope.scaling.type"}
    assert {k: v for k, v in ours.items() if k not in extra} == expected


@pytest.mark.parametrize(
    "scaling", [{"rope_type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}]
)
def test_rope_keys_equal_the_converters_where_it_gets_them_right(
    converter: Path, make_model: MakeModel, tmp_path: Path, scaling: dict[str, Any]
) -> None:
    model = make_model(config={"rope_scaling": scaling})
    run(model, tmp_path / "ours.gguf", method="none")
    ours, expected = fields_of(tmp_path / "ours.gguf"), fields_of(oracle(converter, model, tmp_path / "theirs.gguf", "f32"))
    assert {k: v for k, v in ours.items() if ".rope." in k} == {k: v for k, v in expected.items() if ".rope." in k}


def test_llama3_scaling_equals_the_converters(converter: Path, make_model: MakeModel, tmp_path: Path) -> None:
    """rope_freqs.weight to float32: the converter computes it in float32, we in float64."""
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model = make_model(config={"rope_scaling": scaling, "max_position_embeddings": 256})
    run(model, tmp_path / "ours.gguf", method="none")
    ours, theirs = (
        tensors_of(p)["rope_freqs.weight"][1] for p in (tmp_path / "ours.gguf", oracle(converter, model, tmp_path / "theirs.gguf", "f32"))
    )
    np.testing.assert_allclose(np.frombuffer(ours, "<f4"), np.frombuffer(theirs, "<f4"), rtol=1e-6)
    assert len(set(np.frombuffer(ours, "<f4"))) > 2


# -- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_gguf_to_hf_to_gguf_keeps_every_tensor_bit_for_bit(make_model: MakeModel, tmp_path: Path, shape: str) -> None:
    run(make_model(**SHAPES[shape]), tmp_path / "a.gguf", scale=4)
    run(tmp_path / "a.gguf", tmp_path / "hf", method="none")
    run(tmp_path / "hf", tmp_path / "b.gguf", method="none")
    assert tensors_of(tmp_path / "a.gguf") == tensors_of(tmp_path / "b.gguf")
    a, b = fields_of(tmp_path / "a.gguf"), fields_of(tmp_path / "b.gguf")
    # The recipe spells out what config.json must say (betas); the head sizes are implied where heads × head_dim = hidden.
    optional = ("general.", "yarn_convert.", "llama.attention.key_length", "llama.attention.value_length")
    assert {k: v for k, v in a.items() if not k.startswith(optional)} == {k: v for k, v in b.items() if not k.startswith(optional)}


def test_hf_to_gguf_to_hf_keeps_every_weight_bit_for_bit(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(dtype="F16", shards=3)
    run(model, tmp_path / "a.gguf", method="none")
    run(tmp_path / "a.gguf", tmp_path / "hf", method="none")
    back = load_file(tmp_path / "hf" / "model.safetensors")
    for name, w in tiny_weights().items():
        expected = w.astype(np.float16)
        np.testing.assert_array_equal(back[name].astype(np.float16), expected)
        assert back[name].dtype == (np.float32 if w.ndim == 1 else np.float16), "vectors are float32 in GGUF"


def test_the_real_gguf_keeps_its_quantized_bytes_tokenizer_and_every_other_key(smollm2: Path, tmp_path: Path) -> None:
    manifest = run(smollm2, tmp_path / "out.gguf", scale=4)
    assert manifest["weights"]["identical_to_base"]
    assert tensors_of(tmp_path / "out.gguf") == tensors_of(smollm2)
    before, after = fields_of(smollm2), fields_of(tmp_path / "out.gguf")
    changed = {k: after.get(k) for k in before | after if before.get(k) != after.get(k)}
    recipe = json.loads(changed.pop("yarn_convert.recipe"))
    assert changed == {
        "llama.context_length": 32768,
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 8192,
    }
    assert (
        recipe
        == manifest["recipe"]
        == {"method": "yarn", "rope_theta": 1e5, "rotary_dim": 64, "original_context": 8192, "params": {"factor": 4.0}}
    )


def test_the_real_model_goes_to_hf_and_back(smollm2: Path, tmp_path: Path) -> None:
    """Dequantized once, the weights then survive GGUF -> HF -> GGUF bit for bit, and so do the F32 tensors of the source."""
    run(smollm2, tmp_path / "f32.gguf", method="none", outtype="f32")
    run(smollm2, tmp_path / "hf", method="none")
    run(tmp_path / "hf", tmp_path / "back.gguf", method="none")
    back, source = tensors_of(tmp_path / "back.gguf"), tensors_of(smollm2)
    assert back == tensors_of(tmp_path / "f32.gguf")
    plain = {name: t for name, t in source.items() if t[0] == "F32"}
    assert len(plain) == 61
    assert plain.items() <= back.items()
    skip = ("general.", "yarn_convert.", "llama.rope.scaling.type", "llama.attention.key_length", "llama.attention.value_length")
    fields, expected = fields_of(tmp_path / "back.gguf"), fields_of(smollm2)
    assert {k: v for k, v in fields.items() if not k.startswith(skip)} == {k: v for k, v in expected.items() if not k.startswith(skip)}


def test_a_header_read_and_written_again_is_the_same(smollm2: Path) -> None:
    g = open_gguf(smollm2)
    header, _ = encode_header(g.fields, g.tensors.values(), g.alignment)
    assert header == smollm2.read_bytes()[: g.data_start]
    decoded = {k: f.value for k, f in g.fields.items()}
    assert decoded == fields_of(smollm2)
    again = {k: Value(f.type, f.value) for k, f in g.fields.items()}
    assert encode_header(again, g.tensors.values(), g.alignment)[0] == header


# -- HF to HF ---------------------------------------------------------------------------------------------------------


def test_an_hf_folder_is_extended_by_its_config_alone(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(shards=2, config={"custom_key": [1, 2], "rms_norm_eps": 1e-05})
    (model / "generation_config.json").write_text('{"max_length": 64, "temperature": 0.60}')
    (model / "README.md").write_text("a card")
    (model / "training_args.bin").write_bytes(b"not ours")
    manifest = run(model, tmp_path / "out", scale=4)
    out = tmp_path / "out"
    assert manifest["weights"]["identical_to_base"]
    assert [f["how"] for f in manifest["weights"]["files"]] == ["copy", "copy"]
    for file in sorted(model.glob("model*")):
        assert (out / file.name).read_bytes() == file.read_bytes()
    before, after = ((p / "config.json").read_text() for p in (model, out))
    kept = [line.rstrip(",") for line in before.splitlines() if not any(k in line for k in ("max_position", "rope_"))]
    assert [line for line in (line.rstrip(",") for line in after.splitlines()) if line in kept][: len(kept) - 1] == kept[:-1], (
        "order and formatting stay"
    )
    assert json.loads(after)["max_position_embeddings"] == 4 * CONTEXT
    assert (out / "generation_config.json").read_text() == '{"max_length": 256, "temperature": 0.60}'
    assert (out / "README.md").read_text() == "a card"
    assert not (out / "training_args.bin").exists()
    meant = table(recipe_in(json.loads((out / "yarn_convert.json").read_text())["recipe"]).rope())
    assert same(meant, table(prepare(str(out), ConvertOptions(Recipe(method="none"))).extension.rope))


def test_hard_links_share_the_weights(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    manifest = run(model, tmp_path / "out", scale=4, link=True)
    assert manifest["weights"]["files"][0]["how"] == "hard link"
    assert (tmp_path / "out" / "model.safetensors").samefile(model / "model.safetensors")


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16"])
def test_hf_to_hf_with_another_type(make_model: MakeModel, tmp_path: Path, outtype: str) -> None:
    torch = pytest.importorskip("torch")
    run(make_model(), tmp_path / "out", scale=4, outtype=outtype)
    expected = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[outtype]
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as f:
        for name, w in tiny_weights().items():
            assert torch.equal(f.get_tensor(name), torch.from_numpy(w).to(torch.float32 if w.ndim == 1 else expected))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == str(expected).removeprefix("torch.")


def test_pytorch_pickles_become_safetensors(make_model: MakeModel, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = make_model()
    (model / "model.safetensors").unlink()
    torch.save({k: torch.from_numpy(v) for k, v in tiny_weights().items()}, model / "pytorch_model.bin")
    run(model, tmp_path / "out", scale=4)
    for name, w in load_file(tmp_path / "out" / "model.safetensors").items():
        np.testing.assert_array_equal(w, tiny_weights()[name])
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()
    run(model, tmp_path / "out.gguf", scale=4)
    assert open_gguf(tmp_path / "out.gguf").tensors.keys() >= {"token_embd.weight", "output.weight"}


def test_stray_buffers_of_old_checkpoints_are_dropped_from_gguf(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32) for i in range(2)}
    save_file({**tiny_weights(), **buffers}, model / "model.safetensors")
    run(model, tmp_path / "out.gguf", scale=4)
    assert not any("inv_freq" in name for name in open_gguf(tmp_path / "out.gguf").tensors)


def test_large_weights_are_written_in_shards(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yarn_convert.targets.safetensors.SHARD", 100_000)
    run(make_model(), tmp_path / "a.gguf", scale=4)
    run(tmp_path / "a.gguf", tmp_path / "hf", method="none")
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert {p.name for p in (tmp_path / "hf").glob("*.safetensors")} == files
    for name, w in tiny_weights().items():
        np.testing.assert_array_equal(load_file(tmp_path / "hf" / index["weight_map"][name])[name], w)


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_between_disks_bytes_are_moved_without_the_kernel(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """copy_file_range does not go from one file system to another everywhere (EXDEV)."""

    def refused(*_: Any) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    model = make_model(dtype="BF16")
    run(model, tmp_path / "base.gguf", method="none")
    base = tmp_path / "base.gguf" if name.endswith(".gguf") else model
    run(base, tmp_path / f"same-{name}", scale=4)
    monkeypatch.setattr(os, "copy_file_range", refused, raising=False)
    run(base, tmp_path / name, scale=4)
    weights = ["model.safetensors"] if name == "out" else [""]
    assert all((tmp_path / name / w).read_bytes() == (tmp_path / f"same-{name}" / w).read_bytes() for w in weights)


# -- explicit frequencies ---------------------------------------------------------------------------------------------


def test_the_papers_ramp_is_carried_as_tensors(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    manifest = run(model, tmp_path / "out", scale=4, ramp="paper", cos_sin=True)
    assert manifest["carrier"] == "tensors"
    rope = recipe_in(manifest["recipe"]).rope()
    inv_freq, m = table(rope)
    tensors, metadata = read_safetensors(tmp_path / "out" / "rope.safetensors")
    np.testing.assert_array_equal(tensors["rotary_emb.inv_freq"].read().view("<f8"), inv_freq)
    assert float(metadata["attention_factor"]) == m
    assert recipe_in(json.loads(metadata["recipe"])).rope() == rope
    cos = tensors["rotary_emb.cos_cached"].read().view("<f4").reshape(4 * CONTEXT, -1)
    np.testing.assert_allclose(cos[100], np.cos(100 * inv_freq) * m, rtol=1e-6)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_scaling"]["rope_type"] == "longrope"
    run(model, tmp_path / "out.gguf", scale=4, ramp="paper")
    g = open_gguf(tmp_path / "out.gguf")
    assert g.get("llama.rope.scaling.type") == "none"
    assert g.get("llama.rope.scaling.attn_factor") == pytest.approx(m)
    np.testing.assert_allclose(
        g.tensors["rope_freqs.weight"].read().view("<f4"), 10000.0 ** (-np.arange(0, 16, 2) / 16) / inv_freq, rtol=1e-7
    )


def test_metadata_that_llama_cpp_would_ignore_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    for options in ({"beta_fast": 16.0}, {"truncate": False}, {"ramp": "paper"}):
        with pytest.raises(Inexpressible, match="llama"):
            run(model, tmp_path / "out.gguf", scale=4, carry="metadata", **options)
    assert not (tmp_path / "out.gguf").exists()


def test_a_scaled_base_is_rescaled_or_composed(make_model: MakeModel, tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": CONTEXT}
    model = make_model(config={"rope_scaling": yarn, "max_position_embeddings": 2 * CONTEXT})
    e = prepare(str(model), ConvertOptions(Recipe(scale=8))).extension
    assert (e.rope.original_context, e.context, e.rope.inner) == (CONTEXT, 8 * CONTEXT, None)
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": CONTEXT,
    }
    model = make_model(name="l3", config={"rope_scaling": llama3, "max_position_embeddings": 512})
    conversion = prepare(str(model), ConvertOptions(Recipe(scale=4)))
    rope = conversion.extension.rope
    assert rope.inner is not None
    assert (rope.inner.method, rope.original_context, conversion.extension.context) == ("llama3", 512, 2048)
    assert conversion.plan.carrier == "tensors"
    assert conversion.plan.verdicts["transformers-5"].exact


@pytest.mark.parametrize("out", ["out", "out.gguf"])
def test_a_change_of_format_changes_no_later_extension(make_model: MakeModel, tmp_path: Path, out: str) -> None:
    """The llama3 of an output of `--method none` is the base's own, and is kept as the base's."""
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    model = make_model(config={"rope_scaling": llama3, "max_position_embeddings": 512})
    run(model, tmp_path / out, method="none")
    base, again = (prepare(str(m), ConvertOptions(Recipe(scale=4))).extension for m in (model, tmp_path / out))
    assert (again.rope, again.context) == (base.rope, base.context) and again.rope.inner is not None


def test_lengths_that_follow_the_context_are_set(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    path = model / "tokenizer_config.json"
    path.write_text(edit(path.read_text(), {"model_max_length": CONTEXT}))
    run(model, tmp_path / "out", context=200)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["max_position_embeddings"] == 200 == config["rope_scaling"]["factor"] * CONTEXT
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 200


def test_mistrals_head_dim_is_spelled_out(make_model: MakeModel, tmp_path: Path) -> None:
    """transformers 4 leaves an absent head_dim None for Mistral, and its yarn then fails."""
    model = make_model(config={"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None})
    run(model, tmp_path / "out", scale=4.0)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["head_dim"] == 16


def test_a_sliding_window_cannot_be_lost(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(config={"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 32})
    with pytest.raises(Inexpressible, match="sliding window"):
        run(model, tmp_path / "out.gguf", scale=4)
    run(model, tmp_path / "out.gguf", scale=4, sliding_window="off")
    assert run(model, tmp_path / "kept", scale=4)["notes"]
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["sliding_window"] == 32
    run(model, tmp_path / "off", scale=4, sliding_window="off")
    assert json.loads((tmp_path / "off" / "config.json").read_text())["sliding_window"] is None


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "gelu"), ("partial_rotary_factor", 0.5)])
def test_what_llama_cpps_graph_would_not_compute_is_refused(make_model: MakeModel, tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(Inexpressible, match=key):
        run(make_model(config={key: value}), tmp_path / "out.gguf", scale=4)


def test_biases_that_config_json_cannot_describe_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    """transformers' attention_bias means q, k, v and o; a GGUF with three of them would get a made-up fourth."""
    model = make_model(biases=True)
    weights = {k: v for k, v in tiny_weights(biases=True).items() if not k.endswith("v_proj.bias")}
    save_file(weights, model / "model.safetensors")
    run(model, tmp_path / "a.gguf", scale=4)
    with pytest.raises(Unsupported, match="bias"):
        run(tmp_path / "a.gguf", tmp_path / "hf", method="none")


# -- in place ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"ramp": "paper"}, {"method": "ntk-aware"}])
def test_in_place_equals_a_new_file(make_model: MakeModel, tmp_path: Path, options: dict[str, Any]) -> None:
    run(make_model(), tmp_path / "a.gguf", method="none")
    run(tmp_path / "a.gguf", tmp_path / "new.gguf", scale=4, **options)
    before = (tmp_path / "a.gguf").stat().st_ino
    try:
        convert(str(tmp_path / "a.gguf"), **split_options(scale=4, in_place=True, **options))
    except OutputError as e:
        assert "cannot insert" in e.message
        pytest.skip("this file system cannot insert a range")
    assert (tmp_path / "a.gguf").stat().st_ino == before
    assert tensors_of(tmp_path / "a.gguf") == tensors_of(tmp_path / "new.gguf")
    a, b = (fields_of(tmp_path / n) for n in ("a.gguf", "new.gguf"))
    assert json.loads(a.pop("yarn_convert.recipe")) == json.loads(b.pop("yarn_convert.recipe"))
    assert a == b
    assert manifest_path(tmp_path / "a.gguf").exists()
    # and once more, over the result: the frequencies are replaced where they lie
    convert(str(tmp_path / "a.gguf"), Recipe(context=512, original_context=CONTEXT), in_place=True)
    assert open_gguf(tmp_path / "a.gguf").get("llama.context_length") == 512


# -- atomic -----------------------------------------------------------------------------------------------------------


def test_an_existing_output_is_refused_and_replaced_only_by_force(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    run(model, tmp_path / "out", scale=2)
    with pytest.raises(OutputError, match="exists"):
        run(model, tmp_path / "out", scale=4)
    run(model, tmp_path / "out", scale=4, force=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 4 * CONTEXT
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "tiny"]


def test_force_never_deletes_a_folder_that_is_not_ours(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    with pytest.raises(OutputError, match="not written by yarn-convert"):
        run(model, tmp_path / "precious", scale=4, force=True)
    assert (tmp_path / "precious" / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["notes.txt", "adapter/adapter_model.safetensors", ".git/HEAD", "README.md", "link"])
def test_force_never_deletes_what_was_put_into_an_output(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    model, out = make_model(), tmp_path / "out"
    run(model, out, scale=4, carry="tensors", outtype="f16")
    (out / name).parent.mkdir(exist_ok=True)
    if name == "link":
        (out / name).symlink_to(model)
    else:
        (out / name).write_text("years")
    with pytest.raises(OutputError, match=name) as e:
        run(model, out, scale=8, force=True)
    assert e.value.hint
    assert (out / name).is_symlink() or (out / name).read_text() == "years"
    (out / name).unlink()
    run(model, out, scale=8, force=True)  # what the earlier run alone wrote, rope.safetensors, is no obstacle
    assert not (out / "rope.safetensors").exists()


def test_force_replaces_a_link_and_leaves_what_it_points_to(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    run(model, tmp_path / "real", scale=2)
    (tmp_path / "out").symlink_to("real")
    run(model, tmp_path / "out", scale=4, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "real", "tiny"]
    lengths = [json.loads((tmp_path / f / "config.json").read_text())["max_position_embeddings"] // CONTEXT for f in ("real", "out")]
    assert lengths == [2, 4] and not (tmp_path / "out").is_symlink()


def test_an_output_that_cannot_take_its_place_leaves_the_old_one(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    run(model, tmp_path / "out", scale=2)

    def fails(*_: Any) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(places, "_renameat2", fails)
    with pytest.raises(OutputError, match="Input/output"):
        run(model, tmp_path / "out", scale=4, force=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 2 * CONTEXT
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "tiny"]


def test_a_killed_conversion_leaves_nothing_under_the_final_name(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    script = (
        "import time, sys; from pathlib import Path; from yarn_convert.targets import moving\n"
        "slow = moving.copy_range\n"
        "def drip(*a):\n    n = slow(*a); print('moving', flush=True); time.sleep(60); return n\n"
        "moving.copy_range = drip\n"
        "from yarn_convert import Recipe, convert\n"
        f"convert({str(model)!r}, Recipe(scale=4), output=Path(sys.argv[1]))"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert "moving" in child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "out").exists()
    run(model, tmp_path / "out", scale=4)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tiny_weights().keys()


def test_a_weight_file_is_no_model_until_its_last_byte(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    from yarn_convert.targets import moving

    real = moving.Mover._piece

    def spy(self: Any, path: Path, piece: Any, offset: int) -> None:
        real(self, path, piece, offset)
        seen.append(path.read_bytes()[:8])

    monkeypatch.setattr(moving.Mover, "_piece", spy)
    run(make_model(), tmp_path / "out.gguf", scale=4)
    assert set(seen) == {b"\0" * 8}
    assert (tmp_path / "out.gguf").read_bytes()[:4] == b"GGUF"


def test_manifest_hashes(make_model: MakeModel, tmp_path: Path) -> None:
    import hashlib

    manifest = run(make_model(), tmp_path / "out.gguf", scale=4, hash=True)
    assert manifest["weights"]["files"][0]["sha256"] == hashlib.sha256((tmp_path / "out.gguf").read_bytes()).hexdigest()
    assert {"output": str(tmp_path / "out.gguf"), **json.loads((tmp_path / "out.yarn_convert.json").read_text())} == manifest
    assert recipe_in(json.loads(json.dumps(manifest["recipe"]))).rope() == recipe_in(manifest["recipe"]).rope()
    assert recipe_of(recipe_in(manifest["recipe"]).rope()) == manifest["recipe"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "how far"),
        ({"scale": float("nan")}, "--scale"),
        ({"scale": -1.0}, "--scale"),
        ({"scale": 1.0}, "no extension"),
        ({"context": 32}, "no extension"),
        ({"scale": 2.0, "context": 512}, "disagree"),
        ({"scale": 2.0, "method": "magic"}, "magic"),
        ({"scale": 2.0, "method": "linear", "beta_fast": 3.0}, "beta-fast"),
        ({"scale": 2.0, "method": "linear", "ramp": "paper"}, "no ramp"),
        ({"scale": 2.0, "ramp": "paper", "truncate": False}, "no-truncate"),
        ({"scale": 2.0, "method": "none"}, "none"),
        ({"scale": 2.0, "cos_sin": True}, "cos-sin"),
        ({"scale": 2.0, "carry": "pigeon"}, "pigeon"),
        ({"scale": 2.0, "output": Path("x.GGUF")}, "named like a GGUF"),
        ({"scale": 2.0, "output": Path("x.safetensors")}, "named like a file"),
        ({"scale": 2.0, "output": Path("-")}, "stands for stdout"),
    ],
)
def test_options_that_make_no_sense(make_model: MakeModel, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        prepare(str(make_model()), ConvertOptions(**split_options(**options)))


def test_a_missing_model_gets_a_suggestion() -> None:
    with pytest.raises(InputError) as e:
        prepare("lama2-7b", ConvertOptions(Recipe(scale=4)))
    assert "llama2-7b" in e.value.hint


def test_an_unknown_pre_tokenizer_is_refused_until_it_is_named(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Punctuation", "behavior": "Isolated"}, tokenizer["pre_tokenizer"]],
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(Unsupported, match="Punctuation") as e:
        run(model, tmp_path / "out.gguf", scale=4)
    assert "--pretokenizer" in e.value.hint
    run(model, tmp_path / "out.gguf", scale=4, pretokenizer="smollm")
    assert open_gguf(tmp_path / "out.gguf").get("tokenizer.ggml.pre") == "smollm"
    with pytest.raises(UsageError, match="--pretokenizer"):
        run(model, tmp_path / "hf", scale=4, pretokenizer="smollm")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"config": {"num_hidden_layers": 1}}, "beyond the 1"),
        ({"config": {"intermediate_size": 128}}, "shape"),
        ({"biases": True, "config": {"attention_bias": False}}, "does not turn on"),
        ({"tied": True, "config": {"tie_word_embeddings": False}}, "lm_head.weight"),
        ({"config": {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}}, "disagree"),
    ],
)
def test_a_config_that_does_not_describe_its_weights_is_refused(make_model: MakeModel, options: dict[str, Any], says: str) -> None:
    with pytest.raises((InputError, Unsupported), match=says):
        prepare(str(make_model(**options)), ConvertOptions(Recipe(scale=4)))


def test_a_tied_model_with_another_head_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="lm_head"):
        run(make_model(config={"tie_word_embeddings": True}), tmp_path / "out.gguf", scale=4)


@pytest.mark.parametrize("method", ["linear", "ntk-aware", "yarn"])
def test_our_own_output_is_rescaled_from_its_true_context(make_model: MakeModel, tmp_path: Path, method: str) -> None:
    model = make_model()
    for name in ("a.gguf", "a"):
        run(model, tmp_path / name, scale=4, method=method)
        e = prepare(str(tmp_path / name), ConvertOptions(Recipe(scale=8))).extension
        assert (e.rope.original_context, e.context, e.rope.theta, e.rope.inner) == (CONTEXT, 8 * CONTEXT, 10000.0, None)


@pytest.mark.parametrize("out", ["o", "o.gguf", "in place"])
def test_what_is_hashed_is_what_was_written_and_counts_as_progress(make_model: MakeModel, tmp_path: Path, out: str) -> None:
    model, path = make_model(), tmp_path / ("m.gguf" if out == "in place" else out)
    options = ConvertOptions(Recipe(scale=4.0), out="safetensors" if out == "o" else "gguf", output=path, hash=True)
    if out == "in place":
        convert(str(model), Recipe(method="none"), out="gguf", output=path)
        model, options = path, ConvertOptions(Recipe(scale=4.0), in_place=True, hash=True, carry="metadata")
    conversion, said = prepare(str(model), options), list[tuple[str, float]]()
    with hearing(lambda call, what, fraction, more: said.append((what, fraction))):
        (entry,) = conversion.run().manifest.weights.files
    written = path / entry.file if out == "o" else path
    assert entry.sha256 == hashlib.sha256(written.read_bytes()).hexdigest()
    *parts, (_, _) = said
    fractions = [fraction for _, fraction in parts]
    assert {what for what, _ in parts} == {f"writing {path.name}"} and fractions == sorted(fractions)
    if out == "in place":
        assert 0.5 < fractions[-1] < 1, "what the edit writes itself is not read again"
    else:
        assert fractions[-3] < 1 == fractions[-1], "at most the manifest comes after all that was foreseen"

"""gpt-oss: its experts in bfloat16 and in 4 bits, to GGUF and back, and the YaRN that llama.cpp cannot compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, split_options
from family_models import make
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_targets import oracle

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.conversion import convert, extend
from yarn_convert.errors import FormatError, Inexpressible, Unsupported
from yarn_convert.options import Recipe, ValidateOptions
from yarn_convert.targets import rows
from yarn_convert.validation import check

torch = pytest.importorskip("torch")
EXPERTS, FF, HIDDEN, LAYERS = 4, 96, 64, 2


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float32 and without scaling."""
    return make("gpt_oss/plain", tmp_path_factory.mktemp("gpt_oss") / "plain")


@pytest.fixture(scope="session")
def mxfp4(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with random 4-bit experts, spelled as OpenAI publishes them."""
    folder = tmp_path_factory.mktemp("gpt_oss_mxfp4") / "mxfp4"
    folder.mkdir()
    for file in plain.iterdir():
        if file.name != "model.safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    rng, weights = np.random.default_rng(0), load_file(plain / "model.safetensors")
    for name in [n for n in weights if n.endswith(("gate_up_proj", "down_proj"))]:
        e, columns, out = weights.pop(name).shape
        weights[f"{name}_blocks"] = rng.integers(0, 256, (e, out, columns // 32, 16), dtype=np.uint8)
        weights[f"{name}_scales"] = rng.integers(121, 126, (e, out, columns // 32), dtype=np.uint8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def to_gguf(model: Path, out: Path, **options: Any) -> dict[str, Any]:
    convert(str(model), **split_options(**{"method": "none", **options}, out="gguf", output=out))
    return {t.name: t for t in GGUFReader(out).tensors}


def published(weights: dict[str, Any], name: str) -> np.ndarray:
    """What transformers makes of the 4-bit blocks of an expert matrix: float32 (experts, columns, rows)."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = (torch.from_numpy(weights[f"{name}_{x}"]) for x in ("blocks", "scales"))
    return convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).numpy()


def expert(i: int, part: str) -> str:
    return f"model.layers.{i}.mlp.experts.{part}"


def split(w: np.ndarray) -> dict[str, np.ndarray]:
    """Gate and up of (experts, hidden, 2·ff), as matrices (experts, ff, hidden)."""
    return {"gate": w[..., 0::2].swapaxes(1, 2), "up": w[..., 1::2].swapaxes(1, 2)}


def test_plain_experts_are_taken_apart_and_put_together(plain: Path, tmp_path: Path) -> None:
    tensors, weights = to_gguf(plain, tmp_path / "a.gguf"), load_file(plain / "model.safetensors")
    for i in range(LAYERS):
        for part, w in split(weights[expert(i, "gate_up_proj")]).items():
            assert np.array_equal(tensors[f"blk.{i}.ffn_{part}_exps.weight"].data, w)
        bias = weights[expert(i, "gate_up_proj_bias")]
        assert np.array_equal(tensors[f"blk.{i}.ffn_up_exps.bias"].data, bias[:, 1::2])
        assert np.array_equal(tensors[f"blk.{i}.ffn_down_exps.weight"].data, weights[expert(i, "down_proj")].swapaxes(1, 2))
    convert(str(tmp_path / "a.gguf"), Recipe(method="none"), out="safetensors", output=tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert {k: v.tobytes() for k, v in back.items()} == {k: v.tobytes() for k, v in weights.items()}


@pytest.mark.parametrize("piece", [1, 4 << 20], ids=["a row at a time", "all at once"])
def test_four_bits_are_repacked_as_they_are(mxfp4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """The gguf package makes of our blocks, number by number, what transformers makes of the published ones."""
    monkeypatch.setattr(rows, "READ_PIECE", piece)
    tensors, weights = to_gguf(mxfp4, tmp_path / "a.gguf"), load_file(mxfp4 / "model.safetensors")
    for i in range(LAYERS):
        wanted = split(published(weights, expert(i, "gate_up_proj")))
        wanted["down"] = published(weights, expert(i, "down_proj")).swapaxes(1, 2)
        for part, w in wanted.items():
            t = tensors[f"blk.{i}.ffn_{part}_exps.weight"]
            assert t.tensor_type.name == "MXFP4"
            assert np.array_equal(dequantize(t.data, t.tensor_type), w), part
    assert {t.tensor_type.name for t in tensors.values()} == {"MXFP4", "F32"}


@pytest.mark.parametrize("kind", ["plain", "mxfp4"])
def test_the_files_are_those_of_llama_cpps_converter(kind: str, converter: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    theirs = {t.name: t for t in GGUFReader(oracle(converter, model, tmp_path / "b.gguf", "f32")).tensors}
    ours = to_gguf(model, tmp_path / "a.gguf")
    assert ours.keys() == theirs.keys()
    for name, t in theirs.items():
        assert (ours[name].tensor_type, ours[name].data.tobytes()) == (t.tensor_type, t.data.tobytes()), name


def test_four_bits_become_numbers_in_another_type(mxfp4: Path, tmp_path: Path) -> None:
    """MXFP4 fits into bfloat16 exactly: a GGUF of it becomes an HF folder that says the same; so does a GGUF in bf16."""
    weights = load_file(mxfp4 / "model.safetensors")
    to_gguf(mxfp4, tmp_path / "a.gguf")
    convert(str(tmp_path / "a.gguf"), Recipe(method="none"), out="safetensors", output=tmp_path / "back")
    with safe_open(tmp_path / "back" / "model.safetensors", "pt") as back:
        w = back.get_tensor(expert(1, "gate_up_proj"))
    assert w.dtype == torch.bfloat16
    assert np.array_equal(w.float().numpy(), published(weights, expert(1, "gate_up_proj")))
    t = to_gguf(mxfp4, tmp_path / "b.gguf", outtype="bf16")["blk.0.ffn_up_exps.weight"]
    assert t.tensor_type.name == "BF16"
    assert np.array_equal(dequantize(t.data, t.tensor_type), split(published(weights, expert(0, "gate_up_proj")))["up"])


def test_a_folder_keeps_its_four_bits(mxfp4: Path, tmp_path: Path) -> None:
    convert(str(mxfp4), Recipe(scale=4), output=tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (mxfp4 / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["quant_method"] == "mxfp4"


@pytest.mark.parametrize("kind", ["plain", "mxfp4"])
def test_an_extended_model_validates_in_llama_cpp(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Past the original window, against the reference; 4-bit weights are dequantized by ours on one side."""
    pytest.importorskip("llama_cpp")
    model = request.getfixturevalue(kind)
    to_gguf(model, tmp_path / "out.gguf", method="yarn", scale=4)
    result = check(str(tmp_path / "out.gguf"), ValidateOptions(base=str(model)))
    assert result["weights"]["verdict"] == result["recipe"]["verdict"] == "passed"
    assert result["verdict"] == "passed", result["reasons"]
    for s in result["studies"]:
        assert max(w["end"] for w in s["runtimes"][0]["windows"]) == 4 * CONTEXT


def test_unrounded_yarn_is_refused_for_llama_cpp_with_the_way_out(tmp_path: Path) -> None:
    """OpenAI's truncate: false; the way out, extending anew from the original context, works."""
    model = make("gpt_oss", tmp_path / "m")
    with pytest.raises(Inexpressible, match="truncate") as refused:
        to_gguf(model, tmp_path / "a.gguf")
    assert "--method yarn --context N" in refused.value.hint
    convert(str(model), Recipe(method="none"), output=tmp_path / "same")
    c = open_checkpoint(resolve(str(tmp_path / "same")))
    assert (c.rope.params["truncate"], c.rope.original_context, c.context) == (False, CONTEXT, 4 * CONTEXT)
    to_gguf(model, tmp_path / "b.gguf", method="yarn", context=8 * CONTEXT)
    assert open_checkpoint(resolve(str(tmp_path / "b.gguf"))).rope.params == {"factor": 8.0}


@pytest.mark.parametrize("spelling", ["absent", "null"])
def test_a_config_without_scaling_means_openais_yarn(tmp_path: Path, spelling: str) -> None:
    """transformers' GptOssConfig takes YaRN ×32 over 4096 where nothing is said."""
    from transformers import AutoConfig

    model = make("gpt_oss", tmp_path / "m", config={"max_position_embeddings": 131072, "rope_scaling": None})
    config = json.loads((model / "config.json").read_text())
    config |= {} if spelling == "null" else {"rope_scaling": {}}
    if spelling == "absent":
        del config["rope_scaling"]
    (model / "config.json").write_text(json.dumps(config))
    rope, theirs = open_checkpoint(resolve(str(model))).rope, AutoConfig.from_pretrained(model).rope_parameters
    assert (rope.method, rope.original_context) == ("yarn", theirs["original_max_position_embeddings"])
    assert rope.params == {k: theirs[k] for k in ("factor", "beta_fast", "beta_slow", "truncate")}


@pytest.mark.parametrize("missing", ["gate_up_proj_scales", "down_proj_blocks"])
def test_half_of_a_four_bit_matrix_is_refused(mxfp4: Path, tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_bytes((mxfp4 / "config.json").read_bytes())
    weights = load_file(mxfp4 / "model.safetensors")
    del weights[expert(0, missing)]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(FormatError, match="do not belong together"):
        open_checkpoint(resolve(str(folder)))


def test_experts_of_another_shape_are_refused(plain: Path, tmp_path: Path) -> None:
    """Taken apart by the config's sizes they would be garbled, not missed."""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_bytes((plain / "config.json").read_bytes())
    weights = load_file(plain / "model.safetensors")
    name = expert(1, "gate_up_proj")
    weights[name] = np.ascontiguousarray(weights[name].swapaxes(1, 2))
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(FormatError, match="the config describes"):
        open_checkpoint(resolve(str(folder)))


@pytest.mark.parametrize(
    ("config", "why"), [({"swiglu_limit": 8.0}, "swiglu_limit"), ({"layer_types": ["full_attention"] * 2}, "in this order")]
)
def test_what_llama_cpps_graph_has_written_in_is_refused(tmp_path: Path, config: dict[str, Any], why: str) -> None:
    model = make("gpt_oss/plain", tmp_path / "m", config=config)
    with pytest.raises((Inexpressible, Unsupported), match=why):
        to_gguf(model, tmp_path / "a.gguf")
    assert extend(open_checkpoint(resolve(str(model))), Recipe(scale=2)).context == 2 * CONTEXT

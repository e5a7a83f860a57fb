"""Weights that another tool packed (AWQ, GPTQ, bitsandbytes, compressed-tensors, MLX): copied as they are, and never taken for others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel, split_options
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import entry as cli
from yarn_convert.compute.weights import check_weights
from yarn_convert.conversion import convert, prepare
from yarn_convert.conversion.describe import describe
from yarn_convert.errors import FormatError, Unsupported
from yarn_convert.options import ConvertOptions, Recipe, ValidateOptions
from yarn_convert.validation.run import check

transformers = pytest.importorskip("transformers")

torch = pytest.importorskip("torch")
Packed = dict[str, Any]  # arrays, or tensors of torch
SCALES = np.ones((2, 8), np.float16)


def words(columns: int, kind: type = np.int32) -> Any:
    return np.arange(8 * columns).astype(kind).reshape(8, columns)


ONE = np.ones((), np.float32)


def fp8(name: str, *scales: str, kind: Any = torch.float8_e4m3fn, **others: Any) -> Packed:
    """A projection as 8 bits a number, with scales of one number, and others."""
    made = {f"{name}.weight": torch.arange(64).reshape(8, 8).float().to(kind)}
    return made | {f"{name}.{s}": ONE for s in scales} | {f"{name}.{s}": a for s, a in others.items()}


WAYS: dict[str, tuple[dict[str, Any], Callable[[str], Packed]]] = {  # what config.json says, and what a projection becomes
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
        lambda n: {f"{n}.qweight": words(8), f"{n}.qzeros": words(1), f"{n}.scales": SCALES},
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "desc_act": False},
        lambda n: {f"{n}.qweight": words(8), f"{n}.qzeros": words(1), f"{n}.scales": SCALES, f"{n}.g_idx": words(1)[0]},
    ),
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        lambda n: {f"{n}.weight": words(1, np.uint8), f"{n}.weight.absmax": np.ones(8, np.float32)},
    ),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        lambda n: {f"{n}.weight_packed": words(8), f"{n}.weight_scale": SCALES, f"{n}.weight_shape": np.array([64, 64], np.int64)},
    ),
    "fp8, a tensor": ({"quant_method": "fp8", "activation_scheme": "static"}, lambda n: fp8(n, "weight_scale", "input_scale")),
    "fp8, keys and values": (
        {"quant_method": "fp8", "activation_scheme": "dynamic"},
        lambda n: fp8(n, "weight_scale") | ({f"{n}.{n[-6]}_scale": ONE} if n[-6] in "kv" else {}),
    ),
    "fp8, Mistral's": ({"quant_method": "fp8", "weight_block_size": None}, lambda n: fp8(n, "weight_scale_inv", "activation_scale")),
    "fp8, blocks": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        lambda n: fp8(n, weight_scale_inv=np.ones((1, 1), np.float32)),
    ),
    "fp8, channels": (
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
        lambda n: fp8(n, weight_scale=np.ones((8, 1), np.float32)),
    ),
    "fp8, E5M2": ({"quant_method": "fp8", "fmt": "e5m2"}, lambda n: fp8(n, "weight_scale", kind=torch.float8_e5m2)),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, lambda n: fp8(n, weight_scale=np.ones((8, 1), np.float32))),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, lambda n: fp8(n, "weight_scale", "input_scale")),
    "keys and values alone": (
        {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}},
        lambda n: {f"{n}.weight": np.ones((8, 8), np.float16), f"{n}.output_scale": ONE.astype(np.float16)},
    ),
    "mlx": (
        {"group_size": 64, "bits": 4},
        lambda n: {f"{n}.weight": words(8, np.uint32), f"{n}.scales": SCALES, f"{n}.biases": SCALES},
    ),
}


@pytest.fixture(params=WAYS)
def packed(request: pytest.FixtureRequest, make_model: MakeModel) -> Path:
    described, pack = WAYS[request.param]
    folder = make_model(
        "packed", config={"quantization_config": described} | ({"quantization": described} if request.param == "mlx" else {})
    )
    made: Packed = {}
    for name, w in load_file(folder / "model.safetensors").items():
        made |= pack(name.removesuffix(".weight")) if "_proj." in name else {name: w.astype(np.float16)}
    save(made, folder)
    return folder


def save(made: Packed, folder: Path) -> None:
    tensors = {name: torch.from_numpy(np.array(a)) if isinstance(a, np.ndarray | np.generic) else a for name, a in made.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_is_extended_and_its_weights_stay(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(str(packed), Recipe(scale=4), output=out)
    assert (out / "model.safetensors").read_bytes() == (packed / "model.safetensors").read_bytes()
    before, after = (json.loads((f / "config.json").read_text()) for f in (packed, out))
    assert {k: v for k, v in after.items() if k.startswith("quantization")} == {
        k: v for k, v in before.items() if k.startswith("quantization")
    }
    read = transformers.AutoConfig.from_pretrained(out)
    inv_freq, multiplier = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](read, "cpu")
    theta = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    low, high = (16 * np.log(CONTEXT / (beta * 2 * np.pi)) / (2 * np.log(10000.0)) for beta in (32, 1))
    low, high = max(np.floor(low), 0), min(np.ceil(high), 15)
    keep = 1 - np.clip((np.arange(8) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(inv_freq.numpy(), theta * keep + theta / 4 * (1 - keep), rtol=1e-6)
    assert multiplier == pytest.approx(0.1 * np.log(4) + 1)
    report = check(str(out), ValidateOptions(base=str(packed), real=False, twin_tokens=4 * CONTEXT, runtimes=("transformers",)))
    assert report["verdict"] == "passed"


@pytest.mark.parametrize("options", [{"out": "gguf"}, {"outtype": "bf16"}])
def test_what_would_have_to_unpack_them_is_refused(packed: Path, options: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match="packed by") as e:
        prepare(str(packed), ConvertOptions(**split_options(scale=4, **options)))
    assert e.value.hint


def test_the_words_for_it(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(packed)])
    assert "weights packed by" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["validate", str(packed)])
    assert "--twin" in capsys.readouterr().err


LEFT_OVER: list[dict[str, Any]] = [
    {"quantization_config": {"quant_method": "awq", "bits": 4}},
    {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    {"quantization_config": {"quant_method": "mxfp4"}, "quantization": {"bits": 4, "group_size": 64}},
    {"compression_config": {"format": "float-quantized"}},
]


@pytest.mark.parametrize("said", LEFT_OVER)
@pytest.mark.parametrize("buffers", [False, True])
def test_a_key_that_no_tensor_bears_out_is_left_out(said: dict[str, Any], buffers: bool, make_model: MakeModel, tmp_path: Path) -> None:
    """Someone has unpacked the weights and left the key: transformers loads the output, and the same numbers."""
    folder, out = make_model(dtype="BF16", config=said), tmp_path / "out"
    if buffers:
        arrays = load_torch(folder / "model.safetensors")
        save(arrays | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.arange(8)}, folder)  # no packed number
    found = prepare(str(folder), ConvertOptions(Recipe(scale=4), output=out))
    found.run()
    assert [n for n in found.plan.notes if "left over" in n] == [
        f"{key} says {value.get('quant_method') or ('mlx' if key == 'quantization' else 'compressed-tensors')}, "
        "and no tensor is packed: it is left over, and the output is without it"
        for key, value in sorted(
            said.items(), key=lambda item: ("quantization_config", "compression_config", "quantization").index(item[0])
        )
    ]
    config = json.loads((out / "config.json").read_text())
    assert not config.keys() & said.keys()
    net = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(
        net.model.layers[1].mlp.up_proj.weight, load_torch(folder / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    )
    assert any("delete it" in line for line in describe(open_checkpoint(resolve(str(folder)))).inconsistencies)
    assert any(
        "left over" in n for n in prepare(str(folder), ConvertOptions(Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf")).plan.notes
    )


def test_a_method_that_rounds_as_it_runs_is_no_left_over(make_model: MakeModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = {"quant_method": "bitnet", "quantization_mode": "online"}
    convert(str(make_model(config={"quantization_config": said})), Recipe(scale=4), output=out)
    assert json.loads((out / "config.json").read_text())["quantization_config"] == said


FILES = {
    "hf_quant_config.json": {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}},
    "quantize_config.json": {"bits": 4, "group_size": 128},
    "quant_config.json": {"w_bit": 4, "q_group_size": 128},
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("way", ["fp8, a tensor", "gptq"])
def test_what_a_file_beside_config_json_says_counts(file: str, way: str, make_model: MakeModel, tmp_path: Path) -> None:
    folder, out = make_model(), tmp_path / "out"
    (folder / file).write_text(json.dumps(FILES[file]))
    made: Packed = {}
    for name, w in load_file(folder / "model.safetensors").items():
        made |= WAYS[way][1](name.removesuffix(".weight")) if "_proj." in name else {name: w}
    save(made, folder)
    convert(str(folder), Recipe(scale=4), output=out)
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (out / file).read_bytes() == (folder / file).read_bytes()
    with pytest.raises(Unsupported, match=r"packed by (modelopt|gptq|awq)"):
        prepare(str(folder), ConvertOptions(Recipe(scale=4), out="gguf"))


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_no_tensor_bears_out_stays_behind(file: str, make_model: MakeModel, tmp_path: Path) -> None:
    folder, out = make_model(), tmp_path / "out"
    (folder / file).write_text(json.dumps(FILES[file]))
    found = prepare(str(folder), ConvertOptions(Recipe(scale=4), output=out))
    found.run()
    assert not (out / file).exists() and any(n.startswith(file) for n in found.plan.notes)


@pytest.mark.parametrize(
    "name",
    [
        "rotary_emb.inv_freq", "model.rotary_emb.inv_freq", "model.rotary_emb.original_inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.rotary_emb.cos_cached", "model.rotary_emb_local.inv_freq", "model.rotary_emb.full_attention_inv_freq",
        "transformer.h.0.self_attention.maybe_rotary.inv_freq",
    ],
)  # fmt: skip
def test_ropes_own_tables_are_buffers_wherever_they_stand(name: str, make_model: MakeModel, tmp_path: Path) -> None:
    """A folder keeps them, byte for byte; a GGUF has no place for them, as llama.cpp's converter has it."""
    folder, out = make_model(), tmp_path / "out"
    save(load_torch(folder / "model.safetensors") | {name: torch.ones(8)}, folder)
    convert(str(folder), Recipe(scale=4), output=out)
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    convert(str(folder), Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf")
    assert not [t for t in open_checkpoint(resolve(str(tmp_path / "out.gguf"))).tensors if "freq" in t or "cached" in t]
    assert torch.equal(
        transformers.AutoModelForCausalLM.from_pretrained(out).lm_head.weight, load_torch(out / "model.safetensors")["lm_head.weight"]
    )


@pytest.mark.parametrize("name", ["model.rotary_emb.weight", "model.layers.0.self_attn.inv_freq", "my_rotary_embedding.inv_freq.scale"])
def test_what_only_looks_like_one_is_not(name: str, make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model()
    save(load_torch(folder / "model.safetensors") | {name: torch.ones(8)}, folder)
    with pytest.raises(Unsupported, match="not part of the family"):
        prepare(str(folder), ConvertOptions(Recipe(scale=4), output=tmp_path / "out"))


# -- dual chunk attention ---------------------------------------------------------------------------------------------


def in_chunks(make_model: MakeModel, length: Any = 4 * CONTEXT) -> Path:
    said = {"chunk_size": length, "local_size": 8, "original_max_position_embeddings": length}
    return make_model(config={"max_position_embeddings": 1000, "dual_chunk_attention_config": said})


def test_an_extension_counts_from_the_length_that_dual_chunks_were_trained_on(make_model: MakeModel, tmp_path: Path) -> None:
    """Their max_position_embeddings is what SGLang serves with them. It takes no scaling beside them: the key goes, which is said."""
    folder, out = in_chunks(make_model), tmp_path / "out"
    found = prepare(str(folder), ConvertOptions(Recipe(scale=4), output=out))
    found.run()
    assert (found.extension.scale, found.extension.context) == (4, 16 * CONTEXT)
    config = json.loads((out / "config.json").read_text())
    assert "dual_chunk_attention_config" not in config and any("dual_chunk_attention_config is left out" in n for n in found.plan.notes)
    assert (config["rope_scaling"]["original_max_position_embeddings"], config["max_position_embeddings"]) == (4 * CONTEXT, 16 * CONTEXT)
    assert any("need dual chunk attention" in line for line in describe(open_checkpoint(resolve(str(folder)))).inconsistencies)
    gguf = prepare(str(folder), ConvertOptions(Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf"))
    assert gguf.plan.rope.original_context == 4 * CONTEXT and not any("dual chunk" in n for n in gguf.plan.notes)


def test_without_an_extension_dual_chunks_stay_in_a_folder_and_a_gguf_is_told_of(make_model: MakeModel, tmp_path: Path) -> None:
    folder, out = in_chunks(make_model), tmp_path / "out"
    convert(str(folder), Recipe(method="none"), output=out)
    assert json.loads((out / "config.json").read_text())["dual_chunk_attention_config"]["local_size"] == 8
    gguf = prepare(str(folder), ConvertOptions(Recipe(method="none"), out="gguf", output=tmp_path / "out.gguf"))
    assert any("no dual chunk attention" in n for n in gguf.plan.notes)


@pytest.mark.parametrize("length", ["64", 1.5, 0, [64]])
def test_a_length_of_dual_chunks_that_is_none_is_said(length: Any, make_model: MakeModel) -> None:
    with pytest.raises(FormatError, match=r"dual_chunk_attention_config\.original_max_position_embeddings"):
        open_checkpoint(resolve(str(in_chunks(make_model, length))))


def test_packed_weights_that_no_key_announces_are_leftovers(packed: Path) -> None:
    path = packed / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if not k.startswith("quantization")}
    path.write_text(json.dumps(config))
    with pytest.raises(Unsupported, match="not part of the family"):
        prepare(str(packed), ConvertOptions(Recipe(scale=4)))


def test_packed_weights_that_are_not_the_bases_fail(packed: Path, tmp_path: Path) -> None:
    """They are no numbers to measure a distance of: their bytes are all that is compared."""
    out = tmp_path / "out"
    convert(str(packed), Recipe(scale=4), output=out)
    base, mine = (open_checkpoint(resolve(str(p))) for p in (packed, out))
    assert check_weights(mine, base, None, lambda n: None)["verdict"] == "passed"
    arrays = load_torch(out / "model.safetensors")
    name = next(
        n for n, w in arrays.items() if w.dtype in (torch.int32, torch.uint32, torch.uint8) or w.dtype.itemsize == 1 or "output_scale" in n
    )
    arrays[name].reshape(-1).view(torch.uint8)[0] += 1
    save(arrays, out)
    result = check_weights(open_checkpoint(resolve(str(out))), base, None, lambda n: None)
    assert (result["verdict"], result["different"]) == ("failed", [name])

"""Weights that another tool packed (AWQ, GPTQ, bitsandbytes, compressed-tensors, MLX): copied as they are, and never taken for others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel
from safetensors.numpy import load_file, save_file

from yarn_convert import cli
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.convert import Options, convert, prepare
from yarn_convert.errors import Unsupported
from yarn_convert.source import resolve
from yarn_convert.validate.run import Settings, validate
from yarn_convert.validate.weights import check_weights

transformers = pytest.importorskip("transformers")

Packed = dict[str, np.ndarray]
SCALES = np.ones((2, 8), np.float16)


def words(columns: int, kind: type = np.int32) -> Any:
    return np.arange(8 * columns).astype(kind).reshape(8, columns)


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
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_folder_is_extended_and_its_weights_stay(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(str(packed), Options(scale=4, output=out))
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
    report = validate(str(out), Settings(str(packed), real=False, twin_tokens=4 * CONTEXT, runtimes=("transformers",)))
    assert report["verdict"] == "passed"


@pytest.mark.parametrize("options", [{"out": "gguf"}, {"outtype": "bf16"}])
def test_what_would_have_to_unpack_them_is_refused(packed: Path, options: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match="packed by") as e:
        prepare(str(packed), Options(scale=4, **options))
    assert e.value.hint


def test_the_words_for_it(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(packed)])
    assert "weights packed by" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["validate", str(packed)])
    assert "--twin" in capsys.readouterr().err


def test_numbers_beside_a_stale_key_are_converted(make_model: MakeModel, tmp_path: Path) -> None:
    """Someone has unpacked the weights and left the key."""
    folder = make_model(config={"quantization_config": {"quant_method": "awq", "bits": 4}})
    convert(str(folder), Options(scale=4, out="gguf", output=tmp_path / "out.gguf"))


def test_packed_weights_that_no_key_announces_are_leftovers(packed: Path) -> None:
    path = packed / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if not k.startswith("quantization")}
    path.write_text(json.dumps(config))
    with pytest.raises(Unsupported, match="not part of the family"):
        prepare(str(packed), Options(scale=4))


def test_packed_weights_that_are_not_the_bases_fail(packed: Path, tmp_path: Path) -> None:
    """They are no numbers to measure a distance of: their bytes are all that is compared."""
    out = tmp_path / "out"
    convert(str(packed), Options(scale=4, output=out))
    base, mine = (open_checkpoint(resolve(str(p))) for p in (packed, out))
    assert check_weights(mine, base, None, lambda n: None)["verdict"] == "passed"
    arrays = load_file(out / "model.safetensors")
    name = next(n for n, w in arrays.items() if w.dtype.kind in "iu")
    arrays[name].reshape(-1)[0] += 1
    save_file(arrays, out / "model.safetensors", metadata={"format": "pt"})
    result = check_weights(open_checkpoint(resolve(str(out))), base, None, lambda n: None)
    assert (result["verdict"], result["different"]) == ("failed", [name])

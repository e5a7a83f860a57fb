"""Numbers that a folder has as tensors and a GGUF as keys, as xIELU's of Apertus: the very same in both, and none is lost unseen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import CONTEXT
from safetensors.numpy import load_file, save_file

from yarn_convert.checkpoint import Checkpoint, open_checkpoint
from yarn_convert.checkpoint.source import Source
from yarn_convert.conversion import convert
from yarn_convert.errors import FormatError, InputError
from yarn_convert.options import Recipe, ValidateOptions
from yarn_convert.validation.run import check
from yarn_convert.validation.twin import write_twin

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.0")
pytest.importorskip("llama_cpp")
from family_models import make  # noqa: E402
from safetensors.torch import load_file as load_torch  # noqa: E402

KEYS = ("alpha_n", "alpha_p", "beta", "eps")
BETA = "model.layers.1.mlp.act_fn.beta"
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("apertus", tmp_path_factory.mktemp("in_keys") / "model")


def opened(path: Path, **source: Any) -> Checkpoint:
    return open_checkpoint(replace(Source(path, path.name), **source))


def with_tensors(model: Path, out: Path, change: Callable[[Tensors], object]) -> Path:
    """A copy of a folder whose tensors were changed."""
    out.mkdir()
    for file in model.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    change(tensors := load_file(model / "model.safetensors"))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def with_lists(path: Path, out: Path, change: Callable[[list[float]], Any]) -> Path:
    """A copy of a GGUF with other values for xielu.beta: a list, or one for all layers."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, "apertus")
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "general.architecture")):
            continue
        value = change(field.contents()) if name == "xielu.beta" else field.contents()
        kinds = field.types[1:] if name == "xielu.beta" and not isinstance(value, list) else field.types
        writer.add_key_value(name, value, kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_they_are_the_numbers_of_a_folder_in_bfloat16_there_and_back(tmp_path: Path) -> None:
    model = make("apertus", tmp_path / "model", dtype="BF16")
    convert(str(model), Recipe(method="none"), out="gguf", output=tmp_path / "a.gguf")
    convert(str(tmp_path / "a.gguf"), Recipe(method="none"), out="safetensors", outtype="bf16", output=tmp_path / "back")
    fields, base, back = (
        gguf.GGUFReader(tmp_path / "a.gguf").fields, *(load_torch(p / "model.safetensors") for p in (model, tmp_path / "back")),
    )  # fmt: skip
    for key in KEYS:
        names = [f"model.layers.{i}.mlp.act_fn.{key}" for i in range(2)]
        assert fields[f"xielu.{key}"].contents() == [base[name].float().item() for name in names]
        assert all(back[n].dtype == torch.float32 and back[n].shape == base[n].shape and back[n] == base[n].float() for n in names)


BROKEN: list[tuple[Callable[[Tensors], object], type[Exception], str]] = [
    (lambda t: t.pop(BETA), InputError, f"1 tensor is missing, first '{BETA}'"),
    (lambda t: [t.pop(n) for n in list(t) if "act_fn" in n], InputError, "8 tensors are missing"),
    (lambda t: t.update({BETA: np.ones(2, np.float32)}), FormatError, r"beta has the shape \[2\]"),
    (lambda t: t.update({BETA.replace(".1.", ".2."): t[BETA]}), FormatError, "layers.2.mlp.act_fn.beta is in a layer beyond the 2"),
    (lambda t: t.update({BETA: np.full((), np.nan, np.float32)}), FormatError, "xielu_beta is nan, not a finite number"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "why"), BROKEN)
def test_a_folder_without_each_of_them_is_refused(
    model: Path, tmp_path: Path, change: Callable[[Tensors], object], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        opened(with_tensors(model, tmp_path / "other", change))


def test_a_gguf_says_one_for_all_layers_or_one_for_each(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    convert(str(model), Recipe(method="none"), out="gguf", output=path)
    beta = opened(path).hparams["xielu_beta"]
    assert opened(with_lists(path, tmp_path / "one.gguf", lambda x: x[0])).hparams["xielu_beta"] == [beta[0], beta[0]]
    with pytest.raises(FormatError, match=r"xielu_beta is .*, not 2 numbers"):
        opened(with_lists(path, tmp_path / "short.gguf", lambda x: x[:1]))
    other = with_lists(path, tmp_path / "other.gguf", lambda x: [x[0], 0.5])
    result = check(str(other), ValidateOptions(base=str(model), real=False, twin=False))
    assert (result["weights"]["verdict"], "xielu_beta is" in result["weights"]["why"]) == ("failed", True)


def test_a_model_of_many_layers_is_validated_by_its_first(tmp_path: Path) -> None:
    """Its excerpt and its twin have the numbers of their own layers."""
    model, out = make("apertus", tmp_path / "model", config={"num_hidden_layers": 9}), tmp_path / "out.gguf"
    convert(str(model), Recipe(scale=4), out="gguf", outtype="bf16", output=out)
    result = check(str(out), ValidateOptions(runtimes=("llama.cpp",), tokens=4 * CONTEXT))
    assert (result["verdict"], {s["kind"] for s in result["studies"]}) == ("passed", {"real", "excerpt", "twin"}), result["reasons"]


def test_headers_alone_say_none_of_them_and_a_twin_is_made_all_the_same(model: Path, tmp_path: Path) -> None:
    c = opened(model, headers=opened(model).tensors)
    assert "xielu_beta" not in c.hparams and c.parts(gguf=False).keys() == c.tensors.keys()
    assert write_twin(c, tmp_path / "twin").hparams["xielu_beta"] == [0.5]

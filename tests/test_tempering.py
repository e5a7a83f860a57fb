"""--position-temperature: another β of Ministral 3's attention, in both formats, as transformers and llama.cpp compute it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeModel
from family_models import make

from yarn_convert import runtimes
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.manifest import MANIFEST, manifest_path
from yarn_convert.checkpoint.source import resolve
from yarn_convert.conversion import convert
from yarn_convert.conversion.extension import extend
from yarn_convert.conversion.overriding import overrides
from yarn_convert.conversion.recipes import as_text, recipe
from yarn_convert.conversion.tempering import unusual
from yarn_convert.dialects.config_json import BETA
from yarn_convert.errors import Unsupported, UsageError
from yarn_convert.evaluation.subjects import lines_of
from yarn_convert.options import EvaluateOptions, Recipe, ValidateOptions
from yarn_convert.validation import check

KEY = "mistral3.attention.temperature_scale"
ASKED = Recipe(context=512, position_temperature=0.5)
FORMATS = ("safetensors", "gguf")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("ministral3", tmp_path_factory.mktemp("ministral3") / "base")


def place(folder: Path, fmt: str, name: str = "out") -> Path:
    return folder / (f"{name}.gguf" if fmt == "gguf" else name)


def said(out: Path) -> float:
    """β as it stands in the file."""
    if out.suffix:
        return float(open_checkpoint(resolve(str(out))).gguf.fields[KEY].value)  # type: ignore[union-attr]
    config = json.loads((out / "config.json").read_text())
    (beta,) = {config[k][BETA] for k in ("rope_scaling", "rope_parameters")}
    return float(beta)


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_it_is_written_and_goes_with_the_model_and_its_recipe(base: Path, tmp_path: Path, first: str, second: str) -> None:
    out = convert(str(base), ASKED, out=first, output=place(tmp_path, first)).output
    again = convert(str(out), Recipe(method="none"), out=second, output=place(tmp_path, second, "again")).output
    off = convert(str(again), Recipe(method="none", position_temperature=0.0), out=first, output=place(tmp_path, first, "off")).output
    assert [said(x) for x in (out, again, off)] == [0.5, 0.5, 0.0]
    assert [open_checkpoint(resolve(str(x))).beside(open_checkpoint(resolve(str(x))).rope).floor for x in (out, off)] == [64, 0]
    if out.suffix:
        manifest_path(out).unlink()  # the recipe in the file says it, too
    assert not unusual(open_checkpoint(resolve(str(out))))
    (tmp_path / "r.yaml").write_text(as_text(recipe(str(out))))
    made = convert(str(base), recipe(str(tmp_path / "r.yaml")), out=second, output=place(tmp_path, second, "made")).output
    assert said(made) == 0.5 and recipe(str(off)).position_temperature == 0.0


def test_transformers_and_llama_cpp_compute_it_alike(base: Path, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("llama_cpp")
    ids = np.random.default_rng(0).integers(3, 263, 300)
    found = {}
    for beta in (0.5, None):
        asked = Recipe(context=512, position_temperature=beta)
        folder, file = (convert(str(base), asked, out=fmt, output=place(tmp_path, fmt, f"b{beta}")).output for fmt in FORMATS)
        net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            logits = net(torch.from_numpy(ids)[None]).logits[0].numpy()
        assert np.allclose(logits, runtimes.run("llama.cpp", file, ids, [(0, 300)]).logits, atol=2e-3)
        found[beta] = logits
    assert np.allclose(found[0.5][:64], found[None][:64], atol=1e-5) and np.abs(found[0.5] - found[None])[65:].max() > 0.01


@pytest.mark.parametrize("fmt", FORMATS)
def test_validate_takes_it_as_meant_and_tells_another_apart(base: Path, tmp_path: Path, fmt: str) -> None:
    pytest.importorskip("torch")
    out = convert(str(base), ASKED, out=fmt, output=place(tmp_path, fmt)).output
    runtime = "llama.cpp" if fmt == "gguf" else "transformers"
    asked = ValidateOptions(base=str(base), runtimes=(runtime,), real=False, twin_tokens=300)
    result = check(str(out), asked)
    assert result["verdict"] == "passed", result["reasons"]
    told = check(
        str(out), ValidateOptions(base=str(base), runtimes=(runtime,), real=False, twin_tokens=300, recipe=Recipe(position_temperature=0.3))
    )
    assert told["verdict"] == "failed" and f"{BETA} is 0.5, and 0.3 is meant" in told["weights"]["why"]
    changed = convert(str(out), Recipe(method="none", position_temperature=0.2), output=place(tmp_path, fmt, "changed")).output
    (manifest_path(changed) if out.suffix else changed / MANIFEST).write_bytes(
        (manifest_path(out) if out.suffix else out / MANIFEST).read_bytes()
    )
    wrong = check(str(changed), asked)
    assert wrong["verdict"] == "failed" and f"{BETA} is 0.2, and 0.5 is meant" in wrong["weights"]["why"]


def test_what_has_no_such_temperature_is_refused_by_name(base: Path, make_model: MakeModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for model in (make_model(), make("llama4_text", tmp_path / "llama4")):
        with pytest.raises(Unsupported, match="no temperature of the position"):
            convert(str(model), Recipe(method="none", position_temperature=0.1), output=out)
    for beta in (-0.1, 11.0, float("nan")):
        with pytest.raises(UsageError, match="position-temperature is from 0 to 10"):
            convert(str(base), Recipe(scale=2, position_temperature=beta), output=out)
    c = open_checkpoint(resolve(str(base)))
    (tmp_path / "r.yaml").write_text(as_text(ASKED))
    with pytest.raises(Unsupported, match="is for a conversion's file"):
        extend(c, ASKED)
    with pytest.raises(Unsupported, match="is for a conversion's file"):
        overrides(str(base), ASKED)
    with pytest.raises(Unsupported, match="is for a conversion's file"):
        lines_of(c, EvaluateOptions(recipes=(tmp_path / "r.yaml",)))
    assert not out.exists()

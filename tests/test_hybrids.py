"""Families of which some layers are no attention: what of them the tests of every family do not say."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import Source
from yarn_convert.compute.growing import Steps
from yarn_convert.compute.reference import Reference
from yarn_convert.conversion import convert
from yarn_convert.errors import Unsupported
from yarn_convert.options import Recipe, ValidateOptions
from yarn_convert.rope import effect
from yarn_convert.validation.run import check

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")
from conftest import write_tensors_of
from family_models import make

AHEAD = ("mtp.fc.weight", "mtp.norm.weight", "mtp.layers.0.self_attn.q_proj.weight")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3.5 with tensors that predict a token further on."""
    folder = make("qwen3_5_text", tmp_path_factory.mktemp("hybrids") / "model")
    tensors = load_file(folder / "model.safetensors") | {name: np.ones((64, 64), np.float32) for name in AHEAD}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_what_predicts_a_token_further_on_stays_in_a_folder_and_goes_from_a_gguf(model: Path, tmp_path: Path) -> None:
    convert(str(model), Recipe(scale=4), output=tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() >= {*AHEAD}
    made = convert(str(model), Recipe(scale=4), out="gguf", output=tmp_path / "out.gguf").to_dict()
    assert any("3 tensors are left out: layers that predict tokens further on" in note for note in made["notes"])
    result = check(str(tmp_path / "out.gguf"), ValidateOptions(base=str(model), real=False, twin=False))
    assert result["weights"]["verdict"] == "passed"


def with_keys(path: Path, out: Path, drop: str = "", **keys: int) -> Path:
    """A copy of a GGUF without a key of its architecture, or with others."""
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, arch)
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "general.architecture", "yarn_convert.")) or name == f"{arch}.{drop}":
            continue
        of = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], of)
    for name, value in keys.items():
        writer.add_uint32(f"{arch}.{name}", value)
    write_tensors_of(reader, writer)
    return out


def test_a_gguf_that_does_not_list_its_layers_has_every_fourth_with_rope(model: Path, tmp_path: Path) -> None:
    """As the converter wrote it before it had a key for the list."""
    convert(str(model), Recipe(method="none"), out="gguf", output=tmp_path / "a.gguf")
    old = with_keys(tmp_path / "a.gguf", tmp_path / "old.gguf", drop="attention.recurrent_layers")
    convert(str(old), Recipe(method="none"), out="safetensors", output=tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["layer_types"] == ["linear_attention"] * 3 + ["full_attention"]


def test_a_gguf_with_layers_that_predict_further_on_is_extended_as_it_is(model: Path, tmp_path: Path) -> None:
    convert(str(model), Recipe(method="none"), out="gguf", output=tmp_path / "a.gguf")
    more = with_keys(tmp_path / "a.gguf", tmp_path / "more.gguf", nextn_predict_layers=1)
    assert not open_checkpoint(Source(more, "more")).family.listed
    convert(str(more), Recipe(scale=4), output=tmp_path / "out.gguf")


def test_keys_and_values_are_counted_where_they_are(model: Path, tmp_path: Path) -> None:
    """One of four layers attends: two K/V heads of 64 numbers."""
    assert open_checkpoint(Source(model, "model")).kv_bytes(100) == 2 * 2 * 64 * 100 * 2


@pytest.mark.parametrize("kind", ["nope", None])
def test_granite_without_rope_says_so(kind: str | None, tmp_path: Path) -> None:
    folder = make("granitemoehybrid", tmp_path / "model", config={"position_embedding_type": kind})
    with pytest.raises(Unsupported, match=f"position_embedding_type {kind!r} has no RoPE"):
        convert(str(folder), Recipe(scale=4), output=tmp_path / "out")


def test_mamba_beside_attention_without_rope_is_converted_and_not_extended(tmp_path: Path) -> None:
    """Whichever format says so; without the key something turns."""
    folder, path = make("granitemoehybrid/released", tmp_path / "model"), tmp_path / "a.gguf"
    convert(str(folder), Recipe(method="none"), out="gguf", output=path)
    for model in (folder, path):
        with pytest.raises(Unsupported, match="RoPE in no layer"):
            convert(str(model), Recipe(scale=4), output=tmp_path / "out")
        assert open_checkpoint(Source(model, "m")).farthest == 0
    result = check(str(path), ValidateOptions(base=str(folder), runtimes=("llama.cpp",)))
    assert (result["verdict"], result["weights"]["verdict"]) == ("inconclusive", "passed"), result["reasons"]
    bamba = with_keys(path, tmp_path / "bamba.gguf", drop="expert_shared_feed_forward_length")
    assert not open_checkpoint(Source(bamba, "bamba")).family.listed
    silent = with_keys(path, tmp_path / "silent.gguf", drop="rope.scaling.finetuned")
    assert (c := open_checkpoint(Source(silent, "silent"))).farthest is None and c.hparams["turns"] is True


@pytest.mark.parametrize("name", ["qwen3_5_text", "lfm2", "falcon_h1", "granitemoehybrid/turning"])
def test_a_text_grows_by_tokens_as_a_fresh_pass_has_it(name: str, tmp_path: Path) -> None:
    """What layers keep that are no attention goes along with the keys."""
    c = open_checkpoint(Source(make(name, tmp_path / "model"), name))
    ids, steps = np.random.default_rng(0).integers(3, 263, 40), Steps(Reference(c), c.rope)
    found = [steps.feed(part) for part in (ids[:30], *np.split(ids[30:], 10))][-1]
    fresh = Reference(c).logits(effect(c.rope), ids, [(39, 40)])[0]
    assert ((found - fresh) ** 2).sum() / ((fresh - fresh.mean()) ** 2).sum() < 1e-9

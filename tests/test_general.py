"""general.*: what a folder says of a model beside weights and tokenizer, against llama.cpp's own converter, and back again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import MakeModel
from gguf import GGUFReader
from test_targets import oracle
from test_validate import rewritten

from yarn_convert.conversion import prepare
from yarn_convert.formats import general
from yarn_convert.formats.gguf_file import Value, open_gguf
from yarn_convert.options import ConvertOptions, Recipe
from yarn_convert.tokenizers import vocabulary

FULL = {
    "license": "other",
    "license_name": "acme-1",
    "license_link": "https://acme.test/licence",
    "language": ["en", "no"],
    "tags": ["chat", "long"],
    "pipeline_tag": "text-generation",
    "base_model": ["acme/Parent-7B-v2", "https://huggingface.co/acme/Other-1B", "https://elsewhere.test/x"],
    "datasets": ["acme/texts"],
    "model_creator": "Somebody",
    "version": 1.5,
    "description": "Two lines,\nand a colon: here",
    "repo_url": "https://git.test/acme/model",
}
DEFAULTS = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "eos_token_id": [2, 0], "bos_token_id": 1}


def card(folder: Path, metadata: dict[str, Any]) -> None:
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(metadata)}---\n# A model\n", "utf-8")


def converted(model: Path, place: Path, out: str) -> tuple[Path, tuple[str, ...]]:
    conversion = prepare(str(model), ConvertOptions(Recipe(method="none"), output=place, out=out))
    conversion.run()
    return place, conversion.plan.notes


def keys(path: Path) -> dict[str, Any]:
    return {k: f.contents() for k, f in GGUFReader(path).fields.items() if k.startswith("general.")}


@pytest.mark.parametrize(
    ("metadata", "generation", "config"),
    [
        ({}, {}, {}),
        (FULL | {"version": "1.5"}, DEFAULTS, {}),
        ({"license": "mit", "language": "de", "tags": "one", "base_model": "acme/Parent-7B-Instruct"}, {"temperature": 1}, {}),
        ({"name": "By name", "author": "A", "organization": "O"}, {"top_k": 0, "mirostat": 2, "mirostat_tau": 5.0}, {}),
        ({}, {}, {"_name_or_path": "acme/Tiny-3B-Chat-v2"}),
        ({"license": ["mit", "apache-2.0"], "base_model": ["a/b", "c/d"]}, {}, {"_name_or_path": "/home/x/y"}),
    ],
)
def test_all_that_the_converter_writes_is_written_and_comes_back(
    converter: Path, make_model: MakeModel, tmp_path: Path, metadata: dict[str, Any], generation: dict[str, Any], config: dict[str, Any]
) -> None:
    model = make_model(config=config)
    if metadata:
        card(model, metadata)
    (model / "generation_config.json").write_text(json.dumps(generation))
    ours, _ = converted(model, tmp_path / "ours.gguf", "gguf")
    expected = keys(oracle(converter, model, tmp_path / "theirs.gguf", "f32"))
    assert keys(ours) == expected
    back, _ = converted(ours, tmp_path / "back", "safetensors")
    again, _ = converted(back, tmp_path / "again.gguf", "gguf")
    assert keys(again) == expected
    said = json.loads((back / "generation_config.json").read_text())
    assert {k: v for k, v in generation.items() if k not in ("eos_token_id", "do_sample")}.items() <= said.items()


def test_repetition_is_transformers_own_over_the_whole_text(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    (model / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.05}))
    path, notes = converted(model, tmp_path / "m.gguf", "gguf")
    assert keys(path)["general.sampling.penalty_last_n"] == -1 and notes == ()
    assert keys(path)["general.sampling.penalty_repeat"] == pytest.approx(1.05)
    back, _ = converted(path, tmp_path / "back", "safetensors")
    assert json.loads((back / "generation_config.json").read_text())["repetition_penalty"] == 1.05


def test_a_folder_ends_texts_where_its_gguf_did(make_model: MakeModel, tmp_path: Path) -> None:
    path, _ = converted(make_model(), tmp_path / "m.gguf", "gguf")
    eos = open_gguf(path).get("tokenizer.ggml.eos_token_id")
    for more, ends in (({}, eos), ({"eot": 7, "eom": eos}, [eos, 7])):
        rewritten(path, {f"tokenizer.ggml.{name}_token_id": Value("u32", i) for name, i in more.items()})
        back, _ = converted(path, tmp_path / f"back{len(more)}", "safetensors")
        assert json.loads((back / "generation_config.json").read_text())["eos_token_id"] == ends


def test_what_has_no_place_is_named(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    card(model, {"license": {"a": 1}, "tags": ["x", 3], "language": ["en"], "widget": [{"text": "hello"}]})
    (model / "generation_config.json").write_text(
        json.dumps({"no_repeat_ngram_size": 3, "top_k": "many", "top_p": 1.0, "renormalize_logits": False})
    )
    path, notes = converted(model, tmp_path / "m.gguf", "gguf")
    assert {"general.languages", "general.sampling.top_p"} <= keys(path).keys()
    assert any("license, tags" in n for n in notes) and any("no_repeat_ngram_size, top_k" in n for n in notes)
    assert len(notes) == 2


def test_a_broken_card_costs_its_metadata_only_and_is_said(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    (model / "README.md").write_text("---\nlicense: [mit\n---\n")
    path, notes = converted(model, tmp_path / "m.gguf", "gguf")
    assert path.exists() and any("not valid YAML" in n for n in notes)


def test_a_key_without_a_member_is_named() -> None:
    assert general.untold(["general.url", "general.license", "general.base_model.0.name", "llama.block_count"]) == [
        "no file of a folder has a place for general.url"
    ]


def test_a_folder_without_a_card_does_not_wait_for_the_hubs_client() -> None:
    """Which takes longer to import than the plan of a conversion takes to make."""
    code = "import sys; from yarn_convert.formats import general; assert general.front_matter('prose') == ({}, 'prose'); print('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_conversion_reads_each_tokenizer_file_once(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 3's tokenizer.json has 9 MB, which take a fifth of a second each time."""
    read: list[str] = []
    monkeypatch.setattr(vocabulary, "load", lambda path, load=vocabulary.load: [read.append(path.name), load(path)][1])
    prepare(str(make_model()), ConvertOptions(Recipe(scale=4), out="gguf"))
    assert sorted(read) == ["tokenizer.json", "tokenizer_config.json"]

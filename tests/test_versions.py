"""A claim names the versions that were run: what transformers 4.56 to 5.23 make of every config.json that yarn-convert writes."""

from __future__ import annotations

import json

import pytest
from conftest import CONTEXT
from packaging.version import Version

from yarn_convert.cli.show import plan_lines
from yarn_convert.conversion import convert, prepare
from yarn_convert.options import ConvertOptions, Recipe
from yarn_convert.readers import HF_READERS, oldest
from yarn_convert.readers.survey import survey_config
from yarn_convert.rope import table

pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.23")
import make_versions
from family_models import make

DATA = json.loads(make_versions.OUT.read_text())
RUN = {version: {name for name in DATA["configs"] if name.split("/")[0] not in made["lacks"]} for version, made in DATA["versions"].items()}


@pytest.fixture(scope="module")
def written():
    return make_versions.written()


def test_the_record_is_of_what_is_written_and_of_every_version_that_is_claimed(written):
    assert sorted(written) == sorted(DATA["configs"]), "run tools/make_versions.py in each version again"
    for name in ("transformers-4", "transformers-5"):
        assert HF_READERS[name].oldest in DATA["versions"]
    assert all(made["ran"] == len(RUN[version]) for version, made in DATA["versions"].items())


@pytest.mark.parametrize("version", DATA["versions"])
def test_what_is_claimed_of_a_version_is_what_it_computed(written, version):
    """A version refuses or computes otherwise only what `verdicts` or `oldest` say."""
    reader = f"transformers-{version.split('.')[0]}"
    otherwise = DATA["versions"][version]["otherwise"]
    for name in RUN[version]:
        config, *_, verdicts = written[name]
        why = verdicts[reader].why
        claimed = not why and Version(version) >= Version(oldest(reader, config))
        assert not (claimed and name in otherwise), (name, otherwise.get(name))
        if name in otherwise and not why:
            assert Version(version) < Version(oldest(reader, config)) <= Version("5.9.0")


def test_this_environments_version_computes_all_of_it(written):
    for name in list(written)[::7]:
        config, target, others = written[name][:3]
        assert make_versions.why_not(config, target, others) == "", name


def test_gemma_3_says_from_which_version_on(tmp_path):
    """huggingface/transformers#45887."""
    base = make("gemma3_text", tmp_path / "base")
    conversion = prepare(str(base), ConvertOptions(Recipe(scale=4), output=tmp_path / "out"))
    lines = "\n".join(plan_lines(conversion))
    assert "transformers-5 (5.9.0 to 5.23.0)" in lines
    assert "transformers-5 takes this from 5.9.0 on" in lines
    manifest = conversion.run().to_dict()
    assert manifest["reader_versions"]["transformers-5"] == "5.9.0 to 5.23.0"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    found = {v.runtime: v.note for v in survey_config(config, table(conversion.extension.rope), 4 * CONTEXT)}
    assert "from 5.9.0 on" in found["transformers-5"]
    tensors = prepare(str(base), ConvertOptions(Recipe(scale=4), carry="tensors", output=tmp_path / "t")).plan
    assert tensors.versions["transformers-5"] == "5.0.0 to 5.23.0"
    assert not any("earlier versions" in note for note in tensors.notes)


def test_a_gguf_names_what_was_looked_at(tmp_path):
    manifest = convert(str(make("qwen3", tmp_path / "base")), Recipe(scale=2), out="gguf", output=tmp_path / "x.gguf").to_dict()
    assert manifest["reader_versions"].keys() == {"llama.cpp"}

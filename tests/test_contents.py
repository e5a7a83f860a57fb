"""What belongs to a model comes along on every way, and nothing else does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import MakeModel

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.conversion import convert, prepare
from yarn_convert.formats.contents import belonging, code_of, is_known, left_over, looks_secret
from yarn_convert.options import ConvertOptions, Recipe
from yarn_convert.publishing.hub import _files, _left
from yarn_convert.publishing.model_card import BEGIN, card, local_card

CODE = {
    "configuration_odd.py": "from transformers import PretrainedConfig\n",
    "modeling_odd.py": "from .configuration_odd import OddConfig\n  from .parts.deep import x\nfrom .layers import (A,\n    B)\nimport os\n",
    "layers.py": "from . import kernels, absent as gone\nfrom ..up import x\n",
    "kernels.py": "import torch\n",
    "tokenization_odd.py": 'FILES = {"vocab_file": "odd.vocab", "extra": \'more/x.json\', "t": "api_key.json"}\nfrom .layers import A\n',
    "stray.py": "print('not named')\n",
    "setup.py": "",
}
DATA = {
    "odd.vocab": "a b",
    "api_key.json": "{}",
    "qwen.tiktoken": "IQ== 0",
    "tiktoken.model": "IQ== 0",
    "tekken.json": "{}",
    "spiece.model": "x",
}
STRAY = ("notes.txt", "training_args.bin", "optimizer.pt", "trainer_state.json", "id_rsa", ".env", "hf_token.txt", "prices.json", "old.safetensors",
         "SYSTEM_PROMPT.txt", "requirements.txt", "LICENSE.pem", "config.json~", "config.json.bak", "tokenizer.json.before-repair",
         "notice.sqlite", "notice_customers.csv", "LICENSE.env", "LICENSE.tar.gz", "license_key.txt", "license" + "_" * 200 + "!")  # fmt: skip


@pytest.fixture
def odd(make_model: MakeModel) -> Path:
    """A model with code of its own, data that only this code names, papers, templates, and what does not belong there."""
    model = make_model("odd")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_odd.OddConfig",
        "AutoModel": "modeling_odd.Odd",
        "AutoModelForMaskedLM": "other/repo--stray.X",
    }
    (model / "config.json").write_text(json.dumps(config))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_odd.OddTokenizer", None]}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (model / "generation_config.json").write_text("{}")
    for name, text in {**CODE, **DATA, **dict.fromkeys(STRAY, "stray"), "LICENSE": "free", "Notice.txt": "n", "USE_POLICY.md": "u"}.items():
        (model / name).write_text(text)
    for folder in ("additional_chat_templates", "wandb", "__pycache__", ".git", "venv"):
        (model / folder).mkdir()
        (model / folder / "tool.jinja").write_text("{{ tools }}")
    return model


BROUGHT = {"configuration_odd.py", "modeling_odd.py", "layers.py", "kernels.py", "tokenization_odd.py", "odd.vocab", "qwen.tiktoken",
           "tiktoken.model", "tekken.json", "spiece.model", "LICENSE", "Notice.txt", "USE_POLICY.md", "additional_chat_templates/tool.jinja",
           "config.json", "generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"}  # fmt: skip


def test_what_a_model_needs_is_copied_and_the_rest_is_named(odd: Path, tmp_path: Path) -> None:
    assert set(belonging(odd)) == BROUGHT
    conversion = prepare(str(odd), ConvertOptions(Recipe(scale=4.0), output=tmp_path / "o"))
    conversion.run()
    made = {p.relative_to(tmp_path / "o").as_posix() for p in (tmp_path / "o").rglob("*") if p.is_file()}
    assert made == BROUGHT | {"model.safetensors", "yarn_convert.json"}
    assert (tmp_path / "o" / "layers.py").read_text() == CODE["layers.py"]
    left = set(conversion.plan.left)
    assert left == {*STRAY, "stray.py", "setup.py", "api_key.json", "wandb/", "__pycache__/", "venv/"}
    assert not any("stray" in note for note in conversion.plan.notes), "a manifest is published"


def test_what_is_published_of_a_folder_is_what_belongs_there(odd: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    convert(str(odd), Recipe(scale=4.0), output=out, carry="tensors")
    for name in STRAY:
        (out / name).write_text("SECRET")
    (out / "wandb").mkdir()
    (out / "wandb" / "README.md").write_text("SECRET")
    c = open_checkpoint(resolve(str(out)))
    files = _files(c)
    assert set(files) == BROUGHT | {"model.safetensors", "yarn_convert.json", "rope.safetensors"}
    left, (warning,) = _left(c, files)
    assert set(left) == {*STRAY, "wandb/"}
    for name in ("id_rsa", ".env", "hf_token.txt", "LICENSE.pem", "license_key.txt"):
        assert name in warning
    assert "secret" in warning and "notes.txt" not in warning


def test_the_code_of_a_model_is_read_and_not_run(odd: Path) -> None:
    (odd / "modeling_odd.py").write_text("raise SystemExit('it ran')\nfrom .layers import A\nthis is no Python\n")
    assert {"modeling_odd.py", "layers.py", "kernels.py"} <= code_of(odd)
    (odd / "layers.py").write_text("from .modeling_odd import again\n")
    assert "layers.py" in code_of(odd), "a circle ends"
    for broken in ("[]", '{"auto_map": 3}', '{"auto_map": {"AutoTokenizer": {"a": 1}, "x": [[], 4, "../../up.X", "a.b.C", "no"]}}'):
        (odd / "tokenizer_config.json").write_text(broken)
        assert "tokenization_odd.py" not in code_of(odd)


def test_every_vocabulary_file_of_transformers_is_known() -> None:
    """But for those of models that have no RoPE: speech, layout, translation between two vocabularies."""
    transformers = pytest.importorskip("transformers")
    sources = "".join(p.read_text("utf-8") for p in sorted(Path(transformers.__file__).parent.glob("models/*/tokenization_*.py")))
    declared = {
        name for block in re.findall(r"VOCAB_FILES_NAMES = \{(.*?)\}", sources, re.DOTALL) for name in re.findall(r': "([^"]+)"', block)
    }
    others = {"entity_vocab.json", "word_shape.json", "word_pronunciation.json", "vocab-src.json", "vocab-tgt.json", "target_vocab.json",
              "normalizer.json", "emoji.json", "dict.txt", "byte_maps.json", "bpe.codes", "prophetnet.tokenizer"}  # fmt: skip
    assert len(declared) > 10
    assert {name for name in declared if not is_known(name)} <= others


@pytest.mark.parametrize(
    "name",
    ["token", "tokens.txt", ".env", ".env.local", "id_rsa", "id_ed25519", "server.pem", "my.key", "secrets.json", "credentials.json", "hf_token",
     "api-key.txt", "apikey", "private_key.der", ".netrc", "passwords.txt", "cert.p12", "aws_credentials", "wallet-secret.json", "sub/token"],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert looks_secret(name) and not is_known(name)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "added_tokens.json", "special_tokens_map.json", "LICENSE", "LICENSE.txt", "license.md", "LICENSE-MODEL", "README.md",
             "tokenizer.model.v3", "tokenizer.4.0.json", "preprocessor_config.json", "additional_chat_templates/x.jinja", "merges.txt"],
)  # fmt: skip
def test_names_of_a_model(name: str) -> None:
    assert is_known(name)


@pytest.mark.parametrize(
    "name", ["sub/config.json", "additional_chat_templates/x.py", "additional_chat_templates/a/x.jinja", "readme.txt", "a.json"]
)
def test_names_of_neither(name: str) -> None:
    assert not is_known(name) and not looks_secret(name)


def test_many_names_that_are_left_are_not_all_listed(make_model: MakeModel) -> None:
    from yarn_convert.cli.show import listed

    model = make_model("m")
    for i in range(30):
        (model / f"{i:02d}.log").write_text("")
    text = listed(left_over(model, belonging(model)))
    assert text.startswith("00.log, 01.log") and text.endswith("and 19 more")


def test_the_readme_of_a_project_is_no_card_of_the_gguf_beside_it(make_model: MakeModel, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    convert(str(make_model("m")), Recipe(scale=4.0), out="gguf", output=out)
    for project in ("# Internal\n\nhunter2\n", "---\nlicense: mit\n---\nhunter2\n", f"hunter2 {BEGIN}"):
        (tmp_path / "README.md").write_text(project)
        assert local_card(out) == "" and "hunter2" not in card(str(out))
        c = open_checkpoint(resolve(str(out)))
        assert _left(c, _files(c)) == (("README.md",), [])
        assert set(_files(c)) == {"m.gguf", "m.yarn_convert.json"}
    own = card(str(out)) + "\nMy own words.\n"
    (tmp_path / "README.md").write_text(own)
    assert "My own words." in card(str(out)) and _left(c, _files(c)) == ((), [])

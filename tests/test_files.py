"""What is opened for a model lies in its folder or in the Hub's cache; a link to elsewhere and what is no file are refused in a line."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeModel
from safetensors.numpy import load_file

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import entry as cli
from yarn_convert.conversion import convert
from yarn_convert.errors import FormatError, InputError
from yarn_convert.formats import files
from yarn_convert.options import Recipe

SECRET = "SECRET-4711"
TEXTS = {  # what a link may stand for -> a content that its reader would take
    "config.json": None,
    "generation_config.json": '{"eos_token_id": 2, "note": "SECRET-4711"}',
    "tokenizer.json": None,
    "tokenizer_config.json": '{"bos_token": "<|im_start|>", "chat_template": "SECRET-4711"}',
    "special_tokens_map.json": '{"bos_token": "SECRET-4711"}',
    "added_tokens.json": '{"SECRET-4711": 3}',
    "chat_template.jinja": SECRET,
    "chat_template.json": '{"chat_template": "SECRET-4711"}',
    "vocab.json": '{"SECRET-4711": 0}',
    "merges.txt": SECRET,
    "README.md": SECRET,
    "LICENSE": SECRET,
}


@pytest.fixture
def model(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model = make_model("m")
    (model / "config.json").write_text((model / "config.json").read_text().replace('"rope_scaling": null,', ""))
    return model


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([*args])
    return int(stop.value.code or 0)


def linked(model: Path, name: str, text: str | None) -> None:
    """`name` as a link out of the folder, to its own content or to `text`."""
    outside = model.parent / "elsewhere" / name
    outside.parent.mkdir(exist_ok=True)
    outside.write_bytes((model / name).read_bytes() if text is None else text.encode())
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(outside)


def holds(folder: Path, text: str) -> bool:
    return any(text.encode() in p.read_bytes() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("out", ["o", "o.gguf"])
def test_a_link_out_of_the_folder_is_not_read(model: Path, name: str, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    linked(model, name, TEXTS[name])
    if name == "chat_template.json":
        (model / "chat_template.jinja").unlink(missing_ok=True)
    code = run("m", "--scale", "4", "--out", "gguf" if "." in out else "safetensors", "-o", out, "-q")
    err = capsys.readouterr().err
    read = out == "o" or name not in ("README.md", "vocab.json", "merges.txt", "LICENSE", "special_tokens_map.json", "added_tokens.json")
    assert code == (1 if read else 0), err
    if code:
        error, hint = err.splitlines()
        assert error == f"error: {name} is a link that leads out of the model's folder"
        assert hint == "hint: put the file itself there; --follow-links reads links that you made, and nothing outside is ever published"
        assert not Path(out).exists()
    else:
        assert SECRET.encode() not in Path(out).read_bytes()


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "README.md", "config.json"])
def test_who_says_so_has_links_followed_and_reads_so_in_the_manifest(model: Path, name: str) -> None:
    linked(model, name, TEXTS[name])
    assert run("m", "--scale", "4", "-o", "o", "-q", "--follow-links") == 0
    assert name == "config.json" or holds(Path("o"), SECRET)
    assert f"links out of the model's folder were followed: {name}" in json.loads(Path("o/yarn_convert.json").read_text())["notes"]
    assert not any(p.is_symlink() for p in Path("o").iterdir())
    assert run("inspect", "m", "--follow-links") == 0
    assert run("m", "--scale", "4", "-o", "again", "-q") == 1, "the next command follows none"


def test_every_command_refuses_a_link(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linked(model, "config.json", None)
    for command in (["inspect", "m"], ["m", "--scale", "4"], ["repair", "m"], ["validate", "m", "--twin"], ["card", "m"],
                    ["evaluate", "perplexity", "m"], ["validate", "m", "--base", "m"]):  # fmt: skip
        assert run(*command) == 1
        assert "leads out" in capsys.readouterr().err, command


@pytest.mark.parametrize("out", ["o", "o.gguf"])
def test_folders_of_templates_stay_in_the_model_too(model: Path, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = model.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "tool.jinja").write_text(SECRET)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    settings = model / "tokenizer_config.json"
    settings.write_text(json.dumps({k: v for k, v in json.loads(settings.read_text()).items() if k != "chat_template"}))
    (model / "additional_chat_templates").symlink_to(elsewhere)
    arguments = ["m", "--scale", "4", "--out", "gguf" if "." in out else "safetensors", "-o", out, "-q"]
    assert run(*arguments) == 1
    assert "additional_chat_templates is a link that leads out" in capsys.readouterr().err
    (model / "additional_chat_templates").unlink()
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool.jinja").symlink_to(elsewhere / "tool.jinja")
    assert run(*arguments) == 1
    assert "tool.jinja is a link that leads out" in capsys.readouterr().err


def test_weights_may_lie_on_another_disk(model: Path) -> None:
    """What is linked there is a model's tensors, or no reader of weights takes it."""
    (model.parent / "disk").mkdir()
    (model / "model.safetensors").rename("disk/0a1b2c")
    (model / "model.safetensors").symlink_to("../disk/0a1b2c")
    for out in ("o", "o.gguf"):
        notes = convert("m", Recipe(scale=4.0), out="gguf" if "." in out else "safetensors", output=Path(out)).to_dict()["notes"]
        assert "links out of the model's folder were followed: model.safetensors" in notes
    assert not Path("o/model.safetensors").is_symlink()
    assert Path("o/model.safetensors").read_bytes() == Path("disk/0a1b2c").read_bytes()
    Path("disk/0a1b2c").write_text(SECRET)
    with pytest.raises(FormatError, match="not a sound safetensors"):
        open_checkpoint(resolve("m"))


def test_the_hubs_cache_links_to_its_blobs_and_nowhere_else(model: Path, tmp_path: Path) -> None:
    repo = tmp_path / "models--org--m"
    snapshot, blobs = repo / "snapshots" / ("a" * 40), repo / "blobs"
    blobs.mkdir(parents=True)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    for i, path in enumerate(sorted(p for p in model.rglob("*") if p.is_file())):
        link = snapshot / path.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / f"{i:040x}")
        link.symlink_to(os.path.relpath(blobs / f"{i:040x}", link.parent))
    assert convert(str(snapshot), Recipe(scale=4.0), output=Path("o")).to_dict()["notes"] == []
    assert Path("o/additional_chat_templates/tool.jinja").read_text() == "{{ tools }}"
    for target in (repo / "refs", tmp_path / "models--org--other" / "blobs", blobs / "deeper", tmp_path):
        target.mkdir(parents=True, exist_ok=True)
        (target / "x").write_text(SECRET)
        (snapshot / "chat_template.jinja").unlink(missing_ok=True)
        (snapshot / "chat_template.jinja").symlink_to(target / "x")
        with pytest.raises(FormatError, match="leads out"):
            convert(str(snapshot), Recipe(scale=4.0), output=Path("p"))
    snapshots = tmp_path / "mine" / "snapshots" / "m"  # a folder of that name is no cache
    snapshots.mkdir(parents=True)
    (tmp_path / "mine" / "blobs").mkdir()
    (tmp_path / "mine" / "blobs" / "x").write_text(SECRET)
    (snapshots / "README.md").symlink_to("../../blobs/x")
    with pytest.raises(FormatError, match="leads out"):
        files.read(snapshots, "README.md")


def test_links_within_the_folder_and_a_model_named_by_a_link_are_sound(model: Path) -> None:
    (model / "generation_config.json").write_text('{"max_length": 64}')
    (model / "generation_config.json").rename(model / "real.json")
    (model / "generation_config.json").symlink_to("real.json")
    Path("link").symlink_to("m")
    convert("link", Recipe(scale=4.0), output=Path("o"))
    assert json.loads(Path("o/generation_config.json").read_text()) == {"max_length": 256}
    convert("m", Recipe(scale=4.0), out="gguf", output=Path("o.gguf"))
    Path("elsewhere").mkdir()
    Path("o.gguf").rename("elsewhere/o.gguf")
    Path("o.gguf").symlink_to("elsewhere/o.gguf")
    assert convert("o.gguf", Recipe(method="none"), output=Path("p.gguf")).to_dict()["notes"] == []


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


PARTS = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "tokenizer.model",
         "model.safetensors", "model.safetensors.index.json", "yarn_convert.json", "README.md"]  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(("make", "what"), [(_pipe, "a pipe"), (_socket, "a socket"), (Path.mkdir, "a folder"), (_device, "a device")])
def test_what_is_no_file_is_refused_at_once(model: Path, name: str, make: Callable[[Path], Any], what: str) -> None:
    if name == "model.safetensors.index.json":
        (model / "model.safetensors").unlink()
    (model / name).unlink(missing_ok=True)
    make(model / name)
    found: list[object] = []

    def body() -> None:
        with files_followed():
            for out in ("o", "o.gguf"):
                try:
                    convert("m", Recipe(scale=4.0), out="gguf" if "." in out else "safetensors", output=Path(out))
                except InputError as e:
                    found.append(str(e))

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits"
    assert all(f"{name} is {what}, not a file" in str(e) for e in found), found
    assert found or name in ("yarn_convert.json", "README.md", "generation_config.json")


class files_followed:  # noqa: N801
    """Links are followed, so that a link to a device is looked at, too."""

    def __enter__(self) -> None:
        self.token = files.FOLLOW.set(True)

    def __exit__(self, *of: object) -> None:
        files.FOLLOW.reset(self.token)


def test_a_link_to_nothing_is_no_missing_file(model: Path) -> None:
    """A tokenizer's settings that are there for everyone else would be lost without a word."""
    (model / "added_tokens.json").symlink_to("gone.json")
    with pytest.raises(InputError, match=r"added_tokens\.json is a link to nothing"):
        convert("m", Recipe(scale=4.0), output=Path("o"))


# -- shards without an index ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
def test_whole_shards_need_no_index(make_model: MakeModel, tmp_path: Path, shards: int) -> None:
    model = make_model("s", shards=shards)
    if shards == 1:
        (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    else:
        (model / "model.safetensors.index.json").unlink()
    convert(str(model), Recipe(scale=4.0), output=tmp_path / "o")
    index = json.loads((tmp_path / "o" / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(load_file(tmp_path / "o" / file)[name], load_file(model / file)[name])
    assert len(index["weight_map"]) == len(open_checkpoint(resolve(str(tmp_path / "o"))).tensors)
    convert(str(model), Recipe(scale=4.0), out="gguf", output=tmp_path / "o.gguf")


def test_weights_that_cannot_be_taken_are_named(make_model: MakeModel) -> None:
    model = make_model("s", shards=3)
    (model / "model.safetensors.index.json").unlink()
    (model / "model-00002-of-00003.safetensors").rename(model / "model-00002-of-00004.safetensors")
    with pytest.raises(InputError, match=r"not one whole model: model-00001-of-00003.*hint: download all 3"):
        open_checkpoint(resolve(str(model)))
    (model / "model-00001-of-00003.safetensors").rename(model / "weights.safetensors")
    for left in model.glob("model-*"):
        left.unlink()
    with pytest.raises(InputError, match=r"weights\.safetensors is named otherwise.*hint: rename it to model\.safetensors"):
        open_checkpoint(resolve(str(model)))

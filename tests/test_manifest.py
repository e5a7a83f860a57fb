"""The manifest: what is of another type is named in one line, in every command; what is unknown is passed over and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel

from yarn_convert.checkpoint.manifest import Manifest, as_json, changed, manifest_path, read_manifest, recipe_in, recorded
from yarn_convert.cli import entry as cli
from yarn_convert.conversion import convert
from yarn_convert.errors import FormatError
from yarn_convert.formats.json_text import REMOVE, pretty
from yarn_convert.options import Recipe
from yarn_convert.rope import Rope, recipe_of

Members = dict[str, Any]


@pytest.fixture
def out(make_model: MakeModel, tmp_path: Path) -> Path:
    convert(str(make_model()), Recipe(scale=4.0), output=tmp_path / "out")
    return tmp_path / "out"


def edited(out: Path, edit: Callable[[Members], Any]) -> None:
    path = manifest_path(out)
    members = json.loads(path.read_text())
    edit(members)
    path.write_text(json.dumps(members))


def put(path: str, value: Any) -> Callable[[Members], Any]:
    *steps, last = path.split(".")

    def edit(m: Any) -> None:
        for step in steps:
            m = m[int(step)] if isinstance(m, list) else m[step]
        m[int(last) if isinstance(m, list) else last] = value

    return edit


RUN = {"runtime": "x", "verdict": "passed", "windows": [{"nmse": 1e-9, "top1": 1.0}]}
WRONG = [
    ("base", [], "base is a list, not an object"),
    ("base.repo", 7, "base.repo is 7, not a text"),
    ("base.commit", {}, "base.commit is an object, not a text"),
    ("recipe", 1.5, "recipe is 1.5, not an object"),
    ("recipe", None, "recipe is null, not an object"),
    ("recipe.rotary_dim", True, "recipe.rotary_dim is True, not an integer"),
    ("recipe.rotary_dim", -2, "recipe.rotary_dim is -2, not an integer >= 1"),
    ("recipe.original_context", 2**40, "recipe.original_context"),
    ("recipe.rope_theta", 10**400, "recipe.rope_theta"),
    ("recipe.params", [4], "recipe.params is a list, not an object"),
    ("recipe.params", {"factor": None}, "recipe.params"),
    ("recipe.inner", 3, "recipe.inner is 3, not an object"),
    ("context", "x", "context is 'x', not an integer"),
    ("context", 4e9, "context is 4000000000.0, not an integer"),
    ("weights", "all", "weights is 'all', not an object"),
    ("weights.files", {}, "weights.files is an object, not a list"),
    ("weights.files.0", "model.safetensors", "weights.files[0] is 'model.safetensors', not an object"),
    ("weights.files.0.file", None, "weights.files[0].file is null, not a text"),
    ("readers", ["x"], "readers is a list, not an object"),
    ("notes", 0, "notes is 0, not a list"),
    ("validation", [], "validation is a list, not an object"),
    ("validation", {"verdict": "passed", "studies": [{"kind": "real", "tokens": "9"}]}, "validation.studies[0].tokens is '9', not an integer"),
    ("validation", {"verdict": "passed", "studies": [{"kind": "real", "tokens": 9, "runtimes": [{**RUN, "windows": 2}]}]}, "runtimes[0].windows is 2"),
    ("evaluation", {"runtime": "x", "base": [], "points": [], "documents": []}, "evaluation.base is a list"),
    ("evaluation", {"runtime": "x", "points": [], "documents": []}, "evaluation.base is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "says"), WRONG, ids=[f"{path}-{says[-18:]}" for path, _, says in WRONG])
def test_a_member_of_another_type_is_named(out: Path, path: str, value: Any, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    edited(out, put(path, value))
    for command in (["card", out], ["upload", out, "me/x", "--dry-run"], ["validate", out, "--twin"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(a) for a in command])
        error, hint = capsys.readouterr().err.splitlines()
        assert stop.value.code == 1
        assert error.startswith("error: ") and says in error
        assert hint.startswith("hint: ")


def test_a_missing_member_is_named_or_nothing_is_known(out: Path) -> None:
    edited(out, lambda m: m["recipe"].pop("original_context"))
    with pytest.raises(FormatError, match=r"recipe\.original_context is missing"):
        read_manifest(out)
    edited(out, lambda m: m["recipe"].update(original_context=64))
    edited(out, lambda m: [m.pop(k) for k in list(m) if k not in ("recipe", "context")])
    manifest = read_manifest(out)
    assert manifest and (manifest.base.repo, manifest.weights.files, manifest.validation) == (None, [], None)


def test_what_a_later_version_wrote_is_passed_over_and_kept(out: Path) -> None:
    edited(out, lambda m: m.update({"later": {"a": [1.50]}, "base": {**m["base"], "revision": 2}}))
    assert read_manifest(out)
    text = changed(out, {"notes": ["changed"], "validation": REMOVE})
    before, after = json.loads(manifest_path(out).read_text()), json.loads(text)
    assert after == {k: v for k, v in before.items() if k != "validation"} | {"notes": ["changed"]}
    assert list(after) == [k for k in before if k != "validation"]


def test_what_is_written_is_read_the_same(out: Path) -> None:
    manifest = read_manifest(out)
    assert manifest
    assert pretty(as_json(manifest)) == manifest_path(out).read_bytes()
    assert list(json.loads(manifest_path(out).read_text()))[:6] == ["yarn_convert", "created", "base", "format", "asked", "recipe"]


def test_a_recipe_is_the_same_after_json() -> None:
    inner = Rope("llama3", 5e5, 8, 64, {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0})
    for rope in (
        Rope("yarn", 1e4, 8, 64, {"factor": 4.0, "truncate": False, "ramp": "index"}, inner),
        Rope("explicit", 1e4, 8, 64, {"factors": (1.0, 2.0, 3.0, 4.5), "attention_factor": 1.25}),
        Rope("none", 1e4, 8, 64),
    ):
        assert recipe_in(json.loads(json.dumps(recipe_of(rope)))).rope() == recipe_in(json.dumps(recipe_of(rope))).rope() == rope
        assert json.loads(pretty(as_json(Manifest(recipe=recorded(rope), context=64))))["recipe"] == json.loads(json.dumps(recipe_of(rope)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[]",
        "7",
        "{}",
        '{"method": []}',
        "[" * 2000,
        '{"method": "x", "rope_theta": 1, "rotary_dim": 8, "original_context": 8, "params": {}}',
        '{"method": "yarn", "method": "none"}',
        "null",
    ],
)
def test_a_text_that_is_no_recipe_is_one_error(text: str) -> None:
    with pytest.raises(FormatError, match="no recipe") as error:
        recipe_in(text).rope()
    assert error.value.message.isprintable()

"""Several types in one command, and how outputs are called."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel

from yarn_convert import Recipe, convert
from yarn_convert.checkpoint.manifest import manifest_path
from yarn_convert.cli import entry as cli
from yarn_convert.conversion.several import prepare_each, run_each
from yarn_convert.errors import OutputError, UsageError
from yarn_convert.formats import tensors
from yarn_convert.options import ConvertOptions
from yarn_convert.targets import moving

TYPES = ("q8_0", "f16", "bf16")


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.suffix == ".gguf"}


def test_several_types_are_the_files_that_one_at_a_time_makes(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their bytes; the model is opened once, and what is made of one tensor is made together."""
    model, opened = make_model(dtype="BF16"), Counter[str]()
    (tmp_path / "alone").mkdir()
    for t in TYPES:
        convert(str(model), Recipe(scale=4), out="gguf", outtype=t, output=tmp_path / "alone" / f"x.{t.upper()}.gguf")
    order: list[str] = []
    piece, folder = moving.Mover._piece, tensors.read_safetensors

    def noted(self: Any, path: Path, made: Any, at: int) -> None:
        order.append(made.target.name)
        piece(self, path, made, at)

    monkeypatch.setattr(moving.Mover, "_piece", noted)
    monkeypatch.setattr(moving, "_workers", lambda jobs: 1)
    monkeypatch.setattr(tensors, "read_safetensors", lambda path: (opened.update([path.name]), folder(path))[1])
    done = convert(str(model), Recipe(scale=4), out="gguf", outtype=",".join(TYPES), output=tmp_path / "x.gguf")
    assert [one.output.name for one in (done, *done.others)] == ["x.Q8_0.gguf", "x.F16.gguf", "x.BF16.gguf"]
    assert contents(tmp_path) == contents(tmp_path / "alone")
    assert opened == {"model.safetensors": 1}
    assert len(order) > 3 and all(len({*order[i : i + 3]}) == 1 for i in range(0, len(order), 3))
    for one in done.others:
        record = json.loads(manifest_path(one.output).read_text())
        assert (record["outtype"].upper(), [f["file"] for f in record["weights"]["files"]]) == (
            one.output.name.split(".")[1],
            [one.output.name],
        )
    assert [other["outtype"] for other in done.to_dict()["others"]] == ["f16", "bf16"]


def test_all_of_several_appear_or_none(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = make_model(), ConvertOptions(Recipe(scale=4), out="gguf", outtype="q8_0,f16", output=tmp_path / "x.gguf")
    (tmp_path / "x.F16.gguf").write_text("mine")
    with pytest.raises(OutputError, match=r"x\.F16\.gguf exists"):
        run_each(prepare_each(str(model), options))
    (tmp_path / "x.F16.gguf").unlink()
    each = prepare_each(str(model), options)
    publish = moving.write_all

    def full(f: Any, data: Any) -> None:
        if "F16" in str(f.name):
            raise OSError(28, "No space left on device")
        publish(f, data)

    monkeypatch.setattr(moving, "write_all", full)
    with pytest.raises(OutputError, match="the disk is full"):
        run_each(each)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["tiny", "--scale", "4", "--out", "gguf", "--outtype", "q8_0"], ["tiny-yarn-256.Q8_0.gguf"]),
        (["tiny", "--scale", "4", "--out", "gguf", "--outtype", "Q8_0,f16,auto"], ["tiny-yarn-256.Q8_0.gguf", "tiny-yarn-256.F16.gguf", "tiny-yarn-256.gguf"]),
        (["m.Q8_0.gguf", "--scale", "4"], ["m-yarn-256.Q8_0.gguf"]),
        (["m.Q8_0.gguf", "--method", "none"], ["converted-m.Q8_0.gguf"]),
        (["tiny", "--scale", "4", "-o", "x.gguf"], ["x.gguf"]),
        (["tiny", "--scale", "4", "-o", "x.gguf", "--outtype", "q8_0,f16"], ["x.Q8_0.gguf", "x.F16.gguf"]),
        (["tiny", "--scale", "4", "--out", "gguf", "-o", "there"], ["there/tiny-yarn-256.gguf"]),
        (["tiny", "--scale", "4", "-o", "there", "--outtype", "f16"], ["there/tiny-yarn-256-f16"]),
        (["tiny", "--scale", "4", "-o", "there/"], ["there/tiny-yarn-256"]),
        (["tiny", "--scale", "4", "-o", "other"], ["other"]),
        (["m.Q8_0.gguf", "--scale", "4", "-o", "there/"], ["there/m-yarn-256.Q8_0.gguf"]),
    ],
)  # fmt: skip
def test_what_outputs_are_called(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], names: list[str]
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    make_model()
    Path("there").mkdir()
    if words[0].startswith("m."):
        convert("tiny", Recipe(method="none"), outtype="q8_0", output=Path("m.Q8_0.gguf"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--dry-run", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert (stop.value.code, [one["output"] for one in (plan, *plan.get("others", []))]) == (0, names)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "several types are for --out gguf"),
        ({"out": "safetensors"}, "several types are for --out gguf"),
        ({"out": "gguf", "mmproj": True}, "--mmproj goes with one --outtype"),
        ({"out": "gguf", "outtype": "q8_0,q9"}, "unknown --outtype 'q9'"),
    ],
)
def test_what_has_one_type_is_refused(make_model: MakeModel, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        prepare_each(str(make_model()), ConvertOptions(Recipe(scale=4), **{"outtype": "f16,bf16", **changes}))

"""An edit in place: killed at any step, of any carrier, the next run has the whole of it, or nothing, and a manifest that fits."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel, split_options
from dying import dies

from yarn_convert.conversion import convert, prepare
from yarn_convert.conversion.repair import plan_repair
from yarn_convert.errors import OutputError, YarnConvertError
from yarn_convert.formats.gguf_file import open_gguf
from yarn_convert.formats.split import read_model
from yarn_convert.options import ConvertOptions, Recipe, RepairOptions
from yarn_convert.targets import in_place, parts

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
SCALED = {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}  # fmt: skip


def extend(path: str, **options: Any) -> Callable[[], Any]:
    return lambda: prepare(path, ConvertOptions(**split_options(in_place=True, **options))).run()


def repair(path: str) -> Callable[[], Any]:
    return lambda: plan_repair(path, RepairOptions(recipe=Recipe(method="yarn", scale=4, original_context=64))).run()


def plain(make: MakeModel, **options: Any) -> None:
    make(**options)
    convert("tiny", Recipe(method="none"), out="gguf", output=Path("m.gguf"))


def split(make: MakeModel) -> None:
    make()
    convert("tiny", Recipe(method="none"), out="gguf", output=Path("m.gguf"), split_max_size="190M")


def fits(make: MakeModel) -> None:
    plain(make)
    extend("m.gguf", scale=2)()


def has_factors(make: MakeModel) -> None:
    plain(make)
    extend("m.gguf", scale=2, carry="tensors")()


PART = "m-00001-of-00003.gguf"
EDITS: dict[str, tuple[Callable[[MakeModel], None], str, Callable[[], Any]]] = {
    "metadata": (plain, "m.gguf", extend("m.gguf", scale=4)),
    "metadata, into the header as it is": (fits, "m.gguf", extend("m.gguf", scale=4)),
    "tensors": (plain, "m.gguf", extend("m.gguf", scale=4, carry="tensors")),
    "tensors, another method": (plain, "m.gguf", extend("m.gguf", scale=4, method="ntk-by-parts")),
    "tensors, the old ones replaced": (has_factors, "m.gguf", extend("m.gguf", scale=4)),
    "tensors over the base's own scaling": (
        lambda make: plain(make, config=SCALED | {"max_position_embeddings": 512}),
        "m.gguf",
        extend("m.gguf", context=1024),
    ),
    "the first part of a split one": (split, PART, extend(PART, scale=4)),
    "tensors in the first part": (split, PART, extend(PART, scale=4, carry="tensors")),
    "repair": (plain, "m.gguf", repair("m.gguf")),
}


@pytest.fixture(params=EDITS)
def edit(request: pytest.FixtureRequest, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edited:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(parts.UNITS, "M", 1000)
    probe = Path("probe")
    probe.write_bytes(b"x" * 8192)
    try:
        in_place._insert(probe, 4096)
    except OSError:
        pytest.skip("this file system cannot insert into a file")
    probe.unlink()
    make, name, run = EDITS[request.param]
    make(make_model)
    return Edited(Path(name), run)


class Edited:
    """A file, an edit of it, and the folder before and after."""

    def __init__(self, path: Path, run: Callable[[], Any]) -> None:
        self.path, self.run = path, run
        self.files = {p.name: p.read_bytes() for p in Path().iterdir() if p.is_file()}
        self.before = path.read_bytes()
        result, self.steps = dies(None, run)
        assert result == "done"
        self.after, self.manifest = path.read_bytes(), manifest()
        assert self.after != self.before and hidden() == []

    def reset(self) -> None:
        for p in Path().iterdir():
            if p.is_file() and p.name not in self.files:
                p.unlink()
        for name, data in self.files.items():
            Path(name).write_bytes(data)

    def check_between(self, what: str) -> None:
        """No reader takes a half edited file for a model; no manifest speaks of another file."""
        data, said = self.path.read_bytes(), manifest()
        if data not in (self.before, self.after):
            with pytest.raises(YarnConvertError):
                open_gguf(self.path)
        elif said is not None:
            assert (said == self.manifest) == (data == self.after), what

    def check_end(self, what: str) -> bool:
        """Whether the edit was carried out."""
        data = self.path.read_bytes()
        assert data in (self.before, self.after), what
        assert hidden() == [], what
        if data == self.after:
            assert manifest() == self.manifest, what
        assert read_model(self.path).tensors
        return data == self.after


def manifest() -> dict[str, Any] | None:
    path = Path("m.yarn_convert.json")
    # A second repair, of a file that is sound by then, has other words for it.
    return {k: v for k, v in json.loads(path.read_text()).items() if k not in ("created", "notes", "hparams")} if path.exists() else None


def hidden() -> list[str]:
    return [p.name for p in Path().iterdir() if p.name.startswith(".")]


def test_a_kill_at_any_step_is_finished_by_the_same_command(edit: Edited) -> None:
    finished = 0
    for at in range(1, edit.steps + 1, 3):  # `tools/kill_runs.py` kills between them
        edit.reset()
        result, _ = dies(at, edit.run)
        assert result == "dead", f"step {at}: {result}"
        edit.check_between(f"step {at}")
        if edit.path.read_bytes() == edit.after and hidden() == []:  # all was done
            assert edit.check_end(f"step {at}")
            continue
        try:
            edit.run()
        except OutputError as e:
            assert "finished now" in e.message, f"step {at}"
            finished += 1
        assert edit.check_end(f"step {at}")
    assert finished or "repair" in str(edit.run)


def test_a_kill_while_a_killed_edit_is_finished(edit: Edited) -> None:
    for first in (edit.steps // 3, 2 * edit.steps // 3):
        edit.reset()
        dies(first, edit.run)
        torn = {p.name: p.read_bytes() for p in Path().iterdir() if p.is_file()}
        result, steps = dies(None, lambda: in_place.recover(edit.path))
        assert result == "done"
        for second in range(1, steps + 1, 7):
            for p in Path().iterdir():
                if p.is_file():
                    p.unlink()
            for name, data in torn.items():
                Path(name).write_bytes(data)
            dies(second, lambda: in_place.recover(edit.path))
            edit.check_between(f"steps {first}, {second}")
            in_place.recover(edit.path)
            edit.check_end(f"steps {first}, {second}")


@pytest.mark.parametrize("number", [28, 5])
def test_a_disk_that_fails_at_any_step_is_an_error_that_says_how_to_go_on(edit: Edited, number: int) -> None:
    fail = OSError(number, os.strerror(number))
    _, steps = dies(None, edit.run, fail)
    for at in range(1 + 3 * (number == 5), steps + 1, 7):
        edit.reset()
        result, _ = dies(at, edit.run, fail)
        assert result == "done" or result.startswith("OutputError"), f"step {at}: {result}"
        edit.check_between(f"step {at}")
        if result == "done":
            continue
        try:
            edit.run()
        except OutputError as e:
            assert "finished now" in e.message, f"step {at}: {e}"
        assert edit.check_end(f"step {at}")


def test_the_hash_of_an_edit_is_that_of_the_file_as_it_becomes(edit: Edited) -> None:
    edit.reset()
    for carry in ("metadata", "tensors"):
        try:
            written = (
                prepare(str(edit.path), ConvertOptions(Recipe(scale=4, original_context=64), in_place=True, carry=carry, hash=True))
                .run()
                .to_dict()
            )
        except YarnConvertError:
            continue
        for file in written["weights"]["files"]:
            assert file["sha256"] == hashlib.sha256(Path(file["file"]).read_bytes()).hexdigest()
            assert file["bytes"] == Path(file["file"]).stat().st_size


# -- the journal ------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    plain(make_model)
    return Path("m.gguf")


def test_the_journal_is_not_written_through_a_link(model: Path) -> None:
    Path("precious").write_text("years")
    before = model.read_bytes()
    in_place.journal_path(model).symlink_to("precious")
    for run in (extend("m.gguf", scale=4), lambda: in_place.recover(model)):
        with pytest.raises(OutputError, match="not what an edit leaves"):
            run()
    assert Path("precious").read_text() == "years" and model.read_bytes() == before
    in_place.journal_path(model).unlink()
    conversion = prepare("m.gguf", ConvertOptions(Recipe(scale=4), in_place=True))
    in_place.journal_path(model).symlink_to("precious")  # after it was looked for
    with pytest.raises(OutputError, match="lies there"):
        conversion.run()
    assert Path("precious").read_text() == "years" and model.read_bytes() == before


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_a_journal_that_is_no_file_is_refused(model: Path, make: Any) -> None:
    make(in_place.journal_path(model))
    with pytest.raises(OutputError):
        in_place.recover(model)


def test_no_edit_goes_through_a_link_of_the_model(model: Path) -> None:
    """A journal beside the link is none of ours."""
    Path("there").mkdir()
    link = Path("there/m.gguf")
    link.symlink_to("../m.gguf")
    in_place.journal_path(link).write_text("{}")
    assert in_place.recover(link) is False


def journal(value: Any) -> bytes:
    text = (value if isinstance(value, str) else json.dumps(value)).encode()
    return json.dumps({"sha256": hashlib.sha256(text).hexdigest()}).encode() + b"\n" + text


GOOD = {"size": 40, "inserted": 0, "header": "A" * 32, "patches": [], "start": 24, "before": "", "manifest": ""}
ODD: list[Any] = [
    7, None, [], {}, "[" * 9000, "9" * 5000, "{", "NaN", *({**GOOD, key: value} for key in GOOD for value in (None, [], {}, "é", -1, 1e999, True)),
    *({**GOOD, "patches": p} for p in (7, [7], [[1]], [[-1, "AA=="]], [[1 << 62, "AA=="]], [[30, "é"]], [["a", "b"]], {"a": 1})),
]  # fmt: skip


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_a_journal_of_any_json_changes_nothing(model: Path, value: Any) -> None:
    before = model.read_bytes()
    in_place.journal_path(model).write_bytes(journal(value))
    try:
        assert in_place.recover(model) is False
    except OutputError as e:
        assert e.hint
    assert model.read_bytes() == before


def test_a_journal_that_cannot_be_read_stays_while_the_model_needs_it(model: Path) -> None:
    """One of another version, or damaged: it is all that is left of the file's first bytes."""
    before = model.read_bytes()
    left = journal({"size": len(before), "inserted": 0, "header": "AAAA", "patches": [], "old_header": [24, ""]})
    in_place.journal_path(model).write_bytes(left)
    model.write_bytes(b"\0" * 8 + before[8:])
    with pytest.raises(OutputError, match="middle of an edit"):
        prepare("m.gguf", ConvertOptions(Recipe(scale=4), in_place=True))
    assert in_place.journal_path(model).read_bytes() == left
    model.write_bytes(before)
    assert in_place.recover(model) is False and hidden() == []


def test_a_manifest_beside_a_private_model_is_private(model: Path) -> None:
    model.chmod(0o600)
    Path("m.yarn_convert.json").unlink()
    extend("m.gguf", scale=4)()
    assert Path("m.yarn_convert.json").stat().st_mode & 0o777 == 0o600
    assert model.stat().st_mode & 0o777 == 0o600

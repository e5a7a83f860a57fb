"""What takes whose place: nothing that nobody checked is replaced, a kill at any step leaves the old output, the new one, or neither."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel, split_options
from dying import dies

from yarn_convert.checkpoint.manifest import MANIFEST
from yarn_convert.conversion import convert, prepare
from yarn_convert.errors import InputError, OutputError, YarnConvertError
from yarn_convert.formats import room
from yarn_convert.formats.gguf_file import open_gguf
from yarn_convert.formats.split import read_model
from yarn_convert.formats.tensors import read_safetensors
from yarn_convert.options import ConvertOptions, Recipe
from yarn_convert.targets import moving, parts, places, resume

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "folder": ("out", {}),
    "new weights": ("out", {"outtype": "f16", "carry": "tensors"}),
    "gguf": ("out.gguf", {"out": "gguf"}),
    "split": ("out.gguf", {"out": "gguf", "split_max_size": "190M"}),
}


@pytest.fixture(params=["exchanged", "put aside"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With renameat2, and without."""
    if request.param == "put aside":
        monkeypatch.setattr(places, "libc_with", lambda function: None)
    elif places.libc_with("renameat2") is None:
        pytest.skip("no renameat2")


@pytest.fixture(autouse=True)
def place(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    make_model()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(parts.UNITS, "M", 1000)
    yield tmp_path


def start(kind: str, scale: float = 4, **more: Any) -> dict[str, Any]:
    out, options = KINDS[kind]
    return prepare("tiny", ConvertOptions(**split_options(scale=scale, output=Path(out), **{**options, **more}))).run().to_dict()


def after_moving(monkeypatch: pytest.MonkeyPatch, do: Callable[[], Any]) -> None:
    """Have something happen when the weights have been moved, once."""
    run, done = moving.Mover.run, [False]

    def and_then(mover: Any, jobs: Any) -> None:
        run(mover, jobs)
        if not done[0]:
            done[0] = True
            do()

    monkeypatch.setattr(moving.Mover, "run", and_then)


def hidden() -> list[str]:
    return [p.name for p in Path().iterdir() if p.name.startswith(".")]


def main_of(kind: str) -> Path:
    return Path("out-00001-of-00003.gguf" if kind == "split" else KINDS[kind][0])


def context_of(kind: str) -> int:
    """That of the output, read whole; 0 where there is none. A file that is no model raises."""
    path = main_of(kind)
    if not path.exists():
        return 0
    if path.suffix == ".gguf":
        return int(read_model(path).get("llama.context_length"))
    assert read_safetensors(path / "model.safetensors")
    return int(json.loads((path / "config.json").read_text())["max_position_embeddings"])


def manifest_of(kind: str) -> dict[str, Any] | None:
    path = Path("out.yarn_convert.json") if KINDS[kind][0].endswith(".gguf") else Path("out") / MANIFEST
    return dict(json.loads(path.read_text())) if path.exists() else None


MADE: dict[str, Callable[[Path], Any]] = {
    "file": lambda p: p.write_text("years"),
    "folder": lambda p: (p.mkdir(), (p / "thesis").write_text("years")),
    "empty folder": lambda p: p.mkdir(),
    "dangling link": lambda p: p.symlink_to("nowhere"),
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("kind", KINDS)
def test_what_appears_during_a_run_stays(kind: str, made: str, renames: None, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [main_of(kind)]
    names += [Path("out.yarn_convert.json")] if kind in ("gguf", "split") else []
    names += [Path("out-00002-of-00003.gguf")] if kind == "split" else []
    for name in names:
        for force in (False, True):
            with monkeypatch.context() as patch:
                after_moving(patch, lambda name=name: MADE[made](name))  # type: ignore[misc]
                with pytest.raises(OutputError, match="made or changed by something else"):
                    start(kind, force=force)
            there = places.state(name)
            assert there is not None and len(there) == 1 + (made == "folder")
            assert sorted(p.name for p in Path().iterdir()) == sorted(["tiny", name.name])
            places.delete(name)


@pytest.mark.parametrize("kind", KINDS)
def test_force_replaces_what_was_there_at_the_start_alone(kind: str, renames: None, monkeypatch: pytest.MonkeyPatch) -> None:
    start(kind)
    before = sorted(p.name for p in Path().iterdir())
    start(kind, scale=8, force=True)
    assert context_of(kind) == 8 * 64 and sorted(p.name for p in Path().iterdir()) == before
    path = main_of(kind)
    added = path / "thesis" if path.is_dir() else path

    def changed() -> None:
        with open(added, "ab") as f:
            f.write(b"years")

    after_moving(monkeypatch, changed)
    with pytest.raises(OutputError, match="changed by something else"):
        start(kind, scale=2, force=True)
    assert added.read_bytes().endswith(b"years")
    assert context_of(kind) == 8 * 64 and manifest_of(kind)["context"] == 8 * 64  # type: ignore[index]
    assert sorted(p.name for p in Path().iterdir()) == before


def test_a_stray_manifest_is_not_replaced_without_force() -> None:
    Path("out.yarn_convert.json").write_text("mine")
    with pytest.raises(OutputError, match=r"yarn_convert\.json exists"):
        start("gguf")
    assert Path("out.yarn_convert.json").read_text() == "mine"


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_runs_to_one_output_one_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small it is, from the first byte."""
    refused: list[str] = []
    task = moving.Mover._tasks

    def another(mover: Any, job: Any) -> Any:
        if not refused:
            with pytest.raises(OutputError) as e:
                start(kind)
            refused.append(e.value.message)
        return task(mover, job)

    monkeypatch.setattr(moving.Mover, "_tasks", another)
    start(kind)
    assert len(refused) == 1 and "another process is writing" in refused[0]
    assert context_of(kind) == 256 and hidden() == []


def test_of_many_runs_at_once_one_writes_and_the_others_say_so() -> None:
    results: list[str] = []

    def one(scale: int) -> None:
        try:
            start("folder", scale=scale)
            results.append("written")
        except OutputError as e:
            results.append(e.message)

    threads = [threading.Thread(target=one, args=(n,)) for n in (2, 4, 8, 16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results.count("written") == 1, results
    assert all("another process" in r or "exists" in r or "made or changed" in r for r in results if r != "written"), results
    assert hidden() == []


def sound(kind: str, contexts: tuple[int, ...]) -> int:
    """The context of what lies there, one of these, and with it a manifest that speaks of it or none."""
    context, manifest = context_of(kind), manifest_of(kind)
    assert context in contexts
    assert manifest is None or manifest["context"] == context or context == 0
    return context


@pytest.mark.parametrize(
    ("renames", "kind", "large"),
    [("exchanged", "folder", False), ("exchanged", "new weights", True), ("put aside", "gguf", False), ("put aside", "split", True)],
    indirect=["renames"],
)
def test_a_kill_at_any_step_leaves_nothing_half(renames: None, kind: str, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the same command ends as if nothing had been, and nothing lies about."""
    if large:
        monkeypatch.setattr(resume, "RESUMABLE", 0)
    expected, steps = dies(None, lambda: start(kind))
    assert expected == "done" and steps > 20
    names = sorted(p.name for p in Path().iterdir())
    for at in [*range(1, 2 * steps // 3, 23), *range(2 * steps // 3, steps + 1, 3)]:  # the end is where it takes its place
        for name in names:
            if name != "tiny":
                places.delete(Path(name))
        result, _ = dies(at, lambda: start(kind))
        sound(kind, (0, 256))
        if result == "done":  # one thread did less than another
            continue
        assert result == "dead", f"step {at}"
        try:
            start(kind)
        except OutputError as e:
            assert "exists" in e.message, f"step {at}"
        assert sorted(p.name for p in Path().iterdir()) == names, f"step {at}"
        assert sound(kind, (256,)) and manifest_of(kind), f"step {at}"


@pytest.mark.parametrize(
    ("renames", "kind"),
    [("exchanged", "folder"), ("put aside", "folder"), ("exchanged", "gguf"), ("put aside", "gguf"), ("exchanged", "split")],
    indirect=["renames"],
)
def test_a_kill_while_an_output_is_replaced(renames: None, kind: str) -> None:
    start(kind, scale=2)
    result, steps = dies(None, lambda: start(kind, scale=4, force=True))
    assert result == "done"
    names = sorted(p.name for p in Path().iterdir())
    for at in range(3 * steps // 4, steps + 1, 3):
        for name in names:
            if name != "tiny":
                places.delete(Path(name))
        start(kind, scale=2)
        result, _ = dies(at, lambda: start(kind, scale=4, force=True))
        sound(kind, (0, 128, 256))
        if context_of(kind) == 0:
            assert (Path(f".{KINDS[kind][0]}.partial") if kind != "split" else Path(".out-00001-of-00003.gguf.partial")).exists()
        start(kind, scale=4, force=True)
        assert sound(kind, (256,)) and manifest_of(kind)
        assert sorted(p.name for p in Path().iterdir()) == names, f"step {at}"


FULL, BROKEN = OSError(28, "No space left on device"), OSError(5, "Input/output error")


@pytest.mark.parametrize("fail", [FULL, BROKEN], ids=["full", "broken"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fails_at_any_step_is_an_error_and_leaves_nothing(kind: str, fail: OSError) -> None:
    result, steps = dies(None, lambda: start(kind), fail)
    assert result == "done"
    names = sorted(p.name for p in Path().iterdir())
    for at in range(1 + 6 * (fail is FULL), steps + 1, 13):
        for name in names:
            if name != "tiny":
                places.delete(Path(name))
        result, _ = dies(at, lambda: start(kind), fail)
        assert result == "done" or result.startswith("OutputError"), f"step {at}: {result}"
        there = sorted(p.name for p in Path().iterdir())
        if result != "done" and there != names:
            assert there == ["tiny"] or any(".partial" in n for n in there), f"step {at}: {there}"
        sound(kind, (0, 256))
        try:
            start(kind)
        except OutputError as e:
            assert "exists" in e.message
        assert sorted(p.name for p in Path().iterdir()) == names, f"step {at}"


def on_a_disk_of(monkeypatch: pytest.MonkeyPatch, free: int, kind: str = "ext4") -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (1 << 40, (1 << 40) - free, free))
    monkeypatch.setattr(room, "kind_of", lambda folder: kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_too_small_is_foreseen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = prepare("tiny", ConvertOptions(**split_options(scale=4, output=Path(KINDS[kind][0]), **KINDS[kind][1]))).plan.bytes
    monkeypatch.setattr(moving, "create", lambda *given: pytest.fail("something was written"))
    on_a_disk_of(monkeypatch, size - 1)
    with pytest.raises(OutputError, match=r"out\S* \(.* MB\) will not fit: .* MB are free in /") as e:
        start(kind)
    assert "-o on another disk" in e.value.hint and [p.name for p in Path().iterdir()] == ["tiny"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_may_fit_is_written(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, options = KINDS[kind]
    conversion = prepare("tiny", ConvertOptions(**split_options(scale=4, output=Path(out), **options)))
    on_a_disk_of(monkeypatch, conversion.plan.bytes)
    conversion.run()
    said: list[str] = []
    on_a_disk_of(monkeypatch, 0, "zfs")  # compresses, and may share blocks
    prepare("tiny", ConvertOptions(**split_options(scale=4, output=Path(out), force=True, **options))).run(say=said.append)
    assert len(said) == 1 and "will not fit" in said[0]
    sound(kind, (256,))


def test_links_and_what_lies_there_take_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_disk_of(monkeypatch, 300_000)
    with pytest.raises(OutputError, match="will not fit"):
        start("folder")
    start("folder", link=True)
    begun = Path(".out.gguf.partial/files/out.gguf")
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"1" * 200_000)
    (begun.parents[1] / resume.JOURNAL).write_text('{"plan": "another"}\n')
    start("gguf")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts")
def test_a_small_file_system_refuses_before_anything_is_written() -> None:
    Path("small").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", "small"], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted")
    try:
        with pytest.raises(OutputError, match=r"small/new/x.gguf \(0\.\d\d MB\) will not fit: 0\.31 MB are free in .*/small"):
            convert("tiny", Recipe(scale=4), out="gguf", output=Path("small/new/x.gguf"))
        assert not any(Path("small").iterdir())
        convert("tiny", Recipe(scale=4), out="gguf", outtype="q8_0", output=Path("small/x.gguf"))
    finally:
        subprocess.run(["umount", "small"], check=True)


# -- inputs -----------------------------------------------------------------------------------------------------------


def one_bit_off(path: Path) -> bytes:
    """What it holds but for one bit."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    return bytes(data)


def rewritten(path: Path) -> None:
    """Other bytes in the very file, of the old one's size and time, as rsync --inplace and cp -p write them."""
    old, data = path.stat(), one_bit_off(path)
    with open(path, "r+b") as f:
        f.write(data)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size) == (old.st_ino, old.st_mtime_ns, old.st_size)


def replaced(path: Path) -> None:
    """Another file under the name, of the old one's size and time."""
    old, other = path.stat(), path.with_name("other")
    other.write_bytes(one_bit_off(path))
    os.utime(other, ns=(old.st_atime_ns, old.st_mtime_ns))
    other.replace(path)


def _linked_elsewhere(path: Path) -> None:
    away = path.with_name("away")
    path.rename(away)
    path.symlink_to("away")


def _gone(path: Path) -> None:
    path.unlink()


CHANGES = {"rewritten": rewritten, "replaced": replaced, "a link now": _linked_elsewhere, "gone": _gone}


@pytest.mark.skipif(sys.platform == "win32", reason="st_ctime is the time of creation there")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_an_input_that_changes_is_an_error(kind: str, file: str, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    after_moving(monkeypatch, lambda: CHANGES[change](Path("tiny") / file))
    with pytest.raises(InputError) as e:
        start(kind)
    assert file in e.value.message
    assert [p.name for p in Path().iterdir()] == ["tiny"]


def test_an_input_that_goes_before_anything_is_written_is_named() -> None:
    Path("tiny/LICENSE").write_text("free")
    conversion = prepare("tiny", ConvertOptions(Recipe(scale=4), output=Path("out")))
    Path("tiny/LICENSE").unlink()
    with pytest.raises(InputError, match="LICENSE was changed"):
        conversion.run()
    assert [p.name for p in Path().iterdir()] == ["tiny"]


def test_small_files_of_any_name_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LICENSE", "additional_chat_templates/tool.jinja"):
        Path("tiny", name).parent.mkdir(exist_ok=True)
        Path("tiny", name).write_text("{{ messages }}")
        with monkeypatch.context() as patch:
            after_moving(patch, lambda name=name: rewritten(Path("tiny") / name))  # type: ignore[misc]
            with pytest.raises(InputError, match=name):
                start("folder")


def test_links_that_a_killed_run_has_left_are_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a change of the weights' inodes."""
    _, steps = dies(None, lambda: start("folder", link=True))
    places.delete(Path("out"))
    result, _ = dies(steps // 2, lambda: start("folder", link=True))
    assert result == "dead" and Path("tiny/model.safetensors").stat().st_nlink == 2
    start("folder", link=True)
    assert context_of("folder") == 256 and hidden() == []


def test_an_input_whose_link_is_turned_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        Path(f"tiny/{name}.bin").write_bytes(Path("tiny/model.safetensors").read_bytes())
    Path("tiny/model.safetensors").unlink()
    Path("tiny/model.safetensors").symlink_to("a.bin")

    def turned() -> None:
        Path("tiny/model.safetensors").unlink()
        Path("tiny/model.safetensors").symlink_to("b.bin")

    after_moving(monkeypatch, turned)
    with pytest.raises(InputError, match="changed while"):
        start("gguf")


@pytest.mark.parametrize("kind", ["split", "whole"])
def test_a_gguf_that_changes_is_an_error(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = "m-00001-of-00003.gguf" if kind == "split" else "m.gguf"
    convert("tiny", Recipe(method="none"), out="gguf", output=Path("m.gguf"), split_max_size="190M" if kind == "split" else None)
    changed = "m-00003-of-00003.gguf" if kind == "split" else "m.gguf"
    before = sorted(p.name for p in Path().iterdir())
    after_moving(monkeypatch, lambda: rewritten(Path(changed)))
    with pytest.raises(InputError, match=changed):
        convert(model, Recipe(scale=4), output=Path("out.gguf"))
    assert sorted(p.name for p in Path().iterdir()) == before


def test_what_is_none_of_the_models_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tiny/train.log").write_text("1")
    after_moving(monkeypatch, lambda: (Path("tiny/train.log").write_text("2"), Path("tiny/new").mkdir(), os.link("tiny/config.json", "c")))
    start("folder")
    assert context_of("folder") == 256


# -- links and modes --------------------------------------------------------------------------------------------------


def test_link_is_for_weights_alone() -> None:
    """An edit of the output's README never reaches the base."""
    for name in ("README.md", "LICENSE", "chat_template.jinja"):
        Path("tiny", name).write_text("mine")
    start("folder", link=True)
    linked = {p.name for p in Path("out").iterdir() if p.stat().st_nlink > 1}
    assert linked == {"model.safetensors"}
    assert Path("out/model.safetensors").samefile("tiny/model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_an_output_is_as_private_as_its_input(kind: str, mode: int) -> None:
    for path in Path("tiny").iterdir():
        path.chmod(mode)
    start(kind)
    made = [p for p in (*Path("out").rglob("*"), *Path().glob("out*")) if p.is_file()]
    assert len(made) >= 2
    assert {p.stat().st_mode & 0o077 for p in made} == {mode & 0o077 & 0o644}
    assert all(p.stat().st_mode & 0o600 == 0o600 for p in made)


def test_a_private_folder_stays_one_and_only_private_files_are() -> None:
    Path("tiny").chmod(0o700)
    for path in Path("tiny").iterdir():
        path.chmod(0o600 if path.name == "tokenizer.json" else 0o644)
    start("folder")
    assert Path("out").stat().st_mode & 0o777 == 0o700
    Path("tiny").chmod(0o755)
    start("folder", scale=8, force=True)
    modes = {p.name: p.stat().st_mode & 0o777 for p in Path("out").iterdir()}
    assert Path("out").stat().st_mode & 0o777 == 0o755
    assert modes["tokenizer.json"] == 0o600 and modes["model.safetensors"] == 0o644
    assert modes["config.json"] == modes[MANIFEST] == 0o600  # made while a private file was at hand


def test_nobody_else_can_look_while_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    after_moving(monkeypatch, lambda: modes.append(Path(".out.partial").stat().st_mode & 0o777))
    start("folder")
    assert modes == [0o700]


# -- hidden folders that are not ours ---------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["link", "file", "journal is a link", "journal is a folder", "journal is a pipe"])
def test_a_hidden_folder_that_is_not_ours_is_not_written_through(what: str) -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/journal").write_text("precious")
    root = Path(".out.partial")
    if what == "link":
        root.symlink_to("elsewhere")
    elif what == "file":
        root.write_text("x")
    else:
        root.mkdir()
        {
            "journal is a link": lambda p: p.symlink_to("../elsewhere/journal"),
            "journal is a folder": lambda p: p.mkdir(),
            "journal is a pipe": os.mkfifo,
        }[what](root / "journal")
    with pytest.raises(OutputError, match="not what an earlier run left"):
        start("folder")
    assert Path("elsewhere/journal").read_text() == "precious"


@pytest.mark.parametrize("large", [False, True])
def test_a_link_in_the_place_of_the_files_is_not_written_through(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr(resume, "RESUMABLE", 0)
    Path("elsewhere").mkdir()
    Path("elsewhere/config.json").write_text("precious")
    Path(".out.partial").mkdir()
    Path(".out.partial/files").symlink_to("../elsewhere")
    start("folder")
    assert [p.name for p in Path("elsewhere").iterdir()] == ["config.json"]
    assert Path("elsewhere/config.json").read_text() == "precious" and hidden() == []


ODD = ['["x"]', '[["x"],0,1]', '["x",[],1]', '["x",0,{}]', '["x",-9,1]', '["x",0,-1]', '["\\ud800",0,1]', '["\\u0000",0,1]', '["/etc/passwd",0,1]',
       '["../../tiny/config.json",0,1]', "[" * 5000, '["x",0.5,1]', "null", "7", '{"a":1}', '["x",1e999,1]', '["x",0,1,2]', "9" * 5000]  # fmt: skip


@pytest.mark.parametrize("line", ODD)
def test_a_journal_of_any_json_is_read(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "RESUMABLE", 0)
    conversion = prepare("tiny", ConvertOptions(Recipe(scale=4), output=Path("out")))
    key = resume.fingerprint(list(conversion.plan.jobs), conversion.inputs.files)
    for head in (json.dumps({"plan": key}), line):
        Path(".out.partial/files").mkdir(parents=True)
        Path(".out.partial/journal").write_text(f"{head}\n{line}\n")
        start("folder")
        assert context_of("folder") == 256 and hidden() == []
        places.delete(Path("out"))


@pytest.mark.parametrize(
    "record", ["", "{", "[]", '{"new":1}', '{"new":{"a/b":1},"old":{"a/b":null},"main":"out","folder":true}', "[" * 9000]
)
def test_a_record_that_is_none_of_ours_is_dropped(record: str) -> None:
    Path(".out.partial").mkdir()
    Path(".out.partial/publish").write_text(record)
    start("folder")
    assert context_of("folder") == 256 and hidden() == []


def test_a_finished_output_that_was_taken_away_is_not_missed() -> None:
    """A kill after the last rename, then the user moves the output elsewhere."""
    _, steps = dies(None, lambda: start("gguf"))
    for name in ("out.gguf", "out.yarn_convert.json"):
        Path(name).unlink()
    for at in range(steps, 0, -1):
        dies(at, lambda: start("gguf"))
        if not Path("out.yarn_convert.json").exists():
            break
        for name in ("out.gguf", "out.yarn_convert.json"):
            Path(name).unlink()
        start("gguf")
        assert hidden() == [] and open_gguf(Path("out.gguf"))
        for name in ("out.gguf", "out.yarn_convert.json"):
            Path(name).unlink()


def test_without_locks_a_run_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, wait: bool = False) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(resume, "lock", no_locks)
    start("folder")
    assert context_of("folder") == 256 and not list(Path().glob(".out*/files"))
    with pytest.raises(YarnConvertError):
        start("folder")

"""An interrupted conversion goes on where it was: nothing done is done again, nothing is mixed, nothing half is a model."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel, split_options
from test_places import one_bit_off, replaced, rewritten

from yarn_convert.conversion import convert, prepare
from yarn_convert.errors import InputError, OutputError, YarnConvertError
from yarn_convert.formats.gguf_file import open_gguf
from yarn_convert.formats.split import read_model
from yarn_convert.formats.tensors import read_safetensors
from yarn_convert.options import ConvertOptions, Recipe
from yarn_convert.targets import moving, output, resume

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {  # (input, output, options)
    "folder, copied": ("tiny", "out", {}),
    "folder, another type": ("tiny", "out", {"outtype": "bf16"}),
    "to GGUF": ("tiny", "out.gguf", {"out": "gguf", "outtype": "q8_0", "carry": "tensors"}),
    "split": ("m-00001-of-00003.gguf", "out.gguf", {}),
}


class PowerCut(BaseException):
    """Like Ctrl-C: no except clause for errors catches it."""


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "RESUMABLE", 0)
    monkeypatch.setattr(resume, "BATCH", 1)
    monkeypatch.setattr(moving, "KERNEL_PIECE", 20_000)


@pytest.fixture
def place(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the inputs of KINDS."""
    model = make_model(shards=2)
    monkeypatch.chdir(tmp_path)
    from yarn_convert.targets import parts

    with monkeypatch.context() as m:
        m.setitem(parts.UNITS, "M", 1000)
        convert(str(model), Recipe(method="none"), out="gguf", output=Path("m.gguf"), split_max_size="190M")
    assert Path("m-00003-of-00003.gguf").exists()
    return tmp_path


def start(kind: str, out: str, say: Any = lambda line: None, **more: Any) -> dict[str, Any]:
    model, _, options = KINDS[kind]
    return prepare(model, ConvertOptions(**split_options(output=Path(out), **{"scale": 4, **options, **more}))).run(say=say).to_dict()


def result(out: str) -> dict[str, bytes]:
    """Every file of an output but its manifest, whose time differs."""
    stem = Path(out).stem
    found = [p for p in Path(out).rglob("*") if p.is_file()] or [*Path().glob(f"{stem}.gguf"), *Path().glob(f"{stem}-*-of-*.gguf")]
    return {p.name.replace(stem, "*"): p.read_bytes() for p in found if not p.name.endswith("yarn_convert.json")}


def units(partial: Path) -> dict[tuple[str, int], int]:
    lines = [json.loads(line) for line in (partial / "journal").read_text().splitlines()[1:]]
    return {(name, at): size for name, at, size in lines}


def left() -> list[Path]:
    return [p for p in Path().iterdir() if p.name.startswith(".")]


class Spy:
    """What a run does, by unit. After `until` units the power goes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, until: int | None = None, fail: BaseException | None = None) -> None:
        self.done: list[tuple[str, int]] = []
        self.fail = fail or PowerCut()
        real = moving.Mover._unit

        def unit(mover: Any, name: str, at: int, size: int, task: Any) -> None:
            if until is not None and len(self.done) >= until:
                raise self.fail
            real(mover, name, at, size, task)
            self.done.append((name, at))

        monkeypatch.setattr(moving.Mover, "_unit", unit)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    yield


def interrupted(kind: str, out: str, after: int = 5, fail: BaseException | None = None, **more: Any) -> Path:
    """A conversion that is stopped after some units; the folder that it leaves."""
    stopped(kind, out, after, fail, **more)
    (partial,) = left()
    return partial


def stopped(kind: str, out: str, after: int, fail: BaseException | None = None, **more: Any) -> Any:
    """The error that a conversion raises which `fail` stops after some units."""
    with pytest.MonkeyPatch.context() as patch:
        Spy(patch, after, fail)
        with pytest.raises((PowerCut, YarnConvertError)) as e:
            start(kind, out, **more)
    return e.value


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_done_is_not_done_again_and_the_result_is_the_same(place: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = KINDS[kind]
    expected = "expected" + Path(out).suffix
    whole = Spy(monkeypatch)
    start(kind, expected)
    everything = {(name.replace("expected", "out"), at) for name, at in whole.done}
    partial = interrupted(kind, out)
    done = units(partial)
    assert 0 < len(done) < len(everything)
    assert not Path(out).exists()
    said: list[str] = []
    spy = Spy(monkeypatch)
    moved: list[int] = []
    real = moving.copy_range
    monkeypatch.setattr(moving, "copy_range", lambda *a: moved.append(real(*a)) or moved[-1])
    manifest = start(kind, out, said.append)
    assert set(spy.done).isdisjoint(done)
    assert set(spy.done) | set(done) == everything
    assert result(out) == result(expected)
    assert len(said) == 1 and f"{sum(done.values()):,} of" in said[0] and "going on" in said[0]
    assert left() == []
    written = manifest["weights"]["files"]
    assert [f["bytes"] for f in written] == [len(result(out)[f["file"].replace("out", "*")]) for f in written]
    if kind == "folder, copied":
        assert sum(moved) <= sum(len(v) for v in result(out).values()) - sum(done.values())


@pytest.mark.parametrize("kind", KINDS)
def test_an_interruption_at_any_unit_can_be_gone_on_with(place: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Again and again, two units a run."""
    _, out, _ = KINDS[kind]
    expected = "expected" + Path(out).suffix
    total = len(Spy(monkeypatch).done)
    with pytest.MonkeyPatch.context() as patch:
        whole = Spy(patch)
        start(kind, expected)
        total = len(whole.done)
    for i in range(1, total // 2 + (total % 2)):
        partial = interrupted(kind, out, after=2)
        assert len(units(partial)) == 2 * i
    with pytest.MonkeyPatch.context() as patch:
        last = Spy(patch)
        start(kind, out)
        assert len(last.done) <= 2
    assert result(out) == result(expected)


CHILD = """
import os, sys, time
from yarn_convert.cli import entry as cli
from yarn_convert.targets import moving, output, resume
resume.RESUMABLE, resume.BATCH, moving.KERNEL_PIECE = 0, 1, 20_000
pause, wait = float(sys.argv.pop(1)), int(sys.argv.pop(1))
unit, count = moving.Mover._unit, 0
def slowly(*args):
    global count
    unit(*args)
    count += 1
    if count == wait:
        os.write(1, b"moving\\n")
    if count >= wait:
        time.sleep(pause)
moving.Mover._unit = slowly
cli.main()
"""


def child(*args: str, pause: float = 60, wait: int = 4) -> subprocess.Popen[str]:
    """A conversion in a process of its own that has done some units and is in the middle."""
    command = [sys.executable, "-c", CHILD, str(pause), str(wait), *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "moving\n"
    return process


@pytest.mark.parametrize("kind", ["folder, copied", "split"])
def test_after_kill_the_same_command_goes_on(place: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out, _ = KINDS[kind]
    start(kind, "expected" + Path(out).suffix)
    process = child(model, "--scale", "4", "-o", out)
    with pytest.raises(OutputError, match="another process"):
        start(kind, out)
    process.kill()
    process.communicate(timeout=20)
    (partial,) = left()
    done = units(partial)
    assert len(done) >= 3
    for path in partial.rglob("*.safetensors"):
        with pytest.raises(YarnConvertError):
            read_safetensors(path)
    for path in partial.rglob("*-00001-of-*.gguf"):
        with pytest.raises(YarnConvertError):
            open_gguf(path)
    spy = Spy(monkeypatch)
    start(kind, out)
    assert set(spy.done).isdisjoint(done)
    assert result(out) == result("expected" + Path(out).suffix)
    assert left() == []


def test_after_ctrl_c_the_folder_is_named_and_the_same_command_goes_on(place: Path) -> None:
    process = child("tiny", "--scale", "4", "-o", "out", pause=0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "delete .out.partial" in err and "Traceback" not in err
    command = [sys.executable, "-m", "yarn_convert", "tiny", "--scale", "4", "-o", "out"]
    again = "from yarn_convert.targets import moving, resume; resume.RESUMABLE, moving.KERNEL_PIECE = 0, 20_000; from yarn_convert.cli import entry as cli; cli.main()"
    done = subprocess.run([command[0], "-c", again, *command[3:]], capture_output=True, text=True, check=True)
    assert "going on with .out.partial" in done.stderr
    start("folder, copied", "expected")
    assert result("out") == result("expected")


def touched(path: Path) -> None:
    path.write_bytes(one_bit_off(path))


@pytest.mark.skipif(sys.platform == "win32", reason="st_ctime is the time of creation there")
@pytest.mark.parametrize("change", [touched, replaced, rewritten])
@pytest.mark.parametrize("kind", ["folder, copied", "to GGUF", "split"])
def test_a_changed_input_is_noticed_and_nothing_is_mixed(place: Path, kind: str, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = KINDS[kind]
    interrupted(kind, out)
    files = [Path("tiny/model-00001-of-00002.safetensors"), Path("m-00002-of-00003.gguf")]
    change(files[kind == "split"])
    start(kind, "expected" + Path(out).suffix)
    said: list[str] = []
    start(kind, out, said.append)
    assert len(said) == 1 and "made afresh" in said[0]
    assert result(out) == result("expected" + Path(out).suffix)
    assert left() == []


@pytest.mark.parametrize("more", [{"scale": 8}, {"outtype": "f16"}, {"carry": "metadata"}])
def test_other_options_begin_afresh(place: Path, more: dict[str, Any]) -> None:
    interrupted("to GGUF", "out.gguf")
    start("to GGUF", "expected.gguf", **more)
    said: list[str] = []
    start("to GGUF", "out.gguf", said.append, **more)
    assert len(said) == 1 and "made afresh" in said[0]
    assert result("out.gguf") == result("expected.gguf")


def test_another_llama_cpp_begins_afresh(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted("to GGUF", "out.gguf")
    monkeypatch.setattr(resume, "version", lambda package: "9.9.9" if package == "llama-cpp-python" else version(package))
    said: list[str] = []
    start("to GGUF", "out.gguf", said.append)
    assert len(said) == 1 and "made afresh" in said[0]


@pytest.mark.parametrize("kind", ["folder, copied", "to GGUF"])
def test_nothing_is_written_down_before_it_is_on_the_disk(place: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut keeps of each file what it held at its last fsync. At every line of the journal that must be the final bytes."""
    _, out, _ = KINDS[kind]
    start(kind, "expected" + Path(out).suffix)
    final = result("expected" + Path(out).suffix)
    durable: dict[str, bytes] = {}
    fsync, append = os.fsync, resume.OutputJournal._append

    def kept(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_file():
            durable[path.name.replace("out", "*")] = path.read_bytes()
        fsync(fd)

    checked = []

    def check(journal: Any, lines: list[str]) -> None:
        for line in map(json.loads, lines):
            if isinstance(line, list):
                name, at, size = line[0].replace("out", "*"), max(line[1], moving.MAGIC), line[1] + line[2]
                assert durable[name][at:size] == final[name][at:size]
                checked.append(line)
        append(journal, lines)

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    monkeypatch.setattr(os, "fsync", kept)
    monkeypatch.setattr(resume.OutputJournal, "_append", check)
    monkeypatch.setattr(resume, "BATCH", 50_000)
    start(kind, out)
    assert checked


def test_fsyncs_are_few(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "BATCH", 1 << 30)
    appended = []
    append = resume.OutputJournal._append
    monkeypatch.setattr(resume.OutputJournal, "_append", lambda j, lines: appended.append(len(lines)) or append(j, lines))
    start("to GGUF", "out.gguf")
    assert appended == [1]


@pytest.mark.parametrize("tail", [b'["out.gguf", 4', b"\0" * 100, b'["out.gguf", 40, 7]', b"\0" * 9 + b"\n[]\n", b"[1]\n{}\n"])
def test_a_journal_that_was_cut_counts_as_far_as_it_is_whole(place: Path, tail: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    start("to GGUF", "expected.gguf")
    partial = interrupted("to GGUF", "out.gguf")
    done = units(partial)
    with open(partial / "journal", "ab") as f:
        f.write(tail)
    again = interrupted("to GGUF", "out.gguf", after=1)  # and what follows is not appended to the ruin
    assert len(units(again)) == len(done) + 1
    spy = Spy(monkeypatch)
    start("to GGUF", "out.gguf")
    assert set(spy.done).isdisjoint(done)
    assert result("out.gguf") == result("expected.gguf")


@pytest.mark.parametrize("head", [b"", b"{", b"\0" * 200, b"[]\n[]\n"])
def test_a_journal_without_a_head_counts_for_nothing(place: Path, head: bytes) -> None:
    start("to GGUF", "expected.gguf")
    partial = interrupted("to GGUF", "out.gguf")
    (partial / "journal").write_bytes(head)
    for path in (partial / "files").iterdir():
        path.write_bytes(b"rubbish")
    start("to GGUF", "out.gguf")
    assert result("out.gguf") == result("expected.gguf")
    assert left() == []


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: os.truncate(p, 5000)])
def test_a_file_that_is_gone_is_made_again(place: Path, spoil: Any, twice: bool) -> None:
    start("folder, copied", "expected")
    partial = interrupted("folder, copied", "out", after=16)
    names = {name for name, _ in units(partial) if name.endswith(".safetensors")}
    assert names
    spoil(partial / "files" / min(names))
    if twice:
        again = interrupted("folder, copied", "out", after=1)
        assert units(again)[min(names), resume.LOST] == 0
    start("folder, copied", "out")
    assert result("out") == result("expected")


def test_on_a_full_disk_the_hint_names_what_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start("to GGUF", "expected.gguf")
    error = stopped("to GGUF", "out.gguf", 5, OSError(errno.ENOSPC, "No space left on device"))
    (partial,) = left()
    assert isinstance(error, OutputError)
    assert "disk is full" in error.message
    assert str(partial) in error.hint and "same command" in error.hint
    spy = Spy(monkeypatch)
    done = units(partial)
    start("to GGUF", "out.gguf")
    assert set(spy.done).isdisjoint(done)
    assert result("out.gguf") == result("expected.gguf")


@pytest.mark.parametrize("fail", [OSError(errno.ENOSPC, "No space left on device"), PowerCut()])
def test_nothing_is_left_where_nothing_was_done(place: Path, fail: BaseException) -> None:
    stopped("to GGUF", "out.gguf", 0, fail)
    assert left() == []


def test_an_input_that_cannot_be_read_leaves_nothing(place: Path) -> None:
    assert isinstance(stopped("to GGUF", "out.gguf", 5, InputError("cut")), InputError)
    assert left() == []


def test_small_outputs_keep_no_journal(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "RESUMABLE", 1_000_000_000)
    stopped("to GGUF", "out.gguf", 5)
    assert left() == []


def test_without_locks_nothing_is_shared(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(resume, "lock", no_locks)
    stopped("to GGUF", "out.gguf", 5)
    assert [p.name for p in left() if list(p.rglob("*.gguf"))] == []
    start("to GGUF", "out.gguf")
    assert read_model(Path("out.gguf"))


def test_a_copy_after_a_link_is_no_write_into_the_input(place: Path) -> None:
    """--link is no part of what is made: a run may go on without it. Nothing runs after a kill, so the links are still there."""

    def dies(*args: Any) -> None:
        raise PowerCut

    before = {p.name: p.read_bytes() for p in Path("tiny").iterdir()}
    start("folder, copied", "expected")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "_to_disk", dies)
        patch.setattr(resume.Partial, "leave", lambda partial: (partial.journal.close(), "")[1])
        with pytest.raises(PowerCut):
            start("folder, copied", "out", link=True)
    assert Path(".out.partial/files/model-00001-of-00002.safetensors").samefile("tiny/model-00001-of-00002.safetensors")
    start("folder, copied", "out")
    assert result("out") == result("expected")
    assert not any(p.stat().st_nlink > 1 for p in Path("out").iterdir())
    interrupted("folder, copied", "out", after=3, force=True)
    start("folder, copied", "out", link=True, force=True)
    assert result("out") == result("expected")
    assert {p.name: p.read_bytes() for p in Path("tiny").iterdir()} == before

"""How far something is: of a validation as one fraction, of a download by its bytes, on a terminal and in a pipe."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel
from hub_server import Hub, serving
from rich.console import Console

import yarn_convert
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import progress
from yarn_convert.hearing import bars, hearing, saying, tell
from yarn_convert.validation.course import Course, Outline, operations, stages

Said = list[tuple[str, float]]


@pytest.fixture
def outline(make_model: MakeModel) -> Outline:
    c = open_checkpoint(resolve(str(make_model())))
    return Outline(c, ("transformers",), hashed=10**9, compared=3 * 10**8, real=4096, twin=4096, based=True)


def course() -> tuple[Course, Said]:
    said: Said = []
    return Course(lambda what, fraction: said.append((what, fraction))), said


# -- of a validation --------------------------------------------------------------------------------------------------


def test_a_stage_takes_the_share_of_its_seconds_and_what_is_passed_over_is_done(outline: Outline) -> None:
    say, said = course()
    say("before anything is known", 0.7)
    say.expect(outline)
    ahead, names = stages(outline), [what for what, _ in stages(outline)]
    total, at = sum(s for _, s in ahead), names.index("reference, twin")
    say("reference, twin", 0.25)
    assert said == [
        ("before anything is known", 0.0),
        ("reference, twin", pytest.approx((sum(s for _, s in ahead[:at]) + ahead[at][1] / 4) / total)),
    ]
    say("looking for the fault, twin", 0.9)
    assert said[-1][1] == said[-2][1], "what nobody foresaw takes no part"
    say(names[-1], 1.0)
    assert said[-1][1] == 1.0


def test_what_is_known_better_never_goes_back_and_ends_at_all(outline: Outline) -> None:
    say, said = course()
    say.expect(outline)
    say("weights", 1.0)
    say.expect(outline)
    say("loading the weights", 0.0)
    before = said[-1][1]
    say.revise(real=64, rate=outline.rate / 100)
    for what, _ in stages(outline)[2:]:
        say(what, 0.0)
        say(what, 1.0)
    fractions, ends = [f for _, f in said], [before, *(f for _, f in said[3::2])]
    assert (fractions, fractions[-1]) == (sorted(fractions), 1.0)
    assert before > 0 and all(a < b for (a, b), (_, s) in zip(pairwise(ends), stages(say.outline)[2:], strict=True) if s)


def test_a_text_that_doubles_costs_up_to_four_times_and_a_budget_shortens_it(outline: Outline) -> None:
    c = outline.c
    short, long = (operations(c, 2 * n) / operations(c, n) for n in (8, 1 << 22))
    assert 2.0 < short < 2.2 and 3.9 < long < 4.0
    assert operations(c, 64, layers=1) == pytest.approx(operations(c, 64) / c.layers)
    assert outline.within(1e9).real == 4096
    assert outline.within(1e-9).real <= 1024
    both = Outline(c, ("llama.cpp", "llama.cpp:fa"), twin=1 << 17, short=64)
    assert [what for what, _ in stages(both)].count("llama.cpp:fa, twin") == 2, "two lists, two texts"


# -- of what is deep inside -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_bytes", [True, False])
def test_the_bars_of_the_hubs_client_tell_and_show_nothing(of_bytes: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """As the client makes them: two of bytes, whose totals are not known at first, and one of files; before huggingface_hub 1.1 that alone,
    which iterates."""
    said: Said = []
    with hearing(lambda call, what, fraction, more: said.append((what, fraction))), bars("fetching", 100) as bar:
        come, written = (bar(total=0, unit="B", name=f"huggingface_hub.{n}") for n in (0, 1)) if of_bytes else (None, None)
        for i, _ in enumerate(bar(iter(range(4)), total=4, desc="Fetching 4 files")):
            if come is not None and written is not None:
                come.update(30 if i else 10)
                written.total += 25
                written.update(25)
                written.set_description(f"{i}")
        own = bar(total=1)
        own.close()
    assert said[-1] == ("fetching", 1.0)
    assert [f for _, f in said] == ([0.1, 0.25, 0.4, 0.5, 0.7, 0.75, 1.0, 1.0] if of_bytes else [0.25, 0.5, 0.75, 1.0])
    assert capfd.readouterr() == ("", "")
    tell("nobody hears", 0.5)
    with bars("fetching") as bar:
        assert "_telling" not in bar.__qualname__, "the client's own where nobody hears"


def test_a_download_tells_its_bytes_and_what_is_here_already_is_not_fetched(make_model: MakeModel, tmp_path: Path) -> None:
    code = (
        "import json, sys; from yarn_convert.hearing import hearing; from yarn_convert.checkpoint.source import resolve\n"
        "said = []\nwith hearing(lambda call, *x: said.append(x[:2])):\n    resolve('o/tiny', weights=False)\n    resolve('o/tiny')\n"
        "    resolve('o/tiny')\nprint(json.dumps(said))"
    )
    with serving(Hub({"o/tiny": make_model(shards=3)})) as endpoint:
        env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    said: dict[str, list[float]] = {}
    for what, fraction in json.loads(done.stdout):
        said.setdefault(what, []).append(fraction)
    assert list(said) == ["fetching 5 files of o/tiny", "headers of o/tiny", "fetching 3 files of o/tiny"]
    assert said["headers of o/tiny"] == [0.0, *(pytest.approx(i / 3) for i in (1, 2, 3))]
    for fractions in said.values():
        assert (fractions[0], fractions[-1]) == (0.0, pytest.approx(1.0)) and fractions == sorted(fractions) and len(fractions) > 3
    assert done.stderr == ""


# -- as it is shown ---------------------------------------------------------------------------------------------------


def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds go by."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.append(now.pop() + seconds)


def test_all_of_a_call_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wait = clock(monkeypatch)
    for quiet in (False, True):
        with progress.progress(quiet), saying() as say:
            say("digests", 0.0)
            tell("starting llama.cpp")
            for fraction, seconds in ((0.1, 10), (0.2, 10), (0.4, 25)):
                wait(seconds)
                say("llama.cpp, real", fraction)
        lines = capsys.readouterr().err.splitlines()
        expected = [
            "digests",
            "starting llama.cpp",
            "llama.cpp, real: 10% of all",
            "llama.cpp, real: 40% of all, about 70 s left",
        ]
        assert lines == ([] if quiet else expected)


@pytest.mark.parametrize("before", [0.0, 0.5], ids=["loading", "going on"])
def test_what_comes_before_the_first_fraction_tells_nothing_of_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], before: float
) -> None:
    """180 seconds are gone, or half was done by an earlier run; then every hundredth takes 2."""
    wait = clock(monkeypatch)
    with progress.progress(), saying() as say:
        say("training", 0.0, "loading")
        wait(180)
        for i in range(1, 35):
            say("training", before + i / 100, f"step {i}")
            wait(2)
    whole = [round(100 * before + i) for i in (1, 17, 33)]
    lines = capsys.readouterr().err.splitlines()
    first = f"step 1: {whole[0]}% of all" if before else "step 1"
    assert lines[:3] == ["loading", first, f"step 16: {whole[1] - 1}% of all, about {progress.duration(2 * (101 - whole[1]))} left"]


def test_a_pipe_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the time that is left: 30 of 120 seconds are gone at a quarter, and 60 at the half; of the second call as if it were alone."""
    wait = clock(monkeypatch)
    for quiet in (False, True):
        with progress.progress(quiet):
            for _ in range(2):
                with saying() as say:
                    for i in range(7):
                        say("training", i / 12, f"step {i}")
                        tell("fetching", i / 12)
                        wait(10)
        lines = capsys.readouterr().err.splitlines()
        expected = ["step 0", "fetching", "step 3: 25% of all, about 90 s left", "step 6: 50% of all, about 60 s left"]
        assert lines == ([] if quiet else 2 * expected)


def test_the_library_shows_what_a_call_says_only_where_it_is_asked_to(
    make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bytes of a conversion are as many as were foreseen, of one output and of several."""
    model, said = str(make_model()), list[tuple[object, str, float]]()
    (tmp_path / "e").mkdir()
    yarn_convert.convert(model, yarn_convert.Recipe(scale=4), output=tmp_path / "a")
    assert capsys.readouterr() == ("", "")
    with yarn_convert.progress():
        yarn_convert.convert(model, yarn_convert.Recipe(scale=4), out="gguf", output=tmp_path / "b.gguf")
        with yarn_convert.progress(quiet=True):
            tell("one shows already")
    assert capsys.readouterr() == ("", "writing b.gguf\none shows already\n")
    with yarn_convert.progress(quiet=True), yarn_convert.progress():
        yarn_convert.convert(model, yarn_convert.Recipe(scale=4), out="gguf", output=tmp_path / "c.gguf")
    assert capsys.readouterr() == ("", "")
    for output, outtype in ((tmp_path / "d.gguf", "f16"), (tmp_path / "e", "f16,q8_0")):
        said.clear()
        with hearing(lambda call, what, fraction, more: said.append((call, what, fraction))):
            yarn_convert.convert(model, yarn_convert.Recipe(scale=4), out="gguf", output=output, outtype=outtype, hash=True)
        *parts, over = said
        assert len({call for call, *_ in said}) == 1 and over[1:] == ("", 1.0)
        fractions = [f for *_, f in parts]
        assert fractions == sorted(fractions) and fractions[-3] < 1 == fractions[-1], "at most the manifests are not foreseen"


def test_several_models_are_one_call(make_model: MakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    """The second has more layers, and takes more of it; the weights of each are told beside it."""
    from yarn_convert import evaluate

    models, said = [str(make_model("a", layers=1)), str(make_model("b", layers=5))], list[tuple[object, str, float]]()
    with hearing(lambda call, what, fraction, more: said.append((call, what, fraction))):
        evaluate.perplexity(models, evaluate.EvaluateOptions(methods=("none", "yarn:4")), windows=(32, 64), tokens=128, stride=32)
    beside = [what for call, what, _ in said if call == what]
    assert [what for what in beside if "PyTorch" not in what] == [f"loading {m}" for m in models]
    (call,) = {call for call, what, _ in said if call != what}
    parts = [(what, f) for c, what, f in said if c is call][:-1]
    fractions = [f for _, f in parts]
    assert fractions == sorted(fractions) and 0.98 < fractions[-1] <= 1
    second = next(f for what, f in parts if what == f"perplexity of {models[1]}")
    assert 0.1 < second < 0.5 and parts[0] == (f"perplexity of {models[0]}", 0.0)
    assert capsys.readouterr() == ("", "")


class Shell:
    """What a notebook's kernel puts into the module IPython, of which it keeps what is shown by its identity."""

    def __init__(self) -> None:
        self.kernel, self.shown, self.display = object(), list[dict[str, str]](), self

    def get_ipython(self) -> Shell:
        return self

    def __call__(self, data: dict[str, str], raw: bool, display_id: bool) -> Shell:
        assert raw and display_id and not self.shown, "one output"
        self.update(data, raw)
        return self

    def update(self, data: dict[str, str], raw: bool) -> None:
        self.shown.append(data)


def test_in_a_notebook_one_bar_is_seen_which_goes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wait, shell = clock(monkeypatch), Shell()
    display = types.SimpleNamespace(display=shell)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell, display=display))
    with progress.progress():
        with saying() as say:
            say("reference, <real>", 0.0)
            for fraction in (0.1, 0.3, 0.31):
                wait(0.15)
                say("reference, <real>", fraction)
        tell("starting PyTorch")
    assert [x["text/plain"] for x in shell.shown] == [
        "reference, <real>", "reference, <real>: 30% of all, about 1 s left", "", "starting PyTorch", ""
    ]  # fmt: skip
    assert shell.shown[1]["text/html"] == '<progress value="0.300"></progress> reference, &lt;real&gt;: 30% of all, about 1 s left'
    assert [x["text/html"] for x in shell.shown[2::2]] == ["", ""]
    assert capsys.readouterr() == ("", "")
    del shell.kernel  # IPython in a terminal that is none
    with progress.progress():
        tell("starting PyTorch")
    assert capsys.readouterr().err == "starting PyTorch\n"


def test_on_a_terminal_one_bar_is_seen_and_one_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    made: list[Any] = []
    timed = progress._timed_bar

    def bar() -> Any:
        made.append(timed())
        made[-1].live.console = Console(file=io.StringIO(), force_terminal=True)
        return made[-1]

    monkeypatch.setattr(progress, "_timed_bar", bar)
    with progress.progress():
        with saying() as say:
            for what, fraction in (("digests", 0.01), ("digests", 0.1), ("", 0.0), ("reference, [real]", 0.3)):
                say(what, fraction) if what else tell("starting PyTorch")
                (seen,) = [t for t in made[0].tasks if t.visible]
                assert (seen.completed, seen.total) == (fraction, 1.0 if fraction > 0.01 else None)
            assert seen.description == r"reference, \[real]" and len(made[0].tasks) == 2
        assert not made[0].tasks, "the call is over"


def test_what_is_printed_below_a_bar_goes_where_it_should(tmp_path: Path) -> None:
    """A terminal on stderr, and stdout in a file: rich would print there what is said to stdout."""
    code = "import yarn_convert, yarn_convert.hearing as h\nwith yarn_convert.progress():\n    h.tell('a part')\n    print('an answer')"
    ours, theirs = os.openpty()
    with open(tmp_path / "out", "wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16)
    os.close(ours)
    assert (tmp_path / "out").read_bytes() == b"an answer\n"
    assert b"a part" in shown and b"answer" not in shown


def test_quiet_and_json_are_silent_everywhere(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from yarn_convert.cli import main

    monkeypatch.chdir(tmp_path)
    make_model()
    (tmp_path / "text.txt").write_text("To be, or not to be. " * 400)
    commands = (
        "convert tiny --scale 4 --out gguf --outtype f16,q8_0 --force",
        "validate tiny --real --runtime transformers --tokens 32",
        "evaluate perplexity tiny tiny --windows 32 --text text.txt",
        "finetune tiny --scale 4 --text text.txt --steps 1 --batch 1 --sequence 96 --force",
    )
    for command in commands:
        for flag in ("-q", "--json"):
            with pytest.raises(SystemExit) as stop:
                main([*command.split(), flag])
            said = capsys.readouterr()
            assert stop.value.code in (0, 3) and said.out and said.err == "", command

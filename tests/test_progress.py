"""How far something is: of a validation as one fraction, of a download by its bytes, on a terminal and in a pipe."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel
from hub_server import Hub, serving
from rich.console import Console

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import progress
from yarn_convert.hearing import bars, hearing, tell
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
    with hearing(lambda what, fraction: said.append((what, fraction))), bars("fetching", 100) as bar:
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
        "said = []\nwith hearing(lambda *x: said.append(x)):\n    resolve('o/tiny', weights=False)\n    resolve('o/tiny')\n"
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


def test_all_of_a_validation_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    for quiet in (False, True):
        with progress.whole(quiet) as say:
            say("digests", 0.0)
            tell("starting llama.cpp")
            for fraction, seconds in ((0.1, 10), (0.2, 10), (0.4, 25)):
                now += seconds
                say("llama.cpp, real", fraction)
        lines = capsys.readouterr().err.splitlines()
        assert lines == [] if quiet else [
            "digests",
            "starting llama.cpp",
            "llama.cpp, real: 10% of all, about 90 s left",
            "llama.cpp, real: 40% of all, about 68 s left",
        ]  # fmt: skip


def test_on_a_terminal_one_bar_is_seen_and_one_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    made: list[Any] = []
    timed = progress._timed_bar

    def bar() -> Any:
        made.append(timed())
        made[-1].live.console = Console(file=io.StringIO(), force_terminal=True)
        return made[-1]

    monkeypatch.setattr(progress, "_timed_bar", bar)
    with progress.whole(False) as say:
        for what, fraction in (("digests", 0.01), ("digests", 0.1), ("", 0.0), ("reference, [real]", 0.3)):
            say(what, fraction) if what else tell("starting PyTorch")
            (seen,) = [t for t in made[0].tasks if t.visible]
            assert (seen.completed, seen.total) == (fraction, 1.0 if fraction > 0.01 else None)
        assert seen.description == r"reference, \[real]" and len(made[0].tasks) == 2

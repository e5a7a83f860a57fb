"""The search for a recipe: its space, its optimizer, who judges, and a recipe that is no better is not advised."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import CONTEXT, MakeModel
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_report import Page

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import entry as cli
from yarn_convert.compute.documents import TokenizedText
from yarn_convert.compute.scorer import Torch
from yarn_convert.conversion.extension import extend
from yarn_convert.errors import InputError
from yarn_convert.evaluation import ResultJournal, measure_search
from yarn_convert.evaluation.found import typed
from yarn_convert.evaluation.held_out import difference, split
from yarn_convert.evaluation.optimizer import Enough, halving, least, order, passes
from yarn_convert.evaluation.space import FARTHEST, PARTS, PLAIN, Space, Start, curve
from yarn_convert.evaluation.text import recipe_text
from yarn_convert.hearing import hearing
from yarn_convert.options import AdviseOptions, EvaluateOptions, Recipe, SearchPart, Texts
from yarn_convert.rope import Rope, geometric, table
from yarn_convert.rope.parts import correction_range

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("cmaes")


pytestmark = pytest.mark.usefixtures("one_thread")


def start_of(folder: Path, recipe: Recipe, reach: float) -> tuple[Any, Start]:
    c = open_checkpoint(resolve(str(folder)))
    return c, Start(recipe, extend(c, recipe), reach)


SMOLLM = {"rope_theta": 100000.0, "max_position_embeddings": 8192}  # D = 64, as the real one


@pytest.fixture
def real_like(make_model: MakeModel) -> Path:
    return make_model(config={**SMOLLM, "head_dim": 64, "hidden_size": 64}, heads=1, kv_heads=1, head_dim=64)


# -- the space --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [name for name in PARTS if PARTS[name].begins != "plain"])
def test_a_space_begins_where_it_was_told_to(real_like: Path, part: str) -> None:
    """At 0 every space has the table of its start, whatever it spells it as; a multiplier has four digits, a factor six."""
    c, at = start_of(real_like, Recipe(context=20000, beta_fast=20.0, attention_factor=1.02), 16384 / 8192)
    found, wanted = table(extend(c, PARTS[part].space(at).start).rope), table(at.rope)
    np.testing.assert_allclose(found.inv_freq, wanted.inv_freq, rtol=1e-5)
    assert found.multiplier == pytest.approx(wanted.multiplier, abs=1e-4)


def test_steps_of_a_method_are_its_own_numbers(real_like: Path) -> None:
    c, at = start_of(real_like, Recipe(context=16384), 2.0)
    make = PARTS["factor"].space(at).make
    e = extend(c, make(np.array([-1.0, 2.0])))
    assert e.rope.number("attention_factor") == pytest.approx(0.1 * math.log(2) + 1 - 0.03, abs=1e-4)
    assert e.context == round(8192 * 2 * math.exp(0.3)) == 8192 * e.rope.number("factor")
    assert extend(c, make(np.array([0.0, -3.0]))).context == 16384, "a file says the context, which is to be reached"
    for method in PLAIN:
        c, at = start_of(real_like, Recipe(method=method, context=16384), 2.0)
        assert extend(c, PARTS["method"].space(at).make(np.array([1.0]))).rope.number("factor") == pytest.approx(
            2 * math.exp(0.15), rel=1e-4
        )


def yarn_by_two() -> Start:
    """SmolLM2's RoPE at two windows, without a model."""
    extension: Any = type("E", (), {"rope": Rope("yarn", 100000.0, 64, 8192, {"factor": 2.0})})()
    return Start(Recipe(context=16384), extension, 2.0)


@hypothesis_settings(max_examples=60, deadline=None)
@given(begin=st.floats(-6, 8), end=st.floats(-9, 7))
def test_betas_say_the_very_pairs_that_were_meant(begin: float, end: float) -> None:
    at, omega = yarn_by_two(), geometric(100000.0, 64)
    low, high = correction_range(omega, at.rope)
    recipe = PARTS["betas"].space(at).make(np.array([0.0, 0.0, begin, end]))
    asked = (max(0, round(low + 2 * begin)), max(round(high + 2 * end), round(low + 2 * begin) + 1, 1))
    params = {"factor": 2.0} | ({} if recipe.beta_fast is None else {"beta_fast": recipe.beta_fast, "beta_slow": recipe.beta_slow})
    assert correction_range(omega, replace(at.rope, params=params)) == asked


@hypothesis_settings(max_examples=60, deadline=None)
@given(x=st.lists(st.floats(-40, 40), min_size=8, max_size=8), part=st.sampled_from(["ends", "pairs"]))
def test_factors_never_fall_and_lie_between_one_and_the_largest(x: list[float], part: str) -> None:
    space = PARTS[part].space(yarn_by_two())
    vector = np.clip(np.array(x[: len(space.names)]), space.low, space.high)
    candidate = space.make(vector)
    factors = np.array(candidate.factors)
    assert len(factors) == 32 and (np.diff(factors) >= 0).all()
    assert factors[0] >= 1 and factors[-1] <= FARTHEST * 2.0 * (1 + 1e-5)
    assert candidate.context == 16384


def test_a_table_moves_where_its_number_does() -> None:
    """A step of the last knot is a tenth more of the slowest pair's factor, and nothing before the knot next to it."""
    space = PARTS["pairs"].space(yarn_by_two())
    assert len(space.names) == 8
    before, after = (np.array(space.make(x).factors) for x in (np.zeros(8), np.eye(8)[7]))
    assert after[31] == pytest.approx(before[31] * math.exp(0.1), rel=1e-5)
    np.testing.assert_allclose(after[:26], before[:26], rtol=1e-12)
    assert (np.diff(after[26:]) > 0).all()


@hypothesis_settings(max_examples=60, deadline=None)
@given(y=st.lists(st.floats(-5, 5), min_size=3, max_size=9))
def test_a_curve_goes_through_its_points_and_between_them_as_they_do(y: list[float]) -> None:
    x, points = np.arange(len(y)) ** 1.5, np.array(y)
    np.testing.assert_allclose(curve(x, points, x), points, atol=1e-9)
    for a, b, p, q in zip(x, x[1:], points, points[1:], strict=False):
        found = np.diff(curve(x, points, np.linspace(a, b, 20)[:-1]))
        assert (found * np.sign(q - p) >= -1e-9).all()
    np.testing.assert_allclose(curve(x, 3 * x + 1, np.linspace(0, x[-1], 50)), 3 * np.linspace(0, x[-1], 50) + 1, atol=1e-9)


@pytest.mark.parametrize("part", [name for name in PARTS if PARTS[name].begins != "plain"])
def test_a_file_is_read_as_the_very_recipe_that_was_measured(real_like: Path, tmp_path: Path, part: str) -> None:
    recipes = pytest.importorskip("yarn_convert.conversion.recipes", reason="recipes are not read from files yet", exc_type=ImportError)
    c, at = start_of(real_like, Recipe(context=16384), 2.0)
    space = PARTS[part].space(at)
    candidate = space.make(np.clip(np.random.default_rng(0).normal(size=len(space.names)), space.low, space.high))
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**recipes.as_mapping(candidate), "note": "a: b"}, sort_keys=False, default_flow_style=None, width=120))
    read, measured = extend(c, recipes.read_recipe(file)), extend(c, candidate)
    assert (read.rope, read.context) == (measured.rope, measured.context)


# -- the optimizer ----------------------------------------------------------------------------------------------------


def box(n: int) -> Space:
    """Vectors themselves, as factors."""
    return Space(tuple(map(str, range(n))), np.full(n, -20.0), np.full(n, 20.0), lambda x: Recipe(factors=tuple(map(float, x))))


def bowl(target: Sequence[float], seen: list[tuple[tuple[float, ...], int]] | None = None) -> Callable[[Recipe, int], float]:
    """Least at `target` in the mean over windows, each of which has its least elsewhere."""

    def score(candidate: Recipe, window: int) -> float:
        if seen is not None:
            seen.append((candidate.factors, window))
        x = np.array(candidate.factors) - np.array(target) - 0.5 * (window - 1.5)
        return float((x * x * np.arange(1, len(x) + 1)).sum())

    return score


@pytest.mark.parametrize("target", [[2.5], [-3.0, 1.5], [2.0, -1.0, 4.0, 0.5]])
def test_the_least_of_a_known_function_is_found(target: list[float]) -> None:
    """Though each window by itself has its least up to 0.75 away."""
    outcome = least(box(len(target)), 4, bowl(target), 240, seed=0)
    assert outcome.best is not None and outcome.trials <= 240
    np.testing.assert_allclose(outcome.best.candidate.factors, target, atol=0.25)
    assert least(box(len(target)), 1, bowl(target), math.inf, seed=0).settled


def test_the_same_seed_tries_the_same_in_the_same_order_however_far_it_goes() -> None:
    runs: list[list[tuple[tuple[float, ...], int]]] = [[], [], [], []]
    for run, (trials, seed) in zip(runs, [(24, 1), (24, 1), (12, 1), (24, 2)], strict=True):
        least(box(3), 2, bowl([1.0, 2.0, 3.0], run), trials, seed)
    assert runs[0] == runs[1] != runs[3]
    whole = passes(7, 2)  # of a generation of three numbers
    assert runs[2][:whole] == runs[0][:whole] and len({c for c, _ in runs[2]}) == 12


def test_the_better_half_goes_on_to_twice_the_windows() -> None:
    asked: list[int] = []

    def score(candidate: Recipe, window: int) -> float:
        asked.append(window)
        return candidate.factors[0] + (10.0 if window == 3 else 0.0)

    candidates = [Recipe(factors=(x,)) for x in (5.0, 1.0, 4.0, 2.0, 3.0)]
    values, cut = halving(candidates, [2, 0, 1, 3], score)
    assert [len(v) for v in values] == [1, 4, 1, 4, 2] and not cut
    assert [asked.count(w) for w in (2, 0, 1, 3)] == [5, 3, 2, 2]
    assert order(values) == [1, 3, 4, 2, 0], "who went further is before who did not, though its mean is worse by the last window"
    assert len(asked) == passes(5, 4) == 12 and [passes(4, n) for n in (1, 2, 3)] == [4, 6, 7]


def test_time_that_is_up_stops_it_and_what_was_whole_counts() -> None:
    calls = 0

    def score(candidate: Recipe, window: int) -> float:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise Enough
        return bowl([1.0, 1.0])(candidate, window)

    outcome = least(box(2), 2, score, math.inf, 0)
    assert calls == 21 and outcome.best is not None and not outcome.settled
    small = least(box(2), 2, bowl([1.0, 1.0]), math.inf, 0, room=lambda: 5.0)
    assert small.trials == 3 and small.best is not None, "three on one window and two of them on the other"
    assert least(box(2), 2, bowl([1.0, 1.0]), math.inf, 0, room=lambda: 1.0).trials == 0


# -- who judges -------------------------------------------------------------------------------------------------------


def text(name: str, n: int) -> TokenizedText:
    return TokenizedText(name, np.arange(n))


def test_documents_are_on_one_side_and_windows_are_taken_in_turn() -> None:
    found = split([text(name, 35) for name in "abcde"], 10, 3, 5, seed=0)
    sides = [[w.name[0] for w in side] for side in (found.searched, found.held_out)]
    assert found.by == "documents" and not {*sides[0]} & {*sides[1]}
    assert len({*sides[0][:2]}) == 2 and len({*sides[1][:3]}) == 3 and [len(s) for s in sides] == [3, 5]
    assert found.clusters == [found.clusters[sides[1].index(name)] for name in sides[1]] and len({*found.clusters}) == 3
    again, other = (split([text(name, 35) for name in "abcde"], 10, 3, 5, seed=seed) for seed in (0, 1))
    assert [w.name for w in again.held_out] == [w.name for w in found.held_out] != [w.name for w in other.held_out]
    assert [w.ids[0] for w in found.held_out] == [0, 0, 0, 10, 10]


def test_pieces_of_a_text_are_on_its_side() -> None:
    pieces = [text(f"{name}[{i}]", 10) for name in "ab" for i in range(4)]
    found = split(pieces, 10, 4, 4, seed=0, pieces=True)
    assert [len({w.name[0] for w in side}) for side in (found.searched, found.held_out)] == [1, 1]
    assert found.clusters == [0, 1, 2, 3], "of one text: each window counts"


def test_one_document_is_split_into_disjoint_windows() -> None:
    found = split([text("a", 79)], 10, 2, 3, seed=0)
    assert found.by == "windows" and [int(w.ids[0]) for w in (*found.searched, *found.held_out)] == [0, 10, 30, 40, 50]
    with pytest.raises(InputError, match="1 and 1 windows"):
        split([text("a", 29)], 10, 2, 3, seed=0)
    with pytest.raises(InputError, match="1 and 1 windows"):
        split([text("a", 10), text("b", 10)], 10, 2, 3, seed=0)


def test_a_difference_is_as_sure_as_its_clusters_are_many() -> None:
    a, b = [1.0, 2.0, 3.0, 5.0], [0.5, 1.0, 2.5, 3.0]  # differences of 0.5, 1, 0.5 and 2
    alone, grouped = difference(a, b, [0, 1, 2, 3]), difference(a, b, [0, 0, 1, 1])
    assert alone == (1.0, pytest.approx(2.353 * np.std([0.5, 1, 0.5, 2], ddof=1) / 2))
    assert grouped == (1.0, pytest.approx(6.314 * math.sqrt(2 * 2 * 0.5**2) / 4))
    assert math.isnan(difference([1.0], [0.0], [0])[1]) and math.isnan(difference([math.nan, 1.0], [0.0, 0.0], [0, 1])[0])


# -- the measure ------------------------------------------------------------------------------------------------------


def wish(over: tuple[SearchPart, ...] = ("temperature",), cut: int | None = 300, **more: Any) -> AdviseOptions:
    texts = Texts(cut=cut, most=8 if cut else None)
    return AdviseOptions(EvaluateOptions(texts=texts), context=4 * CONTEXT, search=True, over=over, **more)


def warmed(best: float, factor: float = 4.0, apart: float = 0.0) -> Callable[..., np.ndarray]:
    """Losses of a model that wants this multiplier of cos and sin and this factor, beyond L more than within it, however hard its text;
    every other text wants as much more as the rest less, `apart`."""

    def losses(self: Torch, rope: Rope, ids: np.ndarray, first: int, progress: Any = None) -> np.ndarray:
        at = np.arange(first, len(ids))
        found = table(rope)
        slow = geometric(rope.theta, rope.rotary_dim)[-1] / found.inv_freq[-1]
        wanted = best + (apart if int(ids.sum()) % 2 else -apart)
        cost = (found.multiplier - wanted) ** 2 + 0.02 * math.log(slow / factor) ** 2
        beyond = at >= CONTEXT
        return 2.0 + ids[first:] / 500.0 + cost * (1 + beyond) + (3.0 * beyond if slow < 1.5 else 0.0)

    return losses


def test_a_better_recipe_is_found_and_advised(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found is what the losses were made of; the file of it is the very recipe that was measured."""
    monkeypatch.setattr(Torch, "losses", warmed(best=1.25, factor=6.0))
    base = str(make_model())
    said = list[tuple[object, str, float]]()
    with hearing(lambda call, what, fraction, more: said.append((call, what, fraction))):
        result = measure_search(base, wish(("temperature", "factor"), trials=60, short_weight=0.3), ResultJournal())
    fractions = [fraction for call, what, fraction in said if call != what]
    assert fractions == sorted(fractions), "one call, of which judging and searching are parts"
    (last,) = (f for what, f in {what: f for _, what, f in said}.items() if what.endswith(": factor"))
    assert 0.5 < last < 1
    assert result["advised"] and result["rival"] == "yarn:4" and result["difference"] < -result["error"]
    chosen = next(row for row in result["rows"] if row["label"] == result["chosen"])
    assert chosen["recipe"]["params"]["attention_factor"] == pytest.approx(1.25, abs=0.01)
    assert chosen["recipe"]["params"]["factor"] == pytest.approx(6.0, rel=0.1)
    short = sum(math.log(c["perplexity"]) for c in chosen["short"]) / 3
    assert chosen["value"] == pytest.approx(0.7 * math.log(chosen["beyond"]) + 0.3 * short, rel=1e-12)
    written = yaml.safe_load(recipe_text(typed(result)))
    assert written.pop("note")
    c = open_checkpoint(resolve(base))
    assert json.loads(json.dumps(chosen["recipe"]["params"])) == dict(extend(c, Recipe(**written)).rope.params)


def test_a_table_of_factors_is_found_and_its_file_is_the_very_recipe(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses that want half of what any method's ramp does to the pair in the middle."""
    wanted = np.array([1, 1, 1, 1.2, 1.6, 2.0, 2.2, 2.4])

    def losses(self: Torch, rope: Rope, ids: np.ndarray, first: int, progress: Any = None) -> np.ndarray:
        away = np.log(geometric(10000.0, 16) / table(rope).inv_freq / wanted)
        return 2.0 + ids[first:] / 500.0 + np.full(len(ids) - first, 0.1 * float((away**2).sum()))

    monkeypatch.setattr(Torch, "losses", losses)
    base = str(make_model())
    result = measure_search(base, wish(("ends", "pairs"), trials=120), ResultJournal())
    chosen = next(row for row in result["rows"] if row["label"] == result["chosen"])
    assert result["advised"] and chosen["method"] == "explicit"
    np.testing.assert_allclose(chosen["factors"], wanted, rtol=0.25)
    said = yaml.safe_load(recipe_text(typed(result)))
    assert said["method"] == "explicit" and said["context"] == 4 * CONTEXT and len(said["factors"]) == 8
    rope = Rope("explicit", 10000.0, 16, CONTEXT, {"factors": tuple(said["factors"]), "attention_factor": said["attention_factor"]})
    c = open_checkpoint(resolve(base))
    del said["note"]
    measured = table(extend(c, Recipe(**said | {"factors": tuple(said["factors"])})).rope)
    np.testing.assert_array_equal(table(rope).inv_freq, measured.inv_freq)
    np.testing.assert_allclose(geometric(10000.0, 16) / measured.inv_freq, chosen["factors"], rtol=1e-12)


@pytest.mark.parametrize("kind", ["yarn is best", "texts apart", "real"])
def test_a_recipe_that_is_no_better_is_not_advised(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """YaRN as it is cannot be beaten; a gain that is a loss on other texts is none; a random model learns nothing."""
    if kind != "real":
        monkeypatch.setattr(Torch, "losses", warmed(0.1 * math.log(4) + 1) if kind == "yarn is best" else warmed(1.12, apart=0.2))
    result = measure_search(str(make_model()), wish(trials=12), ResultJournal())
    assert not result["advised"] and result["recipe"] is None
    if kind == "yarn is best":
        assert result["chosen"] == result["rival"] == "yarn:4"
    else:
        assert not result["difference"] < -result["error"]


def test_a_search_goes_on_from_its_journal_and_computes_nothing_again(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, journal = str(make_model()), tmp_path / "journal"
    monkeypatch.setattr(Torch, "losses", warmed(best=1.25))
    first = measure_search(base, wish(trials=16), ResultJournal(journal))
    monkeypatch.setattr(Torch, "losses", lambda *_: pytest.fail("computed"))
    again = measure_search(base, wish(trials=16), ResultJournal(journal))
    apart = ("models",)
    assert {k: v for k, v in first.items() if k not in apart} == {k: v for k, v in again.items() if k not in apart}
    assert again["models"][0]["tokens"] == 0 < first["models"][0]["tokens"]


def test_a_budget_stops_a_search_and_leaves_time_to_judge(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second with each window's pass: 60 of them, of which the last two judge."""
    now = [0.0]
    monkeypatch.setattr("yarn_convert.evaluation.search.time.monotonic", lambda: now[0])
    monkeypatch.setattr("yarn_convert.evaluation.subjects.time.perf_counter", lambda: now[0])
    computed = warmed(best=1.25)

    def losses(*args: Any) -> np.ndarray:
        now[0] += len(args[2]) / (4 * CONTEXT)
        return computed(*args)

    monkeypatch.setattr(Torch, "losses", losses)
    result = measure_search(str(make_model()), wish(("temperature", "factor"), windows=2, judges=2, budget=60.0), ResultJournal())
    assert 45 <= now[0] <= 60 and len(result["parts"]) == 2 and result["trials"] > 10
    assert result["chosen"] != "yarn:4"
    short = measure_search(str(make_model("other")), wish(windows=2, judges=2, budget=1.0), ResultJournal())
    assert not short["parts"] and not short["advised"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--search", "--factor", "2"], "factors belongs to an advice without one"),
        (["--trials", "3"], "trials belongs to a search"),
        (["--recipe-out", "r.yaml"], "--recipe-out writes what a search finds"),
        (["--search", "--short-weight", "1.5"], "--short-weight must be from 0 to 1"),
        (["--search", "--over", "temprature"], "unknown part of a search 'temprature'"),
        (["--search", "--context", "64"], "nothing to search for"),
        (["--search", "--cut", "300", "--documents", "2"], "needs a window to search on and two to judge"),
    ],
)
def test_what_no_search_can_be_about_is_one_line_and_a_hint(
    make_model: MakeModel, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    context = [] if "--context" in arguments else ["--context", "256"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "advise", str(make_model()), *context, *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1 and len(lines) == 2 and says in lines[0] and lines[1].startswith("hint: "), lines


def test_a_page_a_plot_and_a_recipe_are_written_and_a_recipe_only_if_it_is_advised(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(Torch, "losses", warmed(best=1.25))
    page, recipe, base = tmp_path / "out.html", tmp_path / "recipe.yaml", str(make_model())
    words = ["evaluate", "advise", base, "--context", "256", "--search", "--over", "temperature", "--trials", "13", "--cut", "300"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "-q", "--report", str(page), "--plot", str(tmp_path / "p.svg"), "--recipe-out", str(recipe), "--documents", "8"])
    printed, seen = capsys.readouterr().out, Page(page.read_text())
    assert stopped.value.code == 0 and not seen.unbalanced and not seen.open
    assert "advice: yarn:4, m 1.2" in printed and "Advice: yarn:4, m 1.2" in seen.text and "linear:4" in page.read_text()
    assert yaml.safe_load(recipe.read_text())["attention_factor"] == pytest.approx(1.25, abs=0.05)
    assert not [f for f in tmp_path.iterdir() if "partial" in f.name]
    monkeypatch.setattr(Torch, "losses", warmed(best=0.1 * math.log(4) + 1))
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--json", "--recipe-out", str(tmp_path / "none.yaml"), "--documents", "8"])
    assert stopped.value.code == 0 and not json.loads(capsys.readouterr().out)["advised"] and not (tmp_path / "none.yaml").exists()
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--recipe-out", str(recipe), "--documents", "8"])
    assert stopped.value.code == 1 and "recipe.yaml exists" in capsys.readouterr().err

"""What `evaluate` compares: every method by its own options, recipes' files beside them, and METHOD+base in advice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CONTEXT, MakeModel

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import entry as cli
from yarn_convert.conversion import convert
from yarn_convert.conversion.recipes import as_text
from yarn_convert.evaluation import ResultJournal, measure_advice, measure_perplexity
from yarn_convert.evaluation.subjects import lines_of
from yarn_convert.options import AdviseOptions, EvaluateOptions, PerplexityOptions, Recipe, Texts

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("one_thread")

WINDOWS = (CONTEXT // 2, 2 * CONTEXT)
RECIPES = {
    "warm": Recipe(scale=4, attention_factor=1.05),
    "table": Recipe(context=4 * CONTEXT, method="explicit", factors=(1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 4.0, 4.0), attention_factor=1.1),
    "both": Recipe(scale=4, method="ntk-by-parts", short="base"),
    "raised": Recipe(scale=4, method="abf", theta=1e6),
}


def files(folder: Path, recipes: dict[str, Recipe]) -> tuple[Path, ...]:
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(as_text(recipe))
    return tuple(folder / f"{name}.yaml" for name in recipes)


def measured(models: list[Path], **settings: Any) -> list[dict[str, Any]]:
    wish = PerplexityOptions(EvaluateOptions(**settings), windows=WINDOWS)
    rows: list[dict[str, Any]] = measure_perplexity([str(m) for m in models], wish, ResultJournal())["rows"]
    return rows


def values(row: dict[str, Any]) -> list[float]:
    return [p["perplexity"] for p in row["points"]]


def test_a_recipes_file_over_the_base_is_the_converted_model_as_it_is(make_model: MakeModel, tmp_path: Path) -> None:
    base = make_model()
    rows = measured([base], methods=("none", "yarn:4"), recipes=files(tmp_path, RECIPES))
    assert [(row["label"], row["method"]) for row in rows] == [
        ("none", "none"), ("yarn:4", "yarn"), ("warm.yaml", "yarn"), ("table.yaml", "explicit"),
        ("both.yaml", "ntk-by-parts+base"), ("raised.yaml", "abf"),
    ]  # fmt: skip
    assert len({tuple(values(row)) for row in rows}) == len(rows), "each recipe is another"
    assert {row["context"] for row in rows[1:]} == {4 * CONTEXT}
    outputs = [convert(str(base), recipe, output=tmp_path / name).output for name, recipe in RECIPES.items()]
    for row, own in zip(rows[2:], measured(outputs), strict=True):
        assert values(row) == pytest.approx(values(own), rel=1e-6), row["label"]


def test_every_method_is_named_with_the_options_that_are_its_own(make_model: MakeModel, tmp_path: Path) -> None:
    base, at = make_model(), {"theta": 1e6, "clip_pairs": 3}
    rows = measured([base], methods=("yarn", "abf", "cope"), recipe=Recipe(scale=4, **at))
    asked = (Recipe(scale=4), Recipe(scale=4, method="abf", theta=1e6), Recipe(scale=4, method="cope", **at))
    outputs = [convert(str(base), recipe, output=tmp_path / recipe.method).output for recipe in asked]
    assert [values(row) for row in rows] == [pytest.approx(values(own), rel=1e-6) for own in measured(outputs)]
    assert len({tuple(values(row)) for row in rows}) == 3


def test_what_a_file_leaves_open_of_the_lengths_the_command_says(make_model: MakeModel, tmp_path: Path) -> None:
    c = open_checkpoint(resolve(str(make_model())))
    (tmp_path / "factors.txt").write_text("\n".join(map(str, RECIPES["table"].factors or ())))
    (tmp_path / "own.json").write_text('{"method": "linear", "scale": 2, "original_context": 32}')
    (tmp_path / "dynamic.yaml").write_text("method: dynamic-yarn\n")
    paths = (tmp_path / "factors.txt", tmp_path / "own.json", tmp_path / "dynamic.yaml")
    lists, own, dynamic = lines_of(c, EvaluateOptions(recipes=paths, recipe=Recipe(scale=4)))
    assert (lists.context, lists.rope.original_context) == (4 * CONTEXT, CONTEXT)
    assert (own.context, own.original, own.rope.number("factor")) == (64, 32, 2)
    assert dynamic.context is None and dynamic.rope.method == "dynamic-yarn", "s follows the length"


@pytest.mark.parametrize("method", ["ntk-by-parts+base", "yarn+base"])
def test_advice_on_two_lists_costs_short_texts_what_the_multiplier_does(make_model: MakeModel, method: str) -> None:
    wish = AdviseOptions(EvaluateOptions(texts=Texts(cut=300, most=1)), context=4 * CONTEXT, method=method, factors=(4.0,), tolerance=0.0)
    base, tried = measure_advice(str(make_model()), wish, ResultJournal())["tried"]
    assert tried["method"] == method and [c["tokens"] for c in tried["short"]] == [16, 32, 64]
    assert ([c["change"] for c in tried["short"]] == [0, 0, 0]) == (method == "ntk-by-parts+base"), "the frequencies are the base's"
    assert max(abs(x) for x in tried["excess"]) > 0 and base["factor"] == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["perplexity", "--recipe", "a.yaml", "--recipe", "a.yaml"], "named twice: a.yaml, a.yaml"),
        (["perplexity", "--recipe", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["perplexity", "--recipe", "."], "is a model, not a recipe's file"),
        (["perplexity", "--recipe", "odd.yaml"], "odd.yaml: unknown key 'tehta'"),
        (["perplexity", "--recipe", "a.yaml", "--original-context", "32"], "--original-context says 32"),
        (["perplexity", "--method", "yarn:4", "--theta", "1e6"], "--theta means nothing to any --method"),
        (["perplexity", "--method", "abf:4"], "abf needs theta"),
        (["perplexity", "--method", "longrope:4"], "longrope takes no factor"),
        (["perplexity", "--recipe", "a.yaml", "--runtime", "llama.cpp"], "takes no --recipe"),
        (["perplexity", "--recipe", "a.yaml", "--record"], "takes a base and its outputs as they are"),
        (["passkey", "--recipe", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["advise", "--context", "256", "--method", "abf+base"], "the method abf has no factor to choose"),
        (["advise", "--context", "256", "--method", "yarn+bse"], "unknown --short 'bse'"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_a_hint(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("scale: 4\noriginal_context: 64\n")
    (tmp_path / "odd.yaml").write_text("scale: 4\ntehta: 1e6\n")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", words[0], str(make_model()), *words[1:]])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1 and len(lines) == 2 and says in lines[0] and lines[1].startswith("hint: "), lines


def test_the_command_line_takes_files_beside_methods(make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = files(tmp_path, {"a": RECIPES["warm"], "b": RECIPES["table"]})
    words = [w for path in paths for w in ("--recipe", str(path))]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "perplexity", str(make_model()), "--method", "none,yarn:4", *words, "--windows", "32", "--json"])
    assert stopped.value.code == 0
    assert [row["label"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["none", "yarn:4", "a.yaml", "b.yaml"]

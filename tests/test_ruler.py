"""RULER under recipes of the loaded base, against lm-evaluation-harness alone on a written folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel

from yarn_convert import cli
from yarn_convert.conversion import convert
from yarn_convert.errors import UsageError
from yarn_convert.evaluation import ResultJournal, measure_ruler
from yarn_convert.evaluation.found import typed
from yarn_convert.evaluation.rulers import TASKS, chosen, effective
from yarn_convert.evaluation.text import lines
from yarn_convert.options import EvaluateOptions, Recipe, RulerOptions

for package in ("torch", "accelerate", "lm_eval", "wonderwords", "nltk", "scipy"):
    pytest.importorskip(package)

pytestmark = pytest.mark.usefixtures("one_thread")


def plain(folder: Path, task: str, length: int) -> Any:
    """(the harness's own score, [prompt, answer] of its first two samples) of a folder at a length that its YAML names."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    room = str(Path(lm_eval.__file__).parent / "tasks" / "ruler")  # some YAML files instead of ten thousand
    tasks = TaskManager(metadata={"pretrained": str(folder), "max_seq_lengths": [length]}, include_defaults=False, include_path=room)
    lm = HFLM(pretrained=str(folder), device="cpu", dtype="float32", max_length=8192, batch_size=1)
    found = lm_eval.simple_evaluate(model=lm, tasks=[task], limit=2, bootstrap_iters=0, log_samples=True, task_manager=tasks)
    samples = [(s["arguments"][0][0], s["resps"][0][0]) for s in found["samples"][task]]
    return found["results"][task][f"{length},none"], samples


def test_scores_are_those_of_the_harness_alone_on_a_written_folder(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same two prompts of the 500 that it makes, the same answers."""
    monkeypatch.setattr("nltk.download", lambda *_, **__: False)
    base, out = make_model(config={"max_position_embeddings": 1024}), tmp_path / "out"
    convert(str(base), Recipe(scale=4.0), out="safetensors", output=out)
    task, length = "niah_single_1", 4096
    score, samples = plain(out, task, length)
    wish = RulerOptions(EvaluateOptions(methods=("yarn:4", "none"), device="cpu"), lengths=(length,), tasks=(task,), trials=2)
    row, base_row = typed(measure_ruler([str(base)], wish, ResultJournal())).rows
    assert [t.answer for t in row.trials] == [answer for _, answer in samples]
    assert row.points[0].score / 100 == pytest.approx(score) and row.trials[0].wanted[0] in samples[0][0]
    assert [t.tokens for t in row.trials] == [len(tokens(base, text)) for text, _ in samples]
    assert [t.answer for t in base_row.trials] != [t.answer for t in row.trials], "or the recipe was not used"


def tokens(base: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(base / "tokenizer.json")).encode(text).ids)


def test_the_effective_length_is_the_longest_that_all_up_to_it_reach() -> None:
    means = [{"length": n, "score": s} for n, s in ((4096, 90.0), (8192, 86.0), (16384, 70.0), (32768, 95.0))]
    assert (effective(means, 85.6), effective(means, 88), effective(means, 91), effective(means, 60)) == (8192, 4096, None, 32768)


def test_answers_that_hold_all_or_some_of_what_is_wanted_are_scored_so(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says half of the ten words of cwe, and those of fwe, in capitals; the base's own score is that within its window."""
    from yarn_convert.compute.tokens import tokenizer_of
    from yarn_convert.evaluation import rulers

    said = {"ruler_cwe": 5, "ruler_fwe": 3}

    def told(subject: Any, line: Any, prompts: Any, tokenizer: Any, meter: Any) -> list[dict[str, Any]]:
        assert all(len(p.ids) + p.most <= p.length * 1.05 for p in prompts) and tokenizer_of(subject.c)
        return [rulers._trial(p, " ".join(p.doc["outputs"][: said[p.task]]).upper()) for p in prompts]

    monkeypatch.setattr(rulers, "_trials", told)
    base = make_model(config={"max_position_embeddings": 2400})
    wish = RulerOptions(EvaluateOptions(methods=("none", "yarn:2"), device="cpu"), lengths=(3000, 2400), tasks=tuple(said), trials=2)
    result = typed(measure_ruler([str(base)], wish, ResultJournal()))
    for row in result.rows:
        assert {(p.task, p.score) for p in row.points} == {("ruler_cwe", 50.0), ("ruler_fwe", 100.0)}
        assert [(m.length, m.score) for m in row.by_length] == [(2400, 75.0), (3000, 75.0)]
        assert (row.effective, row.threshold_of_base, row.effective_by_base) == (None, 75.0, 3000)
    assert any("75.0" in line and "3,000 (75.0)" in line for line in lines(result))


def test_by_default_nothing_is_downloaded_and_what_is_left_out_is_said() -> None:
    tasks, left_out = chosen(())
    assert {"ruler_vt", "ruler_fwe", "ruler_cwe", "niah_single_1"} <= set(tasks) and not any(TASKS[t].downloads for t in tasks)
    assert len(tasks) + len(left_out) == len(TASKS) == 13 and any("niah_single_2" in why and "essays" in why for why in left_out)


def test_what_would_make_the_harness_search_without_an_end_is_refused(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer of bytes has no room for the examples of ruler_vt; a short length none for a text."""
    base = str(make_model())
    for options, says in (
        ({"tasks": ("ruler_vt",), "lengths": (4096,)}, "have no room"),
        ({"tasks": ("ruler_cwe",), "lengths": (500,)}, "have no room"),
        ({"tasks": ("ruler_ct",)}, "unknown task"),
    ):
        with pytest.raises(UsageError, match=says):
            measure_ruler([base], RulerOptions(**options), ResultJournal())
    monkeypatch.setattr("yarn_convert.errors.there", lambda module: module != "wonderwords")
    with pytest.raises(UsageError, match="RULER needs wonderwords") as e:
        measure_ruler([base], RulerOptions(), ResultJournal())
    assert "yarn-convert[ruler]" in e.value.hint


def test_the_page_the_plot_and_the_json(make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    words = [
        "evaluate",
        "ruler",
        str(make_model()),
        "--method",
        "none,yarn:2",
        "--lengths",
        "700",
        "--tasks",
        "niah_single_1",
        "--trials",
        "1",
    ]
    page, plot = tmp_path / "out.html", tmp_path / "plot.svg"
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "-q", "--json", "--report", str(page), "--plot", str(plot)])
    result = json.loads(capsys.readouterr().out)
    assert stopped.value.code == 0 and plot.exists() and "niah_single_1" in page.read_text()
    assert [len(row["trials"]) for row in result["rows"]] == [1, 1] and not list(tmp_path.glob(".*partial"))

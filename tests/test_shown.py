"""Figures and tables of the paper: their numbers by hand, their axes in the plot, and what asks for one that a measure does not have."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import CONTEXT, MakeModel

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.cli import entry as cli
from yarn_convert.compute.record import made
from yarn_convert.compute.scorer import Torch
from yarn_convert.compute.tokens import tokenizer_of
from yarn_convert.evaluation.choices import Temperature
from yarn_convert.evaluation.found import KINDS, Passkey, Perplexity
from yarn_convert.evaluation.measured import Attention
from yarn_convert.evaluation.paper import SHOWN, _method, lines, table_of
from yarn_convert.evaluation.report import EXPLANATIONS, PLOTS, TABLES, TITLES, _plots
from yarn_convert.evaluation.text import LINES
from yarn_convert.rope import Rope

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = {"method": "yarn", "rope_theta": 10000.0, "rotary_dim": 16, "original_context": 4096, "params": {"factor": 2.0}}
RAN = {"documents": [], "left_out": 0, "bos": [], "same_tokens": True, "runtime": "transformers", "seconds": 0.0, "tokens": 0, "tokens_per_second": None}  # fmt: skip


def result(kind: Any, rows: list[dict[str, Any]], **own: Any) -> Any:
    models = [{"model": name, **RAN} for name in dict.fromkeys(row["model"] for row in rows)]
    found = {"models": models, "rows": rows, "created": "", "versions": {}, "hardware": made()["hardware"], **own}
    return msgspec.convert(json.loads(json.dumps(found)), kind)


def row(model: str, context: int | None, points: list[dict[str, Any]], method: str = "yarn", **own: Any) -> dict[str, Any]:
    return {"model": model, "label": method, "method": method, "recipe": RECIPE, "context": context, "original_context": 4096, "points": points, **own}  # fmt: skip


def perplexities(*rows: tuple[str, int | None, list[float | None]], windows: tuple[int, ...] = (4096, 8192)) -> Any:
    def point(w: int, p: float | None) -> dict[str, Any]:
        rest = dict.fromkeys(("loss", "standard_error", "document_error", "mean_of_window_means", "change"), None)
        return {"window": w, "documents": 1, "windows": 1, "tokens": 9, "perplexity": p, **rest}

    each = [row("m", context, [point(w, p) for w, p in zip(windows, values, strict=True)], method) for method, context, values in rows]
    return result(Perplexity, each, measure="perplexity", windows=windows, tokens=None, stride=256)


def temperatures() -> Any:
    """Two documents of two segments at 1.0, 1.1 and 1.2."""
    values = {1.0: [[10, 20], [40, 8]], 1.1: [[5, 21], [30, 6]], 1.2: [[6, 10], [20, 4]]}
    points = [
        {"multiplier": m, "perplexity": 1.0, "standard_error": None, "document_error": None, "by_segment": [1, 1],
         "by_document": [sum(d) for d in v], "by_document_and_segment": v}
        for m, v in values.items()
    ]  # fmt: skip
    own = {"factor": 2.0, "recommended": 1.1, "best": 1.1, "best_by_document": [1.1, 1.2], "window": 16, "segments": [[0, 8], [8, 16]]}
    return result(Temperature, [row("m", 8192, points, **own)], measure="temperature")


def test_figures_of_the_temperature_by_hand() -> None:
    """Means 39, 31 and 20 with deviations 9, 5 and 4; changes of each document from the first of the grid; where each has its least."""
    (two,) = SHOWN["figure-2"].panels(temperatures())  # type: ignore[misc]
    assert [(*two.curves[0].x,), (*two.curves[0].y,), (*two.curves[0].spread,)] == [(1.0, 1.1, 1.2), (39, 31, 20), (9, 5, 4)]
    (three,) = SHOWN["figure-3"].panels(temperatures())  # type: ignore[misc]
    assert [(c.label, pytest.approx([*c.y])) for c in three.curves] == [("0 - 8", [0, -37.5, -45]), ("8 - 16", [0, -10, -50])]
    (four,) = SHOWN["figure-4"].panels(temperatures())  # type: ignore[misc]
    assert [(c.label, [*c.x], [*c.y]) for c in four.curves] == [("0 - 8", [1.1, 1.2], [1, 1]), ("8 - 16", [1.2], [2])]
    assert table_of(temperatures(), SHOWN["figure-4"]) == (
        ["1/√t", "0 - 8", "8 - 16"], [["m, s = 2", "", ""], ["1.1", "1", "–"], ["1.2", "1", "2"]]
    )  # fmt: skip


def test_tables_by_hand() -> None:
    found = perplexities(("none", 4096, [3.504, 1234.0]), ("yarn", 8192, [12.34, None]))
    assert table_of(found, SHOWN["table-1"]) == (
        ["Extension method", "Context window", "4,096", "8,192"],
        [["none", "4,096", "3.50", "1234.0"], ["yarn (s = 2)", "8,192", "12.3", "–"]],
    )
    cells = [[line[3:] for line in table_of(found, SHOWN[name])[1]] for name in ("table-2", "table-6")]
    assert cells == [[["3.50", "> 10^3"], ["> 10^1", "–"]], [["3.50", "> 10^3"], ["12.3", "–"]]]
    one = table_of(perplexities(("none", 4096, [3.504]), windows=(32768,)), SHOWN["table-4"])
    assert one == (["Model name", "Extension method", "Context window", "Perplexity"], [["m", "none", "4,096", "3.50"]])
    near, found = {"window": 512, "first": None, "grown": None}, perplexities(("rerope", None, [3.5, 3.4]))
    assert _method(msgspec.structs.replace(found.rows[0], attention=msgspec.convert(near, Attention))) == "rerope (w = 512)"
    points = [{"length": n, "trials": 10, "correct": k, "accuracy": k / 10, "by_depth": []} for n, k in ((1, 10), (2, 7), (4, 8), (8, 5))]
    lost = [p | {"accuracy": 0.1} for p in points]
    keys = result(Passkey, [row("m", 8192, points, trials=[]), row("n", 4096, lost, "none", trials=[])], measure="passkey", lengths=[1, 2, 4, 8], trials=10, depths=1)  # fmt: skip
    assert table_of(keys, SHOWN["table-5"])[1] == [["m", "2", "8,192", "yarn", "4", "83.3%"], ["n", "–", "4,096", "none", "–", "–"]]


def ran(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 0


def test_documents_and_segments_are_those_of_a_plain_loop(make_model: MakeModel, tmp_path: Path, capsys: Any) -> None:
    """And the command prints the figure's numbers, draws its axes and leaves the JSON whole."""
    folder = make_model()
    texts = [tmp_path / name for name in ("a.txt", "b.txt")]
    for text, word in zip(texts, ("To be or not. ", "All the world is a stage. "), strict=True):
        text.write_text(word * 30)
    words = ["evaluate", "temperature", str(folder), "--scale", "2", "--window", "64", "--segments", "2", "--multipliers", "1,1.2"]
    words += [w for text in texts for w in ("--text", str(text))]
    ran([*words, "--json", "-q"])
    points = json.loads(capsys.readouterr().out)["rows"][0]["points"]
    c = open_checkpoint(resolve(str(folder)))
    ids = np.asarray(tokenizer_of(c).encode(texts[1].read_text(), add_special_tokens=False).ids[:64], np.int64)
    yarn = Rope("yarn", 10000.0, 16, CONTEXT, {"factor": 2.0, "attention_factor": 1.2})
    losses = Torch(c).losses(yarn, ids, 1)
    assert points[-1]["multiplier"] == 1.2
    assert points[-1]["by_document_and_segment"][1] == pytest.approx([math.exp(losses[:31].mean()), math.exp(losses[31:].mean())], rel=1e-5)
    ran([*words, "--as", "figure-3", "-q", "--plot", str(tmp_path / "plot.svg"), "--report", str(tmp_path / "page.html")])
    out, plot, page = capsys.readouterr().out, (tmp_path / "plot.svg").read_text(), (tmp_path / "page.html").read_text()
    assert "Figure 3" in out and "32 - 64" in out
    for text in (plot, page):
        assert "Perplexity change percentage" in text and "1/√t" in text and "32 - 64" in text


def test_a_cut_axis_ends_where_the_paper_s_does() -> None:
    def top(name: str, found: Any) -> float:
        ((_, plot),) = _plots(found, SHOWN[name])
        assert plot.axes[0].get_xlabel() == SHOWN[name].x and plot.axes[0].get_yscale() == "linear"
        return float(plot.axes[0].get_ylim()[1])

    broken = perplexities(("none", 4096, [2.2, 500.0]), ("yarn", 8192, [2.3, 2.25]))
    assert [top(f"figure-{i}", broken) for i in (1, 6)] == pytest.approx([3.8, 3.4])
    assert top("figure-1", perplexities(("yarn", 8192, [2.3, 2.25]))) < 2.4
    assert any("Figure 1" in line for line in lines(broken, SHOWN["figure-1"]))


@pytest.mark.parametrize(
    ("words", "says", "hint"),
    [
        (["passkey", "--as", "table-2"], "unknown figure or table of this measure 'table-2'", "one of table-5"),
        (["perplexity", "--as", "figure-2"], "unknown figure or table", "figure-1, figure-5, figure-6, table-1"),
        (["needle", "--as", "figure-2"], "no figure or table of the paper", "perplexity, temperature, passkey"),
    ],
)
def test_a_figure_of_another_measure_is_refused_before_anything_is_opened(words: list[str], says: str, hint: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", words[0], "nowhere", *words[1:]])
    err = capsys.readouterr().err
    assert stopped.value.code == 1 and says in err and hint in err


def test_every_measure_has_lines_a_table_plots_and_words() -> None:
    for known in (LINES, TABLES, PLOTS, TITLES, EXPLANATIONS):
        assert known.keys() == KINDS.keys()

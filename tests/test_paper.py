"""`benchmarks/paper.py`: what it computes of the measures, and what it keeps; the training itself is not run here."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from yarn_convert.evaluation.windows import Losses


@pytest.fixture(scope="module")
def paper() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "paper.py"
    spec = importlib.util.spec_from_file_location("paper", path)
    assert spec and spec.loader
    found = sys.modules["paper"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def point(losses: np.ndarray) -> Any:
    """What an evaluation says of these losses."""
    x = Losses(len(losses), float(losses.sum()), float(np.square(losses).sum()))
    return SimpleNamespace(tokens=x.tokens, loss=x.mean, perplexity=x.perplexity, standard_error=x.standard_error)


def test_texts_that_are_measured_one_by_one_are_pooled_as_one(paper: ModuleType) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.gamma(2.0, 2.0, n) for n in (300, 500, 200)]
    found = paper.pooled([paper._losses(point(x)) for x in texts])
    whole = point(np.concatenate(texts))
    assert found.tokens == 1000
    assert found.perplexity == pytest.approx(whole.perplexity) and found.standard_error == pytest.approx(whole.standard_error)


def test_a_difference_is_of_the_same_tokens_with_texts_as_clusters(paper: ModuleType) -> None:
    """Texts of one length: the difference's error is that of the mean of the texts' differences, though their levels lie far apart."""
    a, apart = np.asarray([2.0, 3.0, 5.0, 4.0]), np.asarray([0.01, 0.03, 0.02, 0.06])
    rows = [[[100, 100 * x, 0.0] for x in values] for values in (a + apart, a)]
    share, error = paper.difference(*rows)
    assert share == pytest.approx(math.exp(apart.mean()) - 1)
    assert error == pytest.approx(math.exp(apart.mean()) * apart.std(ddof=1) / 2)


def test_a_passkey_that_is_learned_is_the_evaluation_s_with_its_answer(paper: ModuleType) -> None:
    text = paper.key_text(np.random.default_rng(0), 4)
    asked, _, answer = text.rpartition(" ")
    assert asked.endswith("What is the pass key? The pass key is") and asked.count(answer.removesuffix(".")) == 2


def test_the_tables_have_every_model_and_pair(paper: ModuleType) -> None:
    plan, rng = paper.Plan(tuning_steps=40), np.random.default_rng(0)

    def row(label: str) -> dict[str, Any]:
        losses = {str(w): [[w, 2.0 * w * rng.random(), 9.0 * w] for _ in range(3)] for w in paper.WINDOWS}
        return {"label": label, "losses": losses, "passkeys": {str(n): [1, 2] for n in paper.LENGTHS}}

    before = [row("none"), *(row(f"{m}:{s}") for s in paper.SCALES for m in paper.METHODS)]
    rows = paper.rows_of(before, {t.name: row("its folder") for t in paper.tunings(plan)}, plan)
    assert [(r["name"], r["scale"], r["steps"]) for r in (rows[0], rows[7], rows[-2], rows[-1])] == [
        ("the base", 1, 0), ("YaRN", 2, 0), ("YaRN", 4, "40 at 2, then 20"), ("YaRN", 4, 60),
    ]  # fmt: skip
    compared = paper.comparisons(rows)
    assert len(rows) == 1 + 8 + 8 + 2 and len(compared) == 4 * 4 + 2
    same = paper.difference(rows[8]["losses"]["512"], rows[2]["losses"]["512"])
    assert next(c for c in compared if c["what"] == "YaRN against PI, s = 2, tuned")["differences"]["512"] == same
    lines = paper.told(rows, compared)
    assert sum(line.startswith("| YaRN | 4 |") for line in lines) == 2 * 4 and all(line.count("|") in (0, 8, 10, 7) for line in lines)


def test_what_is_finished_is_not_made_again_and_another_plan_is_refused(paper: ModuleType, tmp_path: Path) -> None:
    assert paper.Work(tmp_path / "w", {"steps": 3}).once("item", lambda: [1, 2])[0] == [1, 2]
    assert paper.Work(tmp_path / "w", {"steps": 3}).once("item", lambda: 1 / 0)[0] == [1, 2]
    with pytest.raises(SystemExit, match="folder of another run"):
        paper.Work(tmp_path / "w", {"steps": 4})


def test_every_sixth_of_the_long_texts_is_held_out(paper: ModuleType, tmp_path: Path) -> None:
    for i in range(13):
        (tmp_path / f"{i:02}.txt").write_text("x" * (70_000 if i else 10))
    train, held = paper.divided(tmp_path)
    assert [f.stem for f in held] == ["06", "12"] and len(train) == 11
    (tmp_path / "01.txt").unlink()
    with pytest.raises(SystemExit, match="0 texts of 64,000 bytes"):
        paper.divided(tmp_path / "nowhere")

"""LongPPL against a plain loop over transformers' own logits, by the definition."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.compute.scorer import Torch
from yarn_convert.compute.tokens import TEXT, tokenizer_of
from yarn_convert.conversion import convert
from yarn_convert.errors import UsageError
from yarn_convert.evaluation import ResultJournal, measure_longppl
from yarn_convert.evaluation.found import typed
from yarn_convert.options import EvaluateOptions, LongpplOptions, Recipe, Texts

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW, SHORT, STEP, ALPHA, BETA = 230, 48, 20, 0.7, -8.0


def losses_of(net: Any, ids: list[int]) -> np.ndarray:
    """−ln p of ids[1:], float64."""
    with torch.no_grad():
        rows = net(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return -rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()


def key_tokens(net: Any, ids: list[int]) -> list[int]:
    """Token by token: a short context for each, where it begins by which step the token is in."""
    long, found = losses_of(net, ids), []
    for t in range(SHORT, len(ids)):
        begin = (t - SHORT) // STEP * STEP
        short = losses_of(net, ids[begin : t + 1])[-1]
        if short - long[t - 1] > ALPHA and -long[t - 1] > BETA:
            found.append(t)
    return found


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def wish(**changed: Any) -> LongpplOptions:
    given = {"window": WINDOW, "short_context": SHORT, "step": STEP, "alpha": ALPHA, "beta": BETA, **changed}
    return LongpplOptions(EvaluateOptions(methods=given.pop("methods", ()), device="cpu", texts=Texts(cut=250, most=2)), **given)


@pytest.mark.parametrize("other", [False, True])
def test_longppl_is_the_perplexity_of_the_tokens_that_the_evaluator_needs_a_long_context_for(
    make_model: MakeModel, tmp_path: Path, other: bool
) -> None:
    base, evaluator = make_model(), make_model("other", seed=5) if other else None
    convert(str(base), Recipe(scale=4.0), out="safetensors", output=tmp_path / "yarn")
    found = measure_longppl([str(base)], wish(methods=("none", "yarn:4"), evaluator=str(evaluator) if other else None), ResultJournal())
    typed_result = typed(found)
    ids = tokenizer_of(open_checkpoint(resolve(str(base)))).encode(TEXT.read_text(), add_special_tokens=False).ids
    documents = [ids[:WINDOW], ids[250 : 250 + WINDOW]]
    chooses = loaded(evaluator or base)
    keys = [key_tokens(chooses, d) for d in documents]
    assert all(0 < len(k) < 100 for k in keys), "some, and not all"
    assert typed_result.evaluator.key_tokens == tuple(map(len, keys))
    for row, net in zip(typed_result.rows, (loaded(base), loaded(tmp_path / "yarn")), strict=True):
        losses = [losses_of(net, d) for d in documents]
        chosen = np.concatenate([x[np.array(k) - 1] for x, k in zip(losses, keys, strict=True)])
        assert row.longppl == pytest.approx(math.exp(chosen.mean()), rel=1e-4)
        assert row.key_tokens == len(chosen)
        assert row.perplexity == pytest.approx(math.exp(np.concatenate(losses).mean()), rel=1e-4)
        assert [d.longppl for d in row.by_document] == [
            pytest.approx(math.exp(x[np.array(k) - 1].mean()), rel=1e-4) for x, k in zip(losses, keys, strict=True)
        ]


def test_no_key_token_is_no_number_and_the_journal_has_all_again(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base, journal = str(make_model()), ResultJournal()
    row = typed(measure_longppl([base], wish(alpha=99.0), journal)).rows[0]
    assert (row.longppl, row.standard_error, row.key_tokens) == (None, None, 0) and row.perplexity
    first = measure_longppl([base], wish(), journal)["rows"]
    monkeypatch.setattr(Torch, "losses", lambda *_: pytest.fail("computed again"))
    assert json.dumps(measure_longppl([base], wish(), journal)["rows"]) == json.dumps(first)


def test_nothing_that_is_said_of_the_models_changes_another_evaluator(make_model: MakeModel, tmp_path: Path) -> None:
    """A recipe's files are the models', and so is an L by which the evaluator's own scaling would be another."""
    base, evaluator = make_model(), tmp_path / "yarn"
    convert(str(base), Recipe(scale=4.0), out="safetensors", output=evaluator)
    files = [tmp_path / f"{n}.json" for n in (2, 3)]
    for n, file in enumerate(files, 2):
        file.write_text(json.dumps({"method": "yarn", "scale": n}))
    plain = wish(evaluator=str(evaluator), methods=("none",))
    said = replace(plain.settings, texts=Texts(cut=250, most=1), recipe=Recipe(original_context=CONTEXT // 2), recipes=tuple(files))
    one = replace(plain, settings=replace(plain.settings, texts=said.texts))
    rows, expected = (typed(measure_longppl([str(base)], w, ResultJournal())) for w in (replace(one, settings=said), one))
    assert rows.evaluator.key_tokens == expected.evaluator.key_tokens != (0,)
    assert [row.original_context for row in rows.rows] == [CONTEXT // 2] * 3
    moved = open_checkpoint(resolve(str(evaluator))).counting_from(CONTEXT // 2)
    assert moved.rope != open_checkpoint(resolve(str(evaluator))).rope, "which would be another recipe"


def test_what_cannot_be_measured_is_refused(make_model: MakeModel) -> None:
    base, other = make_model(), make_model("lead")
    spelt = json.loads((other / "tokenizer.json").read_text())
    spelt["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    (other / "tokenizer.json").write_text(json.dumps(spelt))
    for changed, says in (
        ({"window": SHORT}, "none beyond a short context"),
        ({"step": 0}, "above 0"),
        ({"evaluator": str(other)}, "as other tokens than"),
    ):
        with pytest.raises(UsageError, match=says):
            measure_longppl([str(base)], wish(**changed), ResultJournal())

"""Divergence against torch's own kl_div over transformers' own logits in float64, a head whose divergence has a closed form, and llama.cpp."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, VOCAB, MakeModel, save_weights, tiny_weights

from yarn_convert import runtimes
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.compute.scorer import Torch
from yarn_convert.compute.tokens import TEXT, tokenizer_of
from yarn_convert.conversion import convert
from yarn_convert.errors import UsageError
from yarn_convert.evaluation import ResultJournal, measure_divergence
from yarn_convert.evaluation.found import Divergence, DivergencePoint, Estimate, typed_as
from yarn_convert.options import DivergenceOptions, EvaluateOptions, Recipe, Texts
from yarn_convert.runtimes.environments import python_of

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW, CUT = 60, 100


def wish(runtime: str = "transformers", methods: tuple[str, ...] = (), most: int = 3, **given: Any) -> DivergenceOptions:
    settings = EvaluateOptions(methods=methods, runtime=runtime, device="cpu", texts=Texts(cut=CUT, most=most))
    return DivergenceOptions(settings, **{"window": WINDOW, "segments": 2, **given})


def found(models: list[Path], asked: DivergenceOptions, journal: ResultJournal | None = None) -> Divergence:
    return typed_as(measure_divergence([str(m) for m in models], asked, journal or ResultJournal()), Divergence)


def documents(folder: Path, most: int = 3, window: int = WINDOW) -> list[np.ndarray]:
    ids = tokenizer_of(open_checkpoint(resolve(str(folder)))).encode(TEXT.read_text(), add_special_tokens=False).ids
    return [np.array(ids[i * CUT : i * CUT + window]) for i in range(most)]


def logits_of(folder: Path, ids: np.ndarray) -> np.ndarray:
    """float64[n − 1, vocabulary] of all but the last token, as transformers loads the folder."""
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return np.asarray(net(torch.from_numpy(ids)[None]).logits[0, :-1].double().numpy())


def assert_point(p: DivergencePoint, base: list[np.ndarray], other: list[np.ndarray], true: list[np.ndarray], rel: float = 1e-4) -> None:
    """A point is that of these logits, by document, and of the true tokens after them."""
    log_p, log_q = ([torch.from_numpy(x).log_softmax(-1) for x in logits] for logits in (base, other))
    kl = [torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).numpy() for p, q in zip(log_p, log_q, strict=True)]
    of_true = [[x[np.arange(len(t)), t].numpy() for x, t in zip(logs, true, strict=True)] for logs in (log_p, log_q)]
    p_true, q_true = (np.concatenate(x) for x in of_true)
    together = np.sort(np.concatenate(kl))
    assert p.tokens == len(together)
    close(p.divergence, kl, rel)
    at = 0.99 * (len(together) - 1)
    ninety_nine = together[int(at)] + (at - int(at)) * (together[min(int(at) + 1, len(together) - 1)] - together[int(at)])
    assert (p.percentile_99, p.maximum) == (pytest.approx(ninety_nine, rel=rel), pytest.approx(together[-1], rel=rel))
    assert p.median == pytest.approx((together[(len(together) - 1) // 2] + together[len(together) // 2]) / 2, rel=rel)
    assert p.maximum is not None and p.percentile_99 is not None and p.percentile_99 <= (p.percentile_999 or 0) <= p.maximum
    assert p.rms_change.value == pytest.approx(math.sqrt(((np.exp(q_true) - np.exp(p_true)) ** 2).mean()), rel=rel)
    same = [(b.argmax(-1) == o.argmax(-1)).astype(float) for b, o in zip(base, other, strict=True)]
    close(p.same_top, same, 1e-9)
    assert p.base_perplexity == pytest.approx(math.exp(-p_true.mean()), rel=rel)
    assert p.perplexity == pytest.approx(math.exp(-q_true.mean()), rel=rel)
    assert p.ratio.value == pytest.approx(math.exp(p_true.mean() - q_true.mean()), rel=rel)


def close(x: Estimate, by_document: list[np.ndarray], rel: float) -> None:
    """The mean, its error by tokens, and by the spread of the documents, all of which are of one length."""
    together = np.concatenate(by_document)
    assert x.value == pytest.approx(together.mean(), rel=rel)
    assert x.standard_error == pytest.approx(together.std() / math.sqrt(len(together) - 1), rel=rel)
    means = np.array([part.mean() for part in by_document])
    assert x.document_error == (None if len(means) == 1 else pytest.approx(means.std(ddof=1) / math.sqrt(len(means)), rel=rel))


def test_divergence_is_that_of_transformers_own_logits(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a recipe on the loaded base, and of a file with that recipe; by segment of position; some rows at a time."""
    monkeypatch.setattr("yarn_convert.compute.scorer.LOGITS", VOCAB * 7)
    base, yarn = make_model(), tmp_path / "yarn"
    convert(str(base), Recipe(scale=4.0), out="safetensors", output=yarn)
    texts = documents(base)
    logits = [[logits_of(folder, ids) for ids in texts] for folder in (base, yarn)]
    on_base = found([base], wish(methods=("none", "yarn:4")))
    as_file = found([yarn], wish(base=str(base)))
    assert on_base.segments == ((1, 30), (30, 60)) and [row.label for row in on_base.rows] == ["none", "yarn:4"]
    for row, other in zip((*on_base.rows, *as_file.rows), (0, 1, 1), strict=True):
        for p, (a, b) in zip((row.whole, *row.points), ((1, 60), *on_base.segments), strict=True):
            parts = [[x[a - 1 : b - 1] for x in of] for of in logits]
            assert (p.begin, p.end) == (a, b)
            if row.label == "none":
                assert (p.divergence.value, p.maximum, p.same_top.value, p.ratio.value) == (0, 0, 1, 1), "exactly"
            else:
                assert p.divergence.value is not None and p.divergence.value > 1e-3
                assert_point(p, parts[0], parts[other], [ids[a:b] for ids in texts])


def test_a_head_that_is_twice_as_sharp_diverges_by_the_closed_form(make_model: MakeModel, tmp_path: Path) -> None:
    """Q ∝ P²: KL(P ‖ Q) = ln Σ P² + H(P), and the most likely token is the same."""
    base, sharp = make_model(), make_model("sharp")
    weights = tiny_weights()
    save_weights(sharp, weights | {"lm_head.weight": 2 * weights["lm_head.weight"]}, "F32", 1)
    (ids,) = documents(base, 1)
    p = np.exp(logits_of(base, ids))
    p /= p.sum(-1, keepdims=True)
    expected = np.log((p**2).sum(-1)) - (p * np.log(p)).sum(-1)
    (row,) = found([sharp], wish(base=str(base), most=1)).rows
    assert row.whole.divergence.value == pytest.approx(expected.mean(), rel=1e-4) and row.whole.same_top.value == 1
    assert row.whole.maximum == pytest.approx(expected.max(), rel=1e-4)
    assert row.whole.divergence.document_error is None
    (back,) = found([base], wish(base=str(sharp), most=1)).rows
    q = p**2 / (p**2).sum(-1, keepdims=True)
    assert back.whole.divergence.value == pytest.approx((q * np.log(q / p)).sum(-1).mean(), rel=1e-4) != row.whole.divergence.value


@pytest.mark.skipif(python_of("llama.cpp") is None, reason="llama-cpp-python is not installed")
def test_a_quantized_file_in_llama_cpp_is_compared_with_the_extended_base_part_by_part(make_model: MakeModel, tmp_path: Path) -> None:
    """Beyond L, where the base has that context by its recipe; the parts are those of a batch, and the last one is shorter."""
    base, yarn, out, window = make_model(), tmp_path / "yarn", tmp_path / "q.gguf", 600  # a batch of llama.cpp's worker is 512
    convert(str(base), Recipe(scale=12.0), out="safetensors", output=yarn)
    convert(str(base), Recipe(scale=12.0), out="gguf", outtype="q8_0", output=out)
    asked = wish("llama.cpp", base=str(base), base_method="yarn:12", window=window, most=1)
    asked = replace(asked, settings=replace(asked.settings, texts=Texts(most=1)))
    result = found([out], asked)
    assert result.segments == ((1, CONTEXT), (CONTEXT, 300), (300, window))
    (ids,) = documents(base, 1, window)
    theirs = runtimes.run("llama.cpp", out, ids, [(0, window - 1)]).logits.astype(np.float64)
    ours, (row,) = logits_of(yarn, ids), result.rows
    for p in (row.whole, *row.points):
        a, b = p.begin, p.end
        assert p.divergence.value is not None and 1e-5 < p.divergence.value < 0.1
        assert_point(p, [ours[a - 1 : b - 1]], [theirs[a - 1 : b - 1]], [ids[a:b]], rel=2e-3)
    assert result.base.ran.runtime == "transformers" and result.models[0].runtime == "llama.cpp"


def test_the_journal_has_all_again_and_one_loaded_model_serves_all_recipes(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    base, journal, asked, loaded = make_model(), ResultJournal(), wish(methods=("yarn:2", "yarn:4")), []
    before = Torch.__init__
    monkeypatch.setattr(Torch, "__init__", lambda self, *words: (loaded.append(self), before(self, *words))[1])
    first = measure_divergence([str(base)], asked, journal)["rows"]
    assert len(loaded) == 1
    monkeypatch.setattr(Torch, "predictions", lambda *_: pytest.fail("computed again"))
    assert json.dumps(measure_divergence([str(base)], asked, journal)["rows"]) == json.dumps(first)
    with pytest.raises(pytest.fail.Exception):
        measure_divergence([str(base)], replace(asked, base_method="linear:2"), journal)


def test_what_does_not_compare_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    base, other = make_model(), make_model("lead")
    spelt = json.loads((other / "tokenizer.json").read_text())
    spelt["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    (other / "tokenizer.json").write_text(json.dumps(spelt))
    wider, weights = make_model("wider", config={"vocab_size": VOCAB + 1}), tiny_weights()
    padded = {k: np.pad(v, ((0, 1), (0, 0))) if v.shape[0] == VOCAB else v for k, v in weights.items()}
    save_weights(wider, padded, "F32", 1)
    for models, changed, says in (
        ([base], {}, "is compared with nothing"),
        ([base], {"base": str(other)}, "as other tokens than"),
        ([base], {"base": str(wider)}, "has a vocabulary of 263 tokens, and .* one of 264"),
        ([base], {"methods": ("yarn:2",), "window": CONTEXT + 1}, "has a context of 64 tokens"),
        ([base], {"methods": ("none",), "base_method": "yarn:2", "window": 2 * CONTEXT + 1}, "has a context of 128 tokens"),
        ([base], {"base_method": "yarn:2", "base_recipe": tmp_path / "r.yaml"}, "one recipe"),
        ([base], {"methods": ("none",), "window": 1}, "predicts nothing"),
    ):
        with pytest.raises(UsageError, match=says):
            found(models, wish(**changed))

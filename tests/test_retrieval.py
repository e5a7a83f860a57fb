"""What is hidden in long texts: prompts that share what they have in common, against each alone; intervals by their definition."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from conftest import CONTEXT, MakeModel

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.compute.growing import Steps, causal, greedy
from yarn_convert.compute.reference import Reference
from yarn_convert.compute.scorer import Torch
from yarn_convert.compute.tokens import TEXT, tokenizer_of
from yarn_convert.errors import UsageError
from yarn_convert.evaluation import ResultJournal, measure_needle, measure_passkey, retrieval
from yarn_convert.evaluation.found import typed
from yarn_convert.evaluation.passkeys import FILLING, prompt
from yarn_convert.evaluation.retrieval import interval
from yarn_convert.options import EvaluateOptions, NeedleOptions, PasskeyOptions, Texts
from yarn_convert.rope import Rope, effect

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ("yarn:4", "dynamic-yarn")


def alone(reference: Reference, rope: Rope, ids: np.ndarray, stop: Any, most: int = 10) -> list[int]:
    """The tokens of one prompt in a cache of its own, of keys before RoPE, one step a token: as they were computed once."""
    steps = Steps(reference, rope, "before")
    found = [int(steps.feed(ids).argmax())]
    while len(found) < most and not stop(found):
        found.append(int(steps.feed(np.array(found[-1:])).argmax()))
    return found


def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each pass reads."""
    seen: list[int] = []
    step = Steps._step

    def counted(self: Steps, ids: np.ndarray, rows: int) -> np.ndarray:
        seen.append(len(ids))
        return step(self, ids, rows)

    monkeypatch.setattr(Steps, "_step", counted)
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_passkeys_that_share_what_they_have_in_common_are_answered_as_each_alone(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Of 3 × 2 prompts of two lengths, which are beyond L of a dynamic recipe, too."""
    base = make_model(config={"max_position_embeddings": 256})
    seen = fed(monkeypatch)
    wish = PasskeyOptions(EvaluateOptions(methods=(method,), device="cpu"), lengths=(500, 700), trials=3)
    (row,) = measure_passkey([str(base)], wish, ResultJournal())["rows"]
    c = open_checkpoint(resolve(str(base)))
    tokenizer, reference = tokenizer_of(c), Torch(c, "cpu").reference
    parameters = {"factor": 4.0} if method == "yarn:4" else {}
    rope = Rope(method.split(":")[0], 10000.0, 16, 256, parameters)
    read, whole = sum(seen), 0
    for i, trial in enumerate(row["trials"]):
        p = prompt(tokenizer, [], trial["length"], i % 3, 0)
        said = alone(reference, rope, p.ids, lambda ids: re.search(r"\d\D", tokenizer.decode(ids)) is not None)
        assert trial["answer"] == tokenizer.decode(said)
        whole += len(p.ids) + len(said)
    assert read < 0.9 * whole if rope.static else read <= whole + 60, "static recipes read the common beginning once"


def test_a_recipe_with_the_table_of_another_one_at_a_length_is_not_computed_again(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within L two lists and dynamic YaRN are the base, beyond it the lists are NTK-by-parts: each has the answers that it has alone."""
    n = len(prompt(tokenizer_of(open_checkpoint(resolve(str(make_model())))), [], 900, 0, 0).ids)
    base = make_model("longer", config={"max_position_embeddings": n + 5})
    methods, computed = ("none", "ntk-by-parts:4", "ntk-by-parts+base:4", "dynamic-yarn"), list[int]()

    def counted(steps: Steps, prompt: np.ndarray, *rest: Any) -> list[int]:
        computed.append(len(prompt))
        return greedy(steps, prompt, *rest)

    def answers(*methods: str) -> list[list[str]]:
        wish = PasskeyOptions(EvaluateOptions(methods=methods, device="cpu"), lengths=(500, 900, 1200), trials=1)
        return [[t["answer"] for t in row["trials"]] for row in measure_passkey([str(base)], wish, ResultJournal())["rows"]]

    monkeypatch.setattr(retrieval, "greedy", counted)
    together = answers(*methods)
    within, past = [k for k in computed if k <= n + 5], [k for k in computed if k > n + 5]
    assert sorted(map(within.count, set(within))) == [2, 4], "a text that grows past L within its answer is each recipe's own"
    assert len(past) == 3, "the base's, NTK-by-parts' and dynamic YaRN's"
    assert together == [answers(m)[0] for m in methods]


def test_a_beginning_stays_read_only_under_the_table_of_the_whole_text(make_model: MakeModel) -> None:
    """The control: keys and values of another length's table give other logits."""
    c = open_checkpoint(resolve(str(make_model())))
    reference, rng = Torch(c, "cpu").reference, np.random.default_rng(0)
    a = rng.integers(3, 263, 200)
    b = np.concatenate([a[:150], rng.integers(3, 263, 50)])
    longer = np.concatenate([a[:150], rng.integers(3, 263, 90)])
    dynamic, static = Rope("dynamic-yarn", 10000.0, 16, CONTEXT), Rope("yarn", 10000.0, 16, CONTEXT, {"factor": 4.0})
    for rope, text, kept in ((static, b, 150), (static, longer, 150), (dynamic, b, 150), (dynamic, longer, 0)):
        steps = Steps(reference, rope)
        steps.feed(steps.turn_to(a))
        rest = steps.turn_to(text)
        assert len(rest) == len(text) - kept
        expected = reference.logits(effect(rope, len(text)), text, [(len(text) - 1, len(text))])[0]
        assert np.abs(steps.feed(rest) - expected).max() < 1e-4
    steps = Steps(reference, dynamic)
    steps.feed(a)
    steps.rewind(150)
    assert np.abs(steps.feed(longer[150:]) - reference.logits(effect(dynamic, 240), longer, [(239, 240)])[0]).max() > 1e-2


@pytest.mark.parametrize("right", range(5))
def test_a_draft_changes_no_token_and_saves_the_steps_in_which_it_is_right(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, right: int
) -> None:
    c = open_checkpoint(resolve(str(make_model())))
    reference, rope = Torch(c, "cpu").reference, Rope("yarn", 10000.0, 16, CONTEXT, {"factor": 4.0})
    ids = np.random.default_rng(1).integers(3, 263, 100)
    expected = alone(reference, rope, ids, lambda found: False, 8)
    seen = fed(monkeypatch)
    draft = [*expected[:right], *((t + 1) % 260 for t in expected[right:5])]
    assert greedy(Steps(reference, rope), ids, 8, draft=draft) == expected
    assert len(seen) == 8 - right
    for stop in (1, 3, 6):
        assert greedy(Steps(reference, rope), ids, 8, lambda found, n=stop: len(found) == n, draft) == expected[:stop]


def test_wilsons_interval_is_where_the_share_is_one_error_of_its_own_away() -> None:
    """By its definition: both ends p solve |p − k/n| = z·√(p(1 − p)/n)."""
    for k, n in ((0, 5), (1, 5), (3, 10), (10, 10), (7, 300)):
        for end in interval(k, n):
            assert (end - k / n) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / n, abs=1e-9)
        low, high = interval(k, n)
        assert 0 <= low <= k / n <= high + 1e-12 and high <= 1 and high - low > 0.01
    assert interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("q", "k", "window"), [(5, 600, 600), (300, 600, 600), (600, 600, 600), (1, 600, 600), (300, 600, 100), (600, 600, 64)]
)
def test_attention_in_parts_is_attention_by_its_formula(q: int, k: int, window: int) -> None:
    rng = np.random.default_rng(q)
    query, key, value = (rng.standard_normal((1, 3, n, 16)) for n in (q, k, k))
    scores = np.einsum("bhqd,bhkd->bhqk", query, key) * 0.3
    at = np.arange(k - q, k)[:, None] - np.arange(k)
    scores = np.where((at >= 0) & (at < window), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhqk,bhkd->bhqd", shares / shares.sum(-1, keepdims=True), value)
    found = causal(*(torch.from_numpy(x).float() for x in (query, key, value)), window, 0.3)
    assert np.abs(found.numpy() - expected).max() < 1e-5


def test_needles_stand_where_they_are_said_to_in_a_text_of_whole_sentences(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts, read again by what they say; a model that answers what stands at the end of the question's needle, but at depth 0."""
    base = make_model()
    tokenizer = tokenizer_of(open_checkpoint(resolve(str(base))))
    texts: list[str] = []

    def told(steps: Steps, ids: np.ndarray, *_: Any) -> list[int]:
        text = tokenizer.decode(ids.tolist())
        texts.append(text)
        (name,) = re.findall(r"The magic number of (\w+) is$", text)
        (value,) = re.findall(rf"The magic number of {name} is (\d+)\.", text)
        at = text.index(f"{value}.") / len(text)
        return list(tokenizer.encode(f" {value if at > 0.3 else 1}.", add_special_tokens=False).ids)

    monkeypatch.setattr(retrieval, "greedy", told)
    for files in ((), (TEXT,)):
        texts.clear()
        wish = NeedleOptions(EvaluateOptions(device="cpu", texts=Texts(files=files)), lengths=(1500, 1200), depths=3, trials=2, needles=3)
        found = measure_needle([str(base)], wish, ResultJournal())
        (row,) = typed(found).rows
        assert [(p.length, p.depth, p.trials, p.correct) for p in row.points] == [
            (n, d, 2, 0 if d == 0 else 2) for n in (1500, 1200) for d in (0, 0.5, 1)
        ]
        assert [(p.length, p.correct, p.low, p.high) for p in row.by_length] == [(n, 4, *interval(4, 6)) for n in (1500, 1200)]
        assert [len(set(re.findall(r"The magic number of (\w+) is \d{7}\.", text))) for text in texts] == [3] * 12
        words = re.sub(r"\s+", " ", TEXT.read_text()).strip() if files else " ".join([FILLING] * 99)
        for text in texts:
            hay = re.sub(r" ?The magic number of \w+ is \d{7}\.", "", text.split("\n")[1]).strip()
            assert words.startswith(hay) and len(hay) > 500
        for trial in row.trials:
            assert trial.length - 200 < trial.tokens <= trial.length


def test_more_needles_than_names_and_lengths_without_room_are_refused(make_model: MakeModel) -> None:
    base = str(make_model())
    for options, says in (({"needles": 15}, "more than there are names"), ({"lengths": (100,)}, "needs more than 100 tokens")):
        with pytest.raises(UsageError, match=says):
            measure_needle([base], NeedleOptions(**{"lengths": (500,), **options}), ResultJournal())

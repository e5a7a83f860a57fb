"""Passkey retrieval (Mohtashami and Jaggi, arXiv 2305.16300; YaRN, arXiv 2309.00071, Section 4.3.2, Table 5): a five-digit number in
the midst of text without meaning, which the model has to repeat.

The prompt is the one of landmark-attention's run_test.py. Its length is as close below the wished one as whole filling sentences allow,
BOS included; the number lies at a uniformly random depth, 0 the beginning; the same prompts for every recipe. The answer is greedy, its
first run of digits counts (YaRN's eval/passkey.py). A dynamic recipe follows the length at each generated token. What prompts have in
common is read once (`retrieval`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..compute.documents import bos
from ..compute.scorer import Ids
from ..compute.tokens import tokenizer_of
from ..errors import UsageError
from ..hearing import SayStage, heard
from ..options import PasskeyOptions
from .journal import ResultJournal
from .retrieval import Asked, answers, most_that_fit
from .subjects import Meter, Subject, check_torch, lines_of, spread

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
FILLING = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
INFORMATION = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
ANSWER = 10  # tokens that are generated at most, as in the authors' script


class Prompt(NamedTuple):
    """`depth` is the share of the filling that is to stand before the key, `before` the filling sentences that do."""

    ids: Ids
    key: int
    depth: float
    before: int


def text_of(sentences: int, before: int, key: int) -> str:
    """The prompt with so many filling sentences, `before` of them before the key."""
    fill = (" ".join([FILLING] * n) for n in (before, sentences - before))
    first, last = fill
    return "\n".join([TASK, first, INFORMATION.format(key=key), last, QUESTION])


def prompt(tokenizer: Any, lead: Sequence[int], length: int, trial: int, seed: int) -> Prompt:
    """The trial's prompt of at most `length` tokens. UsageError for a length that has no room for a filling sentence."""
    rng = np.random.default_rng([seed, length, trial])
    depth, key = float(rng.random()), int(rng.integers(10000, 100000))

    def ids(sentences: int) -> list[int]:
        text = text_of(sentences, round(depth * sentences), key)
        return [*lead, *tokenizer.encode(text, add_special_tokens=False).ids]

    sentences = most_that_fit(lambda n: len(ids(n)), length)
    if sentences < 1:
        raise UsageError(f"a passkey prompt needs more than {length} tokens", "--lengths 2k,4k,8k")
    return Prompt(np.asarray(ids(sentences), np.int64), key, depth, round(depth * sentences))


@heard
def measure_passkey(say: SayStage, models: Sequence[str], wish: PasskeyOptions, journal: ResultJournal) -> dict[str, Any]:
    """Measure all recipes of all models; the result is JSON."""
    s = wish.settings
    check_torch(s)
    lengths = tuple(dict.fromkeys(wish.lengths))
    subjects = [(subject, lines_of(subject.c, s)) for subject in (Subject(m, s, journal) for m in models)]
    rows, described = [], []
    for (subject, lines), told in zip(subjects, spread(say, subjects), strict=True):
        tokenizer = tokenizer_of(subject.c)
        subject.lead = bos(subject.c)
        prompts = [prompt(tokenizer, subject.lead, n, i, wish.seed) for n in lengths for i in range(wish.trials)]
        meter = Meter(f"passkey of {subject.name}", [len(p.ids) for _ in lines for p in prompts], told)
        asked = [Asked(p.ids, p.before, tokenizer.encode(f" {p.key}.", add_special_tokens=False).ids) for p in prompts]
        stop = partial(ends, tokenizer)
        for line in lines:
            found = answers(subject, line, asked, "passkey", ANSWER, stop, meter)
            trials = [
                trial_of(p.ids, lengths[i // wish.trials], p.depth, p.key, tokenizer.decode(said))
                for i, (p, said) in enumerate(zip(prompts, found, strict=True))
            ]
            points = [_point(n, [t for t in trials if t["length"] == n], wish.depths) for n in lengths]
            rows.append({**subject.row(line), "points": points, "trials": trials})
        described.append(subject.described())
        subject.release()
    return {
        "measure": "passkey",
        "lengths": lengths,
        "trials": wish.trials,
        "depths": wish.depths,
        "models": described,
        "rows": rows,
    }


def ends(tokenizer: Any, ids: list[int]) -> bool:
    """Whether a number has been said whole."""
    return re.search(r"\d\D", tokenizer.decode(ids)) is not None


def trial_of(ids: Ids, length: int, depth: float, key: int, said: str) -> dict[str, Any]:
    """One prompt and its answer, of which the first run of digits counts."""
    digits = re.search(r"\d+", said)
    right = digits is not None and int(digits.group()) == key
    return {"length": length, "tokens": len(ids), "depth": depth, "key": key, "answer": said, "correct": right}


def _point(length: int, trials: Sequence[dict[str, Any]], depths: int) -> dict[str, Any]:
    """Accuracy at one length, and by depth: [trials, correct ones] of each bin from the beginning on."""
    bins = [[0, 0] for _ in range(depths)]
    for t in trials:
        cell = bins[min(depths - 1, int(t["depth"] * depths))]
        cell[0] += 1
        cell[1] += t["correct"]
    right = sum(t["correct"] for t in trials)
    return {"length": length, "trials": len(trials), "correct": right, "accuracy": right / len(trials), "by_depth": bins}

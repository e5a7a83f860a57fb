"""A needle in a haystack (Kamradt 2023, github.com/gkamradt/LLMTest_NeedleInAHaystack; several needles as in RULER, arXiv 2404.06654, of
which one is asked for): a number somewhere in a long text, by length of the text and depth of the number.

The haystack is the passkey's filling or a text, in whole sentences, repeated where it is too short. The needle that is asked for stands at
the depth, the others at random ones. The answer is greedy, its first run of digits counts. Of each cell the share that was right has
Wilson's interval: where three of three were right the truth may still be under a half.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any, NamedTuple

import numpy as np

from ..compute.documents import bos, contents
from ..compute.scorer import Ids
from ..compute.tokens import tokenizer_of
from ..errors import InputError, UsageError
from ..hearing import SayStage, heard
from ..options import NeedleOptions
from .journal import ResultJournal
from .passkeys import FILLING, ends, trial_of
from .retrieval import Asked, answers, interval, most_that_fit
from .subjects import Meter, Subject, check_torch, lines_of, spread

TASK = "Some magic numbers are hidden within the following text. Make sure to memorize them. I will quiz you about one of them afterwards."
NEEDLE = "The magic number of {name} is {value}."
QUESTION = "What is the magic number of {name}? The magic number of {name} is"
NAMES = (
    "Paris",
    "London",
    "Berlin",
    "Rome",
    "Madrid",
    "Vienna",
    "Prague",
    "Lisbon",
    "Dublin",
    "Oslo",
    "Warsaw",
    "Athens",
    "Moscow",
    "Tokyo",
)
ANSWER = 12  # tokens that are generated at most: seven digits may be as many


class Hidden(NamedTuple):
    """A prompt: the needle that is asked for is `key`, at the share `depth` of the haystack, behind `before` sentences at least."""

    ids: Ids
    key: int
    length: int
    depth: float
    before: int


def haystack(wish: NeedleOptions) -> tuple[str, list[str]]:
    """(what it is called, its sentences). InputError for texts that have none."""
    if not wish.settings.texts.files:
        return "the passkey's filling", [FILLING]
    texts = [(name, text) for name, text in contents(wish.settings.texts) if isinstance(text, str)]
    found = [part for _, text in texts for part in re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", text).strip()) if part]
    if not found:
        raise InputError("the texts have no sentences", "--text FILE, in UTF-8")
    return ", ".join(name for name, _ in texts), found


def hide(
    tokenizer: Any, lead: Sequence[int], sentences: Sequence[str], length: int, depth: float, wish: NeedleOptions, trial: int
) -> Hidden:
    """A prompt of at most `length` tokens. UsageError for a length that has no room for one sentence."""
    rng = np.random.default_rng([wish.seed, length, round(1e6 * depth), trial])
    names = [str(name) for name in rng.permutation(NAMES)[: wish.needles]]
    values = [int(v) for v in rng.integers(10**6, 10**7, wish.needles)]
    depths = [depth, *map(float, rng.random(wish.needles - 1))]

    def text(n: int) -> str:
        parts = list(islice(cycle(sentences), n))
        placed = [(round(d * n), NEEDLE.format(name=name, value=value)) for d, name, value in zip(depths, names, values, strict=True)]
        for at, needle in sorted(placed, reverse=True):
            parts.insert(at, needle)
        return "\n".join([TASK, " ".join(parts), QUESTION.format(name=names[0])])

    def ids(n: int) -> list[int]:
        return [*lead, *tokenizer.encode(text(n), add_special_tokens=False).ids]

    n = most_that_fit(lambda n: len(ids(n)), length)
    if n < 1:
        raise UsageError(f"a haystack with its needles needs more than {length} tokens", "--lengths 2k,4k,8k")
    return Hidden(np.asarray(ids(n), np.int64), values[0], length, depth, round(min(depths) * n))


@heard
def measure_needle(say: SayStage, models: Sequence[str], wish: NeedleOptions, journal: ResultJournal) -> dict[str, Any]:
    """Measure all recipes of all models; the result is JSON."""
    s = wish.settings
    check_torch(s)
    if wish.needles > len(NAMES):
        raise UsageError(f"{wish.needles} needles are more than there are names for", f"--needles {len(NAMES)} at most")
    lengths = tuple(dict.fromkeys(wish.lengths))
    depths = tuple(i / max(1, wish.depths - 1) for i in range(wish.depths)) if wish.depths > 1 else (0.5,)
    name, sentences = haystack(wish)
    subjects = [(subject, lines_of(subject.c, s)) for subject in (Subject(m, s, journal) for m in models)]
    rows, described = [], []
    for (subject, lines), told in zip(subjects, spread(say, subjects), strict=True):
        tokenizer = tokenizer_of(subject.c)
        subject.lead = bos(subject.c)
        hide_one = partial(hide, tokenizer, subject.lead, sentences)
        prompts = [hide_one(n, d, wish, i) for n in lengths for d in depths for i in range(wish.trials)]
        asked = [Asked(p.ids, p.before, tokenizer.encode(f" {p.key}.", add_special_tokens=False).ids) for p in prompts]
        meter = Meter(f"needles of {subject.name}", [len(p.ids) for _ in lines for p in prompts], told)
        for line in lines:
            found = answers(subject, line, asked, "needle", ANSWER, partial(ends, tokenizer), meter)
            trials = [trial_of(p.ids, p.length, p.depth, p.key, tokenizer.decode(said)) for p, said in zip(prompts, found, strict=True)]
            points = [{"depth": d, **_share(trials, n, d)} for n in lengths for d in depths]
            rows.append({**subject.row(line), "points": points, "by_length": [_share(trials, n) for n in lengths], "trials": trials})
        described.append(subject.described())
        subject.release()
    return {
        "measure": "needle", "lengths": lengths, "depths": depths, "trials": wish.trials, "needles": wish.needles, "haystack": name,
        "models": described, "rows": rows,
    }  # fmt: skip


def _share(trials: Sequence[dict[str, Any]], length: int, depth: float | None = None) -> dict[str, Any]:
    """Of the trials of a length, and a depth, those that were right, with their interval."""
    right = [t["correct"] for t in trials if t["length"] == length and depth in (None, t["depth"])]
    low, high = interval(sum(right), len(right))
    return {"length": length, "trials": len(right), "correct": sum(right), "accuracy": sum(right) / len(right), "low": low, "high": high}

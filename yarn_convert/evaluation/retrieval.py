"""Prompts that hide something in a long text, and what a model answers to them under a recipe.

Many of them begin alike: with all that stands before what is hidden. They are answered from the one that hides it first to the one that
hides it last, and what each has in common with the one before it is read once (`compute.growing`). No answer depends on that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..compute.growing import Steps, greedy
from ..compute.scorer import Ids
from .subjects import Line, Meter, Subject

SAMPLE = 16  # sentences by which it is guessed how many fit
Z = 1.959964  # standard deviations on both sides of the mean within which 95 % of a normal distribution lie


class Asked(NamedTuple):
    """A prompt; how much of what prompts have in common stands `before` what it hides, in any unit; and `draft`, what the answer is where
    it is right, as tokens."""

    ids: Ids
    before: float
    draft: list[int]


def answers(
    subject: Subject,
    line: Line,
    asked: Sequence[Asked],
    kind: str,
    most: int,
    stop: Callable[[list[int]], bool],
    meter: Meter,
) -> list[list[int]]:
    """The tokens with which a recipe goes on greedily after each prompt, at most `most`, until `stop` of what there is. Those that the
    journal has under `kind` are not computed again."""
    steps: Steps | None = None
    found: list[list[int]] = [[] for _ in asked]
    for i in in_turn(asked, line):
        a = asked[i]
        meter.begin(len(a.ids))
        key = subject.key(line, a.ids, kind, most, lengths=(len(a.ids), len(a.ids) + most))
        answer = subject.journal.get(key)
        if answer is None:
            steps = steps or Steps(subject.torch.reference, line.rope)
            with subject.timed(len(a.ids)):
                answer = greedy(steps, a.ids, most, stop, a.draft)
            subject.journal.put(key, answer)
        found[i] = answer
    return found


def in_turn(asked: Sequence[Asked], line: Line) -> list[int]:
    """The order in which to answer; of a dynamic recipe, whose table follows the length, those of one length together."""
    return sorted(range(len(asked)), key=lambda i: (0 if line.static else len(asked[i].ids), asked[i].before))


def most_that_fit(count: Callable[[int], int], room: int) -> int:
    """The largest n with `count(n)` ≤ `room`, of a count that grows with n; −1 where none is."""
    first = count(0)
    if first > room:
        return -1
    low, high = 0, max(1, int((room - first) * SAMPLE / max(1, count(SAMPLE) - first)))
    while count(high) <= room:
        low, high = high, high + max(1, high // 8)
    if high - low > 8 and count(high - 4) <= room:
        low = high - 4
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= room else (low, middle)
    return low


def interval(right: float, trials: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share of which `right` of `trials` were seen (Wilson 1927): unlike the plain one it has a width
    where all or none were right. (0, 1) for no trial."""
    if not trials:
        return 0.0, 1.0
    p, z = right / trials, Z * Z / trials
    middle, half = p + z / 2, Z * math.sqrt(p * (1 - p) / trials + z / 4 / trials)
    return max(0.0, (middle - half) / (1 + z)), min(1.0, (middle + half) / (1 + z))


def as_ids(ids: Sequence[int]) -> Ids:
    return np.asarray(ids, np.int64)

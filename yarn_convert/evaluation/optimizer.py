"""The least of a function of recipes that is a mean over windows: CMA-ES, and successive halving over the windows.

CMA-ES (Hansen, arXiv 1604.00772; the package cmaes) needs no more than the order of a generation. So all of it is computed on one
window, the better half of it on two, the better half of these on four, and so on: a candidate that went further stands before those
that did not. The window that comes first is another one in each generation, and the last generation may be smaller. Nothing is
random but what the seed says: the same seed gives the same candidates in the same order, however far it goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..options import Recipe
from .space import Space

Score = Callable[[Recipe, int], float]  # of a candidate on a window; less is better, and infinite what cannot be
SETTLED = 0.1  # steps within which a generation is all the same


@dataclass(frozen=True, slots=True)
class Best:
    """A candidate, and its mean over all windows."""

    candidate: Recipe
    value: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """`best`: None where no candidate was computed on all windows; how many were begun; whether it came to its end by itself."""

    best: Best | None
    trials: int
    settled: bool


class Enough(Exception):
    """Raised by a `Score` when there is no time for another pass."""


def least(space: Space, windows: int, score: Score, trials: float, seed: int, room: Callable[[], float] = lambda: math.inf) -> Outcome:
    """Look for the least of `score`, with so many candidates at most, and no generation for whose passes there is no `room`; else until
    it settles, or `score` raises `Enough`."""
    from cmaes import CMA

    bounds = np.stack([space.low, space.high], axis=1)
    optimizer = CMA(np.zeros(len(space.names)), 1.0, bounds=bounds, seed=seed)
    best: Best | None = None
    begun = generation = 0
    while True:
        points = [optimizer.ask() for _ in range(optimizer.population_size)]
        fitting, most = room(), min(len(points), trials - begun)
        asked = points[: next((k for k in range(len(points), 0, -1) if k <= most and passes(k, windows) <= fitting), 0)]
        if not asked:
            break
        candidates = [space.make(x) for x in asked]
        values, cut = halving(candidates, [(w + generation) % windows for w in range(windows)], score)
        begun += sum(bool(v) for v in values)
        best = _better(best, candidates, values, windows)
        if cut or len(asked) < len(points):
            break
        ranks = order(values)
        optimizer.tell([(points[i], float(rank)) for rank, i in enumerate(ranks)])
        generation += 1
        if np.ptp(np.array(points), axis=0).max() < SETTLED or optimizer.should_stop():
            return Outcome(best, begun, True)
    return Outcome(best, begun, False)


def passes(candidates: int, windows: int) -> int:
    """How many windows `halving` computes."""
    found = upto = 0
    while candidates and upto < windows:
        wider = min(2 * upto or 1, windows)
        found, upto, candidates = found + candidates * (wider - upto), wider, math.ceil(candidates / 2)
    return found


def halving(candidates: Sequence[Recipe], windows: Sequence[int], score: Score) -> tuple[list[list[float]], bool]:
    """(the values of each candidate on the first of `windows`, as many as it was computed on; whether `score` had enough)."""
    found: list[list[float]] = [[] for _ in candidates]
    alive, upto = list(range(len(candidates))), 1
    while alive:
        for i in alive:
            for w in windows[len(found[i]) : upto]:
                try:
                    found[i].append(score(candidates[i], w))
                except Enough:
                    return found, True
        if upto >= len(windows):
            break
        alive = sorted(alive, key=lambda i: mean(found[i]))[: math.ceil(len(alive) / 2)]
        upto = min(2 * upto, len(windows))
    return found, False


def order(values: Sequence[Sequence[float]]) -> list[int]:
    """The candidates from best to worst: those on more windows first, then by their means."""
    return sorted(range(len(values)), key=lambda i: (-len(values[i]), mean(values[i])))


def mean(values: Sequence[float]) -> float:
    """Infinite where there is nothing, or nothing finite."""
    found = sum(values) / len(values) if values else math.inf
    return found if math.isfinite(found) else math.inf


def _better(best: Best | None, candidates: Sequence[Recipe], values: Sequence[Sequence[float]], windows: int) -> Best | None:
    for candidate, found in zip(candidates, values, strict=True):
        if len(found) == windows and mean(found) < (math.inf if best is None else best.value):
            best = Best(candidate, mean(found))
    return best

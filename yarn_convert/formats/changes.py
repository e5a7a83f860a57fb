"""What becomes of a tensor's numbers on the way from HF to GGUF and back, where it is not rows alone that move.

Every result is rounded to float32 once, as the formula has it: the converter's own steps, or the nearest to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..families.schema import Times


class Change(NamedTuple):
    """What is made of each number, float32: rounded once, as the formula has it. `back` is the change that undoes it, but for that."""

    of: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    back: str


CHANGES: Mapping[str, Change] = {
    "x + 1": Change(lambda x: x + np.float32(1), "x - 1"),
    "x - 1": Change(lambda x: x - np.float32(1), "x + 1"),
    "-exp(x)": Change(lambda x: -np.exp(x.astype(np.float64)).astype(np.float32), "ln(-x)"),
    "ln(-x)": Change(lambda x: np.log(-x.astype(np.float64)).astype(np.float32), "-exp(x)"),
}


def without_ones(times: Times) -> Times:
    """The steps that change a number."""
    return tuple(step for step in times if any(of != 1 for _, of in _spans(step)))


def _spans(step: float | tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    return step if isinstance(step, tuple) else ((1, step),)


def multiplied(x: NDArray[np.float32], times: Times, first: int) -> NDArray[np.float32]:
    """Rows [first, …) of a target, float32[rows, columns], multiplied."""
    for step in times:
        rows, factors = zip(*_spans(step), strict=True)
        by = np.repeat(np.asarray(factors, np.float32), rows)
        x = x * (by[first : first + len(x), None] if len(by) > 1 else by)
    return x

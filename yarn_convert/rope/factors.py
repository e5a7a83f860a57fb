"""A table as the numbers by which plain RoPE's frequencies are divided: so files carry any."""

from __future__ import annotations

import numpy as np

from ..errors import Unsupported
from .parts import Array, geometric

# A pair that is divided by so much stands still (llama.cpp's conversion/gemma.py, generate_extra_tensors)
STILL = 1e30


def factors_of(found: Array, theta: float) -> Array:
    """What divides the frequencies of plain RoPE to give those of a table; `STILL` of a pair that stands still."""
    with np.errstate(divide="ignore"):
        return np.minimum(geometric(theta, 2 * len(found)) / found, STILL)


def undivided(factors: Array) -> tuple[Array, int]:
    """(factors with 1 for those of at least `STILL`, how many of these there are; what is no number stays). Unsupported unless they are the
    slowest pairs'."""
    resting = (factors >= STILL) & np.isfinite(factors)
    count = int(resting.sum())
    if resting[: len(factors) - count].any():
        raise Unsupported("a table in which pairs stand still that are not the slowest", "its factors of 1e30 and more belong at its end")
    return np.where(resting, 1.0, factors), count

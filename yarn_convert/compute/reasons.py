"""What is wrong with a tensor that is not its base's, in words: its rows lie otherwise, it is another tensor's, it lost something."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..formats.layout import Part
from ..formats.tensors import Tensor
from .reference import as_f32
from .weights import SEARCHED, same_weights, sound

EXACT = 1e-10  # of the square, where both have one type
SAMPLE, LISTED = 64, 3  # rows that are looked for, and those that are named
LEAST = 6  # rows that turn together: of four, two that are swapped
INTERLEAVED, APART = "its rows are interleaved once too often", "its rows are taken apart once too often"
PLAIN = "its rows are not interleaved"
Rows = NDArray[np.float32]


def reason(name: str, t: Tensor, parts: Mapping[str, Part], usual: str) -> str:
    """Why `t` is not what the base's `parts` have of this name, as well as tensors tell; `usual` is what is said otherwise."""
    part = parts[name]
    if part.shape != t.shape or t.elements > SEARCHED:
        return usual
    for by in (-2, -1, 1, 2):
        turned = part.turned(by)
        if turned is not None and not same_weights(t, turned)[1]:
            return INTERLEAVED if by > 0 else PLAIN if turned.order.turn == 0 else APART
    for other, that in parts.items():
        if other != name and that.shape == t.shape and that.sources != part.sources and not same_weights(t, that)[1]:
            return f"it is the base's {other}"
    q, x = as_f32(Part(t.shape, (t,))), as_f32(part)
    limit = EXACT if t.dtype == part.dtype else sound(t.dtype, part.dtype).error
    return _of_all(q, x, limit) or (_of_rows(q, x, limit) if q.ndim > 1 else "") or usual


def _near(q: Rows, x: Rows, limit: float) -> bool:
    a, b = q.astype(np.float64), x.astype(np.float64)
    return bool(((a - b) ** 2).sum() <= limit * (b**2).sum())


def _of_all(q: Rows, x: Rows, limit: float) -> str:
    """What was done to every number alike; "" if nothing."""
    if not q.any():
        return "all of it is zero"
    square = float((x.astype(np.float64) ** 2).sum())
    size = float((q.astype(np.float64) * x).sum()) / square if square else 0.0
    if size and _near(q, x * np.float32(size), limit):
        return f"it is {size:.4g} times the base's"
    shift = float((q.astype(np.float64) - x).mean())
    return f"it is the base's and {shift:.4g} more" if _near(q, x + np.float32(shift), limit) else ""


def _of_rows(q: Rows, x: Rows, limit: float) -> str:
    """Which rows, or experts of stacked ones, are other rows of the base's, or others altogether."""
    what = "expert" if q.ndim > 2 else "row"
    q, x = q.reshape(len(q), -1), x.reshape(len(x), -1)
    wrong = np.flatnonzero(((q - x) ** 2).sum(1) > limit * (x**2).sum(1))
    if not len(wrong):
        return ""
    some = wrong[:SAMPLE]
    with np.errstate(all="ignore"):
        alike = np.nan_to_num((q[some] @ x.T) / (np.linalg.norm(q[some], axis=1)[:, None] * np.linalg.norm(x, axis=1)))
    best = alike.argmax(1)
    if not all(_near(q[i], x[j], limit) for i, j in zip(some, best, strict=True)):
        few = len(wrong) <= len(q) // 2
        return f"{len(wrong):,} of its {len(q):,} {what}s are not the base's, first {what} {wrong[0]:,}" if few else ""
    if what == "row" and len(some) == len(wrong) and (turning := _turning(some, best)):
        return turning
    shifts = {int(d) for d in (some - best) % len(q)}
    if len(wrong) == 2 and [*best] == [*some[::-1]]:
        return f"{what}s {some[0]:,} and {some[1]:,} are swapped"
    if len(shifts) == 1 and len(wrong) > 2:
        (by,) = shifts
        return f"its {what}s are moved by {by if by <= len(q) // 2 else by - len(q):,}"
    named = ", ".join(f"{what} {i:,} is the base's {j:,}" for i, j in zip(some[:LISTED], best[:LISTED], strict=True))
    return f"{len(wrong):,} of its {len(q):,} {what}s are in other places: {named}"


def _turning(wrong: NDArray[np.int64], of_base: NDArray[np.int64]) -> str:
    """Whether rows side by side, as latent attention's that turn, are in the order of pairs apart, or the other way round; "" if not.
    `of_base`: which rows of the base the `wrong` ones are. The first and the last of such a part stay where they are."""
    first, end = int(wrong[0]) - 1, int(wrong[-1]) + 2
    rows = np.arange(first, end)
    if len(rows) % 2 or len(rows) < LEAST or first < 0:
        return ""
    for order, says in ((rows.reshape(2, -1).T.ravel(), INTERLEAVED), (rows.reshape(-1, 2).T.ravel(), APART)):
        if np.array_equal(rows[order != rows], wrong) and np.array_equal(order[order != rows], of_base):
            return says.replace("its rows", f"its rows {first:,} to {end - 1:,}")
    return ""

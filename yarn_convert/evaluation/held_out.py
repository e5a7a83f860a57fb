"""Which texts are searched on and which judge, and how sure a difference between two recipes on the same texts is: pure arithmetic."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Literal, NamedTuple

from ..compute.documents import TokenizedText
from ..errors import InputError


class Split(NamedTuple):
    """Windows that are searched on, and others that judge; `clusters`: of each of these the number of its text, or its own where all
    are of one text. `by`: whole documents are on one side, or disjoint windows of the only one."""

    searched: list[TokenizedText]
    held_out: list[TokenizedText]
    clusters: list[int]
    by: Literal["documents", "windows"]


def split(documents: Sequence[TokenizedText], tokens: int, most: int, judges: int, seed: int, pieces: bool = False) -> Split:
    """Windows of so many tokens, at most `most` to search on and `judges` to judge: of each document the first, then of each the second,
    and so on. The first half of the documents, in an order by `seed`, is searched on; of one document its first half. `pieces`: documents
    are pieces of texts. InputError where less than one and two windows are found: one alone shows no error."""
    texts: dict[str, list[TokenizedText]] = {}
    for d in documents:
        found = [TokenizedText(f"{d.name} from {i}", d.ids[i : i + tokens]) for i in range(0, len(d.ids) - tokens + 1, tokens)]
        texts.setdefault(d.name.rpartition("[")[0] if pieces else d.name, []).extend(found)
    if len(texts) == 1:
        (windows,) = texts.values()
        half = len(windows) // 2
        searched, held_out = windows[:half][:most], windows[half:][:judges]
        clusters, by = list(range(len(held_out))), "windows"
    else:
        names = list(texts)
        random.Random(seed).shuffle(names)
        half = len(names) // 2
        searched = _in_turn([texts[name] for name in names[:half]])[:most]
        places = {w.name: i for i, name in enumerate(names[half:]) for w in texts[name]}
        held_out = _in_turn([texts[name] for name in names[half:]])[:judges]
        clusters, by = [places[w.name] for w in held_out], "documents"
        clusters = clusters if len({*clusters}) > 1 else list(range(len(held_out)))
    if not searched or len(held_out) < 2:
        have = f"{len(searched)} and {len(held_out)} windows of {tokens:,} tokens"
        raise InputError(
            f"a search needs a window to search on and two to judge, and the texts give {have}", "more --text, or less --context"
        )
    return Split(searched, held_out, clusters, by)  # type: ignore[arg-type]


def _in_turn(texts: Sequence[Sequence[TokenizedText]]) -> list[TokenizedText]:
    return [w for w in chain.from_iterable(zip_longest(*texts)) if w is not None]


# Student's t that chance exceeds once in twenty, by degrees of freedom from 1 on; beyond these that of 20, which is a little too large
STUDENT = (
    6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812,
    1.796, 1.782, 1.771, 1.761, 1.753, 1.746, 1.740, 1.734, 1.729, 1.725,
)  # fmt: skip


def difference(a: Sequence[float], b: Sequence[float], clusters: Sequence[int]) -> tuple[float, float]:
    """(mean of a − b over windows, its error): what it would be beyond by chance, were it 0, once in twenty on that side. Windows of a
    cluster are not independent. NaN where a number is missing."""
    found = [x - y for x, y in zip(a, b, strict=True)]
    n, names = len(found), sorted({*clusters})
    middle = sum(found) / n
    residues = [sum(d - middle for d, c in zip(found, clusters, strict=True) if c == name) for name in names]
    k = len(names)
    if k < 2 or not all(map(math.isfinite, found)):
        return (middle, math.nan) if all(map(math.isfinite, found)) else (math.nan, math.nan)
    error = math.sqrt(k / (k - 1) * sum(r * r for r in residues)) / n
    return middle, STUDENT[min(k - 1, len(STUDENT)) - 1] * error

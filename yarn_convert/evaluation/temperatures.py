"""Perplexity against the attention's temperature (YaRN, arXiv 2309.00071, Section 3.4 and Appendix A.2, Figures 2–4): at a fixed s, over
a grid of √(1/t), the multiplier of cos and sin; by segment of position, and which value serves each document best. YaRN's own is
0.1·ln s + 1 (Eq. 22), which is always one of the grid.

Each document is truncated at `window` tokens, one pass for each value; a segment's perplexity is that of the tokens at its positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..compute.record import SHORTEST
from ..errors import UsageError
from ..hearing import SayStage, heard, shares
from ..options import TemperatureOptions
from ..rope import temperature as recommended_at
from .journal import ResultJournal
from .subjects import Meter, Subject, check_torch, line_of
from .windows import NOTHING, Losses, Pass, document_error

STEP = 0.05


@heard
def measure_temperature(say: SayStage, models: Sequence[str], wish: TemperatureOptions, journal: ResultJournal) -> dict[str, Any]:
    """Measure every multiplier on all models; the result is JSON."""
    s = wish.settings
    check_torch(s)
    if set(s.methods) - {"yarn"} or s.recipes:
        raise UsageError("the temperature belongs to the method yarn", "leave out --method and --recipe")
    if wish.segments < 1 or min(wish.multipliers, default=1.0) <= 0:
        raise UsageError("multipliers and segments must be above 0", "--multipliers 1,1.1,1.2 --segments 4")
    subjects = [Subject(m, s, journal) for m in models]
    rows, described = [], []
    for subject, told in zip(subjects, shares(say, [subject.parameters for subject in subjects]), strict=True):
        yarn = line_of(subject.c, s, "yarn")
        if subject.c.family.on_logits:
            raise UsageError(
                f"{subject.c.family.model_type} turns a part of each head only: no multiplier of cos and sin is its temperature",
                "evaluate perplexity measures yarn with the one it has",
            )
        factor = yarn.rope.number("factor")
        own = recommended_at(factor)
        grid = sorted({own, *(wish.multipliers or (own + k * STEP for k in range(-3, 4) if own + k * STEP > 0))})
        lines = [line_of(subject.c, s, "yarn", attention_factor=m) for m in grid]
        window = (yarn.context or 0) if wish.window is None else wish.window
        if window < SHORTEST:
            raise UsageError(f"the window must be at least {SHORTEST} tokens, not {window}", "--window 8k")
        documents = subject.documents(window)
        n = subject.room(window)
        spans = tuple(subject.segments(n, wish.segments))
        meter = Meter(f"temperature of {subject.name}", [n] * len(grid) * len(documents), told)
        found = [[subject.run(line, d, Pass(0, n, spans), meter.begin(n)) for d in documents] for line in lines]
        points = [_point(m, spans, by_document) for m, by_document in zip(grid, found, strict=True)]
        best = [min(points, key=lambda p, i=i: _finite(p["by_document"][i]))["multiplier"] for i in range(len(documents))]  # type: ignore[misc]
        rows.append(
            {
                "model": subject.name, **yarn.as_json(), "factor": factor, "original_context": subject.original, "recommended": own,
                "best": min(points, key=lambda p: _finite(p["perplexity"]))["multiplier"], "best_by_document": best, "window": window,
                "segments": spans, "points": points,
            }
        )  # fmt: skip
        described.append(subject.described(documents))
        subject.release()
    return {"measure": "temperature", "models": described, "rows": rows}


def _finite(perplexity: float) -> float:
    """For a comparison, in which NaN would be the least wherever it stands first."""
    return math.inf if math.isnan(perplexity) else perplexity


def _point(multiplier: float, spans: Sequence[tuple[int, int]], by_document: Sequence[dict[tuple[int, int], Losses]]) -> dict[str, Any]:
    whole = [sum(d.values(), NOTHING) for d in by_document]
    total = sum(whole, NOTHING)
    return {
        "multiplier": multiplier,
        "perplexity": total.perplexity,
        "standard_error": total.standard_error,
        "document_error": document_error(whole),
        "by_segment": [sum((d[span] for d in by_document), NOTHING).perplexity for span in spans],
        "by_document": [d.perplexity for d in whole],
        "by_document_and_segment": [[d[span].perplexity for span in spans] for d in by_document],
    }

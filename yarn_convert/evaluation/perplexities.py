"""Perplexity by context window (YaRN, arXiv 2309.00071, Sections 4.3.1 and 3.3: Tables 1, 2, 4 and 6, Figures 1, 5 and 6).

perplexity = exp(Σ −ln p(token | the tokens before it in its window) / number of tokens counted), over all documents: every token has
one weight. Which tokens a window counts is in `windows`. Without `tokens` each document is truncated at each window, which is then
one pass; with it a window slides by `stride` over the first `tokens` of each document, so that every window counts the same tokens.
A dynamic method takes its s from each window's length.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..compute.documents import TokenizedText
from ..errors import UsageError
from ..hearing import SayStage, heard
from ..options import PerplexityOptions
from .journal import ResultJournal
from .subjects import Meter, Subject, lines_of, spread
from .windows import NOTHING, Losses, Span, Window, document_error, mean_of_window_means

STRIDE = 256


@heard
def measure_perplexity(say: SayStage, models: Sequence[str], wish: PerplexityOptions, journal: ResultJournal) -> dict[str, Any]:
    """Measure all recipes of all models; the result is JSON. Raises UsageError and InputError before anything long begins."""
    s = wish.settings
    if wish.stride is not None and wish.tokens is None:
        raise UsageError("--stride moves a window over --tokens, and there is no --tokens", "--tokens 64k, or leave out --stride")
    stride = STRIDE if wish.stride is None else wish.stride
    if not wish.windows:
        raise UsageError("no window to measure", "--windows 2048,4096,8192")
    widths = tuple(sorted(set(wish.windows)))
    if wish.tokens is not None and wish.tokens < widths[-1]:
        raise UsageError(f"no window of {widths[-1]:,} tokens slides over {wish.tokens:,}", "more --tokens, or shorter --windows")
    opened = [(subject, lines_of(subject.c, s, attention=True)) for subject in (Subject(m, s, journal) for m in models)]
    subjects = [(subject, lines, subject.documents(max(wish.tokens or 0, *widths))) for subject, lines in opened]
    compared = [_same_tokens(subjects[0], other) for other in subjects]
    rows: list[dict[str, Any]] = []
    described = []
    first: dict[int, float] = {}
    for (subject, lines, documents), same, told in zip(subjects, compared, spread(say, opened), strict=True):
        windows = _windows(subject, widths, wish.tokens, stride)
        every = [w for width in widths for w in windows[width]]
        work = [(line, i, p) for line in lines for i in range(len(documents)) for p in subject.passes(line, every)]
        meter = Meter(f"perplexity of {subject.name}", [p.end - p.begin for *_, p in work], told)
        found: dict[tuple[str, int, int], dict[Span, Losses]] = defaultdict(dict)
        for line, i, p in work:
            progress = meter.begin(p.end - p.begin)
            found[line.label, i, p.begin] |= subject.run(line, documents[i], p, progress)
        for line in lines:
            points = []
            for width in widths:
                by_document = [[found[line.label, i, w.begin][w.first, w.end] for w in windows[width]] for i in range(len(documents))]
                points.append(_point(width, by_document, first if same else None))
            rows.append({**subject.row(line), "points": points})
        described.append(subject.described(documents, same_tokens=same))
        subject.release()
    return {"measure": "perplexity", "windows": widths, "tokens": wish.tokens, "stride": stride, "models": described, "rows": rows}


def _same_tokens(a: tuple[Subject, Any, list[TokenizedText]], b: tuple[Subject, Any, list[TokenizedText]]) -> bool:
    """Whether two models read the same tokens: perplexities over others do not compare."""
    same = (np.array_equal(x.ids, y.ids) for x, y in zip(a[2], b[2], strict=False))
    return a[0].lead == b[0].lead and len(a[2]) == len(b[2]) and all(same)


def _windows(subject: Subject, widths: Sequence[int], length: int | None, stride: int) -> dict[int, list[Window]]:
    """The windows over each document, by their width: sliding over so many tokens, or one where it is truncated."""
    room = {width: subject.room(width) for width in widths}
    return {width: subject.sliding(length or room[width], width, stride if length else room[width]) for width in widths}


def _point(width: int, by_document: Sequence[Sequence[Losses]], first: dict[int, float] | None) -> dict[str, Any]:
    """One point of a line, of the windows of each document; `first` keeps the first line's perplexities, against which the change is
    counted; None: no comparison."""
    windows = [w for document in by_document for w in document]
    total = sum(windows, NOTHING)
    base = math.nan if first is None else first.setdefault(width, total.perplexity)
    return {
        "window": width,
        "documents": len(by_document),
        "windows": len(windows),
        "tokens": total.tokens,
        "loss": total.mean,
        "perplexity": total.perplexity,
        "standard_error": total.standard_error,
        "document_error": document_error([sum(d, NOTHING) for d in by_document]),
        "mean_of_window_means": mean_of_window_means(windows),
        "change": total.perplexity / base - 1,  # NaN where nothing is compared
    }

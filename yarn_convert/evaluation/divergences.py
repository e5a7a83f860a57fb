"""How far the distributions of a model are from those of a base, position by position: what a quantization has cost, or a recipe.

Documents are truncated at the window: one pass of the base, which keeps hidden states alone, then one of each recipe, whose logits are
compared some rows at a time (`compute.distributions`). All tokens of a document are counted, in segments of position, of which L is a
boundary; llama.cpp's `kl_divergence` (tools/perplexity/perplexity.cpp) counts the second half of each window. Mean, median,
percentiles (between neighbours, linearly), RMS of Δp and the ratio of perplexities are its own, errors by the spread of the tokens too.

The base is compared with where it has a context of its own: beyond, KL would count as a cost what a longer context is worth. So the
base of a quantization is the extended model, and that of a recipe on short texts the model before it, within its L.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compute.distributions import COLUMNS, divergences
from ..compute.documents import TokenizedText
from ..compute.scorer import Ids
from ..errors import UsageError
from ..hearing import SayStage, heard, shares
from ..options import DivergenceOptions
from .journal import ResultJournal
from .subjects import Line, Meter, Subject, check_same_tokens, line_named, lines_of
from .windows import NOTHING, Losses, Span, exp, mean_document_error, segments

WINDOW = 2048  # tokens, where nothing is said
Values = NDArray[np.float64]  # float64[tokens, COLUMNS]


@heard
def measure_divergence(say: SayStage, models: Sequence[str], wish: DivergenceOptions, journal: ResultJournal) -> dict[str, Any]:
    """Compare all recipes of all models with the base; the result is JSON. Raises UsageError and InputError before anything long begins."""
    s = wish.settings
    base = Subject(wish.base or models[0], replace(s, runtime="transformers", llama_lib=None, methods=(), recipes=()), journal)
    own = line_named(base.c, base.settings, wish.base_method, wish.base_recipe)
    window = _window(wish, base, own)
    texts = base.documents(window)
    lead = len(base.lead)
    opened = [Subject(m, s, journal) for m in _compared(models, wish)]
    subjects = [(x, lines_of(x.c, s, attention=True), _documents(x, base, texts, window)) for x in opened]
    ids = [np.concatenate([np.asarray(base.lead, np.int64), d.ids[: window - lead]]) for d in texts]
    spans = _spans(window - lead, wish.segments, 0 if lead else 1, base.counted(own) - lead)
    each = shares(say, [base.parameters + len(lines) * x.parameters for x, lines, _ in subjects])
    rows, described = [], []
    for (subject, lines, documents), told in zip(subjects, each, strict=True):
        if s.runtime == "transformers" and subject.identity == base.identity:
            subject.lender = base
        meter = Meter(f"divergence of {subject.name}", [window for _ in ids for _ in (base, *lines)], told)
        found = [_values(base, own, subject, lines, text, meter) for text in ids]
        for i, line in enumerate(lines):
            by_document = [values[i] for values in found]
            whole, points = _point(by_document, spans, spans), [_point(by_document, spans, [x]) for x in spans]
            rows.append(subject.row(line) | {"whole": whole, "points": points})
        described.append(subject.described(documents))
        subject.release()
    of_base = base.row(own) | {"ran": base.described(texts)}
    return {"measure": "divergence", "window": window, "segments": spans, "base": of_base, "models": described, "rows": rows}


def _compared(models: Sequence[str], wish: DivergenceOptions) -> Sequence[str]:
    """The models that are compared: not the base with itself, where it is the first of them."""
    changed = wish.settings.methods or wish.settings.recipes or wish.base or wish.base_method or wish.base_recipe
    found = models if changed else models[1:]
    if not found:
        raise UsageError(f"{models[0]} is compared with nothing", "--base MODEL, or --method none,yarn:4")
    return found


def _window(wish: DivergenceOptions, base: Subject, own: Line) -> int:
    """Tokens of each document, BOS included. UsageError for a window beyond the base's context."""
    reach = math.inf if own.context is None else own.context
    window = int(min(WINDOW, reach)) if wish.window is None else wish.window
    if window < 2:
        raise UsageError(f"a window of {window} tokens predicts nothing", "--window 2k")
    if window > reach:
        says = f"the base {base.name} has a context of {reach:,} tokens: beyond it nothing can be compared with it, to {window:,}"
        raise UsageError(says, "a shorter --window; or a longer base, as --base-method yarn:4 makes one")
    return window


def _documents(subject: Subject, base: Subject, texts: Sequence[TokenizedText], window: int) -> list[TokenizedText]:
    """The model's documents. UsageError where it has other tokens than the base."""
    n, of_base = (x.c.hparams["vocab_size"] for x in (subject, base))
    if n != of_base:
        says = f"{subject.name} has a vocabulary of {n:,} tokens, and {base.name} one of {of_base:,}: their distributions do not compare"
        raise UsageError(says, "--base with the same vocabulary")
    found = subject.documents(window)
    check_same_tokens(subject, found, base, [t.ids[:window] for t in texts], "--base")
    return found


def _spans(n: int, count: int, first: int, original: int) -> list[Span]:
    """The segments of the tokens first … n−1, of which one ends at `original`, if that is among them."""
    edges = sorted({first, n, original, *(edge for span in segments(n, count, first) for edge in span)})
    inside = [edge for edge in edges if first <= edge <= n]
    return list(pairwise(inside))


def _values(base: Subject, own: Line, subject: Subject, lines: Sequence[Line], ids: Ids, meter: Meter) -> list[Values]:
    """Of a text, what each line makes of it. The base runs where the journal does not have all of it."""
    first, n = max(1, len(base.lead)), len(ids)
    of_base = base.key(own, ids, lengths=(n, n))
    keys = [subject.key(line, ids, "divergence", of_base, lengths=(n, n)) for line in lines]
    known = [subject.journal.get(key) for key in keys]
    progress, predictions = meter.begin(n), None
    if None in known:
        with base.timed(n):
            predictions = base.predictions(own, ids, first, progress)

    def compute(line: Line, progress: Callable[[float], None]) -> str:
        assert predictions is not None
        with subject.timed(n):
            values = divergences(predictions, lambda take: subject.logits(line, ids, first, take, progress))
        return base64.b64encode(values.astype("<f8").tobytes()).decode()

    found = []
    for line, key, kept in zip(lines, keys, known, strict=True):
        progress = meter.begin(n)
        if kept is None:
            kept = compute(line, progress)
            subject.journal.put(key, kept)
        found.append(np.frombuffer(base64.b64decode(kept), "<f8").reshape(-1, COLUMNS))
    return found


def _point(by_document: Sequence[Values], spans: Sequence[Span], counted: Sequence[Span]) -> dict[str, Any]:
    """Over the tokens of neighbouring spans; those of `spans` are all that there are."""
    begin, end, first = counted[0][0], counted[-1][1], spans[0][0]
    parts = [values[begin - first : end - first] for values in by_document]
    divergence, of_base, losses, same = (list(x) for x in zip(*(part.T for part in parts), strict=True))
    change = [np.exp(-x) - np.exp(-y) for x, y in zip(losses, of_base, strict=True)]
    more = _estimate([x - y for x, y in zip(losses, of_base, strict=True)])
    squares = _estimate([x**2 for x in change])
    ratio, rms = exp(more["value"]), math.sqrt(squares["value"])
    median, p99, p999, maximum = (float(x) for x in np.quantile(np.concatenate(divergence), (0.5, 0.99, 0.999, 1)))
    return {
        "begin": begin, "end": end, "tokens": sum(map(len, parts)), "divergence": _estimate(divergence),
        "median": median, "percentile_99": p99, "percentile_999": p999, "maximum": maximum,
        "rms_change": _scaled(squares, rms, 0.5 / rms if rms else 0.0), "same_top": _estimate(same),
        "base_perplexity": exp(_estimate(of_base)["value"]), "perplexity": exp(_estimate(losses)["value"]),
        "ratio": _scaled(more, ratio, ratio),
    }  # fmt: skip


def _estimate(by_document: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """The mean over all tokens, with its errors."""
    parts = [Losses(len(x), float(x.sum()), float(np.square(x).sum())) for x in by_document]
    total = sum(parts, NOTHING)
    return {"value": total.mean, "standard_error": total.mean_error, "document_error": mean_document_error(parts)}


def _scaled(mean: dict[str, Any], value: float, by: float) -> dict[str, Any]:
    """A function of a mean, where the errors are that times its derivative."""
    errors = {k: None if v is None else v * by for k, v in mean.items() if k != "value"}
    return {"value": value, **errors}

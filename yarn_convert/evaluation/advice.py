"""The smallest factor that keeps perplexity flat to N tokens, and what it costs on short texts.

*Flat*: each document's first N tokens are cut into `segments`, and in every segment the perplexity with all the text before as context
exceeds that of the base, which reads the very same tokens through its own window of L (windows of L sliding by L/2), by the share
`tolerance` at most. So a text that grows harder on its way is not mistaken for a model that fails, and a longer context has to be
worth at least its absence. Factors are tried from small to large, 1 (the base as it is) first; the first that is flat is advised.

The cost: the change in perplexity at L/4, L/2 and L tokens against the base, which every static factor has (YaRN, arXiv 2309.00071,
Section 3.3 says why, Table 2 shows it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..compute.documents import TokenizedText
from ..compute.record import SHORTEST
from ..conversion.extension import EXTENDING
from ..errors import UsageError
from ..hearing import SayStage, heard
from ..options import AdviseOptions
from ..rope import METHODS
from .journal import ResultJournal
from .subjects import Line, Meter, Subject, line_of
from .windows import NOTHING, Losses, Pass, Span, Window

LADDER = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
SHORT = (4, 2, 1)  # lengths L/4, L/2 and L
SEARCH = ("over", "short_weight", "windows", "judges", "trials", "budget", "seed")  # options that are of `search` alone


@heard
def measure_advice(say: SayStage, model: str, wish: AdviseOptions, journal: ResultJournal) -> dict[str, Any]:
    """Try the factors on one base; the result is JSON. `factor` is None where none is flat."""
    s = wish.settings
    check(wish)
    usual = {f.name: f.default for f in fields(wish)}
    if stray := next((name for name in SEARCH if getattr(wish, name) != usual[name]), None):
        raise UsageError(f"{stray} belongs to a search of the best recipe", "--search")
    method = wish.method.partition("+")[0]
    if method in EXTENDING and not METHODS[method].spans:
        raise UsageError(f"the method {method} has no factor to choose", "--method yarn")
    if not all(1 < f < math.inf for f in wish.factors):
        raise UsageError("factors must be above 1; the base itself is always tried", "--factor 2,4,8")
    subject = Subject(model, s, journal)
    n, original = wish.context, subject.original
    check_window(original)
    ratio = n / original
    factors = sorted({f for f in (wish.factors or (ratio * step for step in LADDER)) if f > 1})
    base = line_of(subject.c, s, "none")
    lines = [(1.0, base), *((f, line_of(subject.c, s, wish.method, f)) for f in factors)]
    documents = subject.documents(max(n, original))
    tokens, own = subject.room(n), min(original, n)
    spans = subject.segments(tokens, wish.segments)
    control = [cut(w.begin, w.end, w.first, spans) for w in subject.sliding(tokens, own, max(1, own // 2))]
    short = [(spans[0][0], subject.room(original // k)) for k in SHORT]
    plans = [(factor, line, passes_of(subject, line, tokens, spans, short)) for factor, line in lines]
    lengths = [p.end - p.begin for p in (*control, *(p for *_, plan in plans for p in plan))] * len(documents)
    meter = Meter(f"advice for {subject.name}", lengths, say)
    expected = control_of(subject, base, documents, control, spans, meter)
    tried: list[dict[str, Any]] = []
    flat = False
    for factor, line, plan in plans:
        found = [_sums([subject.run(line, d, p, meter.begin(p.end - p.begin)) for d in documents]) for p in plan]
        by_segment = [found[0][span] for span in spans]
        of_short = {span: losses for f in found[1:] or found for span, losses in f.items()}
        costs = [of_short[span] for span in short]
        tried.append(_point(factor, line, by_segment, expected, short, costs, tried[0]["short"] if tried else None))
        flat = all(x <= wish.tolerance for x in tried[-1]["excess"])  # NaN is not
        if flat:
            break
    return {
        "measure": "advise", "context": n, "method": wish.method, "original_context": original, "tolerance": wish.tolerance,
        "segments": spans, "control": [c.perplexity for c in expected], "factor": tried[-1]["factor"] if flat else None, "tried": tried,
        "models": [subject.described(documents)],
    }  # fmt: skip


def check(wish: AdviseOptions) -> None:
    """Raise UsageError for what no advice can be about."""
    if wish.settings.runtime != "transformers" or wish.settings.methods or wish.settings.recipes:
        raise UsageError("advice is about one method on a base, in torch", "--method yarn")
    if not 0 <= wish.tolerance < math.inf or wish.segments < 1:
        raise UsageError("tolerance and segments must not be below 0 and 1", "--tolerance 0.02 --segments 8")
    if wish.context < SHORTEST:
        raise UsageError(f"--context must be at least {SHORTEST} tokens, not {wish.context}", "--context 32k")


def check_window(original: int) -> None:
    """Raise UsageError for an L of which no part is a text."""
    if original < SHORT[0] * SHORTEST:
        raise UsageError(f"texts of less than {original} tokens are too short to say what a factor costs", "--original-context sets L")


def passes_of(subject: Subject, line: Line, n: int, spans: Sequence[Span], short: Sequence[Span]) -> list[Pass]:
    """One over the first `n` tokens by segment and over short texts; where the length says what is computed, others for these."""
    if line.static:
        return [Pass(0, max(n, *(b for _, b in short)), (*spans, *short))]
    return [Pass(0, n, tuple(spans)), *subject.passes(line, [Window(0, b, a) for a, b in short])]


def cut(begin: int, end: int, first: int, spans: Sequence[Span]) -> Pass:
    """A control window that counts its tokens by segment."""
    parts = [(max(first, a), min(end, b)) for a, b in spans]
    return Pass(begin, end, tuple((a, b) for a, b in parts if a < b))


def control_of(
    subject: Subject, base: Line, documents: Sequence[TokenizedText], control: Sequence[Pass], spans: Sequence[Span], meter: Meter
) -> list[Losses]:
    """The base's losses in each segment through its own window."""
    total = dict.fromkeys(spans, NOTHING)
    for d in documents:
        for p in control:
            for (a, _), losses in subject.run(base, d, p, meter.begin(p.end - p.begin)).items():
                span = next(s for s in spans if s[0] <= a < s[1])
                total[span] = total[span] + losses
    return list(total.values())


def _sums(found: Sequence[dict[Span, Losses]]) -> dict[Span, Losses]:
    return {span: sum((f[span] for f in found), NOTHING) for span in found[0]}


def _point(
    factor: float,
    line: Line,
    by_segment: Sequence[Losses],
    expected: Sequence[Losses],
    short: Sequence[Span],
    found: Sequence[Losses],
    first: Any,
) -> dict[str, Any]:
    """`excess`: by how much each segment's perplexity is above the control's, as a share; `short`: perplexity and its change at short
    lengths, against those of the base in `first`."""
    costs = [{"tokens": b, "perplexity": losses.perplexity} for (_, b), losses in zip(short, found, strict=True)]
    for cost, was in zip(costs, first or costs, strict=True):
        cost["change"] = cost["perplexity"] / was["perplexity"] - 1
    return {
        "factor": factor,
        **line.as_json(),
        "by_segment": [p.perplexity for p in by_segment],
        "excess": [p.perplexity / e.perplexity - 1 for p, e in zip(by_segment, expected, strict=True)],
        "short": costs,
    }

"""The figures and tables of the YaRN paper (arXiv 2309.00071v2) that a measure can make anew, each as the paper lays it out: the same axes,
the same columns. Axes and limits are those of the paper's pictures, read there; what a result does not know, as how many tokens a model was
trained on, has no column.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compute.tables import columns
from ..errors import UsageError, no_such
from .choices import Temperature, TemperatureRow
from .found import Found, Passkey, PasskeyRow, Perplexity, PerplexityRow
from .text import figure, grouped, labels_of, model_lines

Body = tuple[list[str], list[list[str]]]
FOUND = 0.8  # accuracy from which on a length counts as one where passkeys are found (Table 5)


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a figure; `spread` is what is shaded on both sides of y."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    spread: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot: of a model where each has its own."""

    title: str
    curves: Sequence[Curve]


@dataclass(frozen=True, slots=True)
class Shown:
    """One figure or table: what it shows and of which measure. A figure has `panels`, labels of its axes and, in `cut`, the end of its y
    axis over the least value, where curves leave it; a table `rows`."""

    measure: str
    says: str
    x: str = ""
    y: str = ""
    cut: float | None = None
    panels: Callable[[Any], list[Panel]] | None = None
    rows: Callable[[Any], Body] | None = None


def shown_of(name: str | None, measure: str) -> Shown | None:
    """The row of a name that is asked of a measure; None for no name. UsageError for one that this measure does not have."""
    if name is None:
        return None
    known = [n for n, row in SHOWN.items() if row.measure == measure]
    if not known:
        others = ", ".join(dict.fromkeys(row.measure for row in SHOWN.values()))
        raise UsageError(f"--as {name}: no figure or table of the paper shows what this measures", f"those of {others} can be made")
    if name not in known:
        raise no_such("figure or table of this measure", name, known)
    return SHOWN[name]


def lines(result: Found, shown: Shown, room: int | None = None) -> list[str]:
    """A result for a terminal, its table in `room` columns: of a figure its numbers."""
    return [*model_lines(result), shown.says, *columns(*table_of(result, shown), room)]


def table_of(result: Found, shown: Shown) -> Body:
    """(head, rows): the paper's columns, or a figure's numbers, one row for each x of each panel."""
    if shown.rows:
        return shown.rows(result)
    head, body = [shown.x], list[list[str]]()
    for panel in shown.panels(result) if shown.panels else ():
        head = [shown.x, *(curve.label for curve in panel.curves)]
        body += [[panel.title, *("" for _ in panel.curves)]] if panel.title else []
        for x in sorted({x for curve in panel.curves for x in curve.x}):
            body.append([f"{x:,.6g}", *(_cell(curve, x) for curve in panel.curves)])
    return head, body


def _cell(curve: Curve, x: float) -> str:
    if x not in curve.x:
        return "–"
    i = list(curve.x).index(x)
    return figure(curve.y[i]) + (f" ± {figure(curve.spread[i], '.2g')}" if curve.spread else "")


# -- figures ----------------------------------------------------------------------------------------------------------


def _by_window(result: Perplexity) -> list[Panel]:
    """Figures 1, 5 and 6: perplexity by context window, one curve a model or method."""
    rows = zip(labels_of(result), result.rows, strict=True)
    return [Panel("", [Curve(label, [p.window for p in row.points], [p.perplexity for p in row.points]) for label, row in rows])]


def _spread(result: Temperature) -> list[Panel]:
    """Figure 2: the mean of the documents' perplexities, and their standard deviation."""
    found = []
    for row in result.rows:
        values = [_finite(p.by_document) for p in row.points]
        x, mean, deviation = _grid(row), [float(v.mean()) for v in values], [float(v.std()) for v in values]
        found.append(Panel(_title(row), [Curve("mean of the documents", x, mean, deviation)]))
    return found


def _changes(result: Temperature) -> list[Panel]:
    """Figure 3: of each segment the documents' mean change, in per cent, from the grid's least 1/√t."""
    found = []
    for row in result.rows:
        values = [_finite(p.by_document_and_segment) for p in row.points]  # [documents, segments] of each point
        change = [100 * (v / values[0] - 1).mean(axis=0) for v in values]
        found.append(Panel(_title(row), [Curve(name, _grid(row), [float(c[i]) for c in change]) for i, name in enumerate(_segments(row))]))
    return found


def _counts(result: Temperature) -> list[Panel]:
    """Figure 4: in how many documents a segment has its least perplexity at each 1/√t; where it has it in none, no point."""
    found = []
    for row in result.rows:
        values = np.stack([_finite(p.by_document_and_segment) for p in row.points])  # [points, documents, segments]
        best, grid, curves = np.nan_to_num(values, nan=np.inf).argmin(axis=0), _grid(row), []
        for i, name in enumerate(_segments(row)):
            count = Counter(best[:, i].tolist())
            at = sorted(count)
            curves.append(Curve(name, [grid[k] for k in at], [float(count[k]) for k in at]))
        found.append(Panel(_title(row), curves))
    return found


def _finite(values: Any) -> Any:
    """float64, NaN for what was not finite."""
    return np.array(values, dtype=object).astype(np.float64)


def _grid(row: TemperatureRow) -> list[float]:
    return [p.multiplier for p in row.points]


def _title(row: TemperatureRow) -> str:
    return f"{row.model}, s = {row.factor:g}"


def _segments(row: TemperatureRow) -> list[str]:
    return [f"{a} - {b}" for a, b in row.segments]


# -- tables -----------------------------------------------------------------------------------------------------------


def _perplexities(named: bool, bound: float = math.inf) -> Callable[[Perplexity], Body]:
    """Tables 1, 2, 4 and 6: one row a model or method, one column a window; perplexities above `bound` as the power of ten that they
    exceed. `named`: with the models' names."""

    def rows(result: Perplexity) -> Body:
        windows = [grouped(w) for w in result.windows] if len(result.windows) > 1 else ["Perplexity"]
        head = [*(["Model name"] if named else []), "Extension method", "Context window", *windows]
        body = []
        for label, row in zip(labels_of(result), result.rows, strict=True):
            own = _method(row) if len(result.models) == 1 else label
            first = [row.model, _method(row)] if named else [own]
            body.append([*first, _context(row), *(_two(p.perplexity, bound) for p in row.points)])
        return head, body

    return rows


def _two(x: float | None, bound: float) -> str:
    if x is None:
        return "–"
    return f"> 10^{math.floor(math.log10(x))}" if x > bound else f"{x:.2f}" if x < 10 else f"{x:.1f}"


def _method(row: PerplexityRow | PasskeyRow) -> str:
    """With its factor, or of a method of attention its window."""
    if row.attention:
        return f"{row.method} (w = {row.attention.window:,})"
    s = _factor(row)
    return row.method if s is None else f"{row.method} (s = {s:g})"


def _factor(row: PerplexityRow | PasskeyRow) -> float | None:
    """s = L'/L, None where nothing is extended, or by the length of the text."""
    s = None if row.context is None else row.context / row.original_context
    return s if s is not None and s > 1 else None


def _context(row: PerplexityRow | PasskeyRow) -> str:
    return "–" if row.context is None else grouped(row.context)


def _passkeys(result: Passkey) -> Body:
    """Table 5: the longest length at which 80 % of the keys were found, and the mean accuracy over all lengths up to it."""
    head = ["Model name", "Scaling factor (s)", "Context window", "Extension method", "Passkey context", "Passkey accuracy"]
    body = []
    for row in result.rows:
        longest = max((p.length for p in row.points if p.accuracy >= FOUND), default=0)
        within = [p.accuracy for p in row.points if p.length <= longest]
        s = _factor(row)
        last = [grouped(longest), f"{sum(within) / len(within):.1%}"] if within else ["–", "–"]
        body.append([row.model, "–" if s is None else f"{s:g}", _context(row), row.method, *last])
    return head, body


WINDOWS = ("Context Window", "Perplexity (lower is better)")
SHOWN: Mapping[str, Shown] = {
    "figure-1": Shown("perplexity", "Figure 1: perplexity by context window", *WINDOWS, 3.8 / 2.2, _by_window),
    "figure-2": Shown("temperature", "Figure 2: perplexity by scaling, ± one standard deviation", "1/√t", "perplexity", None, _spread),
    "figure-3": Shown(
        "temperature", "Figure 3: mean change of perplexity in %, by segment", "1/√t", "Perplexity change percentage", None, _changes
    ),
    "figure-4": Shown("temperature", "Figure 4: documents with the least perplexity, by segment", "1/√t", "Counts", None, _counts),
    "figure-5": Shown(
        "perplexity", "Figure 5: dynamic methods by context length", "Context length (# of tokens)", "Perplexity", 5.73 / 3.9, _by_window
    ),
    "figure-6": Shown("perplexity", "Figure 6: perplexity by context window", *WINDOWS, 3.4 / 2.2, _by_window),
    "table-1": Shown("perplexity", "Table 1: perplexity by evaluation context window size", rows=_perplexities(named=False)),
    "table-2": Shown("perplexity", "Table 2: perplexity by evaluation context window size", rows=_perplexities(True, 10)),
    "table-4": Shown("perplexity", "Table 4: perplexity with a fixed context window size", rows=_perplexities(True)),
    "table-5": Shown("passkey", "Table 5: passkey retrieval", rows=_passkeys),
    "table-6": Shown("perplexity", "Table 6: perplexity by evaluation context window size", rows=_perplexities(True, 100)),
}

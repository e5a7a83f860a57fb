"""The result of a measure as one HTML page that needs nothing else: a plot as inline SVG, the tables, how it was made."""

from __future__ import annotations

import glob
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..compute.pages import BLUE, INK, STYLE, check_place, check_report, packages, page, svg, write_report
from ..errors import UsageError
from .choices import Advice, Search, Temperature
from .found import Divergence, Found, LongPPL, Needle, Passkey, Perplexity, Ruler
from .paper import Body, Panel, Shown, table_of
from .text import (
    advised_line,
    base_line,
    divergence_table,
    error_of,
    figure,
    judged_table,
    labels_of,
    longppl_table,
    needle_table,
    percent,
    ruler_table,
    split_line,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)  # Okabe and Ito's
MARKS = "osD^vPX"
TITLES = {
    "perplexity": "Perplexity by context window",
    "passkey": "Passkey retrieval",
    "needle": "A needle in a haystack",
    "ruler": "RULER",
    "longppl": "LongPPL",
    "divergence": "Divergence from the base",
    "temperature": "The attention's temperature",
    "advise": "The smallest factor that serves",
    "search": "The best recipe",
}
STEEP = 4.0  # the largest perplexity over the smallest, above which the axis is logarithmic


FORMATS = (".svg", ".png", ".pdf")


def check_places(report: Path | None, plot: Path | None, journal: Path | None, force: bool, recipe: Path | None = None) -> None:
    """Raise before a long run what would stop its outputs: OutputError for a place, UsageError for a format or missing packages."""
    places = [path.resolve() for path in (report, plot, journal, recipe) if path]
    if len(set(places)) < len(places):
        raise UsageError("--report, --plot, --journal and --recipe-out name the same file twice", "give each a name of its own")
    if plot and plot.suffix not in FORMATS:
        raise UsageError(f"--plot {plot.name} is no format of a plot", f"a name with {', '.join(FORMATS)}")
    for path in (report, plot, *(_numbered(plot) if plot else ())):
        if path:
            check_report(path, force)
    if recipe:
        check_place(recipe, force)


def _numbered(plot: Path) -> list[Path]:
    """The files that a result with several plots would replace."""
    return sorted(
        path for path in plot.parent.glob(f"{glob.escape(plot.stem)}-*{plot.suffix}") if path.stem[len(plot.stem) + 1 :].isdigit()
    )


def save_plots(result: Found, path: Path, force: bool, shown: Shown | None = None) -> None:
    """The result's plot, or that of a figure of the paper; several as NAME-1.svg, NAME-2.svg. OutputError for a place that is taken."""
    _, matplotlib = packages()
    with matplotlib.style.context(["default", STYLE]):
        plots = _plots(result, shown)
        places = [path] if len(plots) == 1 else [path.with_name(f"{path.stem}-{i + 1}{path.suffix}") for i in range(len(plots))]
        for place in places:
            check_report(place, force)
        for place, (_, figure) in zip(places, plots, strict=True):
            data = io.BytesIO()
            figure.savefig(data, format=path.suffix[1:], facecolor="white", transparent=False, dpi=150)
            write_report(place, data.getvalue())


def html_report(result: Found, command: str, shown: Shown | None = None) -> str:
    """The page; `command` is the command line that made it, `shown` a figure or table of the paper. UsageError without the packages."""
    _, matplotlib = packages()
    measure = result.measure
    with matplotlib.style.context(["default", STYLE]):
        plots = [svg(figure, f"plot-{i}", f"{TITLES[measure]}, {label}") for i, (label, figure) in enumerate(_plots(result, shown))]
    head, body = table_of(result, shown) if shown else TABLES[measure](result)
    return page(
        "evaluation.html.j2", r=result.to_dict(), title=TITLES[measure], command=command, plots=plots, head=head, body=body,
        explanation=f"{shown.says}, laid out as in arXiv 2309.00071." if shown else EXPLANATIONS[measure],
        said=_said(result),
    )  # fmt: skip


def _said(result: Found) -> list[str]:
    """What stands above all else."""
    if isinstance(result, Divergence):
        return [base_line(result)]
    return [advised_line(result), split_line(result)] if isinstance(result, Search) else []


EXPLANATIONS = {
    "perplexity": "exp of the mean loss over every token counted; lower is better. The dashed line is the original window L. Error bars: "
    "one standard error by the spread of the tokens' losses, or of the documents where there are several.",
    "passkey": "Share of prompts whose five-digit number was repeated, by length of the prompt and depth of the number; a dash where no "
    "trial fell.",
    "needle": "Share of prompts whose number was repeated, by length of the prompt and depth of the number in the haystack, and "
    "Wilson's interval of 95 %.",
    "ruler": "Mean of the tasks' scores, in per cent, by length of the prompt; each by lm-evaluation-harness's own metric. A length is "
    "effective while the mean is not below the dashed line, at any length up to it.",
    "longppl": "Perplexity over the tokens that the evaluator predicts from the whole text and not from a short context; lower is better. "
    "Error bars: one standard error by the spread of the tokens' losses.",
    "divergence": "KL divergence of each token's distribution from the base's, in nats, by segment of position: mean, with one standard "
    "error by the documents, or by the spread of the tokens where there is one, and dotted the 99th percentile. The dashed line is the "
    "base's original window L.",
    "temperature": "Perplexity against √(1/t), the multiplier of cos and sin, over the whole window and by segment of position; the dashed "
    "line is the recommended 0.1·ln s + 1.",
    "advise": "By how much the perplexity of each segment is above what the base reaches on the same tokens through its own window L. A "
    "factor is flat when all its segments are below the dashed line.",
    "search": "By how much each pair's frequency is divided. The table has perplexities on texts that were not searched on: short ones "
    "with their change against the base, those beyond its window, and the mean of logarithms, weighted, that the search made least. "
    "Errors are of differences over the same texts: chance exceeds them once in twenty.",
}


# -- tables: (head, rows) ---------------------------------------------------------------------------------------------


def _perplexity_table(result: Perplexity) -> Body:
    head = ["", "window", "perplexity", "± tokens", "± documents", "mean of window means", "change", "tokens", "windows"]
    body = []
    for label, row in zip(labels_of(result), result.rows, strict=True):
        for p in row.points:
            numbers = map(figure, (p.perplexity, p.standard_error, p.document_error, p.mean_of_window_means))
            body.append([label, f"{p.window:,}", *numbers, percent(p.change), f"{p.tokens:,}", f"{p.windows:,}"])
    return head, body


def _passkey_table(result: Passkey) -> Body:
    body = [
        [label, *(f"{p.accuracy:.0%} of {p.trials}" for p in row.points)] for label, row in zip(labels_of(result), result.rows, strict=True)
    ]
    return ["", *(f"{n:,} tokens" for n in result.lengths)], body


def _temperature_table(result: Temperature) -> Body:
    head, body = ["", "√(1/t)", "perplexity", "± tokens"], []
    for row in result.rows:
        head = [*head[:4], *(f"{a:,}–{b - 1:,}" for a, b in row.segments)]
        for p in row.points:
            mark = ", ".join(word for word, best in (("recommended", row.recommended), ("best", row.best)) if p.multiplier == best)
            cells = [f"{p.multiplier:.4f}", figure(p.perplexity), figure(p.standard_error), *map(figure, p.by_segment)]
            body.append([f"{row.model} {mark}".strip(), *cells])
    return head, body


def _advise_table(result: Advice) -> Body:
    head = ["factor", *(f"to {b:,}" for _, b in result.segments), *(f"cost at {c.tokens:,}" for c in result.tried[0].short)]
    body = [[f"{t.factor:.4g}", *map(percent, t.excess), *(percent(c.change) for c in t.short)] for t in result.tried]
    return head, body


# -- plots: (label, figure) -------------------------------------------------------------------------------------------


def _figure(height: float = 4.5) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    return figure, axes


def _finite(values: Iterable[float | None]) -> NDArray[np.float64]:
    """float64 with NaN, which leaves a gap, for what was not finite."""
    return np.array([np.nan if v is None else v for v in values], np.float64)


def _perplexity_plots(result: Perplexity) -> list[tuple[str, Figure]]:
    figure, axes = _figure()
    for label, row, colour, mark in zip(labels_of(result), result.rows, cycle(COLOURS), cycle(MARKS), strict=False):
        y = _finite(p.perplexity for p in row.points)
        error = _finite(p.standard_error if p.document_error is None else p.document_error for p in row.points)
        x = [p.window for p in row.points]
        axes.errorbar(x, y, np.nan_to_num(np.minimum(error, 0.9 * y)), color=colour, marker=mark, label=label, capsize=2, elinewidth=0.7)
    for original in sorted({row.original_context for row in result.rows}):
        _line(axes, original, f"L = {original:,}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(result.windows, [f"{w:,}" for w in result.windows])
    _scale(axes, [p.perplexity for row in result.rows for p in row.points])
    axes.set_xlabel("context window, tokens")
    figure.legend(loc="outside upper center", ncols=4, fontsize=9)
    return [("perplexity", figure)]


def _line(axes: Axes, x: float, label: str) -> None:
    axes.axvline(x, color=INK, linestyle="--", linewidth=0.8)
    axes.annotate(f" {label}", (x, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8)


def _scale(axes: Axes, values: Iterable[float | None]) -> None:
    known = [v for v in values if v is not None]
    axes.set_ylabel("perplexity")
    if known and max(known) > STEEP * min(known):
        _logarithmic(axes, ",.0f")


def _logarithmic(axes: Axes, form: str) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log", subs=[], nonpositive="mask")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda y, _: format(y, form))


def _passkey_plots(result: Passkey) -> list[tuple[str, Figure]]:
    found = []
    for label, row in zip(labels_of(result), result.rows, strict=True):
        cells = np.array([[(k / n if n else np.nan) for n, k in p.by_depth] for p in row.points]).T
        says = [[f"{v:.0%}" for v in line] for line in cells]
        depths = result.depths
        step = max(1, depths // 5)
        found.append((label, _heat_map(label, cells, says, result.lengths, {i: i / depths for i in range(0, depths, step)})))
    return found


def _needle_plots(result: Needle) -> list[tuple[str, Figure]]:
    found = []
    for label, row in zip(labels_of(result), result.rows, strict=True):
        grid = [[p for p in row.points if p.depth == d] for d in result.depths]
        cells = np.array([[p.accuracy for p in line] for line in grid])
        says = [[f"{p.accuracy:.0%}\n{p.low:.0%}–{p.high:.0%}" for p in line] for line in grid]
        found.append((label, _heat_map(label, cells, says, result.lengths, dict(enumerate(result.depths)))))
    return found


def _ruler_plots(result: Ruler) -> list[tuple[str, Figure]]:
    figure, axes = _figure()
    for label, row, colour, mark in zip(labels_of(result), result.rows, cycle(COLOURS), cycle(MARKS), strict=False):
        axes.plot([p.length for p in row.by_length], [p.score for p in row.by_length], color=colour, marker=mark, label=label)
    axes.axhline(result.threshold, color=INK, linestyle="--", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(result.lengths, [f"{n:,}" for n in result.lengths])
    axes.set_ylim(-3, 103)
    axes.set_xlabel("tokens")
    axes.set_ylabel("mean score, per cent")
    figure.legend(loc="outside upper center", ncols=4, fontsize=9)
    return [("RULER", figure)]


def _longppl_plots(result: LongPPL) -> list[tuple[str, Figure]]:
    figure, axes = _figure()
    x, labels = range(len(result.rows)), labels_of(result)
    for values, errors, mark, colour, name in (
        (_finite(r.longppl for r in result.rows), _finite(r.standard_error for r in result.rows), "o", BLUE, "LongPPL"),
        (_finite(r.perplexity for r in result.rows), np.zeros(len(x)), "s", COLOURS[1], "perplexity of all tokens"),
    ):
        axes.errorbar(x, values, np.nan_to_num(np.minimum(errors, 0.9 * values)), fmt=mark, color=colour, label=name, capsize=2)
    axes.set_xticks(x, labels)
    _scale(axes, [v for r in result.rows for v in (r.longppl, r.perplexity)])
    figure.legend(loc="outside upper center", ncols=2, fontsize=9)
    return [("LongPPL", figure)]


def _divergence_plots(result: Divergence) -> list[tuple[str, Figure]]:
    figure, axes = _figure()
    x = [p.end for p in result.rows[0].points]
    for label, row, colour, mark in zip(labels_of(result), result.rows, cycle(COLOURS), cycle(MARKS), strict=False):
        y, error = (_finite(of(p.divergence) for p in row.points) for of in (lambda d: d.value, error_of))
        axes.errorbar(x, y, np.nan_to_num(np.minimum(error, 0.9 * y)), color=colour, marker=mark, label=label, capsize=2, elinewidth=0.7)
        axes.plot(x, _finite(p.percentile_99 for p in row.points), color=colour, linestyle=":", linewidth=1)
    if result.base.original_context < result.window:
        _line(axes, result.base.original_context, f"L = {result.base.original_context:,}")
    _logarithmic(axes, "g")
    axes.set_xticks(x, [f"{b:,}" for b in x])
    axes.set_xlabel("end of the segment, tokens")
    axes.set_ylabel("KL divergence, nats")
    figure.legend(loc="outside upper center", ncols=4, fontsize=9)
    return [("divergence", figure)]


def _heat_map(title: str, cells: Any, says: Sequence[Sequence[str]], lengths: Sequence[int], depths: Mapping[int, float]) -> Figure:
    """Shares [depths, lengths], NaN where there is none, with what each cell says; `depths`: those that are named, by row."""
    figure, axes = _figure(max(3.2, 0.42 * len(cells)))
    axes.grid(visible=False)
    axes.imshow(cells, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for (y, x), value in np.ndenumerate(cells):
        text, light = ("–", False) if np.isnan(value) else (says[y][x], value < 0.6)
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color=INK if text == "–" else "white" if light else "black")
    axes.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths])
    axes.set_yticks(list(depths), [f"{d:.0%}" for d in depths.values()])
    axes.set_xlabel("tokens")
    axes.set_ylabel("depth")
    axes.set_title(title)
    return figure


def _temperature_plots(result: Temperature) -> list[tuple[str, Figure]]:
    found = []
    for row in result.rows:
        figure, axes = _figure()
        x = [p.multiplier for p in row.points]
        axes.plot(x, _finite(p.perplexity for p in row.points), color=INK, linewidth=2.2, label="all")
        for i, ((a, b), colour, mark) in enumerate(zip(row.segments, cycle(COLOURS[:-1]), cycle(MARKS), strict=False)):
            axes.plot(x, _finite(p.by_segment[i] for p in row.points), color=colour, marker=mark, label=f"{a:,}–{b - 1:,}")
        _line(axes, row.recommended, f"0.1·ln s + 1 = {row.recommended:.4f}")
        _scale(axes, [v for p in row.points for v in p.by_segment])
        axes.set_xlabel("√(1/t)")
        axes.set_title(f"{row.model}, s = {row.factor:g}")
        figure.legend(loc="outside upper center", ncols=5, fontsize=9)
        found.append((row.model, figure))
    return found


def _advise_plots(result: Advice) -> list[tuple[str, Figure]]:
    figure, axes = _figure()
    x = [b for _, b in result.segments]
    for t, colour, mark in zip(result.tried, cycle(COLOURS), cycle(MARKS), strict=False):
        axes.plot(x, 100 * _finite(t.excess), color=colour, marker=mark, label=f"s = {t.factor:.4g}")
    axes.axhline(100 * result.tolerance, color=INK, linestyle="--", linewidth=0.8)
    _line(axes, result.original_context, f"L = {result.original_context:,}")
    axes.set_yscale("symlog", linthresh=LINEAR)
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in _percents() if low <= tick <= high], minor=False)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:+,.0f} %")
    axes.set_xticks(x, [f"{b:,}" for b in x])
    axes.set_ylabel("perplexity above the base's" + (f"\n(logarithmic beyond {LINEAR} %)" if max(-low, high) > LINEAR else ""))
    axes.set_xlabel("end of the segment, tokens")
    figure.legend(loc="outside upper center", ncols=5, fontsize=9)
    return [("advice", figure)]


def _search_plots(result: Search) -> list[tuple[str, Figure]]:
    figure, axes = _figure()
    for row, colour, mark in zip([r for r in result.rows if r.factors], cycle(COLOURS), cycle(MARKS), strict=False):
        found = row.label == result.chosen
        axes.plot(row.factors or (), color=colour, marker=mark, label=row.label, linewidth=2.2 if found else 1.2)
    reach = result.context / result.original_context
    axes.axhline(reach, color=INK, linestyle=":", linewidth=1, label=f"linear:{reach:.4g}")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.set_xlabel("pair, from the fastest on")
    axes.set_ylabel("its frequency is divided by")
    figure.legend(loc="outside upper center", ncols=3, fontsize=9)
    return [("factor by pair", figure)]


def _paper_plot(panel: Panel, shown: Shown) -> Figure:
    """One plot of a figure of the paper: linear axes, lines without marks, cut above where the paper's is."""
    figure, axes = _figure()
    styles = ("-",) * len(COLOURS) + ("--",) * len(COLOURS)
    for curve, colour, style in zip(panel.curves, cycle(COLOURS), cycle(styles), strict=False):
        y, spread = _finite(curve.y), np.asarray(curve.spread)
        axes.plot(curve.x, y, color=colour, linestyle=style, label=curve.label)
        if curve.spread:
            axes.fill_between(curve.x, y - spread, y + spread, color=colour, alpha=0.3, linewidth=0)
    known = [v for curve in panel.curves for v in curve.y if v is not None]
    if shown.cut and known and max(known) > shown.cut * min(known):
        axes.set_ylim(0.98 * min(known), shown.cut * min(known))
    axes.set_xlabel(shown.x)
    axes.set_ylabel(shown.y)
    axes.set_title(panel.title)
    figure.legend(loc="outside upper center", ncols=4, fontsize=9)
    return figure


LINEAR = 10  # per cent of excess up to which the axis of an advice is linear


def _percents() -> list[int]:
    """Ticks for both parts of such an axis: 0, 5, 10, then 20, 50, 100 and so on, on both sides."""
    beyond = [digit * 10**power for power in range(1, 9) for digit in (2, 5, 10)]
    return [sign * tick for tick in (0, LINEAR // 2, LINEAR, *beyond) for sign in (1, -1)]


TABLES: Mapping[str, Callable[[Any], Body]] = {
    "perplexity": _perplexity_table, "passkey": _passkey_table, "needle": needle_table, "ruler": ruler_table, "longppl": longppl_table,
    "divergence": divergence_table, "temperature": _temperature_table, "advise": _advise_table, "search": judged_table,
}  # fmt: skip
PLOTS: Mapping[str, Callable[[Any], list[tuple[str, Figure]]]] = {
    "perplexity": _perplexity_plots, "passkey": _passkey_plots, "needle": _needle_plots, "ruler": _ruler_plots, "longppl": _longppl_plots,
    "divergence": _divergence_plots, "temperature": _temperature_plots, "advise": _advise_plots, "search": _search_plots,
}  # fmt: skip


def _plots(result: Found, shown: Shown | None = None) -> list[tuple[str, Figure]]:
    if shown and shown.panels:
        return [(panel.title or shown.says, _paper_plot(panel, shown)) for panel in shown.panels(result)]
    return PLOTS[result.measure](result)

"""The results of the measures as lines for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..compute.tables import columns
from ..conversion.recipes import as_text, from_mapping
from ..errors import many
from .choices import Advice, JudgedRow, Search, Temperature
from .found import Divergence, DivergencePoint, Estimate, Found, LongPPL, Needle, Passkey, Perplexity, Ruler


def lines(result: Found, room: int | None = None) -> list[str]:
    """A result of any measure; its tables in `room` columns."""
    return LINES[result.measure](result, room)


def figure(x: float | None, form: str = ".4g") -> str:
    if x is None or math.isnan(x):
        return "–"
    return format(x, form) if abs(x) < 1e6 else f"{x:.2g}"


def grouped(n: int) -> str:
    return f"{n:,}"


def model_lines(result: Found) -> list[str]:
    """Each model with its documents, and the time it took."""
    out = []
    for m in result.models:
        many = m.documents[0].name if len(m.documents) == 1 else f"{len(m.documents)} documents" if m.documents else "prompts"
        left = f"; {m.left_out} were too short" if m.left_out else ""
        out.append(f"{m.model}: {many}{left}{', BOS before each window' if m.bos else ''}")
        if m.same_tokens is False:
            out.append("  reads the texts as other tokens than the first model: their perplexities do not compare")
        if m.tokens_per_second:
            out.append(f"  {m.runtime}: {m.tokens:,} tokens in {m.seconds:,.0f} s, {m.tokens_per_second:,.0f} tokens/s")
    return out


def _perplexity(result: Perplexity, room: int | None) -> list[str]:
    sliding = f"sliding by {result.stride} over {result.tokens:,} tokens" if result.tokens else "documents truncated at each window"
    out = [*model_lines(result), f"perplexity ± standard error, by context window; {sliding}"]
    body = [
        [label, *(f"{figure(p.perplexity):>8} ± {figure(p.standard_error, '.2g'):<4}" for p in row.points)]
        for label, row in zip(labels_of(result), result.rows, strict=True)
    ]
    return [*out, *columns(["method", *map(grouped, result.windows)], body, room)]


def labels_of(result: Perplexity | Passkey | Needle | Ruler | LongPPL | Divergence) -> list[str]:
    """What each row is called: its recipe, and its model where there are several; a model as it is by its name alone."""
    if len(result.models) == 1:
        return [row.label for row in result.rows]
    given = [(row.model, Path(row.model), row.label) for row in result.rows]
    return [model if label in (model, path.name, path.stem) else f"{model} {label}" for model, path, label in given]


def _passkey(result: Passkey, room: int | None) -> list[str]:
    out = [*model_lines(result), f"passkey: right of {many(result.trials, 'trial')}, by length of the prompt in tokens"]
    body = [[label, *(f"{p.correct:>9}" for p in row.points)] for label, row in zip(labels_of(result), result.rows, strict=True)]
    return [*out, *columns(["method", *map(grouped, result.lengths)], body, room)]


def _needle(result: Needle, room: int | None) -> list[str]:
    n, many = result.trials * len(result.depths), f"{result.needles} needles" if result.needles > 1 else "one needle"
    out = [*model_lines(result), f"{many} in {result.haystack}: right of {n} with the interval of 95 %, by length of the prompt in tokens"]
    return [*out, *columns(*needle_table(result), room)]


def _ruler(result: Ruler, room: int | None) -> list[str]:
    head = f"RULER: mean score of {many(result.trials, 'prompt')} of each task, in per cent, by length in tokens"
    out = [*model_lines(result), head, *columns(*ruler_table(result), room)]
    return [*out, *(f"left out, {why}" for why in result.left_out)]


def ruler_table(result: Ruler) -> tuple[list[str], list[list[str]]]:
    """(head, rows): of each recipe the mean of all tasks and its effective lengths, then each task."""
    head = ["", *map(grouped, result.lengths), f"effective at {result.threshold:g}", "at the base's own"]
    body = []
    for label, row in zip(labels_of(result), result.rows, strict=True):
        reach = ["none" if n is None else grouped(n) for n in (row.effective, row.effective_by_base)]
        own = "–" if row.threshold_of_base is None else f"{reach[1]} ({row.threshold_of_base:.1f})"
        body.append([label, *(f"{p.score:.1f}" for p in row.by_length), reach[0], own])
        body += [[f"  {task}", *(f"{p.score:.1f}" for p in row.points if p.task == task), "", ""] for task in result.tasks]
    return head, body


def _longppl(result: LongPPL, room: int | None) -> list[str]:
    e = result.evaluator
    found = f"{many(sum(e.key_tokens), 'key token')} by {e.model}, which need more than {result.short_context:,} tokens before them"
    out = [*model_lines(result), found]
    return [*out, *columns(*longppl_table(result), room)]


def longppl_table(result: LongPPL) -> tuple[list[str], list[list[str]]]:
    """(head, rows)."""
    head = ["", "LongPPL", "± tokens", "± documents", "key tokens", "perplexity of all"]
    body = [
        [label, *map(figure, (r.longppl, r.standard_error, r.document_error)), grouped(r.key_tokens), figure(r.perplexity)]
        for label, r in zip(labels_of(result), result.rows, strict=True)
    ]
    return head, body


def _divergence(result: Divergence, room: int | None) -> list[str]:
    against = f"{base_line(result)}; KL divergence from it in nats a token, RMS of the change of the true token's probability"
    return [*model_lines(result), against, *columns(*divergence_table(result), room)]


def base_line(result: Divergence) -> str:
    """Whom the others are compared with."""
    base = result.base
    as_it_is = base.label in (base.model, Path(base.model).name, Path(base.model).stem)
    how = f", {base.ran.runtime} in {base.ran.dtype}" if base.ran.dtype else ""
    return f"the base is {base.model}{'' if as_it_is else f' with {base.label}'}{how}"


def divergence_table(result: Divergence) -> tuple[list[str], list[list[str]]]:
    """(head, rows): of each recipe the whole window, then its segments."""
    head = ["tokens", "KL ± error", "median", "99 %", "99.9 %", "maximum", "RMS Δp", "same top token", "perplexity", "against the base's"]

    def cells(p: DivergencePoint) -> list[str]:
        spread = map(figure, (p.median, p.percentile_99, p.percentile_999, p.maximum))
        shares = (shown(x, ".2%", ".2%") for x in (p.rms_change, p.same_top))
        return [shown(p.divergence, ".4g", ".2g"), *spread, *shares, figure(p.perplexity), shown(p.ratio, ".4f", ".4f")]

    def shown(x: Estimate, form: str, of_error: str) -> str:
        return f"{figure(x.value, form)} ± {figure(error_of(x), of_error)}"

    body = []
    for label, row in zip(labels_of(result), result.rows, strict=True):
        parts = row.points if len(row.points) > 1 else ()
        body += [[label, *cells(row.whole)], *([f"  {p.begin:,}–{p.end - 1:,}", *cells(p)] for p in parts)]
    return head, body


def error_of(x: Estimate) -> float | None:
    """By documents where there are several, else by tokens."""
    return x.standard_error if x.document_error is None else x.document_error


def needle_table(result: Needle) -> tuple[list[str], list[list[str]]]:
    """(head, rows): of each recipe all depths together, then each depth."""
    body = []
    for label, row in zip(labels_of(result), result.rows, strict=True):
        body.append([label, *(f"{p.accuracy:.0%} ({p.low:.0%}–{p.high:.0%})" for p in row.by_length)])
        for d in result.depths:
            cells = [f"{p.correct} of {p.trials} ({p.low:.0%}–{p.high:.0%})" for p in row.points if p.depth == d]
            body.append([f"  depth {d:.0%}", *cells])
    return ["", *map(grouped, result.lengths)], body


def _temperature(result: Temperature, room: int | None) -> list[str]:
    out = model_lines(result)
    for row in result.rows:
        out.append(f"{row.model}: yarn, s = {row.factor:g}, {row.window:,} tokens; recommended {row.recommended:.4f}")
        marks = {row.recommended: ["recommended"]}
        marks[row.best] = [*marks.get(row.best, []), "best"]
        body = [
            [
                f"{p.multiplier:.4f}",
                " ".join(marks.get(p.multiplier, [])),
                f"{figure(p.perplexity)} ± {figure(p.standard_error, '.2g')}",
                *map(figure, p.by_segment),
            ]
            for p in row.points
        ]
        head = ["√(1/t)", "", "perplexity", *(f"{a:,}–{b - 1:,}" for a, b in row.segments)]
        out += columns(head, body, room, "  ", left=2)
        out.append(f"  best by document: {', '.join(f'{m:.4f}' for m in row.best_by_document)}")
    return out


def _advise(result: Advice, room: int | None) -> list[str]:
    n, tolerance = result.context, result.tolerance
    through = f"the base's through its own {result.original_context:,} tokens"
    out = [*model_lines(result), f"by how much each segment's perplexity is above {through}"]
    body = [
        [f"{t.factor:.4g}", *map(percent, t.excess), ", ".join(f"{percent(c.change)} at {c.tokens:,}" for c in t.short)]
        for t in result.tried
    ]
    out += columns(["factor", *(f"to {b:,}" for _, b in result.segments), "short texts"], body, room, "  ")
    if result.factor is None:
        return [*out, f"none of these factors keeps perplexity within {tolerance:.1%} to {n:,} tokens; --factor tries others"]
    if result.factor == 1:
        return [*out, f"no extension is needed: the base is flat to {n:,} tokens, within {tolerance:.1%}"]
    return [*out, f"advice: {result.method} with --scale {result.factor:g} is flat to {n:,} tokens, within {tolerance:.1%}"]


def _search(result: Search, room: int | None) -> list[str]:
    out = [*model_lines(result), split_line(result)]
    for p in result.parts:
        out.append(f"  {p.part:<11}  {many(p.trials, 'recipe'):>11}, best so far {figure(p.so_far, '.4f')}: {p.label}")
    out.append("on the texts that judge: perplexity, and what was made least, in nats a token")
    return [*out, *columns(*judged_table(result), room, "  "), advised_line(result)]


def split_line(result: Search) -> str:
    """Which texts were searched on, and which judge."""
    n, m = len(result.searched), len(result.held_out)
    other = "other documents" if result.split == "documents" else "the same document: it is the only one"
    return f"searched on {many(n, 'window')} of {result.context:,} tokens, judged on {m} of {other}"


def judged_table(result: Search) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of what judged recipes are worth."""
    original = result.original_context
    lengths = [f"at {c.tokens:,}" for c in result.rows[0].short]
    head, body = ["", *lengths, f"beyond {original:,}", "weighted", f"against {result.rival}", "searched"], []
    for row in result.rows:
        short = [f"{figure(c.perplexity)} {percent(c.change)}" for c in row.short]
        against = "" if row.label == result.rival else gain_of(row)
        body.append([row.label, *short, figure(row.beyond), figure(row.value, ".4f"), against, figure(row.searched, ".4f")])
    return head, body


def gain_of(row: JudgedRow) -> str:
    """A difference of weighted losses as one of perplexities."""
    if row.difference is None:
        return "–"
    return f"{math.expm1(row.difference):+.2%} ± {'–' if row.error is None else format(row.error, '.2%')}"


def advised_line(result: Search) -> str:
    """What a search advises."""
    row = result.row(result.chosen)
    if not result.parts:
        return "no recipe is advised: there was no time to search, and a larger --budget gives some"
    if row.label == result.rival:
        return f"no recipe is advised: nothing that was found is better than {row.label}, which needs no search"
    if not result.advised:
        return f"no recipe is advised: {row.label} is not better than {result.rival} by more than the error ({gain_of(row)})"
    return f"advice: {row.label}, {gain_of(row)} against {result.rival}"


def recipe_text(result: Search) -> str:
    """The file of the recipe that is advised, for --recipe: YAML."""
    note = f"evaluate advise --search of {', '.join(m.model for m in result.models)} to {result.context:,} tokens. {advised_line(result)}"
    return as_text(from_mapping(result.recipe or {}, "the search"), note)


def percent(x: float | None) -> str:
    return "–" if x is None or math.isnan(x) else f"{x:+.1%}" if abs(x) < 100 else f"× {x + 1:.2g}"


LINES: Mapping[str, Callable[[Any, int | None], list[str]]] = {
    "perplexity": _perplexity, "passkey": _passkey, "needle": _needle, "ruler": _ruler, "longppl": _longppl,
    "divergence": _divergence, "temperature": _temperature, "advise": _advise, "search": _search,
}  # fmt: skip

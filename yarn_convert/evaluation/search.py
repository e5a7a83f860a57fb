"""The best recipe for a base, given texts, a length N and what short texts are worth against long ones.

What is made least is the mean over windows of N tokens of (1 − w)·(mean loss beyond L) + w·(mean of the mean losses over the first L/4,
L/2 and L): logarithms of perplexities, so that with w = ½ a percent on short texts counts as much as one on long ones. Candidates are
those of `space`, part by part, each from the best that the parts before it found; they are compared by `optimizer`.

What was found is then judged on other texts, beside what needs no search: the base, which reads texts beyond L through its own window
(windows of L sliding by L/2), and two methods as they are, with the factor that reaches N. It is advised if it is better than the best of
these by more than the error of their difference over the same windows (`held_out`). A table of factors, which fewer programs read, is
taken before a method's own words only if it is better than these by more than the error, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ..compute.documents import TokenizedText, names
from ..conversion.extension import extend
from ..conversion.recipes import as_mapping
from ..errors import UsageError, need, no_such
from ..hearing import SayStage, heard, shares
from ..options import AdviseOptions, Recipe
from ..rope import recipe_of
from .advice import SHORT, check, check_window, control_of, cut, passes_of
from .held_out import Split, difference, split
from .journal import ResultJournal
from .optimizer import Best, Enough, halving, least, mean
from .space import PARTS, PLAIN, Start
from .subjects import Line, Meter, Subject, line_of
from .windows import NOTHING, Losses, Span, Window

TRIALS = 60  # where neither a number nor a budget is given
YARN = "yarn"  # what every search begins with
NTK = "ntk-aware"  # what else needs none
ADVICE = ("method", "factors", "tolerance")  # options of AdviseOptions that are no search's


@heard
def measure_search(say: SayStage, model: str, wish: AdviseOptions, journal: ResultJournal) -> dict[str, Any]:
    """Look for the best recipe; the result is JSON. Raises UsageError and InputError before anything long begins."""
    check_wish(wish)
    need("search", "a search")
    clock = Clock(wish.budget)
    subject = Subject(model, wish.settings, journal)
    bench = _bench(subject, wish, say)
    of_base, of_yarn, of_ntk, searching, *last = _phases(bench, wish)
    judged = [of_base.base_judged(), of_yarn.judged(bench.starts[YARN]), of_ntk.judged(bench.starts[NTK])]
    found = _searched(searching, wish, clock.reserving(len(last) * bench.seconds(len(bench.split.held_out))))
    chosen = _chosen(last, found, judged)
    return _result(bench, wish, found, judged, chosen)


def check_wish(wish: AdviseOptions) -> None:
    """Raise UsageError for what no search can be about, and for options of an advice without one."""
    check(wish)
    usual = {f.name: f.default for f in fields(wish)}
    if stray := next((name for name in ADVICE if getattr(wish, name) != usual[name]), None):
        raise UsageError(f"a search goes through all methods and factors: {stray} belongs to an advice without one", "leave out --search")
    if not 0 <= wish.short_weight <= 1:
        raise UsageError(f"--short-weight must be from 0 to 1, not {wish.short_weight:g}", "--short-weight 0.5")
    if wish.windows < 1 or wish.judges < 2 or (wish.trials is not None and wish.trials < 1) or wish.seed < 0:
        raise UsageError("a search needs a window, two that judge, a trial, and a seed from 0 on", "--windows 4 --judges 4 --seed 0")
    for part in wish.over:
        if part not in PARTS:
            raise no_such("part of a search", part, PARTS)


def _tables(wish: AdviseOptions) -> bool:
    """Whether a part finds tables, which are judged beside the best in words."""
    return not wish.over or any(part in ("ends", "pairs") for part in wish.over)


def _phases(bench: Bench, wish: AdviseOptions) -> list[Bench]:
    """The bench of each phase, which says how far all of them are: three that judge what needs no search, the search, and those that judge
    what it found. Each takes as long as it has windows: the base's slide and are read twice, and the search leaves half of its own."""
    judging, trials = len(bench.split.held_out), wish.trials or TRIALS
    windows = [2 * judging, judging, judging, trials * len(bench.split.searched) / 2, *[judging] * (1 + _tables(wish))]
    return [replace(bench, say=told) for told in shares(bench.say, windows)]


class Clock:
    """Time that is left of so many seconds; None: no end."""

    def __init__(self, seconds: float | None) -> None:
        self.end = math.inf if seconds is None else time.monotonic() + seconds

    def reserving(self, seconds: float) -> Clock:
        """The same with an end that leaves so many seconds."""
        clock = Clock(None)
        clock.end = self.end - seconds
        return clock

    @property
    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())


@dataclass(frozen=True, slots=True)
class Judged:
    """A line on the texts that judge: what was found in each of them, by span."""

    line: Line
    candidate: Recipe | None
    windows: list[dict[Span, Losses]]
    values: list[float]


@dataclass(frozen=True, slots=True)
class Found:
    """What the parts found: the best by what a part may begin with; the methods as they are; the parts as JSON; how many candidates were
    begun."""

    best: dict[str, Best]
    starts: list[Best]
    parts: list[dict[str, Any]]
    trials: int


@dataclass(frozen=True, slots=True)
class Bench:
    """A base, the windows and spans of them that are measured, and the recipes that need no search."""

    subject: Subject
    tokens: int  # of a window, without BOS
    weight: float
    split: Split
    short: list[Span]
    long: list[Span]
    starts: Mapping[str, Recipe]
    reach: float
    say: SayStage

    @property
    def original(self) -> int:
        return self.subject.original

    def start(self, candidate: Recipe) -> Start:
        return Start(candidate, extend(self.subject.c, candidate), self.reach)

    def line(self, candidate: Recipe) -> Line:
        e = extend(self.subject.c, candidate)
        return Line(label_of(candidate, e.scale), candidate.method, e.rope, e.context)

    def measured(self, line: Line, window: TokenizedText) -> dict[Span, Losses]:
        found: dict[Span, Losses] = {}
        for p in passes_of(self.subject, line, self.tokens, self.long, self.short):
            found |= self.subject.run(line, window, p, lambda f: None)
        return found

    def value(self, found: Mapping[Span, Losses]) -> float:
        """What is made least, in nats a token."""
        beyond = sum((found[s] for s in self.long), NOTHING).mean
        return (1 - self.weight) * beyond + self.weight * sum(found[s].mean for s in self.short) / len(self.short)

    def judged(self, candidate: Recipe) -> Judged:
        line, found = self.line(candidate), []
        for i, window in enumerate(self.split.held_out):
            self.say(f"judging {line.label}", i / len(self.split.held_out))
            found.append(self.measured(line, window))
        return Judged(line, candidate, found, [self.value(f) for f in found])

    def base_judged(self) -> Judged:
        """The base: short texts as they are, the rest through windows of L sliding by L/2."""
        line = line_of(self.subject.c, self.subject.settings, "none")
        slid = [cut(w.begin, w.end, w.first, self.long) for w in self.subject.sliding(self.tokens, self.original, self.original // 2)]
        control = [p for p in slid if p.spans]
        short = self.subject.passes(line, [Window(0, b, a) for a, b in self.short])
        held = self.split.held_out
        meter = Meter(f"judging {self.subject.name}", [p.end - p.begin for p in (*control, *short)] * len(held), self.say)
        found = []
        for window in held:
            spans = dict(zip(self.long, control_of(self.subject, line, [window], control, self.long, meter), strict=True))
            for p in short:
                spans |= self.subject.run(line, window, p, meter.begin(p.end - p.begin))
            found.append(spans)
        return Judged(line, None, found, [self.value(f) for f in found])

    def seconds(self, windows: int) -> float:
        """About how long so many windows take, by what was computed so far."""
        done = self.subject.tokens
        return windows * self.tokens * self.subject.seconds / done if done else 0.0


def _bench(subject: Subject, wish: AdviseOptions, say: SayStage) -> Bench:
    """The texts of a search, and its bounds. UsageError for a base that has no temperature, or a length that needs no search."""
    c, original, n = subject.c, subject.original, wish.context
    check_window(original)
    if c.family.on_logits:
        raise UsageError(f"{c.family.name} has its temperature on the logits, which no table says", "leave out --search")
    if n <= original:
        raise UsageError(f"{n:,} tokens are not beyond the {original:,} that the base serves: nothing to search for", "a larger --context")
    given = wish.settings.recipe.original_context
    starts = {m: Recipe(method=m, context=n, original_context=given) for m in (YARN, *PLAIN)}
    for candidate in starts.values():
        extend(c, candidate)  # raises as a conversion does
    documents = subject.documents(n)
    tokens, within = subject.room(n), subject.room(original)
    spans = subject.segments(tokens, wish.segments)
    short = [(spans[0][0], subject.room(original // k)) for k in SHORT]
    long = [(max(a, within), b) for a, b in spans if b > within]
    halves = split(documents, tokens, wish.windows, wish.judges, wish.seed, pieces=bool(wish.settings.texts.cut))
    return Bench(subject, tokens, wish.short_weight, halves, short, long, starts, n / original, say)


# -- the search -------------------------------------------------------------------------------------------------------


def _searched(bench: Bench, wish: AdviseOptions, clock: Clock) -> Found:
    """All parts, one after the other. The first candidates are the methods as they are."""
    over = [part for part in PARTS if part in wish.over] or list(PARTS)
    windows, most = len(bench.split.searched), wish.trials or (TRIALS if wish.budget is None else math.inf)
    begun = {name: bench.starts[name] for name in (YARN, *(PLAIN if "method" in over else ()))}
    score = _score(bench, clock, lambda trials: None)
    plain = [candidate for name, candidate in begun.items() if name != YARN]
    best: dict[str, Best] = {}
    starts = []
    for kind, candidates in (("ramped", [begun[YARN]]), ("plain", plain)):
        values, _ = halving(candidates, range(windows), score)
        for candidate, found in zip(candidates, values, strict=True):
            if len(found) == windows:
                starts.append(Best(candidate, mean(found)))
                _lead(best, kind, starts[-1])
    parts, done, told = [], len(begun), shares(bench.say, [PARTS[name].share for name in over])
    for i, name in enumerate(over):
        part, weight = PARTS[name], PARTS[name].share / sum(PARTS[other].share for other in over[i:])
        if part.begins not in best:
            continue
        trials = (most - done) * weight
        until = clock.reserving(clock.left * (1 - weight)) if math.isfinite(clock.end) else clock
        space = part.space(bench.start(best[part.begins].candidate))
        score = _score(bench, clock, _teller(told[i], f"search for {bench.subject.name}: {name}", trials, until))
        outcome = least(space, windows, score, trials if math.isinf(trials) else round(trials), wish.seed + i, _room(bench, until))
        done += outcome.trials
        if outcome.best is not None:
            _lead(best, "table" if outcome.best.candidate.factors else part.begins, outcome.best)
        leader, own = best["any"], outcome.best
        parts.append(
            {
                "part": name, "numbers": space.names, "trials": outcome.trials, "settled": outcome.settled,
                "best": own and own.value, "so_far": leader.value, "label": bench.line(leader.candidate).label,
            }
        )  # fmt: skip
    return Found(best, starts, parts, done)


def _lead(best: dict[str, Best], kind: str, found: Best) -> None:
    """Take up what is better than the best of its kind, and than the best of all; "worded": of those that a method's words say."""
    for name in (kind, "any", *(() if found.candidate.factors else ("worded",))):
        if name not in best or found.value < best[name].value:
            best[name] = found


def _score(bench: Bench, clock: Clock, told: Callable[[int], None]) -> Callable[[Recipe, int], float]:
    """Of candidates on the windows that are searched on; `told` how many candidates there were."""
    lines: dict[Recipe, Line | None] = {}  # None for what no runtime could hold

    def score(candidate: Recipe, window: int) -> float:
        if clock.left <= 0:
            raise Enough
        if candidate not in lines:
            try:
                lines[candidate] = bench.line(candidate)
            except UsageError:
                lines[candidate] = None
        told(len(lines))
        line = lines[candidate]
        return math.inf if line is None else bench.value(bench.measured(line, bench.split.searched[window]))

    return score


def _room(bench: Bench, clock: Clock) -> Callable[[], float]:
    """How many passes there is time for; a search that replays its journal does not know, and has time for any."""
    return lambda: clock.left / one if (one := bench.seconds(1)) else math.inf


def _teller(say: SayStage, what: str, trials: float, clock: Clock) -> Callable[[int], None]:
    whole, finite = clock.left, math.isfinite(clock.end)

    def told(seen: int) -> None:
        by_time = 1 - clock.left / whole if finite and whole else 0.0
        say(what, min(1.0, max(by_time, (seen - 1) / trials if trials else 0.0)))

    return told


# -- the judgement ----------------------------------------------------------------------------------------------------


def _chosen(benches: Sequence[Bench], found: Found, judged: list[Judged]) -> Judged:
    """What the search found, judged, each on its bench; it is put to `judged` where it is not there already."""

    def one(bench: Bench, best: Best) -> Judged:
        same = next((j for j in judged if j.candidate == best.candidate), None)
        if same is None:
            judged.append(same := bench.judged(best.candidate))
        return same

    if "any" not in found.best:  # not even the start: there was no time
        return judged[1]
    worded = one(benches[0], found.best["worded"])
    if found.best["any"].candidate.factors:
        table = one(benches[-1], found.best["any"])
        gain, error = difference(table.values, worded.values, benches[0].split.clusters)
        return table if gain < -error else worded
    return worded


def _result(bench: Bench, wish: AdviseOptions, found: Found, judged: Sequence[Judged], chosen: Judged) -> dict[str, Any]:
    subject, halves = bench.subject, bench.split
    rival = min(judged[:3], key=lambda j: mean(j.values))
    gain, error = difference(chosen.values, rival.values, halves.clusters)
    advised = gain < -error and all(chosen is not j for j in judged[:3])
    documents = [d for side in (halves.searched, halves.held_out) for d in side]
    return {
        "measure": "search", "context": wish.context, "original_context": bench.original, "short_weight": bench.weight, "seed": wish.seed,
        "budget": wish.budget, "trials": found.trials, "split": halves.by, "clusters": len({*halves.clusters}),
        "searched": names(halves.searched), "held_out": names(halves.held_out), "segments": bench.long, "parts": found.parts,
        "rows": [_row(bench, j, judged[0], rival, found) for j in judged], "rival": rival.line.label, "chosen": chosen.line.label,
        "difference": gain, "error": error, "advised": advised,
        "recipe": as_mapping(chosen.candidate) if advised and chosen.candidate else None,
        "models": [subject.described(documents)],
    }  # fmt: skip


def _row(bench: Bench, j: Judged, base: Judged, rival: Judged, found: Found) -> dict[str, Any]:
    """One recipe on the texts that judge; its value on those searched on where it led there."""
    total = {s: sum((w[s] for w in j.windows), NOTHING) for s in (*bench.short, *bench.long)}
    was = {s: sum((w[s] for w in base.windows), NOTHING).perplexity for s in bench.short}
    gain, error = difference(j.values, rival.values, bench.split.clusters)
    searched = next((b.value for b in (*found.starts, *found.best.values()) if b.candidate == j.candidate), None)
    rope = j.line.rope
    return {
        **j.line.as_json(), "recipe": recipe_of(rope), "value": sum(j.values) / len(j.values), "searched": searched,
        "short": [{"tokens": s[1], "perplexity": total[s].perplexity, "change": total[s].perplexity / was[s] - 1} for s in bench.short],
        "by_segment": [total[s].perplexity for s in bench.long], "beyond": sum((total[s] for s in bench.long), NOTHING).perplexity,
        "difference": gain, "error": error,
        "asked": as_mapping(j.candidate) if j.candidate else None,
        "factors": [float(f) for f in bench.start(j.candidate).factors] if j.candidate else None,
    }  # fmt: skip


def label_of(asked: Recipe, scale: float) -> str:
    """A candidate's own numbers, in a few characters."""
    fast, slow = asked.beta_fast, asked.beta_slow
    said = [f"m {asked.attention_factor:.4g}"] if asked.attention_factor is not None else []
    if asked.factors:
        return ", ".join([f"factors to {max(asked.factors):.3g}", *said])
    ramp = [f"betas {fast:g}/{slow:g}"] if fast is not None and slow is not None else []
    return ", ".join([f"{asked.method}:{scale:.4g}", *said, *ramp])

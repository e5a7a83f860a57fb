"""Do real runtimes compute what is meant, at every position: the third question.

A study runs one model, the real one or its twin, in the reference and in each runtime over the same tokens, compares their
logits window by window, and shows the power of that check: wrong recipes, run in the reference, have to fail it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import runtimes
from ..checkpoint import Checkpoint
from ..compute.reference import FractionDone, Reference
from ..compute.rotary import Spans
from ..conversion.intention import Intention
from ..errors import YarnConvertError
from ..hearing import SayStage
from ..readers.judge import Verdict
from ..readers.switching import whole_context
from ..rope import Effect, effect
from ..runtimes.table import mode_of, runtime_of
from . import amplifying, twin
from .judging import Deviation, Tolerance, compare, differ, noisy, suspects, tolerance_for, within, wrong_tables
from .rounding import rounding

WIDTH = 64  # positions of a window
PREFIX = 1024  # tokens in which most wrong recipes show already on real weights
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"  # of a runtime; the last says nothing of the model
OTHER_WEIGHTS = "the file's own weights compute something else than the base's"
UNSEEN = "no logit of this text shows it"
NONSENSE = 0.4  # of the loss of guessing, ln(vocabulary): above it the other order of rows is worth a try
BETTER = 0.75  # of a loss, that it falls to where something is put right


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every runtime. `readings`: runtime -> the table that its source takes from the file, to recognize one
    that follows the file and not the intention. `predicted`: runtime -> whether it follows, by its source. `told`: runtime -> the
    options by which its worker is told what the file does not say."""

    meant: Intention
    readings: Mapping[str, Effect] = field(default_factory=dict)
    predicted: Mapping[str, Verdict] = field(default_factory=dict)
    device: str = "auto"
    dtype: str = "float32"
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def right(self, n: int) -> Effect:
        """What is intended for a text of `n` tokens: some methods depend on it."""
        return effect(self.meant.rope, n)


@dataclass(frozen=True, slots=True)
class Case:
    """What a study runs: `kind` "real", "cut" (`cut`), "excerpt" (`excerpt`) or "twin", the opened checkpoint, the tokens, and the windows
    that are judged.

    `spans` are what every computation returns; `cuts` divide them further into windows; `probes` are the windows in which
    wrong recipes are tried. `rounds`: what a runtime rounds by columns (`rounding.rounds`), whose noise is allowed for.
    `controls`: whether wrong recipes are tried here, and not on an excerpt. `served`: the context for which runtimes are started, by which
    some take the first of two lists; 0: their own, or that of the text. `base`: the same model with its base's weights, which then the
    reference has, but where the file's types lose some of them: `typed` is the base in these. `different`: tensors
    that are not the base's, and how.
    """

    kind: str
    checkpoint: Checkpoint
    ids: NDArray[np.int64]
    spans: tuple[tuple[int, int], ...]
    cuts: tuple[int, ...]
    probes: tuple[tuple[int, int], ...]
    tolerance: Tolerance
    rounds: Mapping[int, str] = field(default_factory=dict)
    controls: bool = True
    served: int = 0
    base: Checkpoint | None = None
    typed: Checkpoint | None = None
    different: Mapping[str, str] = field(default_factory=dict)

    @property
    def referred(self) -> Checkpoint:
        """What the reference has."""
        return self.checkpoint if self.typed else self.base or self.checkpoint

    @property
    def path(self) -> Path:
        return self.checkpoint.source.path


def real_subject(
    c: Checkpoint,
    ids: NDArray[np.int64],
    original: int,
    tolerance: Tolerance,
    rounds: Mapping[int, str] | None = None,
    controls: bool = True,
) -> Case:
    """Windows at 0, at L − w, across L, at 2L and at the end of `ids`, as far as they go. The first position has a window of its
    own, as no rotation reaches it, unless noise is judged, of which one position says little."""
    n, w = len(ids), WIDTH
    starts = {0, min(PREFIX, n) - w, original - w, original, 2 * original, n - w}
    spans = disjoint([(max(0, a), a + w) for a in starts if a + w <= n])
    return Case("real", c, ids, spans, () if rounds else (1,), spans, tolerance, rounds or {}, controls)


def twin_subject(c: Checkpoint, ids: NDArray[np.int64], original: int) -> Case:
    """Every position; probes where lengths double, at L and 2L, and at the end."""
    n, w = len(ids), WIDTH
    doubling = [w << k for k in range(1, 40) if (w << k) < n]
    probes = disjoint([(max(0, a), min(n, a + w)) for a in {0, original - w, original, 2 * original, n - w, *doubling} if a < n])
    return Case(
        "twin",
        c,
        ids,
        ((0, n),),
        (1, *(edge for span in probes for edge in span)),
        probes,
        tolerance_for(gelu=c.family.gelu and c.gguf is not None),
    )


def disjoint(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """In order, each cut where the one before it ends; empty ones are left out."""
    found: list[tuple[int, int]] = []
    for a, b in sorted(set(spans)):
        a = max(a, found[-1][1]) if found else a
        found += [(a, b)] if a < b else []
    return tuple(found)


def study(s: Case, q: Question, reference: Reference, names: Sequence[str], say: SayStage) -> dict[str, Any]:
    """Run the runtimes `names` on the subject, whose reference is loaded, and judge; the result is JSON."""
    say(f"reference, {s.kind}", 0.0)
    expected = reference.logits(q.right(len(s.ids)), s.ids, s.spans, progress=lambda f: say(f"reference, {s.kind}", f))
    seconds, own = reference.seconds, None
    if s.base:
        own, of_base = _against_base(s, q, expected, say)
    if s.rounds:
        s = replace(s, tolerance=_noise(s, q, reference, expected, say))
    wrong = _wrong(s, q, reference, expected, say) if s.controls else []
    able = [name for name in names if not s.served or whole_context(runtime_of(name).reader, s.served)]  # the others never take that list
    done = [_runtime(s, q, name, reference, expected, own, say) for name in able]
    for r in done:  # one that is judged by a coarser measure may not see what the others do
        r["blind_to"] = [w["name"] for w in wrong if all(within(x, r["tolerance"]) for x in w["windows"])]
        if r["verdict"] == PASSED and r["why"]:  # by what the model amplifies
            r |= amplifying.if_told(r, wrong)
    loss = text_loss(s.ids, s.spans, expected) if s.kind == "real" and len(s.ids) > 1 else None
    return {
        "kind": s.kind,
        **({"within": s.served} if s.served else {}),
        **({"of_base": of_base} if s.base else {}),
        "tokens": len(s.ids),
        "reference": {**reference.describe(), "seconds": seconds, "tokens_per_second": len(s.ids) / seconds},
        "tolerance": s.tolerance.as_json(),
        "wrong_recipes": wrong,
        "runtimes": done,
        "text_loss": loss,
        "guessing_loss": math.log(expected.shape[1]),
        "permuted": loss is not None and loss > NONSENSE * math.log(expected.shape[1]) and _is_permuted(s, q, reference),
    }


def _against_base(s: Case, q: Question, expected: NDArray[np.float32], say: SayStage) -> tuple[NDArray[np.float32] | None, dict[str, Any]]:
    """(the logits of the file's own weights where `expected` are those of its base's, how far the two are apart).

    A file whose types lose some of the base's weights may be away by their noise; its runtimes, which have them too, may not.
    """
    assert s.base is not None
    stage = f"the file's weights and its base's, {s.kind}"
    other = Reference(s.base if s.typed else s.checkpoint, q.device, q.dtype)
    found = other.logits(q.right(len(s.ids)), s.ids, s.spans, progress=lambda f: say(stage, f))
    tolerance, (of_base, own) = s.tolerance, (found, expected) if s.typed else (expected, found)
    if s.typed:
        coarse = Reference(s.typed, q.device, q.dtype)
        tolerance = _with_noise(s, q, coarse, of_base, "the base's weights in its types", lambda f: say(stage, f))
    windows = compare(of_base, own, s.spans, s.cuts, tolerance)
    beyond = [w for w in windows if not w.within(tolerance)]
    why = ""
    if beyond:
        worst = max(beyond, key=lambda w: w.nmse if math.isfinite(w.nmse) else math.inf)
        why = f"{OTHER_WEIGHTS}: NMSE {worst.nmse:.1e} at {worst.start:,} to {worst.end - 1:,}"
    if s.different:
        first, error = next(iter(s.different.items()))
        why = f"{why or UNSEEN}; {len(s.different)} of the cut's tensors are not the base's, first {first}: {error}"
    result = {"verdict": FAILED if why else PASSED, "why": why, "windows": [w.as_json() for w in windows], "different": dict(s.different)}
    return None if s.typed else own, result | {"tolerance": tolerance.as_json()}


def _noise(s: Case, q: Question, reference: Reference, expected: NDArray[np.float32], say: SayStage) -> Tolerance:
    """The subject's tolerance with the noise of its types, measured in the reference."""
    kinds = " and ".join(sorted(set(s.rounds.values())))
    with rounding(s.rounds):
        return _with_noise(s, q, reference, expected, f"rounding inputs to {kinds}", lambda f: say(f"noise of its types, {s.kind}", f))


def _in_mode(s: Case, q: Question, wish: str, reference: Reference, expected: NDArray[np.float32], say: SayStage) -> Tolerance:
    """The subject's tolerance for a runtime that is asked for as NAME:MODE: coarser arithmetic adds the noise that it makes in the
    reference."""
    mode = mode_of(wish)
    if mode is None or (mode.dtype, mode.cache) == ("float32", "float32") or q.dtype != "float32":
        return s.tolerance
    coarse = reference if mode.dtype == "float32" else Reference(s.referred, q.device, mode.dtype)
    with coarse.cached_in(mode.cache):
        return _with_noise(s, q, coarse, expected, mode.says, lambda f: say(f"noise of {mode.says}, {s.kind}", f))


def _with_noise(s: Case, q: Question, coarse: Reference, expected: NDArray[np.float32], what: str, progress: FractionDone) -> Tolerance:
    """The subject's tolerance and the distance of a `coarse` reference from the `expected` logits. It does not grow with the position, so
    the first windows do."""
    n = min(PREFIX, len(s.ids))
    spans = [p for p in s.spans if p[1] <= n] or [(0, n)]
    logits = coarse.logits(q.right(len(s.ids)), s.ids[:n], spans, progress=progress)
    return noisy(s.tolerance, compare(_rows(s.spans, expected, spans), logits, spans, (), s.tolerance), what)


def text_loss(ids: NDArray[np.int64], spans: Spans, logits: NDArray[np.float32]) -> float:
    """Mean cross-entropy of the text's own next tokens at the positions of `spans`, in nats a token."""
    positions = np.concatenate([np.arange(a, b) for a, b in spans])
    known = positions < len(ids) - 1
    rows = logits[known].astype(np.float64)
    rows -= rows.max(1, keepdims=True)
    chosen = rows[np.arange(len(rows)), ids[positions[known] + 1]]
    return float((np.log(np.exp(rows).sum(1)) - chosen).mean())


def whole_loss(reference: Reference, e: Effect, ids: NDArray[np.int64]) -> float:
    """`text_loss` of a whole text."""
    spans = ((0, len(ids)),)
    return text_loss(ids, spans, reference.logits(e, ids, spans))


def _is_permuted(s: Case, q: Question, reference: Reference) -> bool:
    """Whether Q and K lie in the wrong order in the file itself, where reference and runtime agree on nonsense: then the
    text is predicted much better with their rows moved."""
    if not s.checkpoint.family.listed and s.checkpoint.gguf:
        return False  # there is no telling which rows are theirs
    ids = s.ids[:PREFIX]
    moved = Reference(s.checkpoint, q.device, q.dtype, swap_qk=True)
    before, after = (whole_loss(r, q.right(len(ids)), ids) for r in (reference, moved))
    return after < BETTER * before


def _wrong(s: Case, q: Question, reference: Reference, expected: NDArray[np.float32], say: SayStage) -> list[dict[str, Any]]:
    """Whether the check tells each wrong recipe from the right one, and from which position on.

    A longer pass is only made for those that a shorter one does not tell apart.
    """
    found, right = [], q.right(len(s.ids))
    candidates = wrong_tables(q.meant.rope, len(s.ids))
    if s.checkpoint.cancels:
        candidates = {name: t for name, t in candidates.items() if not np.array_equal(t.inv_freq, right.inv_freq)}
    for i, (name, t) in enumerate(candidates.items()):
        say(f"wrong recipes, {s.kind}", i / len(candidates))
        windows: list[Deviation] = []
        for n in sorted({min(PREFIX, len(s.ids)), len(s.ids)}) if s.kind != "twin" else [len(s.ids)]:
            probes = [p for p in s.probes if p[1] <= n]
            logits = reference.logits(t, s.ids[:n], probes, rows_only=s.kind == "twin")
            windows = compare(_rows(s.spans, expected, probes), logits, probes, (), s.tolerance)
            if not all(w.within(s.tolerance) for w in windows):
                break
        outside = [w.start for w in windows if not w.within(s.tolerance)]
        found.append(
            {"name": name, "told_apart": bool(outside), "from": min(outside, default=None), "windows": [w.as_json() for w in windows]}
        )
    return found


def telling_position(small: Checkpoint, q: Question, wrong: str, tolerance: Tolerance, n: int) -> int | None:
    """The first position, of those where a twin of `n` tokens is probed, at which `wrong` is beyond `tolerance`; None: nowhere.

    Only the reference runs, and only at the probes, so it is quick at any length.
    """
    s = twin_subject(small, twin.ids(n), q.meant.rope.original_context)
    reference = Reference(small, q.device)
    tables = (q.right(n), wrong_tables(q.meant.rope, n)[wrong])
    right, other = (reference.logits(t, s.ids, s.probes, rows_only=True) for t in tables)
    windows = compare(right, other, s.probes, (), tolerance)
    return next((w.end for w in windows if not w.within(tolerance)), None)


def _rows(there: Spans, values: NDArray[np.float32], spans: Spans) -> NDArray[np.float32]:
    """The rows of `values`, one for each position of `there`, for the positions of `spans`, which are among them."""
    positions = np.concatenate([np.arange(a, b) for a, b in there])
    wanted = np.concatenate([np.arange(a, b) for a, b in spans])
    return np.asarray(values[np.searchsorted(positions, wanted)])


def _runtime(
    s: Case, q: Question, name: str, reference: Reference, expected: NDArray[np.float32], own: NDArray[np.float32] | None, say: SayStage
) -> dict[str, Any]:
    """What a runtime computes, against `expected` and, where that is not it, against what the file's `own` weights give."""
    predicted = q.predicted.get(name, Verdict("exact"))
    strict = s.tolerance
    s = replace(s, tolerance=_in_mode(s, q, name, reference, expected, say))
    result: dict[str, Any] = {"runtime": name, "predicted": predicted.why, "as_predicted": False, "tolerance": s.tolerance.as_json()}
    served = whole_context(runtime_of(name).reader, s.served)
    n = min(len(s.ids), (served or q.meant.context) - runtime_of(name).spare)
    spans = [(a, min(b, n)) for a, b in s.spans if a < n]
    options = {"device": q.device, "served": served, **q.told.get(runtime_of(name).name, {})}
    try:
        done = runtimes.run(name, s.path, s.ids[:n], spans, options, lambda f: say(f"{name}, {s.kind}", f))
    except runtimes.Failed as e:
        if why := e.message if e.killed else _out_of_order(name):
            return result | {"verdict": NOT_RUN, "windows": [], "layer": "", "why": why}
        foreseen = predicted.layer == "context" if e.too_long else predicted.kind == "refuses"
        layer = "length" if e.too_long else "runtime"
        return result | {"verdict": FAILED, "windows": [], "layer": layer, "why": e.message, "as_predicted": foreseen}
    result |= {"version": done.info.get("version"), "seconds": done.info["seconds"], "device": done.info.get("device")}
    result |= {k: done.info[k] for k in ("library", "elsewhere") if k in done.info}
    top_k = done.info.get("kind") == "log-probabilities"
    if done.logits.shape[1] < expected.shape[1]:
        why = f"it gives {done.logits.shape[1]} logits a position, the model has {expected.shape[1]} tokens"
        return result | {"verdict": FAILED, "windows": [], "layer": "runtime", "why": why}
    logits = done.logits[:, : expected.shape[1]]  # vocabularies are padded by some

    def windows_of(rows: NDArray[np.float32], t: Tolerance) -> list[Deviation]:
        return compare(_rows(s.spans, rows, spans), logits, spans, s.cuts, t, top_k)

    windows, amplified = windows_of(expected, s.tolerance), ""
    if s.tolerance is strict and q.dtype == "float32" and not s.rounds and amplifying.possible(windows, strict):
        wide = _amplifying(s, q, reference, expected, say)
        if amplified := amplifying.amplified(wide, strict):
            s, windows = replace(s, tolerance=wide), windows_of(expected, wide)
            result["tolerance"] = wide.as_json()
    result |= {"windows": [w.as_json() for w in windows], "compared": "log-probabilities of the tokens it gives" if top_k else "logits"}
    if all(w.within(s.tolerance) for w in windows):
        return result | {"verdict": PASSED, "layer": "", "why": amplified}
    if own is not None and all(w.within(s.tolerance) for w in windows_of(own, s.tolerance)):
        layer, why, foreseen = "weights", OTHER_WEIGHTS, False
    elif top_k:
        layer, why, foreseen = "runtime", "its log-probabilities differ", False
    else:
        layer, why, foreseen = _diagnose(replace(s, ids=s.ids[:n], spans=tuple(spans)), q, name, windows, logits, reference, say)
    drift = next(w.start if w.drift is None else w.drift for w in windows if not w.within(s.tolerance))
    why = f"{why}; {amplified}" if amplified else why
    return result | {"verdict": FAILED, "layer": layer, "why": why, "drift": drift, "as_predicted": foreseen}


def _amplifying(s: Case, q: Question, reference: Reference, expected: NDArray[np.float32], say: SayStage) -> Tolerance:
    """The subject's tolerance and what the model makes of float32's own rounding."""
    stage, right = f"noise of float32, {s.kind}", q.right(len(s.ids))
    return amplifying.allowed(reference, right, s.ids, s.spans, s.cuts, expected, s.tolerance, lambda f: say(stage, f))


def _out_of_order(name: str) -> str:
    """Why a runtime cannot run even a plain tiny model here, which says nothing of any other; "" if it can."""
    with tempfile.TemporaryDirectory(prefix="yarn-convert-control-") as folder:
        control = twin.write_control(Path(folder, "plain.gguf" if runtime_of(name).reads == "gguf" else "plain"))
        try:
            runtimes.run(name, control, twin.ids(WIDTH), [(0, WIDTH)])
        except runtimes.Failed as e:
            return e.message
    return ""


def _diagnose(
    s: Case, q: Question, name: str, windows: Sequence[Deviation], logits: NDArray[np.float32], reference: Reference, say: SayStage
) -> tuple[str, str, bool]:
    """(layer of the fault, what is known of it, whether it is what the runtime's source says).

    Suspects run in the reference; the one is named that comes closest to these logits, within the tolerance.
    """
    if windows[0].start == 0 and windows[0].end == 1 and not windows[0].within(s.tolerance):
        return "weights", "the first position differs already, which no rotation reaches: the weights or the arithmetic are others", False
    failing = next(w for w in windows if not w.within(s.tolerance))
    if not s.controls:
        return "runtime", "it is further from the file's own weights than the rounding of its types explains", False
    n = len(s.ids) if s.kind == "twin" else min(len(s.ids), max(PREFIX, failing.end))
    probes = [p for p in s.probes if p[1] <= n]
    seen = _rows(s.spans, logits, probes)

    def distance(r: Reference, t: Effect) -> float:
        """The largest NMSE of any window; infinite beyond the tolerance."""
        computed = compare(r.logits(t, s.ids[:n], probes, rows_only=s.kind == "twin"), seen, probes, (), s.tolerance)
        return max(w.nmse for w in computed) if all(w.within(s.tolerance) for w in computed) else math.inf

    right, read = q.right(len(s.ids)), q.readings.get(name)
    known = _suspected(q, read, len(s.ids))
    found: list[tuple[float, str]] = []
    for i, (what, t) in enumerate(known.items()):
        say(f"looking for the fault, {s.kind}", i / (len(known) + 1))
        found.append((distance(reference, t), what))
    closest, what = min(found, default=(math.inf, ""))
    if closest < math.inf:
        foreseen = read is not None and not differ(known[what], read)
        return _part(known[what], right), f"it computes another recipe: {what}", foreseen
    try:
        if distance(Reference(s.referred, q.device, q.dtype, swap_qk=True), right) < math.inf:
            return "permutation", "the rows of Q and K are in the other order: interleaved once too often or too seldom", False
    except YarnConvertError:
        pass
    if failing.start > 1:
        until = failing.start if failing.drift is None else failing.drift
        return "length", f"it is right up to position {until:,} and not beyond: a limit of length, or another recipe there", False
    return "runtime", "no known fault explains it: the runtime computes this architecture otherwise", False


def _suspected(q: Question, read: Effect | None, n: int) -> dict[str, Effect]:
    """What a runtime may compute instead, of a text of `n` tokens; last what its source takes from the file, where that is not meant."""
    known = suspects(q.meant.rope, n)
    if read is None or not differ(read, q.right(n)):
        return known
    what = next((what for what, t in known.items() if not differ(t, read)), "the one that its source takes from the file")
    return {other: t for other, t in known.items() if differ(t, read)} | {what: read}


def _part(t: Effect, right: Effect) -> str:
    """Which part of a table is another than the right one's."""
    return "table" if differ(t, right._replace(multiplier=t.multiplier, logits=t.logits)) else "multiplier"

"""A result of `validate` as lines for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import convert

from ..checkpoint.manifest import RopeRecord, Validation
from ..formats.files import page
from .result import CheckedRecipe, CheckedTokenizer, CheckedWeights, RanRuntime, Study, Trace, Validated, WindowResult

ITS_BASES = "it is the base's, and reads a text as that does"
SHOWN = 8  # windows of a study in the table; all are in the JSON and in the HTML report


def lines(result: Validated, quiet: bool = False) -> list[str]:
    """The report: three answers, one table a study, the verdict with its reasons. `quiet`: the verdict alone."""
    if quiet:
        return verdict(result)
    meant = result.intention
    recipe = meant.recipe
    over = f" over {recipe.inner.method}" if isinstance(recipe.inner, RopeRecord) else ""
    over += f" ({recipe.long.method} beyond {recipe.original_context:,} tokens)" if isinstance(recipe.long, RopeRecord) else ""
    out = [
        f"model     {result.model} ({result.format}, mostly {result.dtype})",
        f"intended  {recipe.method}{over}: {recipe.original_context:,} -> {meant.context:,} tokens, {meant.origin}",
        *_recipe(result.recipe),
        _weights(result.weights),
        *_tokenizer(result.tokenizer),
        *(f"warning   {line}" for line in result.warnings),
    ]
    for s in result.studies:
        out += ["", *_study(s)]
    out += ["", *(f"note      {row.name} was not run; to add it: {row.add}" for row in result.missing)]
    out += [f"note      the result is not on record: {result.unrecorded}"] if result.unrecorded else []
    failed = any(r.verdict == "failed" for s in result.studies for r in s.runtimes)
    out += [f"note      what each runtime is known not to do: {page('validation')}, Their limits"] if failed else []
    return [*out, *verdict(result)]


def verdict(result: Validated) -> list[str]:
    """The verdict in words, and its reasons."""
    left = unchecked(result.to_dict())
    word = result.verdict.upper() + (f", {left}" if left else "")
    return [word, *(f"  {reason}" for reason in result.reasons)]


def unchecked(result: Mapping[str, Any]) -> str:
    """What the verdict leaves open, in words, as its record says it."""
    return convert(dict(result), Validation).unchecked


def _recipe(r: CheckedRecipe) -> list[str]:
    intended = r.intended
    if r.verdict == "passed":
        error = r.max_error or 0.0
        detail = f"{len(intended.inv_freq)} pairs within {error:.1e}, cos and sin × {intended.multiplier:.6g}"
        out = [f"recipe    {'unproved' if r.doubt else 'passed'}: {r.reader} decodes what is intended, {detail}"]
        out += [f"          {r.doubt}"] if r.doubt else []
    else:
        who = "" if r.layer == "base" else f"{r.reader}: "
        out = [f"recipe    FAILED ({r.layer}): {who}{r.why}"]
    out += [f"          ignored by {r.reader}: {', '.join(r.ignored)}"] if r.ignored else []
    silent = r.unknown
    out += [f"          not in {name}: {why}" for name, why in r.readers.items() if why and name not in (r.reader, *silent)]
    return out + ([f"          unknown: {', '.join(silent)}"] if silent else [])


def _tokenizer(t: CheckedTokenizer) -> list[str]:
    if t.verdict == "passed":
        return [f"tokenizer passed: {t.why or ITS_BASES}"]
    return [f"tokenizer {t.verdict if t.verdict != 'failed' else 'FAILED'}: {t.why}"]


def _weights(w: CheckedWeights) -> str:
    return f"weights   {w.verdict if w.verdict != 'failed' else 'FAILED'}: {w.why or w.how}"


def _study(s: Study) -> list[str]:
    ref = s.reference
    memory = f", peak {ref.peak_device_bytes / 2**30:.2f} GiB" if ref.peak_device_bytes else ""
    out = [
        f"{what_ran(s)}, {s.tokens:,} tokens{where(s)}; reference on {ref.device}, {ref.dtype}, {ref.seconds:.1f} s{memory}",
        f"  {'positions':>17}  {'max |Δ|':>8}  {'NMSE':>8}  {'mean KL':>8}  {'same top':>8}  first drift",
    ]
    if s.fetched:
        out.append(f"  fetched from the Hub: {s.fetched / 1e9:.2f} GB")
    if found := s.of_base:
        worst = max(_worst(w) for w in found.windows)
        out.append(f"  in the reference its weights are at NMSE {worst:.1e} from the base's: {found.why or 'passed'}")
    elif s.why_no_base:
        out.append(f"  the reference has the file's own weights: {s.why_no_base}")
    for r in s.runtimes:
        name = label(r)
        if r.verdict == "not run":
            out.append(f"  {name}: not run: {r.why}")
        elif r.verdict == "passed":
            out.append(f"  {name}: passed in {r.seconds:.1f} s, every window within NMSE and KL {r.tolerance.nmse:.0e}")
            out += [f"  {name}: {r.why}"] if r.why else []
        elif r.verdict == "inconclusive":
            out.append(f"  {name}: inconclusive: {r.why}")
        else:
            outcome = f"does not follow, as is known ({r.predicted})" if r.as_predicted else f"FAILED ({r.layer})"
            out.append(f"  {name}: {outcome}: {r.why}")
        out += map(_window, shown(r.windows))
        if r.library:
            which = r.library
            out.append(f"  {name}: {which.name}, commit {which.commit or 'unknown'}, SHA-256 {which.sha256.get(which.name, '?')}")
        if r.blind_to:
            out.append(f"  {name}: by its coarser measure here not told apart: {', '.join(r.blind_to)}")
    out += _trace(s.trace) if s.trace else []
    if s.text_loss is not None:
        out.append(f"  the text's next tokens: {s.text_loss:.2f} nats each, guessing {s.guessing_loss:.2f}")
    if cost := s.within_base:
        losses = f"{cost.by_recipe:.2f} nats each by this recipe, {cost.by_base:.2f} by the base's own"
        out.append(f"  the first {cost.tokens:,}, within the base's context: {losses}")
    told = [f"{w.name} at {w.since:,}" if w.told_apart else f"{w.name} NOT" for w in s.wrong_recipes]
    return [*out, f"  wrong recipes told apart from position: {', '.join(told)}"] if told else out


def label(r: RanRuntime) -> str:
    """A runtime, its version, and its device where that is not the CPU."""
    device = r.device or "cpu"
    return f"{r.runtime} {r.version or ''}".strip() + (f" on {device}" if device != "cpu" else "")


def what_ran(s: Study) -> str:
    """What a study ran, in words."""
    if s.kind == "excerpt":
        return f"{ranges(s.kept)} in float32" if s.kept else f"the first {s.layers} of its layers in float32"
    if s.kind == "cut":
        return f"the cut: its own weights of {ranges(s.kept or ())}"
    return "the file's own weights" if s.kind == "real" else "the twin: its RoPE keys, random weights"


def _trace(t: Trace) -> list[str]:
    """Where a failure begins."""
    out = [f"  trace: {name.removesuffix('.weight')}: {why}" for name, why in list(t.tensors.items())[:SHOWN]]
    for m in t.modules:
        apart = "" if m.nmse is None else f", NMSE {m.nmse:.1e}"
        after = f", after {m.after}" if m.after else ""
        says = f"the first module that differs is {m.first}{apart}{after}" if m.first else "no module differs"
        out.append(f"  trace of {m.of}: {says}{f': {m.why}' if m.why else ''}")
    return out


def ranges(layers: Sequence[int]) -> str:
    """Layers in words."""
    starts = [i for i in layers if i - 1 not in layers]
    ends = [i for i in layers if i + 1 not in layers]
    runs = [str(a) if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True)]
    return f"layer{'s' * (len(layers) != 1)} {' and '.join(runs)}"


def where(s: Study) -> str:
    """Of two lists, which this study is of."""
    return f" by the list of texts of up to {s.within:,}" if s.within else ""


def shown(windows: Sequence[WindowResult]) -> Sequence[WindowResult]:
    """The windows that a terminal has room for: the first, the last, the worst, and some between."""
    if len(windows) <= SHOWN:
        return windows
    worst = max(range(len(windows)), key=lambda i: _worst(windows[i]))
    step = (len(windows) - 1) / (SHOWN - 2)
    kept = {round(i * step) for i in range(SHOWN - 1)} | {worst, len(windows) - 1}
    return [windows[i] for i in sorted(kept)]


def _worst(w: WindowResult) -> float:
    return math.inf if w.nmse is None else w.nmse


def _window(w: WindowResult) -> str:
    where = f"{w.start:,}" if w.end == w.start + 1 else f"{w.start:,}–{w.end - 1:,}"
    drift = "–" if w.drift is None else f"{w.drift:,}"
    numbers = (f"{'no number' if x is None else format(x, '.1e'):>8}" for x in (w.max_abs, w.nmse, w.kl))
    return f"  {where:>17}  {'  '.join(numbers)}  {w.top1:>8.2%}  {drift}"

"""The studies of real weights: those of the whole model, or of its cut beside its base's, and of an excerpt."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from ..compute.record import SHORTEST
from ..compute.reference import Reference, fits
from ..compute.tokens import text_ids
from ..conversion.intention import Intention, reading_at
from ..errors import UsageError
from ..options import ValidateOptions
from ..readers.switching import whole_context
from ..rope import Effect
from ..runtimes.table import runtime_of
from .course import LOADING, Course, all_passes, operations
from .cut import kept_layers
from .cuts import Cuts, write_cuts
from .excerpt import layers_of, write_excerpt
from .judging import tolerance_for
from .predicting import base_text_loss, guessed, within_base
from .rounding import rounds
from .study import FAILED, PREFIX, WIDTH, Case, Question, real_subject, study, twin_subject
from .trace import traced

BUDGET = 60.0  # seconds on a CPU; elsewhere the whole context is run
PROBE = 4 * WIDTH  # tokens of a pass by which the speed is measured
EXCERPT_TOKENS = 256  # of an excerpt at least, where the text goes so far
LAYERS = 2  # of a cut that nobody asked for


def real_studies(
    c: Checkpoint, base: Checkpoint | None, named: Checkpoint, q: Question, names: Sequence[str], settings: ValidateOptions, say: Course
) -> list[dict[str, Any]]:
    """The studies of the file's own weights. `named`: the file, or the base whose weights stand for its own."""
    context = q.meant.context
    text = text_ids(c, settings.text, min(context, settings.tokens or context))
    layers = layers_to_cut(c, named, settings, q.device)
    run = _cut if layers else _whole
    studies, ids = run(c, base, named, text, q, names, settings, layers, say)
    return studies + (_excerpt(c, c, text[: max(len(ids), EXCERPT_TOKENS)], q, names, say) if named is c and c.source.has_weights else [])


def layers_to_cut(c: Checkpoint, named: Checkpoint, settings: ValidateOptions, device: str) -> tuple[int, ...]:
    """Which layers are run instead of the whole; () for the whole. UsageError for a cut that was asked for and cannot be made."""
    able = named is c and c.family.listed and not c.packed and bool(c.tensors)
    if settings.cut and not able:
        lacks = (
            f"its weights are packed by {c.packed}" if c.packed else "its tensors have no names here" if c.tensors else "it has no weights"
        )
        raise UsageError(f"{c.source.name} cannot be cut: {lacks}", "leave out --cut; --twin runs the twin alone")
    n = settings.cut if settings.cut is not None else LAYERS if able and not fits(c, device, settings.dtype) else 0
    return kept_layers(c, n) if n else ()


Ran = tuple[list[dict[str, Any]], NDArray[np.int64]]  # studies, and the tokens that they had


def _whole(
    c: Checkpoint, base: Checkpoint | None, named: Checkpoint, text: NDArray[np.int64], q: Question, names: Sequence[str],
    settings: ValidateOptions, _: tuple[int, ...], say: Course,
) -> Ran:  # fmt: skip
    """The whole model."""
    reference, kinds = _reference(named, q, settings, say), rounds(c)
    ids = _as_far_as_it_pays(reference, c, q, names, text, settings, say)
    strict = bool(kinds) and named is c and layers_of(c) > 0
    tolerance = tolerance_for(settings.dtype, named.gelu and c.gguf is not None)
    real = real_subject(c, ids, q.meant.rope.original_context, tolerance, kinds, not strict)
    studies = [study(case, asked, reference, names, say) for case, asked in sides(c, real, q, names)]
    if base is not None and studies:
        studies[0]["within_base"] = within_base(reference, base, q, ids)
    del reference  # a large one makes room for the others'
    if base is not None and studies and guessed(studies[0]):
        studies[0]["base_text_loss"] = base_text_loss(base, ids, q.device, settings.dtype)
    if settings.trace and named is c and c.family.listed and any(r["verdict"] == FAILED for s in studies for r in s["runtimes"]):
        with tempfile.TemporaryDirectory(prefix="yarn-convert-trace-") as name:
            cuts = write_cuts(c, base, tuple(range(c.layers)), Path(name), say)
            studies = _with_trace(studies, cuts, q, ids, settings, say)
    return studies, ids


def _cut(
    c: Checkpoint, base: Checkpoint | None, named: Checkpoint, text: NDArray[np.int64], q: Question, names: Sequence[str],
    settings: ValidateOptions, layers: tuple[int, ...], say: Course,
) -> Ran:  # fmt: skip
    """Some layers of it, and the same of its base."""
    say.revise(cut=len(layers))
    with tempfile.TemporaryDirectory(prefix="yarn-convert-cut-") as name:
        cuts = write_cuts(c, base, layers, Path(name), say)
        kinds = rounds(cuts.own)
        strict = bool(kinds) and layers_of(c if c.source.has_weights else cuts.own) > 0
        reference = _reference(cuts.own if cuts.typed else cuts.base or cuts.own, q, settings, say)
        ids = _as_far_as_it_pays(reference, cuts.own, q, names, text, settings, say)
        tolerance = tolerance_for(settings.dtype, c.gelu and c.gguf is not None)
        case = real_subject(cuts.own, ids, q.meant.rope.original_context, tolerance, kinds, not strict)
        case = replace(case, kind="cut", base=cuts.base, typed=cuts.typed, different=cuts.different)
        said = {"layers": len(layers), "kept": list(layers), "fetched": cuts.fetched, "why_no_base": cuts.why}
        studies = [study(one, asked, reference, names, say) | said for one, asked in sides(c, case, q, names)]
        del reference
        studies = _with_trace(studies, cuts, q, ids, settings, say)
        if not c.source.has_weights:
            few = _excerpt(c, cuts.own, text[: max(len(ids), EXCERPT_TOKENS)], q, names, say)
            studies += [s | {"kept": list(layers[: s["layers"]])} for s in few]
        return studies, ids


def _with_trace(
    studies: list[dict[str, Any]], cuts: Cuts, q: Question, ids: NDArray[np.int64], settings: ValidateOptions, say: Course
) -> list[dict[str, Any]]:
    """The studies, the first of which says where what failed in them begins, if that was asked for."""
    found = traced(studies, cuts, q, ids, say) if settings.trace else None
    return studies if found is None else [studies[0] | {"trace": found}, *studies[1:]]


def _reference(named: Checkpoint, q: Question, settings: ValidateOptions, say: Course) -> Reference:
    say(LOADING, 0.0)
    return Reference(named, q.device, settings.dtype)


def budget_of(q: Question, settings: ValidateOptions) -> float | None:
    """Seconds that bound the text; None where nothing does."""
    free = settings.tokens is not None or (q.device != "cpu" and settings.budget is None)
    return None if free else BUDGET if settings.budget is None else settings.budget


def _as_far_as_it_pays(
    reference: Reference, c: Checkpoint, q: Question, names: Sequence[str], ids: NDArray[np.int64], settings: ValidateOptions, say: Course
) -> NDArray[np.int64]:
    if (budget := budget_of(q, settings)) is None:
        return ids
    say("measuring the speed", 0.0)
    found = ids[: affordable(reference, c, q, names, ids, budget / (2 if short_side(q.meant) else 1))]
    say.revise(real=len(found), rate=operations(c, min(PROBE, len(ids))) / reference.seconds)
    return found


def short_side(meant: Intention) -> int:
    """The tokens of the longest text that has the first of two lists, where longer ones have the other; 0 for a recipe of one table."""
    within = meant.rope.original_context
    return within if meant.rope.row.switches and within < meant.context else 0


def sides(c: Checkpoint, case: Case, q: Question, names: Sequence[str]) -> list[tuple[Case, Question]]:
    """A case, and where the recipe has two lists the same on a text that has the first, with what each runtime then reads of the file;
    that alone for a text which is no longer, and nothing where no runtime ever takes the first."""
    within = short_side(q.meant)
    if not within:
        return [(case, q)]
    small, ids = case.checkpoint, case.ids[:within]
    if case.kind == "twin":
        short = twin_subject(small, ids, within)
    else:
        short = real_subject(small, ids, within, case.tolerance, case.rounds, case.controls)
        short = replace(short, kind=case.kind, base=case.base, typed=case.typed, different=case.different)
    found = {name: reading_at(c, runtime_of(name).reader, len(ids), within) for name in q.readings}
    readings = {name: Effect(r.inv_freq, r.multiplier, r.beside.logits) for name, r in found.items() if r is not None}
    able = any(whole_context(runtime_of(name).reader, within) for name in names)
    short_one = [(replace(short, served=within), replace(q, readings=readings))] if able else []
    return [(case, q), *short_one] if len(case.ids) > within else short_one


def _excerpt(c: Checkpoint, of: Checkpoint, ids: NDArray[np.int64], q: Question, names: Sequence[str], say: Course) -> list[dict[str, Any]]:
    """The studies of the first layers in float32, which no rounding blurs, of a file or, where no more is here, of its cut; none where
    nothing is rounded, or one layer alone is too large."""
    if not rounds(of) or layers_of(of) < 1:
        return []
    with tempfile.TemporaryDirectory(prefix="yarn-convert-excerpt-") as folder:
        small, own = write_excerpt(of, ids, Path(folder, "excerpt.gguf"))
        subject = replace(real_subject(small, own, q.meant.rope.original_context, tolerance_for(gelu=c.family.gelu)), kind="excerpt")
        reference, strictly = Reference(small, q.device), replace(q, dtype="float32")
        return [study(case, asked, reference, names, say) | {"layers": small.layers} for case, asked in sides(c, subject, strictly, names)]


def affordable(reference: Reference, c: Checkpoint, q: Question, names: Sequence[str], ids: NDArray[np.int64], budget: float) -> int:
    """The longest text that `budget` seconds allow, in tokens, guessed from a short pass."""
    probe = min(PROBE, len(ids))
    for _ in range(2):  # the first pass warms up
        reference.logits(q.right(len(ids)), ids[:probe], [(probe - 1, probe)])
    an_operation = reference.seconds / operations(c, probe)

    def cost(n: int) -> float:
        return an_operation * operations(c, n)

    passes = all_passes(names)
    lengths = range(SHORTEST, len(ids) + 1, WIDTH // 4)
    return max((n for n in lengths if cost(n) * passes + 4 * cost(min(n, PREFIX)) <= budget), default=min(len(ids), WIDTH))

"""LongPPL (Fang et al., "What is Wrong with Perplexity for Long-context Language Modeling?", arXiv 2410.23771): perplexity over the tokens
that need a long context, which an evaluator chooses.

    LSD(t) = ln p(t | all before it) − ln p(t | a short context of it)     how much the long context helps
    LCL(t) = ln p(t | all before it)                                       whether the token follows from it
    t is a key token where LSD > α = 2 and LCL > β = −2; LongPPL = exp(mean of −ln p over these, by the model that is measured)

The short context slides as in the authors' package longppl 0.3.0: tokens K + i·d … K + (i+1)·d − 1 are predicted from those from i·d on,
so each has K to K + d − 1 tokens before it (K = 4096, d = 1024). The first K of a text are no key tokens. BOS stands before each context
where the tokenizer has one. The evaluator must read the texts as the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..compute.documents import TokenizedText
from ..compute.scorer import Ids
from ..errors import UsageError
from ..hearing import SayStage, heard, shares
from ..options import EvaluateOptions, LongpplOptions, Recipe
from .journal import ResultJournal
from .subjects import Line, Meter, Subject, check_same_tokens, lines_of
from .windows import NOTHING, Losses, document_error

WINDOW, SHORT_CONTEXT, STEP = 16384, 4096, 1024  # tokens, where nothing is said


@heard
def measure_longppl(say: SayStage, models: Sequence[str], wish: LongpplOptions, journal: ResultJournal) -> dict[str, Any]:
    """Measure all recipes of all models over the key tokens of one evaluator; the result is JSON."""
    s, window = wish.settings, WINDOW if wish.window is None else wish.window
    k, d = SHORT_CONTEXT if wish.short_context is None else wish.short_context, STEP if wish.step is None else wish.step
    if k < 1 or d < 1:
        raise UsageError("--short-context and --step must be numbers of tokens above 0", "--short-context 4k --step 1k")
    if window <= k:
        raise UsageError(f"a window of {window:,} tokens has none beyond a short context of {k:,}", "a longer --window")
    if not (math.isfinite(wish.alpha) and math.isfinite(wish.beta)):
        raise UsageError("--alpha and --beta must be numbers", "--alpha 2 --beta=-2")
    opened = [(subject, lines_of(subject.c, s, attention=True)) for subject in (Subject(m, s, journal) for m in models)]
    evaluator = Subject(wish.evaluator or models[0], _as_it_is(wish, models), journal)
    (own,) = lines_of(evaluator.c, evaluator.settings)
    texts = [d.ids[:window] for d in evaluator.documents(window)]
    subjects = [(subject, lines, subject.documents(window)) for subject, lines in opened]
    for subject, _, documents in subjects:
        check_same_tokens(subject, documents, evaluator, texts, "--evaluator")
    passes = [(a, min(a + k + d, window)) for a in range(0, window - k, d)]
    reread = sum(b - a for a, b in passes) / window
    choosing, *told_of = shares(say, [(1 + reread) * evaluator.parameters, *(len(lines) * x.parameters for x, lines in opened)])
    meter = Meter(f"key tokens by {evaluator.name}", [n for _ in texts for n in (window, *(b - a for a, b in passes))], choosing)
    keys = [_key_tokens(evaluator, own, ids, (k, d), passes, wish, meter) for ids in texts]
    chosen = {"model": evaluator.name, "label": own.label, "key_tokens": [len(found) for found in keys], **evaluator.describe()}
    evaluator.release()
    rows, described = [], []
    for (subject, lines, documents), told in zip(subjects, told_of, strict=True):
        meter = Meter(f"LongPPL of {subject.name}", [window for _ in lines for _ in texts], told)
        for line in lines:
            by_document = [_losses(subject, line, ids, found, meter) for ids, found in zip(texts, keys, strict=True)]
            rows.append({**subject.row(line), **_result(by_document, documents)})
        described.append(subject.described(documents))
        subject.release()
    return {
        "measure": "longppl", "window": window, "short_context": k, "step": d, "alpha": wish.alpha, "beta": wish.beta,
        "evaluator": chosen, "models": described, "rows": rows,
    }  # fmt: skip


def _as_it_is(wish: LongpplOptions, models: Sequence[str]) -> EvaluateOptions:
    """The settings of the evaluator: nothing is done to it, and the L that a user says is that of the models that are measured, which
    another one does not count from."""
    original = wish.settings.recipe.original_context if wish.evaluator in (None, *models) else None
    return replace(wish.settings, methods=(), recipes=(), recipe=Recipe(original_context=original))


def _key_tokens(
    subject: Subject,
    line: Line,
    ids: Ids,
    short: tuple[int, int],
    passes: Sequence[tuple[int, int]],
    wish: LongpplOptions,
    meter: Meter,
) -> list[int]:
    """The places of a text's key tokens, counted without BOS; `short`: K and d, of which `passes` are made."""
    lead = np.asarray(subject.lead, np.int64)
    key = subject.key(line, np.concatenate([lead, ids]), "key tokens", list(short), wish.alpha, wish.beta)
    if (known := subject.journal.get(key)) is not None:
        return [int(i) for i in known]

    def losses(a: int, b: int, first: int) -> Any:
        """−ln p of the tokens first … b−1, with those from a on before them."""
        part = np.concatenate([lead, ids[a:b]])
        progress = meter.begin(b - a)
        with subject.timed(len(part)):
            return subject.losses(line, part, len(lead) + first - a, progress)

    long, found = losses(0, len(ids), short[0]), list[int]()
    for a, b in passes:
        first = a + short[0]
        with_all = long[a : b - short[0]]
        gained = losses(a, b, first) - with_all
        found += [first + int(i) for i in np.flatnonzero((gained > wish.alpha) & (-with_all > wish.beta))]
    subject.journal.put(key, found)
    return found


def _losses(subject: Subject, line: Line, ids: Ids, keys: Sequence[int], meter: Meter) -> tuple[Losses, Losses]:
    """Of a text, its key tokens' losses and all tokens'."""
    lead = np.asarray(subject.lead, np.int64)
    whole = np.concatenate([lead, ids])
    progress, key = meter.begin(len(ids)), subject.key(line, whole, "longppl", list(keys), lengths=(len(whole), len(whole)))
    known = subject.journal.get(key)
    if known is None:
        first = max(1, len(lead))
        with subject.timed(len(whole)):
            losses = subject.losses(line, whole, first, progress)
        parts = losses[np.asarray(keys, np.int64) + len(lead) - first], losses
        known = [[len(part), float(part.sum()), float(np.square(part).sum())] for part in parts]
        subject.journal.put(key, known)
    over_keys, over_all = (Losses(*values) for values in known)
    return over_keys, over_all


def _result(by_document: Sequence[tuple[Losses, Losses]], documents: Sequence[TokenizedText]) -> dict[str, Any]:
    over_keys, over_all = (sum(part, NOTHING) for part in zip(*by_document, strict=True))
    some = [keys for keys, _ in by_document if keys.tokens]
    return {
        "longppl": over_keys.perplexity if over_keys.tokens else math.nan,
        "standard_error": over_keys.standard_error if over_keys.tokens else math.nan,
        "document_error": document_error(some),
        "key_tokens": over_keys.tokens,
        "perplexity": over_all.perplexity,
        "tokens": over_all.tokens,
        "by_document": [
            {"name": x.name, "longppl": keys.perplexity if keys.tokens else math.nan, "key_tokens": keys.tokens}
            for x, (keys, _) in zip(documents, by_document, strict=True)
        ],
    }

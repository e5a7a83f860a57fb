"""The measures as calls of the library, each with its command's options by keyword."""

from __future__ import annotations

from collections.abc import Sequence

from ..asking import taking
from ..options import (
    AdviseOptions,
    DivergenceOptions,
    LongpplOptions,
    NeedleOptions,
    PasskeyOptions,
    PerplexityOptions,
    RulerOptions,
    TemperatureOptions,
)
from .advice import measure_advice
from .choices import Advice, Search, Temperature
from .divergences import measure_divergence
from .found import Divergence, LongPPL, Needle, Passkey, Perplexity, Ruler, typed_as
from .journal import ResultJournal
from .key_tokens import measure_longppl
from .needles import measure_needle
from .passkeys import measure_passkey
from .perplexities import measure_perplexity
from .rulers import measure_ruler
from .search import measure_search
from .temperatures import measure_temperature


@taking(PerplexityOptions)
def perplexity(models: Sequence[str], options: PerplexityOptions) -> Perplexity:
    """Measure all recipes of all models at each window: `perplexity(["smollm2-135m"], EvaluateOptions(methods=("none", "yarn:4")),
    windows=(2048, 4096))`, with the fields of `PerplexityOptions`. Raises UsageError and InputError before anything long begins."""
    return typed_as(measure_perplexity(models, options, ResultJournal()), Perplexity)


@taking(PasskeyOptions)
def passkey(models: Sequence[str], options: PasskeyOptions) -> Passkey:
    """Let all recipes of all models find a number in text without meaning, with the fields of `PasskeyOptions`."""
    return typed_as(measure_passkey(models, options, ResultJournal()), Passkey)


@taking(NeedleOptions)
def needle(models: Sequence[str], options: NeedleOptions) -> Needle:
    """Let all recipes of all models find a number in a haystack, with the fields of `NeedleOptions`."""
    return typed_as(measure_needle(models, options, ResultJournal()), Needle)


@taking(RulerOptions)
def ruler(models: Sequence[str], options: RulerOptions) -> Ruler:
    """Measure all recipes of all models by RULER's tasks, with the fields of `RulerOptions`."""
    return typed_as(measure_ruler(models, options, ResultJournal()), Ruler)


@taking(LongpplOptions)
def longppl(models: Sequence[str], options: LongpplOptions) -> LongPPL:
    """Measure all recipes of all models over the tokens that need a long context, with the fields of `LongpplOptions`."""
    return typed_as(measure_longppl(models, options, ResultJournal()), LongPPL)


@taking(DivergenceOptions)
def divergence(models: Sequence[str], options: DivergenceOptions) -> Divergence:
    """How far all recipes of all models are from one base, token by token: `divergence(["q4.gguf"], base="f16.gguf")`, with the fields of
    `DivergenceOptions`."""
    return typed_as(measure_divergence(models, options, ResultJournal()), Divergence)


@taking(TemperatureOptions)
def temperature(models: Sequence[str], options: TemperatureOptions) -> Temperature:
    """Measure every multiplier on all models, with the fields of `TemperatureOptions`."""
    return typed_as(measure_temperature(models, options, ResultJournal()), Temperature)


@taking(AdviseOptions)
def advise(model: str, options: AdviseOptions) -> Advice | Search:
    """Try factors on one base: `advise("smollm2-135m", context=32768)`, with the fields of `AdviseOptions`; `search=True` gives a
    `Search`."""
    if options.search:
        return typed_as(measure_search(model, options, ResultJournal()), Search)
    return typed_as(measure_advice(model, options, ResultJournal()), Advice)

"""What the measures find, by its types: JSON and a value of the library are the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from .choices import Advice, Search, Temperature
from .measured import Finished, Measured, Row
from .result import finished

T = TypeVar("T")


class PerplexityPoint(Struct, frozen=True):
    """At one window, over so many documents, windows and tokens; `loss` in nats a token, `change` against the first row's, as a share."""

    window: int
    documents: int
    windows: int
    tokens: int
    loss: float | None
    perplexity: float | None
    standard_error: float | None
    document_error: float | None
    mean_of_window_means: float | None
    change: float | None


class PerplexityRow(Row, frozen=True, kw_only=True):
    """Its perplexity at each window."""

    points: tuple[PerplexityPoint, ...]


class PasskeyPoint(Struct, frozen=True):
    """At one length; `by_depth`: (trials, correct ones) of each bin from the beginning on."""

    length: int
    trials: int
    correct: int
    accuracy: float
    by_depth: tuple[tuple[int, int], ...]


class Trial(Struct, frozen=True):
    """One prompt; `depth` is the share of the filling before the key."""

    length: int
    tokens: int
    depth: float
    key: int
    answer: str
    correct: bool


class PasskeyRow(Row, frozen=True, kw_only=True):
    """Its accuracy at each length, and every prompt."""

    points: tuple[PasskeyPoint, ...]
    trials: tuple[Trial, ...]


class Share(Struct, frozen=True, kw_only=True):
    """At one length, how many were right; `low` to `high` is Wilson's interval of 95 %."""

    length: int
    trials: int
    correct: int
    accuracy: float
    low: float
    high: float


class NeedlePoint(Share, frozen=True, kw_only=True):
    """At one length and depth."""

    depth: float


class NeedleRow(Row, frozen=True, kw_only=True):
    """Its accuracy by length and depth, by length alone, and every prompt."""

    points: tuple[NeedlePoint, ...]
    by_length: tuple[Share, ...]
    trials: tuple[Trial, ...]


class RulerPoint(Struct, frozen=True):
    """One task at one length; `score` is the mean in per cent."""

    task: str
    length: int
    trials: int
    score: float


class RulerMean(Struct, frozen=True):
    """At one length, the mean of the tasks' scores."""

    length: int
    score: float


class RulerTrial(Struct, frozen=True):
    """One prompt, what was wanted and said, and its score in per cent."""

    task: str
    length: int
    tokens: int
    wanted: tuple[str, ...]
    answer: str
    score: float


class RulerRow(Row, frozen=True, kw_only=True):
    """Its scores; the longest length that is `effective`, by the threshold and by the base's own score within its window."""

    points: tuple[RulerPoint, ...]
    by_length: tuple[RulerMean, ...]
    trials: tuple[RulerTrial, ...]
    effective: int | None
    threshold_of_base: float | None
    effective_by_base: int | None


class KeyTokens(Struct, frozen=True):
    """A document's LongPPL, None where it has no key token."""

    name: str
    longppl: float | None
    key_tokens: int


class LongPPLRow(Row, frozen=True, kw_only=True):
    """Perplexity over the key tokens, with its errors as of any perplexity, and over all tokens."""

    longppl: float | None
    standard_error: float | None
    document_error: float | None
    key_tokens: int
    perplexity: float | None
    tokens: int
    by_document: tuple[KeyTokens, ...]


class Evaluator(Struct, frozen=True, kw_only=True):
    """Who chose the key tokens, how many of each document, and how long this run took for it."""

    model: str
    label: str
    key_tokens: tuple[int, ...]
    runtime: str
    seconds: float
    tokens: int
    tokens_per_second: float | None
    device: str | UnsetType | None = UNSET
    dtype: str | UnsetType = UNSET
    offloaded: bool | UnsetType = UNSET
    peak_device_bytes: int | UnsetType | None = UNSET
    torch: str | UnsetType = UNSET
    transformers: str | UnsetType = UNSET


class Estimate(Struct, frozen=True):
    """A number, its standard error by the spread of the tokens, and with documents as clusters, None for fewer than two."""

    value: float | None
    standard_error: float | None
    document_error: float | None


class DivergencePoint(Struct, frozen=True, kw_only=True):
    """Over the tokens begin … end−1 of all documents: KL(base ‖ model) in nats with its median, highest percentiles and maximum; RMS of
    the change of the true token's probability; share of the positions with the same most likely token; the perplexities, and the model's
    over the base's."""

    begin: int
    end: int
    tokens: int
    divergence: Estimate
    median: float | None
    percentile_99: float | None
    percentile_999: float | None
    maximum: float | None
    rms_change: Estimate
    same_top: Estimate
    base_perplexity: float | None
    perplexity: float | None
    ratio: Estimate


class DivergenceRow(Row, frozen=True, kw_only=True):
    """What it has cost over the whole window, and in each segment of it."""

    whole: DivergencePoint
    points: tuple[DivergencePoint, ...]


class Base(Row, frozen=True, kw_only=True):
    """Whom the others are compared with, and how that was computed."""

    ran: Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity(Finished):
    """By context window, one row a recipe and model; `tokens` and `stride` of sliding windows."""

    measure: Literal["perplexity"]
    windows: tuple[int, ...]
    tokens: int | None
    stride: int
    models: tuple[Measured, ...]
    rows: tuple[PerplexityRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passkey(Finished):
    """By length and depth, one row a recipe and model."""

    measure: Literal["passkey"]
    lengths: tuple[int, ...]
    trials: int
    depths: int
    models: tuple[Measured, ...]
    rows: tuple[PasskeyRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needle(Finished):
    """By length and depth, one row a recipe and model; `trials` of each cell."""

    measure: Literal["needle"]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    trials: int
    needles: int
    haystack: str
    models: tuple[Measured, ...]
    rows: tuple[NeedleRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruler(Finished):
    """By task and length, one row a recipe and model; `left_out`: tasks that were not run, and why."""

    measure: Literal["ruler"]
    lengths: tuple[int, ...]
    tasks: tuple[str, ...]
    left_out: tuple[str, ...]
    trials: int
    threshold: float
    models: tuple[Measured, ...]
    rows: tuple[RulerRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LongPPL(Finished):
    """Over the key tokens of one evaluator, one row a recipe and model."""

    measure: Literal["longppl"]
    window: int
    short_context: int
    step: int
    alpha: float
    beta: float
    evaluator: Evaluator
    models: tuple[Measured, ...]
    rows: tuple[LongPPLRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence(Finished):
    """From the distributions of `base`, by segment of position, one row a recipe and model."""

    measure: Literal["divergence"]
    window: int
    segments: tuple[tuple[int, int], ...]
    base: Base
    models: tuple[Measured, ...]
    rows: tuple[DivergenceRow, ...]


Found = Perplexity | Passkey | Needle | Ruler | LongPPL | Divergence | Temperature | Advice | Search
KINDS: Mapping[str, type[Found]] = {
    "perplexity": Perplexity, "passkey": Passkey, "needle": Needle, "ruler": Ruler, "longppl": LongPPL, "divergence": Divergence,
    "temperature": Temperature, "advise": Advice, "search": Search,
}  # fmt: skip


def typed(found: Mapping[str, Any]) -> Found:
    """What a `measure_…` has found, by its type, and finished."""
    return typed_as(found, KINDS[found["measure"]])


def typed_as(found: Mapping[str, Any], kind: type[T]) -> T:
    """The same, of a kind that is known."""
    return msgspec.convert(json.loads(json.dumps(finished(found))), kind)  # a version of torch is no plain text

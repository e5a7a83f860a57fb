"""What the measures find, by its types: JSON and a value of the library are the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ..checkpoint.manifest import RopeRecord
from ..compute.record import Hardware, Library
from ..formats.decoding import Result
from .result import finished

T = TypeVar("T")


class Document(Struct, frozen=True):
    """A text, and how many tokens of it there are."""

    name: str
    tokens: int


class Measured(Struct, frozen=True, kw_only=True):
    """One model: its documents, how many were `left_out` as too short, the BOS before each window, whether it reads the same tokens as
    the first; and how it was computed, `tokens` of them in `seconds` by this run."""

    model: str
    documents: tuple[Document, ...]
    left_out: int
    bos: tuple[int, ...]
    same_tokens: bool | UnsetType = UNSET
    runtime: str
    seconds: float
    tokens: int
    tokens_per_second: float | None
    version: str | UnsetType | None = UNSET
    device: str | UnsetType | None = UNSET
    library: Library | UnsetType = UNSET
    kind: str | UnsetType = UNSET
    dtype: str | UnsetType = UNSET
    offloaded: bool | UnsetType = UNSET
    peak_device_bytes: int | UnsetType | None = UNSET
    torch: str | UnsetType = UNSET
    transformers: str | UnsetType = UNSET
    max_model_len: int | UnsetType = UNSET


class Attention(Struct, frozen=True):
    """At which distances tokens attend, as `rope.Distances` has it."""

    window: int
    first: int | None
    grown: int | None


class Row(Struct, frozen=True, kw_only=True):
    """One recipe on one model; `context` is L', None for a dynamic one, `original_context` L. `attention`: of a method that changes it."""

    model: str
    label: str
    method: str
    recipe: RopeRecord
    context: int | None
    original_context: int
    attention: Attention | UnsetType = UNSET


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


class TemperaturePoint(Struct, frozen=True):
    """At one multiplier of cos and sin; `by_document_and_segment`: of each document its segments."""

    multiplier: float
    perplexity: float | None
    standard_error: float | None
    document_error: float | None
    by_segment: tuple[float | None, ...]
    by_document: tuple[float | None, ...]
    by_document_and_segment: tuple[tuple[float | None, ...], ...]


class TemperatureRow(Struct, frozen=True, kw_only=True):
    """As `Row`, and its perplexity at each multiplier, over the first `window` tokens, whose `segments` are (begin, end)."""

    model: str
    label: str
    method: str
    recipe: RopeRecord
    context: int | None
    factor: float
    original_context: int
    recommended: float
    best: float
    best_by_document: tuple[float, ...]
    window: int
    segments: tuple[tuple[int, int], ...]
    points: tuple[TemperaturePoint, ...]


class Cost(Struct, frozen=True):
    """On a short text, against the base."""

    tokens: int
    perplexity: float | None
    change: float | None


class Tried(Struct, frozen=True):
    """One factor: perplexity by segment, by how much it exceeds the control's as a share, and its cost on short texts."""

    factor: float
    label: str
    method: str
    recipe: RopeRecord
    context: int | None
    by_segment: tuple[float | None, ...]
    excess: tuple[float | None, ...]
    short: tuple[Cost, ...]


class SearchedPart(Struct, frozen=True):
    """One part of a search: the `numbers` that it moved, how many recipes it tried, whether it `settled` before its share was used, the
    best value of its own and of all so far, and what that is called."""

    part: str
    numbers: tuple[str, ...]
    trials: int
    settled: bool
    best: float | None
    so_far: float | None
    label: str


class JudgedRow(Struct, frozen=True, kw_only=True):
    """One recipe on the texts that judge: `value`, what a search makes least, in nats a token, and the same on the texts that were searched
    on, where it led there; perplexity on short texts, by segment beyond L and over all of these; `difference` of its value from the
    rival's, and the error of that; `asked`, what a file of it would say, and its factors by pair, of the base none."""

    label: str
    method: str
    recipe: RopeRecord
    context: int | None
    value: float | None
    searched: float | None
    short: tuple[Cost, ...]
    by_segment: tuple[float | None, ...]
    beyond: float | None
    difference: float | None
    error: float | None
    asked: Mapping[str, Any] | None
    factors: tuple[float, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity(Result):
    """By context window, one row a recipe and model; `tokens` and `stride` of sliding windows."""

    measure: Literal["perplexity"]
    windows: tuple[int, ...]
    tokens: int | None
    stride: int
    models: tuple[Measured, ...]
    rows: tuple[PerplexityRow, ...]
    created: str
    versions: Mapping[str, str]
    hardware: Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Passkey(Result):
    """By length and depth, one row a recipe and model."""

    measure: Literal["passkey"]
    lengths: tuple[int, ...]
    trials: int
    depths: int
    models: tuple[Measured, ...]
    rows: tuple[PasskeyRow, ...]
    created: str
    versions: Mapping[str, str]
    hardware: Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Needle(Result):
    """By length and depth, one row a recipe and model; `trials` of each cell."""

    measure: Literal["needle"]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    trials: int
    needles: int
    haystack: str
    models: tuple[Measured, ...]
    rows: tuple[NeedleRow, ...]
    created: str
    versions: Mapping[str, str]
    hardware: Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruler(Result):
    """By task and length, one row a recipe and model; `left_out`: tasks that were not run, and why."""

    measure: Literal["ruler"]
    lengths: tuple[int, ...]
    tasks: tuple[str, ...]
    left_out: tuple[str, ...]
    trials: int
    threshold: float
    models: tuple[Measured, ...]
    rows: tuple[RulerRow, ...]
    created: str
    versions: Mapping[str, str]
    hardware: Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class LongPPL(Result):
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
    created: str
    versions: Mapping[str, str]
    hardware: Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Temperature(Result):
    """By multiplier of cos and sin, one row a model."""

    measure: Literal["temperature"]
    models: tuple[Measured, ...]
    rows: tuple[TemperatureRow, ...]
    created: str
    versions: Mapping[str, str]
    hardware: Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice(Result):
    """The smallest `factor` that is flat to `context` tokens, None for none of those that were tried; `control`: the base's perplexity by
    segment, through its own window."""

    measure: Literal["advise"]
    context: int
    method: str
    original_context: int
    tolerance: float
    segments: tuple[tuple[int, int], ...]
    control: tuple[float | None, ...]
    factor: float | None
    tried: tuple[Tried, ...]
    models: tuple[Measured, ...]
    created: str
    versions: Mapping[str, str]
    hardware: Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Search(Result):
    """The recipe that was `chosen` by the texts searched on, and whether it is `advised`: better, on texts that are held out, than `rival`,
    the best of what needs no search, by more than the `error` of the `difference`. `split`: what is held out, documents or windows of the
    only one; `clusters` of them are independent. `recipe`: what a file of it says, None where none is advised."""

    measure: Literal["search"]
    context: int
    original_context: int
    short_weight: float
    seed: int
    budget: float | None
    trials: int
    split: Literal["documents", "windows"]
    clusters: int
    searched: tuple[Document, ...]
    held_out: tuple[Document, ...]
    segments: tuple[tuple[int, int], ...]
    parts: tuple[SearchedPart, ...]
    rows: tuple[JudgedRow, ...]
    rival: str
    chosen: str
    difference: float | None
    error: float | None
    advised: bool
    recipe: Mapping[str, Any] | None
    models: tuple[Measured, ...]
    created: str
    versions: Mapping[str, str]
    hardware: Hardware

    def row(self, label: str) -> JudgedRow:
        return next(row for row in self.rows if row.label == label)


Found = Perplexity | Passkey | Needle | Ruler | LongPPL | Temperature | Advice | Search
KINDS: Mapping[str, type[Found]] = {
    "perplexity": Perplexity, "passkey": Passkey, "needle": Needle, "ruler": Ruler, "longppl": LongPPL,
    "temperature": Temperature, "advise": Advice, "search": Search,
}  # fmt: skip


def typed(found: Mapping[str, Any]) -> Found:
    """What a `measure_…` has found, by its type, and finished."""
    return typed_as(found, KINDS[found["measure"]])


def typed_as(found: Mapping[str, Any], kind: type[T]) -> T:
    """The same, of a kind that is known."""
    return msgspec.convert(json.loads(json.dumps(finished(found))), kind)  # a version of torch is no plain text

"""What helps to choose a recipe, by its types: the best temperature, the smallest factor that serves, the best of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import Struct

from ..checkpoint.manifest import RopeRecord
from .measured import Document, Finished, Measured


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
class Temperature(Finished):
    """By multiplier of cos and sin, one row a model."""

    measure: Literal["temperature"]
    models: tuple[Measured, ...]
    rows: tuple[TemperatureRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice(Finished):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Search(Finished):
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

    def row(self, label: str) -> JudgedRow:
        return next(row for row in self.rows if row.label == label)

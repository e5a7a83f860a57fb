"""What every measure says, by its types: of a model, its texts and how they were computed; of one recipe on it; and when, and on what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from ..checkpoint.manifest import RopeRecord
from ..compute.record import Hardware, Library
from ..formats.decoding import Result, encoded


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Result):
    """What a result ends with: when, with which versions and on what it was made."""

    created: str
    versions: Mapping[str, str]
    hardware: Hardware

    def to_dict(self) -> dict[str, Any]:
        """As --json prints it, these members last."""
        found = encoded(self)
        return found | {name: found.pop(name) for name in ("created", "versions", "hardware")}

"""What a validation says, by its types; `check` computes it as the JSON that goes on record.

A member is UNSET where there is nothing to say: a runtime that did not run has no seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ..checkpoint.manifest import RopeRecord
from ..compute.record import Hardware, Library
from ..formats.decoding import Result
from .judging import Tolerance

Outcome = Literal["passed", "failed", "inconclusive"]
PartOutcome = Literal["passed", "failed", "unchecked"]


class Meant(Struct, frozen=True):
    """The recipe that is meant, over `context` tokens, and where that was said."""

    recipe: RopeRecord
    context: int
    origin: str


class CheckedFile(Struct, frozen=True):
    """One file of the model: its bytes, its digest (see `digests.Digest`) and when it was written."""

    bytes: int
    sha256_tree: str
    modified: str


class AskedOptions(Struct, frozen=True):
    """The options, as `ValidateOptions` has them; the recipe is in `Meant`."""

    base: str | None
    like: str | None
    runtimes: tuple[str, ...]
    device: str
    dtype: str
    budget: float | None
    tokens: int | None
    twin_tokens: int | None
    text: str | None
    real: bool
    twin: bool
    overrides: bool = False
    cut: int | None = None


class Rotation(Struct, frozen=True):
    """Frequencies by pair in radians a token, the multiplier of cos and sin, and the context in tokens."""

    inv_freq: tuple[float, ...]
    multiplier: float
    context: int | None


class CheckedRecipe(Struct, frozen=True):
    """Whether the file says what is meant: `why` not, in which `layer`, and what its `reader` makes of it; `ignored` keys; `readers`:
    why each known one computes something else, "" if it does not; `unknown` are those of which that was not studied. `max_error` is
    the largest relative one; `doubt`: why a file that passes is not proved."""

    verdict: Literal["passed", "failed"]
    reader: str
    why: str
    layer: str
    intended: Rotation
    ignored: tuple[str, ...]
    readers: Mapping[str, str]
    unknown: tuple[str, ...]
    decoded: Rotation | UnsetType = UNSET
    max_error: float | UnsetType | None = UNSET
    doubt: str | UnsetType = UNSET


class CheckedWeights(Struct, frozen=True):
    """Whether the weights are the base's: `how` that is known, `why` they are not, which tensors are `different`, `sha256` by file."""

    verdict: PartOutcome
    how: str
    why: str
    different: tuple[str, ...]
    sha256: Mapping[str, str | None] | UnsetType = UNSET
    identical: bool | UnsetType = UNSET


class CheckedTokenizer(Struct, frozen=True):
    """Whether the tokenizer is the base's; one of the `differences` for each kind of thing."""

    verdict: PartOutcome
    why: str
    differences: tuple[str, ...]


class WindowResult(Struct, frozen=True):
    """See `judging.Deviation`; None for a number that is not finite."""

    start: int
    end: int
    max_abs: float | None
    nmse: float | None
    kl: float | None
    kl_max: float | None
    top1: float | None
    drift: int | None


class WrongRecipe(Struct, frozen=True, rename={"since": "from"}):
    """A control: whether the check tells this recipe from what is meant, `since` which position, and how long a text it `needs` if not."""

    name: str
    told_apart: bool
    since: int | None
    windows: tuple[WindowResult, ...]
    needs: int | UnsetType | None = UNSET


class RanRuntime(Struct, frozen=True, kw_only=True):
    """What a runtime computed, against the reference. `predicted`: why its source says that it does not follow, and whether it did
    `as_predicted`; the `layer` of a fault; `drift`: the first position beyond the tolerance; `blind_to`: wrong recipes that it passes."""

    runtime: str
    predicted: str
    as_predicted: bool
    tolerance: Tolerance
    version: str | UnsetType | None = UNSET
    seconds: float | UnsetType = UNSET
    device: str | UnsetType | None = UNSET
    library: Library | UnsetType = UNSET
    windows: tuple[WindowResult, ...] = ()
    compared: str | UnsetType = UNSET
    verdict: Literal["passed", "failed", "inconclusive", "not run"]  # "inconclusive": of a model that amplifies rounding, as `why` says
    layer: str
    why: str
    drift: int | UnsetType | None = UNSET
    blind_to: tuple[str, ...]


class Computed(Struct, frozen=True):
    """The reference's run."""

    device: str
    dtype: str
    offloaded: bool
    peak_device_bytes: int | None
    torch: str
    transformers: str
    seconds: float
    tokens_per_second: float


class WithinBase(Struct, frozen=True):
    """Nats a token of the first `tokens`, by the recipe and by the base's own."""

    tokens: int
    by_recipe: float
    by_base: float


class OfBase(Struct, frozen=True):
    """The file's own weights against its base's, both in the reference, and `why` they are not those; `different`: tensors, and how."""

    verdict: Literal["passed", "failed"]
    why: str
    windows: tuple[WindowResult, ...]
    different: Mapping[str, str]
    tolerance: Tolerance


class TracedModule(Struct, frozen=True):
    """The `first` module of a pass that differs, by `nmse` (None: not finite), and the one before it, which does not; "" for none. `of` the
    file's weights, from its base's in the reference; or of a runtime, from the file's in the reference. `why` nothing could be traced, or
    what is known besides."""

    of: str
    first: str
    nmse: float | None
    after: str
    why: str


class Trace(Struct, frozen=True):
    """Where a failure begins: `tensors` that are not the base's, by their names, and how; the `modules` over so many `tokens`."""

    tokens: int
    tensors: Mapping[str, str]
    modules: tuple[TracedModule, ...]


class Study(Struct, frozen=True, kw_only=True):
    """One model in the reference and in each runtime: "real" weights, a "cut" with `layers` of its layers, those of the numbers `kept`, an
    "excerpt" of `layers` of them in float32 (of a cut's, `kept`, where no others are here), or the "twin". `text_loss` and `guessing_loss`
    in nats a token; `permuted`: whether Q and K lie in another order. Of a cut `of_base` says whether its weights compute what the base's
    do, unless `why_no_base` is said; `fetched`: bytes that came from the Hub."""

    kind: Literal["real", "cut", "excerpt", "twin"]
    within: int | UnsetType = UNSET  # of two lists, the length up to which texts have the first, which this study is of
    of_base: OfBase | UnsetType = UNSET
    tokens: int
    reference: Computed
    tolerance: Tolerance
    wrong_recipes: tuple[WrongRecipe, ...]
    runtimes: tuple[RanRuntime, ...]
    text_loss: float | None
    guessing_loss: float
    permuted: bool
    layers: int | UnsetType = UNSET
    kept: tuple[int, ...] | UnsetType = UNSET
    fetched: int | UnsetType = UNSET
    why_no_base: str | UnsetType = UNSET
    trace: Trace | UnsetType = UNSET
    within_base: WithinBase | UnsetType | None = UNSET
    base_text_loss: float | UnsetType | None = UNSET


class MissingRuntime(Struct, frozen=True):
    """One that could have run, and the command that adds it."""

    name: str
    add: str | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated(Result):
    """The three answers on a checkpoint, `recipe`, `weights` and `tokenizer`, what runtimes computed in the `studies`, and the `verdict`
    with its `reasons`. `dtype` is that of most weights; `warnings`: of where texts end; `missing`: runtimes that are not installed;
    `unrecorded`: why the result is not in the manifest, "" if it is, UNSET where it has no place."""

    model: str
    commit: str | UnsetType | None = UNSET  # of a model on the Hub
    format: Literal["gguf", "safetensors"]
    dtype: str
    intention: Meant
    files: Mapping[str, CheckedFile]
    settings: AskedOptions
    recipe: CheckedRecipe
    weights: CheckedWeights
    tokenizer: CheckedTokenizer
    warnings: tuple[str, ...]
    studies: tuple[Study, ...]
    missing: tuple[MissingRuntime, ...]
    verdict: Outcome
    reasons: tuple[str, ...]
    created: str
    versions: Mapping[str, str]
    hardware: Hardware
    unrecorded: str | UnsetType = UNSET

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


def validated(result: Mapping[str, Any]) -> Validated:
    """The JSON of `check` by its types."""
    return msgspec.convert(json.loads(json.dumps(result)), Validated)

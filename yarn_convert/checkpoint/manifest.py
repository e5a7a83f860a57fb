"""The manifest, `yarn_convert.json`: what an output says of its making. Its layout stands here, and JSON becomes these types once.

Members that are not named here, as those of another version, are passed over by a reader and kept by `changed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ..errors import FormatError, YarnConvertError
from ..formats.decoding import decoded, parse
from ..formats.digests import Digest
from ..formats.files import exists, read_text
from ..formats.gguf_file import is_gguf
from ..formats.json_text import edit
from ..formats.split import stem_of
from ..formats.tensors import load_json
from ..rope import MAX_CONTEXT, MAX_ROTARY_DIM, Param, Rope, recipe_of, table

MANIFEST = "yarn_convert.json"  # what yarn-convert leaves beside the weights
AGAIN = "convert the model again, or delete the manifest: then the model is what its files say"
MEANT = "--like MODEL or --scale S says what is meant"
Tokens = Annotated[int, Meta(ge=1, lt=MAX_CONTEXT)]


class RopeRecord(Struct, frozen=True):
    """A `rope.Rope` as `rope.recipe_of` spells it. `sliding_window`: of a GGUF whose base has one, "off" where it was turned off, else its
    tokens, which are no fewer than the context's. `kept`: a scaling that the base came with, of which the format alone was changed. `long`:
    of two lists of which the first is the base's own table, the recipe that gave the second."""

    method: str
    rope_theta: float
    rotary_dim: Annotated[int, Meta(ge=1, lt=MAX_ROTARY_DIM)]
    original_context: Tokens
    params: dict[str, float | bool | str | tuple[float, ...]]
    inner: RopeRecord | UnsetType | None = UNSET
    sliding_window: str | Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    kept: bool | UnsetType = UNSET
    still: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    long: RopeRecord | UnsetType = UNSET
    position_temperature: float | UnsetType = UNSET

    @property
    def long_rope(self) -> Rope | None:
        """`long` as a recipe. FormatError as `rope`."""
        return self.long.rope() if isinstance(self.long, RopeRecord) else None

    def rope(self) -> Rope:
        """FormatError for parameters that give no table."""
        params: dict[str, Param] = dict(self.params)
        inner = self.inner.rope() if isinstance(self.inner, RopeRecord) else None
        rope = Rope(self.method, self.rope_theta, self.rotary_dim, self.original_context, params, inner, self.still or 0)
        try:
            table(rope)
        except YarnConvertError as e:
            raise FormatError(f"what is recorded is no recipe: {e.message}", MEANT) from None
        return rope


class Base(Struct, frozen=True):
    """Where a model came from; `repo` and `commit` on the Hub."""

    name: str | None = None
    repo: str | None = None
    commit: str | None = None
    format: str | None = None


class AskedRecord(Struct, frozen=True):
    """Options of the conversion of which nothing else tells: the method, an original context that the base's files do not say,
    and "off" for a sliding window; and all of the `options.Recipe` that is not as usual, by its names."""

    method: str | None = None
    original_context: Tokens | None = None
    sliding_window: str | None = None
    recipe: dict[str, Any] | UnsetType = UNSET


class WeightFile(Struct, frozen=True):
    """`how` it came to be: "copy", "written", …; `sha256` of the bytes that were written; `sha256_of_hub` is what the Hub says of the
    file that was copied, which nobody here has compared with its bytes."""

    file: str
    bytes: int = 0
    how: str = ""
    sha256: str | UnsetType = UNSET
    sha256_of_hub: str | UnsetType = UNSET


class WeightsRecord(Struct, frozen=True):
    identical_to_base: bool | None = None
    files: list[WeightFile] = []


class DeviationRecord(Struct, frozen=True):
    """Of a comparison of logits; null for what is not finite."""

    nmse: float | None = None
    top1: float | None = None


class Ran(Struct, frozen=True):
    """One runtime in a study."""

    runtime: str
    verdict: str
    why: str = ""
    version: str | None = None
    windows: list[DeviationRecord] = []

    @property
    def nmse(self) -> float | None:
        """The largest of its windows."""
        return max((w.nmse for w in self.windows if w.nmse is not None), default=None)

    @property
    def top1(self) -> float | None:
        """The smallest of its windows."""
        return min((w.top1 for w in self.windows if w.top1 is not None), default=None)


class StudyRecord(Struct, frozen=True):
    """`within`: see `validation.result.Study`."""

    kind: str
    tokens: int
    runtimes: list[Ran] = []
    within: int | UnsetType = UNSET


class Answer(Struct, frozen=True):
    """To a question that needs a base; "unchecked" without one."""

    verdict: str = ""


class Intended(Struct, frozen=True):
    recipe: RopeRecord
    context: Tokens


class Validation(Struct, frozen=True):
    """What is read of a validation's record; `validation.run` writes it. `files`: what it is about."""

    verdict: str
    created: str = ""
    intention: Intended | None = None
    files: dict[str, Digest] = {}
    weights: Answer = Answer()
    tokenizer: Answer = Answer()
    studies: list[StudyRecord] = []

    @property
    def unchecked(self) -> str:
        """What "passed" leaves open, in words; "" for nothing, and for other verdicts."""
        parts = [name for name in ("weights", "tokenizer") if getattr(self, name).verdict == "unchecked"]
        return f"{' and '.join(parts)} unchecked" if parts and self.verdict == "passed" else ""


class Point(Struct, frozen=True):
    """A perplexity at one window; null for what is not finite."""

    window: int
    perplexity: float | None = None
    standard_error: float | None = None
    change: float | None = None


class MeasuredRecord(Struct, frozen=True):
    """The base's perplexities."""

    model: str
    points: list[Point] = []


class DocumentRecord(Struct, frozen=True):
    name: str


class Evaluation(Struct, frozen=True):
    """What is read of a perplexity on record; `evaluation.result` writes it."""

    runtime: str
    base: MeasuredRecord
    points: list[Point]
    documents: list[DocumentRecord]
    created: str = ""
    tokens: int | None = None
    stride: int | None = None


class HeldOut(Struct, frozen=True):
    """Perplexity of held-out texts at one window, before a training and after it; null for what was not measured."""

    window: int
    before: float | None = None
    after: float | None = None


class Finetuning(Struct, frozen=True, kw_only=True):
    """One training. `tokens`: seen in all; `sequence` of a segment, `batch` in segments; `data`: the texts that were read; `loss`: of the
    first step and of the last, in nats; `deviations` from the paper's recipe."""

    created: str = ""
    recipe: RopeRecord | None = None
    steps: int = 0
    tokens: int = 0
    sequence: int = 0
    batch: int = 0
    lr: float = 0.0
    warmup: int = 0
    seed: int = 0
    pack: bool = False
    lora: int | None = None
    dtype: str = ""
    processes: int = 1
    data: list[str] = []
    loss: list[float] = []
    held_out: list[HeldOut] = []
    deviations: list[str] = []


class Manifest(Struct, frozen=True, kw_only=True):
    """The whole, in the order in which it is written. `context` is L', `scale` s, `attention_factor` the multiplier of cos and sin;
    `hparams` has config.json's names, `config` is what a folder's says beside its RoPE; `readers`: reader -> "exact", or why not, and
    `reader_versions` those that were looked at; `converter`: which made the GGUF, if another's did; `mmproj`: the file of what sees or
    hears beside it, `how` by which converter; `finetuning`: each training, the first one first. Defaults say that nothing is known."""

    yarn_convert: str = ""
    created: str = ""
    base: Base = Base()
    format: str = ""
    asked: AskedRecord = AskedRecord()
    recipe: RopeRecord
    context: Tokens
    scale: float | None = None
    attention_factor: float | None = None
    carrier: str = ""
    outtype: str = ""
    finetuned: bool | None = None
    finetuning: list[Finetuning] | UnsetType = UNSET
    hparams: dict[str, Any] | None = None
    config: dict[str, Any] | None = None
    weights: WeightsRecord = WeightsRecord()
    readers: dict[str, str] = {}
    reader_versions: dict[str, str] = {}
    notes: list[str] = []
    validation: Validation | None = None
    versions: dict[str, str] = {}
    evaluation: Evaluation | UnsetType | None = UNSET
    converter: str | UnsetType = UNSET
    mmproj: WeightFile | UnsetType = UNSET


def manifest_path(out: Path) -> Path:
    """Where the manifest of an output lies: in the folder, or beside the .gguf file; the parts of a split one share theirs."""
    return out.with_name(f"{stem_of(out)}.{MANIFEST}") if is_gguf(out) else out / MANIFEST


def read_manifest(model: Path) -> Manifest | None:
    """The manifest of an output of yarn-convert; None where there is none. FormatError for one of another form, which names the
    member."""
    path = manifest_path(model)
    return decoded(load_json(path), Manifest, path.name, AGAIN) if exists(path.parent, path.name) else None


def recipe_in(recipe: Any) -> RopeRecord:
    """The inverse of `rope.recipe_of`, and what is recorded beside the rope: from parsed JSON, or its text as a GGUF has it. FormatError
    for what is no recipe."""
    try:
        value = parse(recipe.encode()) if isinstance(recipe, str) else recipe
    except ValueError as e:
        raise FormatError(f"what is recorded is no recipe: {e}", MEANT) from None
    return decoded(value, RopeRecord, "what is recorded is no recipe", MEANT)


def recorded(rope: Rope, **beside: Any) -> RopeRecord:
    return msgspec.convert(recipe_of(rope) | beside, RopeRecord)


def whole_recipe(rope: Rope, long: Rope | None) -> dict[str, Any]:
    """`rope.recipe_of`, with `RopeRecord.long`."""
    return recipe_of(rope) | ({"long": recipe_of(long)} if long else {})


def as_json(manifest: Manifest) -> dict[str, Any]:
    """A manifest of our own making as JSON. One that was read has lost what this version does not know: see `changed`."""
    made: dict[str, Any] = msgspec.to_builtins(manifest)
    return made


def changed(model: Path, members: Mapping[str, Any]) -> bytes:
    """The text of the manifest beside `model` with members set to JSON, or removed where they are `json_text.REMOVE`; all others
    stay as they are. FormatError for a file that is no JSON object."""
    path = manifest_path(model)
    load_json(path)
    return edit(read_text(path.parent, path.name), members).encode()


def with_files(manifest: Manifest, files: list[WeightFile]) -> Manifest:
    return msgspec.structs.replace(manifest, weights=WeightsRecord(manifest.weights.identical_to_base, files))

"""What a training is: the paper's recipe, what was asked for instead, and what follows of both. Pure.

Sources: YaRN, arXiv 2309.00071: Section 4.1 (AdamW, β 0.9 and 0.95, no weight decay, learning rate 2e-5 after 20 steps of linear warm-up,
global batch 64, segments of 64k tokens between BOS and EOS, 400 steps at s = 16), 4.2 (200 steps from there at s = 32), B.4 (Mistral:
segments of 16k, 1e-6 from the first step on, the window off, 1,000 steps at s = 8, then 500 at s = 16).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..checkpoint import Checkpoint
from ..compute.record import DTYPES
from ..conversion.extension import Extension, extend, unbaked
from ..errors import UsageError, many
from ..options import FinetuneOptions, Preset, Recipe
from ..rope import METHODS, Rope, recipe_of

BETAS = (0.9, 0.95)
PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "paper": {"sequence": 65536, "steps": 400, "batch": 64, "lr": 2e-5, "warmup": 20, "sliding_window": "keep"},
    "mistral": {"sequence": 16384, "steps": 1000, "batch": 64, "lr": 1e-6, "warmup": 0, "sliding_window": "off"},
}
KEPT = 10  # times that the state of a training is kept, about
FEWEST = 8  # tokens of a segment that can be trained on


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A training, all of its numbers known. `rope`: the recipe that is trained, a dynamic one unbaked; `sequence` in tokens, of one
    segment; `batch` in segments a step, of all ranks; `dtype` "float32" or "bfloat16"."""

    rope: Rope
    sequence: int
    steps: int
    batch: int
    micro_batch: int
    lr: float
    warmup: int
    clip: float
    pack: bool
    seed: int
    lora: int | None
    parallel: int
    checkpointing: bool
    dtype: str
    windows: tuple[int, ...]
    evaluate_every: int | None
    checkpoint_every: int
    sliding_window: str
    preset: Preset = "paper"

    @property
    def tokens(self) -> int:
        """Of all steps."""
        return self.steps * self.batch * self.sequence

    def sharded(self, world: int) -> bool:
        """Whether FSDP holds the parameters of so many processes: one in float32 has nothing to gather and nothing to cast."""
        return world > 1 or self.dtype != "float32"

    def passes(self, copies: int) -> int:
        """Of each rank, in one step; UsageError for a batch that cannot be shared out."""
        share = copies * self.micro_batch
        if self.batch % share:
            most = max(1, self.batch // share) * share
            each = f" with {self.micro_batch} segments each" if self.micro_batch > 1 else ""
            by = f"{many(copies, 'copy', 'copies')} of the model{each}"
            raise UsageError(f"a batch of {many(self.batch, 'segment')} cannot be shared out among {by}", f"--batch {most}")
        return self.batch // share

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0: linear to `lr` over the warm-up, then constant."""
        return self.lr * min(1.0, (step + 1) / self.warmup) if self.warmup else self.lr

    @property
    def outcome(self) -> dict[str, Any]:
        """All that decides what comes out, but for rounding; not how it is computed, nor how often it is kept or measured."""
        how = ("micro_batch", "parallel", "checkpointing", "evaluate_every", "checkpoint_every")
        return {k: v for k, v in self.to_dict().items() if k not in how}

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rope": recipe_of(self.rope), "windows": list(self.windows)}


def settings_of(c: Checkpoint, o: FinetuneOptions, device: str) -> tuple[Settings, Extension]:
    """The training that is asked for, and the extension that its output gets. Raises UsageError for numbers out of range, or where
    there is nothing to train for."""
    e, given = _extension(c, o), PRESETS[o.preset]
    asked = {name: given[name] if getattr(o, name) is None else getattr(o, name) for name in given}
    sequence = min(asked["sequence"], e.context) if o.sequence is None else o.sequence
    _check(o, asked, sequence, e)
    row = METHODS.get(o.recipe.method)
    rope = unbaked(e, o.recipe.method) if row and row.baked_as and _extends(o) else e.rope
    return Settings(
        rope=rope, sequence=sequence, micro_batch=o.micro_batch, clip=o.clip, pack=o.pack, seed=o.seed, lora=o.lora,
        parallel=o.sequence_parallel, checkpointing=o.checkpointing, windows=_windows(c, o, sequence), evaluate_every=o.evaluate_every,
        dtype=DTYPES[o.dtype or ("bf16" if device == "cuda" else "f32")], preset=o.preset,
        checkpoint_every=o.checkpoint_every or max(1, asked["steps"] // KEPT), **{k: v for k, v in asked.items() if k != "sequence"},
    ), e  # fmt: skip


def recipe_asked(o: FinetuneOptions) -> Recipe:
    """The recipe of the conversion behind the training: a model that is extended already keeps its own."""
    return o.recipe if _extends(o) else replace(o.recipe, method="none")


def _extends(o: FinetuneOptions) -> bool:
    return o.recipe.scale is not None or o.recipe.context is not None


def _extension(c: Checkpoint, o: FinetuneOptions) -> Extension:
    if o.recipe.short:
        raise UsageError("--short base keeps the base's logits on short texts, and a training changes its weights", "leave out --short")
    if not _extends(o) and not (c.long or c.rope).row.extends:
        raise UsageError(f"{c.source.name} is not extended, and neither --scale nor --context says how far it shall be", "--scale 16")
    return extend(c, recipe_asked(o))


def _check(o: FinetuneOptions, asked: Mapping[str, Any], sequence: int, e: Extension) -> None:
    if sequence < FEWEST:
        raise UsageError(f"segments of {sequence} tokens teach nothing", f"--sequence {min(e.context, 4096)}")
    if sequence > e.context:
        raise UsageError(f"segments of {sequence:,} tokens are longer than the {e.context:,} that are trained for", "a shorter --sequence")
    if rest := sequence % o.sequence_parallel:
        among = f"{sequence:,} tokens cannot be shared out among {o.sequence_parallel} processes"
        raise UsageError(among, f"--sequence {sequence - rest}")
    if not 0 < asked["lr"] < 1:
        raise UsageError(f"--lr must be above 0 and below 1, not {asked['lr']:g}", "--lr 2e-5")
    if o.clip < 0:
        raise UsageError(f"--clip must not be below 0, and is {o.clip:g}", "--clip 0 lets gradients be as large as they are")


def _windows(c: Checkpoint, o: FinetuneOptions, sequence: int) -> tuple[int, ...]:
    """The windows of the perplexity on held-out texts: L and its doublings within a segment, and the segment."""
    if o.windows:
        if max(o.windows) > sequence:
            raise UsageError(f"no window of {max(o.windows):,} tokens is in segments of {sequence:,}", "shorter --windows")
        return tuple(sorted(set(o.windows)))
    doublings = [c.rope.original_context << k for k in range(40)]
    return (*(n for n in doublings if n < sequence), sequence)


def deviations(s: Settings, e: Extension) -> list[str]:
    """In what a training is not the paper's, for the plan and the manifest."""
    given, source = PRESETS[s.preset], {"paper": "4.1", "mistral": "B.4"}[s.preset]
    found = [
        f"{name.replace('_', ' ')} {_shown(getattr(s, name))} where the paper ({source}) has {_shown(value)}"
        for name, value in given.items()
        if getattr(s, name) != value and name != "sliding_window"
    ]
    found += [f"method {s.rope.method} where the paper has yarn"] if s.rope.method != "yarn" else []
    found += (
        [f"segments are packed with whole documents: the paper cuts one document into segments of {given['sequence']:,}"] if s.pack else []
    )
    found += [f"adapters of rank {s.lora} where the paper trains all weights"] if s.lora else []
    found += [f"gradients are clipped at a norm of {s.clip:g}, of which the paper says nothing"] if s.clip else []
    return found + (["positions beyond the segment are not trained"] if s.sequence < e.context else [])


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)

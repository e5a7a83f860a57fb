"""The options of a fine-tuning."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ..asking import Group, Help, Only
from .commands import Device, Dtype, Force, Revision
from .measures import Texts
from .reading import TOKENS, token_list, tokens
from .recipe import Recipe

Preset = Literal["paper", "mistral"]
Trainer = Literal["axolotl", "ms-swift", "llama-factory", "torchtitan"]


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """A training at the extended context, and how its output is written. Without a factor or context in `recipe`, a model that is
    extended already is trained as it is. None of a number: as `preset` has it."""

    recipe: Recipe = field(default_factory=Recipe)
    _: KW_ONLY
    texts: Annotated[Texts, Only("files", "dataset")] = field(default_factory=Texts)
    preset: Annotated[Preset, Help("paper: YaRN 4.1; mistral: its B.4, 16k segments and a constant rate.")] = "paper"
    sequence: Annotated[int | None, Help("Tokens of a segment. [default: the context, at most 64k]", read=tokens, metavar=TOKENS)] = None
    steps: Annotated[int | None, Help("Steps of the optimizer. [default: 400]", least=1)] = None
    batch: Annotated[int | None, Help("Segments a step, over all processes. [default: 64]", least=1)] = None
    micro_batch: Annotated[int, Help("Segments that go through the model at once, in each process.", least=1), Group("Training")] = 1
    lr: Annotated[float | None, Help("Learning rate. [default: 2e-5]")] = None
    warmup: Annotated[int | None, Help("Steps over which it rises from 0. [default: 20]", least=0)] = None
    clip: Annotated[float, Help("Largest norm of the gradient; 0: any.")] = 1.0
    pack: Annotated[bool, Help("Fill segments with whole documents, which do not see each other.")] = False
    seed: Annotated[int, Help("Of the order of the segments, and of adapters.", least=0)] = 0
    lora: Annotated[int | None, Help("Train adapters of this rank, and merge them at the end.", least=1)] = None
    sequence_parallel: Annotated[int, Help("Processes that hold one segment together.", least=1)] = 1
    checkpointing: Annotated[
        bool,
        Help("Compute activations again instead of keeping them.", names=("--activation-checkpointing/--no-activation-checkpointing",)),
    ] = True
    held_out: Annotated[
        tuple[Path, ...], Help("Texts to measure perplexity on. [default: a few segments are kept back]"), Group("Held-out texts")
    ] = ()
    evaluate_every: Annotated[int | None, Help("Measure it every so many steps, too. [default: before and after]", least=1)] = None
    windows: Annotated[
        tuple[int, ...], Help("Context windows of that. [default: L and its doublings]", read=token_list, metavar="<tokens,…>")
    ] = ()
    checkpoint_every: Annotated[
        int | None, Help("Keep the state every so many steps. [default: about ten times]", least=1), Group("Training")
    ] = None
    out: Annotated[Literal["safetensors", "gguf"], Help("safetensors or gguf."), Group("")] = "safetensors"
    outtype: Annotated[str, Help("auto (as the base), or a type or mix, as at a conversion.", read=str.lower, metavar="<str>")] = "auto"
    output: Annotated[Path | None, Help("Where to write; default NAME-METHOD-CONTEXT-tuned.", names=("-o", "--output"))] = None
    sliding_window: Annotated[Literal["keep", "off"] | None, Help("keep, or off: full attention. [default: keep]")] = None
    log: Annotated[Path | None, Help("A line of JSON for each step. [default: OUTPUT.jsonl]"), Group("Training")] = None
    device: Annotated[Device, Group("")] = "auto"
    dtype: Annotated[Dtype | None, Help("Of the computation: f32 or bf16. [default: bf16 on a GPU]")] = None
    resume: Annotated[bool, Help("Only go on with what was interrupted.")] = False
    emit: Annotated[Trainer | None, Help("Train nothing: write what another trainer needs to train this recipe.")] = None
    revision: Annotated[Revision, Group("Files")] = None
    force: Annotated[Force, Group("")] = False

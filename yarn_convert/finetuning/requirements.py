"""The memory that a training takes in each process, before it begins. Pure arithmetic over shapes, held against what was measured in
docs/finetuning.md.

With FSDP each of W ranks keeps 1/W of parameters, gradients and AdamW's two moments, all in float32 (Rajbhandari et al., arXiv 1910.02054,
stage 3); a layer's parameters are gathered whole in the type of the computation while it runs, and those of the next one meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..checkpoint import Checkpoint
from ..compute.reference import free_memory
from .losses import logits_at_once
from .settings import Settings

WORKING = 14, 5  # what one layer has at a time for its backward pass: numbers a token, by hidden size and by width of the feed-forward
BESIDE = 0.6 * 2**30  # bytes of Python, PyTorch and transformers


@dataclass(frozen=True, slots=True)
class Requirement:
    """Bytes a process: `parameters`, `gradients`, `optimizer`, its shards; `gathered`, whole layers; `activations`; `logits`. `free`: what
    there is; `lower`: the options that would need less."""

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    logits: int
    free: int
    lower: tuple[str, ...] = ()

    def by_name(self) -> dict[str, int]:
        """What is needed, part by part."""
        return {k: v for k, v in asdict(self).items() if k not in ("free", "lower")}

    @property
    def total(self) -> int:
        return sum(self.by_name().values()) + int(BESIDE)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say where the memory is likely too small."""
        if self.total <= self.free:
            return ()
        need, free = (f"{n / 2**30:.1f} GiB" for n in (self.total, self.free))
        return (f"about {need} of memory a process are needed, and {free} are free: {', '.join(self.lower)} lower that",)

    def to_dict(self) -> dict[str, Any]:
        return {**self.by_name(), "total": self.total, "free": self.free, "lower": list(self.lower)}


def requirement(c: Checkpoint, s: Settings, device: str, world: int) -> Requirement:
    """Of a training on so many ranks."""
    parts = {name: math.prod(p.shape) for name, p in c.parts(gguf=False).items() if name not in c.unused}
    h, layers = c.hparams, max(1, c.layers)
    hidden, ff = int(h.get("hidden_size") or 0), max(c.sizes.get(k, 0) for k in ("ff", "expert_ff"))
    element = 4 if s.dtype == "float32" else 2
    total, outside = sum(parts.values()), sum(n for name, n in parts.items() if ".layers." not in name and ".h." not in name)
    layer = (total - outside) / layers
    adapters = int(s.lora * 2 * math.sqrt(layer * 7) * layers) if s.lora else 0  # 7 maps a layer, A and B of each
    trained, frozen = (adapters, total) if s.lora else (total, 0)
    tokens = s.micro_batch * s.sequence / s.parallel
    working = tokens * (WORKING[0] * hidden + WORKING[1] * ff) * element
    kept = tokens * hidden * element * layers if s.checkpointing else working * layers
    vocabulary = int(h["vocab_size"])
    return Requirement(
        parameters=int((4 * trained + element * frozen) / world),
        gradients=int(4 * trained / world),
        optimizer=int(8 * trained / world),
        gathered=int((outside + 2 * layer) * element + (0 if s.lora else (outside + layer) * (element + 4))) if s.sharded(world) else 0,
        activations=int(kept + working),
        logits=int(12 * min(logits_at_once(device), tokens * vocabulary) + 4 * vocabulary * hidden * (not s.lora)),
        free=free_memory(device) // (1 if device == "cuda" else world),
        lower=tuple(_lower(s, device)),
    )


def _lower(s: Settings, device: str) -> list[str]:
    """The options that would lower it."""
    found = [] if s.checkpointing else ["--activation-checkpointing"]
    found += ["--lora 16"] if not s.lora else []
    found += ["--micro-batch 1"] if s.micro_batch > 1 else []
    found += ["more processes"] if device == "cuda" else []
    found += ["a larger --sequence-parallel"] if device == "cuda" and s.sequence > 4096 else []
    return [*found, "a shorter --sequence"]

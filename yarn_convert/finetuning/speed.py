"""How fast a training is, how long it takes, and how well it uses what it runs on."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from ..checkpoint import Checkpoint
from .settings import Settings

PEAKS = {  # a part of a GPU's name -> its dense bfloat16 operations a second, by its vendor's data sheet
    "H100": 989e12, "H200": 989e12, "H800": 989e12, "B200": 2250e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12, "A10": 125e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip
TRIED, SIDE = 0.2, 1024  # seconds of products of square matrices, and their side, where no data sheet is known


class Speed:
    """Tokens a second and the model FLOPs utilization (Chowdhery et al., arXiv 2204.02311, Appendix B): operations that the model needs,
    without those that checkpointing does again, by those that the devices could do."""

    def __init__(self, c: Checkpoint, s: Settings, device: str, world: int) -> None:
        self.s, self.per_token, self.peak = s, operations(c, s), peak(device, s.dtype) * world

    def of(self, seconds: float) -> dict[str, float]:
        """Of a step that took so long."""
        rate = self.s.batch * self.s.sequence / seconds
        return {"tokens_per_second": rate, "mfu": rate * self.per_token / self.peak}

    @property
    def expected(self) -> float:
        """Seconds of the whole training, where a third of what the devices could do is reached."""
        return 3 * self.s.tokens * self.per_token / self.peak

    def told(self, step: int, done: Sequence[dict[str, Any]]) -> str:
        """A line about a step that begins, from the one before it."""
        if not done:
            return f"step {step + 1} of {self.s.steps}"
        last = done[-1]
        return (
            f"step {step + 1} of {self.s.steps}, loss {last['loss']:.4f}, {last['tokens_per_second']:,.0f} tokens/s, "
            f"MFU {last['mfu']:.0%}, {last['memory'] / 2**30:.1f} GiB"
        )


def operations(c: Checkpoint, s: Settings) -> float:
    """Floating-point operations of a forward and a backward pass for one token of a segment: 6 for each weight that is multiplied with,
    and 12·(heads · head dimension) a layer for each token that it sees, half of a segment's. Beside adapters weights have no gradients of
    their own: 4. Of experts only those count that a token goes through."""
    shapes = {name: part.shape for name, part in c.parts(gguf=False).items() if name not in c.unused}
    share = float(c.hparams.get("num_experts_per_tok") or 1) / float(c.hparams.get("num_experts") or 1)
    sizes = {name: math.prod(shape) * (share if ".experts." in name else 1) for name, shape in shapes.items() if len(shape) > 1}
    tied = not any(name.endswith("lm_head.weight") for name in sizes)
    weights = sum(size for name, size in sizes.items() if tied or "embed_tokens" not in name)
    return (4 if s.lora else 6) * weights + 6.0 * c.layers * c.heads("q") * c.head_dim * s.sequence


def peak(device: str, dtype: str) -> float:
    """Operations a second of one device: of its data sheet, else as products of matrices reach them."""
    import torch

    if device == "cuda":
        name = torch.cuda.get_device_name()
        if known := next((value for part, value in PEAKS.items() if part in name), None):
            return known
    a = torch.ones(SIDE, SIDE, dtype=getattr(torch, dtype), device=device)
    a @ a
    begin, n = time.perf_counter(), 0
    while time.perf_counter() - begin < TRIED:
        float((a @ a)[0, 0])
        n += 1
    return n * 2 * SIDE**3 / (time.perf_counter() - begin)


def memory(device: str) -> int:
    """Bytes: the most that a GPU has held so far, or what the process holds."""
    import psutil
    import torch

    return int(torch.cuda.max_memory_allocated() if device == "cuda" else psutil.Process().memory_info().rss)

"""What a training came to, for people."""

from __future__ import annotations

from ..errors import many
from .run import Finetuned, compared


def lines(done: Finetuned) -> list[str]:
    """The losses and speed, and what held-out texts gained."""
    steps, found = done.history.steps, []
    if steps:
        last, rate = steps[-1], steps[-1]["tokens"] / sum(s["seconds"] for s in steps)
        found.append(f"loss      {steps[0]['loss']:.4f} -> {last['loss']:.4f} nats in {many(len(steps), 'step')}")
        found.append(f"speed     {rate:,.0f} tokens/s, MFU {rate * last['mfu'] / last['tokens_per_second']:.0%}")
    for point in compared(done.history):
        if point.before and point.after:
            change = point.after / point.before - 1
            found.append(f"held out  {point.window:>9,} tokens: perplexity {point.before:.4g} -> {point.after:.4g} ({change:+.1%})")
    return found

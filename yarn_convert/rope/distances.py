"""Methods that change at which distances tokens attend, and not how fast pairs turn.

No table says them, so no file can: they are in the code of an attention alone. `evaluate` computes them, to compare with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import Unsupported, UsageError

FIRST = 10  # tokens that LM-Infinite keeps in sight, as its authors' README calls it; 10 to 100 are alike to them


@dataclass(frozen=True, slots=True)
class Distances:
    """Tokens fewer than `window` apart attend at their distance i − j, all others at the distance `window`. `first`: of the others only
    that many at the beginning of the text are seen; None: all of them. `grown`: L, from which on the query of position i is multiplied by
    ln(i + 1)/ln L; None: never. Lengths in tokens."""

    window: int
    first: int | None = None
    grown: int | None = None

    def as_json(self) -> dict[str, int | None]:
        return {"window": self.window, "first": self.first, "grown": self.grown}


@dataclass(frozen=True, slots=True)
class AttentionMethod:
    """What a name stands for: `first` and whether queries are `grown`, as `Distances` has them; whether its window is L where none is
    said."""

    summary: str
    first: int | None = None
    grown: bool = False
    within: bool = False


ATTENTION_METHODS: Mapping[str, AttentionMethod] = {
    # Su 2023, https://kexue.fm/archives/9708: relative positions are min(i − j, w)
    "rerope": AttentionMethod("no distance is above the window"),
    # the same with queries scaled by max(1, ln(i + 1)/ln L), as bojone/rerope's rerope_patch.py has it
    "rerope-logn": AttentionMethod("no distance is above the window, and queries grow beyond L", grown=True),
    # Han et al., arXiv 2308.16137; Glaciohound/LM-Infinite, convert_llama_model(model, L, 10)
    "lm-infinite": AttentionMethod("the window and the first tokens alone are seen, at no distance above it", first=FIRST, within=True),
}


def distances_of(name: str, window: int | None, original: int) -> Distances:
    """What a name means with this window on a model of L = `original` tokens. UsageError for a window that is missing or none."""
    row = ATTENTION_METHODS[name]
    if window is None and not row.within:
        raise UsageError(f"{name} needs its window in tokens", f"--method {name}:{max(1, original // 2)}")
    window = original if window is None else window
    if window < 1:
        raise UsageError(f"a window of {window} tokens is none", f"--method {name}:{max(1, original // 2)}")
    return Distances(window, row.first, original if row.grown else None)


def no_recipe(name: str) -> Unsupported:
    """Why a method of attention extends no file, and what does."""
    says = f"{name} changes the attention and not RoPE's frequencies: no file can say it, and no runtime would compute it"
    return Unsupported(says, f"yarn-convert evaluate perplexity MODEL --method {name}:512,yarn:4 compares it; --method yarn extends")

"""Whether a model predicts its text better than guessing does, and what a recipe costs where its base needs none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from ..compute.reference import Reference
from ..rope import effect
from .study import PREFIX, Question, whole_loss

GUESSED = 0.9  # of the loss of guessing: what comes no closer predicts no text
COSTLY = 1.0  # nats a token, of what a recipe costs on short texts: yarn ×32 costs SmolLM2 0.7 without training, linear ×2 1.1
WORDS = 1000  # tokens of the smallest vocabulary whose loss says anything: below it are bytes, and tests' random models


def guessed(s: Mapping[str, Any]) -> bool:
    """Whether the model of this study predicts its text no better than guessing does."""
    loss = s["text_loss"]
    return loss is not None and _tells(s) and not loss < GUESSED * s["guessing_loss"]


def costly(s: Mapping[str, Any]) -> bool:
    """Whether this study's recipe predicts much worse than its base's does where that needs none."""
    found = s.get("within_base")
    return found is not None and _tells(s) and not found["by_recipe"] < found["by_base"] + COSTLY


def _tells(s: Mapping[str, Any]) -> bool:
    return bool(s["guessing_loss"] >= math.log(WORDS))


def base_text_loss(base: Checkpoint, ids: NDArray[np.int64], device: str, dtype: str) -> float | None:
    """The loss of a base on the same text, within its own context; None where it cannot be had."""
    n = min(PREFIX, len(ids), base.context)
    if n < 2 or not base.tensors or max(ids[:n]) >= base.hparams["vocab_size"]:
        return None
    return whole_loss(Reference(base, device, dtype), effect(base.rope, n), ids[:n])


def within_base(reference: Reference, base: Checkpoint, q: Question, ids: NDArray[np.int64]) -> dict[str, Any] | None:
    """What a recipe costs where its base needs none: the loss of the first `tokens`, by the recipe and, of the same weights, by the
    base's own. None where there is nothing to compare."""
    n = min(PREFIX, len(ids), base.context)
    if n < 2 or base.rope.rotary_dim != q.meant.rope.rotary_dim or base.rope == q.meant.rope:
        return None
    by_recipe, by_base = (whole_loss(reference, e, ids[:n]) for e in (q.right(n), effect(base.rope, n)))
    return {"tokens": n, "by_recipe": by_recipe, "by_base": by_base}

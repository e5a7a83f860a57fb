"""Logits of the extended model at the windows that `validate` looks at, over its whole context."""

from __future__ import annotations

from typing import Any

import numpy as np
from job import Job

from yarn_convert.checkpoint import Checkpoint, open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.compute.reference import Reference
from yarn_convert.compute.tokens import text_ids
from yarn_convert.rope import effect
from yarn_convert.validation.judging import tolerance_for
from yarn_convert.validation.study import real_subject


def opened(job: Job) -> Checkpoint:
    return open_checkpoint(resolve(str(job.folder)))


def question(job: Job) -> tuple[Any, Any, Any]:
    """(ids, spans, the recipe's effect at that length)."""
    original, extended = job.lengths()
    c = opened(job)
    ids = text_ids(c, None, extended)
    return ids, real_subject(c, ids, original, tolerance_for()).spans, effect(c.rope, len(ids))


def of(job: Job, device: str, dtype: str) -> tuple[Any, Any]:
    """(float32[rows, vocabulary], spans)."""
    ids, spans, right = question(job)
    return Reference(opened(job), device, dtype).logits(right, ids, spans), spans


def save(job: Job, name: str, values: Any, spans: Any) -> None:
    np.savez(job.work / f"logits-{name}.npz", values=values, spans=np.array(spans))


def load(job: Job, name: str) -> tuple[Any, Any]:
    with np.load(job.work / f"logits-{name}.npz") as kept:
        return kept["values"], [(int(a), int(b)) for a, b in kept["spans"]]

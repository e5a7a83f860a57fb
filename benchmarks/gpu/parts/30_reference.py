"""The reference on the device over the whole extended context: time, memory, wrong recipes; its logits are kept for `agreement`."""

import statistics
from typing import Any

import logits
import numpy as np
from job import Job

from yarn_convert.compute.reference import Reference
from yarn_convert.validation.judging import compare, tolerance_for, wrong_tables

ON, LIMIT, NEEDS = "gpu", 90, ("prepare",)
RUNS = 3


def main(job: Job) -> None:
    for dtype in ("float32", "bfloat16"):
        reference, (ids, spans, right) = Reference(logits.opened(job), job.device, dtype), logits.question(job)
        found, seconds = None, []
        for _ in range(RUNS + 1):  # the first warms up
            found = reference.logits(right, ids, spans)
            seconds.append(reference.seconds)
        assert found is not None
        logits.save(job, f"{job.device}-{dtype}", found, spans)
        told: dict[str, Any] = {}
        tolerance = tolerance_for(dtype)
        for name, wrong in wrong_tables(logits.opened(job).rope, len(ids)).items():
            windows = compare(found, reference.logits(wrong, ids, spans), spans, (), tolerance)
            told[name] = {"nmse": max(w.nmse for w in windows), "from": next((w.start for w in windows if not w.within(tolerance)), None)}
        job.put(dtype, {
            **reference.describe(), "tokens": len(ids), "seconds": statistics.median(seconds[1:]), "first": seconds[0], "wrong": told,
        })  # fmt: skip
        if job.device == "cuda" and dtype == "float32":
            tf32(job, reference, ids, spans, right, found)
        del reference


def tf32(job: Job, reference: Reference, ids: Any, spans: Any, right: Any, found: Any) -> None:
    """What TF32 would cost, which is off."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    windows = compare(found, reference.logits(right, ids, spans), spans, (), tolerance_for())
    torch.backends.cuda.matmul.allow_tf32 = False
    job.put("tf32", {"nmse": float(np.max([w.nmse for w in windows])), "seconds": reference.seconds})

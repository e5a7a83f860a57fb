"""How far the device's logits are from the CPU's, window by window."""

import logits
from job import Job

from yarn_convert.validation.judging import compare, tolerance_for

ON, LIMIT, NEEDS = "cpu", 30, ("cpu", "reference")


def main(job: Job) -> None:
    expected, spans = logits.load(job, "cpu")
    for dtype in ("float32", "bfloat16"):
        found, _ = logits.load(job, f"{job.device}-{dtype}")
        job.put(dtype, [w.as_json() for w in compare(expected, found, spans, (), tolerance_for(dtype))])

"""Tokens a second: `evaluate perplexity` and the reference, each against the plain loop of transformers, in turns."""

import sys

from job import HERE, Job

ON, LIMIT, NEEDS = "gpu", 60, ("prepare",)


def main(job: Job) -> None:
    sys.path.insert(0, str(HERE.parent))
    import evaluation

    original, _ = job.lengths()
    width, stride = original // 4, original // 32
    for dtype in ("float32", "bfloat16"):
        job.put(dtype, evaluation.speed(job.folder, 3 * width, width, stride, job.device, dtype))

"""The reference on the CPU in float32 over the whole extended context: what the GPU is compared with."""

import time

import logits
from job import Job

ON, LIMIT, NEEDS = "cpu", 330, ("prepare",)


def main(job: Job) -> None:
    begin = time.perf_counter()
    logits.save(job, "cpu", *logits.of(job, "cpu", "float32"))
    job.put("seconds", time.perf_counter() - begin)

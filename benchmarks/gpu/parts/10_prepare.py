"""The base, extended, in both formats."""

import time
from typing import Any

from job import SCALE, Job

ON, LIMIT, NEEDS = "cpu", 60, ()


def main(job: Job) -> None:
    seconds: dict[str, Any] = {}
    for out, path in (("safetensors", job.folder), ("gguf", job.gguf)):
        begin = time.perf_counter()
        job.command("convert", job.model, "--scale", SCALE, "--out", out, "-o", path, "--force")
        seconds[out] = time.perf_counter() - begin
    original, extended = job.lengths()
    job.put("model", {"name": job.model.stem, "original_context": original, "context": extended, "scale": SCALE})
    job.put("seconds", seconds)

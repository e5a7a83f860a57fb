"""The device matrix: the twin of the GGUF in every device of llama.cpp, in each type and mode."""

from job import Job

ON, LIMIT, NEEDS = "gpu", 150, ("prepare", "build")
KEPT = ("tokens", "version", "devices", "cells", "verdict", "reasons")


def main(job: Job) -> None:
    original, _ = job.lengths()
    words = ("--device-matrix", "--device", job.device, "--twin-tokens", original + 64)
    found = job.command("validate", job.gguf, *words, passes=(0, 3))
    job.put("matrix", {k: found[k] for k in KEPT})

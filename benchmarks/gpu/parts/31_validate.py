"""`validate` of the folder, whole context: transformers on the device, in float32 and bfloat16, and with its attention written out."""

from job import Job, verdict

ON, LIMIT, NEEDS = "gpu", 150, ("prepare",)


def main(job: Job) -> None:
    original, extended = job.lengths()
    common = ("validate", job.folder, "--base", job.model, "--device", job.device)
    runs = {
        "whole": ("--tokens", extended, "--runtime", "transformers", "--runtime", "transformers:bf16"),
        "eager": ("--tokens", 2 * original, "--real", "--runtime", "transformers:eager", "--runtime", "transformers:bf16-eager"),
        "reference in bf16": ("--tokens", extended, "--real", "--dtype", "bf16", "--runtime", "transformers"),
    }  # written out, attention over the whole context would need the square of its length in memory
    if job.device == "cpu":
        del runs["eager"]
    for name, words in runs.items():
        job.put(name, verdict(job.command(*common, *words, passes=(0, 3))))

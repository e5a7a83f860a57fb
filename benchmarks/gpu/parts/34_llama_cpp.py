"""`validate` of the GGUF: llama.cpp on the device, with flash attention and without."""

from job import Job, verdict

ON, LIMIT, NEEDS = "gpu", 150, ("prepare", "build")


def main(job: Job) -> None:
    _, extended = job.lengths()
    words = ("--tokens", extended, "--runtime", "llama.cpp", "--runtime", "llama.cpp:fa")
    job.put("whole", verdict(job.command("validate", job.gguf, "--base", job.model, "--device", job.device, *words, passes=(0, 3))))

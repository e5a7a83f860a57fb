"""Fine-tuning: tokens a second and MFU at two lengths, and what some steps by YaRN and by PI gain on held-out texts."""

from __future__ import annotations

from typing import Any

from job import SCALE, Job

ON, LIMIT, NEEDS = "gpu", 240, ("prepare",)
STEPS, BATCH, LEAST = 24, 8, 3  # of a tuning; the steps of a measure of speed


def main(job: Job) -> None:
    import yarn_convert

    original, extended = job.lengths()
    texts = job.texts or next(iter(yarn_convert.__path__)) + "/compute/hamlet.txt"
    small = job.device == "cpu"
    common = ["--text", texts, "--device", job.device, "--pack", "--force"]
    for times in (2,) if small else (2, 2 * SCALE):
        n = times * original
        found = job.command(
            "finetune", job.model, "--scale", times, "--sequence", n, "--batch", 2, "--steps", LEAST, "-o", job.work / f"fast-{n}", *common
        )
        job.put(f"speed at {n}", speed(found["steps"]))
    for method in ("yarn",) if small else ("yarn", "linear"):
        found = job.command(
            "finetune", job.model, "--scale", SCALE, "--method", method, "--sequence", extended, "--batch", 1 if small else BATCH,
            "--steps", LEAST if small else STEPS, "--warmup", 4, "-o", job.work / f"tuned-{method}", *common,
        )  # fmt: skip
        first, last = found["held_out"][0]["windows"], found["held_out"][-1]["windows"]
        points = [{"window": int(w), "before": first[w]["perplexity"], "after": last[w]["perplexity"]} for w in first]
        job.put(method, {"points": points, "tokens": found["finetuning"][0]["tokens"], **speed(found["steps"])})


def speed(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all steps but the first, which warms up."""
    later = steps[1:]
    seconds = sum(s["seconds"] for s in later)
    rate = (steps[-1]["tokens"] - steps[0]["tokens"]) / seconds
    mfu = rate * later[-1]["mfu"] / later[-1]["tokens_per_second"]
    return {"tokens_per_second": rate, "mfu": mfu, "memory": max(s["memory"] for s in later), "seconds": sum(s["seconds"] for s in steps)}

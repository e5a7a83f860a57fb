"""The README's table of perplexities, with so many documents and their spread."""

import time
from dataclasses import replace

from job import SCALE, Job

from yarn_convert.evaluation import journal_of, measure_perplexity
from yarn_convert.options import EvaluateOptions, PerplexityOptions, Recipe, Texts

ON, LIMIT, NEEDS = "gpu", 150, ("prepare",)
METHODS = ("none", "linear", "ntk-aware", "ntk-by-parts", "yarn", "dynamic-linear", "dynamic-yarn")


def main(job: Job) -> None:
    original, extended = job.lengths()
    wish = PerplexityOptions(windows=tuple(original * k // 8 for k in (2, 4, 8, 12, 16, 24, 32)))
    texts = Texts(files=(job.texts,) if job.texts else (), dataset=None, cut=extended, most=job.documents)
    for method in METHODS:  # one by one, so that what is there stays
        begin = time.perf_counter()
        with journal_of(None, None) as kept:
            found = measure_perplexity(
                [str(job.model)],
                replace(
                    wish,
                    settings=EvaluateOptions(methods=(method,), recipe=Recipe(scale=SCALE), texts=texts, device=job.device, dtype="bf16"),
                ),
                kept,
            )
        points = [{k: p[k] for k in ("window", "perplexity", "standard_error", "document_error")} for p in found["rows"][0]["points"]]
        names = [d["name"] for d in found["models"][0]["documents"]]
        job.put(method, {"points": points, "documents": names, "seconds": time.perf_counter() - begin})

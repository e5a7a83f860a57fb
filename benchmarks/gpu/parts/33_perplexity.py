"""The README's table of perplexities, with so many documents and their spread."""

import time

from job import SCALE, Job

from yarn_convert.evaluation import Settings, Texts, Wish, journal_of, perplexity

ON, LIMIT, NEEDS = "gpu", 150, ("prepare",)
METHODS = ("none", "linear", "ntk-aware", "ntk-by-parts", "yarn", "dynamic-linear", "dynamic-yarn")


def main(job: Job) -> None:
    original, extended = job.lengths()
    wish = Wish(tuple(original * k // 8 for k in (2, 4, 8, 12, 16, 24, 32)))
    texts = Texts((job.texts,) if job.texts else (), None, extended, job.documents)
    for method in METHODS:  # one by one, so that what is there stays
        begin = time.perf_counter()
        with journal_of(None, None) as kept:
            found = perplexity([str(job.model)], Settings((method,), SCALE, texts=texts, device=job.device, dtype="bf16"), wish, kept)
        points = [{k: p[k] for k in ("window", "perplexity", "standard_error", "document_error")} for p in found["rows"][0]["points"]]
        names = [d["name"] for d in found["models"][0]["documents"]]
        job.put(method, {"points": points, "documents": names, "seconds": time.perf_counter() - begin})

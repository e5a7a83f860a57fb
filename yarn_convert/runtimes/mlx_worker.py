"""Logits of an HF folder in mlx-lm, in float32 and on the CPU, fed in chunks through its prompt cache."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from protocol import WorkerJob

CHUNK = 512  # tokens of a pass: a longer one computes more of the scores that the mask drops, a shorter one copies the cache more often
SCORES = 256 << 20  # bytes of one layer's attention scores, which the CPU holds whole: heads × chunk × length


def main(job: WorkerJob) -> None:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    try:
        model, _ = load_model(Path(job.model))
    except Exception as error:
        raise SystemExit(f"mlx-lm cannot load the model: {type(error).__name__}: {' '.join(str(error).split())}") from error
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    config, n = json.loads(Path(job.model, "config.json").read_text("utf-8")), len(job.ids)
    heads = config.get("text_config", config).get("num_attention_heads", 32)
    chunk = min(CHUNK, max(32, SCORES // (4 * heads * n)))
    cache = make_prompt_cache(model)
    job.start()
    for at in range(0, n, chunk):
        part = job.ids[at : at + chunk]
        logits = model(mx.array(part)[None], cache=cache)[0]
        if job.wanted(at, len(part)):
            job.put(at, np.array(logits.astype(mx.float32)))
        else:
            mx.eval([layer.state for layer in cache])  # without it the graph, and what it holds, grow with the text
        job.progress(at + len(part))
    job.finish(version=version("mlx-lm"), device="cpu")


if __name__ == "__main__":
    main(WorkerJob.read())

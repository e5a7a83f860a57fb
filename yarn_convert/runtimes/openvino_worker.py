"""Logits of an HF folder in OpenVINO, exported by optimum-intel, with float32 arithmetic and a float32 cache on the CPU."""

from __future__ import annotations

import json
import logging
from importlib.metadata import version
from pathlib import Path

from protocol import WorkerJob

CHUNK = 1024  # tokens of a pass, whose attention mask is held whole: chunk × length
LOGITS = 256 << 20  # bytes of a pass's logits: OpenVINO gives those of all its positions
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}


def main(job: WorkerJob) -> None:
    import torch
    from optimum.intel import OVModelForCausalLM

    logging.disable(logging.WARNING)
    config, n = json.loads(Path(job.model, "config.json").read_text("utf-8")), len(job.ids)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    try:
        model = OVModelForCausalLM.from_pretrained(job.model, export=True, load_in_8bit=False, ov_config=SETTINGS)
    except Exception as error:  # in one line: transformers' messages end with advice, not with what is wrong
        raise SystemExit(f"OpenVINO cannot load the model: {type(error).__name__}: {' '.join(str(error).split())}") from error
    # LongRoPE takes its short or its long factors by the last position of a pass: the text is one pass then
    long = rope.get("rope_type", rope.get("type")) in ("longrope", "su")
    chunk = n if long else max(64, min(CHUNK, LOGITS // (4 * model.config.get_text_config().vocab_size)))
    job.start()
    past = None
    for at in range(0, n, chunk):
        part = torch.from_numpy(job.ids[at : at + chunk])[None]
        out = model(part, attention_mask=torch.ones(1, at + part.shape[1], dtype=torch.int64), past_key_values=past)
        past = out.past_key_values  # says only that the model's own state goes on
        if job.wanted(at, part.shape[1]):
            job.put(at, out.logits[0].numpy())
        job.progress(at + part.shape[1])
    job.finish(version=version("openvino"), device="cpu")


if __name__ == "__main__":
    main(WorkerJob.read())

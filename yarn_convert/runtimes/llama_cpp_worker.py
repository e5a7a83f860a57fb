"""Logits of a GGUF file in llama.cpp, with its cache in float32 and on the CPU, where ggml computes in float32."""

from __future__ import annotations

import os
from importlib.metadata import version

import numpy as np
from protocol import Job

BATCH = 512


def main(job: Job) -> None:
    import llama_cpp

    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def plain_kernels() -> object:
        """ggml's repacked weights and AMX kernels crash on some virtual machines, and what they round is not RoPE."""
        params = defaults()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = plain_kernels
    if job.options.get("tokenize"):
        llm = llama_cpp.Llama(job.model, vocab_only=True, verbose=False)
        np.save(job.folder / "tokens.npy", np.array(llm.tokenize(job.ids.tobytes(), add_bos=False, special=True), np.int64))
        return job.finish(version=version("llama-cpp-python"), device="cpu")
    threads, n = os.cpu_count(), len(job.ids)
    llm = llama_cpp.Llama(
        job.model, n_ctx=n, n_batch=BATCH, n_ubatch=BATCH, type_k=0, type_v=0, flash_attn=job.options.get("flash_attention", False),
        n_threads=threads, n_threads_batch=threads, n_gpu_layers=0, verbose=False, logits_all=False,
    )  # fmt: skip
    context, vocab = llm._ctx.ctx, llm.n_vocab()
    batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
    job.start()
    for at in range(0, n, BATCH):
        part = job.ids[at : at + BATCH]
        wanted = job.wanted(at, len(part))
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = int(token), at + i, 1, 0
            batch.logits[i] = wanted
        if code := llama_cpp.llama_decode(context, batch):
            raise SystemExit(f"llama_decode returned {code} at position {at}")
        if wanted:
            job.put(at, np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(part), vocab)))
        job.progress(at + len(part))
    llama_cpp.llama_batch_free(batch)
    job.finish(version=version("llama-cpp-python"), device="cpu")


if __name__ == "__main__":
    main(Job.read())

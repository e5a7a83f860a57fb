"""MODEL IDS.npy OUT.npy START: logits of a GGUF file in llama.cpp, with its cache in float32."""

import os
import sys

import numpy as np

BATCH = 512


def main(model: str, ids_path: str, out_path: str, start: int) -> None:
    import llama_cpp

    ids = np.load(ids_path)
    threads = os.cpu_count()
    llm = llama_cpp.Llama(
        model, n_ctx=len(ids), n_batch=BATCH, n_ubatch=BATCH, type_k=0, type_v=0, flash_attn=False, n_threads=threads,
        n_threads_batch=threads, n_gpu_layers=0, verbose=False, logits_all=False,
    )  # fmt: skip
    vocab = llm.n_vocab()
    logits = np.empty((len(ids) - start, vocab), np.float32)
    batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
    for at in range(0, len(ids), BATCH):
        part = ids[at : at + BATCH]
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = int(token), at + i, 1, 0
            batch.logits[i] = at + i >= start
        if code := llama_cpp.llama_decode(llm._ctx.ctx, batch):
            sys.exit(f"llama_decode returned {code} at position {at}")
        for i in range(max(0, start - at), len(part)):
            row = llama_cpp.llama_get_logits_ith(llm._ctx.ctx, i)
            logits[at + i - start] = np.ctypeslib.as_array(row, (vocab,))
    llama_cpp.llama_batch_free(batch)
    np.save(out_path, logits)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))

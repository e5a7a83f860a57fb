"""MODEL IDS.npy OUT.npy START: logits of a GGUF file in llama.cpp, with its cache in float32."""

import os
import sys

import numpy as np


def main(model: str, ids_path: str, out_path: str, start: int) -> None:
    import llama_cpp

    ids = np.load(ids_path)
    threads = os.cpu_count()
    llm = llama_cpp.Llama(
        model, n_ctx=len(ids), n_batch=512, logits_all=True, type_k=0, type_v=0, flash_attn=False, n_threads=threads, n_threads_batch=threads,
        n_gpu_layers=0, verbose=False,
    )  # fmt: skip
    llm.eval(ids.tolist())
    np.save(out_path, np.asarray(llm.scores[start : len(ids)], dtype=np.float32))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))

"""Logits of an HF folder in vLLM, with float32 weights and cache, as a stranger loads it: the length limit is vLLM's own, unless
a context is asked for.

`LLM.generate` gives prompt log-probabilities only as Python objects, one for each token of the vocabulary: a hook on the
model takes its hidden states instead, and asks the model itself for their logits.
"""

from __future__ import annotations

from typing import Any, NoReturn

from protocol import TOO_LONG, WorkerJob

PASS = 2048  # tokens that vLLM computes at once
ROWS = 256  # positions whose logits are made at once
SPARE = 4096  # tokens of cache beyond the limit, for the rounding to blocks


def main(job: WorkerJob) -> None:
    import torch
    import vllm
    from vllm.engine.arg_utils import EngineArgs

    n, done = len(job.ids), 0
    given = {"model": job.model, "dtype": "float32", "enforce_eager": True}
    given |= {"max_model_len": job.options["served"]} if job.options.get("served") else {}
    try:
        config = EngineArgs(**given).create_model_config()
        if n >= config.max_model_len:  # that many with one to write: the last position is never read
            job.stop(TOO_LONG, f"vLLM's own limit is {config.max_model_len - 1} tokens: shorter than the {n} of this text")
        hf = config.hf_text_config
        token = 2 * 4 * hf.num_hidden_layers * config.get_total_num_kv_heads() * config.get_head_size()  # bytes of float32 k and v
        llm = vllm.LLM(
            **given, skip_tokenizer_init=True, enable_prefix_caching=False, disable_log_stats=True, max_num_seqs=1,
            max_num_batched_tokens=PASS, enable_chunked_prefill=True, kv_cache_memory_bytes=token * (config.max_model_len + SPARE),
        )  # fmt: skip
    except Exception as error:
        refuse(error)

    def keep(model: Any, _: Any, named: dict[str, Any], hidden: Any) -> None:
        nonlocal done
        positions = named["positions"]
        expected = torch.arange(done, done + len(positions), device=positions.device)
        fresh = min(n - done, int((positions == expected).cumprod(0).sum()))  # what follows is padding
        for at in range(0, fresh, ROWS):
            rows = hidden[at : min(at + ROWS, fresh)]
            if job.wanted(done + at, len(rows)):
                job.put(done + at, model.compute_logits(rows).float().cpu().numpy())
        done += fresh
        job.progress(done)

    llm.apply_model(lambda model: model.register_forward_hook(keep, with_kwargs=True))
    job.start()
    llm.generate({"prompt_token_ids": job.ids.tolist()}, vllm.SamplingParams(max_tokens=1, temperature=0, detokenize=False), use_tqdm=False)
    if done < n:
        raise SystemExit(f"vLLM computed {done} of the {n} tokens")
    job.finish(version=vllm.__version__, device=str(vllm.platforms.current_platform.device_type), max_model_len=config.max_model_len)


def refuse(error: Exception) -> NoReturn:
    """End with one line: of a validation error what was found, without the address that it closes with."""
    found = error.errors()[0]["msg"] if hasattr(error, "errors") else str(error) or type(error).__name__
    raise SystemExit(f"vLLM cannot load the model: {' '.join(found.split())}") from error


if __name__ == "__main__":
    main(WorkerJob.read())

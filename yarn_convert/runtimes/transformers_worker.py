"""Logits of an HF folder in transformers as a stranger loads it: no argument but the type of the arithmetic."""

from __future__ import annotations

from importlib.metadata import version

from protocol import Job

WARM_UP = 256  # tokens


def main(job: Job) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    device = job.options.get("device", "cpu")
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32).eval().to(device)
    except Exception as e:
        raise SystemExit(f"transformers cannot load the model: {(str(e) or type(e).__name__).splitlines()[0]}") from None
    ids = torch.from_numpy(job.ids)[None].to(device)
    # torch's first pass after a load is now and then off by some 1e-5 in a part of the positions, the second never was.
    model(ids[:, :WARM_UP], use_cache=False)
    job.start()
    kept = torch.from_numpy(job.positions).to(device)
    job.put_rows(0, model(ids, use_cache=False, logits_to_keep=kept).logits[0].cpu().numpy())
    job.progress(len(job.ids))
    job.finish(version=version("transformers"), device=device)


if __name__ == "__main__":
    main(Job.read())

"""Logits of an HF folder in transformers as a stranger loads it: no argument but the type of the arithmetic, the kind of attention, and
members of config.json that it is told besides."""

from __future__ import annotations

from importlib.metadata import version

from protocol import SHORT, WorkerJob

WARM_UP = 256  # tokens


def main(job: WorkerJob) -> None:
    import torch
    import transformers

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = job.device if there.get(job.device) else "cpu"  # this build of torch may be another than the reference's
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    dtype, attention = getattr(torch, job.options.get("dtype", "float32")), job.options.get("attention")
    try:
        config = transformers.AutoConfig.from_pretrained(job.model)  # a model that sees or hears is of the class that it names
        kind = getattr(transformers, config.architectures[0]) if config.sub_configs else transformers.AutoModelForCausalLM
        members = job.options.get("members", {})
        model = kind.from_pretrained(job.model, dtype=dtype, attn_implementation=attention, **members).eval().to(device)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as e:
        raise SystemExit(f"transformers cannot load the model: {(str(e) or type(e).__name__).splitlines()[0]}") from None
    ids = torch.from_numpy(job.ids)[None].to(device)
    # torch's first pass after a load is now and then off by some 1e-5 in a part of the positions, the second never was.
    kept = torch.from_numpy(job.positions).to(device)
    with torch.inference_mode():
        model(ids[:, :WARM_UP], use_cache=False)
        layers = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len, default=())
        for i, layer in enumerate(layers):
            layer.register_forward_hook(lambda *_, i=i: job.progress(len(job.ids) * i // len(layers)))
        job.start()
        logits = model(ids, use_cache=False, logits_to_keep=kept).logits[0]
    job.put_all(logits.float().cpu().numpy())
    job.progress(len(job.ids))
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    job.finish(version=version("transformers"), device=device, peak_device_bytes=peak)


if __name__ == "__main__":
    try:
        main(WorkerJob.read())
    except Exception as e:
        if type(e).__name__ != "OutOfMemoryError":
            raise
        WorkerJob.stop(SHORT, f"too little memory: {str(e).splitlines()[0]}")

"""Speed and memory of `finetune` against transformers' Trainer on the same model, length and number of segments. Never a test.

    python benchmarks/finetuning.py [--tokens 2048] [--long 8192] [--scale 4]

Speed: float32 on a CPU (bf16 on a GPU), activation checkpointing both times, in turns; whole steps with the optimizer, the first of each is not
counted. Memory: one step in a process of its own, its imports included, with logits in chunks or whole and with activations kept or not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.compute.reference import pick_device
from yarn_convert.compute.tokens import text_ids
from yarn_convert.conversion import convert
from yarn_convert.finetuning.ranks import ranks_of
from yarn_convert.finetuning.requirements import requirement
from yarn_convert.finetuning.settings import Settings, settings_of
from yarn_convert.finetuning.trainee import Part, Trainee
from yarn_convert.finetuning.training import optimizer_of
from yarn_convert.options import FinetuneOptions, Recipe
from yarn_convert.rope import effect

STEPS, BATCH = 4, 2


def settings(folder: Path, n: int, checkpointing: bool, device: str) -> tuple[Any, Settings]:
    """The extended folder as it is, trained on segments of `n` tokens."""
    c = open_checkpoint(resolve(str(folder)))
    return c, settings_of(c, FinetuneOptions(recipe=Recipe(), sequence=n, batch=BATCH, steps=STEPS, checkpointing=checkpointing), device)[0]


def ours(folder: Path, n: int, device: str, checkpointing: bool = True, chunked: bool = True, steps: int = STEPS) -> list[float]:
    """Seconds of each step."""
    import torch

    c, s = settings(folder, n, checkpointing, device)
    with ranks_of(device, 1) as ranks:
        trainee = Trainee(c, s, ranks)
        trainee.chunk = trainee.chunk if chunked else n
        trainee.serve(effect(s.rope, n), n)
        ids = torch.from_numpy(text_ids(c, None, n + 1))[None].to(device)
        part = Part(ids[:, :-1], torch.arange(n, device=device)[None], ids[:, 1:].contiguous())
        optimizer = optimizer_of(trainee, s)
        seconds = []
        for _ in range(steps):
            begin = time.perf_counter()
            for _ in range(BATCH):
                (trainee.loss(part) / (BATCH * n)).backward()
            torch.nn.utils.clip_grad_norm_(list(trainee.module.parameters()), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            _waited(device)
            seconds.append(time.perf_counter() - begin)
        return seconds


def trainers(folder: Path, n: int, device: str, checkpointing: bool = True, steps: int = STEPS) -> list[float]:
    """The same by transformers' Trainer."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    dtype = torch.float32
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    ids = torch.from_numpy(text_ids(open_checkpoint(resolve(str(folder))), None, n))
    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.begin = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            _waited(device)
            seconds.append(time.perf_counter() - self.begin)

    with tempfile.TemporaryDirectory() as scratch:
        asked = TrainingArguments(
            scratch, per_device_train_batch_size=1, gradient_accumulation_steps=BATCH, max_steps=steps, learning_rate=1e-5, max_grad_norm=1.0,
            gradient_checkpointing=checkpointing, use_cpu=device == "cpu", bf16=device == "cuda", report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, gradient_checkpointing_kwargs={"use_reentrant": False},
        )  # fmt: skip
        rows = [{"input_ids": ids, "labels": ids}] * (BATCH * steps)
        Trainer(net, asked, train_dataset=rows, callbacks=[Clock()]).train()
    return seconds


def _waited(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def speed(folder: Path, n: int, device: str) -> dict[str, float]:
    """Tokens a second of both, two runs each in turns; the median of all steps but each run's first."""
    found: dict[str, list[float]] = {"yarn-convert": [], "Trainer": []}
    for _ in range(2):
        found["yarn-convert"] += ours(folder, n, device)[1:]
        found["Trainer"] += trainers(folder, n, device)[1:]
    return {name: BATCH * n / statistics.median(seconds) for name, seconds in found.items()}


def peak(way: str, folder: Path, n: int, device: str, checkpointing: bool, chunked: bool) -> float:
    """GiB that one step takes at most, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_peak, (way, folder, n, device, checkpointing, chunked)))


def _peak(way: str, folder: Path, n: int, device: str, checkpointing: bool, chunked: bool) -> float:
    import torch

    os.environ.pop("WORLD_SIZE", None)
    if way == "Trainer":
        trainers(folder, n, device, checkpointing, 1)
    else:
        ours(folder, n, device, checkpointing, chunked, 1)
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else _most() / 2**20


def _most() -> int:
    """KiB that this process held at most. On Linux ru_maxrss begins with what its parent held, and VmHWM does not."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if found is None else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--long", type=int, default=8192)
    parser.add_argument("--scale", type=float, default=4.0)
    given = parser.parse_args()
    device = pick_device("auto")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        convert("smollm2-135m", Recipe(scale=given.scale), out="safetensors", output=folder, outtype="f32")
        found = speed(folder, given.tokens, device)
        print(
            f"| tokens/s, segments of {given.tokens:,} | "
            + " | ".join(f"{v:,.0f}" for v in found.values())
            + f" | {found['yarn-convert'] / found['Trainer']:.2f} |"
        )
        print("\n| peak memory of a step | tokens | GiB | estimate |\n|---|---|---|---|")
        for n in (given.tokens, given.long):
            for checkpointing, chunked in ((True, True), (True, False), (False, True)):
                c, s = settings(folder, n, checkpointing, device)
                name = f"{'checkpointed' if checkpointing else 'activations kept'}, {'chunks' if chunked else 'all logits'}"
                estimate = f"{requirement(c, s, device, 1).total / 2**30:.2f}" if chunked else ""
                print(f"| {name} | {n:,} | {peak('ours', folder, n, device, checkpointing, chunked):.2f} | {estimate} |", flush=True)
            print(f"| Trainer, checkpointed | {n:,} | {peak('Trainer', folder, n, device, True, False):.2f} | |", flush=True)


if __name__ == "__main__":
    main()

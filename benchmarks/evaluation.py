"""Speed and memory of `evaluate perplexity` against a plain transformers loop over the same windows. Never a test.

    make bench          # with the others
    python benchmarks/evaluation.py [--tokens 3072] [--long 32768]

Speed: sliding windows, the model in float32 both times, in turns; the peer is the strided loop of transformers' documentation, which
computes the logits of all positions. Memory: one long window, the most that a process of its own held, its imports included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from yarn_convert import runtimes
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.compute.documents import bos
from yarn_convert.compute.growing import Steps, greedy
from yarn_convert.compute.reference import pick_device
from yarn_convert.compute.scorer import Torch
from yarn_convert.compute.tokens import text_ids, tokenizer_of
from yarn_convert.conversion import convert
from yarn_convert.evaluation.passkeys import ANSWER, ends, prompt
from yarn_convert.evaluation.windows import sliding
from yarn_convert.options import Recipe
from yarn_convert.runtimes.kept import Kept

RUNS, WIDTH, STRIDE = 3, 2048, 256


def ours(folder: Path, device: str = "auto", dtype: str = "float32") -> Callable[[Any, int], float]:
    """(ids, the first that is counted) -> the sum of the losses."""
    c = open_checkpoint(resolve(str(folder)))
    scorer = Torch(c, device, dtype)
    return lambda ids, first: float(scorer.losses(c.rope, ids, first).sum())


def plain(folder: Path, device: str = "auto", dtype: str = "float32") -> Callable[[Any, int], float]:
    import torch
    from transformers import AutoModelForCausalLM

    device = pick_device(device)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(device)

    def losses(ids: Any, first: int) -> float:
        batch = torch.from_numpy(ids)[None].to(device)
        labels = batch.clone()
        labels[:, :first] = -100
        with torch.inference_mode():
            return float(model(batch, labels=labels, use_cache=False).loss) * (len(ids) - first)

    return losses


WAYS = {"yarn-convert": ours, "transformers": plain}


def speed(folder: Path, n: int, width: int = WIDTH, stride: int = STRIDE, device: str = "auto", dtype: str = "float32") -> dict[str, Any]:
    """Tokens a second and the mean loss, of both ways, over the same windows in turns."""
    ids = text_ids(open_checkpoint(resolve(str(folder))), None, n)
    windows = sliding(n, width, stride)
    ways = {name: way(folder, device, dtype) for name, way in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for i in range(RUNS + 1):  # the first of each warms up
        for name, losses in ways.items():
            start = time.perf_counter()
            found[name] = sum(losses(ids[w.begin : w.end], w.first - w.begin) for w in windows) / (n - 1)
            if i:
                seconds[name].append(time.perf_counter() - start)
    tokens = sum(w.end - w.begin for w in windows)
    rates = {name: tokens / statistics.median(s) for name, s in seconds.items()}
    return {"windows": len(windows), "width": width, "stride": stride, "tokens_per_second": rates, "loss": found}


def memory(folder: Path, n: int, peer: bool) -> None:
    """One window of `n` tokens; the peer only where it is asked for: its logits are tokens × vocabulary."""
    mine = _in_child("yarn-convert", folder, n)
    theirs = _in_child("transformers", folder, n) if peer else None
    cells = ("not run", "") if theirs is None else (f"{theirs:.2f} GiB", f"{mine / theirs:.2f} ×")
    print(f"| peak memory of one window of {n:,} | {mine:.2f} GiB | {' | '.join(cells)} |")


def _in_child(name: str, folder: Path, n: int) -> float:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return float(pool.apply(_peak, (name, folder, n)))


def _peak(name: str, folder: Path, n: int) -> float:
    ids = np.random.default_rng(0).integers(100, 40_000, n)
    WAYS[name](folder)(ids, 1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def passkeys(model: str, lengths: tuple[int, ...], trials: int) -> None:
    """CPU time of the same prompts, each alone in a cache of keys before RoPE, token by token, and in turn."""
    c = open_checkpoint(resolve(model))
    tokenizer, scorer = tokenizer_of(c), Torch(c, "cpu")
    prompts = [prompt(tokenizer, bos(c), n, i, 0) for n in lengths for i in range(trials)]
    stop = partial(ends, tokenizer)
    alone, start = [], time.process_time()
    for p in prompts:
        steps = Steps(scorer.reference, c.rope, "before")
        found = [int(steps.feed(p.ids).argmax())]
        while len(found) < ANSWER and not stop(found):
            found.append(int(steps.feed(np.array(found[-1:])).argmax()))
        alone.append(found)
    first, start = time.process_time() - start, time.process_time()
    steps, together = Steps(scorer.reference, c.rope), {}
    for i, p in sorted(enumerate(prompts), key=lambda item: item[1].before):
        draft = tokenizer.encode(f" {p.key}.", add_special_tokens=False).ids
        together[i] = greedy(steps, p.ids, ANSWER, stop, draft)
    then = time.process_time() - start
    assert [together[i] for i in range(len(prompts))] == alone, "an answer depends on the way"
    what = f"{trials} passkeys of {', '.join(f'{n:,}' for n in lengths)} tokens, CPU time"
    print(f"| {what} | {then:.1f} s | each alone: {first:.1f} s | {first / then:.2f} × |")


def kept(gguf: Path, n: int, passes: int) -> None:
    """Wall time of passes of `n` tokens in llama.cpp, by one process and by one for each."""
    ids, runtime, seconds = np.arange(n) % 200 + 3, Kept("llama.cpp", gguf, {"losses": True}), []
    for way in (runtime.run, partial(runtimes.run, "llama.cpp", gguf, options={"losses": True})):
        start = time.perf_counter()
        for _ in range(passes):
            way(ids, [(0, n - 1)])
        seconds.append(time.perf_counter() - start)
    runtime.close()
    one, each = seconds
    print(f"| {passes} passes of {n:,} tokens in llama.cpp | {one:.1f} s | a process for each: {each:.1f} s | {each / one:.2f} × |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=3072)
    parser.add_argument("--long", type=int, default=32768)
    given = parser.parse_args()
    print("| what | yarn-convert | plain transformers | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        convert("smollm2-135m", Recipe(scale=4.0), out="safetensors", output=folder)
        found = speed(folder, given.tokens)
        mine, theirs = found["tokens_per_second"].values()
        print(f"| {found['windows']} windows of {WIDTH:,} tokens | {mine:,.0f} tokens/s | {theirs:,.0f} | {mine / theirs:.2f} × |")
        print("| their mean loss | {:.6f} | {:.6f} | |".format(*found["loss"].values()))
        memory(folder, 8192, peer=True)
        memory(folder, given.long, peer=False)
        passkeys("smollm2-135m", (2048,), 4)
        convert("smollm2-135m", Recipe(scale=4.0), out="gguf", output=Path(scratch, "model.gguf"))
        kept(Path(scratch, "model.gguf"), 256, 8)


if __name__ == "__main__":
    main()

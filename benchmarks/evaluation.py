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
from pathlib import Path
from typing import Any

import numpy as np

from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.compute.reference import pick_device
from yarn_convert.compute.scorer import Torch
from yarn_convert.compute.tokens import text_ids
from yarn_convert.conversion import convert
from yarn_convert.evaluation.windows import sliding
from yarn_convert.options import Recipe

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


if __name__ == "__main__":
    main()

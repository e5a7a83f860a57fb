"""Speed of validation: the reference against plain transformers, and how long the twin takes. Never a test.

    make bench          # with the conversions
    python benchmarks/validation.py [--tokens 2048]

Both forwards run the same real model over the same tokens, in turns; the ratio is of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from yarn_convert import runtimes
from yarn_convert.checkpoint import open_checkpoint
from yarn_convert.checkpoint.source import resolve
from yarn_convert.compute.reference import Reference, pick_device
from yarn_convert.compute.tokens import text_ids
from yarn_convert.conversion import convert
from yarn_convert.options import Recipe
from yarn_convert.rope import table
from yarn_convert.validation import twin

RUNS = 3


def against_transformers(folder: Path, n: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    convert("smollm2-135m", Recipe(scale=4.0), out="safetensors", output=folder)
    c = open_checkpoint(resolve(str(folder)))
    ids, right, device = text_ids(c, None, n), table(c.rope), pick_device("auto")
    reference = Reference(c)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    batch, seconds = torch.from_numpy(ids)[None].to(device), {"reference": [], "transformers": []}
    for i in range(RUNS + 1):  # the first of each warms up
        reference.logits(right, ids, [(n - 64, n)])
        start = time.perf_counter()
        with torch.inference_mode():
            plain(batch, use_cache=False, logits_to_keep=64).logits.cpu()
        if i:
            seconds["transformers"].append(time.perf_counter() - start)
            seconds["reference"].append(reference.seconds)
    ours, theirs = (n / statistics.median(seconds[k]) for k in ("reference", "transformers"))
    print(
        f"| {n:,} tokens of SmolLM2-135M on {device} | {ours:,.0f} tokens/s | plain transformers: {theirs:,.0f} | {ours / theirs:.2f} × |"
    )


def the_twin(path: Path, lengths: tuple[int, ...]) -> None:
    convert("smollm2-135m", Recipe(scale=16.0), out="gguf", output=path)
    small = twin.write_twin(open_checkpoint(resolve(str(path))), path.with_name("twin.gguf"))
    reference = Reference(small)
    for n in lengths:
        ids = twin.ids(n)
        reference.logits(table(small.rope), ids, [(0, n)])
        done = runtimes.run("llama.cpp", small.source.path, ids, [(0, n)])
        seconds = done.info["seconds"]
        print(
            f"| the twin, {n:,} tokens | reference {reference.seconds:.1f} s | llama.cpp: {seconds:.1f} s | {reference.seconds / seconds:.2f} × its time |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--twin", type=int, nargs="*", default=[32768, 131072])
    given = parser.parse_args()
    print("| what | yarn-convert | peer | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        against_transformers(Path(folder, "model"), given.tokens)
        the_twin(Path(folder, "model.gguf"), tuple(given.twin))


if __name__ == "__main__":
    main()

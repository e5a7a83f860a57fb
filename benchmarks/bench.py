"""Speed and memory of conversions, as ratios against a named peer in the same run. Never a test: machines are noisy.

    make bench                     # a TinyLlama-1.1B-shaped bf16 checkpoint of 2.3 GB, made on the spot
    python benchmarks/bench.py --layers 4 --only copies   # a small one, to try the script

Each command is a whole process, run several times, interleaved with its peer; the ratio is of the two medians. Memory is the largest
peak resident set among the command's processes (getrusage), page cache not counted. CPU time is told too: where other work shares the
machine it is the steadier figure.
"""

from __future__ import annotations

import argparse
import json
import math
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
from typing import Any, NamedTuple

import numpy as np

BIN = Path(sys.executable).parent
VOCAB = 32000
WATCH = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
if done.returncode: sys.exit(done.stderr.decode()[-2000:])
print(json.dumps([seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]))
"""
QUANTIZE = """
import ctypes, os, sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = int(sys.argv[3]), os.cpu_count()
quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
sys.exit(llama_cpp.llama_model_quantize(os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2]), ctypes.byref(params)))
"""
Q4_K_M, Q8_0 = "15", "7"  # llama.h, enum llama_ftype
SECTIONS = ("copies", "quantize", "mixture", "split", "stacked", "header")
Shapes = dict[str, tuple[int, ...]]


class Run(NamedTuple):
    """One run of a command: seconds, seconds of CPU, peak bytes of memory, bytes that it left on the disk (hard links not counted)."""

    seconds: float
    cpu: float
    peak: float
    disk: int


class Shape(NamedTuple):
    hidden: int
    ff: int
    heads: int
    kv: int
    layers: int
    experts: int = 0

    def tensors(self) -> Shapes:
        """A Llama's or, with experts, a Mixtral's."""
        head = self.hidden // self.heads
        shapes: Shapes = {
            "model.embed_tokens.weight": (VOCAB, self.hidden),
            "lm_head.weight": (VOCAB, self.hidden),
            "model.norm.weight": (self.hidden,),
        }
        for i in range(self.layers):
            block = f"model.layers.{i}."
            for n, rows in (("q", self.hidden), ("k", self.kv * head), ("v", self.kv * head), ("o", self.hidden)):
                shapes[f"{block}self_attn.{n}_proj.weight"] = (rows, self.hidden)
            up, down = (self.ff, self.hidden), (self.hidden, self.ff)
            if self.experts:
                shapes[f"{block}block_sparse_moe.gate.weight"] = (self.experts, self.hidden)
            for e in range(self.experts):
                shapes |= {f"{block}block_sparse_moe.experts.{e}.{n}.weight": shape for n, shape in (("w1", up), ("w2", down), ("w3", up))}
            if not self.experts:
                shapes |= {f"{block}mlp.{n}_proj.weight": shape for n, shape in (("gate", up), ("up", up), ("down", down))}
            shapes |= {f"{block}input_layernorm.weight": (self.hidden,), f"{block}post_attention_layernorm.weight": (self.hidden,)}
        return shapes

    def config(self) -> dict[str, Any]:
        kind = ("MixtralForCausalLM", "mixtral") if self.experts else ("LlamaForCausalLM", "llama")
        experts = {"num_local_experts": self.experts, "num_experts_per_tok": 2, "sliding_window": None} if self.experts else {}
        return {
            "architectures": [kind[0]], "model_type": kind[1], "hidden_act": "silu", "hidden_size": self.hidden, "intermediate_size": self.ff,
            "max_position_embeddings": 2048, "num_attention_heads": self.heads, "num_hidden_layers": self.layers, "num_key_value_heads": self.kv,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": VOCAB,
            "bos_token_id": 1, "eos_token_id": 2, **experts,
        }  # fmt: skip


def make_checkpoint(folder: Path, model: Shape, holes: bool = False) -> None:
    """A seeded bf16 checkpoint of spread 0.02, or one of zeros that takes no disk, with a SentencePiece vocabulary of plausible merges."""
    from yarn_convert.formats.tensors import Tensor, safetensors_header
    from yarn_convert.targets.moving import write_all

    folder.mkdir()
    tensors = [Tensor(n, "BF16", s, math.prod(s) * 2) for n, s in model.tensors().items()]
    header, _ = safetensors_header(tensors, {"format": "pt"})
    rng = np.random.default_rng(0)
    with open(folder / "model.safetensors", "wb", buffering=0) as f:
        f.write(header)
        if holes:
            f.truncate(len(header) + sum(t.nbytes for t in tensors))
        for t in tensors if not holes else ():
            noise = (rng.standard_normal(t.elements, dtype=np.float32) * 0.02).view(np.uint32) >> 16
            write_all(f, noise.astype(np.uint16).view(np.uint8))
    (folder / "config.json").write_text(json.dumps(model.config(), indent=2))
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


def once(command: list[str], out: Path) -> Run:
    """One run of a command with its input in the page cache; what it wrote is deleted."""
    os.sync()  # or one run would wait for what the last one left to write, and for the disk to forget what was deleted
    time.sleep(3)
    text = " ".join(command)
    for path in out.parent.iterdir():
        if not path.name.startswith("out") and str(path) in text:
            subprocess.run(["sh", "-c", f"cat {path}/* {path} > /dev/null 2>&1"], check=False)
    done = subprocess.run([sys.executable, "-c", WATCH, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{text}: {done.stderr}")
    left = [f for path in out.parent.glob("out*") for f in (path.iterdir() if path.is_dir() else [path])]
    disk = sum(f.stat().st_size for f in left if f.stat().st_nlink == 1)
    for path in out.parent.glob("out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Run(*json.loads(done.stdout), disk)


def compare(name: str, ours: list[str], peers: dict[str, list[str]], out: Path, repeat: int) -> None:
    """Print one row for each peer."""
    runs: dict[str, list[Run]] = {"yarn-convert": [], **{p: [] for p in peers}}
    for _ in range(repeat):
        for who, command in {"yarn-convert": ours, **peers}.items():
            runs[who].append(once(command, out))
    seconds = {who: statistics.median(r.seconds for r in found) for who, found in runs.items()}
    cpu = {who: statistics.median(r.cpu for r in found) for who, found in runs.items()}

    def said(who: str) -> str:
        peak, spread = max(r.peak for r in runs[who]), [r.seconds for r in runs[who]]
        return (
            f"{seconds[who]:.2f} s ({min(spread):.2f} to {max(spread):.2f}), {cpu[who]:.2f} s of CPU, "
            f"{peak / 2**20:.0f} MiB, {runs[who][0].disk / 1e9:.2f} GB written"
        )

    mine = seconds["yarn-convert"]
    for peer in peers or {"": []}:
        theirs = seconds.get(peer, 0.0)
        ratio = f"{mine / theirs:.2f} × its time" if mine > theirs / 2 > 0 else f"{theirs / mine:.1f} times faster"
        ratio += f"; CPU {cpu['yarn-convert'] / cpu[peer]:.2f} ×" if peer else ""
        print(
            f"| {name} | {said('yarn-convert')} | {peer}: {said(peer)} | {ratio} |" if peer else f"| {name} | {said('yarn-convert')} | | |",
            flush=True,
        )


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--stacked", type=int, default=8, help="GB of stacked experts, in holes; what is written takes 28%% of it")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="default: all")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint and outputs; default: a temporary one")
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| what | yarn-convert | peer | ratio |\n|---|---|---|---|", flush=True)
    wanted = args.only or SECTIONS
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        bench = Bench(Path(folder), args.repeat)
        if set(wanted) & {"copies", "quantize", "split"}:
            make_checkpoint(bench.model, Shape(2048, 5632, 32, 4, args.layers))
        for section in wanted:
            bench.stacked(args.stacked) if section == "stacked" else getattr(bench, section)()


class Bench:
    """The sections, in a folder of their own. Inputs lie in `model` and beside it, outputs have names that begin with "out"."""

    def __init__(self, work: Path, repeat: int) -> None:
        self.work, self.repeat = work, repeat
        self.model, self.out = work / "base", work / "out.gguf"
        self.ours = [str(BIN / "yarn-convert")]
        self.converter = os.environ.get("YARN_CONVERT_LLAMA_CPP")

    def theirs(self, model: Path, out: Path, outtype: str) -> list[str]:
        return [sys.executable, f"{self.converter}/convert_hf_to_gguf.py", str(model), "--outfile", str(out), "--outtype", outtype]

    def compare(self, name: str, command: list[object], peers: dict[str, list[str]], repeat: int = 0) -> None:
        compare(name, [*self.ours, *map(str, command)], peers, self.out, repeat or self.repeat)

    def make(self, *arguments: object) -> None:
        """An input: yarn-convert with these arguments, no method and no output."""
        subprocess.run([*self.ours, *map(str, arguments), "--method", "none", "-q"], check=True, stdout=subprocess.DEVNULL)

    def copies(self) -> None:
        model, out, gguf, weights = self.model, self.out, self.work / "base.gguf", self.model / "model.safetensors"
        self.make(model, "--out", "gguf", "-o", gguf)
        cp = {"cp": ["cp", str(weights), str(out)], "cp and sync": ["sh", "-c", f"cp {weights} {out} && sync {out}"]}
        start = {"yarn-convert --version": [*self.ours, "--version"], "python -c pass": [sys.executable, "-c", "pass"]}
        self.compare("--help", ["--help"], start, 5)
        scale = ["--scale", "4", "-q"]
        self.compare("HF to HF, hard links", [model, *scale, "--link", "-o", self.work / "out"], {"cp": cp["cp"]})
        self.compare("HF to HF, copies", [model, *scale, "-o", self.work / "out"], cp)
        for outtype in ("bf16", "q8_0"):
            peers = {"convert_hf_to_gguf.py": self.theirs(model, out, outtype)} if self.converter else {}
            quantized = [sys.executable, "-c", QUANTIZE, str(gguf), str(out), Q8_0]
            peers |= cp if outtype == "bf16" else {"llama_model_quantize, from BF16": quantized}
            self.compare(f"HF to GGUF {outtype}", [model, *scale, "--out", "gguf", "--outtype", outtype, "-o", out], peers)
        edit = {"gguf-new-metadata": [str(BIN / "gguf-new-metadata"), "--general-name", "x", str(gguf), str(out)]}
        cp = {name: [part.replace(str(weights), str(gguf)) for part in command] for name, command in cp.items()}
        self.compare("GGUF to GGUF", [gguf, *scale, "-o", out], {**cp, **edit})
        in_place(self.ours, gguf)
        gguf.unlink()

    def quantize(self) -> None:
        """Ours from the HF folder; theirs from an F16 GGUF that is there already, and with the conversion that makes it."""
        half, made = self.work / "half.gguf", self.work / "out.half.gguf"
        self.make(self.model, "--out", "gguf", "--outtype", "f16", "-o", half)
        peers = {"llama_model_quantize, from F16": [sys.executable, "-c", QUANTIZE, str(half), str(self.out), Q4_K_M]}
        if self.converter:
            convert = self.theirs(self.model, made, "f16")
            both = [*convert, "&&", sys.executable, "-c", f"'{QUANTIZE}'", str(made), str(self.out), Q4_K_M]
            peers["convert_hf_to_gguf.py and that"] = ["sh", "-c", " ".join(both)]
        self.compare("HF to GGUF q4_k_m", [self.model, "--scale", 4, "--out", "gguf", "--outtype", "q4_k_m", "-o", self.out, "-q"], peers)
        half.unlink()

    def mixture(self) -> None:
        """Eight experts a layer, stacked in the GGUF."""
        model = self.work / "mixture"
        make_checkpoint(model, Shape(2048, 4096, 16, 4, 4, experts=8))
        for outtype in ("bf16", "q8_0"):
            peers = {"convert_hf_to_gguf.py": self.theirs(model, self.out, outtype)} if self.converter else {}
            command = [model, "--scale", 4, "--out", "gguf", "--outtype", outtype, "-o", self.out, "-q"]
            self.compare(f"mixture of experts to GGUF {outtype}", command, peers)
        shutil.rmtree(model)

    def split(self) -> None:
        """The parts of a quantized model: all but the first are linked, or copied."""
        parts = self.work / "parts"
        parts.mkdir()
        self.make(self.model, "--out", "gguf", "--outtype", "q8_0", "--split-max-size", "300M", "-o", parts / "m.gguf")
        first, target = min(parts.glob("m-00001-of-*.gguf")), self.work / "out"
        cp = ["sh", "-c", f"cp -r {parts} {target} && sync {target}/*"]
        for name, link in (("hard links", ["--link"]), ("copies", [])):
            command = ["sh", "-c", f"mkdir {target} && {self.ours[0]} {first} --scale 4 -q {' '.join(link)} -o {target}/m.gguf"]
            compare(f"split GGUF, extended, {name}", command, {"cp and sync": cp}, self.out, self.repeat)
        shutil.rmtree(parts)

    def stacked(self, size: int) -> None:
        """One layer of as many of Mixtral's experts as make `size` GB, all zeros: what counts is the memory."""
        model = self.work / "stacked"
        shape = Shape(4096, 14336, 32, 8, 1, experts=max(1, round(size * 1e9 / (3 * 2 * 4096 * 14336))))
        make_checkpoint(model, shape, holes=True)
        largest = 2 * shape.experts * shape.hidden * shape.ff / 1e9
        command = [model, "--scale", 4, "--out", "gguf", "--outtype", "q4_0", "-o", self.out, "-q"]
        self.compare(f"stacked experts, three tensors of {largest:.1f} GB, to q4_0", command, {}, 1)
        shutil.rmtree(model)

    def header(self) -> None:
        header(self.work)


def in_place(ours: list[str], gguf: Path) -> None:
    seconds = timed(lambda: subprocess.run([*ours, str(gguf), "--scale", "4", "--in-place", "-q"], check=True, stdout=subprocess.DEVNULL))
    print(f"| GGUF in place | {seconds:.2f} s | | |", flush=True)


def header(work: Path) -> None:
    """Opening a GGUF with 150,000 tokens and 280,000 merges, against gguf.GGUFReader."""
    import gguf as peer

    from yarn_convert.formats.gguf_file import open_gguf

    path = work / "vocabulary.gguf"
    writer = peer.GGUFWriter(path, "llama")
    writer.add_token_list([f"token{i}" for i in range(150_000)])
    writer.add_token_merges([f"a{i} b{i}" for i in range(280_000)])
    writer.add_tensor("x", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    mine, theirs = timed(lambda: open_gguf(path)), timed(lambda: peer.GGUFReader(path))
    print(f"| open a GGUF with 150k tokens | {mine:.3f} s | GGUFReader: {theirs:.2f} s | {theirs / mine:.0f} times faster |", flush=True)


if __name__ == "__main__":
    main()

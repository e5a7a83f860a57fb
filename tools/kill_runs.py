"""Kills real runs at random, and fails the disk under them: `python tools/kill_runs.py [--kills 200] [--seed 0]`. No test, a tool.

Every kind of run is one command line in a process of its own, which gets SIGKILL after a random time. Then what lies there must be
the old output, the new one byte for byte, or nothing that a reader takes; the same command must end with the new one, its manifest and
nothing beside. The same for an ENOSPC and an EIO at every step (`dying`), and for a disk that is really full (a tmpfs, for root).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # which make the model, and count the steps
from conftest import VOCAB, save_weights, tiny_weights, tokenizer_files
from dying import dies

from yarn_convert.cli import app as cli
from yarn_convert.errors import YarnConvertError
from yarn_convert.formats.gguf_file import open_gguf
from yarn_convert.formats.split import read_model
from yarn_convert.formats.tensors import read_folder
from yarn_convert.targets import moving, parts, resume

LINES = {  # kind -> (command line, whether it is of a size that is gone on with)
    "folder": ("m --scale 4 -o out", False),
    "folder, by links": ("m --scale 4 -o out --link", False),
    "folder, f16 and tensors": ("m --scale 4 -o out --outtype f16 --carry tensors", False),
    "GGUF": ("m --scale 4 -o out.gguf --out gguf", False),
    "GGUF, split": ("m --scale 4 -o out.gguf --out gguf --split-max-size 8M", False),
    "GGUF, quantized": ("m --scale 4 -o out.gguf --out gguf --outtype q4_k_m", False),
    "folder, replaced": ("m --scale 4 -o old --force", False),
    "GGUF, replaced": ("m --scale 4 -o old.gguf --out gguf --force", False),
    "folder, gone on with": ("m --scale 4 -o out --outtype bf16", True),
    "GGUF, gone on with": ("m --scale 4 -o out.gguf --out gguf --outtype q8_0", True),
    "in place, metadata": ("a.gguf --scale 4 --in-place", False),
    "in place, tensors": ("a.gguf --scale 4 --in-place --carry tensors", False),
    "in place, first part": ("s-00001-of-00002.gguf --scale 4 --in-place --carry tensors", False),
    "repair": ("repair a.gguf --method yarn --scale 4 --original-context 64", False),
    "repair of a folder": ("repair card", False),
    "repair of an output": ("repair old --method yarn --scale 4", False),
}
Files = dict[str, bytes]


def model(folder: Path) -> None:
    """Some 16 MB, so that a kill finds a run in its middle; rows of 256, for the K quants."""
    folder.mkdir()
    shape = {"heads": 8, "kv_heads": 4, "head_dim": 32, "layers": 4, "ff": 768}
    save_weights(folder, tiny_weights(**shape), "F32", 2)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 256, "intermediate_size": 768,
        "max_position_embeddings": 64, "num_attention_heads": 8, "num_hidden_layers": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "float32", "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for name, data in tokenizer_files().items():
        (folder / name).write_bytes(data)


def command(line: str, large: bool) -> Callable[[], None]:
    def run() -> None:
        if large:
            resume.RESUMABLE, resume.BATCH, moving.KERNEL_PIECE = 0, 1 << 20, 1 << 20
        sys.argv = ["yarn-convert", *line.split(), *([] if line.startswith("repair") else ["-q"])]
        try:
            cli.main()
        except SystemExit as e:
            if e.code:
                raise YarnConvertError(f"exit code {e.code}") from None

    return run


def files() -> Files:
    """All that lies here but the input folder; of a manifest all but its time, what it says of a base that was edited before, and how
    a file came, for one that cannot be linked is copied."""
    found = {p.as_posix(): p.read_bytes() for p in Path().rglob("*") if p.is_file() and p.parts[0] != "m"}
    for name in found:
        if name.endswith("yarn_convert.json"):
            with contextlib.suppress(ValueError):
                said = json.loads(found[name]) | {"created": None, "notes": None, "hparams": None}
                for file in said["weights"]["files"]:
                    file.pop("how")
                found[name] = json.dumps(said).encode()
    return found


def put(wanted: Files) -> None:
    for p in Path().iterdir():
        if p.name != "m":
            shutil.rmtree(p) if p.is_dir() else p.unlink()
    for name, data in wanted.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data)


def fork(run: Callable[[], None], kill_after: float | None = None) -> tuple[str, str]:
    """("killed" | "0" | "1", what it said)."""
    said = Path(tempfile.gettempdir(), f"yarn-convert-said-{os.getpid()}")
    said.touch()
    child = os.fork()
    if child == 0:
        out = os.open(said, os.O_WRONLY | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = 0
        try:
            run()
        except BaseException:
            code = 1
        os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    text = said.read_text(errors="replace")
    said.unlink()
    return ("killed" if os.WIFSIGNALED(status) else str(os.WEXITSTATUS(status))), text


@dataclass
class Kind:
    """A kind of run: what lies there before it and after it."""

    run: Callable[[], None]
    before: Files
    after: Files
    seconds: float
    ahead: bool = False  # a folder is repaired file by file, its manifest first

    def between(self) -> str:
        """What a kill has left. Anything but the old, the new or nothing raises."""
        now = files()
        hidden = {n for n in now if any(part.startswith(".") for part in Path(n).parts)}
        shown = {n: d for n, d in now.items() if n not in hidden}
        if shown == self.after:
            return "new" if not hidden else "new, not cleaned up"
        if shown == self.before:
            return "untouched" if not hidden else "old or none, and remains"
        for name, data in shown.items():
            if data in (self.before.get(name), self.after.get(name)):
                continue
            assert name.endswith(".gguf"), f"{name} is neither the old nor the new"
            try:
                open_gguf(Path(name))
            except YarnConvertError:
                return "no reader takes it"
            raise AssertionError(f"{name} is neither the old nor the new, and a reader takes it")
        mains = [n for n in self.after if n.endswith((".gguf", "config.json"))]
        whole = all(shown.get(n) == self.after[n] for n in mains)
        old = all(shown.get(n) == self.before.get(n) for n in mains)
        manifests = [n for n in self.after if n.endswith("yarn_convert.json")]
        for name in manifests:
            fits = shown.get(name) in (None, self.after[name] if whole else self.before.get(name))
            fits = fits or (self.ahead and shown.get(name) == self.after[name])
            assert fits, f"{name} speaks of another file"
        return "new, without its manifest" if whole else "old, without its manifest" if old else "some parts, not the first"

    def end(self, what: str) -> str:
        code, said = fork(self.run)
        assert code == "0" or "exists" in said or "finished now" in said, f"{what}: {said}"
        now = files()
        for name in sorted({*now, *self.after}):
            assert now.get(name) == self.after.get(name), f"{what}: {name} is not as it should be after the same command"
        return "exists" if "exists" in said else "finished now" if "finished now" in said else "0"


def kind_of(line: str, large: bool, before: Files) -> Kind:
    run = command(line, large)
    put(before)
    fork(run)  # warm
    put(before)
    begun = time.monotonic()
    code, said = fork(run)
    assert code == "0", said
    return Kind(run, before, files(), time.monotonic() - begun, line.startswith("repair") and ".gguf" not in line)


def start() -> dict[str, Kind]:
    """The kinds, each with what it needs."""
    model(Path("m"))
    given: dict[str, Files] = {}
    for name, line in (
        ("a.gguf", "m --method none --out gguf -o a.gguf"),
        ("s-00001-of-00002.gguf", "m --method none --out gguf -o s.gguf --split-max-size 8M"),
        ("old", "m --scale 2 -o old"),
        ("old.gguf", "m --scale 2 -o old.gguf --out gguf"),
    ):
        put({})
        code, said = fork(command(line, False))
        assert code == "0", said
        given[name] = {n: p.read_bytes() for n in files() for p in [Path(n)]}
    given["card"] = {f"card/{p.name}": p.read_bytes() for p in Path("m").iterdir()}
    scaled = {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}  # as model cards say it
    given["card"]["card/config.json"] = json.dumps(json.loads(given["card"]["card/config.json"]) | scaled).encode()
    needs = {
        "folder, replaced": "old", "GGUF, replaced": "old.gguf", "in place, first part": "s-00001-of-00002.gguf",
        "repair of a folder": "card", "repair of an output": "old",
    }  # fmt: skip
    kinds = {}
    for name, (line, large) in LINES.items():
        need = needs.get(name, "a.gguf" if name.startswith(("in place", "repair")) else "")
        before = given.get(need, {})
        kinds[name] = kind_of(line, large, before)
        kinds[name].before = _timeless(before)
        kinds[name].given = before  # type: ignore[attr-defined]
    return kinds


def _timeless(given: Files) -> Files:
    put(given)
    return files()


def kill(kinds: dict[str, Kind], kills: int, rng: random.Random) -> None:
    left, ends = {n: Counter[str]() for n in kinds}, Counter[str]()
    for i in range(kills):
        name = list(kinds)[i % len(kinds)]
        k = kinds[name]
        put(k.given)  # type: ignore[attr-defined]
        code, _ = fork(k.run, rng.uniform(0, 1.05 * k.seconds))
        if code != "killed":
            left[name]["over before the kill"] += 1
        else:
            left[name][k.between()] += 1
        for again in range(rng.randrange(3)):  # the run after it is killed, too
            fork(k.run, rng.uniform(0, k.seconds))
            k.between()
            del again
        ends[k.end(f"{name}, kill {i}")] += 1
    print(f"{kills} kills:")
    for name, counts in left.items():
        print(f"  {name} ({1000 * kinds[name].seconds:.0f} ms): {', '.join(f'{n} {what}' for what, n in counts.most_common())}")
    print(f"  the same command again: {dict(ends)}; every output is byte for byte as without a kill, and nothing lies beside")


def faults(kinds: dict[str, Kind]) -> None:
    for number in (28, 5):
        fail, steps_of, results = OSError(number, os.strerror(number)), Counter[str](), Counter[str]()
        for name, k in kinds.items():
            put(k.given)  # type: ignore[attr-defined]
            _, steps = dies(None, k.run, fail)
            for at in range(1, steps + 1, max(1, steps // 60)):
                put(k.given)  # type: ignore[attr-defined]
                result, _ = dies(at, k.run, fail)
                assert result == "done" or "exit code 1" in result, f"{name}, {fail} at step {at}: {result}"
                k.between()
                results["done all the same" if result == "done" else "an error"] += 1
                k.end(f"{name}, {fail} at step {at}")
                steps_of[name] += 1
        print(f"{fail}: {sum(steps_of.values())} faults over {len(kinds)} kinds: {dict(results)}")


def full_disk() -> None:
    """A tmpfs of any size from nothing to more than enough."""
    results, disk = Counter[str](), Path("disk").resolve()
    for name in ("folder", "folder, f16 and tensors", "GGUF", "GGUF, split", "GGUF, quantized", "folder, gone on with"):
        line, large = LINES[name]
        for size in range(1, 30, 2):
            disk.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}M", "tmpfs", str(disk)], check=True)
            try:
                here = line.replace("-o out", f"-o {disk}/out")
                code, said = fork(command(here, large))
                there = [p for p in disk.iterdir() if not p.name.startswith(".")]
                if code == "0":
                    results["written"] += 1
                else:
                    assert "the disk is full" in said and "Traceback" not in said, said
                    assert not there, there
                    results["full: one line, no output"] += 1
            finally:
                subprocess.run(["umount", str(disk)], check=True)
                disk.rmdir()
    print(f"full tmpfs: {dict(results)}")


def check_written(kinds: dict[str, Kind]) -> None:
    for name, k in kinds.items():
        put(k.after)
        for path in Path().glob("*.gguf"):
            if "-0000" not in path.name or "-00001-" in path.name:
                assert read_model(path).tensors, name
        for folder in ("out", "old", "card"):
            if Path(folder).is_dir():
                assert read_folder(Path(folder)), name


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-faults", action="store_true")
    parser.add_argument("--only", help="kinds whose name begins so")
    o = parser.parse_args()
    parts.UNITS["M"] = 1_000_000
    np.zeros(1)
    with tempfile.TemporaryDirectory(prefix="yarn-convert-kills-") as folder, contextlib.chdir(folder):
        kinds = {name: k for name, k in start().items() if name.startswith(o.only or "")}
        check_written(kinds)
        kill(kinds, o.kills, random.Random(o.seed))
        if not o.no_faults:
            faults(kinds)
            if os.geteuid() == 0:
                full_disk()


if __name__ == "__main__":
    main()

"""The GPU run: every part of `parts/`, those on the GPU one after the other, those on the CPU beside them.

    python run.py --out results                  # all, within --limit seconds; results/gpu.json is whole at any moment
    python run.py --out results --parts speed    # one part alone, with those that it needs
    python run.py --device cpu --model M.gguf    # the same without a GPU, as the test of it does

Without --model it takes what `pack.py` packed and lies beside the scripts. It needs Python with torch and transformers, and no network.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from job import HERE, PARTS, Job, few_threads, read, results_of

PACKED, FOUND = HERE / "packed.json", "gpu.json"
TAIL = 2000  # characters of a part's output that are kept


@dataclass
class Part:
    """One file of `parts/`; `state` is waiting, running, done, failed, timed out, cut off or skipped."""

    name: str
    on: str
    limit: float
    needs: tuple[str, ...]
    state: str = "waiting"
    why: str = ""
    began: float = 0.0
    seconds: float = 0.0
    process: subprocess.Popen[bytes] | None = None


def parts() -> dict[str, Part]:
    """All parts by name, in the order in which they are started."""
    found = {}
    for path in sorted(PARTS.glob("*.py")):
        first = next(node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.Assign))
        name = path.stem.partition("_")[2]
        found[name] = Part(name, *ast.literal_eval(first.value))  # what it imports may not be installed yet
    return found


def script_of(name: str) -> Path:
    (path,) = PARTS.glob(f"*_{name}.py")
    return path


def wanted(all_parts: dict[str, Part], names: Sequence[str]) -> dict[str, Part]:
    """Those of these names and what they need; all where none is named."""
    if unknown := {*names} - {*all_parts}:
        raise SystemExit(f"no part is called {', '.join(sorted(unknown))}: there are {', '.join(all_parts)}")
    found = {*names} or {*all_parts}
    while more := {need for name in found for need in all_parts[name].needs} - found:
        found |= more
    return {name: part for name, part in all_parts.items() if name in found}


class Run:
    """The state of the whole; `step` moves it on, `write` puts all that there is into one file."""

    def __init__(self, todo: dict[str, Part], job: Job, out: Path) -> None:
        self.parts, self.job, self.out = todo, job, out
        self.began, self.machine = time.monotonic(), machine(job.device)
        self.written = ""
        (job.work / "results").mkdir(parents=True, exist_ok=True)
        for name in todo:
            results_of(job.work, name).unlink(missing_ok=True)

    def step(self) -> bool:
        """End what is over, start what can be; whether anything is left to wait for."""
        for part in self.parts.values():
            if part.process is not None:
                self._look(part)
        for part in self.parts.values():
            if part.state == "waiting":
                self._start(part)
        self.write()
        return any(part.state in ("waiting", "running") for part in self.parts.values())

    def _look(self, part: Part) -> None:
        assert part.process is not None
        part.seconds, code = time.monotonic() - part.began, part.process.poll()
        if code is not None:
            part.state = "failed" if code else "done"
            part.why = (self._log(part).splitlines() or [f"exit code {code}"])[-1] if code else ""
            part.process = None
        elif part.seconds > part.limit:
            self.stop(part, "timed out")

    def _start(self, part: Part) -> None:
        needed = [self.parts[name] for name in part.needs]
        if bad := [p.name for p in needed if p.state not in ("waiting", "running", "done")]:
            part.state, part.why = "skipped", f"it needs {', '.join(bad)}"
            return
        busy = part.on == "gpu" and any(p.on == "gpu" and p.state == "running" for p in self.parts.values())
        if busy or any(p.state != "done" for p in needed):
            return
        own = replace(self.job, name=part.name)
        given = self.job.work / f"{part.name}.job.json"
        own.write(given)
        with self._log_of(part).open("wb") as log:
            command = [sys.executable, str(HERE / "run.py"), "--job", str(given)]
            part.process = subprocess.Popen(command, stdout=log, stderr=log, env=few_threads(own.cores), start_new_session=True)
        part.state, part.began = "running", time.monotonic()

    def stop(self, part: Part, state: str) -> None:
        """End a part and what it has started."""
        if part.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(part.process.pid, signal.SIGKILL)
            part.process.wait()
            part.process, part.state, part.seconds = None, state, time.monotonic() - part.began
        elif part.state == "waiting":
            part.state = state

    def _log_of(self, part: Part) -> Path:
        return self.job.work / f"{part.name}.log"

    def _log(self, part: Part) -> str:
        log = self._log_of(part)
        return log.read_text("utf-8", "replace")[-TAIL:].strip() if log.exists() else ""

    def write(self) -> None:
        shown = {
            name: {
                "state": part.state, "why": part.why, "on": part.on, "seconds": round(part.seconds, 1), "figures": read(results_of(self.job.work, name)),
                "log": self._log(part) if part.state not in ("waiting", "done") else "",
            }
            for name, part in self.parts.items()
        }  # fmt: skip
        text = json.dumps({"machine": self.machine, "parts": shown, "seconds": round(time.monotonic() - self.began, 1)}, indent=1)
        whole = self.out / f".{FOUND}.new"
        whole.write_text(text + "\n", "utf-8")
        whole.replace(self.out / FOUND)


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    code = (
        "import json,torch,transformers;c=torch.cuda.is_available();"
        "print(json.dumps({'torch':torch.__version__,'transformers':transformers.__version__,"
        "'card':torch.cuda.get_device_name() if c else None,'memory':torch.cuda.get_device_properties(0).total_memory if c else None,"
        "'cuda':torch.version.cuda}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=False
    ).stdout.strip() if shutil.which("nvidia-smi") else None  # fmt: skip
    own = {"python": platform.python_version(), "cores": os.cpu_count(), "driver": driver, "date": time.strftime("%Y-%m-%d", time.gmtime())}
    return own | json.loads(done.stdout) | {"device": device}


def unpacked(work: Path) -> tuple[Path, Path | None]:
    """(the model, the texts) that `pack.py` packed, after installing the packages; each file's SHA-256 is looked at."""
    packed = read(PACKED)
    if not packed:
        raise SystemExit(f"there is no {PACKED.name} here: --model FILE.gguf, or unpack all pieces of pack.py into one folder")
    for name, digest in packed["files"].items():
        if not (HERE / name).exists() or hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest:
            raise SystemExit(f"{name} is missing or damaged: unpack every piece into this folder")
    site = work / "site"
    wheels = [str(HERE / name) for name in packed["files"] if name.endswith(".whl")]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade", "--target", str(site), *wheels], check=True
    )
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    model = work / packed["model"]["name"]
    with model.open("wb") as whole:
        for piece in packed["model"]["pieces"]:
            whole.write((HERE / piece).read_bytes())
    return model, HERE / "texts" if packed["texts"] else None


def run_part(given: Path) -> None:
    """What a part's own process does."""
    job = Job.at(given)
    spec = importlib.util.spec_from_file_location(job.name, script_of(job.name))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(job)


@contextlib.contextmanager
def stopped_politely() -> Iterator[None]:
    """SIGTERM, as `timeout` sends it, ends the run as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument("--work", type=Path, help="folder for everything else [default: work, beside the scripts]")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", type=Path, help="a base model as GGUF, instead of the packed one")
    parser.add_argument("--texts", type=Path, help="folder of *.txt, with --model")
    parser.add_argument("--documents", type=int, default=10)
    parser.add_argument("--parts", default="", help="some parts by name, with commas")
    parser.add_argument("--limit", type=float, default=470, help="seconds for all parts together")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        return run_part(given.job)
    todo = wanted(parts(), [name for name in given.parts.split(",") if name])
    work = (given.work or HERE / "work").absolute()
    given.out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    model, texts = (given.model.absolute(), given.texts) if given.model else unpacked(work)
    job = Job("", work, model, given.device, texts and texts.absolute(), given.documents, max(1, (os.cpu_count() or 2) // 2))
    run = Run(todo, job, given.out)
    with stopped_politely():
        try:
            while run.step() and time.monotonic() - run.began < given.limit:
                time.sleep(0.2)
        except KeyboardInterrupt:
            pass
        finally:
            for part in run.parts.values():
                run.stop(part, "cut off")
            run.write()
    for name, part in run.parts.items():
        print(f"{name:>16}  {part.state} in {part.seconds:.0f} s  {part.why}")
    if any(part.state != "done" for part in run.parts.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

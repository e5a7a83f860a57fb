"""llama.cpp's own converter, for models whose tensors have no names here: run in a process of its own, with neither network nor token.

It makes a GGUF of the model as it is; what is written of its RoPE is ours, as for any other GGUF.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import InputError, OutputError, Unsupported, UsageError, need
from ..formats.contents import MAPPING
from ..formats.files import exists
from ..formats.tensors import load_json
from ..hearing import tell

SCRIPT = "convert_hf_to_gguf.py"
PLACE = "YARN_CONVERT_LLAMA_CPP"  # an environment variable: a checkout of llama.cpp
OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0")  # its own
KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT", "OMP_NUM_THREADS", "OMP_THREAD_LIMIT")  # of the environment
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1"}
FAILURE = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*|^ERROR:.*", re.M)
WAYS = f"--converter PATH, or {PLACE}: a checkout of llama.cpp"


def find(asked: Path | None = None) -> Path | None:
    """The script: in the checkout of llama.cpp that is asked for or is the script itself, else in that of the environment, the one in the
    home folder, or on the path. None where there is none; UsageError where the one that is asked for is not there."""
    told = os.environ.get(PLACE)
    for place, why in ((asked, "--converter"), (Path(told) if told else None, PLACE)):
        if place is not None:
            script = place.expanduser() / SCRIPT if place.expanduser().is_dir() else place.expanduser()
            if not script.is_file():
                raise UsageError(f"there is no {SCRIPT} at {place}, which {why} names", "give a checkout of llama.cpp, or the script in it")
            return script.resolve()
    on_path = shutil.which(SCRIPT)
    places = [Path.home() / "llama.cpp" / SCRIPT, *([Path(on_path)] if on_path else [])]
    return next((script.resolve() for script in places if script.is_file()), None)


def check(folder: Path, outtype: str, trusted: bool) -> None:
    """Raise Unsupported for a folder whose own Python it may run, unless that is trusted, UsageError for a type that it does not make."""
    need("validate", "llama.cpp's converter", "torch", "transformers")
    if outtype not in OUTTYPES:
        hint = f"--outtype {', '.join(OUTTYPES[1:-1])} or {OUTTYPES[-1]}; llama-quantize makes others of it"
        raise UsageError(f"llama.cpp's converter does not write {outtype}", hint)
    code = own_code(folder)
    if code and not trusted:
        hint = "--trust-remote-code lets it, once you have read them"
        raise Unsupported(f"llama.cpp's converter may run this model's own Python: {', '.join(code)}", hint)


def own_code(folder: Path) -> list[str]:
    """What transformers would run of a model's own code, by its files: `auto_map`."""
    found: dict[str, None] = {}
    for name in MAPPING:
        said = load_json(folder / name).get("auto_map") if exists(folder, name) else None
        for value in _texts(said):
            repo, _, module = value.rpartition("--")
            found[f"{repo}--" * bool(repo) + module.partition(".")[0] + ".py"] = None
    return list(found)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def version(script: Path) -> str:
    """Which converter it is, as a manifest says it: the SHA-256 of what it consists of."""
    digest = hashlib.sha256()
    for path in sorted([script, *(script.parent / "conversion").glob("*.py")]):
        digest.update(path.read_bytes())
    return f"llama.cpp's {SCRIPT}, SHA-256 {digest.hexdigest()}"


@contextlib.contextmanager
def place_beside(out: Path) -> Iterator[Path]:
    """A folder for what is made on the way, on the disk of the output."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.stem}-converter-", dir=out.parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder).resolve()
    except OSError as e:
        raise OutputError(f"could not write beside {out}: {e.strerror}", "free some space, or give another place with -o") from None


def run(script: Path, model: Path, made: Path, outtype: str, mmproj: bool = False) -> Path:
    """The GGUF of a folder as it is, at `made`, or near it; `mmproj`: of what sees or hears in it, instead. InputError, with its last word,
    where it fails."""
    what = "llama.cpp's converter" + (", what is around the language model" if mmproj else "")
    command = [*_without_network(), sys.executable, str(script), str(model.resolve()), "--outfile", str(made)]
    command += ["--outtype", outtype] + ["--mmproj"] * mmproj
    home = made.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {k: v for k in KEPT if (v := os.environ.get(k)) is not None} | OFFLINE | {"HOME": str(home), "HF_HOME": str(home)}
    total = sum(path.stat().st_size for path in model.glob("*.safetensors")) or 1
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=made.parent
        )
        try:
            while process.poll() is None:
                tell(what, min(0.99, sum(p.stat().st_size for p in made.parent.glob("*.gguf")) / total))
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        said = log.read().decode("utf-8", "replace")
    found = [p for p in made.parent.glob("*.gguf") if p == made or p.name.endswith(made.name)]  # of an mmproj it changes the name
    if process.returncode or not found:
        raise InputError(f"llama.cpp's converter failed: {_last(said)}", "see whether a newer llama.cpp knows this model: --converter PATH")
    tell(what, 1.0)
    return found[0]


def _last(said: str) -> str:
    """The reason in what a process printed: its last error, else its last line."""
    lines = [m[0] for m in FAILURE.finditer(said)] or [line for line in said.splitlines() if line.strip()] or ["it says nothing"]
    return lines[-1].removeprefix("ERROR:hf-to-gguf:").strip()


@cache
def _without_network() -> tuple[str, ...]:
    """The beginning of a command that runs in a network of its own, where the system grants one to anybody."""
    command = ("unshare", "--map-current-user", "--net", "--")
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return ()
    return command if subprocess.run([*command, "true"], capture_output=True).returncode == 0 else ()

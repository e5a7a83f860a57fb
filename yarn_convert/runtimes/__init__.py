"""Real runtimes, one worker file each: token ids in, float32 logits out, over files.

A worker imports only NumPy and its runtime, so that it can run in another environment, and runs in a process of its own
(`run`), so that a runtime's crash, threads or memory stay there. `table` has the runtimes, `environments` finds them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, YarnConvertError
from ..formats.files import page
from ..hearing import tell
from . import library
from .environments import environment_of, python_of, without_secrets
from .protocol import PROGRESS, SHORT, TOO_LONG
from .table import mode_of, runtime_of

KILLED = -9  # exit code of a process that SIGKILL has ended
Spans = Sequence[tuple[int, int]]
NOISE = re.compile(r"^(Exception ignored|.*Warning|  )")  # lines after the telling one


class Failed(YarnConvertError):
    """A runtime that stopped or crashed on a model; the message is its last word. `killed`: by the system or by somebody, or for want of
    memory. `too_long`: of a text that is longer than what the runtime takes."""

    killed = False
    too_long = False


class Run(NamedTuple):
    """What a runtime computed: `logits` float32[rows, vocabulary], and `info` (version, device, seconds, …)."""

    logits: NDArray[np.float32]
    info: dict[str, Any]


def run(
    runtime: str,
    model: Path,
    ids: NDArray[np.int64],
    spans: Spans,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Run:
    """Logits of `model` at the positions of `spans`, in order, as `runtime`, a key of RUNTIMES or NAME:MODE, computes them.

    The whole of `ids`, int64[n], is one text from position 0 on. `progress` gets the fraction of it that is done, 0 when the model is
    loaded.
    Raises UsageError when the runtime is not installed, and Failed, with its last line, when it does not run the model.
    """
    with tempfile.TemporaryDirectory(prefix="yarn-convert-") as folder:
        # The ids may be fewer than the spans' ends only by a mistake of ours; a worker need not check it.
        info = _work(runtime, model, Path(folder), np.asarray(ids, np.int64), spans, options or {}, lambda done: progress(done / len(ids)))
        return Run(np.load(Path(folder, "logits.npy")), info)


def tokenize(model: Path, text: str) -> NDArray[np.int64]:
    """The tokens of a text, int64[n], special ones found in it and none put beside it, as llama.cpp reads it with this GGUF.

    Raises UsageError when it is not installed, and Failed when it does not read the file.
    """
    with tempfile.TemporaryDirectory(prefix="yarn-convert-") as folder:
        _work("llama.cpp", model, Path(folder), np.frombuffer(text.encode(), np.uint8), [], {"tokenize": True})
        return np.asarray(np.load(Path(folder, "tokens.npy")), dtype=np.int64)


def probe(folder: Path | None) -> dict[str, Any]:
    """Of the llama.cpp that is installed, or of the library in this folder: `devices`, each with its name, `description` and `kind`, its
    `version`, and of the latter what else is said of it, `library`. UsageError for one that cannot be run, with why."""
    with tempfile.TemporaryDirectory(prefix="yarn-convert-") as place, library.using(folder):
        try:
            return _work("llama.cpp", folder or Path(place), Path(place), np.zeros(0, np.int64), [], {"probe": True})
        except Failed as e:
            why = e.message.partition(": ")[2]
    if folder is None:
        raise UsageError(f"llama.cpp cannot be run here: {why}", "yarn-convert runtimes add llama.cpp")
    raise UsageError(f"the llama.cpp in {folder} cannot be run: {why}", "build it about as old as llama-cpp-python is")


def states(model: Path, ids: NDArray[np.int64], names: Sequence[str], options: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """The tensors of these names in llama.cpp's graph, float32[n, numbers], after one pass over `ids`, int64[n], at most 512, on the CPU;
    of a name that several have, the last. `options` as its worker is told them. Raises as `run` does."""
    with tempfile.TemporaryDirectory(prefix="yarn-convert-") as folder:
        asked = {**options, "device": "cpu", "states": list(names)}
        _work("llama.cpp", model, Path(folder), np.asarray(ids, np.int64), [(0, len(ids))], asked)
        with np.load(Path(folder, "states.npz")) as found:
            return {name: found[name] for name in found.files}


def put_job(
    folder: Path, runtime: str, model: Path, ids: NDArray[Any], spans: Spans, options: Mapping[str, Any], more: bool = False
) -> None:
    """Write down in `folder` what a runtime's worker is to do there (`protocol`); `options`: beside those of its mode."""
    mode = mode_of(runtime)
    np.save(folder / "ids.npy", ids)
    job = {"spans": [list(s) for s in spans], "options": {**options, **(mode.options if mode else {})}, "more": more}
    (folder / "job.json").write_text(json.dumps({"model": str(model.absolute()), **job}), "utf-8")


def _work(
    runtime: str, model: Path, folder: Path, ids: NDArray[Any], spans: Spans, options: Mapping[str, Any],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:  # fmt: skip
    """Let the runtime's worker do that; its info."""
    command, env = started_by(runtime, str(folder))
    put_job(folder, runtime, model, ids, spans, options)
    tell(f"starting {runtime}")
    code, last = _call(command, env, str(folder), progress)
    info = Path(folder, "info.json")
    if code or not info.exists():
        raise failure(runtime, model, code, last)
    found: dict[str, Any] = json.loads(info.read_text("utf-8"))
    return found


def started_by(runtime: str, folder: str) -> tuple[list[str], dict[str, str]]:
    """(the command that starts a runtime's worker on a folder, its environment). UsageError for a runtime that is not installed."""
    row, python = runtime_of(runtime), python_of(runtime)
    if python is None:
        raise UsageError(f"{row.name} is not installed", f"yarn-convert runtimes add {row.name}")
    return [str(python), str(Path(__file__).parent / row.worker), folder], without_secrets(os.environ) | environment_of(runtime)


def failure(runtime: str, model: Path, code: int, last: str) -> Failed:
    """What a worker's exit code and last telling line say."""
    why = "it was killed, as the system does where memory is short" if code == KILLED else last or f"exit code {code}"
    failed = Failed(f"{runtime} could not run {model.name}: {why}", f"{page('validation')} has its limits")
    failed.killed, failed.too_long = code in (KILLED, SHORT), code == TOO_LONG
    return failed


def heard(line: str, progress: Callable[[int], None]) -> None:
    """Pass on how many tokens are done, where a worker's line says that."""
    if line.startswith(PROGRESS):
        with contextlib.suppress(ValueError):
            progress(int(line.removeprefix(PROGRESS)))


def telling(tail: Iterable[str]) -> str:
    """The last telling line; "" where there is none."""
    lines = [line.strip() for line in tail if line.strip() and not NOISE.match(line)]
    return lines[-1][:300] if lines else ""


def _call(command: list[str], env: dict[str, str], folder: str, progress: Callable[[int], None]) -> tuple[int, str]:
    """(exit code, the last telling line of its stderr). The process dies with this one's Ctrl-C."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=env, cwd=folder
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        tail: deque[str] = deque(maxlen=200)
        reader = threading.Thread(target=tail.extend, args=(process.stderr,), daemon=True)
        reader.start()
        try:
            for line in process.stdout:
                heard(line, progress)
            process.wait()
        except BaseException:
            process.kill()
            raise
        reader.join(timeout=5)
    return process.returncode, telling(tail)

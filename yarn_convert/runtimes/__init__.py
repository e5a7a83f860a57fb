"""Real runtimes, one worker file each: token ids in, float32 logits out, over files.

A worker imports only NumPy and its runtime, so that it can run in another environment, and runs in a process of its own
(`run`), so that a runtime's crash, threads or memory stay there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import YarnConvertError

WORKERS = {"transformers": "transformers_worker.py", "llama.cpp": "llama_cpp_worker.py"}


def run(runtime: str, model: Path, ids: NDArray[np.int64], start: int = 0, python: str = sys.executable) -> NDArray[np.float32]:
    """Logits float32[len(ids) − start, vocabulary] of `model` for positions `start` on, as `runtime` computes them.

    The whole of `ids`, int64[n], is fed in one pass. Raises YarnConvertError with the runtime's last line when it fails.
    """
    worker = Path(__file__).parent / WORKERS[runtime]
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder, "ids.npy"), Path(folder, "logits.npy")
        np.save(given, np.asarray(ids, dtype=np.int64))
        command = [python, str(worker), str(model), str(given), str(got), str(start)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not got.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
            raise YarnConvertError(f"{runtime} could not run {model}: {lines[-1][:300]}", "is it installed, and the model whole?")
        return np.asarray(np.load(got))

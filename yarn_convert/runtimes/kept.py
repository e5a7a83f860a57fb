"""One process of a runtime that keeps its model loaded for one text after another, where its worker can (`Runtime.keeps`)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import runtimes
from ..hearing import tell
from .protocol import DONE, PART
from .table import runtime_of


class Kept:
    """A model in a runtime, with options as for `run`. `close` it: its process lives until then."""

    def __init__(self, runtime: str, model: Path, options: dict[str, Any] | None = None) -> None:
        self.runtime, self.model, self.options = runtime, model, options or {}
        self.child: subprocess.Popen[str] | None = None

    def run(
        self,
        ids: NDArray[np.int64],
        spans: Sequence[tuple[int, int]],
        progress: Callable[[float], None] = lambda fraction: None,
        take: Callable[[NDArray[np.float32]], None] | None = None,
    ) -> runtimes.Run:
        """As `runtimes.run`; a worker that cannot keep a model is started for each text. `take` is told the logits, whatever the options
        say: by a worker that keeps its model as they come, which then has none in the end."""
        if not runtime_of(self.runtime).keeps:
            options = self.options | ({"losses": False} if take else {})
            found = runtimes.run(self.runtime, self.model, ids, spans, options, progress)
            if take:
                take(found.logits)
            return found
        options = self.options | ({"losses": False, "parts": True} if take else {})
        with tempfile.TemporaryDirectory(prefix="yarn-convert-") as folder:
            runtimes.put_job(Path(folder), self.runtime, self.model, np.asarray(ids, np.int64), spans, options, more=True)
            try:
                self._ask(folder)
                self._wait(lambda done: progress(done / len(ids)), Path(folder, "logits.npy"), take)
            except BaseException:
                self.close(kill=True)
                raise
            info = json.loads(Path(folder, "info.json").read_text("utf-8"))
            return runtimes.Run(np.zeros((0, 0), np.float32) if take else np.load(Path(folder, "logits.npy")), info)

    def _ask(self, folder: str) -> None:
        """Start the worker with its first job, or tell it the next."""
        if self.child is not None:
            return self._say(folder)
        pipe, (command, env) = subprocess.PIPE, runtimes.started_by(self.runtime, folder)
        tell(f"starting {self.runtime}")
        self.home = tempfile.TemporaryDirectory(prefix="yarn-convert-")  # for as long as the process lives
        self.child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace", env=env, cwd=self.home.name
        )
        self.tail: deque[str] = deque(maxlen=200)
        self.reader = threading.Thread(target=self.tail.extend, args=(self.child.stderr,), daemon=True)
        self.reader.start()
        return None

    def _say(self, line: str) -> None:
        """A line to the worker."""
        assert self.child is not None
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # of one that has ended: it is known by its silence
            self.child.stdin.write(f"{line}\n")
            self.child.stdin.flush()

    def _wait(self, progress: Callable[[int], None], file: Path, take: Callable[[NDArray[np.float32]], None] | None) -> None:
        """Until the worker says that it is done; `take` is told each part that lies in `file`. Raises Failed where it ends before."""
        assert self.child is not None
        for line in self.child.stdout or ():
            if line.rstrip() == DONE:
                return
            if take and line.rstrip() == PART:
                take(np.load(file))
                self._say("")
            runtimes.heard(line, progress)
        code = self.child.wait()
        self.reader.join(timeout=5)
        raise runtimes.failure(self.runtime, self.model, code, runtimes.telling(self.tail))

    def close(self, kill: bool = False) -> None:
        """End the process: it ends by itself where nothing more is to come."""
        child, self.child = self.child, None
        if child is None:
            return
        if kill:
            child.kill()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        child.wait()
        self.reader.join(timeout=5)
        self.home.cleanup()

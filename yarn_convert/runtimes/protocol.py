"""What `runtimes.run` and a worker say to each other, over the files of one folder. Imports NumPy alone.

The parent writes `job.json` (model, spans, options) and `ids.npy` (int64[n], fed from position 0 on). The worker writes `logits.npy`,
float32[rows, vocabulary], one row for each position of the spans in order, and `info.json`; with the option `losses` float32[rows, 1]
instead, −ln p of the token that follows each position. With `parts`, `logits.npy` has only the rows that came last: "part" on its stdout
says that they are there, and it waits for a line on its stdin before it goes on. `served`: the context in tokens for which a runtime that
has one is to be started. With `tokenize`, an option of llama.cpp's, `ids.npy` is a text, uint8[bytes], and `tokens.npy`, int64[n], are its
tokens; with `probe`, another, only `info.json` is written, with the library's `devices`; with `states`, names of tensors of its graph,
`states.npz` has these, float32[n, numbers]. On its stdout a line "at N" says that N tokens are done, "at 0" that the model is loaded, and
"done" that the folder is; everything else there and on stderr is the runtime's own noise. With `more`, a worker that keeps its model goes
on with the next folder that its stdin names, until that ends.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

PROGRESS = "at "
DONE = "done"
PART = "part"
TOO_LONG = 74  # exit code of a worker whose runtime takes no text of such a length
SHORT = 75  # exit code of a worker whose device has too little memory
UNFIT = 76  # exit code of a worker that was given a library which it cannot run


class WorkerJob:
    """A worker's side: read the job named by the command line, put logits as they come, finish."""

    def __init__(self, folder: Path) -> None:
        job = json.loads((folder / "job.json").read_text("utf-8"))
        self.folder = folder
        self.model: str = job["model"]
        self.spans: list[tuple[int, int]] = [(a, b) for a, b in job["spans"]]
        self.options: dict[str, Any] = job["options"]
        self.more: bool = job.get("more", False)
        self.ids = np.load(folder / "ids.npy")
        self.rows = sum(b - a for a, b in self.spans)
        self.out: Any = None
        self.began = time.perf_counter()

    @staticmethod
    def read() -> WorkerJob:
        return WorkerJob(Path(sys.argv[1]))

    def next(self) -> WorkerJob | None:
        """The job that follows this one, with the same model and options; None where there is no other."""
        folder = sys.stdin.readline().rstrip("\n") if self.more else ""
        return WorkerJob(Path(folder)) if folder else None

    def start(self) -> None:
        """The model is loaded: what is timed begins here."""
        self.progress(0)
        self.began = time.perf_counter()

    def wanted(self, at: int, n: int) -> bool:
        """Whether any of the positions at … at+n−1 is in a span."""
        return any(a < at + n and at < b for a, b in self.spans)

    def put(self, at: int, logits: Any) -> None:
        """Logits float32[n, vocabulary] of the positions at … at+n−1; those that no span asks for are dropped."""
        if self.options.get("parts"):
            return self._hand_over(np.concatenate([logits[max(a - at, 0) : max(b - at, 0)] for a, b in self.spans]))
        logits = self._reduced(np.arange(at, at + len(logits)), logits)
        row, out = 0, self._out(np.shape(logits)[1])
        for a, b in self.spans:
            low, high = max(a, at), min(b, at + len(logits))
            if low < high:
                out[row + low - a : row + high - a] = logits[low - at : high - at]
            row += b - a
        return None

    def _hand_over(self, logits: Any) -> None:
        """A part, and wait until it has been read."""
        np.save(self.folder / "logits.npy", logits)
        print(f"\n{PART}", flush=True)
        sys.stdin.readline()

    def put_all(self, logits: Any) -> None:
        """Logits float32[rows, vocabulary] of all `positions`."""
        logits = self._reduced(self.positions, logits)
        self._out(np.shape(logits)[1])[:] = logits

    def _reduced(self, positions: Any, logits: Any) -> Any:
        """What is kept of the logits of these positions: all, or the losses of the tokens that follow (0 after the last)."""
        if not self.options.get("losses"):
            return logits
        rows = np.asarray(logits, np.float64)
        rows = rows - rows.max(1, keepdims=True)
        chosen = rows[np.arange(len(rows)), self.ids[np.minimum(positions + 1, len(self.ids) - 1)]]
        return np.where(positions + 1 < len(self.ids), np.log(np.exp(rows).sum(1)) - chosen, 0.0)[:, None]

    def _out(self, vocabulary: int) -> Any:
        if self.out is None:
            path, shape = self.folder / "logits.npy", (self.rows, vocabulary)
            self.out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        return self.out

    @property
    def positions(self) -> Any:
        """All wanted positions in the order of the rows, int64[rows]."""
        return np.concatenate([np.arange(a, b) for a, b in self.spans])

    @property
    def device(self) -> str:
        """Where it is to run, if it can: cuda, mps or cpu."""
        return str(self.options.get("device", "cpu"))

    @staticmethod
    def stop(code: int, why: str) -> NoReturn:
        """End as one of the exit codes above says, with `why` as the last word."""
        print(why, file=sys.stderr)
        raise SystemExit(code)

    def progress(self, done: int) -> None:
        print(f"{PROGRESS}{done}", flush=True)

    def finish(self, **info: Any) -> None:
        """Everything is put. `info` is what the report shows: version, device, peak_device_bytes."""
        if self.out is not None:
            self.out.flush()
        seconds = time.perf_counter() - self.began
        (self.folder / "info.json").write_text(json.dumps({"seconds": seconds, **info}), "utf-8")
        print(f"\n{DONE}", flush=True)

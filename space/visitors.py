"""The visitors' work: one process each time, with the visitor's token and nothing of anybody else's."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TextIO

from yarn_convert.runtimes.environments import without_secrets

SECONDS = {"look": 120, "plan": 120, "prove": 1200, "publish": 900}  # after which a process is ended
DISK = 1 << 30  # bytes that it may write: a model's small files have 50 MB at most
BEAT = 1.0  # seconds after which what was said is said again: who has left is noticed by it
WORK = Path(__file__).with_name("work.py")


class Refused(Exception):
    """What the command line would say: one line, and a hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def do(work: str, token: str | None, asked: Mapping[str, Any]) -> Iterator[str | dict[str, Any]]:
    """What it says, each second, and at last the answer. Raises Refused for what cannot be done. Closed early, it ends the process."""
    with tempfile.TemporaryDirectory(prefix="visitor-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        env = without_secrets(os.environ) | {"HF_HOME": str(folder / "hub"), "TMPDIR": name, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if token:
            env |= {"HF_TOKEN": token, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
        with open(folder / "errors", "w+", errors="replace") as errors:
            process = subprocess.Popen(
                [sys.executable, str(WORK)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder, env=env, start_new_session=True,
            )  # fmt: skip
            try:
                yield from _said(process, {"work": work, **asked}, folder)
            finally:
                _end(process)
                if process.wait() > 0:  # a fault of ours: its last line is for who runs this page
                    errors.seek(0)
                    last = (errors.read().splitlines() or [""])[-1]
                    print(f"{work}: {last.replace(token, '…') if token else last}", file=sys.stderr)


def _said(process: subprocess.Popen[str], asked: Mapping[str, Any], folder: Path) -> Iterator[str | dict[str, Any]]:
    by_hand, seconds = f"on your machine: {asked['command']}", SECONDS[asked["work"]]
    lines = _told(process, asked)
    said, end = "starting", time.monotonic() + seconds
    while True:
        try:
            line = lines.get(timeout=BEAT)
        except Empty:
            line = ""
        if line is None:
            break
        if time.monotonic() > end:
            raise Refused(f"this took more than {seconds:,} seconds here", by_hand)
        if _written(folder) > DISK:
            raise Refused(f"the small files of this model have more than {DISK >> 20:,} MiB, which this page does not take", by_hand)
        if line.startswith("{"):
            told = json.loads(line)
            if "error" in told:
                raise Refused(told["error"], told["hint"])
            if "answer" in told:
                yield told["answer"]
                return
            said = told["say"]
        yield said
    short = process.wait() == -signal.SIGKILL
    why = "the memory of this page did not suffice" if short else "this failed for a reason of this page's own, not of the model's"
    raise Refused(why, by_hand)


def _told(process: subprocess.Popen[str], asked: Mapping[str, Any]) -> SimpleQueue[str | None]:
    """The process is told what is asked for; its lines as they come, and None when there are no more."""
    assert process.stdin is not None and process.stdout is not None
    lines: SimpleQueue[str | None] = SimpleQueue()

    def read(stdout: TextIO) -> None:
        with stdout:
            for line in stdout:
                lines.put(line)
        lines.put(None)

    Thread(target=read, args=(process.stdout,), daemon=True).start()
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:  # of one that has ended already
        stdin.write(json.dumps(asked))
    return lines


def _written(folder: Path) -> int:
    """Bytes of its files on the disk, where holes have none."""
    found = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone in between
                found += Path(path, name).lstat().st_blocks * 512
    return found


def _end(process: subprocess.Popen[str]) -> None:
    """It and all that it has started, also where it has ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)

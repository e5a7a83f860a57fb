"""The visitors' work: one process each time, with the visitor's token and nothing of anybody else's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Timer
from typing import Any

SECONDS = {"look": 120, "plan": 120, "prove": 1200, "publish": 900}  # after which a process is ended
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")
WORK = Path(__file__).with_name("work.py")


class Refused(Exception):
    """What the command line would say: one line, and a hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def do(work: str, token: str | None, asked: Mapping[str, Any]) -> Iterator[str | dict[str, Any]]:
    """Lines while it works, and at last the answer. Raises Refused for what cannot be done. Closed early, it ends the process."""
    with tempfile.TemporaryDirectory(prefix="visitor-") as folder:
        env = {k: v for k, v in os.environ.items() if k not in TOKENS and not k.startswith("OAUTH_")}
        env |= {"HF_HOME": str(Path(folder, "hub")), "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if token:
            env |= {"HF_TOKEN": token, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
        with open(Path(folder, "said"), "w+", errors="replace") as errors:
            process = subprocess.Popen(
                [sys.executable, str(WORK)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder, env=env, start_new_session=True,
            )  # fmt: skip
            clock = Timer(SECONDS[work], _end, [process])
            clock.start()
            try:
                yield from _said(process, {"work": work, **asked}, work)
            finally:
                clock.cancel()
                _end(process)
                if process.wait() > 0:  # a fault of ours: its last line is for who runs this page
                    errors.seek(0)
                    last = (errors.read().splitlines() or [""])[-1]
                    print(f"{work}: {last.replace(token, '…') if token else last}", file=sys.stderr)


def _said(process: subprocess.Popen[str], asked: Mapping[str, Any], work: str) -> Iterator[str | dict[str, Any]]:
    assert process.stdin is not None and process.stdout is not None
    with process.stdin as stdin:
        stdin.write(json.dumps(asked))
    for line in process.stdout:
        if not line.startswith("{"):
            continue
        said = json.loads(line)
        if "error" in said:
            raise Refused(said["error"], said["hint"])
        if "answer" in said:
            yield said["answer"]
            return
        yield said["say"]
    code = process.wait()
    slow = code == -signal.SIGKILL
    raise Refused(
        f"this took more than {SECONDS[work]} seconds here" if slow else "this failed for a reason of this page's own, not of the model's",
        f"on your machine: {asked['command']}",
    )


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)

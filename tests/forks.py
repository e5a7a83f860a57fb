"""Processes as forks of one that has torch and transformers imported: that takes seconds, and what a test wants of them often less.

The server imports and does nothing else, so that no thread or lock is lost in a fork. Each fork is a process of its own: it has its own
environment and folder, and ends, fails and is killed as any other.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

PRELOADED = ("torch", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama", "llama_cpp")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(list(PRELOADED))


def become(command: list[str], env: Mapping[str, str], folder: str, out: Connection, err: Connection) -> None:
    """In the fork: what `python SCRIPT …` or `python -c CODE …` would be."""
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    if command[1] == "-c":
        sys.argv = ["-c", *command[3:]]
        exec(compile(command[2], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = command[1:]
        sys.path.insert(0, str(Path(command[1]).parent))
        runpy.run_path(command[1], run_name="__main__")


class Popen:
    """As much of subprocess.Popen as `runtimes` uses, both streams to pipes."""

    def __init__(
        self, command: list[str], *, env: Mapping[str, str] | None = None, cwd: str | None = None, stderr: int = subprocess.PIPE, **_: Any
    ) -> None:
        (out, said), (err, told) = FORKS.Pipe(duplex=False), FORKS.Pipe(duplex=False)
        ends = said, said if stderr == subprocess.STDOUT else told
        self.process = FORKS.Process(target=become, args=(command, env or dict(os.environ), cwd or str(Path.cwd()), *ends), daemon=True)
        with patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}):  # which is read where it is imported: in the server
            forkserver.ensure_running()
        self.process.start()
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno()), encoding="utf-8", errors="replace") for end in (out, err))
        for end in (out, said, err, told):
            end.close()

    def __enter__(self) -> Popen:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self.stdout.close()
        self.stderr.close()

    def wait(self) -> int | None:
        self.process.join()
        return self.returncode

    def kill(self) -> None:
        self.process.kill()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode


def popen(command: list[str], **given: Any) -> Popen | subprocess.Popen[str]:
    """A fork where it is this interpreter that is asked for."""
    return Popen(command, **given) if command[0] == sys.executable else subprocess.Popen(command, **given)


def run(command: list[str], env: Mapping[str, str] | None = None) -> str:
    """As subprocess.run(check=True); what it said on both streams."""
    with Popen(command, env=env, stderr=subprocess.STDOUT) as process:
        said = process.stdout.read()
    assert process.returncode == 0, said[-3000:]
    return said

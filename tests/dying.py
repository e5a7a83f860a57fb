"""A process that dies at its k-th step on the disk: a fork of this one, in which every primitive that writes is counted."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yarn_convert.targets import in_place, moving, places, resume

DEAD, FAILED = 77, 78
CALLS = ("fsync", "write", "rename", "replace", "link", "unlink", "rmdir", "mkdir", "ftruncate", "chmod", "posix_fallocate")


class Counter:
    """Dies before step 2k and after step 2k + 1, in the middle of a write at half of it; `fail` raises this error there instead."""

    def __init__(self, at: int | None, fail: OSError | None = None) -> None:
        self.at, self.fail, self.done, self.failed = at, fail, 0, False

    def step(self) -> bool:
        self.done += 1
        return self.done == self.at

    def die(self) -> None:
        if self.fail is None:
            os._exit(DEAD)
        self.failed = True
        raise self.fail

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            if self.step():
                self.die()
            result = call(*args, **options)
            if self.fail is None and self.step():
                self.die()
            return result

        return counted

    def halfway(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def counted(f: Any, data: Any) -> Any:
            if self.step():
                write(f, memoryview(data)[: len(data) // 2])
                self.die()
            return write(f, data)

        return counted

    def install(self) -> None:
        """For good: in a process that ends."""
        for name in CALLS:
            setattr(os, name, self.around(getattr(os, name)))
        places._renameat2 = self.around(places._renameat2)
        in_place._insert = self.around(in_place._insert)
        moving.copy_range = self.around(moving.copy_range)
        for module in (moving, in_place, resume):
            if hasattr(module, "write_all"):
                module.write_all = self.halfway(module.write_all)  # type: ignore[attr-defined]


def dies(at: int | None, run: Callable[[], Any], fail: OSError | None = None) -> tuple[str, int]:
    """Run in a fork that dies at step `at`, or has its disk fail there: ("dead" | "done" | what was raised, steps done)."""
    said = Path(f"/tmp/yarn-convert-dying-{os.getpid()}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forks beside threads
        child = os.fork()
    if child == 0:
        counter = Counter(at, fail)
        write, code = os.write, FAILED
        try:
            out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            counter.install()
            try:
                run()
                result = "done"
            except BaseException as e:
                result = f"{type(e).__name__}: {e}"
            write(out, f"{counter.done}\n{result}".encode())
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == DEAD:
        return "dead", 0
    assert code == 0, code
    steps, _, result = said.read_text().partition("\n")
    said.unlink()
    return result, int(steps)

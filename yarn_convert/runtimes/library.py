"""Which llama.cpp is run: the one that came with llama-cpp-python, or a user's own, by --llama-lib or $YARN_CONVERT_LLAMA_LIB."""

from __future__ import annotations

import contextlib
import filecmp
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from ..errors import UsageError

VARIABLE = "YARN_CONVERT_LLAMA_LIB"
NAMES = {"win32": ("llama.dll", "libllama.dll"), "darwin": ("libllama.dylib", "libllama.so")}.get(sys.platform, ("libllama.so",))
GIVEN = ContextVar[Path | None]("GIVEN", default=None)  # the folder that holds it


def folder_of(path: Path | None) -> Path | None:
    """The folder of the library that is asked for, or else of the one that the environment names; None: the one that is installed.
    UsageError where there is no library."""
    if path is None and not os.environ.get(VARIABLE):
        return None
    wish = (path or Path(os.environ[VARIABLE])).expanduser().absolute()
    said = "--llama-lib" if path else VARIABLE
    folder = wish if wish.is_dir() else wish.parent
    found = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if not wish.exists():
        raise UsageError(f"{said}: {wish} is not there", f"the {NAMES[0]} that you have built, or the folder that holds it")
    if found is None or (wish != folder and not filecmp.cmp(wish, found, shallow=False)):
        beside = f"{wish.name} is not" if wish != folder else f"{wish} holds no"
        raise UsageError(f"{said}: {beside} {NAMES[0]}, by which llama-cpp-python finds it", "name that file, or the folder that holds it")
    return folder


@contextlib.contextmanager
def using(folder: Path | None) -> Iterator[None]:
    """Within it llama.cpp is run from the library in this folder."""
    before = GIVEN.set(folder)
    try:
        yield
    finally:
        GIVEN.reset(before)


def variables(folder: Path) -> dict[str, str]:
    """By which a worker finds the library, and by which its ggml is the one beside it."""
    paths = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"
    return {"LLAMA_CPP_LIB_PATH": str(folder), paths: os.pathsep.join([str(folder), *filter(None, [os.environ.get(paths)])])}


def stamp(folder: Path) -> list[list[object]]:
    """By which its files are known again: name, size and time of change."""
    files = [p for p in sorted(folder.iterdir()) if "llama" in p.name or "ggml" in p.name]
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files if p.is_file()]

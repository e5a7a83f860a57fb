"""What an interrupted conversion leaves, so that the same command goes on where it was.

A large output is made in `.NAME.partial`: `files` holds what becomes the output, `journal` says which units, tensors or ranges
of a copied file, are done. The journal's first line is a fingerprint of the plan and of every input file, so that what was made
of another input or with other options is never continued. A unit is written down only when its bytes are on the disk; a line
that a power failure has cut counts for nothing, nor does any after it. One process at a time holds the journal's lock, which
dies with it. Small outputs have no journal: they lie in `.NAME.partial-PID` and go when the conversion fails.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OutputError

RESUMABLE = 1_000_000_000  # bytes: smaller outputs are made again sooner than anyone would look for their remains
BATCH = 256 << 20  # bytes that are moved between two lines of the journal: each batch costs an fsync
HASHED = 1 << 20  # bytes of a tensor in memory that the fingerprint knows by content; larger ones come from an input file
JOURNAL, FILES = "journal", "files"
LOST = -1  # in the place of a unit's beginning: what was written down of this file before is no longer there
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # what a file system without locks says

Say = Callable[[str], None]
Unit = tuple[str, int]  # a file's name in the output, and where in it the unit begins


# -- the fingerprint --------------------------------------------------------------------------------------------------


def fingerprint(plan: Any, inputs: Sequence[Path]) -> str:
    """SHA-256 over everything that the output's bytes follow from: the plan, its input files as they are, and what makes them."""
    stats: dict[Path, Any] = {}
    text = json.dumps([_versions(), _identity(plan, stats), [_file(path, stats) for path in inputs]])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _versions() -> list[str]:
    """Of what rounds and quantizes: a file is not to be half of one llama.cpp and half of another."""
    found = [version("yarn-convert")]
    for package in ("numpy", "gguf", "llama-cpp-python"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return [*found, os.environ.get("LLAMA_CPP_LIB_PATH", "")]


def _identity(value: Any, stats: dict[Path, Any]) -> Any:
    """A value as JSON: bytes by their hash, files by what tells one from another, dataclasses by their fields."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, np.ndarray):
        large = value.nbytes > HASHED and value.dtype == np.uint8  # a tensor of a pickle, whose file is known
        return value.nbytes if large else _identity(value.tobytes(), stats)
    if isinstance(value, Path):
        return _file(value, stats)
    if isinstance(value, Mapping):
        return [[k, _identity(v, stats)] for k, v in value.items()]
    if isinstance(value, tuple | list):
        return [_identity(v, stats) for v in value]
    if is_dataclass(value):
        return [type(value).__name__, *(_identity(getattr(value, f.name), stats) for f in fields(value))]
    return getattr(value, "__qualname__", None) or repr(value)


def _file(path: Path, stats: dict[Path, Any]) -> Any:
    if path not in stats:
        s = path.stat()
        # The time of change too, which nobody can set back: tar and cp -p give files of one size one mtime, ext4 the inode again.
        stats[path] = [os.path.realpath(path), s.st_size, s.st_mtime_ns, s.st_ino, s.st_ctime_ns]
    return stats[path]


# -- the journal ------------------------------------------------------------------------------------------------------


class Journal:
    """The journal of one output, locked. `done` are the units of earlier runs, with their sizes in bytes."""

    def __init__(self, root: Path, fd: int) -> None:
        self.root, self.files, self.fd = root, root / FILES, fd
        self.done: dict[Unit, int] = {}
        self.recorded = 0  # units on the disk
        self._pending: list[tuple[str, int, int]] = []
        self._bytes = 0
        self._lock, self._writing = threading.Lock(), threading.Lock()

    def begin(self, key: str, sizes: Mapping[str, int], say: Say) -> None:
        """Take up what is there if it was made of this very plan, else begin afresh; `sizes`: bytes of each file of it."""
        there, units, end = self._read()
        same = there == key
        os.ftruncate(self.fd, end if same else 0)
        os.lseek(self.fd, 0, os.SEEK_END)
        if not same:
            if there is not None:
                say(f"{self.root} was begun from another input or with other options: it is made afresh")
            shutil.rmtree(self.files, ignore_errors=True)
            self._append([json.dumps({"plan": key})])
        self.files.mkdir(exist_ok=True)
        lost = {name for name, _ in units if _size(self.files / name) != sizes.get(name)} if same else set()
        if lost:
            self._append([json.dumps([name, LOST, 0]) for name in lost])
        self.done = {unit: size for unit, size in units.items() if unit[0] not in lost} if same else {}
        self.recorded = len(self.done)
        if self.done:
            say(f"going on with {self.root}: {sum(self.done.values()):,} of {sum(sizes.values()):,} bytes are there already")

    def has(self, name: str) -> bool:
        return any(unit[0] == name for unit in self.done)

    def finished(self, name: str, at: int, size: int) -> None:
        """A unit has been written; now and then all such are flushed to the disk and written down. From any thread."""
        with self._lock:
            self._pending.append((name, at, size))
            self._bytes += size
            full = self._bytes >= BATCH
        if full:
            self.flush()

    def flush(self) -> None:
        with self._writing:
            with self._lock:
                batch, self._pending, self._bytes = self._pending, [], 0
            if not batch:
                return
            for name in {name for name, _, _ in batch}:
                sync(self.files / name)
            for folder in {self.root.parent, self.root, self.files, *((self.files / name).parent for name, _, _ in batch)}:
                sync(folder)
            self._append([json.dumps([name, at, size]) for name, at, size in batch])
            self.recorded += len(batch)

    def _append(self, lines: list[str]) -> None:
        data = memoryview("".join(line + "\n" for line in lines).encode())
        while data:
            data = data[os.write(self.fd, data) :]
        os.fsync(self.fd)

    def _read(self) -> tuple[str | None, dict[Unit, int], int]:
        """(the fingerprint, None for a journal without one; the units; where they end), up to the first line that is not whole."""
        with open(self.fd, "rb", closefd=False) as f:
            f.seek(0)
            lines = f.read().split(b"\n")[:-1]
        units: dict[Unit, int] = {}
        try:
            key = str(json.loads(lines[0])["plan"])
        except (IndexError, ValueError, KeyError, TypeError, RecursionError):
            return None, units, 0
        end = len(lines[0]) + 1
        for line in lines[1:]:
            try:
                name, at, size = json.loads(line)
            except (ValueError, TypeError, RecursionError):
                break
            units[name, at] = size
            if at == LOST:
                units = {unit: n for unit, n in units.items() if unit[0] != name}
            end += len(line) + 1
        return key, units, end

    def close(self) -> None:
        os.close(self.fd)  # and the lock with it

    def remove(self) -> None:
        """Delete all of it. The journal goes while it is locked, so that no other run takes up what is being deleted."""
        shutil.rmtree(self.files, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.root / JOURNAL).unlink()
            self.root.rmdir()
        self.close()


def open_journal(root: Path, out: Path) -> Journal | None:
    """The journal in `root`, which is made, locked; None where the file system has no locks. OutputError when another process
    holds it."""
    while True:
        root.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(root / JOURNAL, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except FileNotFoundError:
            continue  # the process that had it has just finished, and deleted it
        try:
            lock(fd)
            if _is(fd, root / JOURNAL):
                return Journal(root, fd)
            os.close(fd)
        except OSError as e:
            os.close(fd)
            if e.errno in UNSUPPORTED:
                return None
            raise OutputError(f"another process is writing {out}", "wait for it, or give another place with -o") from None


def _is(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def lock(fd: int) -> None:
    """Lock a file for this process alone, until it is closed. OSError when another has it, or one of `UNSUPPORTED`."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(fd, 1 << 30, os.SEEK_SET)  # far behind the text: a locked range cannot be read
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def sync(path: Path) -> None:
    """fsync a file or, where the system can, a folder."""
    if path.is_dir() and sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDONLY if sys.platform != "win32" else os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# -- the folder -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Partial:
    """Where an output lies until it is whole: in `files`, and all that belongs to it under `root`."""

    root: Path
    files: Path
    journal: Journal | None

    def remove(self) -> None:
        if self.journal:
            self.journal.remove()
        else:
            shutil.rmtree(self.root, ignore_errors=True)

    def leave(self) -> str:
        """After a failure: keep what a later run can go on with, and say so; delete the rest. "" when nothing is kept."""
        if self.journal is None:
            self.remove()
            return ""
        with contextlib.suppress(OSError):
            self.journal.flush()
        if not self.journal.recorded:
            self.remove()
            return ""
        self.journal.close()
        return f"the same command goes on where this one stopped; to give it up, delete {self.root}"


def open_partial(out: Path, jobs: Sequence[Any], inputs: Sequence[Path], say: Say) -> Partial:
    """The hidden folder beside `out` for an output of `jobs`. Raises OSError, and OutputError when another process has it."""
    sizes = {job.name: job.size for job in jobs}
    if sum(sizes.values()) >= RESUMABLE and (journal := open_journal(out.with_name(f".{out.name}.partial"), out)):
        try:
            journal.begin(fingerprint(jobs, inputs), sizes, say)
        except BaseException:  # what lies there stays
            journal.close()
            raise
        return Partial(journal.root, journal.files, journal)
    root = out.with_name(f".{out.name}.partial-{os.getpid()}")
    root.mkdir(parents=True)
    return Partial(root, root, None)

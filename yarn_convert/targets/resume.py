"""What an interrupted conversion leaves, so that the same command goes on where it was.

A large output is made in `.NAME.partial`: `files` holds what becomes the output, `journal` says which units, tensors or ranges
of a copied file, are done. The journal's first line is a fingerprint of the plan and of every input file, so that what was made
of another input or with other options is never continued. A unit is written down only when its bytes are on the disk; a line
that a power failure has cut counts for nothing, nor does any after it. One process at a time holds the journal's lock, which
dies with it. Of a small output nothing is written down: the next run makes it again, and what a killed one left goes first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint.source import Say
from ..errors import OutputError
from .places import ASIDE, FILES, PUBLISH, Taken, delete, finish, sync

RESUMABLE = 1_000_000_000  # bytes: smaller outputs are made again sooner than anyone would look for their remains
BATCH = 256 << 20  # bytes that are moved between two lines of the journal: each batch costs an fsync
HASHED = 1 << 20  # bytes of a tensor in memory that the fingerprint knows by content; larger ones come from an input file
JOURNAL = "journal"
LOST = -1  # in the place of a unit's beginning: what was written down of this file before is no longer there
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # what a file system without locks says

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
        return [type(value).__name__, *(_identity(getattr(value, f.name), stats) for f in fields(value) if f.compare)]
    return getattr(value, "__qualname__", None) or repr(value)


def _file(path: Path, stats: dict[Path, Any]) -> Any:
    if path not in stats:
        s = path.stat()
        # The time of change too, which nobody can set back: tar and cp -p give files of one size one mtime, ext4 the inode again.
        stats[path] = [os.path.realpath(path), s.st_size, s.st_mtime_ns, s.st_ino, s.st_ctime_ns]
    return stats[path]


# -- the journal ------------------------------------------------------------------------------------------------------


class OutputJournal:
    """The journal of one output, locked. `done` are the units of earlier runs, with their sizes in bytes."""

    def __init__(self, root: Path, fd: int) -> None:
        self.root, self.files, self.fd = root, root / FILES, fd
        self.done: dict[Unit, int] = {}
        self.recorded = 0  # units on the disk
        self.kept = True  # whether units are written down
        self._pending: list[tuple[str, int, int]] = []
        self._bytes = 0
        self._lock, self._writing = threading.Lock(), threading.Lock()

    def begin(self, key: str | None, sizes: Mapping[str, int], say: Say) -> None:
        """Take up what is there if it was made of this very plan, else begin afresh; `sizes`: bytes of each file of it. Without
        a `key` nothing is written down, so that nothing can be gone on with. OSError."""
        there, units, end = self._read()
        self.kept, same = key is not None, key is not None and there == key
        os.ftruncate(self.fd, end if same else 0)
        os.lseek(self.fd, 0, os.SEEK_END)
        if there is not None and not same:
            say(f"{self.root} was begun from another input or with other options: it is made afresh")
        if not same or self.files.is_symlink():
            for path in (self.files, self.root / ASIDE):
                delete(path)
            if key is not None and not same:
                self._append([json.dumps({"plan": key})])
        self.files.mkdir(exist_ok=True)
        lost = {name for name, _ in units if name not in sizes or _size(self.files / name) != sizes[name]} if same else set()
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
        if not self.kept:
            return
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
        key = _plan(lines[0]) if lines else None
        if key is None:
            return None, units, 0
        end = len(lines[0]) + 1
        for line in lines[1:]:
            entry = _entry(line)
            if entry is None:
                break
            name, at, size = entry
            units[name, at] = size
            if at == LOST:
                units = {unit: n for unit, n in units.items() if unit[0] != name}
            end += len(line) + 1
        return key, units, end

    def close(self) -> None:
        os.close(self.fd)  # and the lock with it

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that a run could go on with."""
        return self._read()[0] is None

    def remove(self) -> None:
        """Delete all of it, first what would make a run go on with it. The journal goes while it is locked, so that no other run
        takes up what is being deleted."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)
            for name in (FILES, ASIDE, PUBLISH, JOURNAL):
                delete(self.root / name)
            self.root.rmdir()
        self.close()


def _loads(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _plan(line: bytes) -> str | None:
    """The fingerprint in a journal's first line."""
    head = _loads(line)
    key = head.get("plan") if isinstance(head, dict) else None
    return key if isinstance(key, str) else None


def _entry(line: bytes) -> tuple[str, int, int] | None:
    """(file, where in it, bytes) of a journal's line; None for anything else."""
    match _loads(line):
        case [str(name), int(at), int(size)] if at >= LOST and size >= 0:
            return name, at, size
    return None


def open_journal(root: Path, out: Path) -> OutputJournal | None:
    """The journal in `root`, which is made, locked; None where the file system has no locks. OutputError when another process
    holds it, or `root` is something else."""
    while True:
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if root.is_symlink():
                raise FileExistsError
            try:
                fd = open_file(root / JOURNAL)
            except FileNotFoundError:
                continue  # the process that had it has just finished, and deleted it
        except FileExistsError:
            raise OutputError(f"{root} is not what an earlier run left", "move it away, or give another place with -o") from None
        try:
            lock(fd)
            if _is(fd, root / JOURNAL):
                return OutputJournal(root, fd)
            os.close(fd)
        except OSError as e:
            os.close(fd)
            if e.errno in UNSUPPORTED:
                return None
            raise OutputError(f"another process is writing {out}", "wait for it, or give another place with -o") from None


def open_file(path: Path) -> int:
    """A descriptor to read and write a plain file, which is made where there is none, never through a link. FileExistsError for
    anything else that lies there."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    return fd


def lock_file(path: Path) -> int:
    """A descriptor of a plain file that no other process holds: those that ask for it wait. OSError."""
    while True:
        fd = open_file(path)
        try:
            lock(fd, wait=True)
        except OSError as e:
            if e.errno not in UNSUPPORTED:
                os.close(fd)
                raise
        if _is(fd, path):
            return fd
        os.close(fd)


def _is(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def lock(fd: int, wait: bool = False) -> None:
    """Lock a file for this process alone, until it is closed. OSError when another has it, or one of `UNSUPPORTED`."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(fd, 1 << 30, os.SEEK_SET)  # far behind the text: a locked range cannot be read
        msvcrt.locking(fd, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else None


# -- the folder -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Partial:
    """Where an output lies until it is whole: in `files`, and all that belongs to it under `root`."""

    root: Path
    files: Path
    journal: OutputJournal | None

    def remove(self) -> None:
        if self.journal:
            self.journal.remove()
        else:
            with contextlib.suppress(OSError):
                delete(self.root)

    def leave(self) -> str:
        """After a failure: keep what a later run can go on with, and say so; delete the rest. "" when nothing is kept."""
        if self.journal is None:
            self.remove()
            return ""
        with contextlib.suppress(OSError):
            self.journal.flush()
        if not self.journal.recorded and not (self.root / PUBLISH).exists():
            self.remove()
            return ""
        self.journal.close()
        return f"the same command goes on where this one stopped; to give it up, delete {self.root}"


def open_partial(out: Path, jobs: Sequence[Any], inputs: Sequence[Path], say: Say) -> Partial:
    """The hidden folder beside `out` for an output of `jobs`. Raises OSError, and OutputError when another process has it."""
    sizes = {job.name: job.size for job in jobs}
    journal = open_journal(partial_of(out), out)
    if journal is None:
        root = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        (root / FILES).mkdir()
        return Partial(root, root / FILES, None)
    try:
        if (journal.root / PUBLISH).exists():
            raise OutputError(f"another process was writing {out} and did not finish", "run the same command again: that finishes it")
        journal.begin(fingerprint(jobs, inputs) if sum(sizes.values()) >= RESUMABLE else None, sizes, say)
    except BaseException:  # what lies there stays
        journal.close()
        raise
    return Partial(journal.root, journal.files, journal)


def settle(out: Path) -> bool:
    """Deal with what a killed run left beside `out`: put into place what was whole, remove what nothing can go on with. True when
    an output was put into place. Raises OutputError where another process is writing it, OSError."""
    root = partial_of(out)
    if root.is_symlink() or not root.is_dir():
        return False
    journal = open_journal(root, out)
    if journal is None:
        return False
    try:
        finished = finish(root, out)
    except Taken as e:
        journal.close()
        raise OutputError(e.message, f"an interrupted run left its output in {root}: move what is there away, or delete that") from None
    except BaseException:
        journal.close()
        raise
    if finished or journal.is_empty:
        journal.remove()
    else:
        journal.close()
    return finished


def partial_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")

"""Moves weights: in the kernel where the bytes stay, in small pieces through NumPy where they do not."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..formats.changes import CHANGES, multiplied
from ..formats.digests import Progress
from ..formats.dtypes import F32, PLAIN, from_f32, refuse_lost, to_f32
from ..formats.files import open_regular
from ..formats.gguf_file import Field, Value
from ..formats.orders import AS_IT_IS, Order
from ..formats.quantizer import rows
from ..formats.tensors import Bytes, Remote, Tensor, read_into
from .places import libc_with
from .resume import OutputJournal
from .rows import count, ordered, plain_dtype, row_size

KERNEL_PIECE = 16 << 20  # bytes a copy_file_range call: enough to be as fast as one, and the disk starts to write early
ELEMENTS = 1 << 18  # elements converted at a time: 1 MiB of float32 stays in a core's cache
UNIT = 1 << 24  # elements of a large tensor that one thread converts, about a second to Q4_K: the others go on with the next
WEIGHTS = (".safetensors", ".gguf")  # what --link makes hard links of: anything smaller is there to be edited
MAGIC = 8  # bytes of a weight file that are written last: until then no reader takes it for a model


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor to write: `target`'s dtype and shape from the bytes of `sources`, which are alike, in this order of rows.

    `importance`: float32[experts, columns], the weights of squared errors where it is quantized. `blocks`: of its order only
    these, [first, last), as `units` cuts it.
    """

    target: Tensor
    sources: tuple[Tensor, ...]
    order: Order = AS_IT_IS
    importance: F32 | None = None
    blocks: tuple[int, int | None] = (0, None)

    @property
    def dtype(self) -> str:
        """The type of the sources."""
        return self.order.dtype(self.sources)

    @property
    def is_copy(self) -> bool:
        return self.order.is_plain and self.dtype == self.target.dtype


def unchanged(t: Tensor) -> Piece:
    """A tensor that is written as it is."""
    return Piece(t, (t,))


@dataclass(frozen=True, slots=True)
class CopyFile:
    """A whole file, unchanged."""

    name: str
    source: Path

    @property
    def size(self) -> int:
        return self.source.stat().st_size


@dataclass(frozen=True, slots=True)
class WriteBytes:
    """A small file."""

    name: str
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class WriteTensors:
    """A weight file: a header, then each piece at its offset; gaps are zeros up to `size`. `fields` are what a GGUF's header says."""

    name: str
    header: bytes
    pieces: tuple[tuple[Piece, int], ...]
    size: int
    fields: Mapping[str, Field | Value] | None = field(default=None, compare=False)


Job = CopyFile | WriteBytes | WriteTensors
# Of a task among those of several jobs: minus the tensor's elements, its name, the part of it that lies before
Rank = tuple[int, str, float]


def remotes(jobs: Iterable[Job]) -> set[Remote]:
    """The files elsewhere that jobs read."""
    pieces = (piece for job in jobs if isinstance(job, WriteTensors) for piece, _ in job.pieces)
    return {t.remote for piece in pieces for t in piece.sources if t.remote is not None}


def bytes_of(job: WriteTensors) -> bytes:
    """The whole of a small weight file, as rope.safetensors is, whose pieces are copies."""
    data = bytearray(job.size)
    data[: len(job.header)] = job.header
    for piece, at in job.pieces:
        data[at : at + piece.target.nbytes] = b"".join(t.read().tobytes() for t in piece.sources)
    return bytes(data)


class Stopped(Exception):
    """Another worker has failed or the user has pressed Ctrl-C."""


class Mover:
    """Runs jobs into a folder with a few threads. `moved` says how each file came to be, for the manifest.

    What `journal` has as done is not done again.
    """

    def __init__(self, folder: Path, progress: Progress, link: bool, journal: OutputJournal | None = None) -> None:
        self.folder, self.progress, self.link, self.journal = folder, progress, link, journal
        self.stop = threading.Event()
        self.moved: dict[str, str] = {}

    def run(self, jobs: list[Job]) -> None:
        with ThreadPoolExecutor(max_workers=_workers(jobs)) as pool:
            try:
                tasks = [pool.submit(task) for task in self._in_order(jobs)]
                for task in wait(tasks, return_when=FIRST_EXCEPTION).done:
                    task.result()
            except BaseException:
                self.stop.set()
                for remote in remotes(jobs):
                    remote.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        for job in jobs:
            if isinstance(job, WriteTensors):
                with open(self.folder / job.name, "r+b") as f:
                    f.write(job.header[:MAGIC])
            elif self.moved.get(job.name) == "copy" and isinstance(job, CopyFile):
                with open_regular(job.source) as src, open(self.folder / job.name, "r+b") as f:
                    f.write(src.read(MAGIC))

    def _in_order(self, jobs: list[Job]) -> Iterator[Callable[[], None]]:
        """The tasks of all jobs, of each the largest first; of several weight files those together that read the same bytes."""
        if sum(isinstance(job, WriteTensors) for job in jobs) < 2:
            yield from (task for job in jobs for _, task in self._units(job))
            return
        found = [unit for job in jobs for unit in self._units(job)]
        yield from (task for _, task in sorted(found, key=lambda unit: unit[0]))

    def _units(self, job: Job) -> Iterator[tuple[Rank, Callable[[], None]]]:
        """The tasks of a job that are still to do, each written down when it is done."""
        for rank, at, size, task in self._tasks(job):
            if self.journal and self.journal.done.get((job.name, at)) == size:
                self.progress(size)
            else:
                yield rank, lambda at=at, size=size, task=task: self._unit(job.name, at, size, task)  # type: ignore[misc]

    def _unit(self, name: str, at: int, size: int, task: Callable[[], None]) -> None:
        task()
        if self.journal:
            self.journal.finished(name, at, size)

    def _tasks(self, job: Job) -> Iterator[tuple[Rank, int, int, Callable[[], None]]]:
        """(rank, where in the file, bytes, what to do) for each piece of a job; its file is made first, and small ones are written."""
        path = self.folder / job.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(job, WriteBytes):
            path.write_bytes(job.data)
            self.progress(job.size)
        elif isinstance(job, CopyFile):
            yield from self._copy_tasks(job, path)
        else:
            if not self._begun(job, path):
                create(path, job.size)
            with open(path, "r+b") as f:
                f.seek(MAGIC)
                f.write(job.header[MAGIC:])
            self.progress(len(job.header))
            for piece, offset in sorted(job.pieces, key=lambda p: -p[0].target.nbytes):
                for start, size, unit in units(piece):
                    task = lambda unit=unit, at=offset + start: self._piece(path, unit, at)  # noqa: E731
                    yield (-piece.target.elements, piece.target.name, start / piece.target.nbytes), offset + start, size, task

    def _begun(self, job: Job, path: Path) -> bool:
        """Whether an earlier run has made the file and some of it. Anything else that it left there is deleted."""
        if self.journal and self.journal.has(job.name):
            return True
        path.unlink(missing_ok=True)
        return False

    def _copy_tasks(self, job: CopyFile, path: Path) -> Iterator[tuple[Rank, int, int, Callable[[], None]]]:
        source, begun = job.source.resolve(), self._begun(job, path)
        if begun:
            pass
        elif self.link and job.name.endswith(WEIGHTS) and hard_link(source, path):
            self.moved[job.name] = "hard link"
        elif reflink(source, path):
            self.moved[job.name] = "reflink"
        else:
            create(path, job.size)
            begun = True
        if not begun:
            self.progress(job.size)
            return
        self.moved[job.name], total = "copy", job.size
        for at in range(0, total, KERNEL_PIECE):
            size, start = min(KERNEL_PIECE, total - at), max(at, MAGIC)
            task = lambda start=start, left=at + size - start: self._range(source, start, path, start, left)  # noqa: E731
            yield (0, job.name, at / total), at, size, task

    def _piece(self, path: Path, piece: Piece, offset: int) -> None:
        if piece.is_copy and all(t.path is not None for t in piece.sources):
            for t in piece.sources:
                assert t.path is not None
                self._range(t.path, t.offset, path, offset, t.nbytes)
                offset += t.nbytes
            return
        with open(path, "r+b", buffering=0) as f:
            f.seek(offset)
            for data in converted(piece):
                self._check()
                write_all(f, data)
                self.progress(data.nbytes)
            start_writeback(f.fileno(), offset, f.tell() - offset)

    def _range(self, source: Path, at: int, path: Path, offset: int, size: int) -> None:
        with open_regular(source, 0) as src, open(path, "r+b", buffering=0) as dst:
            while size > 0:
                self._check()
                n = copy_range(src, at, dst, offset, min(size, KERNEL_PIECE))
                start_writeback(dst.fileno(), offset, n)
                at, offset, size = at + n, offset + n, size - n
                self.progress(n)

    def _check(self) -> None:
        if self.stop.is_set():
            raise Stopped


def _workers(jobs: list[Job]) -> int:
    """Threads: a disk is busy with four, quantization keeps every core."""
    quantized = any(p.target.dtype not in PLAIN and not p.is_copy for j in jobs if isinstance(j, WriteTensors) for p, _ in j.pieces)
    cores = os.cpu_count() or 1
    return min(32, cores) if quantized else min(4, cores)  # 32 take 400 MB


def units(piece: Piece) -> Iterator[tuple[int, int, Piece]]:
    """(where in the target, bytes, piece) of what one thread makes of a piece at a time."""
    target = piece.target
    if piece.is_copy or target.elements <= UNIT:
        yield 0, target.nbytes, piece
        return
    blocks, together = count(piece.sources, piece.order)
    step = max(1, UNIT * blocks // target.elements // together) * together
    columns = row_size(target.dtype, target.shape)[0]
    if target.elements % blocks or target.elements // blocks * step % columns:  # a unit would not be whole rows
        step = blocks
    for first in range(0, blocks, step):
        last = min(first + step, blocks)
        start, end = target.nbytes * first // blocks, target.nbytes * last // blocks
        yield start, end - start, replace(piece, blocks=(first, last))


def converted(piece: Piece) -> Iterator[Bytes]:
    """The target's bytes, in order, some MiB at a time: rows moved, then the type changed. Always whole rows.

    A part is to be used before the next one is asked for: they share their memory.
    """
    dtype, change = plain_dtype(piece.sources, piece.order), CHANGES.get(piece.order.change)
    target, first = piece.target, piece.blocks[0]
    if dtype == target.dtype and not (change or piece.order.times):
        yield from ordered(piece.sources, piece.order, *piece.blocks)
        return
    columns, row = row_size(dtype, target.shape)
    height = max(1, ELEMENTS // columns)  # rows at a time
    buffer, done = np.empty(height * columns, np.float32), 0
    if first:
        done = target.elements // columns * first // count(piece.sources, piece.order)[0]
    for data in ordered(piece.sources, piece.order, *piece.blocks):
        for at in range(0, data.nbytes, height * row):
            x = to_f32(data[at : at + height * row], dtype, buffer)
            x = change.of(x) if change else x
            x = multiplied(x.reshape(-1, columns), piece.order.times, done).reshape(-1) if piece.order.times else x
            if target.dtype in PLAIN:
                made = from_f32(x, target.dtype)
                refuse_lost(x, made, target.dtype)
                yield made
            else:
                yield rows(x.reshape(-1, columns), target.dtype, piece.importance, done, target.shape[-2])
            done += len(x) // columns


# -- one file ---------------------------------------------------------------------------------------------------------


def create(path: Path, size: int) -> None:
    """An empty file of `size` bytes whose blocks are reserved where the system can, so that a full disk shows now."""
    with open(path, "xb") as f:
        if size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(f.fileno(), 0, size)
                return
            except OSError as e:
                if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
        f.truncate(size)


def hard_link(source: Path, path: Path) -> bool:
    with contextlib.suppress(OSError):
        os.link(source, path)
        return True
    return False


def reflink(source: Path, path: Path) -> bool:
    """Share the blocks of `source` (Btrfs, XFS, …): FICLONE, linux/fs.h. False where that cannot be done."""
    if not sys.platform.startswith("linux"):
        return False
    import fcntl

    with open_regular(source) as src, open(path, "xb") as dst:
        try:
            fcntl.ioctl(dst.fileno(), 0x40049409, src.fileno())
            return True
        except OSError:
            pass
    path.unlink()
    return False


def copy_range(src: BinaryIO, at: int, dst: BinaryIO, offset: int, size: int) -> int:
    """Copy some of `size` bytes between two unbuffered files, in the kernel where it can; the number copied, above 0."""
    if hasattr(os, "copy_file_range"):
        try:
            if n := os.copy_file_range(src.fileno(), dst.fileno(), size, at, offset):
                return n
        except OSError as e:
            if e.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
                raise
    buffer = np.empty(min(size, 8 << 20), np.uint8)
    src.seek(at)
    read_into(src, buffer, Path(src.name))
    dst.seek(offset)
    write_all(dst, buffer)
    return buffer.nbytes


def start_writeback(fd: int, offset: int, size: int) -> None:
    """Have the disk write a range now, in the background, so that the fsync at the end has little left to wait for."""
    if libc := libc_with("sync_file_range"):
        libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size), 2)  # SYNC_FILE_RANGE_WRITE


def write_all(f: BinaryIO, data: Any) -> None:
    view, done = memoryview(data), 0
    while done < len(view):
        done += f.write(view[done:])

"""Extends a GGUF file where it lies: the header is replaced, the tensor data never moves.

When the new header is longer, the file system inserts blocks at the file's beginning (fallocate FALLOC_FL_INSERT_RANGE:
ext4, XFS). The header must end where the data begins, so the recipe's own field is padded with spaces to fit. A tensor that the
file lacks is appended.

Crash-safe by a journal beside the file, which holds all that is to be written, the manifest too. The first bytes are written last,
so in between no reader takes the file for a model; `recover` finishes the work, or finds that it had not begun.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from ..checkpoint import RECIPE
from ..checkpoint.manifest import manifest_path
from ..dialects import FACTORS
from ..errors import OutputError, Unsupported
from ..formats.gguf_file import Field, Gguf, Value, encode_header, journal_path
from .moving import MAGIC, Piece, write_all
from .output import replace_file
from .places import libc_with, sync
from .resume import UNSUPPORTED, lock, open_file

INSERT_RANGE = 0x20  # linux/falloc.h
ANOTHERS = "the version of yarn-convert that began it finishes it; else restore the model from a copy"
NOT_OURS = "if the file is sound, delete {}, else restore it from a copy"


@dataclass(frozen=True, slots=True)
class Edit:
    """All that is written: `header`, `inserted` bytes longer than the old one was, `patches` (offset in the old file, bytes), and
    the manifest beside it. `size`: bytes of the old file; `before`: SHA-256 of its header, of `start` bytes."""

    size: int
    inserted: int
    header: bytes
    patches: tuple[tuple[int, bytes], ...]
    start: int
    before: str
    manifest: bytes

    @property
    def edited_size(self) -> int:
        return self.inserted + max(self.size, *(offset + len(data) for offset, data in self.patches), 0)


def plan_in_place(gguf: Gguf, fields: Mapping[str, Field | Value], pieces: list[Piece]) -> Edit:
    """The edit that gives a file these fields and tensors. Raises Unsupported when its tensors do not follow each other as ggml
    writes them."""
    old = {name: t.offset - gguf.data_start for name, t in gguf.tensors.items()}
    targets = [p.target for p in pieces]
    header, _ = encode_header(_padded(fields, 0), targets, 1)
    block = os.statvfs(gguf.path).f_bsize if hasattr(os, "statvfs") else 4096
    block = max(block, gguf.alignment)
    inserted = -(-max(0, len(header) - gguf.data_start) // block) * block
    start = gguf.data_start + inserted
    header, offsets = encode_header(_padded(fields, start - len(header)), targets, gguf.alignment)
    patches = []
    for t in targets:
        offset = offsets[t.name] - start
        if t.name in old and old[t.name] != offset:
            raise Unsupported("the tensors of this file do not lie one after another", "write a new file instead of --in-place")
        if t.name in FACTORS:
            patches.append((gguf.data_start + offset, t.read().tobytes()))
    if len(header) != start or gguf.data_start > gguf.size or set(old) - {t.name for t in targets}:
        raise Unsupported("this edit does not fit into the file as it is", "write a new file instead of --in-place")
    with open(gguf.path, "rb") as f:
        before = hashlib.sha256(f.read(gguf.data_start)).hexdigest()
    return Edit(gguf.size, inserted, header, tuple(sorted(patches)), gguf.data_start, before, b"")


def _padded(fields: Mapping[str, Field | Value], spaces: int) -> dict[str, Field | Value]:
    recipe = fields[RECIPE]
    assert isinstance(recipe, Value)
    return {**fields, RECIPE: recipe._replace(data=recipe.data + " " * spaces)}


def edited_sha256(path: Path, edit: Edit, progress: Callable[[int], None] = lambda n: None) -> str:
    """What the SHA-256 of a file will be after the edit."""
    digest, at = hashlib.sha256(edit.header), edit.start
    with open(path, "rb") as f:
        for offset, data in (*edit.patches, (max(edit.size, edit.edited_size - edit.inserted), b"")):
            f.seek(at)
            while at < offset:
                piece = f.read(min(1 << 20, offset - at)) or b"\0" * (offset - at)  # what lies behind the end is filled up
                digest.update(piece)
                progress(len(piece))
                at += len(piece)
            digest.update(data)
            at += len(data)
    return digest.hexdigest()


def run_in_place(path: Path, edit: Edit) -> None:
    """Carry out an edit. Raises OutputError where the file system cannot insert a range, the file cannot be written, another
    process edits it or it is not what the edit was planned for; the file is then as before."""
    refuse_shared(path)
    with _held(path):
        if path.stat().st_size != edit.size or not _is_untouched(path, edit):
            raise OutputError(f"{path} was changed since it was read", "nothing was done to it: run the same command again")
        _run(path, edit)


def _run(path: Path, edit: Edit) -> None:
    side = journal_path(path)
    try:
        fd = os.open(side, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o600)
    except FileExistsError:
        raise OutputError(
            f"{side} lies there, as an interrupted edit leaves it", "run the same command again: it finishes that first"
        ) from None
    except OSError as e:
        raise OutputError(f"could not change {path}: {e.strerror}", "nothing was changed") from None
    try:
        with open(fd, "wb", buffering=0) as f:
            write_all(f, _encoded(edit))
            os.fsync(fd)
        sync(path.parent)
        if edit.inserted:
            _insert(path, edit.inserted)
    except OSError as e:
        side.unlink(missing_ok=True)
        if e.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise OutputError(f"the file system of {path} cannot insert into a file", "write a new file instead of --in-place") from None
        raise OutputError(f"could not change {path}: {e.strerror}", "nothing was changed") from None
    _finish(path, edit)


def recover(path: Path) -> bool:
    """Finish an edit that was interrupted, if there was one. True when the file was changed.

    Raises OutputError when the file is in neither state that an interruption leaves, or is being edited at this time.
    """
    if path.is_symlink() or not os.path.lexists(journal_path(path)):  # no edit goes through a link
        return False
    with _held(path):
        return _recover(path)


def _recover(path: Path) -> bool:
    side = journal_path(path)
    if not os.path.lexists(side):  # the process that had it has just finished
        return False
    edit = _read(side)
    size = path.stat().st_size
    if edit is None and _is_begun(path):
        raise OutputError(f"{path} is in the middle of an edit, and {side} cannot be read", ANOTHERS)
    if edit is None or (edit.inserted and size == edit.size):
        side.unlink()  # it was cut before the model was touched
        return False
    if not edit.size + edit.inserted <= size <= edit.edited_size or not _is_ours(path, edit):
        raise OutputError(f"{path} is not the file whose in-place edit was interrupted", NOT_OURS.format(side))
    _finish(path, edit)
    return True


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold the lock of the model itself: an edit counts from the file's size, so that two at a time would shift its data twice.

    Raises OutputError when another process has it, or the file cannot be written. The lock dies with the process.
    """
    try:
        f = open(path, "r+b")  # noqa: SIM115
    except OSError as e:
        raise OutputError(f"could not change {path}: {e.strerror}", "nothing was changed: make the file writable first") from None
    with f:
        try:
            if sys.platform != "win32":  # where a locked range of the model could not be read
                lock(f.fileno())
        except OSError as e:
            if e.errno not in UNSUPPORTED:
                raise OutputError(f"another process is changing {path}", "wait for it, then run this again") from None
        yield


def _encoded(edit: Edit) -> bytes:
    text = msgspec.json.encode(edit)
    return json.dumps({"sha256": hashlib.sha256(text).hexdigest()}).encode() + b"\n" + text


def _read(side: Path) -> Edit | None:
    """The edit in a journal as it was written, None for one that was cut. OutputError for a link or what else is no plain file."""
    try:
        with open(open_file(side), "rb") as f:
            head, _, text = f.read().partition(b"\n")
    except FileExistsError:
        raise OutputError(f"{side} is not what an edit leaves", "delete it") from None
    try:
        whole = json.loads(head) == {"sha256": hashlib.sha256(text).hexdigest()}
        edit = msgspec.json.decode(text, type=Edit) if whole else None
    except (ValueError, RecursionError):
        return None
    return edit if edit and _fits(edit) else None


def _fits(edit: Edit) -> bool:
    """Whether its numbers are those of one edit; a tensor that is appended is aligned."""
    placed = all(edit.start <= at <= edit.size + (1 << 20) for at, _ in edit.patches)
    return placed and MAGIC < edit.start <= edit.size and edit.inserted >= 0 and len(edit.header) == edit.start + edit.inserted


def _is_ours(path: Path, edit: Edit) -> bool:
    """Whether a file is one that this edit leaves: untouched, in the middle (some of its first bytes are zero) or finished."""
    with open(path, "rb") as f:
        start = f.read(len(edit.header))
    first, wanted = start[:MAGIC], edit.header[:MAGIC]
    in_the_middle = first != wanted and all(a in (0, b) for a, b in zip(first, wanted, strict=True))
    return in_the_middle or start == edit.header or _is_untouched(path, edit)


def _is_begun(path: Path) -> bool:
    """Whether the first bytes are those that an edit in the middle leaves."""
    with open(path, "rb") as f:
        return b"\0" in f.read(4)


def _is_untouched(path: Path, edit: Edit) -> bool:
    """Whether a file begins as it did when the edit was planned."""
    with open(path, "rb") as f:
        return hashlib.sha256(f.read(edit.start)).hexdigest() == edit.before


def _finish(path: Path, edit: Edit) -> None:
    """Write all that the journal holds, and remove it. Raises OutputError when the disk fails; `recover` can go on then.

    A manifest beside the file speaks of what it was before: it goes first, the new one comes last.
    """
    side, manifest = journal_path(path), manifest_path(path)
    try:
        manifest.unlink(missing_ok=True)
        _write(path, edit)
        if edit.manifest:
            replace_file(manifest, edit.manifest, like=path)
        side.unlink()
    except OSError as e:
        raise OutputError(
            f"{path} is in the middle of an edit: {e.strerror}",
            "free some space and give --in-place for it again: that finishes the edit",
        ) from None
    with contextlib.suppress(OSError):  # a journal that comes back is carried out once more, to no effect
        sync(path.parent)


def _write(path: Path, edit: Edit) -> None:
    with open(path, "r+b", buffering=0) as f:
        _put(f, 0, b"\0" * MAGIC)
        os.fsync(f.fileno())
        for offset, data in edit.patches:
            _put(f, offset + edit.inserted, data)
        _put(f, MAGIC, edit.header[MAGIC:])
        os.fsync(f.fileno())
        _put(f, 0, edit.header[:MAGIC])
        os.fsync(f.fileno())


def _put(f: BinaryIO, offset: int, data: bytes) -> None:
    f.seek(offset)
    write_all(f, np.frombuffer(data, np.uint8))


def _insert(path: Path, size: int) -> None:
    if (libc := libc_with("fallocate")) is None:
        raise OSError(errno.EOPNOTSUPP, "no FALLOC_FL_INSERT_RANGE")
    with open(path, "r+b") as f:
        if libc.fallocate(f.fileno(), INSERT_RANGE, ctypes.c_int64(0), ctypes.c_int64(size)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


def refuse_shared(path: Path) -> None:
    """Raise OutputError for a file that others see too: a symbolic link, or one of several hard links."""
    if path.is_symlink() or path.stat().st_nlink > 1:
        raise OutputError(f"{path} is shared with another place (a link, or the Hub's cache)", "copy it first, or write a new file")

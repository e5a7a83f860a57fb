"""Extends a GGUF file where it lies: the header is replaced, the tensor data never moves.

When the new header is longer, the file system inserts blocks at the file's beginning (fallocate FALLOC_FL_INSERT_RANGE:
ext4, XFS). The header must end where the data begins, so the recipe's own field is padded with spaces to fit.

Crash-safe by a journal beside the file, which holds all that is to be written. The first bytes are written last, so in
between no reader takes the file for a model; `recover` finishes the work, or finds that it had not begun.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..checkpoint import RECIPE
from ..dialects import FACTORS
from ..errors import OutputError, Unsupported
from ..gguf_file import Field, Gguf, Value, encode_header, journal_path
from ..manifest import manifest_path
from .moving import MAGIC, Piece, write_all
from .resume import UNSUPPORTED, lock, sync

INSERT_RANGE = 0x20  # linux/falloc.h


def plan_in_place(gguf: Gguf, fields: Mapping[str, Field | Value], pieces: list[Piece]) -> dict[str, Any]:
    """The journal of an edit: `inserted` bytes, the new `header`, and the `patches` (offset in the old file, bytes).

    Raises Unsupported when the file's tensors do not follow each other as ggml writes them.
    """
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
            patches.append((gguf.data_start + offset, base64.b64encode(t.read().tobytes()).decode()))
    if len(header) != start or gguf.data_start > gguf.size or set(old) - {t.name for t in targets}:
        raise Unsupported("this edit does not fit into the file as it is", "write a new file instead of --in-place")
    with open(gguf.path, "rb") as f:
        before = hashlib.sha256(f.read(gguf.data_start)).hexdigest()
    return {
        "size": gguf.size,
        "inserted": inserted,
        "header": base64.b64encode(header).decode(),
        "patches": patches,
        "old_header": [gguf.data_start, before],
    }


def _padded(fields: Mapping[str, Field | Value], spaces: int) -> dict[str, Field | Value]:
    recipe = fields[RECIPE]
    assert isinstance(recipe, Value)
    return {**fields, RECIPE: recipe._replace(data=recipe.data + " " * spaces)}


def run_in_place(path: Path, journal: Mapping[str, Any]) -> None:
    """Carry out an edit. Raises OutputError where the file system cannot insert a range, the file cannot be written, another
    process edits it or it is not what the edit was planned for; the file is then as before."""
    refuse_shared(path)
    with _held(path):
        if path.stat().st_size != journal["size"] or not _is_untouched(path, journal):
            raise OutputError(f"{path} was changed since it was read", "nothing was done to it: run the same command again")
        _run(path, journal)


def _run(path: Path, journal: Mapping[str, Any]) -> None:
    text = json.dumps(journal)
    side = journal_path(path)
    try:
        side.write_text(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest()}) + "\n" + text)
        sync(side)
        sync(path.parent)
        if journal["inserted"]:
            _insert(path, journal["inserted"])
    except OSError as e:
        side.unlink(missing_ok=True)
        if e.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise OutputError(f"the file system of {path} cannot insert into a file", "write a new file instead of --in-place") from None
        raise OutputError(f"could not change {path}: {e.strerror}", "nothing was changed") from None
    _finish(path, journal)


def recover(path: Path) -> bool:
    """Finish an edit that was interrupted, if there was one. True when the file was changed.

    Raises OutputError when the file is in neither state that an interruption leaves, or is being edited at this time.
    """
    if not journal_path(path).exists():
        return False
    with _held(path):
        return _recover(path)


def _recover(path: Path) -> bool:
    side = journal_path(path)
    if not side.exists():  # the process that had it has just finished
        return False
    journal = _whole(side)
    size = path.stat().st_size
    if journal is None or (journal["inserted"] and size == journal["size"]):
        side.unlink()  # it was cut before the model was touched
        return False
    if size != journal["size"] + journal["inserted"] or not _is_ours(path, journal):
        raise OutputError(
            f"{path} is not the file whose in-place edit was interrupted",
            f"if it is sound, delete {side}, else restore it from a copy",
        )
    _finish(path, journal)
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


def _whole(side: Path) -> dict[str, Any] | None:
    """A journal as it was written, or None for one that was cut."""
    head, _, text = side.read_bytes().partition(b"\n")
    try:
        whole = json.loads(head)["sha256"] == hashlib.sha256(text).hexdigest()
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return dict(json.loads(text)) if whole else None


def _is_ours(path: Path, journal: Mapping[str, Any]) -> bool:
    """Whether a file is one that this edit leaves: untouched, in the middle (some of its first bytes are zero) or finished."""
    header = base64.b64decode(journal["header"])
    with open(path, "rb") as f:
        start = f.read(len(header))
    first, wanted = start[:MAGIC], header[:MAGIC]
    in_the_middle = first != wanted and all(a in (0, b) for a, b in zip(first, wanted, strict=True))
    return in_the_middle or start == header or _is_untouched(path, journal)


def _is_untouched(path: Path, journal: Mapping[str, Any]) -> bool:
    """Whether a file begins as it did when the edit was planned."""
    length, before = journal["old_header"]
    with open(path, "rb") as f:
        return bool(hashlib.sha256(f.read(length)).hexdigest() == before)


def _finish(path: Path, journal: Mapping[str, Any]) -> None:
    """Write all that the journal holds, and remove it. Raises OutputError when the disk fails; `recover` can go on then.

    A manifest beside the file speaks of what it was before: it goes first, the caller writes the new one.
    """
    try:
        manifest_path(path).unlink(missing_ok=True)
        _write(path, journal)
    except OSError as e:
        raise OutputError(
            f"{path} is in the middle of an edit: {e.strerror}",
            "free some space and give --in-place for it again: that finishes the edit",
        ) from None
    journal_path(path).unlink()


def _write(path: Path, journal: Mapping[str, Any]) -> None:
    header = base64.b64decode(journal["header"])
    with open(path, "r+b", buffering=0) as f:
        _put(f, 0, b"\0" * MAGIC)
        os.fsync(f.fileno())
        for offset, data in journal["patches"]:
            _put(f, offset + journal["inserted"], base64.b64decode(data))
        _put(f, MAGIC, header[MAGIC:])
        os.fsync(f.fileno())
        _put(f, 0, header[:MAGIC])
        os.fsync(f.fileno())


def _put(f: BinaryIO, offset: int, data: bytes) -> None:
    f.seek(offset)
    write_all(f, np.frombuffer(data, np.uint8))


def _insert(path: Path, size: int) -> None:
    if not sys.platform.startswith("linux"):
        raise OSError(errno.EOPNOTSUPP, "no FALLOC_FL_INSERT_RANGE")
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "r+b") as f:
        if libc.fallocate(f.fileno(), INSERT_RANGE, ctypes.c_int64(0), ctypes.c_int64(size)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


def refuse_shared(path: Path) -> None:
    """Raise OutputError for a file that others see too: a symbolic link, or one of several hard links."""
    if path.is_symlink() or path.stat().st_nlink > 1:
        raise OutputError(f"{path} is shared with another place (a link, or the Hub's cache)", "copy it first, or write a new file")

"""What tells a model's files as they were from what they are now: a size and a digest each, as fast as the disk reads; and the SHA-256
that everybody else computes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msgspec import Struct

from .files import open_regular

LEAF = 32 << 20  # bytes that are hashed as one; leaves are hashed side by side, for one SHA-256 is slower than a disk
READ = 1 << 20
Progress = Callable[[int], None]


class Digest(Struct, frozen=True):
    """Of a file: `sha256_tree` is the SHA-256 of the SHA-256 digests of its pieces of 32 MiB, in hexadecimal."""

    bytes: int
    sha256_tree: str


def digest(path: Path, progress: Progress = lambda n: None) -> Digest:
    """Of a regular file; `progress` gets the bytes that were read."""
    with open_regular(path) as f:
        size = os.fstat(f.fileno()).st_size
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        whole = hashlib.sha256()
        for at, leaf in zip(range(0, size, LEAF), pool.map(lambda at: _leaf(path, at), range(0, size, LEAF)), strict=True):
            whole.update(leaf)
            progress(min(LEAF, size - at))
    return Digest(size, whole.hexdigest())


def _leaf(path: Path, at: int) -> bytes:
    found, left = hashlib.sha256(), LEAF
    with open_regular(path, 0) as f:
        f.seek(at)
        while left and (data := f.read(min(READ, left))):
            found.update(data)
            left -= len(data)
    return found.digest()


def sha256(path: Path, progress: Progress = lambda n: None) -> str:
    """The SHA-256 of a file in hexadecimal; `progress` gets the bytes that were read."""
    found = hashlib.sha256()  # hashlib.file_digest needs Python 3.11, and reports nothing
    with open_regular(path) as f:
        for piece in iter(lambda: f.read(READ), b""):
            found.update(piece)
            progress(len(piece))
    return found.hexdigest()


def digests(files: Mapping[str, Path], progress: Progress = lambda n: None) -> dict[str, Digest]:
    return {name: digest(path, progress) for name, path in files.items()}


def differing(then: Mapping[str, Digest], files: Mapping[str, Path]) -> str:
    """The first file that is not what it was, and how; "" where all are. Sizes are looked at first."""
    for name in sorted({*then, *files}):
        if name not in files:
            return f"{name} is gone"
        if name not in then:
            return f"{name} is new"
        if files[name].stat().st_size != then[name].bytes:
            return f"{name} has another size"
    return next((f"{name} has another content" for name, path in files.items() if digest(path) != then[name]), "")

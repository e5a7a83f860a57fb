"""The files of a model as they were when each was first opened, and whether they still are when all has been written.

A conversion opens its inputs many times over many minutes; one that is replaced, rewritten or linked elsewhere meanwhile would give
a model that is partly another. The time of change of an inode tells also of a rewriting whose author set the other times back.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError


@dataclass(frozen=True, slots=True)
class FileStat:
    """What stat said of a file or a folder: which it is, and how it may be used."""

    link: tuple[int, int]  # inode and time of change of what lies under the name: a link itself, or the file
    which: tuple[int, int]  # device and inode
    size: int
    written: int
    changed: int
    use: tuple[int, int, int, int]  # mode, links, owner and group: a change of these is one of the inode, too

    def is_still(self, now: FileStat, linked: bool = False) -> bool:
        is_link = self.link[0] != self.which[1]
        if self.which != now.which or (is_link and self.link != now.link):
            return False
        if stat.S_ISDIR(self.use[0]):
            return True  # files that are none of the model's may come and go
        rewritten = self.changed != now.changed and self.use == now.use and not linked
        return (self.size, self.written) == (now.size, now.written) and not rewritten


@dataclass(frozen=True, slots=True)
class Inputs:
    """Every file that was opened for a model, and its folder, as they were. `linked`: hard links to the files are made and removed,
    which is a change of the inode."""

    seen: Mapping[Path, FileStat] = field(default_factory=dict)
    linked: bool = False

    @property
    def files(self) -> list[Path]:
        return [path for path, s in self.seen.items() if not stat.S_ISDIR(s.use[0])]

    def changed(self) -> Path | None:
        """The first that is not what it was."""
        for path, then in self.seen.items():
            try:
                if not then.is_still(_look(path, path.stat()), self.linked):
                    return path
            except OSError:
                return path
        return None

    def check(self) -> None:
        """Raise InputError when one of the files has changed."""
        if path := self.changed():
            raise InputError(f"{path} was changed while it was read", "nothing was written: run the same command again")

    @property
    def file_mode(self) -> int:
        """The permissions that every one of them gives."""
        mode = 0o777
        for s in self.seen.values():
            mode &= s.use[0]
        return mode

    @property
    def folder_mode(self) -> int:
        """Those of the folder; where there is none those of the files, with the right to enter for who may read."""
        folders = [s.use[0] & 0o777 for s in self.seen.values() if stat.S_ISDIR(s.use[0])]
        return folders[0] if folders else self.file_mode | (self.file_mode & 0o444) >> 2


NOTHING = Inputs()
_SEEN: ContextVar[dict[Path, FileStat] | None] = ContextVar("SEEN", default=None)


@contextlib.contextmanager
def noticing() -> Iterator[Inputs]:
    """Every file that is opened in here for the first time is noticed."""
    seen: dict[Path, FileStat] = {}
    token = _SEEN.set(seen)
    try:
        yield Inputs(seen)
    finally:
        _SEEN.reset(token)


def notice(path: Path, found: os.stat_result | None = None) -> None:
    """Remember how `path` is now, `found` being what was opened there; nothing outside `noticing`."""
    seen = _SEEN.get()
    if seen is not None and path not in seen:
        seen[path] = _look(path, found or path.stat())


def _look(path: Path, s: os.stat_result) -> FileStat:
    itself = path.lstat()
    use = (s.st_mode, s.st_nlink, s.st_uid, s.st_gid)
    return FileStat((itself.st_ino, itself.st_ctime_ns), (s.st_dev, s.st_ino), s.st_size, s.st_mtime_ns, s.st_ctime_ns, use)

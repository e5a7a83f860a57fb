"""The files of a model as they were before the first of them was read, and whether they still are when all has been written.

A conversion opens its inputs many times over many minutes; one that is replaced, rewritten or linked elsewhere meanwhile would give
a model that is partly another. The time of change of an inode tells also of a rewriting whose author set the other times back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import InputError
from ..split import stem_of

READ = (".json", ".jinja", ".model", ".txt", ".py", ".tiktoken", ".md")  # endings of the small files that are read or copied
WITHIN = "additional_chat_templates"


@dataclass(frozen=True, slots=True)
class Seen:
    """What lstat and stat said of a file: which it is, and how others may use it."""

    link: tuple[int, int]  # inode and time of change of the link itself, or of the file
    device: int
    inode: int
    size: int
    written: int
    changed: int
    use: tuple[int, int, int, int]  # links, mode, owner and group: a change of these is one of the inode, too

    def is_still(self, now: Seen) -> bool:
        same = (self.device, self.inode, self.size, self.written) == (now.device, now.inode, now.size, now.written)
        if self.link[0] != self.inode and self.link != now.link:
            return False
        return same and (self.changed == now.changed or self.use != now.use)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Every file that was looked at. `weights` are the weight files; `root` the model's folder, None for files."""

    seen: Mapping[Path, Seen] = field(default_factory=dict)
    weights: tuple[Path, ...] = ()
    root: Path | None = None

    def of(self, weights: Iterable[Path]) -> Inputs:
        """With the weight files that were found to belong to the model."""
        return replace(self, weights=(*self.weights, *weights))

    @property
    def _read(self) -> list[Path]:
        return [path for path in self.seen if path in self.weights or path == self.root or path.suffix in READ or self.root is None]

    def changed(self) -> Path | None:
        """The first of the files that is not what it was before it was read."""
        for path in self._read:
            then, now = self.seen[path], _look(path)
            if now is None or not (_same_folder(then, now) if path == self.root else then.is_still(now)):
                return path
        return None

    def check(self) -> None:
        """Raise InputError when one of the files has changed."""
        if path := self.changed():
            raise InputError(f"{path} was changed while it was read", "nothing was written: run the same command again")

    @property
    def file_mode(self) -> int:
        """The permissions that every input gives."""
        mode = 0o777
        for path in self._read:
            mode &= self.seen[path].use[1]
        return mode

    @property
    def folder_mode(self) -> int:
        """Those of the folder, for a folder; of the files, with the right to enter for who may read, else."""
        if self.root is not None:
            return self.seen[self.root].use[1]
        return self.file_mode | (self.file_mode & 0o444) >> 2


NOTHING = Inputs()


def look_at(model: Path, *more: Path | None) -> Inputs:
    """The files at `model`, a folder or a GGUF with its other parts, and those given besides."""
    if model.is_dir():
        files = [p for folder in (model, model / WITHIN) if folder.is_dir() for p in folder.iterdir() if p.is_file()]
        found = [model, *files]
    else:
        stem = stem_of(model)
        found = [p for p in model.parent.iterdir() if p.name == model.name or (p.suffix == model.suffix and stem_of(p) == stem)]
    seen = {path: s for path in (*found, *(p for p in more if p)) if (s := _look(path))}
    return Inputs(seen, tuple(p for p in more if p), model if model.is_dir() else None)


def _look(path: Path) -> Seen | None:
    try:
        itself, s = path.lstat(), path.stat()
    except OSError:
        return None
    link, use = (itself.st_ino, itself.st_ctime_ns), (s.st_nlink, s.st_mode & 0o777, s.st_uid, s.st_gid)
    return Seen(link, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, use)


def _same_folder(then: Seen, now: Seen) -> bool:
    """Of a folder only which one it is: files that are none of the model's may come and go."""
    return (then.device, then.inode) == (now.device, now.inode) and (then.link[0] == then.inode or then.link == now.link)

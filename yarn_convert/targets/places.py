"""Puts what is finished into its place: whole, and never over what nobody has checked, also when the process dies in between.

Linux renames without replacing, and exchanges two names at once (renameat2). Elsewhere a new name is a hard link made first,
and what is to be replaced is put aside. What goes where is written down in the file `publish` before the first rename, with what
lay there before: the next run of the same output finishes what a killed one began.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import OutputError

NO_REPLACE, EXCHANGE = 1, 2  # linux/fs.h, RENAME_NOREPLACE and RENAME_EXCHANGE
AT_FDCWD = -100  # linux/fcntl.h
FILES, ASIDE, PUBLISH = "files", "old", "publish"  # of an output's hidden folder
CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK, errno.EXDEV)  # what a file system without it says

State = dict[str, list[int]]  # every name in it, "." itself -> (inode, bytes, time of change in ns); of a folder the inode alone


class Taken(OutputError):
    """Something lies in the place of an output that was not there, or was not so, when the run began."""

    def __init__(self, place: Path) -> None:
        super().__init__(
            f"{place} was made or changed by something else while the output was written", "it is left as it is: give another place with -o"
        )


def state(path: Path) -> State | None:
    """What lies at a place, links themselves and not what they point to; None where there is nothing."""
    try:
        found = {".": _stat(path)}
        if not path.is_symlink():
            for folder, folders, files in os.walk(path):
                for name in (*folders, *files):
                    inner = Path(folder, name)
                    found[inner.relative_to(path).as_posix()] = _stat(inner)
    except FileNotFoundError:
        return None
    return found


def _stat(path: Path) -> list[int]:
    s = path.lstat()
    return [s.st_ino, 0, 0] if stat.S_ISDIR(s.st_mode) else [s.st_ino, s.st_size, s.st_mtime_ns]


def delete(path: Path) -> None:
    """Whatever it is, and a link itself; nothing where there is nothing. OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# -- publishing -------------------------------------------------------------------------------------------------------


def publish(root: Path, out: Path, folder: bool, old: Mapping[str, State | None]) -> None:
    """Move what lies in `root`/files to `out`, a folder, or each file of it beside `out`, which is the first that readers open.

    `old`: what may be replaced, by the name in the folder of `out`, as it was. Raises Taken, or OSError, and then all is as before.
    """
    names = [out.name] if folder else [path.name for path in sorted((root / FILES).iterdir())]
    record = {
        "folder": folder,
        "main": out.name,
        "new": {name: _stat(_source(root, name, folder))[0] for name in names},
        "old": {name: old.get(name) for name in names},
    }
    for name in names:
        place, was = out.with_name(name), old.get(name)
        if os.path.lexists(place) if was is None else state(place) != was:
            raise Taken(place)
    partial = root / (PUBLISH + ".new")
    with open(partial, "w", encoding="utf-8") as f:
        json.dump(record, f)
        f.flush()
        os.fsync(f.fileno())
    partial.rename(root / PUBLISH)
    sync(root)
    undo: list[Callable[[], object]] = []
    try:
        _place(root, out.parent, record, undo)
    except BaseException:
        with contextlib.suppress(OSError, Taken):  # else the record stays, and the next run finishes what could not be undone
            for back in reversed(undo):
                back()
            (root / PUBLISH).unlink()
        raise


def finish(root: Path, out: Path) -> bool:
    """Go on with a publication that a killed process began; False where there is none. Raises Taken, OSError."""
    path = root / PUBLISH
    record = _checked(path, out)
    if record is None:
        delete(path)
        return False
    _place(root, out.parent, record, [])
    return True


def _checked(path: Path, out: Path) -> dict[str, Any] | None:
    """A record as `publish` writes it, None for anything else."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        record = json.loads(path.read_bytes())
        new, old = record["new"], record["old"]
        plain = all(Path(name).name == name and isinstance(number, int) for name, number in new.items())
        if plain and new.keys() == old.keys() and record["main"] == out.name and isinstance(record["folder"], bool):
            return dict(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return None


def _source(root: Path, name: str, folder: bool) -> Path:
    return root / FILES if folder else root / FILES / name


def _place(root: Path, parent: Path, record: Mapping[str, Any], undo: list[Callable[[], object]]) -> None:
    """The steps of a publication. Those that are done already are left out, so that it can begin at any of them.

    Of several files the old ones go first and the one that describes them, the manifest, comes last: at no time does a new file
    stand beside an old one. A single file that is there takes the place of its old one at once.
    """
    new, old, main = record["new"], record["old"], record["main"]
    waiting = [n for n in new if not _has(parent / n, new[n]) and _has(_source(root, n, record["folder"]), new[n])]
    alone = sum(Path(n).suffix == Path(main).suffix for n in new) == 1
    for name in sorted(waiting, key=lambda n: n == main, reverse=True):
        if old[name] is not None and not (alone and name == main) and os.path.lexists(parent / name):
            _put_aside(root, parent / name, old[name], undo)
    sync(parent)
    for name in sorted(waiting, key=lambda n: (n.endswith(".json"), n == main)):
        source, place = _source(root, name, record["folder"]), parent / name
        if os.path.lexists(place):
            _swap(root, source, place, old[name], undo)
        else:
            rename_new(source, place)
            undo.append(lambda source=source, place=place: rename_new(place, source))  # type: ignore[misc]
        sync(parent)


def _has(path: Path, inode: int) -> bool:
    try:
        return path.lstat().st_ino == inode
    except FileNotFoundError:
        return False


def _put_aside(root: Path, place: Path, old: State, undo: list[Callable[[], object]]) -> None:
    (root / ASIDE).mkdir(exist_ok=True)
    aside = root / ASIDE / place.name
    if _has(aside, place.lstat().st_ino):  # a hard link, after which the process died
        place.unlink()
    else:
        rename_new(place, aside)
    if state(aside) != old:
        rename_new(aside, place)
        raise Taken(place)
    undo.append(lambda: rename_new(aside, place))


def _swap(root: Path, source: Path, place: Path, old: State | None, undo: list[Callable[[], object]]) -> None:
    """The new for the old, which is checked when nobody can change it any more."""
    if old is None:
        raise Taken(place)
    if _renameat2(source, place, EXCHANGE):
        if state(source) != old:
            _renameat2(source, place, EXCHANGE)
            raise Taken(place)
        undo.append(lambda: _renameat2(source, place, EXCHANGE))
        return
    _put_aside(root, place, old, undo)
    rename_new(source, place)
    undo.append(lambda: rename_new(place, source))


# -- renaming ---------------------------------------------------------------------------------------------------------


def rename_new(source: Path, place: Path) -> None:
    """Rename a file or a folder to a place where nothing is. Raises Taken where something is; at most an empty folder is replaced,
    on a file system that can rename in no other way."""
    try:
        if _renameat2(source, place, NO_REPLACE):
            return
        if source.is_dir() and not source.is_symlink():
            source.rename(place)  # over a folder with something in it, and over a file, the system refuses it
        else:
            _link_then_unlink(source, place)
    except OSError as e:
        if e.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR):
            raise Taken(place) from None
        raise


def _link_then_unlink(source: Path, place: Path) -> None:
    try:
        os.link(source, place, follow_symlinks=False)
    except OSError as e:
        if e.errno not in CANNOT:
            raise
        if os.path.lexists(place):
            raise Taken(place) from None
        source.rename(place)
        return
    source.unlink()


def _renameat2(source: Path, place: Path, flags: int) -> bool:
    """False where the system or the file system does not know these flags. OSError."""
    if (libc := libc_with("renameat2")) is None:
        return False
    if libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(place), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in CANNOT and code != errno.EXDEV:
        return False
    raise OSError(code, os.strerror(code), str(place))


@cache
def libc_with(function: str) -> Any:
    """The C library, on a Linux where it has this function; None elsewhere."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None
    return libc if hasattr(libc, function) else None


def sync(path: Path) -> None:
    """fsync a file or, where the system can, a folder."""
    if path.is_dir() and sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDONLY if sys.platform != "win32" else os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

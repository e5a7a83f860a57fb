"""Opens the files of a model: what lies in its folder, and nothing else of this machine.

A model comes from strangers. A link in it may name any file here, and what is read for a model ends in its output and is published
with it; a pipe in a file's place never ends. So every file is found by `inside` and opened by `open_regular`. Three links are
followed: the Hub's cache has its files in `blobs/`; weights may lie on another disk, for a file that is none has no tensors that
the config describes; and within `follow_links` the user answers for all.
"""

from __future__ import annotations

import os
import re
import stat
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from ..errors import FormatError, InputError
from .inputs import notice

FOLLOW = ContextVar("FOLLOW", default=False)  # whether links that lead out of a model's folder are followed: --follow-links
REPO_FOLDER = "models--"  # how a model's folder in the Hub's cache begins
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_PACKAGE = Path(__file__).parents[1]


def _kept(name: str) -> Path:
    """A folder beside the code: within the package in a wheel, and beside it in a checkout."""
    return next((p for p in (_PACKAGE / name, _PACKAGE.parent / name) if p.is_dir()), _PACKAGE / name)


TEMPLATES, DOCS = _kept("templates"), _kept("docs")


def pages() -> dict[str, Path]:
    """The pages of the documentation on this machine, by the names that `yarn-convert docs` gives them."""
    return {path.stem: path for path in sorted(DOCS.glob("*.md"))}


def page(name: str) -> str:
    """A page of the documentation, for a hint that names it: what shows it, wherever it lies."""
    return f"'yarn-convert docs {name}'"


def inside(folder: Path, name: str, weights: bool = False) -> Path:
    """`folder/name`, whether it is there or not. FormatError where that is no plain name, or a link that leads out of the folder;
    for `weights` such a link will do."""
    if not (Path(name).name == name != ".." and name.isprintable() and 0 < len(name.encode()) <= 255):
        raise FormatError(f"the file name {name!r} leads out of the model's folder", "nothing outside it is ever read")
    path = folder / name
    if not weights and not FOLLOW.get() and leads_out(path):
        raise FormatError(
            f"{name} is a link that leads out of the model's folder",
            "put the file itself there; --follow-links reads links that you made, and nothing outside is ever published",
        )
    return path


def leads_out(path: Path) -> bool:
    """Whether a path is a link out of the folder that it lies in, other than one of the Hub's cache to its blobs."""
    root, real = (Path(os.path.realpath(p)) for p in (path.parent, path))  # Path.resolve raises for a link to itself
    return not real.is_relative_to(root) and real.parent != _blobs(root)


def _blobs(folder: Path) -> Path | None:
    """Where the Hub's cache keeps the content of a snapshot's files: `models--ORG--NAME/{snapshots/COMMIT,blobs}`."""
    snapshots = next((p for p in folder.parents if p.name == "snapshots" and p.parent.name.startswith(REPO_FOLDER)), None)
    return snapshots.with_name("blobs") if snapshots else None


def hub_hash(path: Path) -> str | None:
    """The SHA-256 that the Hub gives for a file of its cache, whose blob is named by it; None for any other file. Nobody says that the
    blob still holds that."""
    blob = Path(os.path.realpath(path))
    named = blob.parent.name == "blobs" and blob.parents[1].name.startswith(REPO_FOLDER) and re.fullmatch("[0-9a-f]{64}", blob.name)
    return blob.name if named else None


def exists(folder: Path, name: str) -> bool:
    """Whether there is something of that name. A link to nothing and a pipe are, so that to read them is an error and they are not
    passed over."""
    return os.path.lexists(folder / name)


def open_regular(path: Path, buffering: int = -1) -> BinaryIO:
    """A regular file, open to be read. FormatError for a pipe, a device or a folder, on which a reader would wait; else as `open`."""
    _check_regular(path, path.stat().st_mode)  # first, for to open some devices does something
    return open(path, "rb", buffering, opener=lambda *_: _descriptor(path))


def _descriptor(path: Path) -> int:
    fd = os.open(path, FLAGS)
    try:
        found = os.fstat(fd)
        _check_regular(path, found.st_mode)
        notice(path, found)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        what = next((name for of, name in kinds if of(mode)), "a device")
        raise FormatError(f"{path.name} is {what}, not a file", "put the model's own file there, or delete it")


def regular(folder: Path, name: str, weights: bool = False) -> Path:
    """The path of a file that is to be read later. InputError where it is missing, no file or a link that leads out."""
    path = inside(folder, name, weights)
    try:
        _check_regular(path, path.stat().st_mode)
        notice(path)
    except OSError as e:
        raise _unreadable(path, e) from None
    return path


def read(folder: Path, name: str) -> bytes:
    """The content of a small file of a model. InputError as `regular`."""
    path = inside(folder, name)
    try:
        with open_regular(path) as f:
            return f.read()
    except OSError as e:
        raise _unreadable(path, e) from None


def read_text(folder: Path, name: str) -> str:
    """The same as text. FormatError where it is not UTF-8."""
    try:
        return read(folder, name).decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{name} is not UTF-8", "save it as UTF-8, or download it again") from None


def _unreadable(path: Path, e: OSError) -> InputError:
    if isinstance(e, PermissionError):
        return InputError(f"no permission to read {path}", "check the file's owner and mode")
    if not isinstance(e, FileNotFoundError):
        return InputError(f"{path} cannot be read: {e.strerror}", "download the model again")
    if path.is_symlink():
        return InputError(f"{path.name} is a link to nothing", "download the model again, or delete the link")
    return InputError(f"{path.name} is missing from {path.parent}", "the folder must hold a whole model")

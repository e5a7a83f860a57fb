"""A whole output, or none: what must not be lost, and when the new one takes the old one's place.

Everything is written to a hidden sibling and renamed when it is whole and on the disk, so that an interruption leaves the
old output or none, and never a file that a runtime would load. What a large output leaves there is gone on with (`resume`).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

from ..errors import InputError, OutputError
from ..manifest import MANIFEST, read_manifest
from ..tensors import INDEXES
from .moving import Job, Mover, Progress
from .resume import Say, open_partial, sync


def check_output(out: Path, inputs: list[Path], folder: bool, force: bool, names: Container[str] = ()) -> None:
    """Raise OutputError when writing `out` would lose something: it exists, or lies in the input or around it. By force a folder
    that we wrote is replaced, unless there is something in it that neither was written then nor is among the new `names`."""
    try:
        target = out.resolve()
        there, is_dir = out.exists() or out.is_symlink(), out.is_dir()
        foreign = is_dir and not (out / MANIFEST).is_file() and any(out.iterdir())
    except (OSError, ValueError) as e:
        raise OutputError(
            f"the output cannot be named {out}: {getattr(e, 'strerror', None) or e}", "-o PATH, in a folder that you may write"
        ) from None
    for source in (p.resolve() for p in inputs):
        if target == source or target.is_relative_to(source) or source.is_relative_to(target):
            raise OutputError(f"the output {out} and the input {source} lie inside one another", "give another place with -o")
    if not there:
        return
    if not force:
        raise OutputError(f"{out} exists", "--force replaces it, -o PATH writes elsewhere")
    if is_dir != folder:
        raise OutputError(
            f"{out} is a {'folder' if is_dir else 'file'}, the output a {'folder' if folder else 'file'}", "give another place with -o"
        )
    if foreign:
        raise OutputError(
            f"{out} was not written by yarn-convert, so --force does not delete it", "give another place with -o, or delete it yourself"
        )
    if folder and (added := _added(out, names)):
        raise OutputError(
            f"--force would delete {out / added}, which is no part of what is written", "put it elsewhere, or delete it yourself"
        )


def _added(out: Path, names: Container[str]) -> str | None:
    """A file in an earlier output that is neither one of its weight files nor among `names`; None where there is none."""
    try:
        manifest = read_manifest(out)
    except (InputError, OSError):
        manifest = None
    weights = {f.file for f in manifest.weights.files} if manifest else set()
    found = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_symlink() or not path.is_dir())
    return next((name for name in found if name not in names and name not in weights and name not in (MANIFEST, *INDEXES)), None)


Last = Callable[[Mapping[str, str], Path], list[Job]]


def execute(
    jobs: list[Job], out: Path, *, folder: bool, progress: Progress, link: bool, last: Last, inputs: Sequence[Path] = (),
    say: Say = lambda line: None,
) -> None:  # fmt: skip
    """Write all jobs and move the result to `out`: a folder, or the single file that the first job names.

    `last` gets how each file was moved and the folder where they lie until the end, and returns the small files that
    can only be written then, as the manifest.
    Raises OutputError for a full disk or a place that cannot be written. What a large output has got to is then kept for the
    next run, also after a crash; it is taken up only if the jobs and the files `inputs`, from which tensors in memory come,
    are the same. `say` hears of that. Of a small output nothing is left behind.
    """
    kept = ""
    try:
        partial = open_partial(out, jobs, inputs, say)
        try:
            mover = Mover(partial.files, progress, link, partial.journal)
            mover.run(jobs)
            mover.run(last(mover.moved, partial.files))
            _to_disk(partial.files)
            _publish(partial.files, out, folder)
        except OSError:
            kept = partial.leave()
            raise
        except Exception:  # the input is not sound, or we are not: no second run would go further
            partial.remove()
            raise
        except BaseException:  # Ctrl-C
            if kept := partial.leave():
                say(kept)
            raise
        partial.remove()
    except OSError as e:
        raise _output_error(e, out, kept) from None


def _publish(partial: Path, out: Path, folder: bool) -> None:
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    if folder:
        if out.exists():
            out.rename(old)
        try:
            partial.rename(out)
        except OSError:
            if os.path.lexists(old):
                old.rename(out)
            raise
        if old.is_symlink():
            old.unlink()
        else:
            shutil.rmtree(old, ignore_errors=True)
    else:
        files = sorted(partial.iterdir(), key=lambda p: p.name == out.name)  # the model itself, or its first part, comes last
        if out.exists() and sum(file.suffix == out.suffix for file in files) > 1:
            out.unlink()  # an old first part never stands beside new ones
            sync(out.parent)
        for file in files:
            file.replace(out.with_name(file.name))
    sync(out.parent)


def _to_disk(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_nlink == 1:  # a hard link's data was on the disk before
            sync(path)
    sync(folder)


def replace_file(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all: a hidden sibling, flushed and renamed; the mode of an old one stays. OSError."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(data)
        if path.exists():
            shutil.copymode(path, partial)
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _output_error(e: OSError, out: Path, kept: str) -> OutputError:
    more = f"; {kept}" if kept else ""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"the disk is full: {out} was not written", "free some space, or -o on another disk" + more)
    return OutputError(f"could not write {out}: {e.strerror or e}", "check that the place exists and is writable" + more)

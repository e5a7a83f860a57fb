"""A whole output, or none: what must not be lost, and when the new one takes the old one's place.

Everything is written to a hidden sibling and renamed when it is whole and on the disk (`places`), so that an interruption leaves
the old output or none, and never a file that a runtime would load. What a large output leaves there is gone on with (`resume`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

from ..checkpoint.manifest import MANIFEST, read_manifest
from ..checkpoint.source import Say
from ..errors import InputError, OutputError, Unreachable
from ..formats.digests import Progress
from ..formats.inputs import NOTHING, Inputs
from ..formats.room import Room, check_room, room, shares_blocks
from ..formats.tensors import INDEXES
from .moving import WEIGHTS, CopyFile, Job, Mover
from .places import State, Taken, publish, state, sync
from .resume import lock_file, open_partial, partial_of, settle


def check_output(out: Path, inputs: list[Path], folder: bool, force: bool, names: Container[str] = ()) -> State | None:
    """What lies at `out`, None for nothing.

    Raise OutputError when writing `out` would lose something: it exists, or lies in the input or around it. By force a folder
    that we wrote is replaced, unless there is something in it that neither was written then nor is among the new `names`.
    """
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
        return None
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
    return state(out)


def _added(out: Path, names: Container[str]) -> str | None:
    """A file in an earlier output that is neither one of its weight files nor among `names`; None where there is none."""
    try:
        manifest = read_manifest(out)
    except (InputError, OSError):
        manifest = None
    weights = {f.file for f in manifest.weights.files} if manifest else set()
    found = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_symlink() or not path.is_dir())
    return next((name for name in found if name not in names and name not in weights and name not in (MANIFEST, *INDEXES)), None)


def room_for(jobs: Sequence[Job], out: Path, link: bool = False) -> Room | None:
    """The room that an output of `jobs` takes: not what an interrupted run has got to, nor copies that may share their file's blocks. None
    where a file is gone, of which whoever reads it says so."""
    linked = {j.name for j in jobs if isinstance(j, CopyFile) and shares_blocks(j.source, out, link and j.name.endswith(WEIGHTS))}
    try:
        partial = (p for p in partial_of(out).rglob("*") if not p.is_symlink())
        there = sum(getattr(s, "st_blocks", s.st_size // 512) * 512 for p in partial if (s := p.stat()).st_nlink == 1)
        needed = sum(job.size for job in jobs if job.name not in linked) - there
    except OSError:
        return None
    return room(str(out), needed, out.parent, "free some space, or -o on another disk")


Last = Callable[[Mapping[str, str], Path], list[Job]]


def execute(
    jobs: list[Job], out: Path, *, folder: bool, progress: Progress = lambda n: None, link: bool = False,
    last: Last = lambda moved, folder: [], inputs: Inputs = NOTHING, say: Say = lambda line: None,
    replacing: Mapping[str, State | None] | None = None,
) -> None:  # fmt: skip
    """Write all jobs and move the result to `out`: a folder, or the single file that the first job names.

    `last` gets how each file was moved and the folder where they lie until the end, and returns the small files that
    can only be written then, as the manifest. `replacing`: what may be replaced, by its name in the folder of `out`.
    Raises InputError where a file of `inputs` is not what it was, OutputError for a full disk, a place that cannot be written or
    where something has appeared, Unreachable where a model on the Hub cannot be read any further. What a large output has got to is then
    kept for the next run, also after a crash; it is taken up only if the jobs and the inputs are the same. `say` hears of that. Of a
    small output nothing is left behind.
    """
    kept = ""
    inputs.check()
    check_room(room_for(jobs, out, link), warn=say)
    try:
        partial = open_partial(out, jobs, inputs.files, say)
        try:
            mover = Mover(partial.files, progress, link, partial.journal)
            mover.run(jobs)
            more = last(mover.moved, partial.files)
            mover.run(more)
            inputs.check()
            _narrow(partial.files, [*jobs, *more], mover.moved, inputs)
            _to_disk(partial.files)
            publish(partial.root, out, folder, replacing or {})
        except (OSError, Taken):
            if inputs.changed():
                partial.remove()
                inputs.check()
            kept = partial.leave()
            raise
        except Unreachable as e:
            raise Unreachable(e.message, "; ".join(filter(None, (e.hint, partial.leave())))) from None
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


def settle_output(out: Path) -> None:
    """Put into place, or remove, what a killed run left of this output (`resume.settle`). Raises OutputError."""
    try:
        if not partial_of(out).is_dir():
            return
    except (OSError, ValueError):  # `check_output` says what is wrong with the name
        return
    try:
        settle(out)
    except OSError as e:
        raise _output_error(e, out, "") from None


def _narrow(folder: Path, jobs: list[Job], moved: Mapping[str, str], inputs: Inputs) -> None:
    """Whoever could not read the input cannot read the output: a copy is as private as its file, what is made as all of them."""
    for job in jobs:
        if moved.get(job.name) == "hard link":
            continue
        allowed = job.source.stat().st_mode if isinstance(job, CopyFile) else inputs.file_mode
        narrow(folder / job.name, allowed)
    for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        narrow(path, inputs.folder_mode)


def narrow(path: Path, allowed: int) -> None:
    """Take away what `allowed` does not allow to others than the owner."""
    mode = path.stat().st_mode & 0o777
    if mode & ~(allowed | 0o700):
        path.chmod(mode & (allowed | 0o700))


def _to_disk(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir() or path.stat().st_nlink == 1:  # a hard link's data was on the disk before
            sync(path)
    sync(folder)


def replace_file(path: Path, data: bytes, like: Path | None = None) -> None:
    """Write a small file whole or not at all: a hidden sibling, flushed and renamed; the mode of an old one stays, a new one is as
    private as `like`. Several writers wait for each other. OSError."""
    partial = path.with_name(f".{path.name}.new")
    fd = lock_file(partial)
    try:
        if path.exists() or like:
            narrow(partial, (path if path.exists() else like or path).stat().st_mode)
        os.ftruncate(fd, 0)
        with open(fd, "wb", closefd=False) as f:
            f.write(data)
            f.flush()
            os.fsync(fd)
        if path.exists():
            partial.chmod(path.stat().st_mode & 0o777)
        partial.replace(path)
        sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _output_error(e: OSError, out: Path, kept: str) -> OutputError:
    more = f"; {kept}" if kept else ""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"the disk is full: {out} was not written", "free some space, or -o on another disk" + more)
    return OutputError(f"could not write {out}: {e.strerror or e}", "check that the place exists and is writable" + more)

"""Whether what is about to be written fits on its file system, asked before the first byte of it.

An error is only what is certain: more bytes than are free, on a file system that neither compresses them nor finds more when they are
wanted. Elsewhere it is a warning, as the Hub's client gives one. Quotas that a file system does not tell of show when they are met.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import OutputError

COPIES = ("ext2", "ext3", "ext4", "tmpfs", "vfat", "exfat")  # where a copy never shares the blocks of its file
CERTAIN = (*COPIES, "xfs")  # where so many bytes take so much room
WARN = logging.getLogger(__name__).warning  # on stderr, where nothing else is set up


@dataclass(frozen=True, slots=True)
class Room:
    """What is about to be written below `folder`: `needed` bytes of `what`, where `free` are left; `hint`: what to do where that is too
    little. `certain`: whether it then fails. `device`: the file system."""

    what: str
    folder: Path
    needed: int
    free: int
    hint: str
    certain: bool
    device: int

    def to_dict(self) -> dict[str, Any]:
        """As --dry-run prints it with --json; not how much is free, for that is another each time."""
        return {"what": self.what, "folder": str(self.folder), "needed": self.needed, "fits": self.needed <= self.free}


def room(what: str, needed: int, place: Path, hint: str) -> Room | None:
    """The room for `needed` bytes at a place that need not be there yet; None where nothing is to be written, or no size is told."""
    try:
        folder = next(p for p in (place, *place.absolute().parents) if p.is_dir())
        total, used, free = shutil.disk_usage(folder)
        device = folder.stat().st_dev
    except (OSError, ValueError, StopIteration):  # whoever writes there says what is wrong with it
        return None
    if needed <= 0 or total <= 0:
        return None
    if getattr(os, "geteuid", lambda: 1)() == 0:
        free = total - used  # what is kept for root
    return Room(what, folder, needed, free, hint, kind_of(folder) in CERTAIN, device)


def short(rooms: Iterable[Room | None]) -> list[tuple[Room, str]]:
    """Those that do not fit, the last of each file system, and why: what is written to one is added up."""
    found: dict[int, list[Room]] = {}
    for one in rooms:
        if one is not None:
            found.setdefault(one.device, []).append(one)
    lines = []
    for all_of_it in found.values():
        last, needed = all_of_it[-1], sum(one.needed for one in all_of_it)
        if needed > last.free:
            what = " and ".join(f"{one.what} ({size(one.needed)})" for one in all_of_it)
            lines.append((last, f"{what} will not fit: {size(last.free)} are free in {last.folder.absolute()}"))
    return lines


def check_room(*rooms: Room | None, warn: Callable[[str], object] = WARN) -> None:
    """Raise OutputError for what cannot fit; `warn` hears of what may not."""
    for one, why in short(rooms):
        if one.certain:
            raise OutputError(why, one.hint)
        warn(f"{why}; {one.hint}")


def shares_blocks(file: Path, place: Path, linked: bool) -> bool:
    """Whether a copy of `file` at `place` may take no room: it is `linked` there, or the file system may let both have the same blocks."""
    try:
        folder = next(p for p in place.absolute().parents if p.is_dir())
        return file.stat().st_dev == folder.stat().st_dev and (linked or kind_of(folder) not in COPIES)
    except (OSError, ValueError, StopIteration):
        return False


@cache
def kind_of(folder: Path) -> str:
    """The type of its file system, as Linux has it; "" where nobody says it."""
    try:
        lines = Path("/proc/self/mounts").read_text("utf-8", "surrogateescape").splitlines()
        mounted = {Path(fields[1].replace("\\040", " ")): fields[2] for line in lines if len(fields := line.split(" ")) > 2}
        real = folder.resolve()
        return next((mounted[p] for p in (real, *real.parents) if p in mounted), "")
    except (OSError, ValueError):
        return ""


def size(n: int) -> str:
    """Bytes for people, in the units of the Hub's pages."""
    return f"{n / 1e9:.2f} GB" if n >= 10_000_000 else f"{n / 1e6:.2f} MB"

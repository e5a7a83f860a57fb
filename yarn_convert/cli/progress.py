"""How far something is, on stderr: a bar on a terminal, which goes when all is done, and lines in a pipe; nothing where it is to be
quiet."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from ..errors import printable
from ..hearing import hearing
from .show import duration, human, write

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from ..compute.record import SayStage
    from ..formats.digests import Progress

LINE_EVERY = 30.0  # seconds between two lines where there is no terminal
TELLING = 0.02  # the fraction before which nobody knows how long the rest takes


@contextlib.contextmanager
def progress(total: int, quiet: bool) -> Iterator[Progress]:
    """How many of `total` bytes are done, on stderr: a bar with the rate on a terminal, else a line now and then; nothing when quiet."""
    if quiet:
        yield lambda n: None
        return
    if not sys.stderr.isatty():
        done, began, one_by_one = 0, time.monotonic(), threading.Lock()
        last = began

        def line(n: int) -> None:
            nonlocal done, last
            with one_by_one:  # it is called from the threads that write
                done, now = done + n, time.monotonic()
                if not done or now - last < LINE_EVERY:
                    return
                last = now
                write(f"{human(done)} of {human(total)}{_left(now - began, min(1.0, done / max(1, total)))}", file=sys.stderr)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda n: bar.advance(task, n)


def _timed_bar() -> Bar:
    """Bars on stderr with a text, the time that went and the time that is left, by the speed of all of it; they go when all is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=86400)


class Display(Protocol):
    """`stage`: what is running, and how far that is; `whole`: what is running, and how far all of it is."""

    def stage(self, what: str, fraction: float) -> None: ...

    def whole(self, what: str, fraction: float) -> None: ...


class Nothing:
    def stage(self, what: str, fraction: float) -> None: ...

    def whole(self, what: str, fraction: float) -> None: ...


class Lines:
    """A line when something new begins, and one now and then."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self.last, self.said, self.start = 0.0, "", 0.0

    def stage(self, what: str, fraction: float) -> None:
        now = time.monotonic()
        if what not in self.began:
            self.began[what] = now
            write(what, file=sys.stderr)
        elif now - max(self.last, self.began[what]) >= LINE_EVERY and fraction > 0:
            self.last = now
            write(f"{what}: {fraction:.0%}{_left(now - self.began[what], fraction)}", file=sys.stderr)

    def whole(self, what: str, fraction: float) -> None:
        now = time.monotonic()
        self.start = self.start or now
        if what != self.said or now - self.last >= LINE_EVERY:
            self.last, self.said = now, what
            so_far = f": {fraction:.0%} of all{_left(now - self.start, fraction)}" if fraction >= TELLING else ""
            write(f"{what}{so_far}", file=sys.stderr)


class Bars:
    """One bar at a time, that of what was said last."""

    def __init__(self, bar: Bar) -> None:
        self.bar, self.shown = bar, ""
        self.tasks: dict[str, TaskID] = {}

    def stage(self, what: str, fraction: float) -> None:
        self._show(what, what, fraction)

    def whole(self, what: str, fraction: float) -> None:
        self._show("", what, fraction)

    def _show(self, key: str, what: str, fraction: float) -> None:
        from rich.markup import escape

        text = escape(printable(what))
        if key not in self.tasks:
            self.tasks[key] = self.bar.add_task(text, total=None)  # a bar that only moves, until a fraction tells something
        if key != self.shown and self.shown in self.tasks:
            self.bar.update(self.tasks[self.shown], visible=False)
        self.shown = key
        total = 1.0 if fraction >= TELLING else None
        self.bar.update(self.tasks[key], description=text, total=total, completed=fraction, visible=True)


@contextlib.contextmanager
def _display(quiet: bool) -> Iterator[Display]:
    """What is shown, also of what takes a while deep inside."""
    with contextlib.ExitStack() as stack:
        shown: Display = Nothing() if quiet else Lines()
        if not quiet and sys.stderr.isatty():
            shown = Bars(stack.enter_context(_timed_bar()))
        stack.enter_context(hearing(shown.stage))
        yield shown


@contextlib.contextmanager
def stages(quiet: bool) -> Iterator[SayStage]:
    """What is running, how far it is and how long it takes still."""
    with _display(quiet) as shown:
        yield shown.stage


@contextlib.contextmanager
def whole(quiet: bool) -> Iterator[SayStage]:
    """What is running, how far all of it is and how long that takes still."""
    with _display(quiet) as shown:
        yield shown.whole


@contextlib.contextmanager
def training_steps(quiet: bool) -> Iterator[SayStage]:
    """One bar for all steps of a training, on stderr, whose text is the last step's; where there is no terminal a line now and then."""
    if quiet:
        yield lambda what, fraction: None
        return
    if not sys.stderr.isatty():
        began, last, said = time.monotonic(), 0.0, ""

        def line(what: str, fraction: float) -> None:
            nonlocal last, said
            now = time.monotonic()
            if what != said and (not last or now - last >= LINE_EVERY or fraction == 0):
                last, said = now, what
                write(f"{what}{_left(now - began, fraction) if fraction > TELLING else ''}", file=sys.stderr)

        yield line
        return
    from rich.markup import escape

    with _timed_bar() as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, fraction: bar.update(task, description=escape(printable(what)), completed=fraction)


def _left(seconds: float, fraction: float) -> str:
    """How long it takes still, if a `fraction` of it took so many seconds."""
    return f", about {duration(seconds * (1 - fraction) / fraction)} left"

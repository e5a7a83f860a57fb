"""How far something is: a bar on a terminal and in a notebook, which goes when all is done, and lines in a pipe; nothing where it is to be
quiet. On stderr, but for the notebook's."""

from __future__ import annotations

import contextlib
import html
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import printable
from ..hearing import HEARS, Hears, hearing, unheard
from .show import duration, write

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

LINE_EVERY = 30.0  # seconds between two lines where there is no terminal
SHOWN_EVERY = 0.2  # seconds between two states of a notebook's bar
TELLING = 0.02  # the fraction that has to be seen done before anybody knows how long the rest takes


@contextlib.contextmanager
def progress(quiet: bool = False) -> Iterator[None]:
    """Shows how far the calls in here are, and how long they take still: `with yarn_convert.progress(): yarn_convert.validate(…)`. Without
    it the library prints nothing. `quiet`: nor does the Hub's client, which else has bars of its own. In one that shows already, another
    changes nothing. Calls in threads are heard where the thread has this context (`asyncio.to_thread`, `contextvars.copy_context`)."""
    with contextlib.ExitStack() as stack:
        if HEARS.get() is None:
            stack.enter_context(hearing(unheard if quiet or sys.stderr is None else _shown(stack)))
        yield


def _shown(stack: contextlib.ExitStack) -> Hears:
    """Where this process shows what it does."""
    if sys.stderr.isatty():
        return Bars(stack.enter_context(_timed_bar()))
    ipython = sys.modules.get("IPython")
    if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):
        return Told(SHOWN_EVERY, stack.enter_context(contextlib.closing(Cell(ipython.display.display))))
    return Told(LINE_EVERY, lambda line, fraction: write(line, file=sys.stderr) if line else None)


def _timed_bar() -> Bar:
    """Bars on stderr with the time that went, the time that is left by the speed of all of it, and a text, cut where there is no room; they
    go when all is done. What is printed meanwhile stands above them, if it goes to the terminal at all."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    text = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    return Progress(
        BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn(), text, console=Console(stderr=True), transient=True, expand=True,
        speed_estimate_period=86400, redirect_stdout=bool(sys.stdout and sys.stdout.isatty()),
    )  # fmt: skip


class Seen(NamedTuple):
    """Of what goes on: what was said of it, and since when which fraction of it is done. That is the first which is any: what it takes
    before, as a model that is loaded, tells nothing of the rest."""

    said: str
    since: float
    first: float

    def so_far(self, alone: bool, now: float, fraction: float) -> str:
        """The fraction, and how long it takes still by the speed since the first; "" where that tells nothing. `alone`: not of a whole
        call."""
        if not self.said or fraction < TELLING:
            return ""
        done = fraction - self.first
        left = f", about {duration((now - self.since) * (1 - fraction) / done)} left" if done >= TELLING and fraction < 1 else ""
        return f": {fraction:.0%}{'' if alone else ' of all'}{left}"


class Told:
    """A line of what goes on, with a fraction of it, whenever something new begins and every so many seconds; "" where a call is over."""

    def __init__(self, every: float, show: Callable[[str, float], None]) -> None:
        self.every, self.show, self.last = every, show, 0.0
        self.running: dict[object, Seen] = {}  # what is beside calls until one is over
        self.lock = threading.Lock()

    def __call__(self, call: object, what: str, fraction: float, more: str) -> None:
        with self.lock:
            if not what:
                self.running = {k: v for k, v in self.running.items() if k is not call and not isinstance(k, str)}
                return self.show("", 0.0)
            now = time.monotonic()
            seen = self.running.get(call, Seen("", now, 0.0))
            if fraction and not seen.first:
                seen = seen._replace(since=now, first=fraction)
            self.running[call] = seen._replace(said=what)
            if what == seen.said and now - self.last < self.every:
                return None
            self.last = now
            return self.show(printable(more or what) + seen.so_far(call is what, now, fraction), fraction)


class Cell:
    """A bar in the output of a notebook's cell. Not rich's: what is printed while that one is drawn disappears, and the notebook keeps
    "Output()" of it."""

    def __init__(self, display: Callable[..., Any]) -> None:
        self.display, self.handle = display, None

    def __call__(self, line: str, fraction: float) -> None:
        value = f' value="{fraction:.3f}"' if fraction >= TELLING else ""  # a bar that only moves, until a fraction tells something
        shown = {"text/plain": line, "text/html": f"<progress{value}></progress> {html.escape(line)}" if line else ""}
        if self.handle is not None:
            self.handle.update(shown, raw=True)
        elif line:
            self.handle = self.display(shown, raw=True, display_id=True)

    def close(self) -> None:
        self("", 0.0)


class Bars:
    """One bar at a time, that of what was said last."""

    def __init__(self, bar: Bar) -> None:
        self.bar, self.lock = bar, threading.Lock()
        self.tasks: dict[object, TaskID] = {}  # what is beside calls until one is over

    def __call__(self, call: object, what: str, fraction: float, more: str) -> None:
        from rich.markup import escape

        with self.lock:
            if not what:
                for key in [key for key in self.tasks if key is call or isinstance(key, str)]:
                    self.bar.remove_task(self.tasks.pop(key))
                return
            for key, task in self.tasks.items():
                self.bar.update(task, visible=key == call)
            text = escape(printable(more or what))
            if call not in self.tasks:
                self.tasks[call] = self.bar.add_task(text, total=None)
            total = 1.0 if fraction >= TELLING else None  # a bar that only moves, until a fraction tells something
            self.bar.update(self.tasks[call], description=text, total=total, completed=fraction)

"""Who hears how far something is: the callers of `yarn_convert.progress()`, and nobody else. A call says how far all of it is (`saying`);
what takes a while deep inside, as a download, the headers of many shards, a runtime that starts, is told beside it (`tell`)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

Hears = Callable[[object, str, float, str], None]
"""(which call goes on, what of it is running, the fraction of it that is done, the same in numbers that change, or ""), from any thread.
What is told beside calls is its own. "" is running where a call is over."""
SayStage = Callable[[str, float], None]  # (what is running, fraction of all that is done)
HEARS: ContextVar[Hears | None] = ContextVar("HEARS", default=None)


class SayMore(Protocol):
    """A `SayStage` that is also told what is running in numbers that change."""

    def __call__(self, what: str, fraction: float, more: str = "", /) -> None: ...


@contextlib.contextmanager
def hearing(hears: Hears) -> Iterator[None]:
    """In here `hears` is told, and nobody else."""
    token = HEARS.set(hears)
    try:
        yield
    finally:
        HEARS.reset(token)


def unheard(call: object, what: str, fraction: float, more: str) -> None:
    """Hears all and shows nothing."""


def tell(what: str, fraction: float = 0.0) -> None:
    """Let whoever hears it know what is running."""
    if hears := HEARS.get():
        hears(what, what, fraction, "")


@contextlib.contextmanager
def saying() -> Iterator[SayMore]:
    """In here a call says how far it is, from any thread, to whoever hears it where the call began."""
    hears, call = HEARS.get() or unheard, object()
    try:
        yield lambda what, fraction, more="": hears(call, what, fraction, more)
    finally:
        hears(call, "", 1.0, "")


def heard(function: Callable[Concatenate[SayMore, P], R]) -> Callable[P, R]:
    """Gives a function, before all else, what it says with how far it is."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with saying() as say:
            return function(say, *args, **kwargs)

    return call


def counted(say: SayStage, what: str, total: int) -> Callable[[int], None]:
    """Makes fractions of the bytes that are done, whichever thread did them."""
    lock, done = threading.Lock(), 0

    def count(n: int) -> None:
        nonlocal done
        with lock:
            done += n
            say(what, min(1.0, done / max(1, total)))

    return count


def shares(say: SayStage, weights: Sequence[float]) -> list[SayStage]:
    """How far each of several parts is, as how far all are, which take such times one after the other."""

    def share(before: float, own: float) -> SayStage:
        return lambda what, fraction: say(what, (before + own * fraction) / total)

    total = sum(weights) or 1.0
    return [share(sum(weights[:i]), own) for i, own in enumerate(weights)]


@contextlib.contextmanager
def bars(what: str, size: int = 0) -> Iterator[Any]:
    """The class of the bars that the Hub's client makes for a download of `size` bytes: its own where nobody hears. Else
    one that shows nothing and tells the fraction, of the bytes where the client counts them (huggingface_hub 1.1 and later), or of the
    items; and the client makes no others."""
    from huggingface_hub.utils.tqdm import tqdm

    hears = HEARS.get()
    with without_bars():
        yield tqdm if hears is None else _telling(hears, what, size)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """In here the Hub's client makes no bars of its own, if somebody hears."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    on = HEARS.get() is not None and not are_progress_bars_disabled()
    if on:
        disable_progress_bars()
    try:
        yield
    finally:
        if on:
            enable_progress_bars()


def _telling(hears: Hears, what: str, size: int) -> Any:
    from huggingface_hub.utils.tqdm import tqdm

    lock, units, furthest = threading.Lock(), set[str](), 0.0

    class Telling(tqdm):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **{**named, "disable": True})  # type: ignore[no-untyped-call]
            self.of, self.so_far = named.get("unit", ""), named.get("initial") or 0
            units.add(self.of)

        def __iter__(self) -> Iterator[Any]:
            for item in super().__iter__():
                yield item
                self.update()

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            with lock:  # several bars count the same bytes: as they come, and as they are written
                self.so_far += n or 0
                if self.of == "B" or "B" not in units:
                    furthest = max(furthest, self.so_far / max(1, size if self.of == "B" else self.total or 1))
                    hears(what, what, min(1.0, furthest), "")

    return Telling

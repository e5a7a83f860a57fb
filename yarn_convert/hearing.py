"""Who hears of what takes a while deep inside: a download, the headers of many shards, a runtime that starts. What a function does
itself it says to a callback that it is given; these are begun in too many places for that."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

Hears = Callable[[str, float], None]  # (what is running, fraction done), from any thread
HEARS: ContextVar[Hears | None] = ContextVar("HEARS", default=None)


@contextlib.contextmanager
def hearing(hears: Hears) -> Iterator[None]:
    """In here `hears` is told, and nobody else."""
    token = HEARS.set(hears)
    try:
        yield
    finally:
        HEARS.reset(token)


def tell(what: str, fraction: float = 0.0) -> None:
    """Let whoever hears it know what is running."""
    if hears := HEARS.get():
        hears(what, fraction)


@contextlib.contextmanager
def bars(what: str, size: int = 0) -> Iterator[Any]:
    """The class of the bars that the Hub's client makes for a download of `size` bytes: its own where nobody hears, as in a notebook. Else
    one that shows nothing and tells the fraction, of the bytes where the client counts them (huggingface_hub 1.1 and later), or of the
    items; and the client makes no others."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, tqdm

    if (hears := HEARS.get()) is None:
        yield tqdm
        return
    off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield _telling(hears, what, size)
    finally:
        if not off:
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
                    hears(what, min(1.0, furthest))

    return Telling

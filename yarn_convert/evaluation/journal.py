"""What has been computed already, so that the same command goes on where it was interrupted.

One line of JSON per finished item, appended and flushed: a key, the SHA-256 of everything that the numbers follow from (weight files
by size and time of change, config.json, recipe, token ids, type, runtime, our version), and the numbers. So nothing that was computed
of another input is ever taken for this one's, and a line that was cut short counts for nothing. The file goes when the result has been
written.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ..errors import OutputError

BEGINNING = re.compile(rb'\n*(\[("[0-9a-f]{0,64}(".*)?)?)?', re.DOTALL)  # of a journal, however short it was cut


class ResultJournal:
    """The journal at `path`; with None it remembers for this run alone. Raises OutputError for a place that cannot be written, or
    for a file that is something else: a journal goes in the end."""

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.found = path, 0
        self.file: TextIO | None = None
        self.known: dict[str, Any] = {}
        if path is None:
            return
        try:
            if path.exists():
                with path.open("rb") as f:
                    if not BEGINNING.fullmatch(f.read(80)):
                        raise OutputError(f"{path} is no journal of an evaluation", "--journal names a file of its own")
                for line in path.read_text("utf-8", "replace").splitlines():
                    self._take(line)
            self.file = path.open("a", encoding="utf-8")
            self.file.write("\n")  # ends a line that was cut short
        except OSError as e:
            raise OutputError(f"the journal {path} cannot be written: {e.strerror}", "--journal names another place") from None

    def _take(self, line: str) -> None:
        try:
            key, value = json.loads(line)
        except (ValueError, TypeError):
            return
        if isinstance(key, str):
            self.known[key] = value

    def get(self, key: str) -> Any:
        """What was put under `key`, None if nothing was."""
        value = self.known.get(key)
        self.found += value is not None
        return value

    def put(self, key: str, value: Any) -> None:
        self.known[key] = value
        if self.file is not None:
            try:
                self.file.write(json.dumps([key, value]) + "\n")
                self.file.flush()
            except OSError as e:
                raise OutputError(f"could not write {self.path}: {e.strerror}", "free some space; the same command goes on") from None

    def abandon(self) -> None:
        """Close; a journal in which nothing is goes at once."""
        if self.file is not None and self.path is not None:
            self.file.close()
            if not self.known:
                self.path.unlink(missing_ok=True)

    def remove(self) -> None:
        """All is done and written: nothing is left to go on with."""
        if self.file is not None and self.path is not None:
            self.file.close()
            self.file = None
            self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def journal_of(out: Path | None, wish: Path | None) -> Iterator[ResultJournal]:
    """The journal of a command: at `wish`, else beside what it writes as .NAME.partial, else none."""
    journal = ResultJournal(wish or (out.with_name(f".{out.name}.partial") if out else None))
    try:
        yield journal
    except BaseException:
        journal.abandon()
        raise

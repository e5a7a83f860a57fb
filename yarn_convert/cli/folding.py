"""Lines for people, as wide as their terminal is: prose is broken at blanks, and a command so that it can still be copied.

Where there is no terminal a line stays whole, for programs read there, by lines.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

LEAST, WIDEST = 40, 120  # columns: no terminal has fewer, and a longer line is not easily read
HANG = 4  # blanks before what goes on, where nothing else says how many
GLUE = "\x1f"  # a blank at which no line is broken; `errors.printable` lets none of it in
COMMANDS = "convert|finetune|validate|overrides|upload|card|runtimes|inspect|repair|recipe|methods|docs|evaluate"
OTHERS = "pip install|llama-cli|llama-server|lms import|transformers chat|vllm serve|torchrun|printf|ollama create"
_QUOTED = r"""'[^']*'|"[^"]*\""""
_WORD = rf"""(?:{_QUOTED}|[^\s'"(),;:]|[,;:](?=\S))+"""
_OURS = rf"""yarn-convert (?=(?:{COMMANDS})\b|(?:{_QUOTED}|[^\s'"])+ --)"""
COMMAND = re.compile(rf"(?<![\w-])(?:{_OURS}|(?:{OTHERS}) ){_WORD}(?: {_WORD})*")  # in prose, which a comma or the like ends
SHELL_WORD = re.compile(rf"""(?:{_QUOTED}|\\.|[^\s'"])+""")
PYTHON_PART = re.compile(r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,'"]|,(?! ))+(?:, )?""")  # up to a comma that is in no text
LABEL = re.compile(r" *\S+(?: \S+)*? {2,}|[a-z]{9} (?=\S)")  # a word or two and a gap, or a word as long as a plan's label may be


class Whole(str):
    """A line that stays as it is: a part of a command, or of a file."""

    __slots__ = ()


def room(stream: TextIO | None) -> int | None:
    """The columns that COLUMNS or a terminal says this has, `LEAST` at least; None where neither does."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said):
        return max(LEAST, int(said))
    if not (stream and stream.isatty()):
        return None
    try:
        return max(LEAST, os.get_terminal_size(stream.fileno()).columns or 80)
    except (OSError, ValueError):  # a terminal that does not say, and no descriptor at all
        return 80


def fold(lines: Iterable[str], columns: int | None) -> Iterator[str]:
    """The lines in so many columns; those that go on stand below the text behind a label, or are indented."""
    for line in lines:
        if columns is None or isinstance(line, Whole) or len(line) <= min(columns, WIDEST):
            yield line
        else:
            yield from _folded(line, min(columns, WIDEST))


def _folded(line: str, columns: int) -> list[str]:
    """Of one line. Paths and other long words stay whole, whatever room there is."""
    hang, text, at, out = min(_hang(line), columns // 2), line, 0, list[str]()
    while found := COMMAND.search(text, at):
        begin, end = found.span()
        said, last, rest = text[:begin], found[0], text[end:]
        if hang + len(last) > columns:
            out += _prose(said, columns, hang) if begin > hang and said.strip() else []
            *before, last = shell(found[0], columns, " " * hang if out else said, hang + HANG)
            out, said = [*out, *before], ""
        said += last.replace(" ", GLUE)
        text, at = said + rest, len(said)
    out += _prose(text, columns, hang)
    return [part.replace(GLUE, " ") for part in out]


def _hang(line: str) -> int:
    """How many blanks what goes on has before it."""
    indented = len(line) - len(line.lstrip())
    if indented >= 8:
        return indented
    label = LABEL.match(line, 0, 21)
    return label.end() if label else indented + (2 if indented else HANG)


def _prose(line: str, columns: int, hang: int) -> list[str]:
    """Broken at blanks; a label stays in front of the first word."""
    text = line[hang:] if line[hang - 1 : hang] == " " else line.lstrip(" ")
    start, further = line[: len(line) - len(text)], " " * hang
    return textwrap.wrap(
        text, columns, initial_indent=start, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    ) or [start.rstrip()]  # fmt: skip


# -- commands ---------------------------------------------------------------------------------------------------------


def command(text: str, columns: int | None, language: str) -> list[Whole]:
    """A command on lines of its own, to copy: those of "shell" end in a backslash, those of "python" in a comma."""
    if columns is None or len(text) <= min(columns, WIDEST):
        return [Whole(text)]
    columns = min(columns, WIDEST)
    if language == "shell":
        return [Whole(line) for line in shell(text, columns)]
    parts = PYTHON_PART.findall(text)
    return [Whole(line) for line in (_packed(parts, columns, "", " " * HANG) if "".join(parts) == text else [text])]


def shell(text: str, columns: int, start: str = "", hang: int = HANG) -> list[str]:
    """A shell's command behind `start`, broken between its words, and where there is room before options alone."""
    words = SHELL_WORD.findall(text)
    if " ".join(words) != text:  # no text is lost for its form
        return [start + text]
    units: list[list[str]] = [[]]
    for word in words:
        if word.startswith("-") and units[-1]:
            units.append([])
        units[-1].append(word)
    parts = []
    for unit in units:
        fits = len(" ".join(unit)) + hang + 2 <= columns
        parts += [" ".join(unit) + " "] if fits else [f"{word} " for word in unit]
    lines = _packed(parts, columns - 2, start, " " * hang)
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _packed(parts: Sequence[str], columns: int, start: str, further: str) -> list[str]:
    """As many of the parts on a line as it has room for."""
    lines, line, filled = list[str](), start, False
    for part in parts:
        if filled and len(line) + len(part.rstrip()) > columns:
            lines, line = [*lines, line.rstrip()], further
        line, filled = line + part, True
    return [*lines, line.rstrip()]

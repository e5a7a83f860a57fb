"""Writes docs/cli.md from the command line's own help."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from yarn_convert.cli import main
from yarn_convert.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"


def commands(group: Any, words: list[str]) -> Iterator[list[str]]:
    """The words of a group of commands and of all that are in it, in the order of --help."""
    yield words
    for name, inner in getattr(group, "commands", {}).items():
        yield from commands(inner, [*words, name])


def help_of(words: list[str]) -> str:
    """What `yarn-convert … --help` prints into a file."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return said.getvalue()


def page() -> str:
    parts = ["# The command line\n\nMade from `--help`; do not edit by hand.\n"]
    for words in commands(typer.main.get_command(app), []):
        parts.append(f"## {' '.join(['yarn-convert', *words])}\n\n```\n{help_of(words).strip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")

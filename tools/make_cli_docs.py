"""Writes docs/cli.md from the command line's own help."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from yarn_convert.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"


def commands(group: Any, words: list[str]) -> Iterator[list[str]]:
    """The words of a group of commands and of all that are in it, in the order of --help."""
    yield words
    for name, inner in getattr(group, "commands", {}).items():
        yield from commands(inner, [*words, name])


def page() -> str:
    env = os.environ | {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    parts = ["# The command line\n\nMade from `--help`; do not edit by hand.\n"]
    for words in commands(typer.main.get_command(app), []):
        command = [sys.executable, "-m", "yarn_convert", *words, "--help"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
        parts.append(f"## {' '.join(['yarn-convert', *words])}\n\n```\n{text.strip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")

"""How --help looks: options in groups, the common ones first, examples below, colour where the terminal has it."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from .folding import shell

SETTINGS = {"help_option_names": ["-h", "--help"]}
COMMON = "Options"
COLUMNS = 74  # of an example: Typer's 78, less what it stands in from the left
KEPT = "\x1f"  # a hyphen at which no line is broken: org/name-GGUF and yarn-convert stay whole


def coloured(stream: TextIO | None) -> bool:
    """Whether colours are wanted where this goes: a terminal that has them, and no NO_COLOR (no-color.org)."""
    return bool(stream and stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")


def styled(text: str, stream: TextIO | None, **style: Any) -> str:
    """The text in a style of `typer.style`, or as it is."""
    return typer.style(text, **style) if coloured(stream) else text


class Command(TyperCommand):
    """A command whose options stand under the headings of their groups (Typer's `rich_help_panel`), which Typer itself shows in
    boxes only, where a column of 80 leaves no room for the names."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        formatter.buffer = [part.replace(KEPT, "-") for part in formatter.buffer]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], COMMON: []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                argument = param.param_type_name == "argument"
                group = "Arguments" if argument else getattr(param, "rich_help_panel", None) or COMMON
                groups.setdefault(group, []).append((styled(record[0], sys.stdout, fg="cyan"), re.sub(r"(?<=\S)-(?=\S)", KEPT, record[1])))
        for name, records in groups.items():
            if records:
                with formatter.section(styled(name, sys.stdout, bold=True)):
                    formatter.write_dl(records)


class Commands(TyperGroup):
    """The root, of which a model alone means convert: to a shell that completes, too."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or (self.commands["convert"] if ctx.resilient_parsing else None)


def examples(*lines: str) -> str:
    """An epilog of commands, each on a line of its own, or on several that can be copied."""
    return "\n".join(["\b", "Examples:", *(f"  {part}" for line in lines for part in shell(line, COLUMNS))])

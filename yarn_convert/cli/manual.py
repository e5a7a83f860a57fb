"""The command `docs`: the pages of the documentation, of which a wheel has its own copies."""

from __future__ import annotations

import io
import os
import re
import sys
from dataclasses import dataclass, field
from typing import Annotated

from ..asking import Help
from ..errors import no_such
from ..formats.files import DOCS, pages
from .commands import JsonAlone
from .folding import WIDEST, room
from .help import coloured
from .show import answer, listing_lines

BESIDE = re.compile(r"!?\[([^\]]*)\]\((?![a-z]+:)[^)]*\)")  # a link to another file, which leads nowhere on a terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class DocsCommand:
    page: Annotated[str | None, Help("A page; without one all are listed.", argument=True)] = None
    path: Annotated[bool, Help("Print where it lies on this machine instead.")] = False
    json: JsonAlone = field(default_factory=JsonAlone)


def docs(asked: DocsCommand) -> None:
    """Show a page of the documentation: of this version, and without a network. In a pipe it is Markdown."""
    there, as_json = pages(), asked.json.as_json
    if asked.page is None:
        titles = {name: path.read_text("utf-8").partition("\n")[0].removeprefix("# ") for name, path in there.items()}
        answer({"folder": str(DOCS), "pages": titles}, as_json, *([DOCS] if asked.path else listing_lines(titles)))
        return
    name = asked.page.lower().rpartition("/")[2].removesuffix(".md")
    if name not in there:
        raise no_such("page", asked.page, there)
    text = there[name].read_text("utf-8")
    if as_json or asked.path:
        answer({"page": name, "path": str(there[name]), "text": text}, as_json, there[name])
    elif sys.stdout.isatty():
        import pydoc

        os.environ.setdefault("LESS", "FRX")  # as git has it: colours, and no pager for what one screen holds
        pydoc.pager(_rendered(text))
    else:
        print(text, end="")


def _rendered(text: str) -> str:
    """Markdown as it looks in this terminal."""
    from rich.console import Console
    from rich.markdown import Markdown

    out = io.StringIO()
    columns = min(WIDEST, room(sys.stdout) or WIDEST)
    Console(file=out, width=columns, force_terminal=coloured(sys.stdout)).print(Markdown(BESIDE.sub(r"\1", text), hyperlinks=False))
    return out.getvalue()

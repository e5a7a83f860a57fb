"""Options that several commands have, and how their values are read."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from .files import FOLLOW

Model = Annotated[
    str,
    typer.Argument(
        help="An alias (see 'methods'), a Hub id, a folder in HF layout, or a .gguf file (of a split one the first part).",
        show_default=False,
    ),
]
Revision = Annotated[Optional[str], typer.Option(help="Branch, tag or commit of a model on the Hub.", show_default=False)]
Method = Annotated[str, typer.Option(help="One of 'yarn-convert methods'.")]
Scale = Annotated[Optional[float], typer.Option(help="s = L'/L, on the original pretraining context.", show_default=False)]


def tokens(text: str) -> int:
    """A number of tokens as people write it: 32768, 32k (of 1,024 each) or 1m. ValueError for anything else."""
    units = {"k": 1 << 10, "m": 1 << 20}
    try:
        return int(float(text[:-1]) * units[text[-1].lower()]) if text[-1:].lower() in units else int(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no number of tokens, as 32768 or 32k") from None


Context = Annotated[
    Optional[int],
    typer.Option(help="L', the extended context in tokens, as 32768 or 32k, instead of --scale.", parser=tokens, metavar="<tokens>"),
]
Original = Annotated[Optional[int], typer.Option(help="L, where the model does not say it.", parser=tokens, metavar="<tokens>")]


def _follow(value: bool) -> bool:
    """Lets all that this command opens be a link to elsewhere; `cli.main` runs it in a context of its own."""
    if value:
        FOLLOW.set(True)
    return value


FollowLinks = Annotated[
    bool,
    typer.Option(
        "--follow-links", help="Read links that lead out of a model's folder: they are yours, and so is what they name.", callback=_follow
    ),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only the result: no plan, no progress, no hints.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

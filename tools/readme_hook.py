"""README.md as the page of a package shows it, where none of its neighbours is: a metadata hook of hatchling.

$YARN_CONVERT_URL is the address under which the files of this repository are shown, as https://github.com/ORG/NAME/blob/main: links lead
there. Without it a link is its words, and a picture what it says.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

try:
    from hatchling.metadata.plugin.interface import MetadataHookInterface
except ImportError:  # where nothing is built
    MetadataHookInterface = object

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")  # to a file beside this one


def as_description(text: str, url: str = "") -> str:
    """Markdown with its relative links as they are under `url`."""

    def moved(link: re.Match[str]) -> str:
        picture, words, path = link.groups()
        return f"{picture}[{words}]({url.rstrip('/')}/{path}{'?raw=true' if picture else ''})" if url else words

    return LINK.sub(moved, text)


class ReadmeHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text("utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": as_description(text, os.environ.get("YARN_CONVERT_URL", ""))}

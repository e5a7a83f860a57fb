"""README.md and its neighbours as pages of the site that `make docs` makes of docs/: a hook of mkdocs.

Their links are written for the repository. On the site these files lie among those of docs/, under the names of `PAGES`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/gpu/README.md": "gpu.md",
}
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#\s])")


def moved(link: str) -> str:
    """Where a relative link, of docs/ or beside it, leads on the site."""
    name = link.removeprefix("../").removeprefix("docs/")
    return PAGES.get(name, name)


def as_page(text: str) -> str:
    """Markdown of this repository with its links as they are on the site."""
    return LINK.sub(lambda found: found[0] if ":" in found[0] else moved(found[0]), text)


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return as_page(markdown)

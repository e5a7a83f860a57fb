"""Pages and plots that need nothing else: what the reports of `validate` and `evaluate` share."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import REPORT, OutputError, need
from ..formats.files import TEMPLATES
from ..targets.output import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's own text colour, so that plots are readable on light and on dark
BLUE, RED = "#0072b2", "#d55e00"  # Okabe and Ito's colours, which colour-blind people tell apart
STYLE = {
    "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.spines.right": False, "axes.spines.top": False,
    "font.size": 10, "legend.frameon": False, "lines.linewidth": 1.4, "lines.markersize": 5,
    "savefig.transparent": True, "svg.fonttype": "none", "svg.hashsalt": "yarn-convert", "text.color": INK,
    "text.parse_math": False, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip


def check_report(path: Path, force: bool) -> None:
    """Raise before a long run what would stop its report: OutputError for the place, UsageError for missing packages."""
    packages()
    check_place(path, force)


def check_place(path: Path, force: bool) -> None:
    """Raise OutputError for a place where no file can be written."""
    if path.is_dir() or (path.exists() and not force):
        raise OutputError(f"{path} exists", "--force replaces a file, or give another name")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written", "give a folder that exists and is yours")


def packages() -> tuple[Any, Any]:
    need("validate", "a report or plot", *REPORT)
    import jinja2
    import matplotlib.style

    return jinja2, matplotlib


def write_report(path: Path, content: str | bytes) -> None:
    """Write a page or plot, whole or not at all."""
    try:
        replace_file(path, content.encode() if isinstance(content, str) else content)
    except OSError as e:
        raise OutputError(f"could not write {path}: {e.strerror}", "free some space, or give another place") from None


def page(template: str, filters: Mapping[str, Any] | None = None, **values: Any) -> str:
    """A template, filled; `filters` are its own. UsageError without the packages."""
    jinja2, _ = packages()
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": short_number, **(filters or {})}
    text = str(environment.get_template(template).render(**values))
    return text.encode("utf-8", "replace").decode()  # a lone surrogate in a name could not be written


def short_number(value: Any, form: str = ",.3g") -> str:
    """A value for people, a float in `form`; a dash for what is not there."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return "–" if value is None else str(value) or "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return "NaN" if math.isnan(value) else f"{value:{form}}"


def svg(figure: Figure, name: str, label: str) -> Any:
    """The figure as markup for a page that holds others too: every id begins with `name`."""
    from markupsafe import Markup, escape

    file = io.StringIO()
    figure.savefig(file, format="svg")
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>| xmlns(:\w+)?=\"[^\"]*\"", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text.replace("xlink:href", "href"))
    return Markup(text.replace(INK, "currentColor").replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))

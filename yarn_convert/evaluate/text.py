"""The results of the measures as lines for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Result = Mapping[str, Any]


def lines(result: Result) -> list[str]:
    """A result of any measure."""
    return WRITERS[result["measure"]](result)


def figure(x: float | None, form: str = ".4g") -> str:
    if x is None or math.isnan(x):
        return "–"
    return format(x, form) if abs(x) < 1e6 else f"{x:.2g}"


def number(n: int) -> str:
    return f"{n:,}"


def model_lines(result: Result) -> list[str]:
    """Each model with its documents, and the time it took."""
    out = []
    for m in result["models"]:
        many = f"{len(m['documents'])} documents" if len(m["documents"]) != 1 else m["documents"][0]["name"]
        left = f"; {m['left_out']} were too short" if m["left_out"] else ""
        out.append(f"{m['model']}: {many}{left}{', BOS before each window' if m['bos'] else ''}")
        if m["tokens_per_second"]:
            out.append(f"  {m['runtime']}: {m['tokens']:,} tokens in {m['seconds']:,.0f} s, {m['tokens_per_second']:,.0f} tokens/s")
    return out


def _perplexity(result: Result) -> list[str]:
    sliding = (
        f"sliding by {result['stride']} over {result['tokens']:,} tokens" if result["tokens"] else "documents truncated at each window"
    )
    out = [*model_lines(result), f"perplexity ± standard error, by context window; {sliding}"]
    several = len(result["models"]) > 1
    labels = [f"{row['model']} {row['label']}" if several and row["label"] != row["model"] else row["label"] for row in result["rows"]]
    width = max(len("method"), *map(len, labels))
    out.append(f"{'method':<{width}}  " + "  ".join(f"{number(w):>15}" for w in result["windows"]))
    for label, row in zip(labels, result["rows"], strict=True):
        cells = [f"{figure(p['perplexity']):>8} ± {figure(p['standard_error'], '.2g'):<4}" for p in row["points"]]
        out.append(f"{label:<{width}}  " + "  ".join(f"{c:>15}" for c in cells))
    return out


WRITERS: dict[str, Callable[[Result], list[str]]] = {"perplexity": _perplexity}

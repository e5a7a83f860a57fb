"""Tables of a result as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def columns(head: Sequence[str], body: Sequence[Sequence[str]], room: int | None = None, start: str = "", left: int = 1) -> list[str]:
    """A table's lines, behind `start`: its first `left` columns stand to the left, the others to the right. Those for which a line of
    `room` columns has no place follow below, beside the first ones once more."""
    rows = [head, *body]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = list[str]()
    for block in _blocks(widths, left, None if room is None else room - len(start)):
        lines += [""] if lines else []
        for row in rows:
            cells = (f"{row[i]:<{widths[i]}}" if i < left else f"{row[i]:>{widths[i]}}" for i in (*range(left), *block))
            lines.append((start + "  ".join(cells)).rstrip())
    return lines


def _blocks(widths: Sequence[int], left: int, room: int | None) -> Iterator[list[int]]:
    """Which of the other columns stand beside each other: as many as fit, and one at least."""
    first = sum(width + 2 for width in widths[:left])
    block, wide = list[int](), first
    for i in range(left, len(widths)):
        if block and room is not None and wide + widths[i] > room:
            yield block
            block, wide = [], first
        block, wide = [*block, i], wide + widths[i] + 2
    yield block

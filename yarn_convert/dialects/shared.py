"""What both spellings share: numbers of headers, and what a recipe is in words that are not its own."""

from __future__ import annotations

import sys
from typing import Any

from ..errors import FormatError, Inexpressible, UsageError
from ..formats.gguf_file import f32
from ..rope import Rope, Table, ntk_theta, table

DEFAULT_THETA = 10000.0


def positive_int(value: Any, key: str) -> int:
    """A count or length from a header; FormatError for anything else, or above what 32 bits hold, which no reader takes."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise FormatError(f"{key} is {value!r}, not a positive integer below 2^31", "fix the model's config.json or GGUF key")
    return value


def number(value: Any, key: str) -> float:
    """A finite number from a header; FormatError if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise FormatError(f"{key} is {value!r}, not a finite number", "fix the model's config.json or GGUF key")
    return float(value)


def usable(rope: Rope, where: str) -> Rope:
    """`rope` itself; FormatError when the values that `where` gave it make no table."""
    try:
        table(rope, 1)  # longrope has another list for short texts
        table(rope)
        table(rope, 4 * rope.original_context)  # dynamic grows
    except UsageError as e:
        raise FormatError(f"{where} gives no usable RoPE: {e.message}", "fix it there, or start from a sound model") from None
    return rope


def spelled_as(rope: Rope) -> str:
    """The method in whose words a file has this one."""
    return rope.row.spelled_as or rope.method


def plain_theta(rope: Rope) -> float:
    """The θ of a file that has `rope` as metadata: abf says it; ntk-aware's is rounded to float32, as GGUF holds it."""
    if rope.method != "ntk-aware":
        return rope.number("theta", rope.theta)
    return f32(ntk_theta(rope.theta, rope.number("factor"), rope.rotary_dim))


def static_table(rope: Rope, target: str) -> Table:
    """The table of a static recipe; Inexpressible for one that changes with the length."""
    if not rope.row.static:
        raise Inexpressible(
            f"{target} cannot carry {rope.method}: its frequencies change with the length of the text",
            "extend it with a static method, for example --method yarn",
        )
    return table(rope)


def no_word(rope: Rope, target: str, way_out: str) -> Inexpressible:
    what = f"{rope.method} over {rope.inner.method}" if rope.inner else rope.method
    params = {k: f"{len(v)} numbers" if isinstance(v, tuple) else v for k, v in rope.params.items()}
    return Inexpressible(f"{target} has no word for {what} with {params}", way_out)

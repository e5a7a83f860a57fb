"""How the text of an option is read: each function raises ValueError or UsageError for what it cannot be."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError


def tokens(text: str) -> int:
    """A number of tokens as people write it: 32768, 32k (of 1,024 each) or 1m. ValueError for anything else."""
    units = {"k": 1 << 10, "m": 1 << 20}
    try:
        return int(float(text[:-1]) * units[text[-1].lower()]) if text[-1:].lower() in units else int(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no number of tokens, as 32768 or 32k") from None


def token_list(text: str) -> tuple[int, ...]:
    """Numbers of tokens with commas between. UsageError for anything else."""
    try:
        found = tuple(tokens(part.strip()) for part in text.split(","))
    except ValueError as e:
        raise UsageError(str(e), "2048,4096,8k") from None
    if min(found) < 2:
        raise UsageError(f"{min(found)} is no length of a text in tokens", "2048,4096,8k")
    return found


def number_list(text: str) -> tuple[float, ...]:
    """Numbers with commas between. UsageError for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{text!r} is no list of numbers", "1,1.1,1.2") from None


def seconds(text: str) -> float:
    """ "90s", "5m", "1h" or a plain number as seconds. UsageError for anything else."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    try:
        value = float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"--budget must be a time, not {text!r}", "--budget 90s, or 5m")
    return value


def methods(wishes: Sequence[str]) -> tuple[str, ...]:
    """Those of each wish, with commas between. UsageError where there is none."""
    found = tuple(m for wish in wishes for m in wish.split(",") if m.strip())
    if not found:
        raise UsageError("--method names no method", "--method none,yarn")
    return found


def part_list(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(part.strip() for part in text.split(","))


NAMED = "*"  # the last part of an output's path that is to have its default name there


def place(text: str) -> Path:
    """An output's path; of a folder to put it in, with a slash at its end, NAMED in it."""
    return Path(text, NAMED) if text.endswith(("/", os.sep)) else Path(text)


TOKENS = "<tokens>"

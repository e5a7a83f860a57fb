"""What a validation cannot prove, known before it runs anything: by the verdict's own rules, of runs that would all pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .study import PASSED
from .verdict import verdict_of


def foreseen(
    result: Mapping[str, Any], lengths: Mapping[str, int], names: Sequence[str], asked: Sequence[str], real: bool, twin: bool, named: bool
) -> list[str]:
    """Why the verdict will not be "passed", whatever the runtimes named compute; empty where it may be.

    `result` is what there is of one without `studies`; `lengths`: kind of run -> tokens of its text; the others are `verdict_of`'s.
    """
    studies = [_passing(kind, tokens, names) for kind, tokens in lengths.items()]
    found = verdict_of({**result, "studies": studies}, asked, real, twin, named)
    return [] if found["verdict"] == PASSED else [str(reason) for reason in found["reasons"]]


def _passing(kind: str, tokens: int, names: Sequence[str]) -> dict[str, Any]:
    """A study in which every runtime agrees with the reference over so many tokens, and every wrong recipe is told apart."""
    run = {"verdict": PASSED, "predicted": "", "as_predicted": True, "windows": [{"end": tokens}]}
    runs = [{"runtime": name, **run} for name in names]
    return {"kind": kind, "runtimes": runs, "wrong_recipes": [], "permuted": False, "text_loss": None, "guessing_loss": 0.0}

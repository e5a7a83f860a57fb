"""The first module that differs: the file's weights against its base's in the reference, and llama.cpp against the reference, module by
module; and what is wrong with each tensor that is not the base's, in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import runtimes
from ..checkpoint import Checkpoint
from ..compute.reference import Reference
from ..compute.states import States, distance, states_of
from ..hearing import SayStage
from ..runtimes.table import runtime_of
from .amplifying import shorter
from .counterparts import as_there, named_there
from .cuts import Cuts
from .judging import NOISE, tolerance_for
from .rounding import SHORTER, rounding, rounds
from .study import FAILED, Question

TOKENS = 256  # of the text that is traced
SAME = 1e-9  # NMSE of a module in the same arithmetic
MULTIPLIED = {"table", "multiplier"}  # layers of a fault that are the rotary module's


def traced(studies: Sequence[dict[str, Any]], cuts: Cuts, q: Question, ids: NDArray[np.int64], say: SayStage) -> dict[str, Any] | None:
    """Where what failed in `studies` begins, as JSON; None where nothing did."""
    failed = [r for s in studies for r in s["runtimes"] if r["verdict"] == FAILED]
    if not failed and not any(s.get("of_base", {}).get("verdict") == FAILED for s in studies):
        return None
    ids = ids[:TOKENS]
    table = q.right(len(ids))
    say("tracing the reference", 0.0)
    own, modules = states_of(Reference(cuts.own, q.device), table, ids), []
    if cuts.base:
        of_base = states_of(Reference(cuts.base, q.device), table, ids)
        noise = states_of(Reference(cuts.typed, q.device), table, ids) if cuts.typed else None
        modules.append({"of": "the file's weights", **_first(of_base, own, lambda name: SAME + _noise(of_base, noise, name))})
    for r in failed:
        if runtime_of(r["runtime"]).name == "llama.cpp":
            say("tracing llama.cpp", 0.5)
            modules.append({"of": r["runtime"], **in_llama_cpp(cuts.own, own, q, table, ids)})
        elif r["layer"] in MULTIPLIED:
            modules.append({"of": r["runtime"], "first": "rotary_emb", "nmse": None, "after": "", "why": r["why"]})
    modules = [m | {key: _numbered(m[key], cuts.layers) for key in ("first", "after")} for m in modules]
    return {"tokens": len(ids), "tensors": dict(cuts.different), "modules": modules}


def _numbered(name: str, layers: Sequence[int]) -> str:
    """A module's name with the number of its layer in the file."""
    return re.sub(r"(?<=layers\.)\d+|(?<=-)\d+(?=\)$)", lambda found: str(layers[int(found[0])]), name)


def _first(expected: States, found: States, allowed: Callable[[str], float]) -> dict[str, Any]:
    """The first module whose output is further from the expected than is allowed, the one before it; "" where there is none."""
    before = ""
    for name, state in expected.items():
        if name not in found or found[name].shape != state.shape:
            continue
        apart = distance(state, found[name])
        if apart > allowed(name):
            return {"first": name, "nmse": apart if np.isfinite(apart) else None, "after": before, "why": ""}
        before = name
    return {"first": "", "nmse": None, "after": before, "why": ""}


def _noise(expected: States, rounded: States | None, name: str) -> float:
    """What rounding makes of a module, times what is allowed of it."""
    return NOISE * distance(expected[name], rounded[name]) if rounded and name in rounded else 0.0


# -- llama.cpp --------------------------------------------------------------------------------------------------------


def in_llama_cpp(small: Checkpoint, own: States, q: Question, table: Any, ids: NDArray[np.int64]) -> dict[str, Any]:
    """The first of llama.cpp's tensors that is not what the file's own weights give in the reference."""
    names = named_there(small, own)
    try:
        theirs = runtimes.states(small.source.path, ids, sorted({*names.values()}), dict(q.told.get("llama.cpp", {})))
    except runtimes.Failed as e:
        return {"first": "", "nmse": None, "after": "", "why": e.message}
    kinds = rounds(small)
    reference = Reference(small, q.device)
    plain = as_there(small, states_of(reference, table, ids))
    with rounding(kinds, "" if kinds else SHORTER):
        rounded = as_there(small, states_of(reference, table if kinds else shorter(table), ids))
    limit = tolerance_for(gelu=small.gelu).nmse
    found = {name: theirs[n] for name, n in names.items() if n in theirs}
    expected = {name: state for name, state in as_there(small, own).items() if name in found}
    result = _first(expected, found, lambda name: limit + _noise(plain, rounded, name))
    return result | {key: f"{result[key]} ({names[result[key]]})" for key in ("first", "after") if result[key]}

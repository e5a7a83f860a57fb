"""The device matrix: the twin of a GGUF in every device that this llama.cpp has, in several types of weights and ways to attend, each
against the reference. As llama.cpp's own tests/test-llama-archs.cpp does it for its architectures; here with the RoPE of one file.

A device is CPU, BLAS, CUDA0, Metal, Vulkan0, …: what llama.cpp lists. What only helps the CPU, as BLAS, is there in every run of it; so for
the CPU alone tokens go through 16 at a time, which are too few for BLAS. What a device has no kernel for, llama.cpp leaves to the CPU,
which a cell says; where that is RoPE, the device proves nothing. Tolerances are those of any validation: of float32, and of the
noise that a type or a cache makes in the reference.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msgspec import UNSET, Struct, UnsetType, convert

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.source import Source, resolve
from ..compute.record import Hardware, Library, made
from ..compute.reference import Reference, pick_device
from ..compute.tables import columns
from ..conversion.intention import intention_of
from ..errors import UsageError, need
from ..formats.decoding import Result
from ..formats.gguf_file import DEFAULT_ALIGNMENT, nbytes_of
from ..formats.tensors import Tensor
from ..hearing import SayStage, heard, shares
from ..options import ValidateOptions
from ..runtimes import probe
from ..runtimes.environments import python_of
from ..runtimes.library import folder_of, using
from ..runtimes.table import RUNTIMES
from ..targets.moving import Piece, unchanged
from ..targets.output import execute
from ..targets.parts import gguf_job
from ..targets.plan import target_dtype
from . import twin
from .course import Course, Outline
from .judging import tolerance_for
from .rounding import rounds
from .study import FAILED, NOT_RUN, PASSED, WIDTH, Question, real_subject, study, twin_subject
from .verdict import INCONCLUSIVE

RUNTIME = "llama.cpp"
TURNS = "ROPE"  # as ggml names the operation
TYPES = ("f32", "f16", "bf16", "q8_0")
LONGEST = 16384  # tokens, unless more are asked for: every cell computes them


class Cell(Struct, frozen=True, kw_only=True):
    """One run: a device in a type of weights and a mode of llama.cpp. `nmse` and `kl` of the worst window; `blind_to`: wrong recipes that
    would have passed it; `elsewhere`: operations of the graph that a GPU left to the CPU; `why` it did not pass."""

    device: str
    dtype: str
    mode: str
    verdict: str
    why: str
    nmse: float | None
    kl: float | None
    tolerance: float
    seconds: float | None
    blind_to: tuple[str, ...]
    elsewhere: tuple[str, ...]


class MatrixDevice(Struct, frozen=True):
    """As llama.cpp lists it; `kind`: CPU, GPU, IGPU, or ACCEL for what helps the CPU."""

    name: str
    description: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMatrix(Result):
    """What the twin of `model` gave on each device, over `tokens` of them, and the `verdict` with its `reasons`. `idle`: backends of this
    llama.cpp that list no device here."""

    model: str
    tokens: int
    version: str
    devices: tuple[MatrixDevice, ...]
    idle: tuple[str, ...]
    cells: tuple[Cell, ...]
    verdict: str
    reasons: tuple[str, ...]
    created: str
    versions: Mapping[str, str]
    hardware: Hardware
    library: Library | UnsetType = UNSET


@heard
def device_matrix(say: SayStage, model: str, settings: ValidateOptions) -> DeviceMatrix:
    """Run the matrix of a GGUF; UsageError for another format, and where
    llama.cpp is not there or cannot be run."""
    need("validate", "a validation")
    c = open_checkpoint(resolve(model, settings.revision))
    if c.gguf is None or not c.family.listed:
        raise UsageError("the device matrix is llama.cpp's, of a GGUF whose tensors have names here", "--out gguf makes one")
    if python_of(RUNTIME) is None:
        raise UsageError("llama.cpp is not installed", "yarn-convert runtimes add llama.cpp")
    own = folder_of(settings.llama_lib)
    found = probe(own)
    base = open_checkpoint(resolve(settings.base)) if settings.base else None
    question = Question(intention_of(c, settings.recipe, base, settings.like), device=pick_device(settings.device))
    with using(own):
        tokens, cells, wrong = _cells(c, question, [d["name"] for d in found["devices"]], settings.twin_tokens, say)
    result: dict[str, Any] = {
        "model": c.source.name,
        "tokens": tokens,
        **{k: found[k] for k in ("version", "devices", "idle", "library") if k in found},
    }
    return convert(json.loads(json.dumps(result | {"cells": cells} | _verdict(cells, wrong) | made())), DeviceMatrix)


def _cells(
    c: Checkpoint, q: Question, devices: Sequence[str], asked: int | None, say: SayStage
) -> tuple[int, list[dict[str, Any]], list[str]]:
    """(tokens, every cell, the names of the wrong recipes)."""
    context, original = q.meant.context, q.meant.rope.original_context
    beyond = original + WIDTH
    n = min(context, asked or (beyond if q.meant.rope.row.switches else min(beyond, LONGEST)))
    modes = [RUNTIME, *(f"{RUNTIME}:{mode}" for mode in RUNTIMES[RUNTIME].modes)]
    cells, wrong, told = [], list[str](), shares(say, [1] * len(TYPES) * len(devices))
    with tempfile.TemporaryDirectory(prefix="yarn-convert-matrix-") as folder:
        plain = twin.write_twin(c, Path(folder, "twin.gguf"))
        for i, dtype in enumerate(TYPES):
            small = plain if dtype == "f32" else typed(plain, dtype, Path(folder, f"{dtype}.gguf"))
            reference, case = Reference(small, q.device), twin_subject(small, twin.ids(n), original)
            if kinds := rounds(small):
                tolerance = tolerance_for(gelu=c.family.gelu)
                case = replace(real_subject(small, twin.ids(n), original, tolerance, kinds), kind="twin")
            for j, device in enumerate(devices):
                asked_of = replace(q, told={RUNTIME: {"backend": device}})
                course = Course(_with(told[i * len(devices) + j], f"{dtype} on {device}"))
                course.expect(Outline(small, modes, twin=n))
                done = study(case, asked_of, reference, modes, course)
                wrong = [w["name"] for w in done["wrong_recipes"]]
                cells += [_cell(device, dtype, r) for r in done["runtimes"]]
    return n, cells, wrong


def _with(say: SayStage, where: str) -> SayStage:
    return lambda what, fraction: say(f"{what}, {where}", fraction)


def typed(small: Checkpoint, dtype: str, out: Path) -> Checkpoint:
    """A twin with its matrices in another type, opened."""
    assert small.gguf is not None
    parts, pieces = small.parts(gguf=True), []
    for name, t in small.gguf.tensors.items():
        kind = target_dtype(parts[name], name, dtype) if name in parts else t.dtype
        pieces.append(unchanged(t) if kind == t.dtype else Piece(Tensor(name, kind, t.shape, nbytes_of(kind, t.shape)), (t,)))
    execute([gguf_job(out.name, dict(small.gguf.fields), pieces, DEFAULT_ALIGNMENT)], out, folder=False)
    return open_checkpoint(Source(out, f"{small.source.name} in {dtype}"))


def _cell(device: str, dtype: str, r: Mapping[str, Any]) -> dict[str, Any]:
    ran = bool(r["windows"])
    worst = {m: max((w[m] for w in r["windows"] if w[m] is not None), default=None) for m in ("nmse", "kl")}
    return {
        "device": device, "dtype": dtype, "mode": r["runtime"], "verdict": r["verdict"] if ran else NOT_RUN, "why": r["why"], **worst,
        "tolerance": r["tolerance"]["nmse"], "seconds": r.get("seconds"), "blind_to": r["blind_to"], "elsewhere": r.get("elsewhere", ()),
    }  # fmt: skip


def _verdict(cells: Sequence[Mapping[str, Any]], wrong: Sequence[str]) -> dict[str, Any]:
    """Failed where any cell is; inconclusive where a device ran nothing, or has turned nothing, or where none of its cells tells a wrong
    recipe apart."""
    failures = [f"{c['device']}, {c['dtype']}, {c['mode']}: {c['why']}" for c in cells if c["verdict"] == FAILED]
    notes = [f"{c['device']}, {c['dtype']}, {c['mode']} was not run: {c['why']}" for c in cells if c["verdict"] == NOT_RUN]
    doubts = []
    for device in dict.fromkeys(c["device"] for c in cells):
        ran = [c for c in cells if c["device"] == device and c["verdict"] == PASSED]
        doubts += [] if ran else [f"{device} computed nothing that passed"]
        doubts += [f"{device} turned nothing: {TURNS} was left to the CPU"] if ran and all(TURNS in c["elsewhere"] for c in ran) else []
        doubts += [f"{device} would have passed with {name!r} too" for name in wrong if ran and all(name in c["blind_to"] for c in ran)]
    verdict = FAILED if failures else INCONCLUSIVE if doubts else PASSED
    return {"verdict": verdict, "reasons": [*(failures or [*doubts, *notes]), *_left(cells)]}


def _left(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """What devices left to the CPU, by device and mode."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for c in cells:
        if c["elsewhere"]:
            found.setdefault((c["device"], c["mode"], *c["elsewhere"]), []).append(c["dtype"])
    return [f"{device}, {mode}: the CPU computed {', '.join(what)} ({', '.join(types)})" for (device, mode, *what), types in found.items()]


def matrix_lines(m: DeviceMatrix, quiet: bool = False, room: int | None = None) -> list[str]:
    """The table, device by type, a column for each mode: the NMSE of the worst window; in `room` columns. `quiet`: the verdict alone."""
    verdict = [m.verdict.upper(), *(f"  {reason}" for reason in m.reasons)]
    if quiet:
        return verdict
    modes = list(dict.fromkeys(c.mode for c in m.cells))
    width = max(len(d.name) for d in m.devices)
    which = f" ({m.library.name}, commit {m.library.commit or 'unknown'})" if m.library else ""
    out = [f"the twin of {m.model} in llama.cpp {m.version}{which}, {m.tokens:,} tokens: NMSE of the worst window", ""]
    out += [f"  {d.name:<{width}}  {d.kind}, {d.description}" for d in m.devices]
    out += [f"  no device of {', '.join(m.idle)}"] if m.idle else []
    body = []
    for device, dtype in dict.fromkeys((c.device, c.dtype) for c in m.cells):
        row = {c.mode: c for c in m.cells if (c.device, c.dtype) == (device, dtype)}
        body.append([device, dtype, *(_shown(row[mode]) for mode in modes)])
    out += ["", *columns(["", "type", *modes], body, room, "  ", left=2)]
    return [*out, "", *verdict]


def _shown(c: Cell) -> str:
    if c.verdict == NOT_RUN:
        return NOT_RUN
    number = "no number" if c.nmse is None else f"{c.nmse:.1e}"
    return ("" if c.verdict == PASSED else f"{c.verdict.upper()} ") + number + ("*" if c.elsewhere else "")

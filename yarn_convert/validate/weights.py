"""Are the weights the base's: the second of the three questions. Answered from bytes, a piece at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import Checkpoint
from ..errors import Unsupported
from ..targets.moving import Piece, converted
from ..tensors import Tensor

Progress = Callable[[int], None]
SHOWN = 5  # names of differing tensors in a report

# Largest NMSE of a tensor after quantization, Σ(q − x)² / Σx². Measured on normal numbers with llama.cpp's own quantizer
# (tests/test_validate.py repeats it), times about 2: outliers in a block cost more. F16 and BF16 follow from their mantissas.
ERROR_BOUND: Mapping[str, float] = {
    "F32": 0.0, "F64": 0.0, "F16": 1.5e-7, "BF16": 1e-5, "Q8_0": 1e-4, "Q8_1": 1e-4, "Q6_K": 1e-3, "Q5_K": 3e-3, "Q5_1": 4e-3,
    "Q5_0": 5e-3, "Q4_K": 1.2e-2, "Q4_1": 1.5e-2, "Q4_0": 2e-2, "IQ4_NL": 1.5e-2, "IQ4_XS": 1.5e-2, "Q3_K": 6e-2, "Q2_K": 2e-1,
}  # fmt: skip
PERMUTED = "the permutation of its rows is wrong: they are interleaved once too often or too seldom"
IDENTICAL, ROUNDED, DEQUANTIZED = "byte-identical", "the base's, rounded to their type", "the base's, within their type's error"


def check_weights(c: Checkpoint, base: Checkpoint | None, manifest: Mapping[str, Any] | None, progress: Progress) -> dict[str, Any]:
    """JSON: `verdict` "passed", "failed" or "unchecked", `how`, `why`, `different` (names of tensors), `sha256` by file.

    Against `base` when there is one, tensor by tensor; else against the hashes in the manifest. `progress` gets bytes read.
    """
    if base is not None:
        return _against_base(c, base, progress)
    files = (manifest or {}).get("weights", {}).get("files", [])
    hashes = {f["file"]: f["sha256"] for f in files if "sha256" in f}
    if not hashes:
        why = "no base is given, and no hashes are in the manifest: --base MODEL compares tensor by tensor"
        return {"verdict": "unchecked", "how": "", "why": why, "different": []}
    return _against_hashes(c, hashes, {f["file"] for f in files}, progress)


def _against_hashes(c: Checkpoint, hashes: Mapping[str, str], files: set[str], progress: Progress) -> dict[str, Any]:
    """Every weight file of the manifest by its hash; one without a hash leaves the question open."""
    folder = c.source.path.parent if c.gguf else c.source.path
    found = {name: sha256(folder / name, progress) for name in hashes if (folder / name).is_file()}
    wrong = [name for name in hashes if found.get(name) != hashes[name]]
    if wrong:
        why = f"{len(wrong)} weight files are not those that were written, first {wrong[0]}"
        return {"verdict": "failed", "how": "", "why": why, "different": wrong[:SHOWN], "sha256": found}
    if files - set(hashes):
        return {"verdict": "unchecked", "how": "", "why": "the manifest has hashes of some files only", "different": [], "sha256": found}
    return {"verdict": "passed", "how": "the hashes of the manifest", "why": "", "different": [], "sha256": found}


def sha256(path: Path, progress: Progress = lambda n: None) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11, and reports nothing
    with open(path, "rb") as f:
        for piece in iter(lambda: f.read(1 << 20), b""):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()


def _against_base(c: Checkpoint, base: Checkpoint, progress: Progress) -> dict[str, Any]:
    mine, theirs = c.tensor_by_gguf_name(), base.tensor_by_gguf_name()
    head, embedding = "output.weight", "token_embd.weight"
    for tensors in (mine, theirs):  # a tied model may be written with its head or without
        if head not in tensors and embedding in tensors:
            tensors[head] = tensors[embedding]
    strangers = sorted(set(mine) ^ set(theirs))
    if strangers:
        why = f"{len(strangers)} tensors are in one of the two only, first {strangers[0]}: another model?"
        return {"verdict": "failed", "how": "", "why": why, "different": strangers[:SHOWN]}
    kinds: dict[str, list[str]] = {IDENTICAL: [], ROUNDED: [], DEQUANTIZED: []}
    wrong: dict[str, str] = {}
    for name, t in mine.items():
        kind, error = same_weights(c, t, base, theirs[name], name)
        if error:
            wrong[name] = error
        else:
            kinds[kind].append(name)
        progress(t.nbytes)
    how = [f"{len(names)} tensors {kind}" for kind, names in kinds.items() if names]
    if wrong:
        first, error = next(iter(wrong.items()))
        why = f"{len(wrong)} tensors are not the base's, first {first}: {error}"
        return {"verdict": "failed", "how": ", ".join(how), "why": why, "different": list(wrong)[:SHOWN]}
    return {
        "verdict": "passed",
        "how": ", ".join(how),
        "why": "",
        "different": [],
        "identical": not kinds[ROUNDED] and not kinds[DEQUANTIZED],
    }


def same_weights(c: Checkpoint, mine: Tensor, base: Checkpoint, theirs: Tensor, name: str) -> tuple[str, str]:
    """(how a tensor is the base's, "") or ("", how it is not). `name` is its GGUF name."""
    if mine.shape != theirs.shape:
        return "", f"its shape is {list(mine.shape)}, the base's {list(theirs.shape)}"
    transform = c.family.transform(name)
    heads = c.heads(transform[-1]) if transform else 0
    moved = heads * (bool(c.gguf) - bool(base.gguf))  # rows are interleaved in a GGUF, not in HF's layout
    exact = _same_bytes(mine, theirs, moved)
    if exact:
        return (IDENTICAL if mine.dtype == theirs.dtype else ROUNDED), ""
    if mine.dtype == theirs.dtype:
        if heads and any(_same_bytes(mine, theirs, other) for other in {0, heads, -heads} - {moved}):
            return "", PERMUTED
        return "", f"its bytes differ ({_nmse(mine, theirs, moved):.1e} of their square)"
    bound = ERROR_BOUND.get(mine.dtype, 0.5) + ERROR_BOUND.get(theirs.dtype, 0.5)
    error = _nmse(mine, theirs, moved)
    if error <= bound:
        return DEQUANTIZED, ""
    if heads and min(_nmse(mine, theirs, other) for other in {0, heads, -heads} - {moved}) <= bound:
        return "", PERMUTED
    return "", f"it differs by {error:.1e} of its square, {mine.dtype} may by {bound:.1e}"


def _same_bytes(mine: Tensor, theirs: Tensor, moved: int) -> bool:
    """Whether `mine` is what converting `theirs` gives, byte for byte; False where we have no such conversion."""
    at = 0
    try:
        for piece in converted(Piece(mine, theirs, moved)):
            if not np.array_equal(mine.read(at, piece.nbytes), piece):
                return False
            at += piece.nbytes
    except Unsupported:
        return False
    return at == mine.nbytes


def _nmse(mine: Tensor, theirs: Tensor, moved: int) -> float:
    """Σ(a − b)² / Σb², both dequantized; infinite for a NaN."""
    wide = [Tensor(t.name, "F32", t.shape, 4 * t.elements) for t in (mine, theirs)]
    squares = np.zeros(2)
    ours, others = _stream(Piece(wide[0], mine)), _stream(Piece(wide[1], theirs, moved))
    for a, b in zip(_even(ours), _even(others), strict=True):
        squares += ((a - b) ** 2).sum(dtype=np.float64), (b**2).sum(dtype=np.float64)
    error = squares[0] / squares[1] if squares[1] else float(squares[0] > 0)
    return float(error) if np.isfinite(error) else float("inf")


def _stream(piece: Piece) -> Any:
    return (part.view(np.float32) for part in converted(piece))


def _even(parts: Any, size: int = 1 << 20) -> Any:
    """Arrays of `size` elements (the last is shorter), whatever the sizes they come in."""
    held = np.empty(0, np.float32)
    for part in parts:
        held = np.concatenate([held, part])
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if len(held):
        yield held

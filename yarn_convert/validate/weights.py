"""Are the weights the base's: the second of the three questions. Answered from bytes, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..checkpoint import Checkpoint
from ..errors import Unsupported
from ..layout import Part
from ..manifest import Manifest
from ..targets.moving import Piece, converted
from ..targets.safetensors import ROPE_FILE
from ..tensors import SAFETENSORS_BITS, Tensor, sha256

Progress = Callable[[int], None]
SHOWN = 5  # names of differing tensors in a report

# Largest NMSE of a tensor after quantization, Σ(q − x)² / Σx². Measured on normal numbers with llama.cpp's own quantizer
# (tests/test_validate.py repeats it), times about 2: outliers in a block cost more. F16 and BF16 follow from their mantissas.
ERROR_BOUND: Mapping[str, float] = {
    "F32": 0.0, "F64": 0.0, "F16": 1.5e-7, "BF16": 1e-5, "Q8_0": 1e-4, "Q8_1": 1e-4, "Q6_K": 1e-3, "Q5_K": 3e-3, "Q5_1": 4e-3,
    "Q5_0": 5e-3, "Q4_K": 1.2e-2, "Q4_1": 1.5e-2, "Q4_0": 2e-2, "IQ4_NL": 1.5e-2, "IQ4_XS": 1.5e-2, "MXFP4": 3e-2, "IQ3_S": 4e-2,
    "Q3_K": 6e-2, "IQ3_XXS": 7e-2, "IQ2_S": 1.3e-1, "IQ2_XS": 2e-1, "Q2_K": 2e-1, "IQ2_XXS": 2.5e-1, "IQ1_M": 4.5e-1, "IQ1_S": 5e-1,
}  # fmt: skip
ROW = 4  # one row may err by so many times the bound: outliers make the steps of its blocks coarse
UNKNOWN = 0.1  # bound of a type that is not in the table
CODES = SAFETENSORS_BITS.keys() - ERROR_BOUND.keys()  # types whose values are no weights before something else unpacks or scales them
PERMUTED = "the permutation of its rows is wrong: they are interleaved once too often or too seldom"
IDENTICAL, ROUNDED, DEQUANTIZED = "byte-identical", "the base's, converted to their type", "the base's, within their type's error"


def check_weights(c: Checkpoint, base: Checkpoint | None, manifest: Manifest | None, progress: Progress) -> dict[str, Any]:
    """JSON: `verdict` "passed", "failed" or "unchecked", `how`, `why`, `different` (names of tensors), `sha256` by file.

    Against `base` when there is one, tensor by tensor; else against the hashes in the manifest. `progress` gets bytes read.
    """
    if base is not None:
        return _against_base(c, base, progress)
    hashes = _listed(manifest, c) if manifest else {}
    if not any(hashes.values()):
        why = "no base is given, and no hashes are in the manifest: --base MODEL compares tensor by tensor"
        return {"verdict": "unchecked", "how": "", "why": why, "different": []}
    return _against_hashes(c, hashes, progress)


def _listed(manifest: Manifest, c: Checkpoint) -> dict[str, str | None]:
    """name -> SHA-256 of each weight file that the manifest lists.

    A GGUF's files go in their order, whatever they are called now; beside a folder's weights, rope.safetensors is judged as
    the recipe is.
    """
    files = {f.file: f.sha256 if isinstance(f.sha256, str) else None for f in manifest.weights.files}
    files.pop(ROPE_FILE, None)
    if c.gguf is None or len(files) != len(c.weight_files):
        return files
    return dict(zip((path.name for path in c.weight_files), files.values(), strict=True))


def _against_hashes(c: Checkpoint, hashes: Mapping[str, str | None], progress: Progress) -> dict[str, Any]:
    """Every weight file by its hash in the manifest; one without a hash leaves the question open."""
    files = {path.name: path for path in c.weight_files}
    if set(files) != set(hashes):
        why = "the weight files are not those that the manifest lists"
        return {"verdict": "failed", "how": "", "why": why, "different": sorted(set(files) ^ set(hashes))[:SHOWN]}
    found = {name: sha256(path, progress) for name, path in files.items() if hashes[name]}
    wrong = [name for name in found if found[name] != hashes[name]]
    if wrong:
        why = f"{len(wrong)} weight files are not those that were written, first {wrong[0]}"
        return {"verdict": "failed", "how": "", "why": why, "different": wrong[:SHOWN], "sha256": found}
    if len(found) < len(hashes):
        return {"verdict": "unchecked", "how": "", "why": "the manifest has hashes of some files only", "different": [], "sha256": found}
    return {"verdict": "passed", "how": "the hashes of the manifest", "why": "", "different": [], "sha256": found}


def _against_base(c: Checkpoint, base: Checkpoint, progress: Progress) -> dict[str, Any]:
    if c.gguf and not base.gguf:
        base = base.written_as(c.family.gguf_arch)
    mine, theirs = c.parts(bool(c.gguf)), base.parts(bool(c.gguf))
    if c.family.listed:
        head, embedding = (name if c.gguf else c.family.to_hf(name)[0] for name in ("output.weight", "token_embd.weight"))
        for parts, others in ((mine, theirs), (theirs, mine)):  # a tied model may be written with its head or without
            if head in others and head not in parts and embedding in parts:
                parts[head] = parts[embedding]
    strangers = sorted(set(mine) ^ set(theirs))
    if strangers:
        why = f"{len(strangers)} tensors are in one of the two only, first {strangers[0]}: another model?"
        return {"verdict": "failed", "how": "", "why": why, "different": strangers[:SHOWN]}
    kinds: dict[str, list[str]] = {IDENTICAL: [], ROUNDED: [], DEQUANTIZED: []}
    wrong: dict[str, str] = {}
    for name, part in mine.items():
        t = part.sources[0]
        kind, error = same_weights(t, theirs[name])
        if error:
            wrong[name] = error
        else:
            kinds[kind].append(name)
        progress(t.nbytes)
    exact = {mine[name].dtype for name in kinds[ROUNDED]}
    for name in [n for n in kinds[DEQUANTIZED] if mine[n].dtype in exact]:
        kinds[DEQUANTIZED].remove(name)
        wrong[name] = f"it is not rounded as its siblings of the type {mine[name].dtype} are"
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


def same_weights(mine: Tensor, theirs: Part) -> tuple[str, str]:
    """(how a tensor is the base's, "") or ("", how it is not). `theirs` is the base's, in the layout of `mine`."""
    if mine.shape != theirs.shape:
        return "", f"its shape is {list(mine.shape)}, the base's {list(theirs.shape)}"
    if _same_bytes(mine, theirs):
        return (IDENTICAL if mine.dtype == theirs.dtype else ROUNDED), ""
    if {mine.dtype, theirs.dtype} & CODES:
        return "", "its bytes differ"
    others = [part for by in (-2, -1, 1, 2) if (part := theirs.turned(by)) is not None]
    if mine.dtype == theirs.dtype and not theirs.order.added:
        if any(_same_bytes(mine, other) for other in others):
            return "", PERMUTED
        return "", f"its bytes differ (a row by {_nmse(mine, theirs):.1e} of its square)"
    bound = ROW * (ERROR_BOUND.get(mine.dtype, UNKNOWN) + ERROR_BOUND.get(theirs.dtype, UNKNOWN))
    error = _nmse(mine, theirs)
    if error <= bound:
        return DEQUANTIZED, ""
    if others and min(_nmse(mine, other) for other in others) <= bound:
        return "", PERMUTED
    return "", f"a row differs by {error:.1e} of its square, {mine.dtype} may by {bound:.1e}"


def _same_bytes(mine: Tensor, theirs: Part) -> bool:
    """Whether `mine` is what converting `theirs` gives, byte for byte; False where we have no such conversion."""
    at = 0
    try:
        for piece in converted(Piece(mine, theirs.sources, theirs.order)):
            if not np.array_equal(mine.read(at, piece.nbytes), piece):
                return False
            at += piece.nbytes
    except Unsupported:
        return False
    return at == mine.nbytes


def _nmse(mine: Tensor, theirs: Part) -> float:
    """Σ(a − b)² / Σb² of the worst row, both dequantized; infinite for a NaN and for a row that was zero and is not."""
    wide = Tensor(mine.name, "F32", mine.shape, 4 * mine.elements)
    columns, worst = mine.shape[-1], 0.0
    ours, others = _stream(Piece(wide, (mine,))), _stream(Piece(wide, theirs.sources, theirs.order))
    size = max(1, (1 << 20) // columns) * columns
    for a, b in zip(_even(ours, size), _even(others, size), strict=True):
        x, y = (v.astype(np.float64).reshape(-1, columns) for v in (a, b))
        error, square = ((x - y) ** 2).sum(1), (y**2).sum(1)
        ratio = np.divide(error, square, out=np.where(error > 0, np.inf, 0.0), where=square > 0)
        ratio[~np.isfinite(error)] = np.inf
        worst = max(worst, float(ratio.max()))
    return worst


def _stream(piece: Piece) -> Any:
    return (part.view(np.float32) for part in converted(piece))


def _even(parts: Any, size: int) -> Any:
    """Arrays of `size` elements (the last is shorter), whatever the sizes they come in."""
    held = np.empty(0, np.float32)
    for part in parts:
        held = np.concatenate([held, part])
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if len(held):
        yield held

"""Are the weights the base's: the second of the three questions. Answered from bytes, a piece at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from ..checkpoint.manifest import Manifest
from ..errors import Unsupported, many
from ..formats.changes import CHANGES, Change
from ..formats.contents import ROPE_FILE
from ..formats.digests import Progress, sha256
from ..formats.layout import Part, rounded_by_gguf, times_of
from ..formats.tensors import SAFETENSORS_BITS, Tensor, in_memory
from ..targets.moving import Piece, converted

SHOWN = 5  # names of differing tensors in a report


class Sound(NamedTuple):
    """What sound rounding to a type may do to a tensor x that becomes q. `error`: Σ(q − x)² / Σx². `low` … `high`: Σqx / Σx², its
    size by least squares."""

    error: float
    low: float
    high: float


# Measured with llama.cpp's own quantizer on normal numbers, on Student's t with 4 degrees of freedom, and on eight tensors of
# SmolLM2-135M; without an importance matrix, and with even and very uneven ones (log-normal, σ = 1.5). Errors are twice to three
# times those of normal numbers, 1.3 times the largest that was seen or more; sizes are what was seen and 0.01 to 0.03 on either
# side. docs/validation.md has the figures, tests/test_weights.py repeats some. F16 and BF16 follow from their mantissas.
SOUND: Mapping[str, Sound] = {
    "F32": Sound(0.0, 1.0, 1.0), "F64": Sound(0.0, 1.0, 1.0), "F16": Sound(1.5e-7, 0.999, 1.001), "BF16": Sound(1e-5, 0.995, 1.005),
    "Q8_0": Sound(1e-4, 0.998, 1.002), "Q8_1": Sound(1e-4, 0.998, 1.002), "Q6_K": Sound(1e-3, 0.99, 1.01),
    "Q5_K": Sound(4e-3, 0.985, 1.01), "Q5_1": Sound(4e-3, 0.985, 1.03), "Q5_0": Sound(5e-3, 0.985, 1.03),
    "Q4_K": Sound(1.5e-2, 0.975, 1.015), "Q4_1": Sound(1.6e-2, 0.975, 1.015), "Q4_0": Sound(2e-2, 0.97, 1.015),
    "IQ4_NL": Sound(1.6e-2, 0.97, 1.015), "IQ4_XS": Sound(1.6e-2, 0.97, 1.015), "MXFP4": Sound(3e-2, 0.95, 1.01),
    "Q3_K": Sound(6e-2, 0.94, 1.02), "IQ3_S": Sound(6e-2, 0.98, 1.06), "IQ3_XXS": Sound(9e-2, 0.95, 1.05),
    "Q2_K": Sound(2e-1, 0.9, 1.02), "IQ2_S": Sound(2e-1, 0.945, 1.07), "IQ2_XS": Sound(2e-1, 0.93, 1.03),
    "IQ2_XXS": Sound(2.6e-1, 0.9, 1.02), "IQ1_M": Sound(5e-1, 0.83, 1.09), "IQ1_S": Sound(5e-1, 0.79, 0.99),
    "TQ1_0": Sound(8e-1, 0.4, 1.05), "TQ2_0": Sound(8e-1, 0.4, 1.05),
}  # fmt: skip
UNKNOWN = Sound(0.1, 0.9, 1.1)  # a type that is not in the table
ROW, ROW_LEAST, ROW_MORE = 4, 0.6, 1.6  # one row may err by ROW times the error, at most by ROW_LEAST or ROW_MORE times it
ROW_SIZE, BLOCK = 0.5, 256  # its size may be beyond the tensor's by so many roots of the error; more in a row of less than BLOCK
SHIFT, CHANCE = 0.05, 6  # the mean may be off by so many roots of the error of the mean square, and so many deviations by chance
NOTHING = 1e-6  # of the mean row's square: a row of less is lost in any type's smallest scale
LIKE, MOST = 0.7, 0.9  # the cosine of rows that are the same but for their type, and the share of rows that has to be found
SAMPLE, SEARCHED = 64, 1 << 26  # rows that are looked for elsewhere in a tensor, and how many elements it may have
CODES = SAFETENSORS_BITS.keys() - SOUND.keys()  # types whose values are no weights before something else unpacks or scales them
REORDERED, TRANSPOSED = "its rows are the base's in another order", "it is the base's, transposed"
PERMUTED = "the permutation of its rows is wrong: they are interleaved once too often or too seldom"
IDENTICAL, ROUNDED, DEQUANTIZED = "byte-identical", "the base's, converted to their type", "the base's, within their type's error"
ROUNDED_BY_GGUF = "the base's, as they come back from a GGUF, which holds another number"


def check_weights(c: Checkpoint, base: Checkpoint | None, manifest: Manifest | None, progress: Progress) -> dict[str, Any]:
    """JSON: `verdict` "passed", "failed" or "unchecked", `how`, `why`, `different` (names of tensors), `sha256` by file.

    Against `base` when there is one, tensor by tensor; else, and where they were trained, against the hashes in the manifest. `progress`
    gets bytes read.
    """
    if base is not None and not (manifest and manifest.finetuned):
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
    files = {f.file: f.sha256 or f.sha256_of_hub or None for f in manifest.weights.files}
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
        why = f"{many(len(wrong), 'weight file is not what was', 'weight files are not those that were')} written, first {wrong[0]}"
        return {"verdict": "failed", "how": "", "why": why, "different": wrong[:SHOWN], "sha256": found}
    if len(found) < len(hashes):
        return {"verdict": "unchecked", "how": "", "why": "the manifest has hashes of some files only", "different": [], "sha256": found}
    return {"verdict": "passed", "how": "the hashes of the manifest", "why": "", "different": [], "sha256": found}


def _against_base(c: Checkpoint, base: Checkpoint, progress: Progress) -> dict[str, Any]:
    if c.gguf and not base.gguf:
        if not (c.family.listed and base.family.listed):
            why = f"the tensors of {base.family.name} have no names here, so those of a GGUF cannot be told to be its own"
            return {"verdict": "unchecked", "how": "", "why": why, "different": []}
        base = base.written_as(c.family.gguf_arch)
    mine, theirs = _parts(c, base)
    strangers = sorted(set(mine) ^ set(theirs))
    if strangers:
        why = f"{many(len(strangers), 'tensor is', 'tensors are')} in one of the two only, first {strangers[0]}: another model?"
        return {"verdict": "failed", "how": "", "why": why, "different": strangers[:SHOWN]}
    kinds, wrong = _compared(c, base, mine, theirs, progress)
    how = [f"{many(len(names), 'tensor')} {kind}" for kind, names in kinds.items() if names]
    if wrong:
        first, error = next(iter(wrong.items()))
        why = f"{many(len(wrong), 'tensor is', 'tensors are')} not the base's, first {first}: {error}"
        return {"verdict": "failed", "how": ", ".join(how), "why": why, "different": list(wrong)[:SHOWN]}
    return {
        "verdict": "passed",
        "how": ", ".join(how),
        "why": "",
        "different": [],
        "identical": not any(kinds[kind] for kind in (ROUNDED, ROUNDED_BY_GGUF, DEQUANTIZED)),
    }


def _parts(c: Checkpoint, base: Checkpoint) -> tuple[dict[str, Part], dict[str, Part]]:
    """The tensors of both in the layout of `c`; where one of two tied models is written with its head, both have it."""
    mine, theirs = c.parts(bool(c.gguf)), base.parts(bool(c.gguf))
    if c.family.listed:
        head, embedding = c.head_and_embedding
        for parts, others in ((mine, theirs), (theirs, mine)):
            if head in others and head not in parts and embedding in parts:
                parts[head] = parts[embedding]
    return mine, theirs


def _compared(
    c: Checkpoint, base: Checkpoint, mine: Mapping[str, Part], theirs: Mapping[str, Part], progress: Progress
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """(the names of those that are the base's, by how they are; of the others, how they are not)."""
    kinds: dict[str, list[str]] = {IDENTICAL: [], ROUNDED: [], ROUNDED_BY_GGUF: [], DEQUANTIZED: []}
    wrong: dict[str, str] = {}
    folders = c.gguf is None and base.gguf is None and c.family.listed and not c.packed
    times = c.family.folded(c.config, base.config) if folders else {}
    for name, part in mine.items():
        t = part.sources[0]
        other = times_of(theirs[name], c.family.to_gguf(name)[0][0], times) if times else theirs[name]
        change = rounded_by_gguf(c.family, c.names[name], c.sizes) if folders and name in c.names and name not in c.unused else ""
        kind, error = same_weights(t, other, change)
        if error:
            wrong[name] = error
        else:
            multiplied = times and other.order.times and kind in (IDENTICAL, ROUNDED)
            kinds[ROUNDED_BY_GGUF if multiplied else kind].append(name)
        progress(t.nbytes)
    exact = {mine[name].dtype for name in kinds[ROUNDED]}
    for name in [n for n in kinds[DEQUANTIZED] if mine[n].dtype in exact]:
        kinds[DEQUANTIZED].remove(name)
        wrong[name] = f"it is not rounded as its siblings of the type {mine[name].dtype} are"
    return kinds, wrong


def same_weights(mine: Tensor, theirs: Part, change: str = "") -> tuple[str, str]:
    """(how a tensor is the base's, "") or ("", how it is not). `theirs` is the base's, in the layout of `mine`; `change`: what a GGUF of
    the base would hold of it, a key of `changes.CHANGES`, from which it may have come back."""
    if mine.shape != theirs.shape:
        return "", f"its shape is {list(mine.shape)}, the base's {list(theirs.shape)}"
    if _same_bytes(mine, theirs):
        return (IDENTICAL if mine.dtype == theirs.dtype else ROUNDED), ""
    if change and _same_bytes(mine, _there_and_back(mine, theirs, CHANGES[change])):
        return ROUNDED_BY_GGUF, ""
    if {mine.dtype, theirs.dtype} & CODES:
        return "", "its bytes differ"
    others = [part for by in (-2, -1, 1, 2) if (part := theirs.turned(by)) is not None]
    if mine.dtype == theirs.dtype and not theirs.order.change:
        if any(_same_bytes(mine, other) for other in others):
            return "", PERMUTED
        return "", f"its bytes differ (a row by {_apart(mine, theirs).worst:.1e} of its square)"
    apart = _apart(mine, theirs)
    wrong = apart.wrong(sound(mine.dtype, theirs.dtype), mine.dtype)
    if not wrong:
        return DEQUANTIZED, ""
    if any(not _apart(mine, other).wrong(sound(mine.dtype, theirs.dtype), mine.dtype) for other in others):
        return "", PERMUTED
    return "", _elsewhere(mine, theirs) or wrong


def sound(mine: str, theirs: str) -> Sound:
    """What two tensors may differ by whose types are these, both made from one or one from the other."""
    a, b = SOUND.get(mine, UNKNOWN), SOUND.get(theirs, UNKNOWN)
    return Sound(a.error + b.error, a.low * (1 - 1.5 * b.error), a.high * (1 + b.error / 2))


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


def _there_and_back(mine: Tensor, theirs: Part, change: Change) -> Part:
    """What `theirs`, a vector, is after its numbers were changed and changed back, each rounded to float32. A model that changes them
    anew, as Gemma adds one to its norms, computes the very same of both."""
    there = change.of(np.concatenate(list(_stream(_wide(mine, theirs)))))
    return Part(theirs.shape, (in_memory(mine.name, CHANGES[change.back].of(there).reshape(theirs.shape), "F32"),))


@dataclass(frozen=True, slots=True)
class Apart:
    """How far a tensor q is from the base's x. Row by row, float64[rows]: `error` Σ(q − x)², `square` Σx², `cross` Σqx; of all:
    `shift` Σ(q − x). `columns` are a row's."""

    error: NDArray[np.float64]
    square: NDArray[np.float64]
    cross: NDArray[np.float64]
    shift: float
    columns: int

    @property
    def worst(self) -> float:
        """The largest error of a row over its square; infinite for a NaN and for a row that was zero and is not."""
        ratio = np.divide(self.error, self.square, out=np.where(self.error == 0, 0.0, np.inf), where=self.square > 0)
        return float(np.where(np.isfinite(self.error), ratio, np.inf).max(initial=0.0))

    def wrong(self, s: Sound, dtype: str) -> str:
        """What of it no sound rounding does, "" if nothing: the error, the size or the mean, of all or of one row."""
        error, square, cross = (float(v.sum()) for v in (self.error, self.square, self.cross))
        if not np.isfinite(error):
            return "it holds a NaN or an infinity"
        n, root = len(self.error) * self.columns, s.error**0.5
        size = cross / square if square else 1.0
        if not s.low <= size <= s.high and abs(size) > root / 4:
            return f"it is {size:.3f} times the base's, {dtype} may be {s.low:.3g} to {s.high:.3g} times"
        off, each = abs(self.shift) / n, (square / n) ** 0.5
        shifted = f"its mean is off by {off / each if each else np.inf:.1e} of its size"
        if error > s.error * square and n * off**2 < error / 2:
            return f"it differs by {error / square if square else np.inf:.1e} of its square, {dtype} may by {s.error:.1e}"
        if error > s.error * square or off > (SHIFT + CHANCE / n**0.5) * root * each:
            return shifted
        nothing = NOTHING * square / len(self.error)
        limit = min(ROW * s.error, max(ROW_LEAST, ROW_MORE * s.error))
        if (self.error > limit * self.square + nothing).any():
            return f"a row differs by {self.worst:.1e} of its square, {dtype} may by {limit:.1e}"
        wide = ROW_SIZE * root * max(1.0, BLOCK / self.columns) ** 0.5
        low, high = ((s.low - wide) * self.square - nothing, (s.high + wide) * self.square + nothing)
        if (beyond := (self.cross < low) | (self.cross > high)).any():
            row = int(beyond.argmax())
            size = self.cross[row] / self.square[row]
            return f"its row {row:,} is {size:.3f} times the base's, {dtype} may be {s.low - wide:.3g} to {s.high + wide:.3g} times"
        return ""


def _apart(mine: Tensor, theirs: Part) -> Apart:
    """Both dequantized, a piece at a time."""
    columns = mine.shape[-1] if mine.shape else 1
    size, found, shift = max(1, (1 << 20) // columns) * columns, [], 0.0
    for a, b in zip(_even(_stream(_wide(mine)), size), _even(_stream(_wide(mine, theirs)), size), strict=True):
        q, x = (v.astype(np.float64).reshape(-1, columns) for v in (a, b))
        found.append((((q - x) ** 2).sum(1), (x**2).sum(1), (q * x).sum(1)))
        shift += float((q - x).sum())
    error, square, cross = (np.concatenate(v) for v in zip(*found, strict=True))
    return Apart(error, square, cross, shift, columns)


def _wide(t: Tensor, of: Part | None = None) -> Piece:
    """`t`, or `of` in its place, to be read as float32."""
    wide = Tensor(t.name, "F32", t.shape, 4 * t.elements)
    return Piece(wide, (t,)) if of is None else Piece(wide, of.sources, of.order)


def _elsewhere(mine: Tensor, theirs: Part) -> str:
    """Whether the rows of `mine` are rows or columns of the base's, in other places; "" if not, or where that costs too much."""
    if len(mine.shape) < 2 or mine.elements > SEARCHED:
        return ""
    q, x = (np.concatenate(list(_stream(p))).reshape(-1, mine.shape[-1]) for p in (_wide(mine), _wide(mine, theirs)))
    sample = np.unique(np.linspace(0, len(q) - 1, SAMPLE).astype(int))
    for others, says in ((x, REORDERED), *([(x.T, TRANSPOSED)] if x.shape[0] == x.shape[1] else [])):
        lengths = np.linalg.norm(q[sample], axis=1)[:, None] * np.linalg.norm(others, axis=1)
        with np.errstate(all="ignore"):
            alike = np.nan_to_num(q[sample] @ others.T / lengths)
        best = alike.argmax(1)
        if (alike.max(1) > LIKE).mean() > MOST and (says == TRANSPOSED or (best != sample).mean() > 1 - MOST):
            return says
    return ""


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

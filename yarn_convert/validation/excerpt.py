"""An excerpt of a GGUF: its first layers and the tokens of one text, dequantized to float32, with all its other keys.

What a runtime computes from it differs from the reference by float32 alone, so that recipe and wiring of the file's own weights are
judged as strictly as a twin's, whatever type they have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.source import Source
from ..families.schema import numbered
from ..formats import layout
from ..formats.dtypes import to_f32
from ..formats.gguf_file import DEFAULT_ALIGNMENT, Field, Gguf, Value
from ..formats.tensors import Tensor, in_memory
from ..targets.moving import Piece, unchanged
from ..targets.output import execute
from ..targets.parts import gguf_job

LAYERS = 8  # at most
BYTES, MOST = 1 << 30, 4 << 30  # of layers in float32: fewer go into an excerpt, and none is made where one layer has more than MOST
BEHIND = "nextn_predict_layers"  # layers behind the last, which an excerpt has not
SHARE, EACH = "num_kv_shared_layers", "vocab_size_per_layer_input"  # the last so many layers take keys of others; tokens of Gemma's
TOKENS = ("vocab", "ple_rows")  # sizes of what has a row for each token


def layers_of(c: Checkpoint) -> int:
    """How many layers an excerpt of `c` has, 0 for none."""
    sizes: Counter[int] = Counter()
    for name, t in c.tensors.items():
        if name.startswith("blk."):
            sizes[numbered(name).layer] += 4 * t.elements
    n, total = 0, 0
    while n < min(LAYERS, c.layers) and total + sizes[n] <= (BYTES if n else MOST):
        total += sizes[n]
        n += 1
    slides = c.hparams.get("slides_by_layer") or [False] * n  # Gemma 4's last layer sees all, to transformers
    return max((i + 1 for i in range(n) if not slides[i]), default=n)


def write_excerpt(c: Checkpoint, ids: NDArray[np.int64], out: Path) -> tuple[Checkpoint, NDArray[np.int64]]:
    """(the excerpt of a GGUF, opened, `ids` in its own vocabulary, int64[n]). Raises Unsupported for a type that is not read."""
    assert c.gguf is not None
    tokens, own = np.unique(ids, return_inverse=True)
    n = layers_of(c)
    kept = {name: t for name, t in c.tensors.items() if not name.startswith("blk.") or numbered(name).layer < n}
    smaller = c.family.sizes({**c.described, "num_hidden_layers": n})
    sizes = {size: many for size, many in smaller.items() if many != c.sizes[size]}
    pieces = [_piece(c, name, t, tokens, sizes) for name, t in kept.items()] + [unchanged(c.gguf.tensors[name]) for name in c.factors]
    job = gguf_job(out.name, _fields(c, c.gguf, n, len(tokens)), pieces, DEFAULT_ALIGNMENT)
    execute([job], out, folder=False)
    return open_checkpoint(Source(out, f"excerpt of {c.source.name}")), own.astype(np.int64)


def _fields(c: Checkpoint, gguf: Gguf, layers: int, tokens: int) -> dict[str, Field | Value]:
    """The architecture's keys, with the excerpt's sizes; of an array that has an entry for each layer, the first."""
    arch = gguf.arch
    named = {"general.architecture", *(c.family.gguf_key(k)[0] for k in c.family.hparams)}
    fields: dict[str, Field | Value] = {k: v for k, v in gguf.fields.items() if k in named or k.startswith(f"{arch}.")}
    for key, field in fields.items():
        value: Any = gguf.get(key)
        if isinstance(value, list) and len(value) == c.layers > 1:
            assert isinstance(field, Field)
            fields[key] = Value(field.type, value[:layers])
    fields |= {f"{arch}.block_count": Value("u32", layers), f"{arch}.vocab_size": Value("u32", tokens)}
    fields |= {f"{arch}.{BEHIND}": Value("u32", 0)} if f"{arch}.{BEHIND}" in fields else {}
    sizes = {SHARE: max((c.hparams.get(SHARE) or 0) - (c.layers - layers), 0), EACH: tokens}
    fields |= {c.family.gguf_key(key)[0]: Value("u32", n) for key, n in sizes.items() if key in c.family.hparams}
    return fields | {"tokenizer.ggml.model": Value("str", "none")}


def _piece(c: Checkpoint, name: str, t: Tensor, tokens: NDArray[np.int64], sizes: Mapping[str, int]) -> Piece:
    """One tensor in float32; of one that has a row or an entry for each token, those of `tokens`, and of one that has some for each layer,
    those of the first, so many as `sizes` has."""
    names = c.family.shape(layout.part_of(name))
    first = tuple(min(n, sizes.get(size, n)) for size, n in zip(names, t.shape, strict=True))
    if first == t.shape and names[0] not in TOKENS:
        return Piece(Tensor(name, "F32", t.shape, 4 * t.elements), (t,))
    row = t.nbytes // t.shape[0]
    rows = [to_f32(t.read(int(i) * row, row), t.dtype) for i in (tokens if names[0] in TOKENS else range(first[0]))]
    cut = (slice(None), *map(slice, first[1:]))
    return unchanged(in_memory(name, np.ascontiguousarray(np.stack(rows).reshape(len(rows), *t.shape[1:])[cut]), "F32"))

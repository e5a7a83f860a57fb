"""An excerpt of a GGUF: the cut of its first layers and the tokens of one text, dequantized to float32.

What a runtime computes from it differs from the reference by float32 alone, so that recipe and wiring of the file's own weights are
judged as strictly as a twin's, whatever type they have.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from ..families.schema import numbered
from .cut import Cut, last_sees_all, write_cut

LAYERS = 8  # at most
BYTES, MOST = 1 << 30, 4 << 30  # of layers in float32: fewer go into an excerpt, and none is made where one layer has more than MOST


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
    return last_sees_all(c, n) or n


def write_excerpt(c: Checkpoint, ids: NDArray[np.int64], out: Path) -> tuple[Checkpoint, NDArray[np.int64]]:
    """(the excerpt of a GGUF, opened, `ids` in its own vocabulary, int64[n]). Raises Unsupported for a type that is not read."""
    tokens, own = np.unique(ids, return_inverse=True)
    return write_cut(c, Cut(tuple(range(layers_of(c))), tokens, f32=True), out), own.astype(np.int64)

"""What each runtime will compute from a config.json or from GGUF keys: its frequency table, multiplier and context.

A writer that wants every runtime to agree has to know how each of them reads. `read_config` and `read_gguf` say it,
without the runtimes: the arithmetic that they share is written once, and what sets them apart is a row of `HF_READERS`.
The rows were checked against the runtimes' own code (`tests/data/readers.json`); `docs/formats.md` is the prose.

The tables are float64. The runtimes work in float32, so what they compute differs from these by a few units of 2^-24, times the
factor where a YaRN ramp ends: alike for every file that says the same, so that it is no reason to write another. A row says
which model types it is modelled for (`Reader.models`), the rows of `families` what sets these apart; for any other there
is no reading, and no claim.
"""

from .config import oldest, read_config
from .gguf import (
    BY_LAYER,
    OLLAMAS,
    UNREAD,
    UNTOLD,
    Flags,
    check_keys,
    factor_pairs,
    gguf_betas,
    gguf_floor,
    gguf_other_layers,
    gguf_theta,
    has_other_layers,
    of_layers,
    read_gguf,
    still,
    unread,
)
from .reading import Beside, Reading, Refuses
from .rows import HEAD_DIM_UNFILLED, HF_READERS

__all__ = [
    "BY_LAYER",
    "HEAD_DIM_UNFILLED",
    "HF_READERS",
    "OLLAMAS",
    "UNREAD",
    "UNTOLD",
    "Beside",
    "Flags",
    "Reading",
    "Refuses",
    "check_keys",
    "factor_pairs",
    "gguf_betas",
    "gguf_floor",
    "gguf_other_layers",
    "gguf_theta",
    "has_other_layers",
    "of_layers",
    "oldest",
    "read_config",
    "read_gguf",
    "still",
    "unread",
]

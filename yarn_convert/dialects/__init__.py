"""The spellings of a `Rope`: config.json (transformers 4 and 5) and GGUF, both directions.

A dialect says exactly what the canonical recipe says, or raises `Inexpressible` with the reader and the way out; what it
does not understand it refuses. `rope.same` decides what "exactly" means: the same formula, of numbers that are equal once stored as
float32, as every GGUF field is. What a runtime's own float32 arithmetic then loses is no difference between files.
"""

from .config_json import BESIDE, HF_METHODS, HF_WRITERS, hf_context, hf_head_dim, hf_metadata, hf_read, hf_tensors
from .gguf import (
    FACTORS,
    GGUF_WRITERS,
    ROPE_FREQS,
    gguf_metadata,
    gguf_read,
    gguf_still,
    gguf_tensors,
    gguf_window_layers,
    pair_of,
)
from .shared import number, positive_int, spelled_as, static_table

__all__ = [
    "BESIDE",
    "FACTORS",
    "GGUF_WRITERS",
    "HF_METHODS",
    "HF_WRITERS",
    "ROPE_FREQS",
    "gguf_metadata",
    "gguf_read",
    "gguf_still",
    "gguf_tensors",
    "gguf_window_layers",
    "hf_context",
    "hf_head_dim",
    "hf_metadata",
    "hf_read",
    "hf_tensors",
    "number",
    "pair_of",
    "positive_int",
    "spelled_as",
    "static_table",
]

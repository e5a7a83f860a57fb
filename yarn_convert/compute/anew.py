"""A text that grows past the length at which transformers switches lists, generated without mixing both.

transformers keeps keys as they were turned: those of the short list stay in the cache and meet queries of the long one (docs/formats.md has
what that costs). Phi-3's code drops its cache there, once; this does the same for every other model.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

from ..errors import UsageError
from ..rope import METHODS

SWITCHING = next(row for row in METHODS.values() if row.switches)
NEW = "next_sequence_length"  # of prepare_inputs_for_generation: how many tokens a pass reads; None: all that there are


@contextlib.contextmanager
def reading_anew(model: Any) -> Iterator[Any]:
    """Within it `model.generate`, of a loaded transformers model, reads a text anew where it grows past L, once, and goes on with the
    cache of that pass: every token is then what a fresh pass over the text before it gives. A model of one table is left as it is.

    A cache that is handed to `generate` is not written to from there on; what `generate` returns has the new one. UsageError for a
    transformers that is not known: 4 has no switch, and mixes nothing.
    """
    length = switched_at(model.config.get_text_config())
    own = model.prepare_inputs_for_generation
    if not length:
        yield model
        return
    from transformers import GenerationMixin, __version__

    if NEW not in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters:
        raise UsageError(f"transformers {__version__} prepares its passes in a way that is not known", "pip install -U transformers")

    @functools.wraps(own)
    def prepared(input_ids: Any, *args: Any, past_key_values: Any = None, attention_mask: Any = None, **more: Any) -> Any:
        cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        there = input_ids.shape[1]
        padding = 0 if attention_mask is None or attention_mask.ndim != 2 else there - int(attention_mask.sum(-1).max())
        if cached and cached - padding <= length < there - padding:
            past_key_values, more[NEW] = None, None
        return own(input_ids, *args, past_key_values=past_key_values, attention_mask=attention_mask, **more)

    model.prepare_inputs_for_generation = prepared
    try:
        yield model
    finally:
        del model.prepare_inputs_for_generation


def switched_at(config: Any) -> int:
    """L of a transformers configuration with two lists that differ; 0 for one of a single table."""
    said = getattr(config, "rope_parameters", None) or {}
    objects = [said, *(x for x in said.values() if isinstance(x, dict))]  # one, or one for each type of layers
    two = (x for x in objects if x.get("rope_type") in SWITCHING.hf and len({tuple(x[name]) for name in SWITCHING.lists}) > 1)
    return next((int(x["original_max_position_embeddings"]) for x in two), 0)

"""Is it the base's model: what config.json, a GGUF's keys and transformers' defaults say beside the recipe, compared.

The reference is made of the output's own values as a runtime's model is, so no logits show another one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.config import NESTS
from ..checkpoint.manifest import Manifest
from ..dialects.config_json import BETA
from ..families import normalized
from ..families.architectures import below
from ..families.derived import ODD
from ..families.schema import ROPE_OBJECTS, rope_says
from ..readers.rows import OTHER_LENGTHS
from ..targets.safetensors import unplaced_keys
from .reference import LEFT_OUT, config_of, with_torch

RECIPES = {"max_position_embeddings", "original_max_position_embeddings", "rope_theta", "rope_parameters", *OTHER_LENGTHS}
SIZES = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim")
NEUTRAL = {  # what says no more than layer_types and the tensors do, is for training, or of the type that sums are made in
    "max_window_layers", "sliding_window_pattern", "num_nextn_predict_layers", "multi_query", "new_decoder_architecture",
    "num_ln_in_parallel_attn", "output_router_logits", "seq_aux", "enable_moe_fp32_combine",
    "mamba_chunk_size",
}  # fmt: skip
TRAINING = ("dropout", "pdrop", "_coef", "_alpha", "_noise")  # how keys end that no forward pass depends on


def other_model(c: Checkpoint, base: Checkpoint, off: bool = False) -> str:
    """Which value, the recipe's apart, makes `c` another model than `base` with the very same weights; "" if none does.

    `off`: a sliding window was turned off on purpose. Raises InputError for a config.json of which transformers can make no model.
    """
    if c.gguf and not base.gguf and not (c.family.listed and base.family.listed):  # the reference is the base's own: its logits tell
        sizes = ((k, c.hparams.get(k), base.hparams.get(k)) for k in SIZES)
        return "; ".join(f"{k} is {a!r}, the base's {b!r}" for k, a, b in sizes if a != b)
    if c.family.model_type != base.family.model_type and c.family.gguf_arch != base.family.gguf_arch:
        return f"its architecture is {c.family.name}, the base's {base.family.name}"
    around = [{k: v for k, v in x.around.items() if k not in LEFT_OUT} for x in (c, base)]
    if not c.gguf and not base.gguf and (c.nest != base.nest or around[0] != around[1]):
        return "what stands around its language model is not the base's"
    folder, base = base, base.written_as(c.family.gguf_arch) if c.gguf and not base.gguf else base
    if base.own_window and not c.window and base.own_window < c.context and not off:
        return f"every token sees all before it, in the base a window of {base.own_window:,} (nothing records --sliding-window off)"
    unread = c.family.in_tensors.keys() - (c.hparams.keys() & base.hparams.keys())  # of a model whose weights are not here
    mine, theirs = ({k: x.hparams.get(k) for k in c.family.hparams if k not in unread} for x in (c, base))
    if not c.gguf and not base.gguf:
        no_window = off or bool(base.own_window)  # one that is left out is none to this context, by what is above
        sees_all = no_window and not c.window and {*(c.config.get("layer_types") or ())} <= {"full_attention"}
        sides = zip(_both(c, base.config), (mine, theirs), strict=True)
        aside = {*(WINDOW if sees_all else ()), *(c.family.multipliers if c.family.folded(c.config, base.config) else ())}
        mine, theirs = ({k: v for k, v in (x | y).items() if k not in aside} for x, y in sides)
        if key := _loaded_otherwise(c, folder.written):
            return f"its {key} is not the base's"
    elif c.gguf and base.gguf:
        mine, theirs = mine | _keys(c), theirs | _keys(base)
    elif odd := _odd(c, base):
        return f"{ODD.get(odd, odd)} is of one of the two only"
    return "; ".join(f"{key} is {a!r}, the base's {b!r}" for key, a, b in _different(c, mine, theirs, {*mine, *theirs}))


WINDOW = ("sliding_window", "use_sliding_window", "layer_types")
UNSAID = {"is_causal": True}  # what a config.json means that does not say so
OTHER_PARTS = ("rope.", "vision.", "mm.")  # of a GGUF: the recipe, and what a text does not pass through


def _both(c: Checkpoint, other: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a folder and those of another config.json, as transformers has them, and what else both say; as they stand where it
    has no code."""
    if c.family.hf.run_as and not c.around:
        return dict(c.config), dict(other)
    mine, theirs = _values(c), _values(replace(c, config=other))
    more = (c.config.keys() & other.keys()) - mine.keys()
    return mine | {k: c.config[k] for k in more}, theirs | {k: other[k] for k in more}


def _keys(c: Checkpoint) -> dict[str, Any]:
    """A GGUF's own keys that no row names: what they are for is not known, and so they have to be the base's."""
    arch, known = c.family.gguf_arch, {*c.family.gguf_known, "context_length"}
    keys = {"attention.causal": True} | below(arch, c.config)
    named = {c.family.gguf_key(k)[0].removeprefix(f"{arch}.") for k in c.family.hparams}
    return {k: v for k, v in keys.items() if k not in known and k not in named and not k.startswith(OTHER_PARTS)}


def _odd(c: Checkpoint, base: Checkpoint) -> str:
    """What a folder says that no GGUF of the family can, or the other way round; "" if nothing."""
    folder = base if c.gguf else c
    found = [k for k, usual in folder.family.fixed.items() if (v := folder.config.get(k)) is not None and v not in usual]
    declared = set() if c.gguf or (c.family.hf.run_as and not c.around) else _declared(_configuration(c))
    found += unplaced_keys(c) if c.gguf else [k for k, v in _undeclared(c, declared).items() if v != UNSAID.get(k) and (v or k in UNSAID)]
    return next(iter(found), "")


def changed_since(c: Checkpoint, manifest: Manifest | None) -> str:
    """Which value, the recipe's apart, is not what it was when the output was written, as far as the manifest knows; "" if none."""
    found = list[tuple[str, Any, Any]]()
    if manifest and (then := manifest.hparams) is not None:
        found += _different(c, c.hparams, then, then.keys() & c.family.hparams.keys())
    if manifest and c.gguf is None and (then := manifest.config) is not None:
        ours = {k: c.config[k] for k in ROPE_OBJECTS if k in c.config}  # a manifest has the recipe in their place
        mine, theirs = _both(c, normalized(c.family, {**then, **ours}))
        found += _different(c, mine, theirs, {*mine, *theirs} - c.family.hparams.keys())
        if key := _loaded_otherwise(c, then):
            return f"their {key} is not what it was when they were written"
    return "; ".join(f"{key} is {a!r}, and was {b!r} when they were written" for key, a, b in found)


def _different(c: Checkpoint, mine: Mapping[str, Any], theirs: Mapping[str, Any], keys: Set[str]) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(k for k in keys - RECIPES - LEFT_OUT - NEUTRAL - set(c.family.hf.lengths) if not k.endswith(TRAINING)):
        a, b = mine.get(key) or None, theirs.get(key) or None  # one that is off may go unsaid
        if a != b and not (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-6)):
            yield key, mine.get(key), theirs.get(key)


def _values(c: Checkpoint) -> dict[str, Any]:
    """What transformers reads from config.json that a forward pass depends on, with its defaults."""
    with_torch()  # for what it silences
    config = _configuration(c)
    known = _declared(config)
    return {k: v for k, v in config.to_dict().items() if k in known} | _undeclared(c, known) | _tempered(c)


def _configuration(c: Checkpoint) -> Any:
    """transformers' configuration of the language model, wherever that stands."""
    config = config_of(c)
    for key in c.nest or NESTS[0] * bool(c.around):
        config = getattr(config, key)
    return config


def _declared(config: Any) -> Set[str]:
    """The values that a configuration has by its class."""
    found: Set[str] = type(config)().to_dict().keys()
    return found


def _undeclared(c: Checkpoint, declared: Set[str]) -> dict[str, Any]:
    """Values of config.json that runtimes read from any model, though not every configuration declares them: a window (vLLM,
    config/model.py), and whether a token sees those after it (transformers, masking_utils.py)."""
    return {k: c.config.get(k, UNSAID.get(k)) for k in (*UNSAID, *WINDOW) if k not in declared}


def _tempered(c: Checkpoint) -> dict[str, Any]:
    """The temperature of the position, which stands in the RoPE objects and is none of the recipe, of a model that no hparam says it of."""
    if not c.family.hf.floor or BETA in c.family.hparams:
        return {}
    said = rope_says(c.config, BETA) if any(c.config.get(k) for k in ROPE_OBJECTS) else [c.family.hf.rope.get(BETA)]
    return {BETA: next(iter(said), None)}


def _loaded_otherwise(c: Checkpoint, then: Mapping[str, Any]) -> str:
    """Which key of config.json makes a loader pack the weights or run other code, and was not so in another; "" if none does."""
    return next((k for k in ("quantization_config", "auto_map") if c.written.get(k) and c.written[k] != then.get(k)), "")

"""Reads a config.json as the runtimes do: what they share is written once, what sets them apart is in `rows`, what each sees in `seen`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import Unsupported
from ..families.schema import ROPE_OBJECTS
from ..rope import Table, temperature
from .methods import FUNCTIONS, by_layer, yarn_factor
from .reading import NOT_MODELLED, Beside, Reading
from .rows import MSCALES, NEIGHBOURS
from .seen import READERS, Config, Seen, context_of, nested, refuse, seen, spelling


def read_config(reader: str, config: Config, length: int | None = None, served: int | None = None) -> Reading:
    """What `reader`, a key of READERS, computes for a text of `length` tokens; None: as long as its context. `served`: the context for
    which it is asked when it is started; None: its own.

    Without a context of its own the reader is taken at max_position_embeddings. Raises Refuses if it would fail, and
    Unsupported for what this module does not know.
    """
    try:
        with np.errstate(all="ignore"):
            return _read(reader, config, length, served)
    except (ArithmeticError, ValueError, TypeError) as e:  # a number in the file that has no logarithm, or is none
        refuse(READERS[reader], f"cannot compute from this: {e}")


def _read(reader: str, config: Config, length: int | None, served: int | None) -> Reading:
    rope = replace(seen(reader, config), served=served)
    context = context_of(rope)
    length = length or context or rope.max_position or 1
    inv_freq, multiplier = FUNCTIONS[rope.method](rope, length)
    make(rope)
    second = seen(reader, config, 1) if has_other_layers(rope) else None
    others = Table(*FUNCTIONS[second.method](second, length)) if second else None
    return Reading(inv_freq, multiplier, context, ignored_by(rope, multiplier), Beside(logits(rope), others, floor(rope), pairs(rope)))


def make(rope: Seen) -> None:
    """Refuse what the class that makes the model for `Reader.loads_by` cannot make, though the reader itself would not look at it."""
    if rope.row.loads_by:
        row = replace(READERS[rope.row.loads_by], name=rope.row.name, version=rope.row.version, partial=("ignores", ("dict", "top")))
        made = Seen.of(row, rope.config, rope.config.get("model_type", "llama"))
        FUNCTIONS[made.method](made, 1)


def has_other_layers(rope: Seen) -> bool:
    return bool(rope.facts.layers) and "sliding_attention" in (rope.config.get("layer_types") or rope.facts.layers)


def logits(rope: Seen) -> float:
    """What mscale_all_dim of a model with multi-head latent attention multiplies the logits by (`yarn_apply_mscale`)."""
    scales = rope.config.get("model_type") in rope.row.scales_softmax and rope.method != "default"
    all_dim = rope.dict.get("mscale_all_dim") if scales else None
    return temperature(rope.number("factor"), all_dim) ** 2 if all_dim else 1.0


def floor(rope: Seen) -> int:
    """`Beside.floor`: get_llama_4_attn_scale of models/ministral3/modeling_ministral3.py."""
    if not (rope.facts.floor and rope.dict.get("llama_4_scaling_beta")):
        return 0
    homes = {"dict": rope.dict, "top": rope.config, "yarn": rope.dict if rope.method == "yarn" else {}}
    found = (homes[x].get("original_max_position_embeddings") if isinstance(x, str) else x for x in rope.row.floor)
    return int(next((x for x in found if x), 0))


def pairs(rope: Seen) -> str:
    """`Beside.pairs`."""
    if rope.row.halves.get(rope.method) == "turns":
        return "halves"
    model_type = rope.config.get("model_type", "llama")
    key, neighbours = rope.row.neighbours.get(model_type, ("", True))
    if key not in rope.config:
        return ""
    said = rope.config[key]
    if not isinstance(said, bool):
        raise Unsupported(f"{key} {said!r} is not modelled", NOT_MODELLED)
    turned = said == neighbours
    if turned == (model_type in NEIGHBOURS):
        return ""
    if rope.method == "longrope":  # of which a class may know one of the two alone
        raise Unsupported(f"{key} with longrope is not modelled", NOT_MODELLED)
    return "neighbours" if turned else "halves"


def oldest(reader: str, config: Config) -> str:
    """The oldest version of `reader` that was run on such a config.json of yarn-convert's and takes it as `read_config` says."""
    rope = seen(reader, config)
    if rope.method == "longrope" and rope.dict.get("short_factor") != rope.dict.get("long_factor"):
        return rope.row.version  # of two lists no other was run
    newer = rope.row.yarn_by_layer if by_layer(rope) and rope.method == "yarn" else ""
    return rope.row.version if nested(config) else newer or rope.facts.since or rope.row.oldest or rope.row.version


def ignored_by(rope: Seen, multiplier: float) -> tuple[str, ...]:
    """What the reader overlooks: keys of the dict it follows, a theta that it does not take, a dict that differs."""
    values, method = rope.dict, rope.method
    same: dict[str, Any] = {
        "truncate": rope.row.rounds_ramp,
        **dict(zip(("beta_fast", "beta_slow"), rope.row.betas or (), strict=False)),
        "short_factor": values.get("long_factor"),
        "factor": yarn_factor(rope) if method == "yarn" else None,
        "original_max_position_embeddings": rope.original,
        **dict.fromkeys(MSCALES | {"attention_factor"}, multiplier),
    }
    if method == "yarn" and values.get("mscale") and values.get("mscale_all_dim"):
        ratio = temperature(same["factor"], values["mscale"]) / temperature(same["factor"], values["mscale_all_dim"])
        same |= {key: values[key] for key in ("mscale", "mscale_all_dim") if close(ratio, multiplier)}
    if values.get("attention_factor") is not None and same["short_factor"] == values.get("short_factor"):
        same["original_max_position_embeddings"] = values.get("original_max_position_embeddings")
    unread = {"truncate"} if by_layer(rope) and method == "yarn" else set()
    keys = sorted((rope.row.ignores.get(method, frozenset()) | unread) & values.keys())
    found = [f"{rope.followed}.{k}" for k in keys if values[k] is not None and not close(values[k], same.get(k))]
    found += [f"{rope.followed}.{key}" for key in unheard_types(rope)]
    if "rope_theta" in values and not close(values["rope_theta"], rope.theta):
        found.append(f"{rope.followed}.rope_theta")
    others = [name for name in ROPE_OBJECTS if name != rope.followed.split(".")[0]]
    method = values.get("rope_type", method) if unheard_types(rope) else method  # said already
    mine = {k: v for k, v in values.items() if k != "type"} | {"rope_theta": rope.theta, "rope_type": method}
    for name in others:
        other = rope.config.get(name) or {}
        other = other.get(next(iter(rope.facts.layers)), other) if rope.facts.layers else other
        other = {k: v for k, v in (other or {}).items() if k != "type"}
        if any(mine.get(k) != v for k, v in other.items()):
            found.append(name)
    return tuple(found)


def unheard_types(rope: Seen) -> list[str]:
    """The keys that name a scaling which the reader passes over: it takes the model for an unscaled one."""
    if rope.method != "default" or spelling(rope.row, rope.dict, rope.config.get("model_type", "llama")) == "default":
        return []
    return [key for key in ("rope_type", "type") if rope.dict.get(key) not in (None, "default")]


def close(a: Any, b: Any) -> bool:
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return math.isclose(a, b, rel_tol=1e-6) if numbers else a == b

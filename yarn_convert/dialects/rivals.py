"""What a config.json says twice, and differently: readers take one or the other, and only its maker knows which is meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from .. import dialects
from ..errors import Disagreement, UsageError, no_such
from ..families.schema import ROPE_OBJECTS
from ..rope import Rope

Config = Mapping[str, Any]
TYPES = ("rope_type", "type")
TWICE = ("rope_theta", "original_max_position_embeddings")  # in a RoPE object and at the top level
KEEP = {  # what a user can keep -> which of two it is
    "rope_scaling": "the object of transformers 4",
    "rope_parameters": "the object of transformers 5",
    "rope_type": "in an object, not type",
    "type": "in an object, not rope_type",
    "top": "what stands at the top level of config.json, not in an object",
    "object": "what stands in an object, not at the top level",
    "attention_factor": "of longrope's multipliers that which transformers takes, or its default, not short_mscale and long_mscale",
}
LISTS_OWN = ("short_mscale", "long_mscale")  # a multiplier for each of longrope's lists, which vLLM and SGLang take


def read_rivals(config: Config, latent: bool, keep: Sequence[str] = ()) -> tuple[Config, Rope, Disagreement | None]:
    """(`config` with only what is in `keep` of two things, its recipe, None). Where two disagree still: (one without contradictions,
    its recipe, the disagreement). Raises as `dialects.hf_read` does, and UsageError for what cannot be kept."""
    for name in keep:
        config = kept(config, name)
    try:
        return config, dialects.hf_read(config, latent), None
    except Disagreement as e:
        for names in product((*ROPE_OBJECTS, ""), (*TYPES, ""), ("object", "top"), ("", "attention_factor")):
            left = config
            for name in filter(None, names):
                left = kept(left, name, must=False)
            try:
                return left, dialects.hf_read(left, latent), e
            except Disagreement:
                continue
        raise


def kept(config: Config, name: str, must: bool = True) -> Config:
    """`config` without the other of the two. UsageError where there is no such thing, unless `must` is false."""
    if name not in KEEP:
        raise no_such("--keep", name, KEEP)
    found = {k: config[k] for k in ROPE_OBJECTS if isinstance(config.get(k), dict) and config[k]}
    if name in ROPE_OBJECTS:
        if name not in found and must:
            raise UsageError(f"config.json has no {name} to keep", "leave out --keep")
        other = next(x for x in ROPE_OBJECTS if x != name)
        theta = config.get("rope_theta") or found.get(name, {}).get("rope_theta") or found.get(other, {}).get("rope_theta")
        return {k: v for k, v in config.items() if k != other} | ({"rope_theta": theta} if theta else {}) if name in found else config
    if name in TYPES:
        other = next(x for x in TYPES if x != name)
        return {**config, **{k: {x: y for x, y in v.items() if x != other or not v.get(name)} for k, v in found.items()}}
    if name == "attention_factor":
        if must and not any(x in v for v in found.values() for x in LISTS_OWN):
            raise UsageError(f"config.json has no {' and '.join(LISTS_OWN)} beside an attention_factor", "leave out --keep")
        return {**config, **{k: {x: y for x, y in v.items() if x not in LISTS_OWN} for k, v in found.items()}}
    if name == "top":
        said = {k for k in TWICE if config.get(k) is not None}
        return {**config, **{k: {x: y for x, y in v.items() if x not in said} for k, v in found.items()}}
    said = {x for v in found.values() for x in TWICE if v.get(x) is not None}
    return {k: v for k, v in config.items() if k not in said}

"""A config.json as one reader sees it: the dict that it follows, the method, θ, the dimensions and lengths. What they share is here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ..errors import Unsupported
from ..families import MODEL_TYPES, ModelType
from ..families.model_types import SHAPE
from .nested import WITHIN
from .others import OTHER_READERS
from .reading import NOT_MODELLED, Refuses
from .rows import HF_READERS, SCALED, TYPE_LAST, Reader

Config = Mapping[str, Any]
SAME_TYPES = (("longrope", "su"), ("default", "mrope"))  # rope_type and type, of `Reader.types_must_agree`
READERS: Mapping[str, Reader] = {**HF_READERS, **OTHER_READERS}


def nested(config: Config) -> bool:
    """Whether this is the language model's part of another's config.json, whose architecture is told with it."""
    return any(str(name).endswith("ForConditionalGeneration") for name in config.get("architectures") or ())


def row_of(reader: str, config: Config) -> Reader:
    """The row by which `reader` reads such a model. Unsupported where there is none."""
    row = READERS[reader]
    model_type = config.get("model_type", "llama")
    if nested(config) and not row.nested:
        for around in config["architectures"]:
            if (around, model_type) in WITHIN.get(reader, {}):
                return WITHIN[reader][around, model_type]
        raise Unsupported(f"what {row.name} makes of a {model_type} within another model is not known here", NOT_MODELLED)
    if model_type not in row.models:
        raise Unsupported(f"what {row.name} makes of model_type {model_type!r} is not known here", NOT_MODELLED)
    return row.variants.get(model_type, row)


def seen(reader: str, config: Config, layer: int = 0) -> Seen:
    """`config` as `reader` sees it, for the layers of that number in `ModelType.layers`. Raises as `read_config` does."""
    row, model_type = row_of(reader, config), config.get("model_type", "llama")
    facts = MODEL_TYPES[model_type]
    if facts.without and config.get(facts.without):
        raise Unsupported(f"{model_type} with {facts.without} has no RoPE", "there is nothing to extend")
    if row.refuses:
        refuse(row, row.refuses)
    return Seen.of(row, config, model_type, layer)


@dataclass(frozen=True, slots=True)
class Seen:
    """A config as one reader sees it."""

    row: Reader
    facts: ModelType
    config: Config
    followed: str  # the rope dict it follows
    dict: Config
    method: str
    theta: float
    dim: int
    max_position: int  # 0 if unknown; the reader then has no use for it
    original: float  # likewise
    served: int | None = None  # the context for which it was started, where that is not its own

    @staticmethod
    def of(row: Reader, config: Config, model_type: str, layer: int = 0) -> Seen:
        facts = MODEL_TYPES[model_type]
        config = {**config, **facts.first_layers(config)} if layer == 0 else config
        followed, chosen = rope_dict(row, config, facts, layer)
        of = 0 if row.one_theta else layer
        check_known(row, config, chosen)
        theta_key, usual_theta = list(facts.layers.values())[of] if facts.layers else (facts.theta_key, facts.theta)
        usual_theta = row.thetas.get(model_type, usual_theta)
        method = method_of(row, chosen, model_type, bool(followed))
        spelled = spelling(row, chosen, model_type) or "default"
        if (key := row.counts_with.get(method)) and config.get(key) is None:
            method = "default"
        alone = ("rope_theta", *(("original_max_position_embeddings",) if method in SCALED else ())) if facts.nested_alone else ()
        require(row, config, chosen if followed else None, spelled, (*facts.required.get(spelled, ()), *alone))
        if (key := facts.permits.get(spelled)) and config.get(key) is not True:
            refuse(row, f"{spelled} without {key}")
        max_position = config.get("max_position_embeddings") or ((facts.length or 0) if row.assumes_length else 0)
        if not max_position and method in row.max_position_required:
            refuse(row, f"{method} without max_position_embeddings")

        def find(key: str, places: Sequence[str | float], top_key: str = "") -> Any:
            """The value of `key` at the first of these places that has one."""
            v5 = config.get("rope_parameters") or {}
            homes: dict[Any, Config] = {"dict": chosen, "top": config, "rope_parameters": v5}
            assumed: dict[Any, Any] = {"max_position": max_position, "model": usual_theta}
            for place in places:
                name = top_key if top_key and place == "top" else key
                found = homes[place].get(name) if place in homes else assumed.get(place, place)
                if found is None and f"{place}.{key}" in row.nulls and name in homes[place]:
                    refuse(row, f"a null {name}")
                if found is not None:
                    return found
            return None

        fail(row, chosen, method)
        theta = find("rope_theta", row.theta, theta_key) if row.others_theta is None or layer == 0 else row.others_theta
        if theta is None:
            refuse(row, "without rope_theta")
        original = find("original_max_position_embeddings", original_places(row, facts, method))
        if method in SCALED and original is None:
            refuse(row, f"{method} without original_max_position_embeddings")
        if method in row.whole_lengths and isinstance(original, float):
            refuse(row, f"original_max_position_embeddings {original!r} is not written as an integer")
        unasked = row.partial[0] == "refuses-scaled" and method == "default" and facts.partial is None
        partial = find("partial_rotary_factor", () if unasked else row.partial[1], facts.partial_key)
        if partial is None and facts.partial is None:
            partial = next((config[key] for key in row.partial_names if config.get(key) is not None), None)
        partial = facts.part(config) if partial is None and row.assumes_partial else partial
        dim = rotary_dim(row, config, method, None if method == "proportional" else partial, model_type)
        return Seen(row, facts, config, followed, chosen, method, float(theta), dim, max_position, original or 0.0)

    def number(self, key: str) -> Any:
        """A number that the reader cannot do without, as it is written: an integer stays one."""
        value = self.dict.get(key, self.row.defaults.get(self.method, {}).get(key))
        if value is None:
            refuse(self.row, f"{self.method} needs a number for {key}")
        return value


def refuse(row: Reader, reason: str) -> NoReturn:
    raise Refuses(f"{row.name} {row.version}: {reason}")


def rope_dict(row: Reader, config: Config, facts: ModelType, layer: int) -> tuple[str, Config]:
    """The name of the rope dict that is followed, "" for none, and the dict."""
    if facts.layers:
        return layer_dict(row, config, facts, layer)
    followed = next((name for name in row.dicts if config.get(name) or (row.empty_counts and config.get(name) == {})), "")
    silent = config.get("rope_parameters") is None if "rope_parameters" in row.dicts else "rope_scaling" not in config
    if not followed and silent and row.assumes_length:  # it reads config.json through a config class of transformers
        return "", facts.rope
    chosen = config.get(followed) or {}
    if any(isinstance(x, Mapping) for x in chosen.values()):
        raise Unsupported(f"a rope dict per layer type in a {config.get('model_type')} is not modelled", NOT_MODELLED)
    return followed, chosen


def layer_dict(row: Reader, config: Config, facts: ModelType, layer: int) -> tuple[str, Config]:
    """The dict of one layer type: `rope_parameters` by layer, `rope_scaling` flat and over the first of them.

    Source: transformers 5.23 models/gemma3/configuration_gemma3.py convert_rope_params_to_dict. A flat `rope_parameters`
    is passed over, and an error together with `rope_scaling`; an absent dict is one of rope_type default.
    """
    nested, flat = config.get("rope_parameters"), config.get("rope_scaling") if layer == 0 else None
    if facts.nested_alone:
        if flat:
            refuse(row, "rope_scaling, which it takes for one of all layers")
        nested, flat = nested or facts.rope, None
    name = list(facts.layers)[layer]
    if "rope_parameters" not in row.dicts:  # transformers 4 knows one dict, for the first
        return ("rope_scaling", flat) if flat or (row.empty_counts and flat == {}) else ("", {})
    mine = (nested or {}).get(name)
    if facts.nested_alone and not mine:
        refuse(row, f"rope_parameters without {name}")
    if flat is None:
        return (f"rope_parameters.{name}", mine) if mine else ("", {})
    if nested is not None and mine is None:
        refuse(row, f"rope_scaling beside a rope_parameters without {name}")
    return "rope_scaling", {**(mine or {"rope_type": "default"}), **flat}


def check_known(row: Reader, config: Config, rope: Config) -> None:
    """Raise Unsupported for a key by which the reader computes another than is modelled."""
    for home, keys in ((rope, row.unknown.get("dict", {})), (config, row.unknown.get("top", {}))):
        found = next((key for key, usual in keys.items() if home.get(key) not in (None, usual)), None)
        if found is not None:
            raise Unsupported(f"what {row.name} makes of {found} is not known here", NOT_MODELLED)


def original_places(row: Reader, facts: ModelType, method: str) -> tuple[str | float, ...]:
    places = row.original.get(method, ())
    if facts.layers:
        return tuple(place for place in places if place != "top")
    return ("top", facts.original) if facts.original and places else places


def require(row: Reader, config: Config, rope: Config | None, spelled: str, more: tuple[str, ...] = ()) -> None:
    """Refuse unless config.json, and the rope dict if there is one, have every key that the reader insists on."""
    null = next((key for key in sorted(row.typed) if key in config and config[key] is None), None)
    if null:
        refuse(row, f"a null {null}")
    missing = [key for key in row.top_required if config.get(key) is None]
    missing += [key for key in row.top_present if key not in config]
    missing += [] if rope is None else [key for key in (*row.required.get(spelled, ()), *more) if rope.get(key) is None]
    if missing:
        refuse(row, f"{spelled} without {missing[0]}")


def fail(row: Reader, rope: Config, method: str) -> None:
    """Refuse a table that the reader makes and cannot use, or cannot make."""
    if row.three_axes and method not in row.three_axes and rope.get("mrope_section"):
        refuse(row, f"{method} in a model of pictures: its table takes one position of a token, which has three there")
    if row.halves.get(method) == "refuses":
        refuse(row, f"{method} in a model that turns neighbours: its class turns halves of a head alone")
    found = [key for key in row.forbidden.get(method, ()) if key in rope]
    if found:
        refuse(row, f"{method} with {found[0]}, which its class for pictures does not take")


def spelling(row: Reader, rope: Config, model_type: str) -> Any:
    """The type as it is written where the reader looks for it; None or empty: nowhere."""
    first, second = row.type_keys.get(model_type, TYPE_LAST)
    return rope.get(first) or rope.get(second)


def method_of(row: Reader, rope: Config, model_type: str, given: bool) -> str:
    first, second = row.type_keys.get(model_type, TYPE_LAST)
    spelled = spelling(row, rope, model_type)
    if row.null_type != "absent" and first in rope and rope[first] is None:
        if row.null_type == "fails":
            refuse(row, f"a null {first}")
        return "default"
    if row.type_required and given and not spelled:
        refuse(row, "a rope_scaling without a type")
    both = (rope.get(first), rope.get(second))
    if row.types_must_agree and {first, second} <= rope.keys() and both[0] != both[1] and both not in SAME_TYPES:
        refuse(row, f"rope_type {rope[first]!r} and type {rope[second]!r} conflict")
    where = row.spelled_in.get(spelled or "")
    if other := next((kind for kind, key in row.spelled_in.items() if rope.get(key) == kind != spelled), ""):
        raise Unsupported(f"what {row.name} makes of types {spelled!r} and {other!r} in one object is not known here", NOT_MODELLED)
    if not spelled or (where and rope.get(where) != spelled):
        return "default"
    facts = MODEL_TYPES[model_type]
    types = {**(facts.types or row.types), **facts.more_types}
    if spelled in row.unknown_types and spelled not in types:
        raise Unsupported(f"what {row.name} makes of rope type {spelled!r} is not known here", NOT_MODELLED)
    if spelled not in types and not row.other_types:
        refuse(row, f"unknown rope type {spelled!r}")
    return types.get(spelled, row.other_types)


def rotary_dim(row: Reader, config: Config, method: str, partial: float | None, model_type: str) -> int:
    facts = MODEL_TYPES[model_type]
    head_dim = config.get(facts.head_key)
    if row.derives_head_dim and head_dim not in (None, derived := quotient(config, facts)):
        refuse(row, f"head_dim {head_dim}: it takes heads for hidden_size / num_attention_heads = {derived} dimensions")
    if head_dim is None:
        if model_type in row.head_dim_unfilled and method in row.head_dim_required:
            refuse(row, f"{method} for {model_type} needs head_dim in config.json: the config class leaves it None")
        usual = facts.head_dim if row.assumes_head_dim else None
        if usual and facts.head_key in config:
            raise Unsupported(f"{facts.head_key} null in a {model_type} is not modelled", NOT_MODELLED)
        head_dim = usual or quotient(config, facts if row.assumes_length else None)
    if not facts.other_head_dim and "head_dim" in config and (not facts.head_key or config["head_dim"] != head_dim):
        refuse(row, f"head_dim {config['head_dim']}: the attention of {model_type} has {head_dim}")
    dim, attitude = int(head_dim * (1.0 if partial is None else partial)), row.partial[0]
    if facts.partial is not None:
        return dim
    if attitude == "ignores" or (attitude == "refuses-scaled" and method == "default"):
        return int(head_dim)
    if attitude != "rotates" and dim != head_dim:
        refuse(row, f"partial_rotary_factor {partial}: the attention of this model rotates whole heads")
    return dim


def quotient(config: Config, facts: ModelType | None) -> int:
    """The dimensions of a head, where config.json does not say it. `facts`: what a config class takes for the two, if one reads it."""
    usual = dict(zip(SHAPE, facts.shape, strict=False)) if facts else {}
    return int(config.get("hidden_size", usual.get("hidden_size")) // config.get("num_attention_heads", usual.get("num_attention_heads")))


def context_of(rope: Seen) -> int | None:
    """The longest text that the reader takes when the user asks for no length."""
    row, config = rope.row, rope.config
    known = {**config, "max_position_embeddings": rope.max_position or None}  # also where a config class assumes it
    found = (key if isinstance(key, int) else known.get(key) for key in row.context_keys)
    given = [value for value in found if value is not None] or [rope.max_position]
    factor = rope.dict.get("factor") or 1.0
    if row.context_rule == "none" or (row.context_rule == "no-window" and config.get("sliding_window")):
        return None
    if row.context_rule == "vllm":
        if rope.method == "longrope" and config.get("original_max_position_embeddings"):
            return int(config["original_max_position_embeddings"])
        longest = config.get("model_max_length") or min(given)
        return int(longest * (1.0 if rope.method in SCALED else factor))
    if row.context_rule == "tensorrt":
        return math.ceil(given[0] * (1.0 if rope.method in SCALED else factor))
    if row.context_rule == "sglang":
        scaled = rope.method in SCALED or "original_max_position_embeddings" in rope.dict
        return int(given[0] * (1.0 if scaled else factor))
    return int(given[0])

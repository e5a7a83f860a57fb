"""What is said of a model beside its weights and its tokenizer: name, origin, licence, languages, defaults of sampling.

A folder says it in the metadata of README.md, in config.json and generation_config.json; a GGUF under `general.*`. What llama.cpp's
converter makes of the first, gguf-py's own `Metadata` makes here too, and the way back is spelled so that it gives the same keys again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import FormatError
from .files import exists, read_text
from .gguf_file import ARRAY, SCALARS, Value, shortest

Json = dict[str, Any]
README = "README.md"
HUB = "https://huggingface.co/"
SAMPLING = {  # member of generation_config.json -> key below general.sampling (gguf-py/gguf/metadata.py, Metadata.load)
    "sequence": "sequence",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "temperature": "temp",
    "penalty_last_n": "penalty_last_n",
    "penalty_repeat": "penalty_repeat",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}
REPETITION = "repetition_penalty"  # transformers' name; it counts the whole text, which llama.cpp calls penalty_last_n = -1
SETS = {"do_sample": True, "temperature": 1.0, "top_k": 50, "top_p": 1.0, REPETITION: 1.0}  # transformers' own defaults (GenerationConfig)
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # the tokenizer's keys carry these
ENDS = ("eos", "eot", "eom")  # tokens at which llama.cpp ends a text (src/llama-vocab.cpp, special_eog_ids)
MORE_ENDS = "yarn_convert.eos_token_ids"  # of a GGUF: those of the folder that none of its keys names; llama.cpp finds some by their text
UNMOVED = ("transformers_version", "_from_model_config", "max_length", "use_cache", "return_dict", "do_sample", REPETITION, *IDS)
CARD = {  # key below general -> member of a card's metadata that Metadata.apply_metadata_heuristic reads first
    "name": "name", "author": "author", "version": "version", "organization": "organization", "finetune": "finetune",
    "basename": "basename", "description": "description", "size_label": "size_label", "license": "license",
    "license.name": "license_name", "license.link": "license_link", "source.url": "url", "source.doi": "doi", "source.uuid": "uuid",
    "source.repo_url": "repo_url", "tags": "tags", "languages": "language",
}  # fmt: skip
MADE = ("architecture", "type", "alignment", "file_type", "quantization_version", "base_model.count", "dataset.count")
LISTS = ("tags", "language", "languages", "datasets", "base_model")
CARD_TEXTS = frozenset(CARD.values()) - {*LISTS}
DERIVED = frozenset({"name", "organization", "version", "repo_url"})  # what the converter makes of an id on the Hub
WHOLE = ("top_k", "penalty_last_n", "mirostat")
PIPELINES = ("text-generation", "image-text-to-text", "any-to-any", "text2text-generation", "feature-extraction")


# -- a card -----------------------------------------------------------------------------------------------------------


def read_card(folder: Path) -> str:
    """README.md of a folder, "" where there is none. FormatError for one that is not UTF-8, or that is not the folder's own."""
    return read_text(folder, README).removeprefix("\ufeff") if exists(folder, README) else ""


def card_text(metadata: Mapping[str, Any], prose: str = "") -> str:
    """A model card. Metadata is written as YAML that is read as the same values."""
    import yaml

    return f"---\n{yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)}---\n" + (f"{prose}\n" if prose else "")


def front_matter(text: str) -> tuple[Json, str]:
    """(metadata, prose) of a model card. FormatError for metadata that is no YAML object."""
    if not text.lstrip("\ufeff \n\r\t").startswith("---"):
        return {}, text
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        card = ModelCard(text, ignore_metadata_errors=True)
        data = card.data.to_dict()  # type: ignore[no-untyped-call]
        order = [*getattr(card, "_original_order", ()), *data]  # as it is written: what is only read and written again stays
        return {key: data[key] for key in order if key in data}, card.text
    except (ValueError, YAMLError, RecursionError):
        raise FormatError(f"the metadata of {README} is not valid YAML", "fix the lines between its two ---") from None


# -- to a GGUF --------------------------------------------------------------------------------------------------------


def general_keys(
    card: Mapping[str, Any], config: Mapping[str, Any], generation: Mapping[str, Any], name: str, shapes: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Value], list[str]]:
    """(`general.*` of a model as llama.cpp's converter has them, notes on what could not be carried).

    `card`: the metadata of README.md; `name`: of the folder or repository; `shapes`: of each tensor, by its GGUF name.
    """
    from gguf import GGUFWriter, Metadata
    from gguf.utility import size_label

    total, shared, experts, count = parameters(shapes)
    said, odd = _sound(card)
    found = Metadata.apply_metadata_heuristic(Metadata(), said, dict(config), Path(name or "model"), total)
    for member, key in SAMPLING.items():
        setattr(found, f"sampling_{key}", _sampling(member, generation.get(member)))
    if found.sampling_penalty_repeat is None and _sampling(REPETITION, generation.get(REPETITION)) not in (None, 1.0):
        found.sampling_penalty_repeat, found.sampling_penalty_last_n = generation[REPETITION], -1
    found.name = found.name or name
    if total and found.size_label is None:
        found.size_label = size_label(total, shared, experts, count)
    writer = GGUFWriter(None, "")
    found.set_gguf_meta_model(writer)
    values = {key: _typed(value) for key, value in writer.kv_data[0].items() if key != "general.architecture"}
    return values, odd + _lost(generation)


def parameters(shapes: Mapping[str, Sequence[int]]) -> tuple[int, int, int, int]:
    """(all parameters, those that every token uses, those of one expert, experts) as gguf-py's `get_total_parameter_count` counts."""
    total, shared, expert, counts = 0, 0, 0, list[int]()
    for name, shape in shapes.items():
        size = math.prod(shape)
        total += size
        if "_exps." in name and len(shape) >= 3:
            counts.append(shape[-2 if ".bias" in name else -3])
            expert += size // counts[-1]
        else:
            shared += size
    return total, shared, expert, sum(counts) // len(counts) if counts else 0


def _sound(card: Mapping[str, Any]) -> tuple[Json, list[str]]:
    """(the members of a card that the converter can read, a note on those that have another type)."""
    sound, odd = Json(), []
    for key, value in card.items():
        if key == "language" and value is not None:  # YAML takes Norwegian for false
            value = ["no" if v is False else v for v in (value if isinstance(value, list) else [value])]
        if key == "license" and isinstance(value, list):
            value = ",".join(map(str, value))
        if isinstance(value, str):
            sound[key] = value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            sound[key] = str(value)
        elif isinstance(value, list) and all(_text_or_texts(v) for v in value) and key not in CARD_TEXTS:
            sound[key] = value
        elif value is not None and key in (*CARD.values(), *LISTS):
            odd.append(key)
    return sound, [f"README.md's {', '.join(odd)} are no text: they are not carried over"] if odd else []


def _text_or_texts(value: Any) -> bool:
    """What stands in a list of a card: a text, or for a base model or dataset an object of texts."""
    return isinstance(value, str) or (isinstance(value, dict) and all(isinstance(v, str) for v in (*value, *value.values())))


def _sampling(member: str, value: Any) -> Any:
    """A default of sampling as its key takes it, None for one that is absent or of another type."""
    if member == "sequence":
        return value if isinstance(value, str) else None
    sound = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**31
    return value if sound and (member not in WHOLE or int(value) == value) else None


def _typed(value: Any) -> Value:
    """A GGUFValue of gguf-py as ours."""
    number = int(value.type)
    if number == ARRAY:
        return Value("str[]", [str(v) for v in value.value])
    kind = SCALARS[number][0] if number in SCALARS else "str"
    return Value(kind, int(value.value) if kind in ("i32", "u32") else float(value.value) if kind == "f32" else value.value)


def ends_of(generation: Mapping[str, Any], config: Mapping[str, Any]) -> list[int]:
    """The tokens at which a folder's texts end: those of generation_config.json, else of config.json; one id or a list of them."""
    said = generation.get("eos_token_id", config.get("eos_token_id"))
    return [i for i in (said if isinstance(said, list) else [said]) if type(i) is int]


def _lost(generation: Mapping[str, Any]) -> list[str]:
    """A note on the members of generation_config.json that change what is generated and that a GGUF has no key for."""
    unsaid = [k for k, v in generation.items() if v not in (None, False, SETS.get(k)) and k not in (*SAMPLING, *UNMOVED)]
    unsaid += [k for k in SAMPLING if k in generation and generation[k] is not None and _sampling(k, generation[k]) is None]
    return [f"generation_config.json's {', '.join(sorted(unsaid))} have no place in a GGUF"] if unsaid else []


# -- from a GGUF ------------------------------------------------------------------------------------------------------


def to_card(keys: Mapping[str, Any]) -> Json:
    """The metadata of a README.md that gives the keys `general.*` of `keys` again, which are plain values; {} where there is nothing."""
    found: Json = {member: v for key, member in CARD.items() if isinstance(v := keys.get(f"general.{key}"), str | list) and v}
    tags = [t for t in found.pop("tags", []) if isinstance(t, str)]
    if tags and tags[-1] in PIPELINES:  # the converter puts it behind them
        found["pipeline_tag"] = tags.pop()
    found |= {"tags": tags} if tags else {}
    for kind, member in (("base_model", "base_model"), ("dataset", "datasets")):
        count = keys.get(f"general.{kind}.count")
        entries = [_origin(keys, f"general.{kind}.{i}.") for i in range(count)] if type(count) is int and count < 100 else []
        found |= {member: [e for e in entries if e]} if any(entries) else {}
    return found


def _origin(keys: Mapping[str, Any], prefix: str) -> Any:
    """A base model or a dataset: its id on the Hub, or all that is said of it."""
    said = {k.removeprefix(prefix): v for k, v in keys.items() if k.startswith(prefix) and isinstance(v, str)}
    url = said.get("repo_url", "")
    return url.removeprefix(HUB) if url.startswith(HUB) and url.count("/") == 4 and set(said) <= DERIVED else said


def to_generation(keys: Mapping[str, Any]) -> Json:
    """The members of a generation_config.json that give the keys `general.sampling.*` again."""
    found: Json = {m: shortest(v) for m, key in SAMPLING.items() if (v := keys.get(f"general.sampling.{key}")) is not None}
    if found.get("penalty_last_n") == -1 and "penalty_repeat" in found:
        found[REPETITION] = found.pop("penalty_repeat")
        del found["penalty_last_n"]
    samples = any(m in found for m in ("temperature", "top_k", "top_p", "min_p")) and found.get("temperature") != 0
    return {"do_sample": True, **found} if samples else found


def untold(keys: Iterable[str]) -> list[str]:
    """A note on the keys `general.*` that neither `to_card` nor `to_generation` has a place for."""
    told = {*CARD, *MADE, *(f"sampling.{key}" for key in SAMPLING.values())}
    names = [k.removeprefix("general.") for k in keys if k.startswith("general.")]
    left = [n for n in names if n not in told and not n.startswith(("base_model.", "dataset."))]
    return [f"no file of a folder has a place for general.{', general.'.join(left)}"] if left else []

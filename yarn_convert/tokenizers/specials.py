"""Owns what an HF folder says of special tokens and chat templates, found as gguf-py's SpecialVocab finds it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import Unsupported
from ..formats.contents import TEMPLATES
from ..formats.files import exists, inside, read_text
from .vocabulary import ADD_KEYS, SPECIAL_KEYS, TEMPLATE, Files, GgufValue, Json, as_id, as_list, as_object, bad, load

JINJA = "chat_template.jinja"


def special_keys(files: Files, config: Mapping[str, Any], wanted: Iterable[str], size: int) -> dict[str, GgufValue]:
    """Ids and add_* flags as gguf-py/gguf/vocab.py, SpecialVocab, finds them: post-processor, settings, config.json."""
    settings, types = dict(files.settings), list(wanted)
    if files.tokenizer:
        settings["bos_token"] = settings.get("bos_token") or settings.get("cls_token")
        settings["eos_token"] = settings.get("eos_token") or settings.get("sep_token")
    adds = _post_processor(files, settings, types)
    ids: dict[str, int] = {}
    entries = files.tokenizer.get("added_tokens") or []
    for name in types if files.settings else ():
        flag = settings.get(f"add_{name}_token")
        if isinstance(flag, bool):
            adds.setdefault(name, flag)
        entry = settings.get(f"{name}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(text, str) and (found := [item.get("id") for item in entries if item.get("content") == text]):
            ids[name] = as_id(found[0], size, f"{name}_token {text!r}")
    nested = config.get("text_config")
    for name in types:
        index = config.get(f"{name}_token_id")
        if index is None and isinstance(nested, Mapping):
            index = nested.get(f"{name}_token_id")
        if isinstance(index, int):  # a list of ids, as generation configs have, is passed over
            ids.setdefault(name, as_id(index, size, f"{name}_token_id of config.json"))
    keys: dict[str, GgufValue] = {SPECIAL_KEYS[name]: ("u32", index) for name, index in ids.items() if name in SPECIAL_KEYS}
    keys.update({ADD_KEYS[name]: ("bool", flag) for name, flag in adds.items() if name in ADD_KEYS})
    return keys


def _post_processor(files: Files, settings: Json, types: list[str]) -> dict[str, bool]:
    """add_* flags from tokenizer.json's post_processor; may name tokens in `settings` and append to `types`."""
    adds: dict[str, bool] = {}
    processor = files.tokenizer.get("post_processor")
    for part in processor.get("processors", [processor]) if processor else []:
        if part.get("type") == "ByteLevel":
            adds.setdefault("bos", False)
            adds.setdefault("eos", False)
        elif part.get("type") == "TemplateProcessing":
            _template(part, bool(files.settings), settings, adds, types)
        else:
            raise Unsupported(f"tokenizer.json has the post-processor {part.get('type')!r}", "GGUF has no place for it")
    return adds


def _template(part: Json, named: bool, settings: Json, adds: dict[str, bool], types: list[str]) -> None:
    """Reads one TemplateProcessing into the last three: first token BOS, last EOS, anything between A and B a separator."""
    single = [item.get("SpecialToken", {}).get("id") for item in part.get("single") or []]
    first, last = (single[0], single[-1]) if len(single) > 1 else (None, None)
    if first:
        if not named or not settings.get("bos_token"):
            settings["bos_token"] = first
        elif first != settings["bos_token"] and not settings.get("cls_token"):
            settings["cls_token"] = first
        adds["bos"] = first in (settings["bos_token"], settings.get("cls_token"))
    if last:
        if named and last != settings.get("eos_token"):  # the old one becomes end of turn
            spare = next((name for name in ("eot", "eom") if name not in types), None)
            if spare:
                types.append(spare)
                settings[f"{spare}_token"] = settings.get("eos_token")
        settings["eos_token"] = last
        adds["eos"] = True
    pair = [(item.get("SpecialToken", {}).get("id"), item.get("Sequence", {}).get("id")) for item in part.get("pair") or []]
    if pair and first and pair[0][0] == first:
        pair = pair[1:]
    if pair and last and pair[-1][0] == last:
        pair = pair[:-1]
    if len(pair) > 2 and pair[0][1] == "A" and pair[-1][1] == "B":
        ends = (settings.get("sep_token"), settings.get("eos_token"))
        middle = [token in ends for token, _ in pair[1:-1]]
        adds["sep"] = (middle[0] and not last) or (len(middle) == 2 and middle[1])
        if adds["sep"] and not settings.get("sep_token"):
            settings["sep_token"] = settings.get("eos_token")


def _additional(folder: Path) -> dict[str, str]:
    """The folder's other templates, by name."""
    more = inside(folder, TEMPLATES)
    return {name.removesuffix(".jinja"): read_text(more, name) for name in sorted(p.name for p in more.glob("*.jinja"))}


def left_templates(files: Files) -> list[str]:
    """The files with a template that transformers has and `chat_templates` has not."""
    folder, kept = files.folder, {text.rstrip("\n") for _, text in chat_templates(files).values() if isinstance(text, str)}
    there = {JINJA: read_text(folder, JINJA)} if exists(folder, JINJA) else {}
    there |= {f"{TEMPLATES}/{name}.jinja": text for name, text in _additional(folder).items()}
    return [name for name, text in there.items() if text.rstrip("\n") not in kept]


def chat_templates(files: Files) -> dict[str, GgufValue]:
    """Chat templates: one, or a default and named ones; read only beside a tokenizer_config.json, which wins, and named files only
    beside a `JINJA`."""
    if exists(files.folder, JINJA):
        found: Any = read_text(files.folder, JINJA)
        if more := _additional(files.folder):
            found = [{"name": "default", "template": found}, *({"name": name, "template": text} for name, text in more.items())]
    else:
        found = load(files.folder / "chat_template.json").get("chat_template")
    found = files.settings.get("chat_template", found)
    if not files.settings or found is None:
        return {}
    if isinstance(found, str):
        found = [{"name": "default", "template": found}]
    templates: dict[str, str] = {}
    for entry in as_list(found, "chat_template"):
        name = re.sub("[^A-Za-z0-9]", "_", str(as_object(entry, "a chat template").get("name", "")))
        if not isinstance(entry.get("template"), str):
            raise bad(f"chat template {name!r} is {type(entry.get('template')).__name__}, not text")
        templates[name] = entry["template"]
    templates.pop("", None)
    default = templates.pop("default", None)
    keys: dict[str, GgufValue] = {f"{TEMPLATE}.{name}": ("str", text) for name, text in templates.items()}
    if templates:
        keys["tokenizer.chat_templates"] = ("str[]", list(templates))
    if default is not None:
        keys[TEMPLATE] = ("str", default)
    return keys

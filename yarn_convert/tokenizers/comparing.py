"""Owns `differences`: what two tokenizers have not in common, both in the one form that GGUF keys give, whatever they came from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import Unsupported
from .caveats import BY_TEXT as TEXTS
from .pretokenizers import pretokenizer_of
from .specials import chat_templates
from .vocabulary import (
    CONTROL,
    NORMAL,
    SPECIAL_TYPES,
    TEMPLATE,
    TYPES,
    USER_DEFINED,
    Files,
    Vocabulary,
    as_flag,
    as_list,
    load,
)
from .writing import specials_of, vocabulary_of

UNNAMED = "default"  # of a GGUF from before `tokenizer.ggml.pre`, and of SentencePiece's
SHOWN = 60  # characters of a text that differs
INFILL = tuple(f"fim_{name}" for name in ("pre", "suf", "mid", "pad", "rep", "sep"))
BY_TEXT = ("eot", "eom", *INFILL)  # ids that llama.cpp finds by their text too, and that HF files have no place for


class Canonical(NamedTuple):
    """A tokenizer without what is only spelling: no padding, with llama.cpp's defaults for absent keys, names of the same splits as one.

    `form` is the pre-tokenizer's splits and flags, None where no name is known for it. `templates` by name, "" for the default one.
    """

    kind: str
    vocabulary: Vocabulary
    merges: list[str]
    pre: str
    form: Any
    specials: dict[str, int]
    adds: dict[str, bool]
    prefix: bool
    templates: dict[str, str]


def added(keys: Mapping[str, Any]) -> list[str]:
    """The control and user-defined tokens of a GGUF's keys, by id."""
    pairs = zip(keys.get("tokenizer.ggml.tokens", []), keys.get("tokenizer.ggml.token_type", []), strict=False)
    return [text for text, of in pairs if of in (CONTROL, USER_DEFINED) and isinstance(text, str)]


class TokenizerSettings(NamedTuple):
    """What a folder says beside its vocabulary: special tokens by name, what is put beside a text, texts that are tokens of their own,
    the class that reads it, without "Fast", and chat templates, as llama.cpp's converter and as transformers take them."""

    named: dict[str, str | None]
    adds: dict[str, Any]
    special: set[str]
    reader: str
    templates: tuple[dict[str, str], dict[str, str]]


def settings(folder: Path) -> TokenizerSettings:
    """Of tokenizer_config.json, and of the older files where that is silent. InputError for files that cannot be read."""
    config, older = (load(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    files = Files(folder, load(folder / "tokenizer.json"), config)
    values = {name: config.get(f"{name}_token", older.get(f"{name}_token")) for name in SPECIAL_TYPES}
    named = {name: v.get("content") if isinstance(v, dict) else v for name, v in values.items()}
    keys, first = (  # transformers takes a chat_template.jinja before the settings
        {k: v for k, (_, v) in chat_templates(found).items()}
        for found in (files, files._replace(settings={k: v for k, v in config.items() if k != "chat_template"}))
    )
    return TokenizerSettings(
        named,
        {key: config.get(key) for key in ("add_bos_token", "add_eos_token", "add_prefix_space")}
        | {"split_special_tokens": bool(config.get("split_special_tokens"))},
        _made_special(files),
        str(config.get("tokenizer_class") or "").removesuffix("Fast"),
        (_templates(keys), _templates(first) or _templates(keys)),
    )


def _made_special(files: Files) -> set[str]:
    """Texts that are tokens of their own by tokenizer.json or by settings."""
    config = files.settings
    lists = [config.get("added_tokens_decoder"), config.get("additional_special_tokens"), config.get("extra_special_tokens")]
    entries = [e for found in lists for e in (found.values() if isinstance(found, dict) else found or [])]
    texts = {e.get("content") if isinstance(e, dict) else e for e in [*entries, *(files.tokenizer.get("added_tokens") or [])]}
    return {text.replace("▁", " ") for text in texts if isinstance(text, str)}  # which a GGUF has as a space


def canonical(keys: Mapping[str, Any]) -> Canonical:
    """The tokenizer of a GGUF's `tokenizer.*` keys, plain Python values. Errors as `to_hf`, but none for an unknown pre-tokenizer."""
    kind, found = vocabulary_of(keys)
    pre, row = str(keys.get("tokenizer.ggml.pre", UNNAMED)), None
    if kind == "gpt2":
        with contextlib.suppress(Unsupported):
            row = pretokenizer_of(pre)
    ids, adds = specials_of(keys, found, row, kind)
    by_text = {name: keys[key] for name in BY_TEXT if (key := f"tokenizer.ggml.{name}_token_id") in keys}
    size = len(found.tokens)
    while size and found.is_pad(size - 1):
        size -= 1
    vocabulary = Vocabulary(found.tokens[:size], found.types[:size], found.scores[:size])
    merges = as_list(keys.get("tokenizer.ggml.merges", []), "tokenizer.ggml.merges")
    prefix = as_flag(keys.get("tokenizer.ggml.add_space_prefix", kind == "llama"), "tokenizer.ggml.add_space_prefix")
    form = (row.steps, row.ignore_merges, row.normalizers) if row else None
    return Canonical(
        kind, vocabulary, merges, pre, form, {**ids, **by_text}, {k: v for k, v in adds.items() if v}, prefix, _templates(keys)
    )


def _templates(keys: Mapping[str, Any]) -> dict[str, str]:
    return {k.removeprefix(TEMPLATE).removeprefix("."): v for k, v in keys.items() if k == TEMPLATE or k.startswith(f"{TEMPLATE}.")}


def differences(mine: Canonical, theirs: Canonical) -> Iterator[str]:
    """What differs, one sentence for each kind of thing, "its" being `mine` and "the base's" `theirs`."""
    if mine.kind != theirs.kind:
        yield f"its tokenizer is of the kind {mine.kind}, the base's {theirs.kind}"
        return
    yield from _tokens(mine.vocabulary, theirs.vocabulary)
    yield from _scores(mine.vocabulary, theirs.vocabulary)
    yield from unlike("merges", mine.merges, theirs.merges)
    named = mine.pre != theirs.pre and UNNAMED not in (mine.pre, theirs.pre)
    if mine.form != theirs.form if mine.form and theirs.form else named:
        yield f"its pre-tokenizer is {mine.pre}, the base's {theirs.pre}"
    texts = [dict(enumerate(one.vocabulary.tokens)) for one in (mine, theirs)]
    for name in sorted(mine.specials.keys() | theirs.specials.keys()):
        a, b = mine.specials.get(name), theirs.specials.get(name)
        one = a if b is None else b if a is None else None
        if a != b and not (name in BY_TEXT and one is not None and texts[0].get(one, "") in TEXTS):
            yield f"its {name} token is {_token(a, texts[0])}, the base's {_token(b, texts[1])}"
    for name in sorted(mine.adds.keys() ^ theirs.adds.keys()):
        yield f"it puts {'a' if name in mine.adds else 'no'} {name} token beside a text, the base {'a' if name in theirs.adds else 'none'}"
    if mine.prefix != theirs.prefix:
        yield f"it puts {'a' if mine.prefix else 'no'} space before a text, the base {'a' if theirs.prefix else 'none'}"
    yield from unlike_templates(mine.templates, theirs.templates)


def _tokens(mine: Vocabulary, theirs: Vocabulary) -> Iterator[str]:
    """Tokens and their types; a token that only pads is as good as none."""
    size = max(len(mine.tokens), len(theirs.tokens))
    a, b = (
        [None if one.is_pad(i) else text for i, text in enumerate(one.tokens)] + [None] * (size - len(one.tokens)) for one in (mine, theirs)
    )
    if wrong := [i for i in range(size) if a[i] != b[i]]:
        at = wrong[0]
        yield f"{len(wrong):,} of its tokens are not the base's, first {at:,}: {_quoted(a[at])}, the base's {_quoted(b[at])}"
        return
    if wrong := [i for i in range(size) if a[i] is not None and mine.types[i] != theirs.types[i]]:
        at = wrong[0]
        kinds = f"{TYPES[mine.types[at]]}, in the base {TYPES[theirs.types[at]]}"
        yield f"{len(wrong):,} of its tokens are of another type, first {at:,}, {_quoted(a[at])}: {kinds}"


def _scores(mine: Vocabulary, theirs: Vocabulary) -> Iterator[str]:
    """By their order, which is all that merging by scores takes from them, among plain tokens."""
    if not mine.scores or not theirs.scores or mine.tokens != theirs.tokens:
        return  # other tokens have been said
    normal = np.array(mine.types) == NORMAL
    ranks = [np.unique(np.asarray(one.scores, np.float32)[normal], return_inverse=True)[1] for one in (mine, theirs)]
    if len(wrong := np.flatnonzero(ranks[0] != ranks[1])):
        first = int(np.flatnonzero(normal)[wrong[0]])
        yield f"its scores put {len(wrong):,} tokens in another order than the base's, first {first:,}: {_quoted(mine.tokens[first])}"


def unlike(what: str, mine: Sequence[Any], theirs: Sequence[Any]) -> Iterator[str]:
    """Where two lists differ first."""
    if list(mine) != list(theirs):
        at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
        a, b = (repr(side[at])[:SHOWN] if at < len(side) else "none" for side in (mine, theirs))
        yield f"its {what} are not the base's, first {at:,}: {a}, the base's {b}"


def unlike_templates(mine: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[str]:
    """Chat templates by name."""
    for name in sorted(mine.keys() | theirs.keys()):
        a, b = mine.get(name), theirs.get(name)
        what = f"chat template {name!r}" if name else "chat template"
        if a is None or b is None:
            yield f"it has {'no' if a is None else 'a'} {what}, the base {'one' if a is None else 'none'}"
        elif a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            yield f"its {what} is not the base's, from {a[at : at + 20]!r} on"


def _token(index: int | None, texts: Mapping[int, str]) -> str:
    return "none" if index is None else f"{index} ({_quoted(texts.get(index))})"


def _quoted(text: str | None) -> str:
    return "none" if text is None else repr(text)[:SHOWN]

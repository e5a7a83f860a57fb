"""Has an output the tokenizer of its base, whole: every token, merge, special id and template, and what it makes of a text?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from .. import tokenizers
from ..checkpoint import Checkpoint
from ..compute.tokens import TEXT, as_keys, gguf_keys, reading, tokenizer_of
from ..errors import InputError, Unsupported, YarnConvertError
from ..formats import files
from ..formats.decoding import parse
from .generation import named_otherwise

SAMPLE = 20_000  # characters of TEXT
AWKWARD = "12345 1,000.50\t  def f(x):\n\n    return x**2\r\n é 中文 🙂 I'll DON'T  "
SPECIALS = 100  # added tokens that are looked for in a text
SHOWN, SHOWN_TEXT = 3, 40  # differences in one line, characters of a text
PIECES = "tokenizer.model"
T = TypeVar("T")
VOCABULARIES = (  # files of a folder any of which is a tokenizer
    "tokenizer.json", PIECES, "vocab.json", "vocab.txt", "merges.txt", "tekken.json", "spiece.model", "*.tiktoken",
)  # fmt: skip
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template*", "additional_chat_templates/*.jinja")
GENERIC = ("", "PreTrainedTokenizer", "TokenizersBackend")  # classes that take tokenizer.json as it is; without "Fast"
OF_LENGTH = ("model_max_length",)  # settings that follow the context


def check_tokenizer(c: Checkpoint, base: Checkpoint | None) -> dict[str, Any]:
    """JSON: `verdict` "passed", "failed" or "unchecked", `why`, and the `differences`, one for each kind of thing."""
    if base is None:
        return _found("unchecked", "without a base there is nothing to compare")
    mine, theirs = has_tokenizer(c), has_tokenizer(base)
    if not theirs:
        return _found("unchecked", f"the base has no tokenizer{', and the model has one' if mine else ', nor has the model'}")
    if not mine and not c.source.has_weights:
        return _found("unchecked", "a description alone has no tokenizer")
    if not mine:
        return _found("failed", "it has no tokenizer, and the base has one")
    try:
        found = list(_differences(c, base))
    except Unread as e:
        return _found("unchecked", f"the base's tokenizer cannot be read: {e.message}")
    except YarnConvertError as e:
        return _found("failed", f"its tokenizer cannot be read as the base's can: {e.message}")
    why = f"{'; '.join(found[:SHOWN])}{f'; and {len(found) - SHOWN} more' if len(found) > SHOWN else ''}"
    return _found("failed" if found else "passed", why, found)


def _found(verdict: str, why: str, differences: list[str] | None = None) -> dict[str, Any]:
    return {"verdict": verdict, "why": why, "differences": differences or []}


def has_tokenizer(c: Checkpoint) -> bool:
    """Whether there are files or keys of a vocabulary, sound or not."""
    if c.gguf:
        return "tokenizer.ggml.tokens" in c.gguf.fields
    return any(True for pattern in VOCABULARIES for _ in c.source.path.glob(pattern))


class Unread(YarnConvertError):
    """The base's tokenizer is none that can be read here, so that it says nothing about the output's."""


def _of_base(read: Callable[[], T]) -> T:
    try:
        return read()
    except YarnConvertError as e:
        raise Unread(e.message) from None


def _differences(c: Checkpoint, base: Checkpoint) -> Iterator[str]:
    if c.gguf is None and base.gguf is None:
        yield from _of_folders(c, base)
    elif not (c.gguf and base.gguf and c.gguf.vocabulary == base.gguf.vocabulary):
        yield from _of_keys(c, base)
    yield from named_otherwise(c, base)
    if why := differs(c, base):
        yield why


def _of_keys(c: Checkpoint, base: Checkpoint) -> Iterator[str]:
    """In the form of GGUF keys; a folder whose pre-tokenizer has no name takes that of the GGUF, and the text decides."""
    pre = next((x.gguf.get("tokenizer.ggml.pre") for x in (c, base) if x.gguf), None)

    def keys(x: Checkpoint) -> Mapping[str, Any]:
        if x.gguf:
            return x.gguf.vocabulary
        try:
            return gguf_keys(x)
        except Unsupported:
            if pre is None:
                raise
            return gguf_keys(x, str(pre))

    theirs = _of_base(lambda: tokenizers.canonical(keys(base)))
    yield from tokenizers.differences(tokenizers.canonical(keys(c)), theirs)


# -- two folders ------------------------------------------------------------------------------------------------------


def _of_folders(c: Checkpoint, base: Checkpoint) -> Iterator[str]:
    """By their files where these are the same, else part by part."""
    mine, theirs = (_files(x) for x in (c, base))
    if mine == theirs:
        return
    keys = as_keys(c), as_keys(base)
    if "tokenizer.json" in mine and "tokenizer.json" in theirs:
        again, pieces = _there_and_back(base) if _same_in_gguf(*keys) else (None, None)
        theirs_read = _of_base(lambda: json.loads(tokenizer_of(base).to_str()))
        yield from tokenizers.unlike_files(json.loads(tokenizer_of(c).to_str()), theirs_read, again)
        others = (n for n in sorted(_vocabularies(mine)) if not n.endswith(".json") and mine[n] != theirs.get(n, mine[n]))
        yield from (f"its {n} is not the base's" for n in others if n != PIECES or mine[n] != pieces)
    elif _vocabularies(mine) != _vocabularies(theirs):
        yield from _of_keys(c, base)
        return
    yield from _settings(c, base, *keys)


def _same_in_gguf(mine: tokenizers.Canonical | None, theirs: tokenizers.Canonical | None) -> bool:
    """Whether a GGUF would hold the same of either."""
    return bool(mine and theirs and not any(tokenizers.differences(mine, theirs)))


def _there_and_back(c: Checkpoint) -> tuple[dict[str, Any], bytes | None]:
    """tokenizer.json, as the package tokenizers writes it, and tokenizer.model of a folder that was made of a GGUF of this one."""
    from tokenizers import Tokenizer

    made = tokenizers.to_hf(gguf_keys(c))
    return json.loads(Tokenizer.from_str(made["tokenizer.json"].decode()).to_str()), made.get(PIECES)


def _files(c: Checkpoint) -> dict[str, Any]:
    """What the files of a tokenizer hold, by name; of JSON the value, without lengths."""
    found: dict[str, Any] = {}
    for pattern in (*VOCABULARIES, *SETTINGS):
        for path in sorted(c.source.path.glob(pattern)):
            name = path.relative_to(c.source.path).as_posix()
            data = files.read(path.parent, path.name)
            found[name] = _json(data, name) if path.suffix == ".json" else data
    return found


def _json(data: bytes, name: str) -> Any:
    try:
        value = parse(data, strict=False)
    except ValueError:
        raise InputError(f"{name} is not JSON", "fetch the tokenizer files again") from None
    return {k: v for k, v in value.items() if k not in OF_LENGTH} if isinstance(value, dict) else value


def _vocabularies(found: Mapping[str, Any]) -> dict[str, Any]:
    settings = ("tokenizer_config", "special", "chat", "additional")
    return {name: value for name, value in found.items() if not name.startswith(settings)}


def _settings(c: Checkpoint, base: Checkpoint, keys: tokenizers.Canonical | None, base_keys: tokenizers.Canonical | None) -> Iterator[str]:
    """Special tokens, what is put beside a text, and what else changes how one is read, by tokenizer_config.json; templates, wherever
    they lie. What a folder leaves unsaid is what its `keys` say."""
    theirs = _of_base(lambda: tokenizers.settings(base.source.path))
    mine = tokenizers.settings(c.source.path)
    for (name, a), b in zip(mine.named.items(), theirs.named.values(), strict=True):
        if a != b and not (b is None and a is not None and a == _meant(base_keys, name)):
            yield f"its {name} token is {a!r}, the base's {b!r}"
    for (name, a), b in zip(mine.adds.items(), theirs.adds.values(), strict=True):
        if a != b and _put(a, name, keys) != _put(b, name, base_keys):
            yield f"its {name} is {a!r}, the base's {b!r}"
    if more := sorted(mine.special - theirs.special):
        yield f"it makes {more[0]!r} a special token, the base does not"
    if mine.reader not in (theirs.reader, *GENERIC):
        yield f"its tokenizer_class is {mine.reader}, the base's {theirs.reader or 'none'}"
    yield from dict.fromkeys(
        line for a, b in zip(mine.templates, theirs.templates, strict=True) for line in tokenizers.unlike_templates(a, b)
    )


def _meant(keys: tokenizers.Canonical | None, name: str) -> str | None:
    """The special token that the files do not name themselves: config.json has its id, or llama.cpp's converter knows of it."""
    index = keys.specials.get(name) if keys else None
    return keys.vocabulary.tokens[index] if keys and index is not None else None


def _put(said: Any, name: str, keys: tokenizers.Canonical | None) -> Any:
    """What a setting as add_bos_token comes to where it is not there: what the tokenizer does by its other parts."""
    if said is not None or keys is None:
        return said
    return keys.prefix if name == "add_prefix_space" else name.split("_")[1] in keys.adds


# -- a text -----------------------------------------------------------------------------------------------------------


def differs(c: Checkpoint, base: Checkpoint) -> str:
    """What of a text two tokenizers read otherwise, the base's added tokens in it; "" if nothing.

    Left out is what a GGUF cannot say: accents by themselves, which its tokenizer does not compose, and templates that put several
    tokens before a text (`tokenizers.caveats`).
    """
    specials = "a".join(_of_base(lambda: _added(base))[:SPECIALS]).replace("▁", " ")  # as a GGUF has it, and texts do
    text = TEXT.read_text("utf-8")[:SAMPLE] + AWKWARD + specials
    theirs = _of_base(lambda: reading(base, text))
    mine = reading(c, text)
    if list(mine.ids) == list(theirs.ids):
        return ""
    pairs = zip(mine.ids, theirs.ids, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(mine.ids), len(theirs.ids)) - 1)
    begin, end = theirs.offsets[at] if 0 <= at < len(theirs.offsets) else (0, SHOWN_TEXT)
    return f"it reads {text[begin:end][:SHOWN_TEXT]!r} otherwise than the base's does"


def _added(c: Checkpoint) -> list[str]:
    """Added tokens, by id."""
    if c.gguf:
        return tokenizers.added(c.gguf.vocabulary)
    return [t.content for _, t in sorted(tokenizer_of(c).get_added_tokens_decoder().items())]

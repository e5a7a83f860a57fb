"""Texts as a model reads them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import runtimes, tokenizers
from ..checkpoint import Checkpoint
from ..errors import InputError, YarnConvertError
from ..formats import files
from ..formats.contents import GENERATION
from ..formats.general import ends_of
from ..runtimes.environments import python_of

TEXT = Path(__file__).with_name("hamlet.txt")
NO_TEXT = "--twin validates the scaling without a text"


def json_of(c: Checkpoint, name: str) -> Mapping[str, Any]:
    """`Checkpoint.json_of`, but {} where that cannot be read: transformers goes on without it (generation/utils.py)."""
    with contextlib.suppress(YarnConvertError):
        return c.json_of(name)
    return {}


def ends(c: Checkpoint) -> set[int]:
    """The tokens at which generation ends: those of generation_config.json, else of config.json; a GGUF's one."""
    keys = {"eos_token_id": c.gguf.get("tokenizer.ggml.eos_token_id")} if c.gguf else c.config
    return {*ends_of(json_of(c, GENERATION), keys)}


def text_ids(c: Checkpoint, text: Path | None, n: int) -> NDArray[np.int64]:
    """`n` tokens of a text, int64[n]; it is repeated when it is too short. InputError for a text that gives none."""
    ids = reading(c, text_of(text or TEXT)).ids
    if ids and max(ids) >= c.hparams["vocab_size"]:
        raise InputError(f"the tokenizer of {c.source.name} gives tokens beyond its vocabulary", NO_TEXT)
    if not ids:
        raise InputError(f"the text {text} has no tokens", "give a longer one")
    return np.resize(np.asarray(ids, dtype=np.int64), n)


class Tokenized(NamedTuple):
    """The tokens of a text, and where in it each begins and ends; nowhere for llama.cpp's own."""

    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]] = ()


def reading(c: Checkpoint, content: str) -> Tokenized:
    """A text as a model's tokenizer reads it, nothing put beside it; as llama.cpp does where a GGUF's cannot be rebuilt, as of one from
    before `tokenizer.ggml.pre`. InputError where there is none, or it cannot be read."""
    try:
        tokenizer = tokenizer_of(c)
    except InputError as e:
        if not (c.gguf and "tokenizer.ggml.tokens" in c.gguf.fields) or python_of("llama.cpp") is None:
            raise
        with contextlib.suppress(runtimes.Failed):
            return Tokenized(runtimes.tokenize(c.source.path, content).tolist())
        raise e from None
    found = tokenizer.encode(content, add_special_tokens=False)
    return Tokenized(found.ids, found.offsets)


def text_of(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file. InputError where it cannot be read."""
    try:
        return path.read_text(encoding)
    except (OSError, UnicodeDecodeError) as e:
        why = getattr(e, "strerror", None) or "it is not UTF-8"
        raise InputError(f"cannot read the text {path}: {why}", "--text FILE, in UTF-8") from None


def tokenizer_of(c: Checkpoint) -> Any:
    """A model's tokenizer, of the package tokenizers, that neither cuts nor pads, whatever tokenizer.json says; a GGUF's is rebuilt.
    InputError for a model without one."""
    from tokenizers import Tokenizer

    try:
        if not c.gguf and files.exists(c.source.path, "tokenizer.json"):
            tokenizer = Tokenizer.from_str(files.read_text(c.source.path, "tokenizer.json"))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer
        keys = c.gguf.vocabulary if c.gguf else gguf_keys(c)
        return Tokenizer.from_str(tokenizers.to_hf(keys)["tokenizer.json"].decode())
    except Exception as e:  # the package raises Exception itself
        why = e.message if isinstance(e, YarnConvertError) else str(e)[:200]
        raise InputError(f"no tokenizer for {c.source.name}: {why}", NO_TEXT) from None


def gguf_keys(c: Checkpoint, pre: str | None = None) -> dict[str, Any]:
    """The tokenizer of a folder as a GGUF would spell it; `pre` names a pre-tokenizer that is not recognized."""
    return {k: v[1] for k, v in tokenizers.to_gguf(c.source.path, c.config, pre=pre).items()}


def as_keys(c: Checkpoint) -> tokenizers.Canonical | None:
    """A folder's tokenizer as a GGUF would have it, None where none can: what its files leave unsaid is said there."""
    with contextlib.suppress(YarnConvertError):
        return tokenizers.canonical(gguf_keys(c))
    return None

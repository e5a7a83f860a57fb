"""Texts as a model reads them, and whether an output reads them as its base does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import files, tokenizers
from ..checkpoint import Checkpoint
from ..errors import InputError, YarnConvertError

TEXT = Path(__file__).parents[1] / "data" / "hamlet.txt"
NO_TEXT = "--twin validates the scaling without a text"
SAMPLE = 20_000  # characters of TEXT
AWKWARD = "12345 1,000.50\t  def f(x):\n\n    return x**2\r\n é 中文 🙂 I'll DON'T  "
SPECIALS = 100  # added tokens that are looked for in a text


def text_ids(c: Checkpoint, text: Path | None, n: int) -> NDArray[np.int64]:
    """`n` tokens of a text, int64[n]; it is repeated when it is too short. InputError for a text that gives none."""
    content = read_text(text or TEXT)
    ids = tokenizer_of(c).encode(content, add_special_tokens=False).ids
    if ids and max(ids) >= c.hparams["vocab_size"]:
        raise InputError(f"the tokenizer of {c.source.name} gives tokens beyond its vocabulary", NO_TEXT)
    if not ids:
        raise InputError(f"the text {text} has no tokens", "give a longer one")
    return np.resize(np.asarray(ids, dtype=np.int64), n)


def read_text(path: Path, encoding: str = "utf-8") -> str:
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
        keys = c.gguf.vocabulary if c.gguf else _gguf_keys(c)
        return Tokenizer.from_str(tokenizers.to_hf(keys)["tokenizer.json"].decode())
    except Exception as e:  # the package raises Exception itself
        why = e.message if isinstance(e, YarnConvertError) else str(e)[:200]
        raise InputError(f"no tokenizer for {c.source.name}: {why}", NO_TEXT) from None


def _gguf_keys(c: Checkpoint) -> dict[str, Any]:
    """A folder with a tokenizer.model alone, as a GGUF would spell it."""
    return {k: v[1] for k, v in tokenizers.to_gguf(c.source.path, c.config).items()}


def check_tokenizer(c: Checkpoint, base: Checkpoint | None) -> dict[str, Any]:
    """Does `c` read a text as its base does? "unchecked" where one of them has no tokenizer here."""
    if base is None:
        return {"verdict": "unchecked", "why": "without a base there is nothing to compare"}
    try:
        why = differs(tokenizer_of(c), tokenizer_of(base))
    except InputError as e:
        return {"verdict": "unchecked", "why": e.message}
    return {"verdict": "failed" if why else "passed", "why": why}


def differs(mine: Any, theirs: Any) -> str:
    """What of a text two tokenizers read otherwise, the added tokens of `theirs` in it; "" if nothing.

    Left out is what a GGUF cannot say: accents by themselves, which its tokenizer does not compose, and templates that put several
    tokens before a text (`tokenizers.caveats`).
    """
    added = [t.content for _, t in sorted(theirs.get_added_tokens_decoder().items())][:SPECIALS]
    text = TEXT.read_text("utf-8")[:SAMPLE] + AWKWARD + "a".join(added)
    a, b = (tokenizer.encode(text, add_special_tokens=False) for tokenizer in (mine, theirs))
    if a.ids == b.ids:
        return ""
    at = next((i for i, pair in enumerate(zip(a.ids, b.ids, strict=False)) if pair[0] != pair[1]), min(len(a.ids), len(b.ids)) - 1)
    begin, end = b.offsets[at] if 0 <= at < len(b.ids) else (0, len(text))
    return f"it reads {text[begin:end][:40]!r} otherwise than the base's does"

"""Which of a recipe's two lists a reader takes for a text, in words: by what it switches, and how that is chosen."""

from __future__ import annotations

from collections.abc import Mapping

from ..rope import Rope
from .gguf import ALLOCATED
from .others_gguf import GGUF_READERS, GgufReader
from .rows import Reader
from .seen import READERS

BY: Mapping[str, str] = {  # `Reader.longrope_list`, `GgufReader.longrope_list`
    "length": "the length of the text, at each pass",
    "position": "the largest position of each pass",
    "context": "the context that it serves",
    "max_position": "max_position_embeddings in config.json, whatever it serves",
    "always": "nothing: it takes the long list for every text",
    "allocated": "the context that is allocated for a text",
}
AT_EACH_PASS = ("length", "position")  # so that one text may have both, where its keys are cached


def switches(reader: str, gguf: bool, rope: Rope, context: int) -> str:
    """By what `reader` of a folder, or of a GGUF, takes one of the two lists of `rope` over `context` tokens, and how one chooses; "" for
    one that knows no lists, or for a recipe of one table."""
    row: Reader | GgufReader = GGUF_READERS[reader] if gguf else READERS[reader]
    if not rope.row.switches or not row.longrope_list or (isinstance(row, Reader) and "longrope" not in row.types.values()):
        return ""
    within, text = rope.original_context, BY[row.longrope_list]
    if row.chosen:
        chosen = whole_context(reader, within)
        short = f"{row.chosen.format(n=chosen)} takes the short list" if chosen else f"none of its contexts is within {within:,} tokens"
        text += f": {short}, {row.chosen.format(n=context)} the long one for every text"
    if row.longrope_list in AT_EACH_PASS:
        text += f"; a text that grows past {within:,} tokens on cached keys, which keep the short list's angles, is to be read anew there"
    return text + (f". {row.switching_note}" if row.switching_note else "")


def whole_context(reader: str, within: int) -> int:
    """The largest context of at most `within` tokens that `reader` can be started for; 0 for none."""
    return within // ALLOCATED * ALLOCATED if reader in GGUF_READERS else within

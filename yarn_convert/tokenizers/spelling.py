"""Owns `unlike_files`: what two tokenizer.json have not in common that any text shows; the rest of what differs is spelling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .comparing import unlike
from .pretokenizers import plain, reached, steps_of
from .vocabulary import BYTE_ALPHABET, Json

COMPOSED = frozenset("K;`")  # of ASCII, what NFC makes of other characters too
FOR_UNKNOWN = {"unk_token", "fuse_unk"}  # of a model: what a vocabulary with every byte never comes to


class Spelled(NamedTuple):
    """A tokenizer.json in one spelling: tokens by id, added ones too, which `model.vocab` may have or not; its other parts by name."""

    tokens: dict[int, str]
    parts: dict[str, Any]


def unlike_files(mine: Json, theirs: Json, again: Json | None = None) -> Iterator[str]:
    """All three as the package tokenizers writes them. `again`: what the base's becomes on its way through a GGUF; of SentencePiece's kind
    that is as good, of byte level only where the merges leave no token to `ignore_merges`."""
    a, b, c = spelling_of(mine), spelling_of(theirs), spelling_of(again) if again else None
    byte_level = {"type": "ByteLevel"} in b.parts["decoder"]
    if a.tokens != b.tokens and (c is None or byte_level or a.tokens != c.tokens):
        at = min(i for i in a.tokens.keys() | b.tokens.keys() if a.tokens.get(i) != b.tokens.get(i))
        count = sum(a.tokens.get(i) != b.tokens.get(i) for i in a.tokens.keys() | b.tokens.keys())
        yield f"{count:,} of its tokens are not the base's, first {at:,}: {a.tokens.get(at)!r}, the base's {b.tokens.get(at)!r}"
    for part in sorted(a.parts.keys() | b.parts.keys(), key=lambda part: (part not in PARTS, part)):
        x, y = a.parts.get(part), b.parts.get(part)
        if x == y or (c and x == c.parts.get(part) and (part == "ignore_merges" and reached(theirs) if byte_level else part != BESIDE)):
            continue
        if isinstance(x, list) and isinstance(y, list) and part not in PARTS:
            yield from unlike(part, x, y)
        elif part in PARTS:
            yield f"its {part} {'are' if part.endswith('s') else 'is'} not the base's"
        else:
            yield f"its {part} is {x!r:.40}, the base's {y!r:.40}"


BESIDE = "post processor"
PARTS = ("added tokens", "normalizer", "pre tokenizer", BESIDE, "decoder")


def spelling_of(tokenizer: Json) -> Spelled:
    """A tokenizer.json without what no text shows."""
    model, added = tokenizer["model"], tokenizer.get("added_tokens") or []
    vocab = model["vocab"] if isinstance(model.get("vocab"), dict) else {}
    normalizer = steps_of(tokenizer.get("normalizer"), "normalizers")
    splits = [plain(step) for step in steps_of(tokenizer.get("pre_tokenizer"), "pretokenizers")]
    decoder = [{"type": "ByteLevel"} if s.get("type") == "ByteLevel" else s for s in steps_of(tokenizer.get("decoder"), "decoders")]
    every_byte = any(s.get("type") == "ByteLevel" for s in splits) and vocab.keys() >= BYTE_ALPHABET.keys()
    left_out = {"vocab"} if vocab else set()
    left_out |= FOR_UNKNOWN if every_byte else set()
    return Spelled(
        {i: text for text, i in vocab.items()} | {entry["id"]: entry["content"] for entry in added},
        {
            "added tokens": sorted((_added(entry, normalizer) for entry in added), key=lambda entry: int(entry["id"])),
            "normalizer": normalizer,
            "pre tokenizer": splits,
            BESIDE: _beside(tokenizer.get("post_processor")),
            "decoder": decoder,
            **{key: None if value == "" else value for key, value in model.items() if key not in left_out},
        },
    )


def _added(entry: Json, normalizer: list[Json]) -> Json:
    """An added token, without saying whether it is looked for before or after the normalizer where both find the same."""
    text = entry["content"]
    untouched = text.isascii() and not COMPOSED & set(text) and all(step == {"type": "NFC"} for step in normalizer)
    return {k: v for k, v in entry.items() if k != "normalized"} if untouched or not normalizer else entry


def _beside(processor: Any) -> Any:
    """What is put beside one text, and beside two: ids and "A" and "B". No model here has the types of tokens that a template gives too."""
    steps = processor.get("processors", [processor]) if processor else []
    found: list[Any] = []
    for step in steps:
        if step.get("type") == "TemplateProcessing":
            ids = {name: token["ids"] for name, token in step["special_tokens"].items()}
            template = {name: [_place(item, ids) for item in step[name]] for name in ("single", "pair")}
            found += [] if template == {"single": ["A"], "pair": ["A", "B"]} else [template]
        elif step.get("type") != "ByteLevel":  # which moves offsets alone
            found.append(step)
    return found


def _place(item: Json, ids: dict[str, list[int]]) -> Any:
    return item["Sequence"]["id"] if "Sequence" in item else ids.get(item["SpecialToken"]["id"])

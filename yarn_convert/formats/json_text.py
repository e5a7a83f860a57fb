"""Edits the members of a JSON object in its text: what is not edited keeps its bytes, order and number format."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .decoding import unique_keys

REMOVE = object()
_SPACE = re.compile(r"[ \t\r\n]*")


def pretty(value: Any) -> bytes:
    """A JSON file that we write whole, as the manifest is."""
    return (json.dumps(value, indent=2) + "\n").encode()


def edit(text: str, changes: Mapping[str, Any]) -> str:
    """`text`, a JSON object, with top-level members set to new values, or removed where the value is REMOVE.

    A member that is there keeps its place; new ones go to the end, indented as the others are. Raises ValueError for
    text that is not a JSON object.
    """
    spans, open_end, close = _members(text)
    indent = text[open_end : spans[0][1]] if spans else "\n  "
    step = indent.rpartition("\n")[2] if "\n" in indent else None
    pieces: list[str] = []
    for key, start, end in spans:
        if key not in changes:
            pieces.append(text[start:end])
        elif changes[key] is not REMOVE:
            pieces.append(_member(key, changes[key], step))
    present = {key for key, _, _ in spans}
    pieces += [_member(k, v, step) for k, v in changes.items() if k not in present and v is not REMOVE]
    between = text[spans[0][2] : spans[1][1]] if len(spans) > 1 else "," + indent
    tail = text[spans[-1][2] : close] if spans else "\n"
    return text[:open_end] + indent + between.join(pieces) + tail + text[close:]


def edit_within(text: str, path: Sequence[str], changes: Mapping[str, Any]) -> str:
    """`edit` of the object that `path` leads to from the top, key by key; all around it keeps its bytes. ValueError where it is none."""
    if not path:
        return edit(text, changes)
    for key, start, end in _members(text)[0]:
        if key == path[0]:
            value = _skip(text, _skip(text, json.JSONDecoder().raw_decode(text, start)[1]) + 1)
            return text[:value] + edit_within(text[value:end], path[1:], changes) + text[end:]
    raise ValueError(f"there is no {path[0]!r}")


def _member(key: str, value: Any, step: str | None) -> str:
    body = json.dumps(value, indent=step, ensure_ascii=False)
    return f"{json.dumps(key, ensure_ascii=False)}: " + (body.replace("\n", "\n" + step) if step else body)


def _members(text: str) -> tuple[list[tuple[str, int, int]], int, int]:
    """([(key, start, end of the member)], end of "{", start of "}")."""
    if not isinstance(json.loads(text, object_pairs_hook=unique_keys), dict):
        raise ValueError("not a JSON object")
    decode = json.JSONDecoder().raw_decode
    at = _skip(text, 0) + 1
    open_end, spans = at, []
    while text[at := _skip(text, at)] != "}":
        if text[at] == ",":
            at = _skip(text, at + 1)
        key, end = decode(text, at)
        _, end = decode(text, _skip(text, _skip(text, end) + 1))
        spans.append((key, at, end))
        at = end
    return spans, open_end, at


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()

"""JSON of strangers: parsed within limits, and decoded once, by a schema (msgspec), so that no other code asks for types.

A schema is a `msgspec.Struct`: members that it does not name are passed over, null counts as absent where it says `| None`.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, TypeVar

import msgspec

from ..errors import FormatError

T = TypeVar("T")
AGAIN = "fix it or download it again"
MAX_JSON = 100_000_000  # bytes of a text: the limit of the safetensors library's headers; the largest tokenizer.json known has 35 MB
MAX_NESTED = 1 << 21  # objects and lists in a text, of 60 to 200 bytes of memory each; the largest tokenizer.json known has 0.6 million
MAX_DEPTH = 100  # of objects within objects: what writes JSON again recurses
TOO_DEEP = f"its objects are nested more than {MAX_DEPTH} deep"

_WORDS = {
    "object": "an object", "array": "a list", "str": "a text", "int": "an integer", "float": "a number", "bool": "true or false",
}  # fmt: skip
_AT = re.compile(r"(.*?)(?: - at `(?:key in )?\$\.?(.*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected `([^`]*)`(.*?)(?:, got `(\w+)`)?", re.DOTALL)


def parse(data: bytes, strict: bool = True) -> Any:
    """The value of a JSON text. Raises ValueError for what is none, beyond the limits, and if `strict` for a duplicate key and for
    what is nested too deeply to be written again."""
    if len(data) > MAX_JSON:
        raise ValueError(f"it has {len(data):,} bytes, at most {MAX_JSON:,} are read")
    if (nested := data.count(b"{") + data.count(b"[")) > MAX_NESTED:
        raise ValueError(f"it has {nested:,} objects and lists, at most {MAX_NESTED:,} are read")
    if data.startswith(codecs.BOM_UTF8):
        raise ValueError("it begins with a byte order mark, which no reader of models takes: save it without")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys if strict else None)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if strict and _deeper(value, MAX_DEPTH - 1):
        raise ValueError(TOO_DEEP)
    return value


def _deeper(value: Any, depth: int) -> bool:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth < 0 or any(_deeper(v, depth - 1) for v in values if isinstance(v, dict | list))


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` that refuses a duplicate key: readers differ in which one they take."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        raise ValueError(f"duplicate key {next(k for k, _ in pairs if k in seen or seen.add(k))!r}")  # type: ignore[func-returns-value]
    return result


def decoded(value: Any, schema: type[T], what: str, hint: str = AGAIN) -> T:
    """`value`, parsed JSON, as `schema`. FormatError that names `what` and the member that has another type."""
    try:
        return msgspec.convert(value, schema)
    except UnicodeEncodeError:  # JSON can spell half a character
        raise FormatError(f"{what}: one of its texts is not valid Unicode", hint) from None
    except (msgspec.ValidationError, RecursionError) as e:
        raise FormatError(f"{what}: {_reason(str(e), value)}", hint) from None


def _reason(message: str, value: Any) -> str:
    """msgspec's message in our words: which member, what it is, what it has to be."""
    match = _AT.fullmatch(message)
    said, path = (match.group(1), match.group(2) or "") if match else (message, "")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", said):
        return f"{'.'.join(filter(None, (path, missing.group(1))))} is missing"
    name = path or "it"
    if not (match := _EXPECTED.fullmatch(said)):
        return f"{name}: {said[:1].lower()}{said[1:]}"
    kinds, more, _ = match.groups()
    wanted = " or ".join(_WORDS.get(kind, kind) for kind in kinds.split(" | ") if kind != "null")
    return f"{name} is {_found(value, path)}, not {wanted}{more}"


def _found(value: Any, path: str) -> str:
    """The value at a path as msgspec writes them, short; members of dictionaries have no name there."""
    for step in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (LookupError, TypeError, ValueError):
            return "of another type"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return "null" if value is None else repr(value)[:80]


def encoded(value: object) -> dict[str, Any]:
    """A dataclass or a Struct as JSON: tuples are lists, keys are texts, and what is UNSET is left out."""
    made: dict[str, Any] = json.loads(json.dumps(msgspec.to_builtins(value, str_keys=True)))
    return made


class Result:
    """What a function of the library returns: a frozen dataclass, and the same as JSON."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """As --json prints it."""
        return encoded(self)

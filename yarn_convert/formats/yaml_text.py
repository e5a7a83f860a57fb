"""YAML of strangers, as far as it says what JSON can: parsed within limits, plain words by the core schema of YAML 1.2.

PyYAML's own loaders follow YAML 1.1, where 1e6 is a text, 010 is 8 and 1:30 is 90; so only its events are taken.
"""

from __future__ import annotations

import re
from typing import Any

MAX_YAML = 1 << 20  # characters: some 50,000 numbers
MAX_DEPTH = 8  # of objects and lists within each other
_INT, NUMBER = re.compile(r"[-+]?[0-9]+"), re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{sign + word: float(sign + "inf") for sign in ("", "-", "+") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises ValueError for what is none, for what lies beyond the limits, and for what JSON has not: anchors
    and aliases, tags, keys that are no text, two of one name, several documents."""
    import yaml

    if len(text) > MAX_YAML:
        raise ValueError(f"it has {len(text):,} characters, at most {MAX_YAML:,} are read")
    documents: list[Any] = []
    open_: list[_Node] = []
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.NodeEvent) and (event.anchor is not None or getattr(event, "tag", None) is not None):
                raise ValueError("it has an anchor, an alias or a tag: write each value where it belongs")
            if isinstance(event, yaml.CollectionStartEvent):
                if len(open_) == MAX_DEPTH:
                    raise ValueError(f"its objects are nested more than {MAX_DEPTH} deep")
                open_.append(_Node({} if isinstance(event, yaml.MappingStartEvent) else []))
                continue
            if isinstance(event, yaml.ScalarEvent):
                value = _plain(event.value) if event.style is None else event.value
            elif isinstance(event, yaml.CollectionEndEvent):
                value = open_.pop().value
            else:
                continue
            if open_:
                open_[-1].take(value)
            else:
                documents.append(value)
    except (yaml.YAMLError, RecursionError) as e:
        raise ValueError(_short(e)) from None
    if len(documents) != 1:
        raise ValueError("it is empty" if not documents else "it has several documents")
    return documents[0]


class _Node:
    """An object or a list that is being read."""

    def __init__(self, value: dict[str, Any] | list[Any]) -> None:
        self.value = value
        self.key: str | None = None

    def take(self, value: Any) -> None:
        if isinstance(self.value, list):
            self.value.append(value)
        elif self.key is not None:
            self.value[self.key], self.key = value, None
        elif not isinstance(value, str):
            raise ValueError("one of its keys is no text")
        elif value in self.value:
            raise ValueError(f"duplicate key {value!r}")
        else:
            self.key = value


def _plain(word: str) -> Any:
    if word in _WORDS:
        return _WORDS[word]
    if _INT.fullmatch(word):
        return int(word)
    return float(word) if NUMBER.fullmatch(word) else word


def _short(e: BaseException) -> str:
    mark, problem = getattr(e, "problem_mark", None), getattr(e, "problem", None)
    return (f"{problem} in line {mark.line + 1}" if mark and problem else str(e) or type(e).__name__).splitlines()[0]

"""What stands beside a field that is an option, and what is made of such fields: `Help` is how the command line shows and reads it.

The fields themselves are in `options`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import no_such

P = ParamSpec("P")
A = TypeVar("A")
D = TypeVar("D")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Help:
    """What is said of a field at the command line, and how its value is read there.

    `names`: where it is not --the-name-of-the-field. `read` makes a value of the text, and raises ValueError or UsageError. `made` makes
    the field's value of what was read, of a list of texts. `least` is the least number. `argument`: it stands without a name.
    """

    text: str
    names: tuple[str, ...] = ()
    read: Callable[[str], object] | None = None
    made: Callable[[Any], object] | None = None
    metavar: str | None = None
    least: int | None = None
    argument: bool = False


@dataclass(frozen=True, slots=True)
class After:
    """The option behind which a field stands, of another part of its command."""

    name: str


@dataclass(frozen=True, slots=True)
class Group:
    """The heading in --help under which a field stands, and those that follow it in its dataclass; "" for the common ones."""

    name: str


@dataclass(frozen=True, slots=True)
class Only:
    """Of a part, the fields that are this command's; the others have their defaults."""

    names: frozenset[str]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", frozenset(names))


def option_names(name: str, told: Help) -> tuple[str, ...]:
    """A field as it is written at the command line."""
    return told.names or (f"--{name.replace('_', '-')}",)


def split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """(the type, what is written beside it in Annotated); of an optional type that type."""
    marks: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *found = get_args(hint)
        marks = tuple(found)
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return hint, marks


def help_of(kind: type, name: str) -> Help | None:
    """What is said of a field at the command line; None for one that only a file gives."""
    return next((m for m in split(hints(kind)[name])[1] if isinstance(m, Help)), None)


def spelled(kind: type, name: str) -> str:
    """A field of a dataclass as a user writes it: at the command line, or in a file alone."""
    told = help_of(kind, name)
    return option_names(name, told)[0] if told else name


@cache
def hints(kind: Hashable) -> dict[str, Any]:
    """The types of a dataclass's fields, with what is written beside them."""
    return get_type_hints(kind, localns={"KW_ONLY": Any}, include_extras=True)  # that mark is no type, which Python 3.10 refuses


def check_choices(asked: object) -> None:
    """Raise UsageError for a value that is none of those that its field's `Literal` names, in all parts."""
    kind = type(asked)
    for f in fields(kind):  # type: ignore[arg-type]
        value, (inner, marks) = getattr(asked, f.name), split(hints(kind)[f.name])  # type: ignore[arg-type]
        if is_dataclass(value):
            check_choices(value)
        elif get_origin(inner) is Literal and value is not None and value not in get_args(inner):
            told = next(m for m in marks if isinstance(m, Help))
            raise no_such(option_names(f.name, told)[-1], value, get_args(inner))


def with_paths(asked: D) -> D:
    """The same with a path wherever a text stands for one, as a notebook has it, in all parts."""
    kind, changes = type(asked), dict[str, Any]()
    for f in fields(kind):  # type: ignore[arg-type]
        value, inner = getattr(asked, f.name), split(hints(kind)[f.name])[0]  # type: ignore[arg-type]
        if is_dataclass(value):
            changes[f.name] = with_paths(value)
        elif inner is Path and isinstance(value, str):
            changes[f.name] = Path(value)
        elif inner == tuple[Path, ...]:
            changes[f.name] = tuple(map(Path, (value,) if isinstance(value, str) else value))
    return replace(asked, **changes) if changes else asked  # type: ignore[type-var]


def taking(options: Callable[P, D]) -> Callable[[Callable[[A, D], R]], Callable[Concatenate[A, P], R]]:
    """Lets a function of a model and a dataclass be called with that dataclass's own fields, by keyword."""

    def decorate(function: Callable[[A, D], R]) -> Callable[Concatenate[A, P], R]:
        @wraps(function)
        def call(model: A, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return function(model, with_paths(options(*args, **kwargs)))

        return call

    return decorate

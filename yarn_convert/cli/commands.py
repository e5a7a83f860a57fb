"""A command's options out of its dataclass's fields: what Typer is told of each, and the dataclass of what was given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TypeVar, get_args, get_origin, get_type_hints

import typer

from ..asking import After, Group, Help, Only, hints, option_names, split
from ..formats.files import FOLLOW
from ..options import Recipe
from .help import SETTINGS, Command, examples

D = TypeVar("D")
TOLD = ContextVar("TOLD", default=frozenset[str]())  # the fields whose options stand at the command line of the command that runs
CONTEXT = "typer_context"  # the parameter by which Typer hands a command its context, where the command asks for none itself
Model = Annotated[
    str,
    typer.Argument(
        help="An alias (see 'methods'), a Hub id or address, org/name-GGUF:Q4_K_M, a folder in HF layout, a .gguf file (of a split one the "
        "first part), or a Modelfile.",
        show_default=False,
    ),
]
Report = Annotated[Path | None, Help("Write an HTML page with plots to this file.")]
Replace = Annotated[bool, Help("Replace an existing report.")]
Quiet = Annotated[bool, Help("Only the result: no plan, no progress, no hints.", names=("-q", "--quiet"))]
DryRun = Annotated[bool, Help("Print the plan and stop.")]
JsonFlag = Annotated[bool, Help("Print the result as JSON on stdout.", names=("--json",))]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How a model's files are read."""

    follow_links: Annotated[
        bool, Help("Read links that lead out of a model's folder: they are yours, and so is what they name."), Group("Files")
    ] = False

    def obey(self) -> None:
        """Lets all that this command opens be a link to elsewhere; `cli.main` runs it in a context of its own."""
        if self.follow_links:
            FOLLOW.set(True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeOption:
    """A recipe that stands in a file; what is given beside it wins."""

    recipe: Annotated[
        Path | None,
        Help("A recipe's file, a manifest, or a list of factors; options given beside it win."),
        After("clip_pairs"),
        Group("Recipe"),
    ] = None

    def over(self, given: Recipe, like: str | None = None) -> Recipe:
        """The recipe of the command that runs, which was `given` these options: see `conversion.recipes.chosen`."""
        from ..conversion.recipes import chosen

        return chosen(given, TOLD.get(), self.recipe, like)


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonAlone:
    """How a command prints that says nothing else."""

    as_json: JsonFlag = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintOptions:
    """What a command prints."""

    as_json: JsonFlag = False
    quiet: Quiet = False

    @property
    def silent(self) -> bool:
        """Whether nothing is said beside the result."""
        return self.quiet or self.as_json


@dataclass(frozen=True, slots=True)
class Option:
    """One field that a user can set: where it stands in its command's dataclass, its type without marks, and its default, `MISSING` if it
    is required; `after` and `group`: see `After` and `Group`."""

    path: tuple[str, ...]
    type: Any
    help: Help
    default: Any
    after: str = ""
    group: str = ""

    @property
    def name(self) -> str:
        return self.path[-1]

    @property
    def spelled(self) -> tuple[str, ...]:
        """As it is written at the command line."""
        return option_names(self.name, self.help)


def options_of(kind: type) -> list[Option]:
    """All options of a command's dataclass, those of its parts included, in the order in which --help shows them."""
    found: list[Option] = []
    for option in _options(kind, ()):
        names = [o.name for o in found]
        found.insert(names.index(option.after) + 1 if option.after else len(found), option)
    return found


def _options(kind: type, path: tuple[str, ...]) -> Iterator[Option]:
    group = ""
    for f in fields(kind):
        inner, marks = split(hints(kind)[f.name])
        group = next((m.name for m in marks if isinstance(m, Group)), group)
        told = next((m for m in marks if isinstance(m, Help)), None)
        if is_dataclass(inner):
            only = next((m.names for m in marks if isinstance(m, Only)), None)
            yield from (o for o in _options(inner, (*path, f.name)) if only is None or o.name in only)  # type: ignore[arg-type]
        elif told is not None:
            after = next((m.name for m in marks if isinstance(m, After)), "")
            yield Option((*path, f.name), inner, told, _default(f), after, group)


def _default(f: Field[Any]) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def built(kind: type[D], values: dict[tuple[str, ...], Any], path: tuple[str, ...] = ()) -> D:
    """The dataclass with these values by path; an optional part of which nothing was given is None."""
    given: dict[str, Any] = {}
    for f in fields(kind):  # type: ignore[arg-type]
        inner, _ = split(hints(kind)[f.name])  # type: ignore[arg-type]
        here = (*path, f.name)
        if is_dataclass(inner):
            part = built(inner, values, here)  # type: ignore[arg-type]
            given[f.name] = None if f.default is None and part == inner() else part  # type: ignore[operator]
        elif here in values:
            given[f.name] = values[here]
    return kind(**given)


def command(app: typer.Typer, *shown: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function, whose dataclass parameters become options, one for each field that has a `Help`; they are built of what was
    given, and the function gets them. All other parameters are Typer's own. `shown`: the examples of its --help."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        app.command(cls=Command, context_settings=SETTINGS, epilog=examples(*shown) if shown else None)(spread(function))
        return function

    return register


def spread(function: Callable[..., None]) -> Callable[..., None]:
    """The function with the fields of its dataclass parameters in their place."""
    types = get_type_hints(function, include_extras=True)
    own = inspect.signature(function).parameters
    parts = {name: types[name] for name in own if is_dataclass(types[name])}
    options = {name: options_of(kind) for name, kind in parts.items()}
    context = next((name for name in own if types[name] is typer.Context), None)
    parameters = [own[name].replace(annotation=types[name]) for name in own if name not in parts]
    parameters += [parameter(option) for name in parts for option in options[name]]
    if context is None:
        parameters.append(inspect.Parameter(CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
    # Python wants those without a default first; Typer keeps the order among options, and that among arguments.
    parameters.sort(key=lambda p: p.default is not inspect.Parameter.empty)

    @wraps(function)
    def run(**given: Any) -> None:
        running = given[context] if context else given.pop(CONTEXT)
        TOLD.set(frozenset(name for name in running.params if getattr(running.get_parameter_source(name), "name", "") == "COMMANDLINE"))
        for name, kind in parts.items():
            found = {o.path: value for o in options[name] if (value := value_of(o, given.pop(o.name))) is not MISSING}
            given[name] = built(kind, found)
        function(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def parameter(o: Option) -> inspect.Parameter:
    """What Typer is told of an option: its type as text is read, its default as text, and its help."""
    kind, default, read, choices = o.type, o.default, o.help.read, ()
    empty = default is MISSING or default is None or default == ()
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        read = chosen_of(choices)
    if read is not None:
        kind, default = str, ",".join(map(str, default)) if isinstance(default, tuple) else default
    elif get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
    if empty and o.default is not MISSING:
        kind, default = Optional[kind], None
    h = o.help
    if h.argument:
        told: Any = typer.Argument(help=h.text, show_default=False)
    else:
        told = typer.Option(
            *o.spelled,
            help=h.text,
            parser=read,
            metavar=h.metavar or ("<str>" if choices else None),
            min=h.least,
            show_default=not empty,
            rich_help_panel=o.group or None,
            autocompletion=beginning_of(choices) if choices else None,
        )
    return inspect.Parameter(
        o.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if o.default is MISSING else default,
        annotation=Annotated[kind, told],
    )


def chosen_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    """Makes of a text the choice that differs in capitals alone; another stays, and `asking.check_choices` refuses it."""
    known = {choice.lower(): choice for choice in choices}
    return lambda text: known.get(text.lower(), text)


def beginning_of(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Makes of what was typed the choices that begin so, for a shell."""

    def begun(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete.lower())]

    return begun


def value_of(o: Option, given: Any) -> Any:
    """A field's value of what Typer gives; MISSING for the default."""
    if given is None or (given in ([], ()) and o.default == ()):
        return MISSING
    if o.help.made is not None:
        return o.help.made(given)
    return tuple(given) if isinstance(given, list) else given

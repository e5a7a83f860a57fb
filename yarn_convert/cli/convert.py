"""The command `convert`: parse, call, print; and what stands beside it, a proof, a Modelfile and a publication."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..asking import After, Group, Help
from ..errors import UsageError
from ..options import ConvertOptions, Like
from .commands import DryRun, Model, PrintOptions, ReadOptions, RecipeOption
from .progress import progress
from .proving import NOT_PASSED, check_can_prove, proved, publish
from .show import HubTalk, Talk, answer, next_steps, plan_json, plan_lines, room_lines, upload_lines

if TYPE_CHECKING:
    from ..conversion import Conversion, Converted
    from ..publishing.hub import Upload


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertCommand:
    options: ConvertOptions = field(default_factory=ConvertOptions)
    file: RecipeOption = field(default_factory=RecipeOption)
    like: Annotated[Like, After("recipe"), Group("Recipe")] = None
    validate: Annotated[
        bool,
        Help("Prove each output against MODEL, as 'validate --base MODEL' does; exit code 3 if one does not pass."),
        After("outtype"),
        Group(""),
    ] = False
    ollama: Annotated[
        bool, Help("Write a Modelfile beside each GGUF, and run 'ollama create' with it where Ollama is there."), After("validate")
    ] = False
    push: Annotated[
        str | None,
        Help("Publish on the Hub as user/name; a Hub base's unchanged weights are copied there."),
        After("hash"),
        Group("Hub"),
    ] = None
    private: Annotated[bool, Help("With --push: make a new repository private."), After("push")] = False
    allow_unvalidated: Annotated[bool, Help("With --push: it cannot be validated before."), After("private")] = False
    dry_run: Annotated[DryRun, After("revision"), Group("")] = False
    reading: ReadOptions = field(default_factory=ReadOptions)
    printing: PrintOptions = field(default_factory=PrintOptions)


def convert(model: Model, asked: ConvertCommand) -> None:
    """Extend MODEL and write it as safetensors or GGUF."""
    from ..conversion.several import prepare_each, run_each
    from ..publishing.ollama import check_modelfile, create

    asked.reading.obey()
    quiet, as_json = asked.printing.silent, asked.printing.as_json
    with progress(quiet):
        asked = replace(asked, options=replace(asked.options, recipe=asked.file.over(asked.options.recipe, asked.like)))
    _check(asked)
    if asked.push and not (asked.dry_run or asked.validate):
        return _push(model, asked, asked.push)
    talk = Talk(quiet)
    with progress(quiet):
        each = prepare_each(model, asked.options, weights=not asked.dry_run)
    if asked.dry_run:
        return _show(each, asked, talk)
    for one in each:
        one.check()
        if asked.ollama:
            check_modelfile(one.plan.out, asked.options.force)
    talk.lines(plan_lines(*each))
    with progress(quiet):
        done = run_each(each, talk.line)
    passed, done = proved(each, done, talk) if asked.validate else (True, done)
    urls = publish(done, asked.push, asked.private, HubTalk(quiet).line) if asked.push and passed else []
    answer(done.to_dict() | ({"published": urls} if urls else {}), as_json, *(one.output for one in (done, *done.others)), *urls)
    if not passed:
        raise typer.Exit(NOT_PASSED)
    if asked.ollama:
        talk.lines([create(one.output, one.manifest) for one in (done, *done.others)])
    over = {"Ollama": asked.ollama, "check": asked.validate, "upload": bool(urls)}
    talk.lines(_next_steps(model, each[0], done, [step for step, was in over.items() if was]))


def _check(asked: ConvertCommand) -> None:
    """Raise UsageError, before anything is opened, for options that do not go together, or cannot be done here."""
    if not asked.push and (asked.private or asked.allow_unvalidated):
        which = "--private" if asked.private else "--allow-unvalidated"
        raise UsageError(f"{which} belongs to --push", "--push user/name, or leave it out")
    if asked.push:
        from ..publishing import check_repo

        check_repo(asked.push)
        if asked.ollama and not (asked.dry_run or asked.validate):
            raise UsageError("--ollama with --push goes with --validate", "add --validate, or leave out one of them")
    if asked.validate:
        check_can_prove(asked.options)


def _show(each: Sequence[Conversion], asked: ConvertCommand, talk: Talk) -> None:
    """The plan alone."""
    from ..conversion.run import rooms

    disk = rooms(each)
    talk.lines([*plan_lines(*each), *room_lines(disk)])
    publication = _publication(each[0], asked.push, asked.private, talk) if asked.push else {}
    if asked.printing.as_json:
        print(json.dumps(plan_json(*each) | {"disk": [r.to_dict() for r in disk]} | publication, indent=2))


def _next_steps(model: str, conversion: Conversion, done: Converted, over: Sequence[str]) -> list[str]:
    """What can be done with it, but for the steps that are `over`."""
    from ..conversion.describe import short_texts

    options, named = conversion.options, conversion.checkpoint.family.listed
    base = "" if options.in_place or options.revision else model
    window = conversion.plan.rope.original_context if short_texts(conversion) else 0
    return next_steps(done.output, done.manifest.context, named, base=base, window=window, done=over)


def _push(model: str, asked: ConvertCommand, repo: str) -> None:
    """Plan, and say what is planned, before anything is written or sent."""
    from ..publishing import prepare_push, run_push

    talk = HubTalk(asked.printing.silent)
    with progress(talk.quiet):
        conversion, plan = prepare_push(model, asked.options, repo, private=asked.private, unvalidated=asked.allow_unvalidated)
    talk.lines([*plan_lines(conversion), *_push_lines(plan, repo)])
    with progress(talk.quiet):
        url = run_push(model, conversion, plan, repo, asked.private, talk.line)
    answer({"repo": repo, "url": url}, asked.printing.as_json, url)


def _publication(conversion: Conversion, repo: str, private: bool, talk: Talk) -> dict[str, Any]:
    """Say what --push would do; the same as JSON, empty where the model has to be converted here first."""
    from ..publishing import on_the_hub, plan_push

    with progress(talk.quiet):
        plan = plan_push(conversion, repo, private) if on_the_hub(conversion) else None
    talk.lines(_push_lines(plan, repo))
    return {"upload": plan.as_json()} if plan else {}


def _push_lines(plan: Upload | None, repo: str) -> list[str]:
    return upload_lines(plan) if plan else [f"push      {repo}, once it is made here"]

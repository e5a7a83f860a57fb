"""The command line: parse, call, print. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from ..asking import After, Help
from ..errors import UsageError
from ..options import InspectOptions, OverridesOptions, Recipe, RepairOptions, UploadOptions, ValidateOptions
from .commands import JsonAlone, Model, PrintOptions, ReadOptions, RecipeOption, Replace, Report, command, spread
from .convert import convert
from .evaluate import evaluate_app
from .finetune import finetune
from .folding import WIDEST, Whole, room
from .help import SETTINGS, Commands, examples
from .manual import docs
from .progress import progress
from .proving import NOT_PASSED
from .show import (
    HubTalk,
    Talk,
    answer,
    inspect_lines,
    listing_lines,
    overrides_lines,
    repair_lines,
    runtime_lines,
    upload_lines,
    write,
)

app = typer.Typer(
    cls=Commands,
    context_settings=SETTINGS,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=examples(
        "yarn-convert Qwen/Qwen3-8B --context 128k --out gguf --outtype q4_k_m",
        "yarn-convert validate Qwen3-8B-yarn-128k.gguf --base Qwen/Qwen3-8B",
        "yarn-convert inspect --runtimes model.gguf",
    ),
    help="Extend a RoPE language model to a longer context (YaRN and its relatives), so that runtimes compute what was meant. "
    "'yarn-convert MODEL …' is short for 'yarn-convert convert MODEL …'.",
)
runtimes_app = typer.Typer(context_settings=SETTINGS, rich_markup_mode=None)
app.add_typer(runtimes_app, name="runtimes", help="List the runtimes that validate can run, or add one.")
app.add_typer(evaluate_app, name="evaluate", help="Measure what it is worth: perplexity, needles, advice.")

command(
    app,
    "yarn-convert llama2-7b --scale 32 --out gguf",
    "yarn-convert ./my-model --context 128k --link",
    "yarn-convert model.Q4_K_M.gguf --scale 4 --dry-run",
)(convert)
command(app, "yarn-convert finetune smollm2-135m --scale 4 --text ./texts --steps 400")(finetune)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateCommand:
    options: ValidateOptions = field(default_factory=ValidateOptions)
    file: RecipeOption = field(default_factory=RecipeOption)
    real: Annotated[bool, Help("Only the file's own weights, not the twin."), After("runtimes")] = False
    twin: Annotated[bool, Help("Only the twin: a tiny random model with the file's RoPE keys."), After("real")] = False
    device_matrix: Annotated[
        bool, Help("Only the twin of a GGUF, in every device, type and mode of llama.cpp, as a table."), After("twin")
    ] = False
    report: Annotated[Report, After("dtype")] = None
    force: Annotated[Replace, After("report")] = False
    reading: ReadOptions = field(default_factory=ReadOptions)
    printing: PrintOptions = field(default_factory=PrintOptions)


@command(
    app,
    "yarn-convert validate out.gguf --base ./my-model",
    "yarn-convert validate ./out --runtime transformers --report out.html",
    "yarn-convert validate --twin ./config.json --scale 4",
)
def validate(
    model: Annotated[
        str, typer.Argument(help="A folder, a .gguf file, a Hub id; with --twin alone a config.json will do.", show_default=False)
    ],
    asked: ValidateCommand,
) -> None:
    """Prove a checkpoint: its recipe, weights, and runtimes' logits. Exit code 0 if it passed, 3 if not.

    What is intended is said by --like, by the options of a conversion, by the manifest, or by the file itself.
    """
    from ..compute.pages import check_report, write_report
    from ..validation import check, lines
    from ..validation.report import html_report
    from ..validation.result import validated

    asked.reading.obey()
    if asked.report:
        check_report(asked.report, asked.force)
    options = replace(asked.options, real=asked.real or not asked.twin, twin=asked.twin or not asked.real)
    if asked.file.recipe:
        with progress(asked.printing.silent):
            options = replace(options, recipe=asked.file.over(options.recipe or Recipe(), options.like))
    if asked.device_matrix:
        return _device_matrix(model, options, asked)
    with progress(asked.printing.silent):
        result = check(model, options, Talk(asked.printing.silent).line)
    answer(result, asked.printing.as_json, *lines(validated(result), asked.printing.quiet))
    if asked.report:
        write_report(asked.report, html_report(result, shlex.join(["yarn-convert", *sys.argv[1:]])))
    if result["verdict"] != "passed":
        raise typer.Exit(NOT_PASSED)


def _device_matrix(model: str, options: ValidateOptions, asked: ValidateCommand) -> None:
    from ..validation import device_matrix, matrix_lines

    other = {"--report": asked.report, "--runtime": options.runtimes, "--overrides": options.overrides, "--real": asked.real}
    if unused := [name for name, value in other.items() if value]:
        raise UsageError(f"--device-matrix takes no {unused[0]}", "it runs llama.cpp over the twin, and prints a table, or JSON")
    with progress(asked.printing.silent):
        found = device_matrix(model, options)
    answer(found.to_dict(), asked.printing.as_json, *matrix_lines(found, asked.printing.quiet, room(sys.stdout)))
    if found.verdict != "passed":
        raise typer.Exit(NOT_PASSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverridesCommand:
    options: OverridesOptions = field(default_factory=OverridesOptions)
    file: RecipeOption = field(default_factory=RecipeOption)
    reading: ReadOptions = field(default_factory=ReadOptions)
    json: JsonAlone = field(default_factory=JsonAlone)


@command(app, "yarn-convert overrides model.gguf --scale 4 --runtime llama.cpp")
def overrides(model: Model, asked: OverridesCommand) -> None:
    """Print how each runtime extends MODEL without a new file.

    And what of the recipe each of them loses. 'validate --overrides' proves it.
    """
    from ..conversion.overriding import overrides as told

    asked.reading.obey()
    o = asked.options
    with progress(asked.json.as_json):
        found = told(model, asked.file.over(o.recipe), runtimes=o.runtimes, revision=o.revision)
    answer(found.to_dict(), asked.json.as_json, *overrides_lines(found, room(sys.stdout)))


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadCommand:
    options: UploadOptions
    dry_run: Annotated[bool, Help("Show every file, its way and the card, and send nothing.")] = False
    printing: PrintOptions = field(default_factory=PrintOptions)


@command(app, "yarn-convert upload out.gguf user/name --dry-run")
def upload(
    model: Annotated[str, typer.Argument(help="An output of yarn-convert: a folder or a .gguf file.", show_default=False)],
    asked: UploadCommand,
) -> None:
    """Publish an output on the Hub, with a model card. Weights that the base has are copied there, on the server."""
    from ..publishing import plan_upload, run_upload

    talk = HubTalk(asked.printing.silent)
    plan = plan_upload(model, asked.options, talk.line)
    talk.lines(upload_lines(plan))
    if asked.dry_run:
        answer({**plan.as_json(), "card": plan.card}, asked.printing.as_json, *map(Whole, plan.card.splitlines()))
        return
    done = plan.done(run_upload(plan, talk.line))
    answer(done.to_dict(), asked.printing.as_json, done.url)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardCommand:
    repo: Annotated[str, Help("The repository that its commands shall name.")] = "USER/NAME"
    json: JsonAlone = field(default_factory=JsonAlone)


@command(app)
def card(model: Annotated[str, typer.Argument(help="A folder or a .gguf file.", show_default=False)], asked: CardCommand) -> None:
    """Print the model card that 'upload' would publish."""
    from ..publishing import card as made

    with progress(asked.json.as_json):
        text = made(model, asked.repo)
    answer({"repo": asked.repo, "card": text}, asked.json.as_json, *map(Whole, text.splitlines()))


def runtimes(ctx: typer.Context, asked: JsonAlone) -> None:
    """List the runtimes that validate can run, and where they are."""
    if ctx.invoked_subcommand:
        return
    from ..runtimes.environments import listing

    rows = listing()
    answer(rows, asked.as_json, *(line for row in rows for line in runtime_lines(row)))


runtimes_app.callback(invoke_without_command=True)(spread(runtimes))


@dataclass(frozen=True, slots=True, kw_only=True)
class AddCommand:
    force: Annotated[bool, Help("Build it anew.")] = False
    printing: PrintOptions = field(default_factory=PrintOptions)


@command(runtimes_app)
def add(
    names: Annotated[list[str], typer.Argument(help="Names as 'yarn-convert runtimes' lists them.", show_default=False)], asked: AddCommand
) -> None:
    """Install runtimes at tested versions.

    Each gets a private environment of its own.
    """
    from ..runtimes.environments import add as install
    from ..runtimes.table import runtime_of

    talk, done = Talk(asked.printing.silent), []
    for name in names:
        python = install(name, talk.line, asked.force)
        done.append({"name": runtime_of(name).name, "python": str(python)})
        if not asked.printing.as_json:
            write(python)
    if asked.printing.as_json:
        answer(done, True)


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectCommand:
    runtimes: Annotated[bool, Help("What each of 16 runtimes will compute from this file, as far as their source says.")] = False
    options: InspectOptions = field(default_factory=InspectOptions)
    reading: ReadOptions = field(default_factory=ReadOptions)
    json: JsonAlone = field(default_factory=JsonAlone)


@command(app, "yarn-convert inspect model.gguf", "yarn-convert inspect --runtimes ./my-model")
def inspect(model: Model, asked: InspectCommand) -> None:
    """Show a model's RoPE, contexts and memory, and what contradicts."""
    from ..conversion.describe import describe, findings, opened

    asked.reading.obey()
    as_json = asked.json.as_json
    with progress(as_json):
        checkpoint = opened(model, asked.options)
    if asked.runtimes:
        from ..conversion.intention import intention_of, survey
        from ..readers.survey import table_lines, verdict_json

        verdicts = survey(checkpoint, intention_of(checkpoint, None, None, None, doubtful=True))
        lines = [f"inconsistent: {line}" for line in findings(checkpoint)[: 1 if checkpoint.doubt else 0]]
        answer([verdict_json(v) for v in verdicts], as_json, *lines, *table_lines(verdicts, room(sys.stdout)))
        return
    facts = describe(checkpoint)
    answer(facts.to_dict(), as_json, *inspect_lines(checkpoint, facts))


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairCommand:
    options: RepairOptions = field(default_factory=RepairOptions)
    dry_run: Annotated[bool, Help("Print what would change and stop."), After("clip_pairs")] = False
    reading: ReadOptions = field(default_factory=ReadOptions)
    printing: PrintOptions = field(default_factory=PrintOptions)


@command(app, "yarn-convert repair ./their-model --dry-run")
def repair(
    model: Annotated[str, typer.Argument(help="A folder in HF layout or a .gguf file.", show_default=False)], asked: RepairCommand
) -> None:
    """Rewrite a checkpoint's RoPE keys so that readers agree. Weights stay.

    What is intended is said by --like, by the options of a conversion, or by the file itself.
    """
    from ..conversion.repair import plan_repair

    asked.reading.obey()
    talk = Talk(asked.printing.silent)
    with progress(talk.quiet):
        plan = plan_repair(model, asked.options)
    talk.lines(repair_lines(plan))
    if not asked.dry_run and (plan.changes or asked.options.output):
        with progress(talk.quiet):
            plan.run()
    answer(plan.as_json(), asked.printing.as_json, plan.conversion.plan.out)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeCommand:
    reading: ReadOptions = field(default_factory=ReadOptions)
    json: JsonAlone = field(default_factory=JsonAlone)


@command(app, "yarn-convert recipe out.gguf > recipe.yaml")
def recipe(
    model: Annotated[str, typer.Argument(help="A model, as for 'convert', a manifest, or a file for --recipe.", show_default=False)],
    asked: RecipeCommand,
) -> None:
    """Print the recipe of a model as a file for --recipe. Of the same base it makes the same RoPE."""
    from ..conversion.recipes import as_text
    from ..conversion.recipes import recipe as found

    asked.reading.obey()
    with progress(asked.json.as_json):
        recipe = found(model)
    columns = min(WIDEST, room(sys.stdout) or WIDEST)
    print(as_text(recipe, f"of {Path(model).name}", asked.json.as_json, columns), end="")


@command(app)
def methods(asked: JsonAlone) -> None:
    """List the methods, when to take which, and the aliases."""
    from ..conversion.extension import EXTENDING
    from ..families import ALIASES
    from ..rope import METHODS

    rows = {name: METHODS[name] for name in EXTENDING}
    said = {"methods": {k: v.summary for k, v in rows.items()}, "when": {k: v.when for k, v in rows.items()}}
    shown = listing_lines({k: f"{v.summary}\n\nWhen: {v.when}" for k, v in rows.items()})
    aliases = {name: f"{alias.repo}{f'  ({alias.note})' if alias.note else ''}" for name, alias in ALIASES.items()}
    as_json = {**said, "aliases": {k: v.repo for k, v in ALIASES.items()}}
    answer(as_json, asked.as_json, "methods", *shown, "aliases", *listing_lines(aliases))


command(app, "yarn-convert docs validation")(docs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    version: Annotated[bool, Help("Print the version and exit.", names=("-V", "--version"))] = False


def _root(asked: Root) -> None:
    if asked.version:
        from importlib.metadata import version as installed

        print(installed("yarn-convert"))
        raise typer.Exit


app.callback(invoke_without_command=True)(spread(_root))

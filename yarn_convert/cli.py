"""The command line: parse, call, print. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextvars import copy_context
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .cli_evaluate import evaluate_app
from .errors import UsageError, YarnConvertError
from .extras import missing
from .options import Context, FollowLinks, Json, Method, Model, Original, Quiet, Revision, Scale, tokens
from .show import (
    HubTalk,
    Talk,
    answer,
    inspect_lines,
    next_steps,
    plan_json,
    plan_lines,
    print_anywhere,
    progress,
    repair_lines,
    stages,
    upload_lines,
    write,
)

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Extend a RoPE language model to a longer context (YaRN and its relatives), so that runtimes compute what was meant. "
    "'yarn-convert MODEL …' is short for 'yarn-convert convert MODEL …'.",
)
runtimes_app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.add_typer(runtimes_app, name="runtimes", help="List the runtimes that validate can run, or add one.")
app.add_typer(evaluate_app, name="evaluate", help="Measure what a conversion is worth: perplexity, passkey, temperature, advice.")
COMMANDS = ("card", "convert", "evaluate", "inspect", "methods", "repair", "runtimes", "upload", "validate")
NOT_PASSED = 3  # exit code of a validation that failed or proves nothing

BetaFast = Annotated[Optional[float], typer.Option(help="Turns over L above which a pair is kept. [default: 32]", show_default=False)]
BetaSlow = Annotated[Optional[float], typer.Option(help="Turns below which it is interpolated. [default: 1]", show_default=False)]
Attention = Annotated[Optional[float], typer.Option(help="Multiplier of cos and sin. [default: 0.1·ln s + 1]", show_default=False)]
Ramp = Annotated[str, typer.Option(help="index, as every runtime computes it, or paper (Eq. 18; carried as tensors).")]
Truncate = Annotated[bool, typer.Option("--truncate/--no-truncate", help="Round the ramp's ends to whole pairs.")]


@app.command()
def convert(
    model: Model,
    scale: Scale = None,
    context: Context = None,
    method: Method = "yarn",
    out: Annotated[Optional[str], typer.Option(help="safetensors or gguf; default: what came in.", show_default=False)] = None,
    output: Annotated[
        Optional[Path], typer.Option("-o", "--output", help="Where to write; default NAME-METHOD-CONTEXT.", show_default=False)
    ] = None,
    original_context: Original = None,
    beta_fast: BetaFast = None,
    beta_slow: BetaSlow = None,
    attention_factor: Attention = None,
    ramp: Ramp = "index",
    truncate: Truncate = True,
    carry: Annotated[str, typer.Option(help="auto, metadata (YaRN keys) or tensors (the frequencies themselves).")] = "auto",
    outtype: Annotated[str, typer.Option(help="auto (keep), f32, f16, bf16, q8_0, q4_0, … or a mix of llama.cpp, as q4_k_m.")] = "auto",
    imatrix: Annotated[Optional[Path], typer.Option(help="llama-imatrix's importance matrix, for --outtype.", show_default=False)] = None,
    sliding_window: Annotated[str, typer.Option(help="keep, or off: extend with full attention (Mistral v0.1).")] = "keep",
    pretokenizer: Annotated[
        Optional[str], typer.Option(help="For GGUF: the name of a pre-tokenizer that is not recognized.", show_default=False)
    ] = None,
    gguf_arch: Annotated[
        Optional[str], typer.Option(help="For GGUF: write it as another architecture, as qwen2 as llama.", show_default=False)
    ] = None,
    cos_sin: Annotated[bool, typer.Option("--cos-sin", help="With tensors: also the cos and sin caches, in rope.safetensors.")] = False,
    link: Annotated[bool, typer.Option("--link", help="Hard-link unchanged weight files instead of copying them.")] = False,
    in_place: Annotated[bool, typer.Option("--in-place", help="Change the .gguf file itself; its tensor data does not move.")] = False,
    hash_: Annotated[
        bool, typer.Option("--hash", help="Put the SHA-256 of every weight file, as it was written, into the manifest.")
    ] = False,
    push: Annotated[
        Optional[str],
        typer.Option(help="Publish on the Hub as user/name; a Hub base's unchanged weights are copied there.", show_default=False),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: make a new repository private.")] = False,
    allow_unvalidated: Annotated[bool, typer.Option("--allow-unvalidated", help="With --push: it cannot be validated before.")] = False,
    split_max_size: Annotated[
        Optional[str],
        typer.Option(help="For GGUF: parts of at most 5G or 500M, or none: one file. [default: as the input is]", show_default=False),
    ] = None,
    revision: Revision = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    follow_links: FollowLinks = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Extend MODEL and write it as safetensors or GGUF."""
    from .conversion import Options, prepare

    if not push and (private or allow_unvalidated):
        raise UsageError(f"{'--private' if private else '--allow-unvalidated'} belongs to --push", "--push user/name, or leave it out")
    if push:
        from .publishing import check_repo

        check_repo(push)
    options = Options(
        scale, context, method, out, output, original_context, beta_fast, beta_slow, attention_factor, ramp, truncate, carry,
        outtype.lower(), sliding_window, imatrix, pretokenizer, gguf_arch, cos_sin, link, in_place, hash_, force, split_max_size,
    )  # fmt: skip
    if push and not dry_run:
        from .publishing import push as publish

        say = HubTalk(quiet or as_json).line
        url = publish(model, options, push, revision, private=private, unvalidated=allow_unvalidated, say=say)
        answer({"repo": push, "url": url}, as_json, url)
        return
    conversion = prepare(model, options, revision, weights=not dry_run)
    if not dry_run:
        conversion.check()
    talk = Talk(quiet or as_json)
    talk.lines(plan_lines(conversion))
    if dry_run:
        publication = _publication(conversion, push, private, talk) if push else {}
        if as_json:
            print(json.dumps(plan_json(conversion) | publication, indent=2))
        return
    with progress(conversion.bytes, quiet or as_json) as advance:
        manifest = conversion.run(advance, lambda line: talk.lines([line]))
    out_path = conversion.plan.out
    answer({"output": str(out_path), **manifest}, as_json, out_path)
    talk.lines(next_steps(out_path, manifest["context"]))


@app.command()
def validate(
    model: Annotated[
        str, typer.Argument(help="A folder, a .gguf file, a Hub id; with --twin alone a config.json will do.", show_default=False)
    ],
    base: Annotated[Optional[str], typer.Option(help="The base model: are the weights its own?", show_default=False)] = None,
    like: Annotated[Optional[str], typer.Option(help="Another checkpoint that says what is intended.", show_default=False)] = None,
    scale: Scale = None,
    context: Context = None,
    method: Method = "yarn",
    original_context: Original = None,
    beta_fast: BetaFast = None,
    beta_slow: BetaSlow = None,
    attention_factor: Attention = None,
    ramp: Ramp = "index",
    truncate: Truncate = True,
    runtime: Annotated[
        Optional[list[str]],
        typer.Option(
            help="A runtime to run, NAME or NAME:MODE (see 'yarn-convert runtimes'); can be repeated. [default: all that are there]",
            show_default=False,
        ),
    ] = None,
    real: Annotated[bool, typer.Option("--real", help="Only the file's own weights, not the twin.")] = False,
    twin: Annotated[bool, typer.Option("--twin", help="Only the twin: a tiny random model with the file's RoPE keys.")] = False,
    budget: Annotated[
        Optional[str], typer.Option(help="Time for the real weights, as 90s or 5m. [default: 60s on a CPU]", show_default=False)
    ] = None,
    length: Annotated[
        Optional[int],
        typer.Option("--tokens", help="Length of the text for the real weights, instead of --budget.", parser=tokens, metavar="<tokens>"),
    ] = None,
    twin_tokens: Annotated[
        Optional[int],
        typer.Option(help="Length of the twin's text. [default: the context, at most 131072 on a CPU]", parser=tokens, metavar="<tokens>"),
    ] = None,
    text: Annotated[Optional[Path], typer.Option(help="A text in UTF-8 instead of the one in the package.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="Of the reference, and of transformers and llama.cpp: auto, cuda, mps or cpu.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of the reference: f32, or bf16 for size.")] = "f32",
    report: Annotated[Optional[Path], typer.Option(help="Write an HTML page with plots to this file.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing report.")] = False,
    revision: Revision = None,
    follow_links: FollowLinks = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prove a checkpoint: recipe, weights, and the logits of real runtimes. Exit code 0 if it passed, 3 if not.

    What is intended is said by --like, by the options of a conversion, by the manifest, or by the file itself.
    """
    from .pages import check_report, write_report
    from .validation import Settings, lines, seconds_of
    from .validation import validate as run
    from .validation.report import html_report

    if report:
        check_report(report, force)
    wish = _recipe_options(scale, context, method, original_context, beta_fast, beta_slow, attention_factor, ramp, truncate)
    settings = Settings(
        base, like, wish, tuple(runtime or ()), device, dtype, seconds_of(budget), length, twin_tokens,
        text, real or not twin, twin or not real,
    )  # fmt: skip
    with stages(quiet or as_json) as say:
        result = run(model, settings, revision, say)
    answer(result, as_json, *lines(result, quiet))
    if report:
        write_report(report, html_report(result, shlex.join(["yarn-convert", *sys.argv[1:]])))
    if result["verdict"] != "passed":
        raise typer.Exit(NOT_PASSED)


@app.command()
def upload(
    model: Annotated[str, typer.Argument(help="An output of yarn-convert: a folder or a .gguf file.", show_default=False)],
    repo: Annotated[str, typer.Argument(help="The repository on the Hub, as user/name.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[Optional[str], typer.Option(help="Branch to commit to. [default: main]", show_default=False)] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    allow_unvalidated: Annotated[
        bool, typer.Option("--allow-unvalidated", help="Publish what has not passed 'yarn-convert validate'.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show every file, its way and the card, and send nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish an output on the Hub, with a model card. Weights that the base has are copied there, on the server."""
    from .publishing import plan_upload, run_upload

    talk = HubTalk(quiet or as_json)
    plan = plan_upload(
        model, repo, private=private, revision=revision, create_pr=create_pr, unvalidated=allow_unvalidated, say=talk.line
    )  # fmt: skip
    talk.lines(upload_lines(plan))
    if dry_run:
        answer({**plan.as_json(), "card": plan.card}, as_json, *plan.card.splitlines())
        return
    url = run_upload(plan, talk.line)
    answer({**plan.as_json(), "url": url}, as_json, url)


@app.command()
def card(
    model: Annotated[str, typer.Argument(help="A folder or a .gguf file.", show_default=False)],
    repo: Annotated[str, typer.Option(help="The repository that its commands shall name.")] = "USER/NAME",
) -> None:
    """Print the model card that 'upload' would publish."""
    from .publishing import card as text

    write(*text(model, repo).splitlines())


@runtimes_app.callback(invoke_without_command=True)
def runtimes(ctx: typer.Context, as_json: Json = False) -> None:
    """List the runtimes that validate can run, and where they are."""
    if ctx.invoked_subcommand:
        return
    from .runtimes.environments import listing

    rows = listing()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        there = f"{row['version'] or '?'} in {row['where']}" if row["where"] else f"not here; to add it: {row['add']}"
        write(f"{row['name']:<13} reads {row['reads']:<12} {there}", *([f"{'':<14}{row['note']}"] if row["note"] else []))
        for mode, says in row["modes"].items():
            write(f"{'':<14}{row['name']}:{mode}: {says}")


@runtimes_app.command()
def add(
    names: Annotated[list[str], typer.Argument(help="Names as 'yarn-convert runtimes' lists them.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Build it anew.")] = False,
    quiet: Quiet = False,
) -> None:
    """Install runtimes at tested versions, each into a private environment of its own."""
    from .runtimes.environments import add as install

    talk = Talk(quiet)
    for name in names:
        write(install(name, lambda line: talk.lines([line]), force))


@app.command()
def inspect(
    model: Model,
    runtimes: Annotated[
        bool, typer.Option("--runtimes", help="What each of 16 runtimes will compute from this file, as far as their source says.")
    ] = False,
    original_context: Original = None,
    revision: Revision = None,
    follow_links: FollowLinks = False,
    as_json: Json = False,
) -> None:
    """Show a model's architecture, RoPE, contexts, memory, and what in it is inconsistent."""
    from .checkpoint import open_checkpoint
    from .describe import describe, findings
    from .source import resolve

    checkpoint = open_checkpoint(resolve(model, revision, weights=False), doubtful=True).counting_from(original_context)
    if runtimes:
        from .readers.survey import table_lines, verdict_json
        from .validation.intention import intention_of, survey

        verdicts = survey(checkpoint, intention_of(checkpoint, None, None, None, doubtful=True))
        lines = [f"inconsistent: {line}" for line in findings(checkpoint)[: 1 if checkpoint.doubt else 0]] + table_lines(verdicts)
        answer([verdict_json(v) for v in verdicts], as_json, *lines)
        return
    facts = describe(checkpoint)
    answer(facts, as_json, *inspect_lines(checkpoint, facts))


@app.command()
def repair(
    model: Annotated[str, typer.Argument(help="A folder in HF layout or a .gguf file.", show_default=False)],
    output: Annotated[
        Optional[Path], typer.Option("-o", "--output", help="Write a repaired copy; default: in place.", show_default=False)
    ] = None,
    like: Annotated[Optional[str], typer.Option(help="Another checkpoint that says what is intended.", show_default=False)] = None,
    keep: Annotated[
        Optional[list[str]],
        typer.Option(
            help="Which of two things that disagree: rope_scaling or rope_parameters, rope_type or type in an object, object or top for "
            "what stands in an object and at the top level. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    scale: Scale = None,
    context: Context = None,
    method: Method = "yarn",
    original_context: Original = None,
    beta_fast: BetaFast = None,
    beta_slow: BetaSlow = None,
    attention_factor: Attention = None,
    ramp: Ramp = "index",
    truncate: Truncate = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would change and stop.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    follow_links: FollowLinks = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rewrite the RoPE keys of someone else's checkpoint, so that all readers that can agree do. Weights stay.

    What is intended is said by --like, by the options of a conversion, or by the file itself.
    """
    from .repair import plan_repair

    wish = _recipe_options(scale, context, method, original_context, beta_fast, beta_slow, attention_factor, ramp, truncate)
    plan = plan_repair(model, wish, like, output, force, tuple(keep or ()))
    talk = Talk(quiet or as_json)
    talk.lines(repair_lines(plan))
    if not dry_run and (plan.changes or output):
        plan.run()
    answer(plan.as_json(), as_json, plan.conversion.plan.out)


@app.command()
def methods(as_json: Json = False) -> None:
    """List the methods and the aliases."""
    from .extension import EXTENDING
    from .families import ALIASES
    from .rope import METHODS

    summaries = {name: METHODS[name].summary for name in EXTENDING}
    if as_json:
        print(json.dumps({"methods": summaries, "aliases": {k: v.repo for k, v in ALIASES.items()}}, indent=2))
        return
    width = max(map(len, [*summaries, *ALIASES]))
    print("methods")
    for name, text in summaries.items():
        print(f"  {name:<{width}}  {' '.join(text.split())}")
    print("aliases")
    for name, alias in ALIASES.items():
        print(f"  {name:<{width}}  {alias.repo}{f'  ({alias.note})' if alias.note else ''}")


def _publication(conversion: Any, repo: str, private: bool, talk: Talk) -> dict[str, Any]:
    """Say what --push would do; the same as JSON, empty where the model has to be converted here first."""
    from .publishing import on_the_hub, plan_push

    if not on_the_hub(conversion):
        talk.lines([f"push      {repo}, once it is made here"])
        return {}
    plan = plan_push(conversion, repo, private)
    talk.lines(upload_lines(plan))
    return {"upload": plan.as_json()}


def _recipe_options(*values: Any) -> Any:
    """The recipe's options as those of a conversion; None when none of them was given."""
    from .extension import Options

    scale, context, method, *rest = values
    wish = Options(scale, context, method, None, None, *rest)
    return None if wish == Options() else wish


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        print(installed("yarn-convert"))
        raise typer.Exit


def main(argv: list[str] | None = None) -> None:
    """Run the command line. Every known error is one line and a hint, exit code 1."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args:
        args = ["--help"]
    elif args == ["evaluate"]:
        args.append("--help")
    elif args[0] not in (*COMMANDS, "--help", "--version"):
        args.insert(0, "convert")
    print_anywhere()
    try:
        command = typer.main.get_command(app)
        code = copy_context().run(command.main, args, prog_name="yarn-convert", standalone_mode=False)
        if sys.stdout:  # None where the shell closed it
            sys.stdout.flush()
    except YarnConvertError as e:
        _fail(e.message, e.hint)
    except typer.TyperException as e:
        given = getattr(e, "ctx", None)
        _fail(e.format_message(), f"{given.command_path if given else 'yarn-convert'} --help")
    except ModuleNotFoundError as e:
        if (known := missing(e)) is None:
            raise
        _fail(known.message, known.hint)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except PermissionError as e:
        _fail(f"no permission to read {e.filename}", "check the file's owner and mode")
    except OSError as e:  # what a command does with files is caught where it is known: this is most likely stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries once more at its end
        _fail(f"could not write {e.filename or 'to stdout'}: {e.strerror or e}", "free some space, or give another place")
    if code == INTERRUPTED:
        begun = "; it finishes first what was begun" if "--in-place" in args or args[0] == "repair" else ""
        _fail("interrupted", "run the same command again" + begun, code)
    sys.exit(code or 0)


INTERRUPTED = 130  # what Typer makes of Ctrl-C


def _fail(message: str, hint: str, code: int = 1) -> None:
    write(f"error: {message}", *([f"hint: {hint}"] if hint else []), file=sys.stderr)
    sys.exit(code)

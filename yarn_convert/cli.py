"""The command line: parse, call, print. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .errors import YarnConvertError

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Extend a RoPE language model to a longer context (YaRN and its relatives), so that runtimes compute what was meant. "
    "'yarn-convert MODEL …' is short for 'yarn-convert convert MODEL …'.",
)
COMMANDS = ("convert", "inspect", "methods")

Model = Annotated[
    str, typer.Argument(help="An alias (see 'methods'), a Hub id, a folder in HF layout, or a .gguf file.", show_default=False)
]
Revision = Annotated[Optional[str], typer.Option(help="Branch, tag or commit of a model on the Hub.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@app.command()
def convert(
    model: Model,
    scale: Annotated[Optional[float], typer.Option(help="s = L'/L, on the original pretraining context.", show_default=False)] = None,
    context: Annotated[
        Optional[int], typer.Option(help="L', the extended context in tokens, instead of --scale.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option(help="One of 'yarn-convert methods'.")] = "yarn",
    out: Annotated[Optional[str], typer.Option(help="safetensors or gguf; default: what came in.", show_default=False)] = None,
    output: Annotated[
        Optional[Path], typer.Option("-o", "--output", help="Where to write; default NAME-METHOD-CONTEXT.", show_default=False)
    ] = None,
    original_context: Annotated[Optional[int], typer.Option(help="L, where the model does not say it.", show_default=False)] = None,
    beta_fast: Annotated[
        Optional[float], typer.Option(help="Turns over L above which a pair is kept. [default: 32]", show_default=False)
    ] = None,
    beta_slow: Annotated[
        Optional[float], typer.Option(help="Turns below which it is interpolated. [default: 1]", show_default=False)
    ] = None,
    attention_factor: Annotated[
        Optional[float], typer.Option(help="Multiplier of cos and sin. [default: 0.1·ln s + 1]", show_default=False)
    ] = None,
    ramp: Annotated[str, typer.Option(help="index, as every runtime computes it, or paper (Eq. 18; carried as tensors).")] = "index",
    truncate: Annotated[bool, typer.Option("--truncate/--no-truncate", help="Round the ramp's ends to whole pairs.")] = True,
    carry: Annotated[str, typer.Option(help="auto, metadata (YaRN keys) or tensors (the frequencies themselves).")] = "auto",
    outtype: Annotated[str, typer.Option(help="auto (keep), f32, f16, bf16, q8_0.")] = "auto",
    sliding_window: Annotated[str, typer.Option(help="keep, or off: extend with full attention (Mistral v0.1).")] = "keep",
    pretokenizer: Annotated[
        Optional[str], typer.Option(help="For GGUF: the name of a pre-tokenizer that is not recognized.", show_default=False)
    ] = None,
    cos_sin: Annotated[bool, typer.Option("--cos-sin", help="With tensors: also the cos and sin caches, in rope.safetensors.")] = False,
    link: Annotated[bool, typer.Option("--link", help="Hard-link unchanged weight files instead of copying them.")] = False,
    in_place: Annotated[bool, typer.Option("--in-place", help="Change the .gguf file itself; its tensor data does not move.")] = False,
    hash_: Annotated[bool, typer.Option("--hash", help="Put the SHA-256 of every weight file into the manifest.")] = False,
    revision: Revision = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No plan, no progress, no hints.")] = False,
) -> None:
    """Extend MODEL and write it as safetensors or GGUF."""
    from .convert import Options, prepare

    options = Options(
        scale, context, method, out, output, original_context, beta_fast, beta_slow, attention_factor, ramp, truncate, carry,
        outtype, sliding_window, pretokenizer, cos_sin, link, in_place, hash_, force,
    )  # fmt: skip
    conversion = prepare(model, options, revision, weights=not dry_run)
    if not dry_run:
        conversion.check()
    talk = _Talk(quiet or as_json)
    talk.lines(plan_lines(conversion))
    if dry_run:
        if as_json:
            print(json.dumps(plan_json(conversion), indent=2))
        return
    with _progress(conversion.plan.bytes, quiet or as_json) as progress:
        manifest = conversion.run(progress)
    out_path = conversion.plan.out
    print(json.dumps({"output": str(out_path), **manifest}, indent=2) if as_json else out_path)
    talk.lines(next_steps(out_path, manifest["context"]))


@app.command()
def inspect(model: Model, revision: Revision = None, as_json: Json = False) -> None:
    """Show a model's architecture, RoPE, contexts, memory, and what in it is inconsistent."""
    from .checkpoint import open_checkpoint
    from .describe import describe
    from .source import resolve

    checkpoint = open_checkpoint(resolve(model, revision, weights=False))
    facts = describe(checkpoint)
    print(json.dumps(facts, indent=2) if as_json else "\n".join(inspect_lines(checkpoint, facts)))


@app.command()
def methods(as_json: Json = False) -> None:
    """List the methods and the aliases."""
    from .convert import EXTENDING
    from .families import ALIASES
    from .rope import METHODS

    summaries = {name: (METHODS[name].__doc__ or "").split("\n\n")[0] for name in EXTENDING}
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


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        print(installed("yarn-convert"))
        raise typer.Exit


# -- what is printed --------------------------------------------------------------------------------------------------


def plan_json(conversion: Any) -> dict[str, Any]:
    from .rope import recipe_of, table

    plan = conversion.plan
    return {
        "output": str(plan.out),
        "format": plan.format,
        "bytes": plan.bytes,
        "recipe": recipe_of(plan.rope),
        "attention_factor": table(plan.rope).multiplier,
        "context": plan.context,
        "scale": conversion.extension.scale,
        "carrier": plan.carrier,
        "identical_to_base": plan.identical,
        "readers": {name: why or "exact" for name, why in plan.verdicts.items()},
        "notes": list(plan.notes),
        "files": [{"file": job.name, "bytes": job.size} for job in plan.jobs],
    }


def plan_lines(conversion: Any) -> list[str]:
    """The plan, for people."""
    from .describe import pairs
    from .rope import table

    c, e, plan = conversion.checkpoint, conversion.extension, conversion.plan
    kinds = [p.kind for p in pairs(plan.rope)]
    over = f" over {plan.rope.inner.method}" if plan.rope.inner else ""
    lines = [
        f"base      {c.source.name} ({c.family.model_type}, {'GGUF' if c.gguf else 'HF'}, {len(c.tensors)} tensors)",
        f"method    {plan.rope.method}{over}, s = {e.scale:g}: {plan.rope.original_context:,} -> {plan.context:,} tokens",
        f"rope      theta {plan.rope.theta:g}, D {plan.rope.rotary_dim}; pairs: "
        + ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        + f"; cos and sin × {table(plan.rope).multiplier:.6g}",
        f"carrier   {plan.carrier} in {plan.format}; weights {'byte-identical' if plan.identical else 'converted'}",
        "KV cache  "
        + ", ".join(f"{human(c.kv_bytes(n))} at {n:,}" for n in sorted({plan.rope.original_context, plan.context}))
        + " tokens (f16)",
        f"output    {plan.out} ({human(plan.bytes)})",
    ]
    exact = [name for name, why in plan.verdicts.items() if not why]
    lines.append(f"exact in  {', '.join(exact)}")
    lines += [f"not in    {name}: {why}" for name, why in plan.verdicts.items() if why]
    return lines + [f"note      {note}" for note in plan.notes]


def next_steps(out: Path, context: int) -> list[str]:
    """Commands that run, check and publish an output, from templates/."""
    name = "run_gguf.txt" if out.suffix == ".gguf" else "run_safetensors.txt"
    text = (Path(__file__).parent / "templates" / name).read_text("utf-8")
    return text.format(path=shlex.quote(str(out)), context=context).splitlines()


def inspect_lines(c: Any, facts: dict[str, Any]) -> list[str]:
    from .describe import plot

    types = ", ".join(f"{t} × {n['tensors']} ({human(n['bytes'])})" for t, n in facts["types"].items())
    params = {k: v for k, v in c.rope.params.items() if not isinstance(v, tuple)}
    recipe = ", ".join([c.rope.method, *(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in params.items())])
    lines = [
        f"name        {facts['name']}" + (f" ({facts['repo']} at {facts['commit']})" if facts["repo"] else ""),
        f"model       {facts['architecture']}, {facts['parameters'] / 1e6:,.0f} M parameters, {facts['layers']} layers, "
        f"{facts['heads']} heads of {facts['head_dim']}, {facts['kv_heads']} KV heads",
        f"tensors     {types}",
        f"RoPE        {recipe}; theta {c.rope.theta:g}, D {c.rope.rotary_dim}; cos and sin × {facts['attention_factor']:.6g}",
        f"context     {facts['context']:,} tokens, originally {facts['original_context']:,} (s = {facts['scale']:g})",
        "KV cache    " + ", ".join(f"{human(b)} at {int(n):,}" for n, b in facts["kv_cache_bytes"].items()) + " tokens (f16)",
        *plot(c.rope, c.context),
    ]
    return lines + [f"inconsistent: {line}" for line in facts["inconsistencies"]]


def human(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


class _Talk:
    """Lines for people, on stderr, unless quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def lines(self, lines: list[str]) -> None:
        if not self.quiet:
            print("\n".join(lines), file=sys.stderr)


@contextlib.contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Any]:
    """A progress bar with bytes and rate on stderr; nothing when quiet or not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda n: bar.advance(task, n)


def main(argv: list[str] | None = None) -> None:
    """Run the command line. Every known error is one line and a hint, exit code 1."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args:
        args = ["--help"]
    elif args[0] not in (*COMMANDS, "--help", "--version"):
        args.insert(0, "convert")
    try:
        code = typer.main.get_command(app).main(args, prog_name="yarn-convert", standalone_mode=False)
    except YarnConvertError as e:
        _fail(e.message, e.hint)
    except typer.TyperException as e:
        _fail(e.format_message(), " ".join(["yarn-convert", *args[:1], "--help"]))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except PermissionError as e:
        _fail(f"no permission to read {e.filename}", "check the file's owner and mode")
    if code == INTERRUPTED:
        _fail("interrupted", "run the same command again" + ("; it finishes first what was begun" if "--in-place" in args else ""), code)
    sys.exit(code or 0)


INTERRUPTED = 130  # what Typer makes of Ctrl-C


def _fail(message: str, hint: str, code: int = 1) -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(code)

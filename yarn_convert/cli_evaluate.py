"""The commands of `evaluate`: parse, call, print."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Optional

import typer

from .errors import UsageError
from .options import Context, FollowLinks, Json, Original, Quiet, Scale, tokens
from .show import answer, steps

evaluate_app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

Models = Annotated[list[str], typer.Argument(help="Aliases, Hub ids, folders or .gguf files.", show_default=False)]
OneModel = Annotated[str, typer.Argument(help="An alias, a Hub id, a folder or a .gguf file.", show_default=False)]
Methods = Annotated[
    Optional[list[str]],
    typer.Option(
        "--method", "--methods",
        help="Recipes to measure on the base, as none,linear,yarn,dynamic-yarn or yarn:4,yarn:8; repeatable. [default: the model as it is]",
        show_default=False,
    ),
]  # fmt: skip
Text = Annotated[Optional[list[Path]], typer.Option(help="A text in UTF-8, or a folder of *.txt; repeatable.", show_default=False)]
Dataset = Annotated[
    Optional[str], typer.Option(help="NAME[:CONFIG[:SPLIT[:COLUMN]]] for the package datasets, instead of --text.", show_default=False)
]
Cut = Annotated[Optional[int], typer.Option(help="Make documents of so many tokens of each text.", parser=tokens, metavar="<tokens>")]
Most = Annotated[Optional[int], typer.Option("--documents", help="Use so many documents at most.", min=1, show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")]
Dtype = Annotated[str, typer.Option(help="Of the computation: f32 or bf16.")]
Report = Annotated[Optional[Path], typer.Option(help="Write an HTML page with plots to this file.", show_default=False)]
Plot = Annotated[Optional[Path], typer.Option(help="Save the plot to this file: .svg, .png or .pdf.", show_default=False)]
JournalFile = Annotated[
    Optional[Path],
    typer.Option(
        "--journal", help="Where finished items are kept for the same command to go on. [default: beside the report]", show_default=False
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing report.")]


def token_list(text: str) -> tuple[int, ...]:
    """Numbers of tokens with commas between. UsageError for anything else."""
    try:
        found = tuple(tokens(part.strip()) for part in text.split(","))
    except ValueError as e:
        raise UsageError(str(e), "2048,4096,8k") from None
    if min(found) < 2:
        raise UsageError(f"{min(found)} is no length of a text in tokens", "2048,4096,8k")
    return found


def number_list(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{text!r} is no list of numbers", "1,1.1,1.2") from None


@evaluate_app.command()
def perplexity(
    models: Models,
    method: Methods = None,
    scale: Scale = None,
    context: Context = None,
    original_context: Original = None,
    windows: Annotated[str, typer.Option(help="Context windows W in tokens.", metavar="<tokens,…>")] = "2048,4096,8192",
    length: Annotated[
        Optional[int],
        typer.Option(
            "--tokens",
            help="Slide the windows over so many tokens of each document. [default: truncate it at each window]",
            parser=tokens,
            metavar="<tokens>",
        ),
    ] = None,
    stride: Annotated[
        Optional[int],
        typer.Option(help="S, by which a sliding window moves. [default: 256]", show_default=False, parser=tokens, metavar="<tokens>"),
    ] = None,
    text: Text = None,
    dataset: Dataset = None,
    cut: Cut = None,
    documents: Most = None,
    runtime: Annotated[
        str, typer.Option(help="transformers, any recipe; or one that runs a file as it is, as llama.cpp.")
    ] = "transformers",
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Put what each output costs and gains against the model named first into its manifest, for its card."
        ),
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "f32",
    report: Report = None,
    plot: Plot = None,
    journal: JournalFile = None,
    force: Force = False,
    follow_links: FollowLinks = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Perplexity by context window, one line a method or model (the paper's Tables 1, 2, 4, 6; Figures 1 and 5)."""
    from .evaluation import Wish, outputs_of, put_on_record
    from .evaluation import perplexity as run

    if stride is not None and length is None:
        raise UsageError("--stride moves a window over --tokens, and there is no --tokens", "--tokens 64k, or leave out --stride")
    wish = Wish(token_list(windows), length, 256 if stride is None else stride)
    s = _settings(method, scale, context, original_context, text, dataset, cut, documents, device, dtype, runtime)
    outputs = outputs_of(models, s.methods) if record else []
    to = Outputs(report, plot, journal, force, as_json, quiet)
    _measure(lambda kept, say: run(models, s, wish, kept, say), to, lambda result: put_on_record(result, outputs) if record else None)


@evaluate_app.command()
def passkey(
    models: Models,
    method: Methods = None,
    scale: Scale = None,
    context: Context = None,
    original_context: Original = None,
    lengths: Annotated[str, typer.Option(help="Lengths of the prompts.", metavar="<tokens,…>")] = "8192,16384,32768",
    trials: Annotated[int, typer.Option(help="Prompts of each length.", min=1)] = 10,
    depths: Annotated[int, typer.Option(help="Rows of the heat map.", min=1)] = 10,
    seed: Annotated[int, typer.Option(help="Of keys and depths.", min=0)] = 0,
    device: Device = "auto",
    dtype: Dtype = "f32",
    report: Report = None,
    plot: Plot = None,
    journal: JournalFile = None,
    force: Force = False,
    follow_links: FollowLinks = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find a five-digit number in text without meaning, by length and depth (the paper's Table 5)."""
    from .evaluation import PasskeyWish
    from .evaluation import passkey as run

    wish = PasskeyWish(token_list(lengths), trials, depths, seed)
    s = _settings(method, scale, context, original_context, None, None, None, None, device, dtype, "transformers")
    _measure(lambda kept, say: run(models, s, wish, kept, say), Outputs(report, plot, journal, force, as_json, quiet))


@evaluate_app.command()
def temperature(
    models: Models,
    scale: Scale = None,
    context: Context = None,
    original_context: Original = None,
    window: Annotated[
        Optional[int], typer.Option(help="Truncate documents here. [default: the extended context]", parser=tokens, metavar="<tokens>")
    ] = None,
    multipliers: Annotated[
        Optional[str],
        typer.Option(help="Values of √(1/t). [default: the recommended one and three on each side]", metavar="<x,…>", show_default=False),
    ] = None,
    segments: Annotated[int, typer.Option(help="Segments of position.", min=1)] = 4,
    text: Text = None,
    dataset: Dataset = None,
    cut: Cut = None,
    documents: Most = None,
    device: Device = "auto",
    dtype: Dtype = "f32",
    report: Report = None,
    plot: Plot = None,
    journal: JournalFile = None,
    force: Force = False,
    follow_links: FollowLinks = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Perplexity of YaRN against its attention temperature (the paper's Figures 2 to 4)."""
    from .evaluation import TemperatureWish
    from .evaluation import temperature as run

    wish = TemperatureWish(window, number_list(multipliers) if multipliers else (), segments)
    s = _settings(None, scale, context, original_context, text, dataset, cut, documents, device, dtype, "transformers")
    _measure(lambda kept, say: run(models, s, wish, kept, say), Outputs(report, plot, journal, force, as_json, quiet))


@evaluate_app.command()
def advise(
    model: OneModel,
    context: Annotated[int, typer.Option(help="N, the length to serve.", parser=tokens, metavar="<tokens>", show_default=False)],
    method: Annotated[str, typer.Option(help="The method whose factor is sought.")] = "yarn",
    factor: Annotated[
        Optional[str],
        typer.Option(help="Factors to try. [default: 0.5, 0.75, 1, 1.25, 1.5, 2, 3 and 4 times N/L]", metavar="<x,…>", show_default=False),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Share by which a segment's perplexity may exceed the base's.")] = 0.02,
    segments: Annotated[int, typer.Option(help="Segments of the N tokens.", min=1)] = 8,
    original_context: Original = None,
    text: Text = None,
    dataset: Dataset = None,
    cut: Cut = None,
    documents: Most = None,
    device: Device = "auto",
    dtype: Dtype = "f32",
    report: Report = None,
    plot: Plot = None,
    journal: JournalFile = None,
    force: Force = False,
    follow_links: FollowLinks = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The smallest factor that keeps perplexity flat to N tokens, and what it costs on short texts."""
    from .evaluation import AdviseWish
    from .evaluation import advise as run

    wish = AdviseWish(context, method, number_list(factor) if factor else (), tolerance, segments)
    s = _settings(None, None, None, original_context, text, dataset, cut, documents, device, dtype, "transformers")
    _measure(lambda kept, say: run(model, s, wish, kept, say), Outputs(report, plot, journal, force, as_json, quiet))


def _settings(
    method: Any,
    scale: Any,
    context: Any,
    original: Any,
    text: Any,
    dataset: Any,
    cut: Any,
    most: Any,
    device: str,
    dtype: str,
    runtime: str,
) -> Any:
    from .evaluation import Settings, Texts

    methods = tuple(m for wish in method or () for m in wish.split(",") if m.strip())
    if method and not methods:
        raise UsageError("--method names no method", "--method none,yarn")
    if text and dataset:
        raise UsageError("--dataset and --text both say which texts to read", "give one of them")
    texts = Texts(tuple(text or ()), dataset, cut, most)
    return Settings(methods, scale, context, original, texts, device, dtype, runtime)


class Outputs(NamedTuple):
    """Where a result goes."""

    report: Path | None
    plot: Path | None
    journal: Path | None
    force: bool
    as_json: bool
    quiet: bool


def _measure(run: Callable[[Any, Any], dict[str, Any]], to: Outputs, then: Callable[[Any], None] = lambda result: None) -> None:
    """Run a measure with its journal; print and write what it found. The journal goes when all is done, `then` included."""
    from .evaluation import finished, journal_of
    from .evaluation.report import check_places, html_report, save_plots
    from .evaluation.text import lines
    from .pages import write_report

    check_places(to.report, to.plot, to.journal, to.force)
    with journal_of(to.report or to.plot, to.journal) as kept, steps(to.quiet or to.as_json) as say:
        result = finished(run(kept, say))
    answer(result, to.as_json, *lines(result))
    if to.report:
        write_report(to.report, html_report(result, shlex.join(["yarn-convert", *sys.argv[1:]])))
    if to.plot:
        save_plots(result, to.plot, to.force)
    then(result)
    kept.remove()

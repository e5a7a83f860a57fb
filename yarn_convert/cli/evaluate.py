"""The commands of `evaluate`: parse, call, print."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..asking import After, Help
from ..errors import UsageError
from ..options import (
    AdviseOptions,
    DivergenceOptions,
    LongpplOptions,
    NeedleOptions,
    PasskeyOptions,
    PerplexityOptions,
    RulerOptions,
    TemperatureOptions,
)
from .commands import PrintOptions, ReadOptions, Replace, Report, command
from .folding import room
from .help import SETTINGS
from .progress import progress
from .show import answer

if TYPE_CHECKING:
    from ..evaluation import ResultJournal

evaluate_app = typer.Typer(context_settings=SETTINGS, rich_markup_mode=None, no_args_is_help=True)

Models = Annotated[list[str], typer.Argument(help="Aliases, Hub ids, folders or .gguf files.", show_default=False)]
OneModel = Annotated[str, typer.Argument(help="An alias, a Hub id, a folder or a .gguf file.", show_default=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where a result goes."""

    report: Report = None
    plot: Annotated[Path | None, Help("Save the plot to this file: .svg, .png or .pdf.")] = None
    shown: Annotated[
        str | None,
        Help(
            "Lay the result out as a figure or table of the YaRN paper, as figure-4 or table-2; a name that is none is answered with all.",
            names=("--as",),
        ),
    ] = None
    journal: Annotated[Path | None, Help("Where finished items are kept for the same command to go on. [default: beside the report]")] = (
        None
    )
    force: Replace = False
    reading: ReadOptions = field(default_factory=ReadOptions)
    printing: PrintOptions = field(default_factory=PrintOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityCommand:
    options: PerplexityOptions = field(default_factory=PerplexityOptions)
    record: Annotated[
        bool,
        Help("Put what each output costs and gains against the model named first into its manifest, for its card."),
        After("runtime"),
    ] = False
    to: Outputs = field(default_factory=Outputs)


@command(evaluate_app, "yarn-convert evaluate perplexity model.gguf --context 32k --method none,yarn,yarn+base --windows 4k,16k,32k")
def perplexity(models: Models, asked: PerplexityCommand) -> None:
    """Perplexity by context window. One line a method or model (the paper's Tables 1, 2, 4, 6; Figures 1, 5, 6)."""
    from ..evaluation import measure_perplexity, outputs_of, put_on_record

    asked.to.reading.obey()
    settings = asked.options.settings
    outputs = outputs_of(models, (*settings.methods, *settings.recipes)) if asked.record else []
    then = (lambda result: put_on_record(result.to_dict(), outputs)) if asked.record else None
    _measure(lambda kept: measure_perplexity(models, asked.options, kept), asked.to, then, measure="perplexity")


@command(evaluate_app, "yarn-convert evaluate passkey model.gguf --method none,yarn:4 --lengths 8k,16k")
def passkey(models: Models, options: PasskeyOptions, to: Outputs) -> None:
    """Find a number in text without meaning. By length and depth (the paper's Table 5)."""
    from ..evaluation import measure_passkey

    to.reading.obey()
    _measure(lambda kept: measure_passkey(models, options, kept), to, measure="passkey")


@command(evaluate_app, "yarn-convert evaluate needle model.gguf --method none,yarn:4 --lengths 8k,16k --needles 4")
def needle(models: Models, options: NeedleOptions, to: Outputs) -> None:
    """Find a number in a haystack of any text. By length and depth, with error bars; several needles."""
    from ..evaluation import measure_needle

    to.reading.obey()
    _measure(lambda kept: measure_needle(models, options, kept), to)


@command(evaluate_app, "yarn-convert evaluate ruler model.gguf --method none,yarn:4,yarn+base:4 --lengths 4k,8k,16k --trials 20")
def ruler(models: Models, options: RulerOptions, to: Outputs) -> None:
    """RULER's tasks, by length. Made and scored by lm-evaluation-harness's own code (arXiv 2404.06654)."""
    from ..evaluation import measure_ruler

    to.reading.obey()
    _measure(lambda kept: measure_ruler(models, options, kept), to)


@command(evaluate_app, "yarn-convert evaluate longppl model.gguf --method yarn:4 --text BOOK.txt")
def longppl(models: Models, options: LongpplOptions, to: Outputs) -> None:
    """Perplexity over the tokens that need a long context. LongPPL: an evaluator chooses them (arXiv 2410.23771)."""
    from ..evaluation import measure_longppl

    to.reading.obey()
    _measure(lambda kept: measure_longppl(models, options, kept), to)


@command(evaluate_app, "yarn-convert evaluate divergence model.Q4_K_M.gguf --base model.F16.gguf --window 4k")
def divergence(models: Models, options: DivergenceOptions, to: Outputs) -> None:
    """How far each token's distribution is from a base's. What a quantization costs, or a recipe on short texts; by position."""
    from ..evaluation import measure_divergence

    to.reading.obey()
    _measure(lambda kept: measure_divergence(models, options, kept), to)


@command(evaluate_app, "yarn-convert evaluate temperature model.gguf --scale 4")
def temperature(models: Models, options: TemperatureOptions, to: Outputs) -> None:
    """Perplexity of YaRN against its temperature. The paper's Figures 2 to 4."""
    from ..evaluation import measure_temperature

    to.reading.obey()
    _measure(lambda kept: measure_temperature(models, options, kept), to, measure="temperature")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviseCommand:
    options: AdviseOptions
    recipe_out: Annotated[Path | None, Help("Write the recipe that the search advises to this file, as YAML."), After("seed")] = None
    to: Outputs = field(default_factory=Outputs)


@command(evaluate_app, "yarn-convert evaluate advise model.gguf --context 32k")
def advise(model: OneModel, asked: AdviseCommand) -> None:
    """The smallest factor that serves N tokens, or the best recipe. What keeps perplexity flat, and what it costs on short texts."""
    from ..compute.pages import write_report
    from ..evaluation import measure_advice, measure_search
    from ..evaluation.text import recipe_text

    asked.to.reading.obey()
    place, search = asked.recipe_out, asked.options.search
    if place and not search:
        raise UsageError("--recipe-out writes what a search finds", "--search, or leave it out")
    measure = measure_search if search else measure_advice
    then = (lambda result: write_report(place, recipe_text(result)) if result.advised else None) if place else None
    _measure(lambda kept: measure(model, asked.options, kept), asked.to, then, place)


Found = dict[str, Any]


def _measure(
    run: Callable[[ResultJournal], Found],
    to: Outputs,
    then: Callable[[Any], None] | None = None,
    recipe: Path | None = None,
    measure: str = "",
) -> None:
    """Run a measure with its journal; print and write what it found. The journal goes when all is done, `then` included, which may
    write `recipe`. `measure`: one that figures or tables of the paper show."""
    from ..compute.pages import write_report
    from ..evaluation import journal_of, paper
    from ..evaluation.found import typed
    from ..evaluation.report import check_places, html_report, save_plots
    from ..evaluation.text import lines

    shown = paper.shown_of(to.shown, measure)
    check_places(to.report, to.plot, to.journal, to.force, recipe)
    with journal_of(to.report or to.plot or recipe, to.journal) as kept, progress(to.printing.silent):
        result = typed(run(kept))
    wide = room(sys.stdout)
    answer(result.to_dict(), to.printing.as_json, *(paper.lines(result, shown, wide) if shown else lines(result, wide)))
    if to.report:
        write_report(to.report, html_report(result, shlex.join(["yarn-convert", *sys.argv[1:]]), shown))
    if to.plot:
        save_plots(result, to.plot, to.force, shown)
    if then:
        then(result)
    kept.remove()

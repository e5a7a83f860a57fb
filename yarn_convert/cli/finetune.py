"""The command `finetune`: parse, call, print."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..asking import After, Group, Help
from ..errors import many
from ..options import FinetuneOptions
from .commands import DryRun, PrintOptions, ReadOptions, RecipeOption
from .progress import progress
from .show import Talk, answer, duration, human, next_steps

if TYPE_CHECKING:
    from ..finetuning import Preparation


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneCommand:
    options: FinetuneOptions = field(default_factory=FinetuneOptions)
    file: RecipeOption = field(default_factory=RecipeOption)
    report: Annotated[
        Path | None, Help("Write an HTML page with the learning curve to this file.", names=("--report", "--record")), After("log")
    ] = None
    dry_run: Annotated[DryRun, After("revision"), Group("")] = False
    reading: ReadOptions = field(default_factory=ReadOptions)
    printing: PrintOptions = field(default_factory=PrintOptions)


def finetune(
    model: Annotated[
        str, typer.Argument(help="An alias, a Hub id, a folder or a .gguf file; extended already, or a base.", show_default=False)
    ],
    asked: FinetuneCommand,
) -> None:
    """Train MODEL at an extended context, as the paper did. A few hundred steps; what comes out is written as any output.

    On several GPUs: torchrun --nproc-per-node N -m yarn_convert finetune … What was interrupted goes on with the same command.
    """
    from ..compute.pages import check_report, write_report
    from ..finetuning import emit, prepare_training, run_training
    from ..finetuning.ranks import is_first
    from ..finetuning.report import html_report
    from ..finetuning.text import lines

    asked.reading.obey()
    first = is_first()
    silent = asked.printing.silent or not first
    if asked.report and first:
        check_report(asked.report, asked.options.force)
    with progress(silent):
        plan = prepare_training(model, replace(asked.options, recipe=asked.file.over(asked.options.recipe)))
    Talk(silent).lines(plan_lines(plan))
    if asked.dry_run:
        if asked.printing.as_json:
            answer(plan.to_dict(), True)
        return
    if asked.options.emit and not first:
        return
    if asked.options.emit:
        made = emit(plan)
        answer(made.to_dict(), asked.printing.as_json, made.path, *(f"note      {note}" for note in made.notes))
        return
    with progress(silent):
        done = run_training(plan)
    if not first:
        return
    answer(done.to_dict(), asked.printing.as_json, done.output, *([] if asked.printing.quiet else lines(done)))
    if asked.report:
        write_report(asked.report, html_report(done, shlex.join(["yarn-convert", *sys.argv[1:]])))
    Talk(silent).lines(next_steps(done.output, done.manifest.context, plan.checkpoint.family.listed))


def plan_lines(p: Preparation) -> list[str]:
    """The plan of a training, for people."""
    c, s, n = p.checkpoint, p.settings, p.needs
    shared = f", {s.parallel} hold a segment together" if s.parallel > 1 else ""
    what = f"adapters of rank {s.lora}" if s.lora else "all weights"
    return [
        f"base      {c.source.name} ({c.family.name}, {'GGUF' if c.gguf else 'HF'})",
        f"method    {s.rope.method}, s = {p.extension.scale:g}: {s.rope.original_context:,} -> {p.extension.context:,} tokens",
        f"training  {what}, {many(s.steps, 'step')} of {many(s.batch, 'segment')} of {s.sequence:,} tokens: {s.tokens:,} in all",
        f"rate      {s.lr:g}" + (f" after {many(s.warmup, 'step')} of warm-up" if s.warmup else "") + "; AdamW, no weight decay",
        f"runs on   {p.device}, {s.dtype}, {many(p.processes, 'process', 'processes')}{shared}",
        f"memory    about {human(n.total)} a process, {human(n.free)} free: "
        + ", ".join(f"{name} {human(size)}" for name, size in n.by_name().items()),
        f"time      about {duration(p.seconds)}, if a third of what the {p.device} can do is reached",
        f"output    {p.out} ({p.options.out}); log {p.log}",
        *(f"note      {note}" for note in p.notes),
    ]

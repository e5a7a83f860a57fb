"""The page of a training: its learning curve, what held-out texts gained, and how it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

from ..checkpoint.manifest import Finetuning, as_json
from ..compute.pages import BLUE, RED, STYLE, packages, page, svg
from ..compute.record import made
from .run import Finetuned, compared

if TYPE_CHECKING:
    from matplotlib.figure import Figure


ELSEWHERE = ("recipe", "held_out", "deviations", "loss", "data")  # of a training's record: what the page shows by itself


def html_report(done: Finetuned, command: str) -> str:
    """The page; `command` is the command line that made it. UsageError without the packages."""
    _, matplotlib = packages()
    history = done.history
    with matplotlib.style.context(["default", STYLE]):
        plots = [svg(_losses(history.steps), "loss", "Loss by step")]
        plots += [svg(_held_out(history.held_out), "held-out", "Held-out perplexity by step")] if len(history.held_out) > 1 else []
    trainings = done.manifest.finetuning or []
    last: Finetuning = trainings[-1]
    settings = {k.replace("_", " "): v for k, v in to_builtins(last).items() if k not in ELSEWHERE}
    return page(
        "finetuning.html.j2", name=done.output.name, command=command, plots=plots, points=compared(history), settings=settings,
        deviations=last.deviations, data=last.data, recipe=as_json(done.manifest)["recipe"], steps=history.steps, **made(),
    )  # fmt: skip


def _losses(steps: list[dict[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([s["step"] for s in steps], [s["loss"] for s in steps], color=BLUE)
    axes.set(xlabel="step", ylabel="loss, nats a token")
    return figure


def _held_out(measures: list[dict[str, Any]]) -> Figure:
    """One line a window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes, windows = figure.subplots(), list(measures[0]["windows"])
    for i, window in enumerate(windows):
        share = i / max(1, len(windows) - 1)
        points = [(m["step"], m["windows"][window]["perplexity"]) for m in measures if window in m["windows"]]
        axes.plot(
            *zip(*points, strict=True), marker="o", color=RED if share == 1 else BLUE, alpha=0.4 + 0.6 * share, label=f"{int(window):,}"
        )
    axes.set(xlabel="step", ylabel="perplexity of held-out texts")
    axes.legend(title="window, tokens")
    return figure

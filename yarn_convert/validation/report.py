"""The result of `validate` as one HTML page that needs nothing else: text, tables, and plots as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain, cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..compute.pages import BLUE, INK, RED, STYLE, packages, page, short_number, svg
from ..rope import METHODS, RTOL, geometric
from .judging import within
from .text import unchecked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONG = ",.9g"  # the form of numbers that are float32 at the reader
FLOOR, CEILING = 1e-16, 1e3  # what is drawn on a log axis for 0, and for what is not finite
RUNTIMES = ((BLUE, "o"), ("#009e73", "s"), ("#cc79a7", "D"), ("#e69f00", "^"), ("#56b4e9", "v"))  # RED is the tolerance's
WRONG = ("x", "+", "1", "2", "|", "_")


def html_report(result: Mapping[str, Any], command: str) -> str:
    """The page for what `validate` returned; `command` is the command line that made it. UsageError without the packages."""
    _, matplotlib = packages()
    recipe, context = result["intention"]["recipe"], result["intention"]["context"]
    lengths = {"L": recipe["original_context"], "L′": context}
    with matplotlib.style.context(["default", STYLE]):
        frequencies = svg(_recipe_figure(result["recipe"], recipe), "recipe", "frequencies, intended and decoded")
        plots = {
            i: svg(_study_figure(s, lengths), f"study-{i}", f"NMSE and KL by position, {s['kind']}")
            for i, s in enumerate(result["studies"])
            if any(x["windows"] for x in chain(s["runtimes"], s["wrong_recipes"]))
        }
    return page(
        "validation.html.j2", r=result, unchecked=unchecked(result), command=command, words=words(recipe), frequencies=frequencies,
        plots=plots, rtol=RTOL, filters={"within": within, "largest": largest},
    )  # fmt: skip


# -- text -------------------------------------------------------------------------------------------------------------


def largest(windows: Sequence[Mapping[str, Any]]) -> float | None:
    """The largest NMSE; NaN where one is missing, None without windows."""
    return float(np.max(np.array([w["nmse"] for w in windows], np.float64))) if windows else None


def words(recipe: Mapping[str, Any]) -> list[str]:
    """A recipe in sentences: what the method does, its numbers, and the same of the recipe below it."""
    method = METHODS.get(recipe["method"])
    does = " ".join(method.summary.replace("`", "").split()) if method else recipe["method"]
    values = {k: f"{len(v)} numbers" if isinstance(v, list | tuple) else short_number(v, LONG) for k, v in recipe["params"].items()}
    numbers = [f"{k} = {v}" for k, v in values.items()]
    theta, dim, original = (short_number(recipe[k], LONG) for k in ("rope_theta", "rotary_dim", "original_context"))
    plain = f"θ = {theta}, {dim} rotated dimensions, L = {original} tokens"
    below = words(recipe["inner"]) if "inner" in recipe else []
    return [does, ", ".join([plain, *numbers]) + ".", *(["Over this recipe:", *below] if below else [])]


# -- plots ------------------------------------------------------------------------------------------------------------


def _recipe_figure(check: Mapping[str, Any], recipe: Mapping[str, Any]) -> Figure:
    """Intended and decoded frequencies over those of plain RoPE, and the relative error, by pair."""
    from matplotlib.figure import Figure

    decoded = check.get("decoded")
    figure = Figure(figsize=(8, 5 if decoded else 3), layout="constrained")
    panels: list[Axes] = list(figure.subplots(2 if decoded else 1, 1, sharex=True, squeeze=False)[:, 0])
    plain = geometric(recipe["rope_theta"], recipe["rotary_dim"])
    panels[0].set_yscale("log", base=2)
    panels[0].yaxis.set_major_formatter(lambda y, _: f"{y:g}" if y >= 1 else f"1/{1 / y:g}")
    panels[0].set_ylabel("ω / ω of plain RoPE")
    panels[0].axhline(1, color=INK, linewidth=0.6, alpha=0.5)
    intended = drawable(check["intended"]["inv_freq"])
    _ratio(panels[0], intended, plain, color=BLUE, label="intended")
    if decoded:
        found, circles = drawable(decoded["inv_freq"]), {"color": RED, "linestyle": "none", "marker": "o", "markerfacecolor": "none"}
        _ratio(panels[0], found, plain, label=f"decoded by {check['reader']}", **circles)
        n = min(len(intended), len(found))
        panels[1].semilogy(drawable(abs(found[:n] / intended[:n] - 1)), **circles)
        panels[1].axhline(RTOL, color=INK, linestyle="--", linewidth=1, label="tolerance: two roundings to float32")
        panels[1].set_ylabel("relative error")
        _powers_of_ten(panels[1])
    panels[-1].set_xlabel("pair, fast to slow")
    _legend(figure, panels)
    return figure


def _ratio(axes: Axes, values: NDArray[np.float64], plain: NDArray[np.float64], **style: Any) -> None:
    """Tables of different lengths are drawn as far as both go."""
    n = min(len(values), len(plain))
    axes.plot(np.arange(n), np.where(values[:n] > FLOOR, values[:n] / plain[:n], np.nan), **style)  # a pair that stands still has no ratio


def _study_figure(study: Mapping[str, Any], lengths: Mapping[str, int]) -> Figure:
    """NMSE above, KL below, by position: runtimes in colour, wrong recipes in grey, the tolerance dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    panels: list[Axes] = list(figure.subplots(2, 1, sharex=True))
    for axes, metric, name in zip(panels, ("nmse", "kl"), ("NMSE", "mean KL, nats"), strict=True):
        for run, (colour, marker) in zip(study["runtimes"], cycle(RUNTIMES), strict=False):
            _curve(axes, run["windows"], metric, color=colour, marker=marker, label=run["runtime"], zorder=3)
        for wrong, marker in zip(study["wrong_recipes"], cycle(WRONG), strict=False):
            grey = {"color": INK, "alpha": 0.55, "linewidth": 0.8}
            _curve(axes, wrong["windows"], metric, marker=marker, linestyle=":", label=f"wrong: {wrong['name']}", **grey)
        axes.axhline(study["tolerance"][metric], color=RED, linestyle="--", label="tolerance")
        axes.set_yscale("log")
        axes.set_ylabel(name)
        _powers_of_ten(axes)
        for length in lengths.values():
            axes.axvline(length, color=INK, linewidth=0.8, alpha=0.7)
    for (name, length), side in zip(lengths.items(), ("right", "left"), strict=True):  # beside each other, however close
        panels[0].annotate(f" {name} = {length:,} ", (length, 1), xycoords=("data", "axes fraction"), ha=side, va="bottom", fontsize=8)
    last = max(*lengths.values(), study["tokens"])
    ticks = [0, *(4**k for k in range(40) if 4**k <= last)]
    panels[1].set_xscale("symlog", linthresh=1, linscale=0.3)
    panels[1].set_xticks(ticks, [f"{x:,}" for x in ticks])
    panels[1].set_xticks([], minor=True)
    panels[1].set_xlim(-0.3, 3 * last)
    panels[1].set_xlabel("position")
    _legend(figure, panels[:1])
    return figure


def _curve(axes: Axes, windows: Sequence[Mapping[str, Any]], metric: str, **style: Any) -> None:
    """One metric at the middle of each window, on a log scale."""
    x = [math.sqrt(max(w["start"], 1) * (w["end"] - 1)) for w in windows]
    if x:
        axes.plot(x, drawable([w[metric] for w in windows]), **style)


def drawable(values: Any) -> NDArray[np.float64]:
    """float64 that a log axis can show: 0 at its floor, None, NaN and ∞ at its ceiling."""
    return np.clip(np.nan_to_num(np.array(values, np.float64), nan=CEILING, posinf=CEILING, neginf=CEILING), FLOOR, CEILING)


def _powers_of_ten(axes: Axes) -> None:
    superscript = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    axes.yaxis.set_major_formatter(lambda y, _: "10" + str(round(math.log10(y))).translate(superscript))
    axes.minorticks_off()
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    pairs = [axes.get_legend_handles_labels() for axes in panels]
    handles, labels = (list(chain.from_iterable(part)) for part in zip(*pairs, strict=True))
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=9)

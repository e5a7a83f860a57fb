"""How far a validation is: the stages that are to come, the seconds of each as they are guessed, and one fraction of all of them.

Seconds are guessed by the work: the operations of a pass, attention's square included, and the bytes that are read. Their ratio is what
counts, and the speed of the reference, where it is measured, corrects it. What nobody foresaw, as looking for a fault, takes no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..checkpoint import Checkpoint
from ..hearing import SayStage
from ..runtimes.table import mode_of, runtime_of
from .excerpt import layers_of
from .rounding import rounds
from .study import PREFIX
from .twin import HIDDEN_MIN, fewest_layers

HASHED, COMPARED, LOADED = 1e9, 3e8, 5e8  # bytes a second
STARTED = 4.0  # seconds in which a process has imported what it needs, the first of them this one
RATES = {"cpu": 4e10, "mps": 2e12, "cuda": 2e13}  # operations a second
LOADING = "loading the weights"
TWIN_TOKEN = 1e6  # operations that a token of a twin costs beside attention: what is slow in it is no arithmetic
WRONG = 4  # recipes
Stages = Sequence[tuple[str, float]]  # (as it is said, seconds), in order


def operations(c: Checkpoint, n: int, layers: int | None = None) -> float:
    """Of a pass of `n` tokens through a model, or through so many of its `layers`: two for each parameter and token, and attention over
    half of all pairs of tokens."""
    share = 1.0 if layers is None else layers / max(1, c.layers)
    parameters, width = sum(t.elements for t in c.tensors.values()), c.heads("q") * c.head_dim
    return share * (2.0 * parameters * n + 2.0 * c.layers * width * n * n)


def all_passes(names: Sequence[str]) -> float:
    """How many passes of the reference take as long as its own and those of the runtimes."""
    return 1 + sum(runtime_of(name).cost for name in names)


@dataclass(frozen=True, slots=True)
class Outline:
    """What is going to be done to `c`: `hashed` and `compared`, bytes of its files and of its weights; runs of its weights over `real`
    tokens, and of the twin over `twin`, 0 where there are none; `cut`: with so many layers, 0 for all; `based`: beside its base;
    `short`: the tokens of each run's second text, 0 where there is one. `rate`: operations a second."""

    c: Checkpoint
    names: Sequence[str]
    hashed: int = 0
    compared: int = 0
    real: int = 0
    twin: int = 0
    cut: int = 0
    based: bool = False
    short: int = 0
    rate: float = RATES["cpu"]

    def within(self, budget: float) -> Outline:
        """With a text that so many seconds may allow."""
        passes, n = all_passes(self.names), self.real
        while n > PREFIX and passes * operations(self.c, n, self.cut or None) / self.rate > budget:
            n //= 2
        return replace(self, real=n)


def stages(o: Outline) -> Stages:
    """All of a validation, in the order in which it is done."""
    found = [("digests", o.hashed / HASHED), ("weights", o.compared / COMPARED)]
    if o.real:
        found += _real(o)
    if o.twin:
        width = -(-HIDDEN_MIN // o.c.head_dim) * o.c.head_dim * fewest_layers(o.c)
        found += _studies(o, "twin", o.twin, {n: TWIN_TOKEN * n + 2.0 * width * n * n for n in (o.twin, o.short)}, TWIN_TOKEN * o.twin)
    return found


def _real(o: Outline) -> Iterator[tuple[str, float]]:
    """The runs of the file's own weights, and of an excerpt of them."""
    c, kind = o.c, "cut" if o.cut else "real"
    loading = sum(t.nbytes for t in c.tensors.values()) * (o.cut / max(1, c.layers) if o.cut else 1.0) / LOADED
    yield LOADING, STARTED + loading
    first = min(PREFIX, o.real)
    passes = {n: operations(c, n, o.cut or None) for n in (o.real, o.short, first)}
    layers = layers_of(c) if rounds(c) and c.family.listed else 0
    yield from _studies(o, kind, o.real, passes, 0.0 if layers else passes[first], passes[first], loading)
    if layers:
        passes = {n: operations(c, n, layers) for n in (o.real, o.short, first)}
        yield from _studies(o, "excerpt", o.real, passes, passes[first])


def _studies(
    o: Outline, kind: str, tokens: int, passes: Mapping[int, float], wrong: float, noise: float = 0.0, loading: float = 0.0
) -> Iterator[tuple[str, float]]:
    """What `study` says of one kind of run, once or, with a second text, twice. `passes`: tokens -> operations of a pass; `wrong`, `noise`:
    those of one wrong recipe, of a measurement of noise; `loading`: seconds in which a runtime loads the model, which is then started."""
    for n in (tokens, *([o.short] if o.short and o.short < tokens else [])):
        a_pass = passes[n] / o.rate
        yield f"reference, {kind}", a_pass
        if o.based and kind == "cut":
            yield f"the file's weights and its base's, {kind}", a_pass
        if rounds(o.c) and kind in ("real", "cut"):
            yield f"noise of its types, {kind}", noise / o.rate
        yield f"wrong recipes, {kind}", WRONG * wrong / o.rate
        for name in o.names:
            if mode := mode_of(name):
                yield f"noise of {mode.says}, {kind}", noise / o.rate
            yield f"{name}, {kind}", STARTED + loading + runtime_of(name).cost * a_pass


class Course:
    """A `SayStage` that tells another one how far the whole is: 0 before it is known what is to come, and then never less than before."""

    def __init__(self, say: SayStage) -> None:
        self.say = say
        self.outline: Outline | None = None
        self.ahead: Stages = ()
        self.at, self.part = -1, 0.0  # the stage that is running, of those `ahead`, and the fraction of it that is done
        self.since, self.done, self.fraction = 0.0, 0.0, 0.0

    def expect(self, outline: Outline | None) -> None:
        """What is to come from now on is known, or known better: what is left of the bar is dealt out anew. None: nothing more."""
        running = self.ahead[self.at][0] if self.at >= 0 else ""
        self.outline, self.ahead = outline, stages(outline) if outline else ()
        self.at = next((i for i, (what, _) in enumerate(self.ahead) if what == running), -1)
        self.since, self.done = self.fraction, self._seconds()

    def revise(self, **known: Any) -> None:
        """Some fields of the outline are known better."""
        if self.outline:
            self.expect(replace(self.outline, **known))

    def __call__(self, what: str, fraction: float) -> None:
        if self.at < 0 or self.ahead[self.at][0] != what:
            found = next((i for i in range(self.at + 1, len(self.ahead)) if self.ahead[i][0] == what), None)
            if found is None:
                self.say(what, self.fraction)
                return
            self.at, self.part = found, 0.0
        self.part = max(self.part, fraction)
        left = sum(s for _, s in self.ahead) - self.done
        so_far = self.since + (1.0 - self.since) * (self._seconds() - self.done) / left if left > 0 else 1.0
        self.fraction = min(1.0, max(self.fraction, so_far))
        self.say(what, self.fraction)

    def _seconds(self) -> float:
        """Of the stages before the one that is running, and of its part that is done."""
        if self.at < 0:
            return 0.0
        return sum(s for _, s in self.ahead[: self.at]) + self.part * self.ahead[self.at][1]

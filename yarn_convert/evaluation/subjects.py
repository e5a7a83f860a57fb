"""What is measured: one loaded model under one or several recipes, its documents, and a way to compute that remembers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..asking import check_choices, spelled
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.source import resolve
from ..compute.distances import check_plain, ready_at
from ..compute.documents import TokenizedText, bos, documents, names
from ..compute.identity import identity, key_of
from ..compute.record import DTYPES
from ..compute.scorer import Ids, Predictions, RuntimeScorer, Scorer, Take, Torch, check_runtime
from ..conversion.extension import EXTENDING, counted_from, extend, given, no_method, unbaked
from ..conversion.recipes import read_recipe
from ..errors import UsageError, need
from ..hearing import SayStage, shares, tell
from ..options import EvaluateOptions, Recipe
from ..options.reading import tokens as tokens_of
from ..rope import ATTENTION_METHODS, METHODS, Distances, Rope, distances_of, effect, numbers, recipe_of, steady
from ..runtimes import probe
from ..runtimes.library import folder_of, stamp, using
from .journal import ResultJournal
from .windows import Losses, Pass, Span, Window, passes, segments, sliding


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot: a recipe and what it is called. A dynamic recipe stays dynamic. `original`: L where what is asked for says it.
    `attention`: at which distances its tokens attend, where that is not as the model does."""

    label: str
    method: str
    rope: Rope
    context: int | None = None
    original: int | None = None
    attention: Distances | None = None

    @property
    def static(self) -> bool:
        """Whether one table serves every length."""
        return self.rope.static

    def table(self, length: int) -> Hashable:
        """What is the same for all lengths, in tokens, that have one table."""
        return None if self.static else numbers(self.rope, length)

    def as_json(self) -> dict[str, Any]:
        found = {"label": self.label, "method": self.method, "recipe": recipe_of(self.rope), "context": self.context}
        return found | ({"attention": self.attention.as_json()} if self.attention else {})


def lines_of(c: Checkpoint, s: EvaluateOptions, attention: bool = False) -> list[Line]:
    """The recipes to measure on this base, the methods before the files. Raises UsageError as a conversion does, and for one that is named
    twice, or an option that none of them takes. `attention`: whether the measure computes methods of attention too."""
    _check_options(s)
    if not s.methods and not s.recipes:
        return [line_named(c, s, None, None)]
    found = [_line_of_text(c, s, text, attention) for text in s.methods] + [_line_of_file(c, s, path) for path in s.recipes]
    labels = [line.label for line in found]
    if len(set(labels)) < len(labels):
        raise UsageError(f"a method or recipe is named twice: {', '.join(labels)}", "--method yarn:4,yarn:8 compares factors")
    return found


def line_named(c: Checkpoint, s: EvaluateOptions, method: str | None, recipe: Path | None) -> Line:
    """The line of a method or of a recipe's file; the model as it is where neither is named."""
    if method and recipe:
        raise UsageError("the base has one recipe: a method or a file", "leave out --base-method or --base-recipe")
    if recipe:
        return _line_of_file(c, s, recipe)
    return _line_of_text(c, s, method, attention=True) if method else Line(c.source.name, c.rope.method, c.rope, c.context)


def _check_options(s: EvaluateOptions) -> None:
    """Raise UsageError for options of a recipe that no line has a use for."""
    asked = s.recipe
    if not s.methods and not s.recipes and (asked.scale is not None or asked.context is not None):
        raise UsageError("--scale and --context say how far a method extends, and there is no --method", "--method none,yarn")
    named = {text.strip().partition(":")[0].partition("+")[0] for text in s.methods}
    taken = {option for method in named & METHODS.keys() for option in METHODS[method].takes}
    if stray := next((name for name in given(asked) if name not in taken), None):
        takers = ",".join(method for method, row in METHODS.items() if stray in row.takes)
        raise UsageError(f"{spelled(Recipe, stray)} means nothing to any --method that is named", f"--method none,{takers}")


def _line_of_text(c: Checkpoint, s: EvaluateOptions, text: str, attention: bool) -> Line:
    """The line of METHOD, METHOD:FACTOR, or, of a method of attention, METHOD:WINDOW, where the measure computes such."""
    name, _, window = text.strip().partition(":")
    if name not in ATTENTION_METHODS:
        return line_of(c, s, *_wish(text))
    if not attention:
        says = f"{name} changes the attention, and this measure keeps caches for attention as it is"
        raise UsageError(says, f"yarn-convert evaluate perplexity MODEL --method {text.strip()}")
    try:
        width = tokens_of(window) if window else None
    except ValueError:
        raise UsageError(f"--method {text!r} has no window in tokens", f"--method {name}:512") from None
    check_plain(c, name)
    return Line(text.strip(), name, c.rope, attention=distances_of(name, width, counted_from(c, s.recipe.original_context)))


def _wish(text: str) -> tuple[str, float | None]:
    method, _, factor = text.strip().partition(":")
    try:
        return method, float(factor) if factor else None
    except ValueError:
        raise UsageError(f"--method {text!r} is no method and factor", "--method none,linear,yarn:8,yarn+base:8") from None


def line_of(c: Checkpoint, s: EvaluateOptions, wish: str, factor: float | None = None, attention_factor: float | None = None) -> Line:
    """The recipe of a conversion with a method, or with METHOD+base, which leaves short texts the base's table."""
    method, plus, short = wish.partition("+")
    if method not in EXTENDING:
        raise no_method(method, "method")
    row = METHODS[method]
    if factor is not None and not (row.spans or row.reaches):
        raise UsageError(f"the method {method} takes no factor, and was given {factor:g}", f"--method {method}")
    if wish == "none":
        return Line("none", "none", c.rope, c.context)
    own = {name: value for name, value in given(s.recipe).items() if name in row.takes}
    own |= {} if attention_factor is None else {"attention_factor": attention_factor}
    kept: Any = short if plus else None  # whose choices are checked by its field
    reach = (s.recipe.scale, s.recipe.context) if factor is None else (factor, None)
    asked = Recipe(method=method, scale=reach[0], context=reach[1], original_context=s.recipe.original_context, short=kept, **own)
    return _line(c, asked, wish + ("" if factor is None else f":{factor:g}"), wish)


def _line_of_file(c: Checkpoint, s: EvaluateOptions, path: Path) -> Line:
    """The recipe of a file, which is called by the file's name. What it leaves open of the lengths, --scale, --context and
    --original-context say. UsageError where both say L and differ."""
    found, beside = read_recipe(path.expanduser()), s.recipe
    original = found.original_context or beside.original_context
    if beside.original_context not in (None, original):
        says = f"{path.name} counts from {original:,} tokens, and --original-context says {beside.original_context:,}"
        raise UsageError(says, "leave out --original-context, or that of the file")
    if found.method == "none":
        return Line(path.name, "none", extend(c, found).rope, c.context, found.original_context)
    found = replace(found, original_context=original)
    if found.scale is None and found.context is None:
        found = replace(found, scale=beside.scale, context=beside.context)
    return _line(c, found, path.name, f"{found.method}+{found.short}" if found.short else found.method)


def _line(c: Checkpoint, asked: Recipe, label: str, method: str) -> Line:
    """The line of a recipe that extends. A dynamic one is not baked: s follows the length of each pass, and is not what is asked for."""
    row = METHODS.get(asked.method)
    if row and row.baked_as:
        of_any = None if asked.scale or asked.context else 2 * (asked.original_context or c.context)  # it is dropped again
        e = extend(c, replace(asked, context=asked.context or of_any))
        return Line(label, method, unbaked(e, asked.method), original=asked.original_context)
    e = extend(c, asked)
    return Line(label, method, e.rope, e.context, asked.original_context)


def check_torch(s: EvaluateOptions) -> None:
    """Raise UsageError where another runtime is asked for than the one in which every measure can be computed."""
    if s.runtime != "transformers":
        raise UsageError(f"{s.runtime} is run for perplexity only", "leave out --runtime")


class Subject:
    """A model, opened; its weights are loaded when something has to be computed that the journal does not have."""

    def __init__(self, model: str, s: EvaluateOptions, journal: ResultJournal) -> None:
        need("validate", "an evaluation", *(() if s.runtime == "transformers" else ("tokenizers", "psutil")))
        check_choices(s)
        self.name, self.settings, self.journal = model, s, journal
        self.c: Checkpoint = open_checkpoint(resolve(model)).counting_from(s.recipe.original_context)
        self.identity = identity(self.c)
        if s.runtime != "transformers" and (s.methods or s.recipes):
            what = "--method" if s.methods else "--recipe"
            ways = "convert first, and give the outputs; or --runtime transformers"
            raise UsageError(f"{s.runtime} runs a file as it is: it takes no {what}", ways)
        if s.runtime != "transformers":
            check_runtime(self.c, s.runtime)
        self.library = self._library(s)
        self.lead: list[int] = []
        self.left_out = 0
        self.seconds, self.tokens = 0.0, 0  # of what this run computed itself
        self._scorer: Scorer | None = None
        self.lender: Subject | None = None  # whose loaded model this one computes with: it is the same one

    @staticmethod
    def _library(s: EvaluateOptions) -> Path | None:
        """The folder of the llama.cpp that is run, where that is the user's own. UsageError for one that cannot be, or is not run."""
        if s.runtime == "llama.cpp":
            folder = folder_of(s.llama_lib)
            if folder:
                probe(folder)
            return folder
        if s.llama_lib:
            raise UsageError(f"--llama-lib is a llama.cpp, and {s.runtime} is run", "--runtime llama.cpp")
        return None

    @property
    def parameters(self) -> int:
        return sum(t.elements for t in self.c.tensors.values())

    @property
    def original(self) -> int:
        """L, from which the factors of this base count."""
        return counted_from(self.c, self.settings.recipe.original_context)

    def counted(self, line: Line) -> int:
        """L of a line: its own, where what is asked for says one."""
        return line.original or self.original

    def row(self, line: Line) -> dict[str, Any]:
        """How each row of a result begins, of a line on this model."""
        return {"model": self.name, **line.as_json(), "original_context": self.counted(line)}

    @property
    def scorer(self) -> Scorer:
        if self.lender is not None:
            return self.lender.scorer
        if self._scorer is None:
            s = self.settings
            tell(f"loading {self.name}")
            self._scorer = (
                Torch(self.c, s.device, DTYPES[s.dtype]) if s.runtime == "transformers" else RuntimeScorer(self.c, s.runtime, self.library)
            )
        return self._scorer

    @property
    def torch(self) -> Torch:
        """The scorer where it has to be torch."""
        check_torch(self.settings)
        assert isinstance(self.scorer, Torch)
        return self.scorer

    def documents(self, at_least: int) -> list[TokenizedText]:
        """The documents of at least so many tokens; `lead` becomes the BOS that stands before each of their windows."""
        with using(self.library):
            found, self.left_out = documents(self.settings.texts, self.c, at_least)
        self.lead = bos(self.c)
        return found

    def room(self, width: int) -> int:
        """The tokens of a document for which a window of so many has room, behind its BOS."""
        return width - len(self.lead)

    def segments(self, n: int, count: int) -> list[Span]:
        """`windows.segments` of a document's first `n` tokens, but for the first where nothing predicts it."""
        return segments(n, count, 0 if self.lead else 1)

    def sliding(self, n: int, width: int, stride: int) -> list[Window]:
        """`windows.sliding`, with BOS before each."""
        return sliding(n, width, stride, len(self.lead))

    def passes(self, line: Line, windows: Iterable[Window]) -> list[Pass]:
        """`windows.passes` under a line, with BOS before each."""
        return passes(windows, line.table, len(self.lead))

    def key(self, line: Line, *parts: Any, lengths: tuple[int, int] | None = None) -> str:
        """What the journal calls the `parts` under a line. With `lengths`, from which to which the texts grow, in tokens, a line that has
        one table there is known by that: a recipe that leaves short texts the base's table has the base's numbers."""
        where = [self.settings.runtime, self.settings.dtype, *([stamp(self.library)] if self.library else [])]
        other = [line.attention.as_json()] if line.attention else []
        how: Any = recipe_of(line.rope)
        if lengths and self.settings.runtime == "transformers" and steady(line.rope, *lengths):
            how = numbers(line.rope, lengths[0])
        return key_of(self.identity, where, how, *other, *parts)

    def run(self, line: Line, document: TokenizedText, p: Pass, progress: Callable[[float], None]) -> dict[Span, Losses]:
        """The losses of a pass, by span. Those that the journal knows are not computed again."""
        ids = np.concatenate([np.asarray(self.lead, np.int64), document.ids[p.begin : p.end]])
        offset = len(self.lead) - p.begin
        key = self.key(line, ids, [[a + offset, b + offset] for a, b in p.spans], lengths=(len(ids), len(ids)))
        known = self.journal.get(key)
        if known is None:
            known = self._compute(line, ids, p, progress)
            self.journal.put(key, known)
        return {span: Losses(*values) for span, values in zip(p.spans, known, strict=True)}

    def _compute(self, line: Line, ids: Any, p: Pass, progress: Callable[[float], None]) -> list[list[float]]:
        offset = len(self.lead) - p.begin
        first = min(a for a, _ in p.spans) + offset
        with self.timed(len(ids)):
            losses = self.losses(line, ids, first, progress)
        found = []
        for a, b in p.spans:
            part = losses[a + offset - first : b + offset - first]
            found.append([len(part), float(part.sum()), float(np.square(part).sum())])
        return found

    def losses(self, line: Line, ids: Ids, first: int, progress: Callable[[float], None]) -> NDArray[np.float64]:
        """−ln p of ids[first:] under a line, as `Scorer.losses` gives them."""
        if line.attention:
            ready_at(self.torch.reference, line.rope, line.attention, len(ids))
            return self.torch.run(ids, first, progress)
        return self.scorer.losses(line.rope, ids, first, progress)

    def predictions(self, line: Line, ids: Ids, first: int, progress: Callable[[float], None]) -> Predictions:
        """Of ids[first:] under a line, in torch."""
        reference, n = self.torch.reference, len(ids)
        if line.attention:
            ready_at(reference, line.rope, line.attention, n)
        else:
            reference.ready(effect(line.rope, n), n)
        return self.torch.predictions(ids, first, progress)

    def logits(self, line: Line, ids: Ids, first: int, take: Take, progress: Callable[[float], None]) -> None:
        """Tell `take` the logits from which ids[first:] are predicted under a line, some rows at a time."""
        if isinstance(self.scorer, RuntimeScorer):
            self.scorer.logits(ids, first, take, progress)
        else:
            self.predictions(line, ids, first, progress).tell(take)

    @contextlib.contextmanager
    def timed(self, tokens: int) -> Iterator[None]:
        """Count the time of a computation over so many tokens, without that of loading the model."""
        assert self.scorer is not None
        begin = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begin
        self.tokens += tokens

    def release(self) -> None:
        """Make room for the next model."""
        if self._scorer is not None:
            self._scorer.close()
        self._scorer = None

    def describe(self) -> dict[str, Any]:
        """Speed and place of what this run computed; no speed where all was in the journal."""
        speed = self.tokens / self.seconds if self.seconds else None
        scorer = self.lender._scorer if self.lender else self._scorer
        ran = scorer.describe() if scorer else {}
        return {"runtime": self.settings.runtime, "seconds": self.seconds, "tokens": self.tokens, "tokens_per_second": speed, **ran}

    def described(self, documents: Sequence[TokenizedText] = (), **beside: Any) -> dict[str, Any]:
        """The model as a result has it, with the documents that it read and what is said `beside` of them."""
        read = {"documents": names(documents), "left_out": self.left_out, "bos": self.lead}
        return {"model": self.name, **read, **beside, **self.describe()}


def check_same_tokens(subject: Subject, documents: Sequence[TokenizedText], other: Subject, texts: Sequence[Ids], option: str) -> None:
    """Raise UsageError where a subject's documents do not begin with the tokens of `other`, which an `option` named, in `texts`."""
    same = len(documents) == len(texts) and all(np.array_equal(d.ids[: len(t)], t) for d, t in zip(documents, texts, strict=True))
    if not same or subject.lead != other.lead:
        raise UsageError(f"{subject.name} reads the texts as other tokens than {other.name}", f"{option} with the same tokenizer")


def spread(say: SayStage, subjects: Sequence[tuple[Subject, Sequence[Line]]]) -> list[SayStage]:
    """How far a measure is with each model, as how far it is with all: by their parameters and how many recipes each has."""
    return shares(say, [len(lines) * subject.parameters for subject, lines in subjects])


class Meter:
    """Progress over passes of different lengths: the fraction of the work that is done, attention's square included."""

    def __init__(self, what: str, lengths: Sequence[int], say: SayStage) -> None:
        self.what, self.say = what, say
        self.total, self.done, self.now = sum(map(_cost, lengths)) or 1.0, 0.0, 0.0

    def begin(self, length: int) -> Callable[[float], None]:
        """To be told the fraction of this pass that is done."""
        self.done, self.now = self.done + self.now, _cost(length)
        self.say(self.what, self.done / self.total)
        return lambda f: self.say(self.what, (self.done + f * self.now) / self.total)


EVEN = 4096  # tokens at which a small model's attention costs about as much as all the rest


def _cost(n: int) -> float:
    return n * (1 + n / EVEN)

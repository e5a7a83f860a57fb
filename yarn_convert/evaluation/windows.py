"""Which tokens a perplexity counts, and with which context: pure arithmetic.

Sliding windows (Press et al., arXiv 2012.15840; YaRN, arXiv 2309.00071, Section 4.3.1): a window of W tokens moves over the document
by S tokens. Window k begins at k·S and ends at min(k·S + W, n), and counts the tokens that no window before it has counted: the
first counts all of its own, each later one the S at its end, which so have at least W − S tokens of context; the last one ends
with the document and may be shorter. A document that is truncated to W tokens is one window.

`lead` special tokens (BOS) stand before every window and are part of W. Without them the first token of a window has nothing to be
predicted from: it is not counted at the document's beginning, nor, where S = W, at any window's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from ..errors import UsageError

Span = tuple[int, int]


class Window(NamedTuple):
    """The tokens begin … end−1 of a document; those from `first` on are counted."""

    begin: int
    end: int
    first: int


class Pass(NamedTuple):
    """One forward pass over the tokens begin … end−1, and the spans of tokens whose losses are summed, each by itself."""

    begin: int
    end: int
    spans: tuple[Span, ...]


def sliding(n: int, width: int, stride: int, lead: int = 0) -> list[Window]:
    """The windows over a document of `n` tokens. Raises UsageError for a stride that skips tokens or a window that has none."""
    room = width - lead
    if room < 2 or n < 2:
        raise UsageError(f"a window of {min(width, n + lead)} tokens predicts nothing", "--windows 2048,4096,8192")
    if not 0 < stride <= room:
        raise UsageError(f"a stride of {stride} leaves out tokens of a window of {width}", f"--stride of at most {room}")
    found, counted = [], 0
    for begin in range(0, n, stride):
        end = min(begin + room, n)
        found.append(Window(begin, end, max(counted, begin if lead else begin + 1)))
        counted = end
        if end == n:
            break
    return [w for w in found if w.first < w.end]


def passes(windows: Iterable[Window], table: Callable[[int], Hashable], lead: int) -> list[Pass]:
    """The forward passes that serve all these windows, before each of which `lead` tokens stand.

    Attention is causal, so windows that begin at one place and have one `table`, by their length, share a pass of the longest one's
    length: all of them under a static recipe, those within L and those beyond it under two lists.
    """
    groups: dict[tuple[int, Hashable], list[Window]] = {}
    for w in windows:
        groups.setdefault((w.begin, table(w.end - w.begin + lead)), []).append(w)
    return [
        Pass(begin, max(w.end for w in group), tuple(sorted({(w.first, w.end) for w in group}))) for (begin, _), group in groups.items()
    ]


def segments(n: int, count: int, first: int = 1) -> list[Span]:
    """The positions first … n−1 in `count` segments of the document's n tokens, whose ends are rounded down."""
    edges = [max(first, n * i // count) for i in range(count + 1)]
    return [(a, b) for a, b in pairwise(edges) if a < b]


@dataclass(frozen=True, slots=True)
class Losses:
    """Sums over tokens of their losses, −ln p in nats, and of the squares; or of another number of theirs."""

    tokens: int
    total: float
    squares: float

    def __add__(self, other: Losses) -> Losses:
        return Losses(self.tokens + other.tokens, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean loss; every token has the same weight."""
        return exp(self.mean)

    @property
    def standard_error(self) -> float:
        """Of the perplexity, by the spread of the tokens' losses: ppl·sd/√n, as llama.cpp's `perplexity` gives it."""
        return self.perplexity * self.mean_error

    @property
    def mean_error(self) -> float:
        """Of the mean, by the spread of the tokens: sd/√n. Neighbouring tokens are not independent, so it is a lower bound; NaN for a
        single token."""
        if self.tokens < 2:
            return math.nan
        variance = max(0.0, self.squares / self.tokens - self.mean**2)
        return math.sqrt(variance / (self.tokens - 1))


NOTHING = Losses(0, 0.0, 0.0)


def document_error(documents: Sequence[Losses]) -> float | None:
    """The standard error of the token-weighted perplexity with documents as clusters: what another choice of documents would change.
    None for fewer than two."""
    error = mean_document_error(documents)
    return None if error is None else sum(documents, NOTHING).perplexity * error


def mean_document_error(documents: Sequence[Losses]) -> float | None:
    """The same of the mean."""
    k, total = len(documents), sum(documents, NOTHING)
    if k < 2:
        return None
    residues = sum((d.total - total.mean * d.tokens) ** 2 for d in documents)
    return math.sqrt(k / (k - 1) * residues) / total.tokens


def mean_of_window_means(windows: Sequence[Losses]) -> float:
    """exp of the mean over windows of each one's mean loss, as the YaRN authors' eval/perplexity.py computes it: the first window of
    a document, of W tokens, weighs no more than a later one of S."""
    return exp(sum(w.mean for w in windows) / len(windows))


def exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf

"""The tokens of a training: texts, tokenized once into a file that all ranks map, and the segments that are cut from it.

A segment is BOS, tokens of one document, EOS (YaRN, arXiv 2309.00071, Section 4.1); or, packed, whole documents one after the other, each
with its BOS and EOS, whose positions begin at 0 and which do not see each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint
from ..compute.documents import bos, contents, encoded
from ..compute.tokens import tokenizer_of
from ..errors import InputError, OutputError, UsageError
from ..formats.digests import Progress
from ..formats.json_text import pretty
from ..options import Texts
from .attention import Span
from .losses import IGNORED

Ids = NDArray[np.int64]
STORED = "<u4"  # how a token lies in the file
NUMBER = re.compile(r"\[\d+\]$")  # of a document in its file


@dataclass(frozen=True, slots=True)
class Corpus:
    """`ids`: the tokens of all documents, uint32[n], mapped; document i ends before `ends[i]`. `bos` and `eos`: what stands around each.
    `given`: some of them were tokens already, of whatever tokenizer; `names`: of what was read, a file of many documents once."""

    ids: NDArray[np.uint32]
    ends: Ids
    bos: list[int]
    eos: list[int]
    given: bool = False
    names: tuple[str, ...] = ()

    @property
    def documents(self) -> Iterator[Span]:
        begin = 0
        for end in self.ends.tolist():
            yield begin, end
            begin = end


class Segment(NamedTuple):
    """Tokens, int64[n], and the documents in it, [begin, end)."""

    ids: Ids
    documents: list[Span]

    @property
    def positions(self) -> Ids:
        return np.concatenate([np.arange(b - a, dtype=np.int64) for a, b in self.documents])

    def cut(self, n: int) -> Segment:
        """Its first `n` tokens."""
        return Segment(self.ids[:n], [(a, min(b, n)) for a, b in self.documents if a < n])

    @property
    def targets(self) -> Ids:
        """The token after each, within its document; `IGNORED` at a document's end."""
        found = np.append(self.ids[1:], IGNORED)
        found[[b - 1 for _, b in self.documents]] = IGNORED
        return found


class Segments:
    """The segments of `n` tokens that a corpus gives."""

    def __init__(self, corpus: Corpus, n: int, pack: bool) -> None:
        self.corpus, self.n, self.pack = corpus, n, pack
        self.room = n - len(corpus.bos) - len(corpus.eos)
        if pack:
            self._pack()
        else:
            starts = [np.arange(a, b - self.room + 1, self.room) for a, b in corpus.documents if b - a >= self.room]
            self.starts = np.concatenate(starts) if starts else np.zeros(0, np.int64)

    def _pack(self) -> None:
        """Where the documents lie, one after the other with what stands around them."""
        around = len(self.corpus.bos) + len(self.corpus.eos)
        lengths = np.diff(self.corpus.ends, prepend=0) + around
        self.edges = np.concatenate([[0], np.cumsum(lengths)])

    def __len__(self) -> int:
        return int(self.edges[-1] // self.n) if self.pack else len(self.starts)

    @property
    def left_out(self) -> int:
        """Tokens of the corpus that are in no segment."""
        return len(self.corpus.ids) - min(len(self.corpus.ids), len(self) * (self.n if self.pack else self.room))

    def __getitem__(self, i: int) -> Segment:
        c = self.corpus
        if not self.pack:
            ids = np.asarray(c.ids[self.starts[i] : self.starts[i] + self.room], dtype=np.int64)
            return Segment(np.concatenate([np.asarray(c.bos, np.int64), ids, np.asarray(c.eos, np.int64)]), [(0, self.n)])
        begin, end = i * self.n, (i + 1) * self.n
        first, last = np.searchsorted(self.edges, [begin, end - 1], side="right") - 1
        parts, spans, at = [], [], 0
        for d in range(int(first), int(last) + 1):
            cut = self._document(d)[max(0, begin - int(self.edges[d])) : end - int(self.edges[d])]
            parts.append(cut)
            spans.append((at, at + len(cut)))
            at += len(cut)
        return Segment(np.concatenate(parts), spans)

    def _document(self, d: int) -> Ids:
        c = self.corpus
        ids = np.asarray(c.ids[c.ends[d - 1] if d else 0 : c.ends[d]], dtype=np.int64)
        return np.concatenate([np.asarray(c.bos, np.int64), ids, np.asarray(c.eos, np.int64)])


@dataclass(frozen=True, slots=True)
class Order:
    """Which segment comes when: `count` of them in an order by `seed`, another in each epoch; `kept`, the last of the first order, are
    held out."""

    count: int
    kept: int
    seed: int

    @property
    def trained(self) -> int:
        return self.count - self.kept

    def held_out(self) -> list[int]:
        return sorted(permutation(self.seed, 0, self.count)[self.trained :].tolist())

    def at(self, k: int) -> int:
        """The segment that is the k-th, from 0."""
        epoch, i = divmod(k, self.trained)
        mine = permutation(self.seed, 0, self.count)[: self.trained]
        return int(mine[i] if epoch == 0 else mine[permutation(self.seed, epoch, self.trained)[i]])


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> Ids:
    return np.random.default_rng([seed, epoch]).permutation(n)


def order_of(count: int, seed: int, held_out: bool) -> Order:
    """`held_out`: whether segments have to be kept back, one in fifty, at most eight. InputError for fewer than one."""
    if count < 1:
        raise InputError("the texts give no segment", "longer texts, a shorter --sequence, or --pack, which joins documents")
    return Order(count, min(8, max(1, count // 50)) if held_out and count > 1 else 0, seed)


# -- tokenizing, once -------------------------------------------------------------------------------------------------


def corpus_of(texts: Texts, c: Checkpoint, tokens: int, seed: int | None, place: Path, key: str, said: Progress) -> Corpus:
    """The tokens of texts, from the file at `place` where one with this key is there, else tokenized into it: `tokens` at most, for that is
    all that the steps can see. `said` gets tokens."""
    index = place.with_suffix(".json")
    if not (index.exists() and json.loads(index.read_text("utf-8")).get("key") == key):
        _tokenized(texts, c, tokens, seed, place, key, said)
    told = json.loads(index.read_text("utf-8"))
    ends = np.load(place.with_suffix(".npy"))
    around = told["bos"], told["eos"]
    return Corpus(np.memmap(place, dtype=STORED, mode="r"), ends, *around, told["given"], tuple(told["names"]))


def _tokenized(texts: Texts, c: Checkpoint, tokens: int, seed: int | None, place: Path, key: str, said: Callable[[int], None]) -> None:
    tokenizer, vocabulary = tokenizer_of(c), c.hparams["vocab_size"]
    ends, written, given = [], 0, False
    names: dict[str, None] = {}
    try:
        with open(place, "wb") as f:
            for name, content in contents(texts, "train", seed):
                ids = encoded(tokenizer, content)
                if not len(ids):
                    continue
                if ids.max() >= vocabulary:
                    whose = f"the tokenizer of {c.source.name}" if isinstance(content, str) else f"{name}, tokens already,"
                    raise InputError(f"{whose} gives tokens beyond its vocabulary of {vocabulary:,}", "texts instead of tokens")
                f.write(ids.astype(STORED).tobytes())
                written += len(ids)
                given |= not isinstance(content, str)
                ends.append(written)
                names[NUMBER.sub("", name)] = None
                said(len(ids))
                if written >= tokens:
                    break
        if not written:
            raise InputError("the texts have no tokens", "--text FILE, in UTF-8")
        np.save(place.with_suffix(".npy"), np.asarray(ends, np.int64))
        told = {"key": key, "bos": bos(c), "eos": eos(c), "given": given, "names": list(names)}
        place.with_suffix(".json").write_bytes(pretty(told))
    except OSError as e:
        raise OutputError(f"could not write the tokens, {place}: {e.strerror}", "free some space, or -o on another disk") from None


def eos(c: Checkpoint) -> list[int]:
    """The token that ends a text, as config.json, a GGUF or the tokenizer's own files name it; none where nobody does."""
    found: Any = c.gguf.get("tokenizer.ggml.eos_token_id") if c.gguf else c.config.get("eos_token_id")
    first = found[0] if isinstance(found, list) and found else found
    return [first] if type(first) is int and 0 <= first < c.hparams["vocab_size"] else []


def share(segments: Sequence[Segment], part: int, parts: int) -> tuple[Ids, Ids, Ids, list[list[Span]] | None]:
    """(ids, positions, targets, documents) of the `part`-th of `parts` ranks that hold these segments together: int64[rows, n / parts]
    each; the documents are those of whole segments, None where each is one."""
    n = len(segments[0].ids) // parts
    mine = slice(part * n, (part + 1) * n)
    ids, positions, targets = (np.stack(rows)[:, mine] for rows in zip(*((s.ids, s.positions, s.targets) for s in segments), strict=True))
    whole = all(len(s.documents) == 1 for s in segments)
    return ids, positions, targets, None if whole else [s.documents for s in segments]


def check_texts(texts: Texts) -> None:
    """UsageError where nothing says what to train on."""
    if not texts.files and texts.dataset is None:
        raise UsageError("nothing says what to train on", "--text FILE or FOLDER, or --dataset NAME")

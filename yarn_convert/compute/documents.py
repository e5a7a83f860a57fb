"""The texts that a measure runs over: files, folders, or a data set of the package `datasets`; as token ids of one model."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..checkpoint import Checkpoint
from ..checkpoint.hub_client import to_reach_it
from ..errors import InputError, UsageError, need
from ..formats.decoding import parse
from ..hearing import tell
from ..options import Texts
from .scorer import Ids
from .tokens import TEXT, text_of, tokenizer_of

LONG = 2_000_000  # bytes that a tokenizer reads in a second or two


class TokenizedText(NamedTuple):
    """A name and int64[n], without special tokens."""

    name: str
    ids: Ids


Content = str | Sequence[int]  # a text, or its tokens where a data set has nothing else


def contents(texts: Texts, split: str = "test", seed: int | None = None) -> Iterator[tuple[str, Content]]:
    """(name, text), in the order given, or shuffled by `seed`. `split`: of a data set, where its name says none. InputError for what cannot
    be read; UsageError without the package `datasets`."""
    if not texts.files and texts.dataset is None:
        yield TEXT.name, _read(TEXT)
        return
    files = [f for path in texts.files for f in _files(path)]
    if seed is not None:
        random.Random(seed).shuffle(files)
    for file in files:
        yield from _lines(file) if file.suffix in LINES else [(file.name, _read(file))]
    if texts.dataset is not None:
        yield from _dataset(texts.dataset, texts.most, split, seed)


def documents(texts: Texts, c: Checkpoint, at_least: int) -> tuple[list[TokenizedText], int]:
    """(documents of at least so many tokens, how many were shorter).

    All measures compare lengths on the same documents, so a short one is left out of all. InputError when none is left.
    """
    if texts.cut is not None and texts.cut < 2:
        raise UsageError(f"--cut must be at least 2 tokens, not {texts.cut}", "--cut 8k")
    files = [f for path in texts.files for f in _files(path)]
    if texts.dataset is not None or sum(f.stat().st_size for f in files if f.is_file()) >= LONG:
        tell(f"reading the texts for {c.source.name}")
    tokenizer = tokenizer_of(c)
    whole = [TokenizedText(name, encoded(tokenizer, text)) for name, text in contents(texts)]
    if texts.cut:
        n = texts.cut
        whole = [TokenizedText(f"{d.name}[{i}]", d.ids[i * n : (i + 1) * n]) for d in whole for i in range(len(d.ids) // n)]
    kept = [d for d in whole if len(d.ids) >= at_least]
    if not kept:
        longest = max((len(d.ids) for d in whole), default=0)
        why = ": --cut makes them" if texts.cut and texts.cut < at_least else ""
        hint = "a larger --cut, or shorter windows" if why else "longer texts, or shorter windows"
        raise InputError(f"no document has {at_least:,} tokens: the longest has {longest:,}{why}", hint)
    if any(d.ids.max(initial=0) >= c.hparams["vocab_size"] for d in kept):
        raise InputError(f"the tokenizer of {c.source.name} gives tokens beyond its vocabulary", "mend the tokenizer")
    return kept[: texts.most], len(whole) - len(kept)


def bos(c: Checkpoint) -> list[int]:
    """The special tokens that this model's tokenizer puts before a text."""
    tokenizer = tokenizer_of(c)
    with_, without = (tokenizer.encode("a", add_special_tokens=special).ids for special in (True, False))
    count = next((i for i in range(len(with_)) if with_[i : i + len(without)] == without), 0)
    return list(tokenizer.encode("", add_special_tokens=True).ids[:count])


def encoded(tokenizer: Any, text: Content) -> Ids:
    """int64[n], nothing put beside it."""
    if not isinstance(text, str):
        return np.asarray(text, dtype=np.int64)
    return np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)


LINES = (".jsonl", ".ndjson")  # a document a line


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if not (found := sorted(f for f in path.iterdir() if f.suffix in (".txt", *LINES))):
        raise InputError(f"no *.txt or *.jsonl in {path}", "--text FILE, in UTF-8")
    return found


def _read(path: Path) -> str:
    return text_of(path, "utf-8-sig")  # a mark of the byte order would be a document's first token


def _lines(path: Path) -> Iterator[tuple[str, Content]]:
    """The documents of a file of JSON lines."""
    for i, line in enumerate(_read(path).split("\n")):
        if not line.strip():
            continue
        try:
            row = parse(line.encode())
        except ValueError as e:
            raise InputError(f"line {i + 1} of {path} is no JSON: {e}", "one object a line, its text in a member of it") from None
        if not isinstance(row, dict):
            raise InputError(f"line {i + 1} of {path} is no object", "one object a line, its text in a member of it")
        yield f"{path.name}[{i}]", _content(row, "", f"line {i + 1} of {path}")


COLUMNS = ("text", "input", "content", "report", "document")  # where data sets keep their texts; the first that is there
TOKENS = "input_ids"  # and those that are tokens already


def _content(row: Mapping[str, Any], column: str, where: str) -> Content:
    """The text of a row, or its tokens; InputError where it has neither."""
    key = column or next((k for k in (*COLUMNS, TOKENS) if k in row), "")
    found = row.get(key)
    if found is None and key in row:
        return ""
    if isinstance(found, str) or (key == TOKENS and isinstance(found, list) and all(type(i) is int and i >= 0 for i in found)):
        return found
    raise InputError(f"{where} has no text in {key or 'a column'}: it has {', '.join(row)}", "--dataset NAME:CONFIG:SPLIT:COLUMN")


def _dataset(wish: str, most: int | None, usual: str, seed: int | None) -> Iterator[tuple[str, Content]]:
    need("datasets", "--dataset")
    import datasets

    name, config, split, column, *more = (*wish.split(":"), "", "", "")
    if not name or any(more):
        raise UsageError(f"--dataset {wish!r} names no data set", "--dataset NAME:CONFIG:SPLIT:COLUMN")
    if not Path(name).exists():
        _reach(name)
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what is wrong is said in one line
    datasets.utils.disable_progress_bars()
    i = -1
    try:
        rows: Any = datasets.load_dataset(name, config or None, split=split or usual, streaming=True)
        for i, row in enumerate(rows if seed is None else rows.shuffle(seed=seed)):
            if most is not None and i >= 20 * most:  # of which `most` are to be long enough
                break
            yield f"{name}[{i}]", _content(row, column, name)
    except InputError:
        raise
    except Exception as e:  # whatever a data set's own code raises
        why = (str(e) or type(e).__name__).splitlines()[0]
        raise InputError(f"cannot load the data set {wish}: {why}", "--dataset NAME:CONFIG:SPLIT:COLUMN, or --text FILE") from None
    if i < 0:
        raise InputError(f"the data set {wish} has no rows", "--dataset NAME:CONFIG:SPLIT:COLUMN, or --text FILE")


def _reach(name: str) -> None:
    """InputError at once where no Hub answers: `datasets` would try six times, with a line for each, and rows are streamed from there."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(name, timeout=10)
    except Exception as e:  # the client and httpx each have their own
        if getattr(e, "response", None) is None and not isinstance(e, ValueError):  # which a name that cannot be one raises
            says = f"could not reach the Hub for the data set {name}: {type(e).__name__}"
            raise InputError(says, f"{to_reach_it()}, or --text FILE") from None


def names(documents: Sequence[TokenizedText]) -> list[dict[str, Any]]:
    """As JSON."""
    return [{"name": d.name, "tokens": len(d.ids)} for d in documents]

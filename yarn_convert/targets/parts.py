"""GGUF files to write: one, or the parts of a split model.

A split model stays split as it is: parts whose tensors stay are copied as files, so that extending it writes its first part
alone. A given size splits as llama.cpp's tools/gguf-split/gguf-split.cpp does (`split_strategy`): tensors in order, their
padded bytes counted, the headers not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from ..dialects import FACTORS
from ..errors import Unsupported, UsageError
from ..formats.files import open_regular
from ..formats.gguf_file import DEFAULT_ALIGNMENT, Field, Gguf, Value, encode_header
from ..formats.split import MAX_PARTS, part_name, split_fields, stem_of, with_split
from ..formats.tensors import Tensor
from .moving import MAGIC, CopyFile, Job, Piece, WriteTensors, unchanged

UNITS = {"M": 1_000_000, "G": 1_000_000_000}  # gguf-split.cpp, `split_str_to_n_bytes`
WHOLE = "none"
WORTH_KEEPING = 1 << 28  # bytes of a copied part that an interrupted run need not read again

Fields = Mapping[str, Field | Value]


def part_size(text: str | None) -> int | None:
    """Bytes of --split-max-size: "5G" or "500M", 0 for "none", which is one file, None for None. Raises UsageError."""
    if text is None or text == WHOLE:
        return None if text is None else 0
    found = re.fullmatch(r"(\d{1,9})([MG])", text, re.ASCII)
    if found is None or not int(found[1]):
        raise UsageError(f"--split-max-size {text!r} is no size", "as 5G or 500M (of 1,000,000 bytes), or none for one file")
    return int(found[1]) * UNITS[found[2]]


def gguf_job(name: str, fields: Fields, pieces: list[Piece], alignment: int) -> WriteTensors:
    header, offsets = encode_header(fields, [p.target for p in pieces], alignment)
    end = max((offsets[p.target.name] + p.target.nbytes for p in pieces), default=len(header))
    return WriteTensors(name, header, tuple((p, offsets[p.target.name]) for p in pieces), end + -end % alignment, fields)


def gguf_jobs(out: Path, fields: Fields, pieces: list[Piece], alignment: int, source: Gguf | None, size: int | None) -> tuple[Job, ...]:
    """The files of a GGUF, the one that readers open first: one, named as `out`, or parts with the stem of `out`.

    `size` is the most bytes a part, 0 for one file, None to split as `source` is.
    """
    if size is None:
        parts = source.parts if source else ()
        groups = _as_they_are(pieces, parts) if parts else [pieces]
    else:
        parts, groups = (), _by_size(pieces, size) if size else [pieces]
    if len(groups) == 1:
        return (gguf_job(out.name, fields, pieces, alignment),)
    count, total, stem = len(groups), len(pieces), stem_of(out)
    if count > MAX_PARTS:
        raise UsageError(f"--split-max-size would make {count:,} parts", f"at most {MAX_PARTS:,}: choose a larger size")
    jobs: list[Job] = [gguf_job(part_name(stem, 0, count), with_split(fields, count, total), groups[0], alignment)]
    for no, group in enumerate(groups[1:], 1):
        name = part_name(stem, no, count)
        if parts and _unchanged(group, parts[no]):
            jobs.append(_copied(name, parts[no], group))
            continue
        padding = {} if alignment == DEFAULT_ALIGNMENT else {"general.alignment": Value("u32", alignment)}
        jobs.append(gguf_job(name, {**padding, **split_fields(no, count, total)}, group, alignment))
    return tuple(jobs)


def _as_they_are(pieces: list[Piece], parts: tuple[Gguf, ...]) -> list[list[Piece]]:
    """The pieces of each part; what no part had, rope_freqs.weight, goes to the first, which is written anew anyway."""
    home = {name: no for no, part in enumerate(parts) for name in part.tensors}
    groups: list[list[Piece]] = [[] for _ in parts]
    for p in pieces:
        groups[home.get(p.target.name, 0)].append(p)
    return groups


def _by_size(pieces: list[Piece], size: int) -> list[list[Piece]]:
    """A tensor that is larger than `size` gets a part to itself. rope_freqs.weight goes to the first, where it can be changed."""
    groups: list[list[Piece]] = [[]]
    filled = 0
    for p in pieces:
        padded = p.target.nbytes + -p.target.nbytes % DEFAULT_ALIGNMENT
        if p.target.name in FACTORS:
            continue
        if groups[-1] and filled + padded > size:
            groups.append([])
            filled = 0
        groups[-1].append(p)
        filled += padded
    groups[0] += [p for p in pieces if p.target.name in FACTORS]
    return groups


def _unchanged(group: list[Piece], part: Gguf) -> bool:
    """Whether a part holds exactly these tensors already. Its `split.tensors.count` may be an old one: nobody reads it there."""
    names = [p.target.name for p in group]
    return names == list(part.tensors) and all(p.is_copy and _home(p.sources[0]) == part.path.name for p in group)


def _home(t: Tensor) -> str:
    """The name of its file."""
    return t.remote.name.rpartition("/")[2] if t.remote else t.path.name if t.path else ""


def _copied(name: str, part: Gguf, group: list[Piece]) -> Job:
    """A part as it is; one that is elsewhere some hundreds of MiB at a time, behind its first bytes."""
    t = group[0].sources[0] if group else None
    if t is None or t.remote is None:
        return CopyFile(name, t.path if t and t.path else part.path)
    starts = [*range(MAGIC, part.size, WORTH_KEEPING), part.size]
    pieces = [Tensor(f"byte {at}", "U8", (end - at,), end - at, offset=at, remote=t.remote) for at, end in pairwise(starts)]
    with open_regular(part.path) as f:
        return WriteTensors(name, f.read(MAGIC), tuple((unchanged(p), p.offset) for p in pieces), part.size)


def only_first(jobs: tuple[Job, ...]) -> WriteTensors:
    """The file that an edit in place changes. Raises Unsupported where another part would have to change too."""
    first, *others = jobs
    assert isinstance(first, WriteTensors)
    if any(not isinstance(job, CopyFile) for job in others):
        raise Unsupported("more than the first part of this split GGUF would change", "write a new file instead of --in-place")
    return first

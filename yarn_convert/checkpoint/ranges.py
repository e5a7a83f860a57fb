"""Some tensors of a model on the Hub, by range: gigabytes of a model of hundreds."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from ..errors import InputError, YarnConvertError
from ..formats.digests import Progress
from ..formats.gguf_file import open_gguf
from ..formats.tensors import MAX_HEADER, Tensor, read_safetensors
from .hub_client import byte_range, file_in_cache, hub_error
from .model import Checkpoint

PIECE = 1 << 24  # bytes of one request
GAP = 1 << 12  # bytes between two tensors that are fetched with them: a GGUF has some


def fetched(c: Checkpoint, names: Collection[str], folder: Path, progress: Progress) -> Checkpoint:
    """`c` with those of its tensors alone that are called so, whose bytes are here: of a model of which only the headers were fetched they
    come from the Hub into `folder`, but for files that lie in its cache. `progress` gets bytes.

    Raises InputError where the Hub cannot be reached, or has changed.
    """
    if c.source.has_weights:
        return replace(c, tensors={name: c.tensors[name] for name in names})
    assert c.source.repo is not None
    shards: dict[str, list[Tensor]] = {}
    for name in names:
        shards.setdefault(c.source.shards[name], []).append(c.tensors[name])
    found: dict[str, Tensor] = {}
    with (folder / "ranges").open("wb") as f:
        for shard, tensors in shards.items():
            if (whole := file_in_cache(c.source.repo, shard, c.source.commit)) is not None:
                there = open_gguf(whole).tensors if c.gguf else read_safetensors(whole)[0]
                found |= {t.name: replace(t, path=whole, offset=there[t.name].offset) for t in tensors}
                progress(sum(t.nbytes for t in tensors))
                continue
            data = 0 if c.gguf else 8 + _length(c, shard)
            for run in _runs(tensors):
                start, stop = run[0].offset, run[-1].offset + run[-1].nbytes
                found |= {t.name: replace(t, path=folder / "ranges", offset=f.tell() + t.offset - start) for t in run}
                for at in range(start, stop, PIECE):
                    f.write(piece := _range(c, shard, data + at, min(PIECE, stop - at)))
                    progress(len(piece))
    return replace(c, tensors={name: found[name] for name in names}, source=replace(c.source, headers=None))


def _runs(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """The tensors of one file in its order, those together that lie side by side: an expert costs less than a request does."""
    found: list[list[Tensor]] = []
    for t in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if found and t.offset - (last := found[-1][-1]).offset - last.nbytes <= GAP:
            found[-1].append(t)
        else:
            found.append([t])
    return found


def _length(c: Checkpoint, shard: str) -> int:
    """Bytes of the header of a shard."""
    (length,) = struct.unpack("<Q", _range(c, shard, 0, 8))
    if length > MAX_HEADER:
        raise InputError(f"{shard} of {c.source.repo} is no safetensors file", "its header says another length")
    return int(length)


def _range(c: Checkpoint, shard: str, start: int, n: int) -> bytes:
    """`n` bytes of a file of the commit that `c` was opened at."""
    assert c.source.repo is not None
    try:
        return byte_range(c.source.repo, shard, c.source.commit, start, start + n)
    except YarnConvertError:
        raise
    except Exception as e:  # the client, httpx and the file system each have their own
        raise hub_error(c.source.repo, e) from None

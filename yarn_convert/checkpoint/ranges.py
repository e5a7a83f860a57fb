"""Some tensors of a model on the Hub, by range: gigabytes of a model of hundreds."""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ..errors import InputError, YarnConvertError
from ..formats.digests import Progress
from ..formats.tensors import MAX_HEADER, Tensor, read_safetensors
from .model import Checkpoint
from .source import byte_range, hub_error

PIECE = 1 << 24  # bytes of one request


def fetched(c: Checkpoint, names: Collection[str], folder: Path, progress: Progress) -> Checkpoint:
    """`c` with those of its tensors alone that are called so, whose bytes are here: of a model of which only the headers were fetched they
    come from the Hub into `folder`, but for shards that lie in its cache. `progress` gets bytes.

    Raises InputError where the Hub cannot be reached, or has changed.
    """
    if c.source.headers is None:
        return replace(c, tensors={name: c.tensors[name] for name in names})
    shards: dict[str, list[Tensor]] = {}
    for name in names:
        shards.setdefault(c.source.shards[name], []).append(c.tensors[name])
    found: dict[str, Tensor] = {}
    with (folder / "ranges").open("wb") as f:
        for shard, tensors in shards.items():
            if (c.source.path / shard).exists():
                there = read_safetensors(c.source.path / shard)[0]
                found |= {t.name: there[t.name] for t in tensors}
                progress(sum(t.nbytes for t in tensors))
                continue
            data = 8 + _length(c, shard)
            for t in tensors:
                found[t.name] = replace(t, path=folder / "ranges", offset=f.tell())
                for at in range(0, t.nbytes, PIECE):
                    n = min(PIECE, t.nbytes - at)
                    f.write(_range(c, shard, data + t.offset + at, n))
                    progress(n)
    return replace(c, tensors={name: found[name] for name in names}, source=replace(c.source, headers=None))


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

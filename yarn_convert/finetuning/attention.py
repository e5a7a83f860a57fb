"""The attention of a training pass: causal, within documents, within a layer's window; over the whole text where several ranks hold parts.

Sequence parallelism is Ulysses' (Jacobs et al., arXiv 2309.14509): each of N ranks holds S/N tokens of a text, and for the attention the
ranks exchange heads for tokens, so that each attends with 1/N of the heads over all S. Everything else in a layer sees one token at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..compute.rotary import BLOCK, chunk_of
from ..errors import UsageError, many

NAME = "yarn_convert_training"
Span = tuple[int, int]


@dataclass
class Pass:
    """What the attention is told of the pass that is running. `group`: the ranks that hold parts of the same texts, None for one that holds
    them whole. `documents`: of each row its documents as [begin, end), which do not see each other; None where a row is one. `windows`:
    whether a layer's sliding window counts. `calls`: how often it was asked."""

    group: Any = None
    windows: bool = True
    documents: Sequence[Sequence[Span]] | None = None
    calls: int = 0

    @property
    def ranks(self) -> int:
        import torch.distributed as dist

        return 1 if self.group is None else dist.get_world_size(self.group)


def register(running: Pass) -> str:
    """The name, for transformers, of an attention that obeys `running`."""
    from transformers import AttentionInterface

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **rest: Any
    ) -> tuple[Any, None]:
        sinks, n = rest.get("s_aux"), running.ranks
        running.calls += 1
        if n > 1:
            key, value = (repeated(x, n) for x in (key, value))
            query, key, value = (_exchanged(x, running.group, True) for x in (query, key, value))
            sinks = None if sinks is None else sinks.chunk(n)[_rank(running.group)]
        length = query.shape[2]
        window = min((running.windows and rest.get("sliding_window")) or length, length)
        seen = Seen(window, min(chunk_of(module) or length, length), rest.get("softcap"), sinks)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        out = _by_documents(query, key, value, scale, seen, running.documents)
        return (out if n == 1 else _exchanged(out, running.group, False)).transpose(1, 2), None

    AttentionInterface.register(NAME, attend)
    return NAME


@dataclass(frozen=True, slots=True)
class Seen:
    """What a token sees, and how scores are changed: `window` and `chunk` in tokens, `cap` of scores, one more score a head (`sinks`)."""

    window: int
    chunk: int
    cap: float | None = None
    sinks: Any = None

    def whole(self, n: int) -> bool:
        """Whether every token sees all before it, and scores are as they are."""
        return min(self.window, self.chunk) >= n and self.cap is None and self.sinks is None


def _by_documents(query: Any, key: Any, value: Any, scale: float, seen: Seen, documents: Sequence[Sequence[Span]] | None) -> Any:
    import torch

    if documents is None:
        return _attended(query, key, value, scale, seen)
    rows = []
    for i, spans in enumerate(documents):
        own = [(query[i : i + 1, :, a:b], key[i : i + 1, :, a:b], value[i : i + 1, :, a:b]) for a, b in spans]
        rows.append(torch.cat([_attended(q, k, v, scale, seen) for q, k, v in own], dim=2))
    return torch.cat(rows)


def _attended(query: Any, key: Any, value: Any, scale: float, seen: Seen) -> Any:
    """Causal attention of one document, [rows, heads, tokens, head]; in blocks of rows where there is a window or scores are changed."""
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    n, grouped = query.shape[2], key.shape[1] != query.shape[1]
    if seen.whole(n):
        return sdpa(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    import torch

    key, value = (repeated(x, query.shape[1]) for x in (key, value))
    found = []
    for a in range(0, n, BLOCK):
        b = min(a + BLOCK, n)
        first = max(0, a - seen.window + 1, (a // seen.chunk) * seen.chunk)
        rows, columns = torch.arange(a, b, device=query.device)[:, None], torch.arange(first, b, device=query.device)
        open_ = (columns <= rows) & (rows - columns < seen.window) & (rows // seen.chunk == columns // seen.chunk)
        part = query[:, :, a:b], key[:, :, first:b], value[:, :, first:b]
        changed = seen.cap is not None or seen.sinks is not None
        found.append(_scored(*part, scale, seen, open_) if changed else sdpa(*part, attn_mask=open_, scale=scale))
    return torch.cat(found, dim=2)


def _scored(query: Any, key: Any, value: Any, scale: float, seen: Seen, open_: Any) -> Any:
    """One block, score by score: capped (Gemma 2), or with a score more, whose share goes nowhere (gpt-oss)."""
    import torch

    scores = query @ key.transpose(2, 3) * scale
    if seen.cap is not None:
        scores = (scores / seen.cap).tanh() * seen.cap
    scores = scores.masked_fill(~open_, float("-inf"))
    if seen.sinks is not None:
        scores = torch.cat([scores, seen.sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)], -1)
        return scores.softmax(-1)[..., :-1] @ value
    return scores.softmax(-1) @ value


def check_heads(heads: int, ranks: int) -> None:
    """UsageError where heads cannot be shared out among so many ranks."""
    if heads % ranks:
        fit = [n for n in range(1, heads + 1) if heads % n == 0]
        raise UsageError(
            f"{many(heads, 'head')} cannot be shared out among {many(ranks, 'rank')}",
            f"--sequence-parallel {' or '.join(map(str, fit[:6]))}",
        )


def repeated(x: Any, ranks: int) -> Any:
    """Keys or values, [rows, heads, tokens, head], with as many heads as `ranks` divides: each again beside itself where they are fewer."""
    return x.repeat_interleave(math.lcm(x.shape[1], ranks) // x.shape[1], dim=1)


def _rank(group: Any) -> int:
    import torch.distributed as dist

    return int(dist.get_rank(group))


def _exchanged(x: Any, group: Any, forth: bool) -> Any:
    """[rows, heads, S/N, head] -> [rows, heads/N, S, head], or, with `forth` False, back."""
    import torch

    class Exchange(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: Any, forth: bool) -> Any:
            ctx.forth = forth
            return _all_to_all(x, group, forth)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return _all_to_all(grad, group, not ctx.forth), None

    return Exchange.apply(x, forth)


def _all_to_all(x: Any, group: Any, forth: bool) -> Any:
    import torch
    import torch.distributed as dist

    n = dist.get_world_size(group)
    cut, join = (1, 2) if forth else (2, 1)
    sent = torch.stack(x.chunk(n, dim=cut)).contiguous()
    got = torch.empty_like(sent)
    dist.all_to_all_single(got, sent, group=group)
    return torch.cat(list(got), dim=join)

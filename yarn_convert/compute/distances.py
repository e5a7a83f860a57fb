"""Attention at other distances than i − j (`rope.Distances`): ReRoPE and LM-Infinite, to compare recipes with.

Keys come to it unrotated. A query and a key that are less than the window apart are rotated by their positions, and so meet at i − j; all
other keys stay as they are and meet a query that is rotated by the window. Both kinds of scores share one softmax, some rows at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checkpoint import Checkpoint
from ..errors import Unsupported
from ..rope import Distances, Effect, Rope, effect
from .growing import cos_sin, rotated, rotation_of
from .reference import Reference
from .rotary import BLOCK

NAME = "yarn_convert_distances"
WAY = "leave it out of --method for this model"


def check_plain(c: Checkpoint, name: str) -> None:
    """Raise Unsupported unless the model's attention is of plain RoPE over the whole text, for which alone these methods are defined."""
    hf = c.family.hf
    reasons = {
        f"has a scaling of its own, {c.rope.method}": c.long is not None or c.rope.method != "none",
        "sees a window of tokens alone in some layers": bool(c.window) or c.family.slides,
        "has latent attention": hf.latent or c.family.latent,
        "has layers of two kinds, or that do not turn": bool(c.family.layer_type) or c.farthest is not None,
    }
    if why := next((words for words, so in reasons.items() if so), None):
        raise Unsupported(f"{name} is for attention with plain RoPE, and {c.source.name} {why}", WAY)


def ready_at(reference: Reference, rope: Rope, d: Distances, n: int) -> None:
    """Set the network up for a pass of `n` tokens that attend at these distances under a static recipe. Unsupported for an architecture
    whose rotation is not understood."""
    rotation = rotation_of(reference, rope.rotary_dim // 2)
    if not rotation:
        raise Unsupported(f"{type(reference.net).__name__} attends in a way in which other distances are not defined here", WAY)
    t = effect(rope)
    reference.rotary.serve(Effect(np.zeros_like(t.inv_freq), 1.0), n, reference.device, reference.dtype)  # the network rotates nothing
    reference.net.set_attn_implementation(_attention(rotation, d, *cos_sin(t, max(n, d.window + 1), reference)))


def _attention(rotation: str, d: Distances, cos: Any, sin: Any) -> str:
    """The name, for transformers, of an attention over the whole text at these distances; cos and sin are [tokens, D/2]."""
    from transformers import AttentionInterface

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **rest: Any) -> tuple[Any, None]:
        if rest.get("sliding_window"):
            raise Unsupported(
                f"a layer of {type(module).__name__} sees a window of tokens alone, and other distances are for whole texts", WAY
            )
        n, groups = query.shape[2], query.shape[1] // key.shape[1]
        c, s = (x.to(query.device) for x in (cos, sin))  # where layers are on several
        query = grown(query, d.grown) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        turned = rotated(query, c[:n], s[:n], rotation), rotated(key, c[:n], s[:n], rotation)
        at_most = slice(d.window, d.window + 1)
        far = rotated(query, c[at_most], s[at_most], rotation), key
        out = query.new_zeros((*query.shape[:3], value.shape[3]))
        for a in range(0, n, BLOCK):
            out[:, :, a : a + BLOCK] = _rows(a, min(a + BLOCK, n), d, turned, far, value)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attend)
    return NAME


def _rows(a: int, b: int, d: Distances, near: tuple[Any, Any], far: tuple[Any, Any], value: Any) -> Any:
    """What the tokens a … b−1 see, [batch, heads, b − a, head]; `near` and `far`: queries and keys, [batch, heads, tokens, head]."""
    import torch

    begin, end = max(0, a - d.window + 1), max(0, b - d.window)  # of the keys that are near to one of them at least, and far of one
    end = end if d.first is None else min(end, d.first)
    rows = torch.arange(a, b, device=value.device)[:, None]
    ahead, behind = (rows - torch.arange(*span, device=value.device) for span in ((begin, b), (0, end)))
    scores = [(q[:, :, a:b] @ k[:, :, x:y].transpose(2, 3)) for (q, k), (x, y) in ((near, (begin, b)), (far, (0, end)))]
    hidden = torch.cat([(ahead < 0) | (ahead >= d.window), behind < d.window], dim=1)
    weights = torch.cat(scores, dim=3).float().masked_fill_(hidden, float("-inf")).softmax(-1).to(value.dtype)
    return weights @ torch.cat([value[:, :, begin:b], value[:, :, :end]], dim=2)


def grown(query: Any, original: int | None) -> Any:
    """Queries, [batch, heads, tokens, head], each times max(1, ln(i + 1)/ln L); as they are where L is None."""
    import torch

    if original is None:
        return query
    positions = torch.arange(1, query.shape[2] + 1, dtype=torch.float64, device=query.device)
    return query * (positions.log() / float(np.log(original))).clip(1)[:, None].to(query.dtype)

"""Token by token under a recipe whose s follows the length (YaRN, arXiv 2309.00071, Section 3.3): s = max(1, l'/L) at every step.

Keys are cached *before* RoPE and all of them rotated with the current table at each step, so that query and keys always meet under
one table. Runtimes cache them after RoPE: then keys of earlier steps keep the angles of a smaller s, and scores beyond L are wrong.

What a cache can give: with one layer, exactly the logits of a fresh pass of the same length. With more, the keys and values of a
deeper layer still come from hidden states that were computed under the smaller s of their own step, and only a fresh pass (`CACHES`
"none") computes those anew; the cache then is exactly what comes of every position attending under the table of its own length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, no_such
from ..families.layers import CHUNKED, FULL, SLIDES
from ..rope import Effect, Rope, effect
from .reference import Reference, enough_memory
from .scorer import Ids

CACHES = ("before", "after", "none")
NAME = "yarn_convert_before_rope"
SHORT = 24  # tokens of the check that an architecture's rotation is understood
TOLERANCE = {"float32": 1e-6, "bfloat16": 3e-2}  # NMSE; a wrong rotation is near 1
ROWS = 256  # of attention at a time where a mask is needed


class Steps:
    """A text that grows: `feed` tokens, get the logits that follow the last. `cache` "before" or "after" RoPE, or "none": every step
    is a fresh pass over all tokens. "auto" is "before" where this architecture's rotation is understood, else "none"."""

    def __init__(self, reference: Reference, rope: Rope, cache: str = "auto") -> None:
        if cache not in (*CACHES, "auto"):
            raise no_such("cache", cache, CACHES)
        self.reference, self.rope = reference, rope
        self.rotation = rotation_of(reference, rope.rotary_dim // 2) if cache in ("before", "auto") else ""
        if cache == "before" and not self.rotation:
            raise UsageError(f"{type(reference.net).__name__} rotates its keys in a way that is not known", "a fresh pass for each token")
        self.cache = cache if cache != "auto" else "before" if self.rotation else "none"
        self.ids: Ids = np.zeros(0, np.int64)
        self.kept: Any = None

    def feed(self, ids: Ids) -> NDArray[np.float32]:
        """float32[vocabulary] after these tokens, int64[n], n ≥ 1."""
        self.ids = np.concatenate([self.ids, np.asarray(ids, np.int64)])
        t = effect(self.rope, len(self.ids))
        if self.cache == "none":
            return np.asarray(self.reference.logits(t, self.ids, [(len(self.ids) - 1, len(self.ids))])[0])
        return self._before(t, ids) if self.cache == "before" else self._after(t, ids)

    def _before(self, t: Effect, ids: Ids) -> NDArray[np.float32]:
        r, n = self.reference, len(self.ids)
        r.rotary.serve(Effect(np.zeros_like(t.inv_freq), 1.0), n, r.device, r.dtype)  # cos 1 and sin 0: the network rotates nothing
        r.net.set_attn_implementation(_attention(*cos_sin(t, n, r), self.rotation))
        return self._step(ids)

    def _after(self, t: Effect, ids: Ids) -> NDArray[np.float32]:
        self.reference.ready(t, len(self.ids))
        self.reference.net.set_attn_implementation("eager")
        return self._step(ids)

    def _step(self, ids: Ids) -> NDArray[np.float32]:
        import torch

        self.kept = self.kept or _cache(self.reference.net.config.get_text_config())
        with torch.inference_mode(), enough_memory(len(self.ids)):
            batch = torch.from_numpy(np.asarray(ids, np.int64))[None].to(self.reference.device)
            out = self.reference.net(batch, past_key_values=self.kept, use_cache=True, logits_to_keep=1)
        return np.asarray(out.logits[0, -1].float().cpu().numpy())


def _cache(config: Any) -> Any:
    """transformers' cache: of every token, whatever a layer's window; of layers that are no attention, what they keep."""
    from transformers import DynamicCache

    others = {*(getattr(config, "layer_types", None) or ())} - {FULL, SLIDES, CHUNKED}
    return DynamicCache(config=config) if others else DynamicCache()


def greedy(steps: Steps, prompt: Ids, most: int, stop: Any = lambda ids: False) -> list[int]:
    """The most likely tokens after the prompt, at most `most`, until `stop` of what there is."""
    found = [int(steps.feed(prompt).argmax())]
    while len(found) < most and not stop(found):
        found.append(int(steps.feed(np.array(found[-1:])).argmax()))
    return found


def rotation_of(reference: Reference, pairs: int) -> str:
    """How this architecture pairs the dimensions that it rotates, "halves" or "neighbours": the one with which a short text gives the
    logits that it gives by its own rotation; "" for neither, as where some layers rotate otherwise."""
    if not hasattr(reference, "rotation"):
        reference.rotation = _found_rotation(reference, pairs)  # type: ignore[attr-defined]
    return str(reference.rotation)  # type: ignore[attr-defined]


def _found_rotation(reference: Reference, pairs: int) -> str:
    ids = np.arange(1, SHORT + 1) % reference.net.config.get_text_config().vocab_size
    t = Effect(np.logspace(0, -2, pairs), 1.0)
    expected = reference.logits(t, ids, [(SHORT - 1, SHORT)])[0]
    for rotation in ("halves", "neighbours"):
        steps = Steps.__new__(Steps)
        steps.reference, steps.rotation, steps.ids, steps.kept = reference, rotation, ids, None
        try:
            found = steps._before(t, ids)
        except (_Unknown, RuntimeError):  # of shapes that do not fit
            continue
        if float(np.square(found - expected).sum() / np.square(expected - expected.mean()).sum()) < TOLERANCE[reference.dtype_name]:
            return rotation
    return ""


class _Unknown(Exception):
    """Something in an attention that is not computed here."""


def _attention(cos: Any, sin: Any, rotation: str) -> str:
    """The name of an attention function for transformers: causal, over keys that were never rotated, which it rotates with cos and sin,
    [tokens, D/2], by their positions."""
    import torch
    from transformers import AttentionInterface

    sdpa = torch.nn.functional.scaled_dot_product_attention

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **rest: Any) -> tuple[Any, None]:
        if rest.get("softcap") or rest.get("s_aux") is not None:
            raise _Unknown
        q, k = query.shape[2], key.shape[2]
        c, s = (x[:k].to(query.device) for x in (cos, sin))  # where layers are on several
        query, key = rotated(query, c[k - q :], s[k - q :], rotation), rotated(key, c, s, rotation)
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        window = rest.get("sliding_window") or k
        if q == k <= window:
            return sdpa(query, key, value, is_causal=True, scale=scaling).transpose(1, 2).contiguous(), None
        parts = []
        for a in range(0, q, ROWS):
            at = torch.arange(k - q + a, k - q + min(q, a + ROWS), device=query.device)[:, None]
            distance = at - torch.arange(k, device=query.device)
            seen = (distance >= 0) & (distance < window)
            parts.append(sdpa(query[:, :, a : a + ROWS], key, value, attn_mask=seen, scale=scaling))
        return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attend)
    return NAME


def cos_sin(t: Effect, n: int, r: Reference) -> tuple[Any, Any]:
    """cos and sin of a table, times its multiplier, for the positions 0 … n−1: [n, D/2] each, from angles in float64."""
    import torch

    angles = np.arange(n, dtype=np.float64)[:, None] * t.inv_freq
    cos, sin = (torch.from_numpy((f(angles) * t.multiplier).astype(np.float32)).to(r.device, r.dtype) for f in (np.cos, np.sin))
    return cos, sin


def rotated(x: Any, cos: Any, sin: Any, rotation: str) -> Any:
    """[batch, heads, tokens, head] with its first D dimensions rotated: "halves" pairs i with i + D/2, "neighbours" 2i with 2i + 1."""
    import torch

    half = cos.shape[1]
    turning, rest = x[..., : 2 * half], x[..., 2 * half :]
    if rotation == "halves":
        a, b = turning[..., :half], turning[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
    a, b = turning[..., ::2], turning[..., 1::2]
    return torch.cat([torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2), rest], dim=-1)

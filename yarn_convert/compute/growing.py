"""Token by token under a recipe whose s follows the length (YaRN, arXiv 2309.00071, Section 3.3): s = max(1, l'/L) at every step.

Keys are cached *before* RoPE and all of them rotated with the current table at each step, so that query and keys always meet under
one table. Runtimes cache them after RoPE: then keys of earlier steps keep the angles of a smaller s, and scores beyond L are wrong.

What a cache can give: with one layer, exactly the logits of a fresh pass of the same length. With more, the keys and values of a
deeper layer still come from hidden states that were computed under the smaller s of their own step, and only a fresh pass (`CACHES`
"none") computes those anew; the cache then is exactly what comes of every position attending under the table of its own length.

A recipe with one table for all lengths needs none of this: its keys are rotated once. And texts that begin alike need their beginning
read once, where it is read under one table: `Steps.turn_to`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, no_such
from ..families.layers import CHUNKED, FULL, SLIDES
from ..rope import Effect, Rope, effect, steady
from .reference import Reference, enough_memory
from .scorer import Ids

CACHES = ("before", "after", "none")
NAME = "yarn_convert_before_rope"
SHORT = 24  # tokens of the check that an architecture's rotation is understood
TOLERANCE = {"float32": 1e-6, "bfloat16": 3e-2}  # NMSE; a wrong rotation is near 1
ROWS = 256  # of attention at a time where a mask is needed
ROOM = 1024  # tokens by which tables of cos and sin grow


class Steps:
    """A text that grows: `feed` tokens, get the logits that follow the last. `cache` "before" or "after" RoPE, or "none": every step
    is a fresh pass over all tokens. "auto" is "after" for a static recipe and else "before" where this architecture's rotation is
    understood, else "none"."""

    def __init__(self, reference: Reference, rope: Rope, cache: str = "auto") -> None:
        if cache not in (*CACHES, "auto"):
            raise no_such("cache", cache, CACHES)
        self.reference, self.rope = reference, rope
        self.rotation = rotation_of(reference, rope.rotary_dim // 2) if cache != "none" else ""
        if cache == "before" and not self.rotation:
            raise UsageError(f"{type(reference.net).__name__} rotates its keys in a way that is not known", "a fresh pass for each token")
        understood = "after" if rope.static else "before"
        self.cache = cache if cache != "auto" else understood if self.rotation else "none"
        self.ids: Ids = np.zeros(0, np.int64)
        self.kept: Any = None
        self.turned = 0  # the tokens of the text last turned to
        self.cuts = not _others(reference.net.config.get_text_config())  # whether the last tokens of what is kept can be forgotten

    def feed(self, ids: Ids, rows: int = 1) -> NDArray[np.float32]:
        """float32[vocabulary] after these tokens, int64[n], n ≥ 1; with more `rows` float32[rows, vocabulary], after each of the last."""
        self.ids = np.concatenate([self.ids, np.asarray(ids, np.int64)])
        t, n = effect(self.rope, len(self.ids)), len(self.ids)
        if self.cache == "none":
            found = np.asarray(self.reference.logits(t, self.ids, [(n - rows, n)]))
        else:
            found = (self._before if self.cache == "before" else self._after)(t, ids, rows)
        return found[0] if rows == 1 else found

    def turn_to(self, text: Ids) -> Ids:
        """The tokens of another text, int64[n], that are still to be fed: what it has in common with the beginning of the text that this
        one began as stays read, if it was read under the table that the whole of `text` has."""
        n, old = min(self.turned, len(self.ids), len(text) - 1), self.turned
        different = np.flatnonzero(self.ids[:n] != text[:n])
        same = int(different[0]) if len(different) else n
        self.rewind(same if self.cache != "none" and steady(self.rope, old or 1, len(text)) else 0)
        self.turned = len(text)
        return np.asarray(text[len(self.ids) :], np.int64)

    def rewind(self, n: int) -> None:
        """Forget all tokens but the first `n`; all of them where what is kept cannot be cut."""
        if n < len(self.ids) and self.kept is not None:
            if n and self.cuts:
                for layer in self.kept.layers:
                    layer.keys, layer.values = layer.keys[:, :, :n], layer.values[:, :, :n]
            else:
                self.kept, n = None, 0
        self.ids = self.ids[:n]

    def _before(self, t: Effect, ids: Ids, rows: int) -> NDArray[np.float32]:
        r, n = self.reference, len(self.ids)
        r.rotary.serve(Effect(np.zeros_like(t.inv_freq), 1.0), n, r.device, r.dtype)  # cos 1 and sin 0: the network rotates nothing
        r.net.set_attn_implementation(_attention(self.rotation, *cos_sin(t, n, r), last=(len(r.layers), rows)))
        return self._step(ids, rows)

    def _after(self, t: Effect, ids: Ids, rows: int) -> NDArray[np.float32]:
        self.reference.ready(t, -(-len(self.ids) // ROOM) * ROOM)
        own = _attention(self.rotation, last=(len(self.reference.layers), rows)) if self.rotation else "eager"
        self.reference.net.set_attn_implementation(own)
        return self._step(ids, rows)

    def _step(self, ids: Ids, rows: int) -> NDArray[np.float32]:
        import torch

        self.kept = self.kept or _cache(self.reference.net.config.get_text_config())
        with torch.inference_mode(), enough_memory(len(self.ids)):
            batch = torch.from_numpy(np.asarray(ids, np.int64))[None].to(self.reference.device)
            out = self.reference.net(batch, past_key_values=self.kept, use_cache=True, logits_to_keep=rows)
        return np.asarray(out.logits[0, -rows:].float().cpu().numpy())


def _cache(config: Any) -> Any:
    """transformers' cache: of every token, whatever a layer's window; of layers that are no attention, what they keep."""
    from transformers import DynamicCache

    return DynamicCache(config=config) if _others(config) else DynamicCache()


def _others(config: Any) -> set[str]:
    """The kinds of its layers that are no attention."""
    return {*(getattr(config, "layer_types", None) or ())} - {FULL, SLIDES, CHUNKED}


def greedy(steps: Steps, prompt: Ids, most: int, stop: Any = lambda ids: False, draft: Sequence[int] = ()) -> list[int]:
    """The most likely tokens after the prompt, at most `most`, until `stop` of what there is.

    `draft` may be what they are: it is read with the prompt in one pass, where the table does not change over these lengths, and as many
    of it as are the most likely tokens need no step of their own. It changes nothing in what is found.
    """
    rest, n = steps.turn_to(prompt), len(prompt)
    guess = [*draft][: most - 1] if steps.cuts and steady(steps.rope, n, n + len(draft)) else []
    rows = steps.feed(np.concatenate([rest, np.array(guess, np.int64)]), len(guess) + 1).reshape(len(guess) + 1, -1)
    found = [int(rows[0].argmax())]
    while len(found) < most and not stop(found):
        at = len(found) - 1
        if at < len(guess) and found[at] == guess[at]:
            found.append(int(rows[at + 1].argmax()))
            continue
        guess = []
        if len(steps.ids) > n + at:  # tokens of a draft that was not right
            steps.rewind(n + at)
        found.append(int(steps.feed(np.concatenate([prompt, found])[len(steps.ids) :]).argmax()))
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
            found = steps._before(t, ids, 1)[0]
        except (_Unknown, RuntimeError):  # of shapes that do not fit
            continue
        if float(np.square(found - expected).sum() / np.square(expected - expected.mean()).sum()) < TOLERANCE[reference.dtype_name]:
            return rotation
    return ""


class _Unknown(Exception):
    """Something in an attention that is not computed here."""


def _attention(rotation: str, cos: Any = None, sin: Any = None, last: tuple[int, int] = (0, 0)) -> str:
    """The name of an attention function for transformers: causal, over keys that were never rotated, which it rotates with cos and sin,
    [tokens, D/2], by their positions; where these are None, over keys as they are. `last`: (how many layers, of how many of the last
    tokens logits are wanted): the last layer attends for those alone, and leaves the others zero."""
    from transformers import AttentionInterface

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **rest: Any) -> tuple[Any, None]:
        if rest.get("softcap") or rest.get("s_aux") is not None:
            raise _Unknown
        q, k = query.shape[2], key.shape[2]
        if cos is not None:
            c, s = (x[:k].to(query.device) for x in (cos, sin))  # where layers are on several
            query, key = rotated(query, c[k - q :], s[k - q :], rotation), rotated(key, c, s, rotation)
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        window = rest.get("sliding_window") or k
        layers, rows = last
        if rows < q and getattr(module, "layer_idx", -1) == layers - 1:
            out = query.new_zeros((*query.shape[:3], value.shape[3]))
            out[:, :, q - rows :] = causal(query[:, :, q - rows :], key, value, window, scaling)
        else:
            out = causal(query, key, value, window, scaling)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attend)
    return NAME


def causal(query: Any, key: Any, value: Any, window: int, scaling: float | None) -> Any:
    """Attention of the last tokens, [batch, heads, q, D], over all of them, [batch, heads, k, D], each within its window."""
    import torch

    sdpa, (q, k) = torch.nn.functional.scaled_dot_product_attention, (query.shape[2], key.shape[2])
    if k <= window and q in (1, k):
        return sdpa(query, key, value, is_causal=q > 1, scale=scaling)
    parts = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if k <= window and parts and query.device.type == "cpu" and value.shape[3] == query.shape[3]:
        before, new = slice(0, k - q), slice(k - q, k)
        a, sum_a = parts(query, key[:, :, before], value[:, :, before], scale=scaling)
        b, sum_b = parts(query, key[:, :, new], value[:, :, new], is_causal=True, scale=scaling)
        share = torch.sigmoid(sum_a - sum_b)[..., None].to(a.dtype)  # logarithms of the sums over scores, [batch, heads, q]
        return a * share + b * (1 - share)
    found = []
    for a in range(0, q, ROWS):
        first, last = max(0, k - q + a - window + 1), k - q + min(q, a + ROWS)
        at = torch.arange(k - q + a, last, device=query.device)[:, None]
        distance = at - torch.arange(first, last, device=query.device)
        seen = (distance >= 0) & (distance < window)
        found.append(sdpa(query[:, :, a : a + ROWS], key[:, :, first:last], value[:, :, first:last], attn_mask=seen, scale=scaling))
    return torch.cat(found, dim=2)


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

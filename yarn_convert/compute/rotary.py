"""What the reference puts into transformers' code: a rotary module that serves a float64 table, and attention by rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import UsageError
from ..families.layers import CHUNKED
from ..rope import Table

Spans = Sequence[tuple[int, int]]
BLOCK = 256  # rows of attention that are computed at a time


class _Nothing:
    """In the place of a rotary module, of a model that has none."""

    def serve(self, table: Table, n: int, device: str, dtype: Any) -> None:
        pass


def replace_rotary(net: Any, layer_type: str, nothing_turns: bool = False) -> Any:
    """Put one module that serves our table in the place of every rotary module of `net`; it is returned.

    How cos and sin are laid out is learnt from the module that is replaced. Layers of another type than `layer_type`, where
    there is one, keep their own frequencies. `nothing_turns`: there may be none to replace.
    """
    import torch

    names = [name for name, m in net.named_modules() if type(m).__name__.endswith("RotaryEmbedding")]
    if nothing_turns and not names:
        return _Nothing()
    if not names:
        raise UsageError(f"{type(net).__name__} keeps its rotary embedding where it is not found", "validate it with --runtime only")
    old = net.get_submodule(names[0])
    shown = _shown(old, layer_type)
    form, one_of_three = _form_of(old, layer_type, shown), not isinstance(shown, tuple) or shown[0].ndim == 3

    class TableRotary(torch.nn.Module):  # type: ignore[misc]
        """cos and sin as the old module gave them, from float64 tables."""

        known: Any = None  # what is served

        def serve(self, table: Table, n: int, device: str, dtype: Any) -> None:
            if self.known == (table.inv_freq.tobytes(), table.multiplier, n, device, dtype):
                return
            self.known = table.inv_freq.tobytes(), table.multiplier, n, device, dtype
            self.n, self.place, self.served = n, (device, dtype), {layer_type: form(table, n, device, dtype)}

        def forward(self, x: Any, position_ids: Any, layer: str = layer_type) -> Any:
            if layer not in self.served:
                own = Table(getattr(old, f"{layer}_inv_freq").double().cpu().numpy(), getattr(old, f"{layer}_attention_scaling"))
                self.served[layer] = form(own, self.n, *self.place)
            found = self.served[layer]
            position_ids = position_ids[0] if one_of_three and position_ids.ndim == 3 else position_ids
            return tuple(t[position_ids] for t in found) if isinstance(found, tuple) else found[position_ids]

    rotary = TableRotary()
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, rotary)
    return rotary


def _shown(rotary: Any, layer_type: str) -> Any:
    """What a rotary module gives for position 1 of one text: with M-RoPE it may want three of it, and gives a table for each, or one."""
    import torch

    device = next((b.device for b in rotary.buffers()), None)
    positions, x = torch.ones((1, 1), dtype=torch.long, device=device), torch.zeros((1, 1, 1), device=device)
    try:
        return rotary(x, positions, layer_type) if layer_type else rotary(x, positions)
    except (IndexError, RuntimeError):
        return rotary(x, positions.expand(3, 1, 1))


def _form_of(rotary: Any, layer_type: str, shown: Any) -> Callable[..., Any]:
    """(table, tokens, device, dtype) -> cos and sin in the form in which this rotary module gives them.

    They stand for the halves of a head (each frequency again after all others), for neighbours (each twice) or once only;
    or cos + i·sin are one complex number.
    """
    import torch

    if not isinstance(shown, tuple):
        return _polar
    freqs = len(getattr(rotary, f"{layer_type}_inv_freq" if layer_type else "inv_freq"))
    cos = shown[0].reshape(-1, shown[0].shape[-1])[0]
    if len(cos) == freqs:
        spread: Callable[[Any], Any] = lambda a: a  # noqa: E731
    elif torch.equal(cos[:freqs], cos[freqs:]):
        spread = lambda a: np.concatenate([a, a], axis=1)  # noqa: E731
    else:
        spread = lambda a: np.repeat(a, 2, axis=1)  # noqa: E731

    def form(table: Table, n: int, device: str, dtype: Any) -> Any:
        angles = np.arange(n, dtype=np.float64)[:, None] * table.inv_freq
        cos_sin = (spread(f(angles)) * table.multiplier for f in (np.cos, np.sin))
        return tuple(torch.from_numpy(a.astype(np.float32)).to(device, dtype) for a in cos_sin)

    return form


def _polar(table: Table, n: int, device: str, dtype: Any) -> Any:
    import torch

    angles = np.arange(n, dtype=np.float64)[:, None] * table.inv_freq
    return torch.from_numpy((np.exp(1j * angles) * table.multiplier).astype(np.complex64)).to(device)


def chunk_of(module: Any) -> int:
    """The tokens of a chunk, of an attention that sees no other (Llama 4); 0 for any other."""
    kinds = getattr(module.config, "layer_types", None)
    return int(module.config.attention_chunk_size) if kinds and kinds[module.layer_idx] == CHUNKED else 0


def rows_attention(last: Spans, layers: int, n: int, cache: Any = None) -> str:
    """The name of an attention function for transformers: causal, within the sliding window that a layer hands to it, some rows
    at a time. In the last of so many layers it computes the rows `last` only, of n, and leaves the others zero. `cache`: the type that
    keys and values are rounded to, None for none."""
    import torch
    from transformers import AttentionInterface

    def blocks(spans: Spans) -> list[tuple[int, int]]:
        return [(i, min(i + BLOCK, b)) for a, b in spans for i in range(a, b, BLOCK)]

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **rest: Any
    ) -> tuple[Any, None]:
        window, chunk = rest.get("sliding_window") or query.shape[2], chunk_of(module) or query.shape[2]
        groups = query.shape[1] // key.shape[1]
        key, value = (x if cache is None else x.to(cache).to(x.dtype) for x in (key, value))
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        out = query.new_zeros((*query.shape[:3], value.shape[3]))
        for a, b in blocks(last if module.layer_idx == layers - 1 else ((0, n),)):
            first = max(0, a - window + 1)
            scores = query[:, :, a:b] @ key[:, :, first:b].transpose(2, 3)
            scores *= query.shape[-1] ** -0.5 if scaling is None else scaling
            if cap := rest.get("softcap"):
                scores = (scores / cap).tanh_() * cap
            rows, columns = torch.arange(a, b, device=query.device)[:, None], torch.arange(first, b, device=query.device)
            hidden = (columns > rows) | (rows - columns >= window) | (rows // chunk != columns // chunk)
            scores = scores.masked_fill_(hidden, float("-inf"))
            if (sinks := rest.get("s_aux")) is not None:  # one more score a head, whose share goes nowhere
                scores = torch.cat([scores, sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1).softmax(-1)[..., :-1]
            else:
                scores = scores.softmax(-1)
            out[:, :, a:b] = scores @ value[:, :, first:b]
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("yarn_convert_rows", attend)
    return "yarn_convert_rows"

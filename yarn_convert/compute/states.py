"""What every module of the reference gives for a text, in the order in which they end, by forward hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..rope import Effect, Table
from .reference import Reference, enough_memory

States = dict[str, NDArray[np.float32]]  # float32[tokens, numbers]
TURNED = "after RoPE"
ATTENDED = "attended"  # what attention gives, before its last matrix


def states_of(reference: Reference, table: Effect | Table, ids: NDArray[np.int64]) -> States:
    """The outputs of all modules that give something for each token of `ids`, int64[n], by their names in transformers, and of each layer
    the queries, keys and values that its attention gets, "layers.0.q after RoPE", in HF's order of rows, and what it gives of them."""
    import torch
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    n, found = len(ids), States()

    def keep(name: str, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else getattr(out, "logits", out)
        if not isinstance(out, torch.Tensor):
            return
        leading = out.shape[: 3 if out.shape[:2] == (1, 1) else 2]  # of one latent head, which kv_b_proj has, come two of one
        if out.is_floating_point() and out.numel() and n in leading:
            found[name] = out.detach().float().cpu().numpy().reshape(n, -1)

    reference.ready(table, n, ((0, n),))
    attention = ALL_ATTENTION_FUNCTIONS["yarn_convert_rows"]

    def watched(module: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> Any:
        for which, x in (("q", query), ("k", key), ("v", value)):
            keep(f"layers.{module.layer_idx}.{which}{'' if which == 'v' else f' {TURNED}'}", x.transpose(1, 2).contiguous())
        given = attention(module, query, key, value, *rest, **more)
        keep(f"layers.{module.layer_idx}.{ATTENDED}", given)
        return given

    AttentionInterface.register("yarn_convert_watched", watched)
    reference.net.set_attn_implementation("yarn_convert_watched")
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: keep(short(name), out))
        for name, module in reference.net.named_modules()
        if name and (not isinstance(module, torch.nn.ModuleList))
    ]
    try:
        with torch.inference_mode(), enough_memory(n):
            reference.net(torch.from_numpy(np.asarray(ids, np.int64))[None].to(reference.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def short(name: str) -> str:
    """A module's name without what stands around the layers."""
    for before in ("model.language_model.", "language_model.", "model."):
        name = name.removeprefix(before)
    return name


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """NMSE of `b` from `a`; infinite for what is not finite."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    error, spread = ((x - y) ** 2).sum(), ((x - x.mean(1, keepdims=True)) ** 2).sum()
    found = float(error / max(float(spread), 1e-300)) if error else 0.0
    return found if np.isfinite(found) else float("inf")
